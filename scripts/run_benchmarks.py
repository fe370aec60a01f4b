#!/usr/bin/env python3
"""Every codec over a corpus of folders; JSON, CSV, Markdown and a plot.

python scripts/run_benchmarks.py CORPUS… --model small --out results/benchmarks

A megabyte of text takes some two minutes on two cores for each model (0.03 MB/s to encode, 0.01 to
decode); with zpaq as much again; cmix, where it is installed, hours. Then
`python scripts/readme_table.py` renews the README.
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
    parser.add_argument("corpus", nargs="+", type=Path, help="folders, of which each is a category")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--codecs", help="names, by commas (default: all that are installed)")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--exclude", action="append", default=[], metavar="NAME", help="of a file")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    report = bench.compare(
        arguments.corpus,
        Options(),
        models=arguments.model,
        rivals=arguments.codecs.split(",") if arguments.codecs else None,
        repeat=arguments.repeat,
        exclude=arguments.exclude,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    target = arguments.out / "benchmarks.json"
    write(target, json.dumps(report, indent=1) + "\n")
    write(target.with_suffix(".csv"), bench.csv_of(report))
    write(target.with_suffix(".md"), forms.markdown(report))
    bench.plot(report, target.with_suffix(".png"))
    print(forms.summary_table(report))


if __name__ == "__main__":
    main()
