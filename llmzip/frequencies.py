"""logits → integer weights, the single place where this happens.

F1  every weight is an integer, at least 1; F2  a row's sum is below 2^53, so float64 holds it
exactly whatever the order of summation; F3  only one rounding of one product decides a weight.
Knows nothing of who asks, encoder or decoder.

A vocabulary of `size` ids is laid out as R rows of C columns, id = row · C + column, for coding
in two stages; ids beyond it pad the last row.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import tables

_STEP_BITS = 8  # logits are rounded to 1/256 octave
_UNIT_BITS = 30  # the likeliest id weighs 2^30
_OCTAVES = 30  # and ids 30 octaves below it, 1
_ESCAPE_WEIGHT = 1 << 14  # of each escape id: about 2^-16, as little is known of them


@cache
def _weight_table(device: torch.device) -> Tensor:
    """int32 [30·256 + 1]: the weight of an id `t` steps below the likeliest."""
    table = torch.from_numpy(tables.exp2_table(_STEP_BITS, _UNIT_BITS, _OCTAVES))
    return torch.cat([table, table.new_ones(1)]).to(torch.int32).to(device)


class Layout:
    """How `size` ids, the last `size - vocabulary` of them escapes, lie in rows and columns."""

    def __init__(self, vocabulary: int, size: int) -> None:
        assert 2 <= vocabulary <= size
        self.vocabulary, self.size = vocabulary, size
        self.columns = 1 << ((size - 1).bit_length() + 1) // 2
        self.rows = max(2, -(-size // self.columns))  # the coder wants two symbols at least

    @torch.inference_mode()
    def weights(self, logits: Tensor) -> Tensor:
        """float32 [n, V] (overwritten) → integer weights, int32 [n, R, C].

        Raises UnsupportedModel if a logit is NaN or +infinity: the model has no answer there.
        """
        best = logits.amax(-1, keepdim=True)
        if not torch.isfinite(best).all():
            raise UnsupportedModel("the model computed a logit that is not finite")
        steps = torch.sub(best, logits, out=logits).mul_(tables.log2e_times(1 << _STEP_BITS))
        index = steps.round_().clamp_(max=float(_OCTAVES << _STEP_BITS)).to(torch.int32)
        known = _weight_table(logits.device).index_select(0, index.view(-1))
        full = self.rows * self.columns
        if full == self.vocabulary:
            return known.view(-1, self.rows, self.columns)
        weights = torch.ones(len(logits), full, dtype=torch.int32, device=logits.device)
        weights[:, : self.vocabulary] = known.view(-1, self.vocabulary)
        weights[:, self.vocabulary : self.size] = _ESCAPE_WEIGHT
        return weights.view(-1, self.rows, self.columns)


def row_sums(weights: Tensor) -> Tensor:
    """Weights int32 [n, R, C] → float64 [n, R] holding integers: the first stage's weights."""
    return weights.sum(-1, dtype=torch.int64).double()


def columns_of(weights: Tensor, rows: Tensor) -> Tensor:
    """The second stage: the weights of one row each, rows int64 [n] → float64 [n, C]."""
    return weights[torch.arange(len(rows), device=weights.device), rows].double()


def bits(row_sums: Tensor, columns: Tensor, row: Tensor, column: Tensor) -> float:
    """The information of n coded ids under their weights, in bits. For estimates only."""
    total = row_sums.sum(-1) / row_sums.gather(-1, row[:, None])[:, 0]
    within = columns.sum(-1) / columns.gather(-1, column[:, None])[:, 0]
    return float((total.log2() + within.log2()).sum())
