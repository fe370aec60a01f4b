#!/usr/bin/env python3
"""What the memory's mixer knows before it has learned anything of a text: the state that it is
left in by excerpts of a training corpus, short ones and long ones.

python scripts/train_memory.py CORPUS --config scripts/configs/small.toml
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
from measure_memory import load_model, score

from llmzip.mixing.mix import PRIOR, Mixer, blank
from llmzip.train import config, data

_PIECES = {2_000: 6, 20_000: 3, 100_000: 1}  # bytes → pieces of each category


def excerpts(corpus: Path, mix: dict[str, float]) -> list[bytes]:
    """Of each category with a share in the mix, neighbouring documents as one text."""
    chance = random.Random(1)
    found = []
    for category, files in data.categories(corpus).items():
        if mix.get(category):
            text = b"".join(document for path in files for document in data.documents(path))
            for size, count in _PIECES.items():
                for _ in range(count):
                    start = chance.randrange(len(text) - size)
                    found.append(text[start : start + size])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--config", type=Path, required=True, help="TOML file with the mix")
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--out", type=Path, default=PRIOR)
    arguments = parser.parse_args()
    tokens, model = load_model(arguments.model)
    texts = excerpts(arguments.corpus, config.load(arguments.config).mix)
    pieces = [score(text, tokens, model) for text in texts]
    order = np.random.default_rng(1).permutation(len(pieces))
    mixer = Mixer(max(piece.table.shape[1] for piece in pieces), blank())
    for _ in range(2):
        for i in order:
            piece = pieces[i]
            for t in range(len(piece.table)):
                candidates, evidence = piece.candidates[t], piece.evidence[t]
                mixer.mix(candidates, evidence, piece.known[t], piece.total[t])
                mixer.learn(candidates, evidence, piece.table[t])
    state = {name: table.tolist() for name, table in mixer.state().items()}
    arguments.out.write_text(json.dumps(state, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
