"""Logits → integer symbol frequencies for the entropy coder. Only this module computes them.

F1: every frequency is an integer, at least 1. F2: the sum of all is below 2^53. F3: only one
rounding, of one product, determines a frequency.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from llmzip.compiled import compiled_in_place
from llmzip.errors import UnsupportedModel
from llmzip.exact import tables
from llmzip.exact.float_bits import bits_of, float_of, ordered

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llmzip.inference.base import Logits

STEP_BITS = 8  # logits are rounded to 1/256 octave
UNIT_BITS = 30  # the frequency of the likeliest id is 2^30,
OCTAVES = 30  # of ids 30 octaves below it, 1
_ESCAPE_OCTAVES = 16  # of each escape id, as little is known of them
ESCAPE_FREQUENCY = 1 << (UNIT_BITS - _ESCAPE_OCTAVES)
_NOT_FINITE = "the model computed a logit that is not finite"


@cache
def _frequency_table(device: torch.device) -> Tensor:
    """int32 [30·256 + 1]: the frequency of an id `t` steps below the likeliest."""
    import torch

    table = torch.from_numpy(tables.exp2_table(STEP_BITS, UNIT_BITS, OCTAVES))
    return torch.cat([table, table.new_ones(1)]).to(torch.int32).to(device)


class TokenFrequencies:
    """The frequencies of chosen ids in a chosen order; those from `vocabulary` on are escapes."""

    def __init__(self, vocabulary: int, ids: np.ndarray) -> None:
        """`ids` int32 [n], in the order that is wanted."""
        self.vocabulary, self._ids = vocabulary, np.ascontiguousarray(ids, dtype=np.int32)
        self._mantissas = tables.exp2_mantissas(STEP_BITS, UNIT_BITS).astype(np.int32)
        self._size = max(vocabulary, int(ids.max()) + 1)

    def of(self, logits: Logits) -> np.ndarray:
        """float32 [k, V] (overwritten) → int32 [k, n].

        Raises UnsupportedModel if a logit is NaN or +infinity: the model has no answer there; or if
        the model gives another number of logits than it says.
        """
        if logits.shape[-1] != self.vocabulary:  # compiled code does not check
            raise UnsupportedModel(
                f"the model computes {logits.shape[-1]} logits for {self.vocabulary} tokens"
            )
        if isinstance(logits, np.ndarray):
            return self._on_cpu(logits)
        if logits.device.type == "cpu":
            return self._on_cpu(logits.numpy())
        return self.on_device(logits)

    def _on_cpu(self, logits: np.ndarray) -> np.ndarray:
        """`of` by a compiled loop."""
        frequencies = np.empty((len(logits), len(self._ids)), dtype=np.int32)
        rows = np.ascontiguousarray(logits)
        factor = np.float32(tables.log2e_times(1 << STEP_BITS))
        steps = np.full(self._size, _ESCAPE_OCTAVES << STEP_BITS, dtype=np.int32)
        if not _compute_frequencies(rows, factor, self._mantissas, steps, self._ids, frequencies):
            raise UnsupportedModel(_NOT_FINITE)
        return frequencies

    def on_device(self, logits: Tensor) -> np.ndarray:
        """`of` by operations of torch."""
        import torch

        with torch.inference_mode():
            return self._on_device(torch, logits)

    def _on_device(self, torch: Any, logits: Tensor) -> np.ndarray:
        best = logits.amax(-1, keepdim=True)
        if not torch.isfinite(best).all():
            raise UnsupportedModel(_NOT_FINITE)
        steps = torch.sub(best, logits, out=logits).mul_(tables.log2e_times(1 << STEP_BITS))
        index = steps.round_().clamp_(max=float(OCTAVES << STEP_BITS)).to(torch.int32)
        known = _frequency_table(logits.device).index_select(0, index.view(-1))
        shape = len(logits), self._size - self.vocabulary
        escapes = torch.full(shape, ESCAPE_FREQUENCY, dtype=torch.int32, device=logits.device)
        by_id = torch.cat([known.view(-1, self.vocabulary), escapes], 1)
        ids = torch.from_numpy(self._ids).to(logits.device)
        frequencies: np.ndarray = by_id.index_select(1, ids).cpu().numpy()
        return frequencies


@compiled_in_place
def _compute_frequencies(
    logits: np.ndarray,
    factor: np.float32,
    mantissas: np.ndarray,
    steps: np.ndarray,
    ids: np.ndarray,
    frequencies: np.ndarray,
) -> bool:
    """`on_device` in one pass. False if a logit is NaN or +infinity, or all are -infinity. `steps`
    int32 [≥ V] hold those of escapes."""
    limit = np.float32(OCTAVES << STEP_BITS)
    rounder = np.float32(12582912)  # adding and taking it away rounds half to even below 2^22
    infinity = np.int32(0x7F800000)
    fraction, shift = np.uint32((1 << STEP_BITS) - 1), np.uint32(STEP_BITS)
    for s in range(len(logits)):
        row = logits[s]
        top, low = np.int32(-(2**31)), np.int32(2**31 - 1)
        for i in range(len(row)):
            pattern = np.int32(ordered(bits_of(row[i])))
            top, low = max(top, pattern), min(low, pattern)
        if top >= infinity or top <= ~infinity or low < ~infinity:
            return False
        best = float_of(np.int32(ordered(top)))
        for i in range(len(row)):
            step = (best - row[i]) * factor
            steps[i] = np.int32(((step if step < limit else limit) + rounder) - rounder)
        out = frequencies[s]
        for i in range(len(ids)):  # no index is negative, which need not be asked if it is unsigned
            step = np.uint32(steps[np.uint32(ids[i])])
            out[i] = mantissas[step & fraction] >> np.int32(step >> shift)
    return True


def bits(frequencies: np.ndarray, ranks: np.ndarray) -> float:
    """The information content of tokens in bits, a float for estimates; frequencies int32 [k, n],
    ranks [k]."""
    own = frequencies[np.arange(len(ranks)), ranks]
    return float(np.log2(frequencies.sum(-1, dtype=np.int64) / own).sum())
