#!/usr/bin/env python3
"""What each model makes of whole texts and of the beginnings of many: bits per byte, speed, memory.

python scripts/compare_models.py alice29.txt book1 --heads dev --heads recent \
    --model nano --model small --model base --model smollm2-135m --out results/comparison.json

Every archive is decoded again. With a model of 135M parameters on two cores it takes an hour.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llmzip import bench
from llmzip.archive.options import Options
from llmzip.bench import report as forms
from llmzip.output import write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path, help="files that are taken whole")
    parser.add_argument("--heads", action="append", type=Path, default=[], metavar="DIR",
                        help="a folder, of whose files the beginnings are taken")  # fmt: skip
    parser.add_argument("--limit", type=int, default=60_000, help="bytes of each beginning")
    parser.add_argument("--exclude", action="append", default=["MANIFEST.tsv"], metavar="NAME")
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--codecs", default="xz,zpaq")
    parser.add_argument("--out", type=Path, default=Path("results/comparison.json"))
    given = parser.parse_args()
    report, heads = (
        bench.compare(
            paths,
            Options(),
            models=given.model,
            rivals=given.codecs.split(","),
            exclude=given.exclude,
            limit=limit,
        )
        for paths, limit in ((given.texts, None), (given.heads, given.limit))
    )
    report["results"] += heads["results"]
    report["limit"] = given.limit
    write(given.out, json.dumps(report, indent=1) + "\n")
    print(forms.summary_table(report))


if __name__ == "__main__":
    main()
