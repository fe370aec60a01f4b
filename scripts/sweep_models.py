#!/usr/bin/env python3
"""Model size against ratio: bits per byte by parameters, shipped bytes and MB/s, a power law with
its residuals, and the size of corpus from which each model pays for its own bytes.

python scripts/sweep_models.py TEXT… --model small --model ./larger --out results/models.json

A megabyte of text takes some two minutes for each model of 4 MB, in proportion for larger ones.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import sweeping

from llmzip import bench
from llmzip.archive.options import Options

RIVAL = "xz -9e"


def power_law(models: list[dict[str, Any]]) -> dict[str, Any] | None:
    """bits = a · parameters^b by least squares of logarithms; None for fewer than three."""
    if len({m["parameters"] for m in models}) < 3:
        return None
    from scipy.stats import linregress

    x = np.log([m["parameters"] for m in models])
    y = np.log([m["bits_per_byte"] for m in models])
    fit = linregress(x, y)
    residuals = np.exp(y - fit.intercept - fit.slope * x) - 1
    return {
        "a": math.exp(fit.intercept),
        "b": fit.slope,
        "b_standard_error": fit.stderr,
        "r_squared": fit.rvalue**2,
        "residuals_percent": {
            m["name"]: 100 * float(r) for m, r in zip(models, residuals, strict=True)
        },
    }


def break_even(own: dict[str, Any], bits: float, shipped: int) -> float | None:
    """Bytes of text from which `own` saves more than it weighs beyond `shipped`; None: never."""
    gain = (bits - own["bits_per_byte"]) / 8
    return max(0, own["bytes"] - shipped) / gain if gain > 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path, help="files and folders")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/models.json"))
    arguments = parser.parse_args()
    report = bench.compare(arguments.texts, Options(), models=arguments.model, rivals=[RIVAL])
    rows = bench.summary(report)
    total = [row for row in rows if row["category"] == rows[-1]["category"]]
    xz = next(row for row in total if row["codec"] == RIVAL)
    shapes = {f"llmzip {m['name']}": m for m in report["models"]}
    models = [
        {
            "name": shapes[row["codec"]]["name"],
            "parameters": shapes[row["codec"]]["parameters"],
            "bytes": shapes[row["codec"]]["bytes"],
            "bits_per_byte": row["bits_per_byte"],
            "bits_per_byte_with_model": row["bits_per_byte_with_model"],
            "encode_mb_s": row["encode_mb_s"],
            "decode_mb_s": row["decode_mb_s"],
        }
        for row in total
        if row["codec"] in shapes
    ]
    models.sort(key=lambda m: m["bytes"])
    for i, own in enumerate(models):
        own["pays_against_xz_from_bytes"] = break_even(own, xz["bits_per_byte"], 0)
        if i:
            smaller = models[i - 1]
            own["pays_against_smaller_from_bytes"] = break_even(
                own, smaller["bits_per_byte"], smaller["bytes"]
            )
        print(own)
    law = power_law(models)
    sweeping.write(
        arguments.out,
        "models",
        models,
        arguments.model[0],
        xz_bits_per_byte=xz["bits_per_byte"],
        power_law=law,
        categories=rows,
    )
    figure, axes = sweeping.panels(3)
    kinds = (("parameters", "parameters"), ("bytes", "bytes as shipped"),
             ("decode_mb_s", "MB/s, decoding"))  # fmt: skip
    for ax, (key, label) in zip(axes, kinds, strict=True):
        ax.axhline(xz["bits_per_byte"], color="0.6", lw=1, label=RIVAL)
        ax.scatter([m[key] for m in models], [m["bits_per_byte"] for m in models])
        for m in models:
            ax.annotate(m["name"], (m[key], m["bits_per_byte"]), fontsize=8,
                        xytext=(4, 4), textcoords="offset points")  # fmt: skip
        ax.set_xscale("log")
        ax.margins(x=0.25)
        ax.set_xlabel(label)
    if law is not None:
        x = np.geomspace(models[0]["parameters"], models[-1]["parameters"], 50)
        axes[0].plot(x, law["a"] * x ** law["b"], lw=1, label=f"{law['a']:.2f} · n^{law['b']:.3f}")
    axes[0].legend(frameon=False, fontsize=8)
    sweeping.save(figure, arguments.out)


if __name__ == "__main__":
    main()
