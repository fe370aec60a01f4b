#!/usr/bin/env python3
"""What the memory's mixer knows before it has learned anything of a text: the state that it is
left in by texts kept for tuning, taken whole and in short pieces.

python scripts/train_memory.py TEXT... [--out llmzip/memory/prior.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from measure_memory import load_model, score

from llmzip.memory.mix import PRIOR, Mixer

_PIECES = (2_000, 20_000, 100_000)  # bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--out", type=Path, default=PRIOR)
    arguments = parser.parse_args()
    tokens, model = load_model(arguments.model)
    pieces = []
    for path in arguments.texts:
        content = path.read_bytes()
        for i, size in enumerate(_PIECES):
            for start in range(0, 300_000, 300_000 // (6 >> i)):  # several short ones, one long
                if piece := content[start : start + size]:
                    pieces.append(score(piece, tokens, model))
        print(path.name, flush=True)
    order = np.random.default_rng(1).permutation(len(pieces))
    mixer = Mixer(max(piece.table.shape[1] for piece in pieces), prior=False)
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
