#!/usr/bin/env python3
"""What a model of one's own brings: fine-tune on texts of a kind, compare on later ones.

python scripts/measure_domain.py LATER --train TEXTS… --minutes 2.5
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from llmzip import bench, models
from llmzip.archive.options import Options
from llmzip.train import domain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("later", type=Path, help="a text of the kind that is not trained on")
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="TEXTS")
    parser.add_argument("--minutes", type=float, default=2.5)
    parser.add_argument("--rivals", nargs="*", default=["xz -9e"])
    parser.add_argument("--out", type=Path, default=Path("results/domain.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "own"
        training = domain.train(arguments.train, own, models.DEFAULT, 60 * arguments.minutes)
        training["model"] = own.name  # and not where it was for a while
        print(json.dumps(training, indent=1))
        report = bench.compare(
            [arguments.later], Options(), models=[str(own), models.DEFAULT],
            rivals=arguments.rivals,
        )  # fmt: skip
    arguments.out.write_text(json.dumps({**report, "training": training}, indent=1) + "\n")


if __name__ == "__main__":
    main()
