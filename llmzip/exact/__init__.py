"""Exact inference: weights + token ids → logits, the same bits on every machine.

`hadamard`, `tables` → `ops` → `attention` → `llama`, `convert` → `fused`, `prepare`, `certify`,
`check`; each imports only what stands before it. Knows nothing of tokenizers and of coding. The
rules are in docs/exactness.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Outline:
    """What a predictor must know of a model."""

    vocabulary: int
    hidden_size: int
    widest: int  # activations of a token that live at the same time, about
    context: int  # the positions that it was trained with
    windows: tuple[int | None, ...]  # of each layer: a token sees this many, itself included
    key_values: int  # numbers in a token's keys in one layer, and again in its values
