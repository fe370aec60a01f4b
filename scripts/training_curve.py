#!/usr/bin/env python3
"""Bits per byte of the training texts against training FLOPs, from the loss curves of several
sizes of model, and what they foretell for models and budgets that were not tried.

python scripts/training_curve.py results/training/nano results/training/small

Each folder has the report.json and loss.jsonl of a run over the same mix of texts, each text seen
once, so that the loss is that of unseen text. FLOPs are 6 · parameters · tokens (Kaplan et al.,
2020). While the rate was held, bits = e + a · parameters^−0.35 + b · bytes^−0.37 is fitted to all
runs at once, with the exponents of Besiroglu et al. (2024, after Hoffmann et al., 2022); e, a and b
are not negative. What the decay of the rate brings on top is the mean of what it brought them. Two
small models say little about large ones: far predictions are orders of magnitude.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import sweeping
from scipy.optimize import nnls

from llmzip import models
from llmzip.train import config as configuration
from llmzip.train import model

_WARM = 12_000_000  # bytes before which the curve has not its form yet
_SPAN = 1_000_000  # tokens that are averaged
_TEXT = (0.1, 0.3, 1, 3, 10)  # GB
_EXPONENTS = 0.35, 0.37  # of parameters and of bytes of text


def load(folder: Path) -> dict[str, Any]:
    """Parameters, and means of spans of the curve: (bytes seen, bits per byte, rate held?)."""
    report = json.loads((folder / "report.json").read_text())
    lines = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    spans: dict[tuple[int, bool], list[dict[str, Any]]] = {}
    for line in lines:
        spans.setdefault((line["tokens"] // _SPAN, line["rate"] == 1), []).append(line)
    a_token = statistics.median(n["loss"] / math.log(2) / n["bits_per_byte"] for n in lines)
    points = [
        (
            a_token * statistics.mean(line["tokens"] for line in span),
            statistics.mean(line["bits_per_byte"] for line in span),
            held,
        )
        for (_, held), span in spans.items()
        if len(span) > 2
    ]
    return {
        "name": report["config"]["name"],
        "parameters": report["parameters"],
        "tokens": report["progress"]["tokens"],
        "bytes_a_token": a_token,
        "points": points,
    }


def fit(runs: list[dict[str, Any]]) -> dict[str, float]:
    rows, y = [], []
    for run in runs:
        for seen, bits, held in run["points"]:
            if held and seen > _WARM:
                rows.append(_terms(run["parameters"], seen))
                y.append(bits)
    (e, a, b), _ = nnls(np.array(rows), np.array(y))
    law = {"e": float(e), "a": float(a), "b": float(b)}
    residuals = np.array(rows) @ (e, a, b) - np.array(y)
    law["residual_bits"] = float(np.sqrt(np.mean(residuals**2)))
    gains = []
    for run in runs:
        seen, last, _ = [point for point in run["points"] if not point[2]][-1]
        gains.append(last / predict(law, run["parameters"], seen))
    law["decay_factor"] = statistics.mean(gains)
    return law


def _terms(parameters: float, seen: float) -> tuple[float, float, float]:
    return 1.0, parameters ** -_EXPONENTS[0], seen ** -_EXPONENTS[1]


def predict(law: dict[str, float], parameters: float, seen: float) -> float:
    """Bits per byte after so many bytes, the rate held."""
    return float(np.dot((law["e"], law["a"], law["b"]), _terms(parameters, seen)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--configs", nargs="*", type=Path,
                        default=sorted(Path("scripts/configs").glob("*.toml")))  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results/training/curve.json"))
    arguments = parser.parse_args()
    runs = [load(folder) for folder in arguments.runs]
    law = fit(runs)
    shapes = {
        path.stem: sum(p.numel() for p in model.build(configuration.load(path)).parameters())
        for path in arguments.configs
    }
    results = [
        {
            "name": run["name"],
            "parameters": run["parameters"],
            "tokens": run["tokens"],
            "flops": 6 * run["parameters"] * run["tokens"],
            "bits_per_byte": [bits for _, bits, held in run["points"] if not held][-1],
        }
        for run in runs
    ]
    a_token = runs[-1]["bytes_a_token"]
    predicted = [
        {
            "name": name,
            "parameters": parameters,
            "text_bytes": int(gigabytes * 1e9),
            "flops": 6 * parameters * gigabytes * 1e9 / a_token,
            "bits_per_byte": law["decay_factor"] * predict(law, parameters, gigabytes * 1e9),
        }
        for name, parameters in sorted(shapes.items(), key=lambda item: item[1])
        for gigabytes in _TEXT
    ]
    sweeping.write(arguments.out, "training curve", results, models.DEFAULT, law=law,
                   predicted=predicted)  # fmt: skip
    print(json.dumps({"law": law, "results": results}, indent=1))
    for row in predicted:
        print(f"{row['name']:>6} {row['text_bytes'] / 1e9:5.1f} GB {row['flops']:.1e} FLOPs "
              f"{row['bits_per_byte']:.3f}")  # fmt: skip
    figure, (ax,) = sweeping.panels(1)
    figure.set_size_inches(8, 5)
    for i, run in enumerate(runs):
        n = 6 * run["parameters"] / run["bytes_a_token"]
        x = [n * seen for seen, _, _ in run["points"]]
        ax.plot(x, [bits for _, bits, _ in run["points"]], ".", ms=5, color=f"C{i}",
                label=f"{run['name']}, {run['parameters'] / 1e6:.1f}M parameters")  # fmt: skip
    for i, (name, parameters) in enumerate(sorted(shapes.items(), key=lambda item: item[1])):
        seen = np.geomspace(_WARM, 3e9, 50)
        flops = 6 * parameters * seen / a_token
        bits = [predict(law, parameters, x) for x in seen]
        label = None if i else "fit, rate held"
        ax.plot(flops, bits, lw=1, label=label, color="0.7")
        ax.annotate(name, (flops[-1], bits[-1]), fontsize=8,
                    xytext=(3, -3), textcoords="offset points")  # fmt: skip
    ax.set_xscale("log")
    ax.set_xlabel("training FLOPs (6 · parameters · tokens)")
    ax.legend(frameon=False, fontsize=8)
    sweeping.save(figure, arguments.out)


if __name__ == "__main__":
    main()
