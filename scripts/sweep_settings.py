#!/usr/bin/env python3
"""Context length, streams, and the memory, one sweep each: bits per byte and MB/s.

python scripts/sweep_settings.py TEXT… --out results/settings.json

Some ten settings, each of which takes two minutes for a megabyte of text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import sweeping

from llmzip import bench, models
from llmzip.archive.options import Options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path, help="files and folders")
    parser.add_argument("--model", default=models.DEFAULT)
    parser.add_argument("--windows", type=int, nargs="*", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 16, 64, 256])
    parser.add_argument("--out", type=Path, default=Path("results/settings.json"))
    arguments = parser.parse_args()
    # contexts are compared without memory, which would stand in for them
    sweeps: dict[str, dict[str, dict[str, Any]]] = {
        "window": {str(w): {"context": (w, w // 2), "memory": False} for w in arguments.windows},
        "streams": {str(s): {"streams": s} for s in arguments.streams},
        "memory": {"on": {}, "off": {"memory": False}},
    }
    results = []
    for sweep, settings in sweeps.items():
        for name, given in settings.items():
            options = Options(model=arguments.model, **given)
            report = bench.compare(arguments.texts, options, rivals=[])
            row = bench.summary(report)[-1]
            keys = ("bits_per_byte", "encode_mb_s", "decode_mb_s", "encode_peak_mb")
            results.append(
                {"name": name, "sweep": sweep, "settings": given, **{k: row[k] for k in keys}}
            )
            print(results[-1])
    sweeping.write(arguments.out, "settings", results, arguments.model)
    figure, axes = sweeping.panels(3)
    for ax, sweep in zip(axes, sweeps, strict=True):
        mine = [r for r in results if r["sweep"] == sweep]
        names = [r["name"] for r in mine]
        ax.plot(names, [r["bits_per_byte"] for r in mine], "o-" if sweep != "memory" else "o")
        ax.set_xlabel({"window": "window, tokens (no memory)"}.get(sweep, sweep))
        ax.margins(x=0.15, y=0.2)
    sweeping.save(figure, arguments.out)


if __name__ == "__main__":
    main()
