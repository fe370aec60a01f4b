"""Loss curves of training runs → what larger models and more text would bring."""

from __future__ import annotations

import json
import math
import statistics
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from llmzip.bench.plots import Series, chart
from llmzip.train import config, model
from measuring import Report, argument, command, report_of

WARM = 12_000_000  # bytes of text before which the curve does not follow the law
SPAN = 1_000_000  # tokens to average over
TEXT = (0.1, 0.3, 1, 3, 10)  # GB
EXPONENTS = 0.35, 0.37  # of parameters and of bytes of text


@command(
    "results/training/curve.json",
    argument("runs", nargs="+", type=Path, help="folders with report.json and loss.jsonl"),
    argument("--configs", nargs="*", type=Path,
             default=sorted(Path("scripts/configs").glob("*.toml"))),
)  # fmt: skip
def training(given: Namespace) -> Report:
    """Bits per byte of training texts by FLOPs, a fit, and its predictions for other budgets.

    Each text is seen once, so the loss is that of unseen text. FLOPs are 6 · parameters · tokens
    (Kaplan et al., 2020). At a constant learning rate, bits = e + a · parameters^−0.35 + b ·
    bytes^−0.37 is fitted to all runs at once, with non-negative e, a and b and the exponents of
    Besiroglu et al. (2024, after Hoffmann et al., 2022). The gain of the decay is the mean of the
    runs' gains. Two small models say little about large ones: far predictions are rough.
    """
    runs = [_load(folder) for folder in given.runs]
    law = _fit(runs)
    shapes = {
        path.stem: sum(p.numel() for p in model.build(config.load(path)).parameters())
        for path in given.configs
    }
    sizes = sorted(shapes.items(), key=lambda item: item[1])
    a_token = runs[-1]["bytes_a_token"]
    results = [
        {
            **{key: run[key] for key in ("name", "parameters", "tokens")},
            "flops": 6 * run["parameters"] * run["tokens"],
            "bits_per_byte": [bits for _, bits, constant in run["points"] if not constant][-1],
        }
        for run in runs
    ]
    predicted = [
        {
            "name": name,
            "parameters": parameters,
            "text_bytes": int(gigabytes * 1e9),
            "flops": 6 * parameters * gigabytes * 1e9 / a_token,
            "bits_per_byte": law["decay_factor"] * _predict(law, parameters, gigabytes * 1e9),
        }
        for name, parameters in sizes
        for gigabytes in TEXT
    ]
    print(json.dumps({"law": law, "results": results, "predicted": predicted}, indent=1))
    series = {}
    for run in runs:
        flops = 6 * run["parameters"] / run["bytes_a_token"]
        seen, bits, _ = zip(*run["points"], strict=True)
        series[run["name"]] = Series([flops * n for n in seen], bits, ".")
    seen = tuple(np.geomspace(WARM, 3e9, 50))
    for name, parameters in sizes:
        bits = tuple(_predict(law, parameters, n) for n in seen)
        series[f"fit, {name}"] = Series([6 * parameters * n / a_token for n in seen], bits, "-")
    chart(given.out.with_suffix(".png"), ("training FLOPs", series), log=True)
    return report_of(None, sweep="training curve", results=results, law=law, predicted=predicted)


def _load(folder: Path) -> dict[str, Any]:
    """A run with the means of spans of its curve: (bytes seen, bits per byte, constant rate?)."""
    report = json.loads((folder / "report.json").read_text())
    lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    spans: dict[tuple[int, bool], list[dict[str, Any]]] = {}
    for line in lines:
        spans.setdefault((line["tokens"] // SPAN, line["rate"] == 1), []).append(line)
    a_token = statistics.median(n["loss"] / math.log(2) / n["bits_per_byte"] for n in lines)
    points = [
        (
            a_token * statistics.mean(line["tokens"] for line in span),
            statistics.mean(line["bits_per_byte"] for line in span),
            constant,
        )
        for (_, constant), span in spans.items()
        if len(span) > 2
    ]
    return {
        "name": report["config"]["name"],
        "parameters": report["parameters"],
        "tokens": report["progress"]["tokens"],
        "bytes_a_token": a_token,
        "points": points,
    }


def _fit(runs: list[dict[str, Any]]) -> dict[str, float]:
    from scipy.optimize import nnls

    found = [
        (_terms(run["parameters"], seen), bits)
        for run in runs
        for seen, bits, constant in run["points"]
        if constant and seen > WARM
    ]
    rows, y = (np.array(values) for values in zip(*found, strict=True))
    (e, a, b), _ = nnls(rows, y)
    law = {"e": float(e), "a": float(a), "b": float(b)}
    law["residual_bits"] = float(np.sqrt(np.mean((rows @ (e, a, b) - y) ** 2)))
    gains = []
    for run in runs:
        seen, last, _ = [point for point in run["points"] if not point[2]][-1]
        gains.append(last / _predict(law, run["parameters"], seen))
    law["decay_factor"] = statistics.mean(gains)
    return law


def _terms(parameters: float, seen: float) -> tuple[float, float, float]:
    return 1.0, parameters ** -EXPONENTS[0], seen ** -EXPONENTS[1]


def _predict(law: dict[str, float], parameters: float, seen: float) -> float:
    """Bits per byte after so many bytes of text at a constant rate."""
    return float(np.dot((law["e"], law["a"], law["b"]), _terms(parameters, seen)))
