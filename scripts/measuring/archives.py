"""Whole archives of texts: other compressors, models and settings beside each other."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from llmzip import models as store
from llmzip.archive.options import Options
from llmzip.bench import compare, csv_of, plot, summary
from llmzip.bench.plots import Series, chart
from llmzip.bench.report import markdown, summary_table
from llmzip.bench.report import rows as rows_of
from llmzip.errors import LlmzipError
from llmzip.output import write
from measuring import MODEL, MODELS, TEXTS, Report, argument, command, report_of
from measuring.published import PUBLISHED, net

RIVAL = "xz -9e"
FIGURES = ("bits_per_byte", "encode_mb_s", "decode_mb_s", "encode_peak_mb")
EXCLUDE = argument("--exclude", action="append", default=["MANIFEST.tsv"], metavar="NAME",
                   help="skip files of this name")  # fmt: skip
Sweep = dict[str, dict[str, Any]]  # name of a setting → fields of Options
MIXING: Sweep = {
    "on": {},
    "fast": {"mixing": "fast"},
    "off": {"mixing": "none"},
    "one stream": {"streams": 1},
}


@command(
    "results/benchmarks/benchmarks.json",
    argument("corpus", nargs="+", type=Path, help="folders, each of them a category"),
    argument("--model", action="append", default=[]),
    argument("--codecs", help="names, separated by commas (default: all that are installed)"),
    argument("--repeat", type=int, default=1),
    EXCLUDE,
)
def benchmarks(given: Namespace) -> Report:
    """Every codec over a corpus of folders, also as CSV, Markdown and a plot.

    A megabyte takes about two minutes a model on two cores, as much again with zpaq, hours with
    cmix.
    """
    rivals = given.codecs.split(",") if given.codecs else None
    report = compare(given.corpus, Options(), models=given.model, rivals=rivals,
                     repeat=given.repeat, exclude=given.exclude)  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    write(given.out.with_suffix(".csv"), csv_of(report))
    write(given.out.with_suffix(".md"), markdown(report))
    plot(report, given.out.with_suffix(".png"))
    return report


@command(
    "results/comparison.json",
    argument("texts", nargs="+", type=Path, help="files to compress whole"),
    argument("--heads", action="append", type=Path, default=[], metavar="DIR",
             help="a folder of files, to compress only their beginnings"),
    argument("--limit", type=int, default=60_000, help="bytes of each beginning"),
    MODELS,
    argument("--first-text", action="append", default=[], metavar="MODEL",
             help="a slow model, for the first of the texts alone"),
    argument("--codecs", default="gzip,zstd,brotli,xz,zpaq"),
    argument("--keep", action="store_true", help="results of models that are not named stay in "
             "the file, marked with the commit that they are of"),
    EXCLUDE,
)  # fmt: skip
def comparison(given: Namespace) -> Report:
    """Models beside each other, on whole texts and on the beginnings of many, and a plot of the
    first text.

    A model of 38M parameters takes half an hour for 2 MB on two cores, one of 135M four times as
    long.
    """
    report: Report = {"results": [], "limit": given.limit, "models": []}
    rivals = given.codecs.split(",")
    for paths, limit, models, others in (
        (given.texts, None, given.model, rivals),
        (given.texts[:1], None, given.first_text, []),
        (given.heads, given.limit, given.model, rivals),
    ):
        if paths and models:
            part = compare(paths, Options(), models=models, rivals=others,
                           exclude=given.exclude, limit=limit)  # fmt: skip
            known = {m["name"]: m for m in report["models"] + part["models"]}
            report = {**report, **part, "results": report["results"] + part["results"],
                      "models": list(known.values())}  # fmt: skip
    if given.keep:
        report = _with_kept(report, json.loads(given.out.read_text()))
    print(summary_table(report))
    name = given.texts[0].name
    first = [row for row in report["results"] if row["file"] == name]
    others = [(p.name.split(",")[0], p.alice29, p.slowest, p.fastest) for p in PUBLISHED]
    plot(net({**report, "results": first}), given.out.with_suffix(".png"), name,
         others if name == "alice29.txt" else [])  # fmt: skip
    return report


def _with_kept(report: Report, earlier: Report) -> Report:
    """The report with an earlier one's results of other models, if they are of the same texts."""
    texts = {(r["file"], r["sha256"]) for r in report["results"]}
    measured = {m["name"] for m in report["models"]}
    models = [m for m in earlier["models"] if m["name"] not in measured]
    codecs = {f"llmzip {m['name']}" for m in models}
    rows = [r for r in earlier["results"] if r["codec"] in codecs]
    if earlier["limit"] != report["limit"] or not {(r["file"], r["sha256"]) for r in rows} <= texts:
        raise LlmzipError("the results to keep are of other texts")
    commits = earlier.get("kept", {})
    return {
        **report,
        "models": report["models"] + models,
        "kept": {m["name"]: commits.get(m["name"], earlier["commit"]) for m in models},
        # models first
        "results": sorted(
            report["results"] + rows, key=lambda r: r["codec"].split()[0] != "llmzip"
        ),
    }


@command(
    "results/domain.json",
    argument("later", type=Path, help="a text of the same kind, not trained on"),
    argument("--train", type=Path, nargs="+", required=True, metavar="TEXTS"),
    argument("--minutes", type=float, default=2.5),
    argument("--rivals", nargs="*", default=[RIVAL]),
)
def domain(given: Namespace) -> Report:
    """What fine-tuning brings: train on texts of one kind, compare on later ones."""
    from llmzip.train import domain as tuning

    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own"
        training = tuning.train(given.train, own, store.DEFAULT, 60 * given.minutes)
        report = compare([given.later], Options(), models=[str(own), store.DEFAULT],
                         rivals=given.rivals)  # fmt: skip
    return {**report, "training": {**training, "model": own.name}}


def sweep(
    model: str, paths: list[Path], sweeps: dict[str, Sweep], limit: int | None = None
) -> list[Report]:
    """For each setting the figures of all texts together, and of each text by its name."""
    results = []
    for group, settings in sweeps.items():
        for name, fields in settings.items():
            options = Options(**{"model": model, **fields})
            report = compare(paths, options, rivals=[], limit=limit)
            texts = {row["file"]: {k: row[k] for k in FIGURES} for row in rows_of(report)}
            total = summary(report)[-1]
            results.append({"name": name, "sweep": group, "settings": fields,
                            **{k: total[k] for k in FIGURES}, "texts": texts})  # fmt: skip
            print(*(f"{k}: {results[-1][k]}" for k in ("sweep", "name", *FIGURES)), flush=True)
    return results


WINDOWS = argument("--windows", type=int, nargs="*", default=[64, 128, 256, 512, 1024])
STREAMS = argument("--streams", type=int, nargs="*", default=[1, 4, 16, 64, 256])
ATTENTION = argument("--attention", type=int, nargs="*", default=[64, 128, 256, 512],
                     help="tokens that attention sees")  # fmt: skip


def with_attention(model: str, window: int, folder: Path) -> str:
    """Write a copy of a model with sliding attention of another `window` to `folder`."""
    target = folder / f"attention-{window}"
    target.mkdir()
    for path in store.model_paths(model):
        shutil.copyfile(path, target / path.name)
    config = target / "config.json"
    changed = {**json.loads(config.read_text()), "sliding_window": window}
    config.write_text(json.dumps(changed))
    return str(target)


def chart_settings(results: list[Report], target: Path) -> None:
    """Bits per byte by the tokens that attention sees, with and without mixing, and by streams."""

    def series(group: str) -> Series:
        mine = [r for r in results if r["sweep"] == group]
        return Series([r["name"] for r in mine], [r["bits_per_byte"] for r in mine])

    both = {"with mixing": series("attention"), "without": series("attention, no mixing")}
    chart(target, ("tokens that attention sees", both), ("streams", {"": series("streams")}))


@command("results/settings.json", TEXTS, MODEL, WINDOWS, STREAMS,
         ATTENTION)  # fmt: skip
def settings(given: Namespace) -> Report:
    """Sliding attention, context window, streams and mixing, one sweep each: bits per byte, MB/s.

    About fifteen settings, each of which takes two minutes for a megabyte of text.
    """
    # windows are compared without mixing, which would make up for short ones
    sweeps: dict[str, Sweep] = {
        "window": {str(w): {"context": (w, w // 4), "mixing": "none"} for w in given.windows},
        "streams": {str(s): {"streams": s} for s in given.streams},
        "mixing": MIXING,
    }
    with tempfile.TemporaryDirectory() as folder:
        models = {str(w): with_attention(given.model, w, Path(folder)) for w in given.attention}
        attention: dict[str, Sweep] = {
            "attention": {name: {"model": copy} for name, copy in models.items()},
            "attention, no mixing": {
                name: {"model": copy, "mixing": "none"} for name, copy in models.items()
            },
        }
        results = sweep(given.model, given.texts, {**attention, **sweeps})
    for result in results:
        result["settings"].pop("model", None)  # of a folder that is gone
    chart_settings(results, given.out.with_suffix(".png"))
    return report_of(given.model, sweep="settings", results=results)


def _window_and_overlap(text: str) -> tuple[int, int]:
    window, overlap = text.split("/")
    return int(window), int(overlap)


@command(
    "results/context.json",
    TEXTS,
    argument("--model", required=True),
    argument("--bytes", type=int, help="of each text"),
    argument("--contexts", nargs="+", required=True, metavar="WINDOW/OVERLAP",
             type=_window_and_overlap, help="tokens of a window, and of those before it begins"),
)  # fmt: skip
def context(given: Namespace) -> Report:
    """Each context window with its overlap: bits per byte and MB/s of whole archives."""
    settings: Sweep = {f"{w}/{o}": {"context": (w, o)} for w, o in given.contexts}
    results = sweep(given.model, given.texts, {"context": settings}, given.bytes)
    return report_of(given.model, results=results)


@command("results/models.json", TEXTS, MODELS)
def models(given: Namespace) -> Report:
    """Bits per byte by the size of the model, a power law, and when a model pays for its own bytes.

    A megabyte takes about two minutes for a model of 4 MB, in proportion for larger ones.
    """
    import scipy.stats  # noqa: F401  # of the power law: fails now rather than after minutes

    report = compare(given.texts, Options(), models=given.model, rivals=[RIVAL])
    rows = summary(report)
    total = {r["codec"]: r for r in rows if r["category"] == rows[-1]["category"]}
    bound = total[RIVAL]["bits_per_byte"]
    keys = ("bits_per_byte", "bits_per_byte_with_model", "encode_mb_s", "decode_mb_s")
    results: list[Report] = [
        {**{k: m[k] for k in ("name", "parameters", "bytes")},
         **{k: total[f"llmzip {m['name']}"][k] for k in keys}}
        for m in sorted(report["models"], key=lambda m: int(m["bytes"]))
    ]  # fmt: skip
    for i, own in enumerate(results):
        own["pays_against_xz_from_bytes"] = _break_even(own, bound, 0)
        if i:
            smaller = results[i - 1]
            own["pays_against_smaller_from_bytes"] = _break_even(
                own, smaller["bits_per_byte"], smaller["bytes"]
            )
    law = _power_law(results)
    panels = (("MB as shipped", "bytes", 1e-6), ("KB/s, decompressing", "decode_mb_s", 1e3))
    chart(given.out.with_suffix(".png"), *(
        (label, {m["name"]: Series([m[key] * unit], [m["bits_per_byte"]]) for m in results})
        for label, key, unit in panels
    ), log=True)  # fmt: skip
    return report_of(given.model[0], sweep="models", results=results, xz_bits_per_byte=bound,
                     power_law=law, categories=rows)  # fmt: skip


def _power_law(models: list[Report]) -> Report | None:
    """bits = a · parameters^b by least squares of logarithms; None for fewer than three sizes."""
    if len({m["parameters"] for m in models}) < 3:
        return None
    import numpy as np
    from scipy.stats import linregress

    x = np.log([m["parameters"] for m in models])
    y = np.log([m["bits_per_byte"] for m in models])
    fit = linregress(x, y)
    residuals = 100 * (np.exp(y - fit.intercept - fit.slope * x) - 1)
    return {
        "a": math.exp(fit.intercept),
        "b": fit.slope,
        "b_standard_error": fit.stderr,
        "r_squared": fit.rvalue**2,
        "residuals_percent": {m["name"]: float(r) for m, r in zip(models, residuals, strict=True)},
    }


def _break_even(own: Report, bits: float, shipped: int) -> float | None:
    """Bytes of text from which `own` saves more than it weighs beyond `shipped`; None: never."""
    gain = (bits - own["bits_per_byte"]) / 8
    return max(0, own["bytes"] - shipped) / gain if gain > 0 else None
