#!/usr/bin/env python3
"""Write a checkpoint in the form in which models are embedded (int8 weights and their scales).

python scripts/embed_model.py CHECKPOINT llmzip/models/NAME --context 512
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from llmzip.doctor import probe
from llmzip.models.store import load, save_int8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder in Hugging Face format")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--context", type=int, help="context length, if not the config's")
    arguments = parser.parse_args()
    save_int8(arguments.checkpoint, arguments.target, arguments.context)
    files = load(str(arguments.target))
    check = {"digest": files.digest.hex(), "probe": probe(str(arguments.target), "cpu")}
    (arguments.target / "check.json").write_text(json.dumps(check, indent=1) + "\n")
    for path in sorted(arguments.target.iterdir()):
        print(f"{path.stat().st_size:>10,}  {path}")


if __name__ == "__main__":
    main()
