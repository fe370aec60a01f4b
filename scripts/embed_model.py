#!/usr/bin/env python3
"""Write a checkpoint in the form in which models are embedded (int8 weights and their scales).

python scripts/embed_model.py CHECKPOINT llmzip/models/NAME --measure TEXT…

`llmzip models` shows the bits per byte of the texts, each as a whole archive.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import llmzip
from llmzip.doctor import probe
from llmzip.models.store import load, save_int8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder in Hugging Face format")
    parser.add_argument("target", type=Path, help="the folder to write")
    parser.add_argument("--context", type=int, help="context length, if not the config's")
    parser.add_argument("--measure", type=Path, nargs="*", default=[], metavar="TEXT")
    parser.add_argument("--pack", action="store_true", help="weights as `llmzip pack` makes them, "
                        "the tokenizer without what its merges say: smaller")  # fmt: skip
    parser.add_argument("--rotated", action="store_true", help="for a model that was not trained "
                        "for 8-bit activations: quantised after Hadamard transforms")  # fmt: skip
    arguments = parser.parse_args()
    save_int8(
        arguments.checkpoint,
        arguments.target,
        arguments.context,
        packed=arguments.pack,
        rotated=arguments.rotated,
    )
    files = load(str(arguments.target))
    check: dict[str, Any] = {
        "digest": files.digest.hex(),
        "probe": probe(str(arguments.target), "cpu"),
    }
    measured = {}
    for text in arguments.measure:
        content = text.read_bytes()
        archive = llmzip.compress(content, model=str(arguments.target))
        measured[text.stem] = round(8 * len(archive) / len(content), 4)
        print(f"{text.stem}: {measured[text.stem]} bits per byte")
    check["bits_per_byte"] = measured
    (arguments.target / "check.json").write_text(json.dumps(check, indent=1) + "\n")
    for path in sorted(arguments.target.iterdir()):
        print(f"{path.stat().st_size:>10,}  {path}")


if __name__ == "__main__":
    main()
