"""logits → integer weights, the single place where this happens.

F1  every weight is an integer, at least 1; F2  a row's sum is below 2^53, so float64 holds it
exactly whatever the order of summation; F3  only one rounding of one product decides a weight.
Knows nothing of who asks, encoder or decoder.

A vocabulary of `size` ids is laid out as R rows of C columns, id = row · C + column, for coding
in two stages; ids beyond it pad the last row.
"""

from __future__ import annotations

from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from llmzip.compiled import compiled
from llmzip.errors import UnsupportedModel
from llmzip.exact import tables

_STEP_BITS = 8  # logits are rounded to 1/256 octave
_UNIT_BITS = 30  # the likeliest id weighs 2^30
_OCTAVES = 30  # and ids 30 octaves below it, 1
_ESCAPE_WEIGHT = 1 << 14  # of each escape id: about 2^-16, as little is known of them
_NOT_FINITE = "the model computed a logit that is not finite"


@cache
def _weight_table(device: torch.device) -> Tensor:
    """int32 [30·256 + 1]: the weight of an id `t` steps below the likeliest."""
    table = torch.from_numpy(tables.exp2_table(_STEP_BITS, _UNIT_BITS, _OCTAVES))
    return torch.cat([table, table.new_ones(1)]).to(torch.int32).to(device)


class Weights(Protocol):
    """What n next ids weigh, in R rows of C columns."""

    def rows(self) -> np.ndarray:
        """The first stage: sums of rows, integers in float64 [n, R]."""

    def columns(self, rows: np.ndarray) -> np.ndarray:
        """The second stage, given rows int32 [m] of the first m ≤ n: float64 [m, C]."""

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Of some ids, int32 [n, K] → float64 [n, K]; negative ones stand for none."""

    def whole(self) -> np.ndarray:
        """int32 [n, R, C]"""


class Layout:
    """How `size` ids, the last `size - vocabulary` of them escapes, lie in rows and columns."""

    def __init__(self, vocabulary: int, size: int) -> None:
        assert 2 <= vocabulary <= size
        self.vocabulary, self.size = vocabulary, size
        self.columns = 1 << ((size - 1).bit_length() + 1) // 2
        self.rows = max(2, -(-size // self.columns))  # the coder wants two symbols at least

    def weights(self, logits: Tensor) -> Weights:
        """float32 [n, V] (overwritten) → integer weights of n ids.

        Raises UnsupportedModel if a logit is NaN or +infinity: the model has no answer there.
        """
        if logits.device.type == "cpu":
            return self.weights_on_host(logits)
        return self.weights_on_device(logits)

    def weights_on_host(self, logits: Tensor) -> Weights:
        weights = np.empty((len(logits), self.rows * self.columns), dtype=np.int32)
        sums = np.empty((len(logits), self.rows))
        rows = np.ascontiguousarray(logits.numpy())
        mantissas = _weight_table(logits.device).numpy()[: 1 << _STEP_BITS]
        factor = np.float32(tables.log2e_times(1 << _STEP_BITS))
        if not _weigh(rows, factor, mantissas, weights, sums, self.columns, self.size):
            raise UnsupportedModel(_NOT_FINITE)
        return _OnHost(weights, sums)

    @torch.inference_mode()
    def weights_on_device(self, logits: Tensor) -> Weights:
        best = logits.amax(-1, keepdim=True)
        if not torch.isfinite(best).all():
            raise UnsupportedModel(_NOT_FINITE)
        steps = torch.sub(best, logits, out=logits).mul_(tables.log2e_times(1 << _STEP_BITS))
        index = steps.round_().clamp_(max=float(_OCTAVES << _STEP_BITS)).to(torch.int32)
        known = _weight_table(logits.device).index_select(0, index.view(-1))
        full = self.rows * self.columns
        weights = torch.ones(len(logits), full, dtype=torch.int32, device=logits.device)
        weights[:, : self.vocabulary] = known.view(-1, self.vocabulary)
        weights[:, self.vocabulary : self.size] = _ESCAPE_WEIGHT
        return _OnDevice(weights.view(-1, self.rows, self.columns))


class _OnHost:
    def __init__(self, weights: np.ndarray, sums: np.ndarray) -> None:
        """int32 [n, R · C], float64 [n, R]"""
        self._weights, self._sums = weights, sums

    def rows(self) -> np.ndarray:
        return self._sums

    def columns(self, rows: np.ndarray) -> np.ndarray:
        columns: np.ndarray = self.whole()[np.arange(len(rows)), rows].astype(np.float64)
        return columns

    def of(self, ids: np.ndarray) -> np.ndarray:
        streams = np.arange(len(ids))[:, None]
        known: np.ndarray = self._weights[streams, np.maximum(ids, 0)].astype(np.float64)
        return known

    def whole(self) -> np.ndarray:
        n, rows = self._sums.shape
        return self._weights.reshape(n, rows, -1)


class _OnDevice:
    def __init__(self, weights: Tensor) -> None:
        self._weights = weights

    def rows(self) -> np.ndarray:
        sums: np.ndarray = self._weights.sum(-1, dtype=torch.int64).double().cpu().numpy()
        return sums

    def columns(self, rows: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(rows).long().to(self._weights.device)
        streams = torch.arange(len(rows), device=self._weights.device)
        columns: np.ndarray = self._weights[streams, chosen].double().cpu().numpy()
        return columns

    def of(self, ids: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(np.maximum(ids, 0).astype(np.int64)).to(self._weights.device)
        known: np.ndarray = self._weights.flatten(1).gather(1, index).double().cpu().numpy()
        return known

    def whole(self) -> np.ndarray:
        whole: np.ndarray = self._weights.cpu().numpy()
        return whole


@compiled
def _weigh(
    logits: np.ndarray,
    factor: np.float32,
    mantissas: np.ndarray,
    weights: np.ndarray,
    sums: np.ndarray,
    columns: int,
    size: int,
) -> bool:
    """`weights_on_device` in one pass; False if a logit is NaN or +infinity, or all are -infinity.
    Loops are simple, to be vectorised; steps stand where the weights will be."""
    limit = np.float32(_OCTAVES << _STEP_BITS)
    rounder = np.float32(12582912)  # adding and taking it away rounds half to even below 2^22
    infinity = np.int32(0x7F800000)
    for s in range(len(logits)):
        row, out = logits[s], weights[s]
        # bit patterns in the order of the floats: those of negative ones are in the opposite
        patterns, top, low = row.view(np.int32), np.int32(-(2**31)), np.int32(2**31 - 1)
        for i in range(len(row)):
            pattern = np.int32(patterns[i] ^ ((patterns[i] >> 31) & 0x7FFFFFFF))
            top, low = max(top, pattern), min(low, pattern)
        if top >= infinity or top <= ~infinity or low < ~infinity:
            return False
        top = np.int32(top ^ ((top >> 31) & 0x7FFFFFFF))
        best = np.full(1, top, dtype=np.int32).view(np.float32)[0]
        for i in range(len(row)):
            step = (best - row[i]) * factor
            out[i] = np.int32(((step if step < limit else limit) + rounder) - rounder)
        for i in range(len(row)):
            place = np.uint32(out[i])
            mantissa = mantissas[place & np.uint32((1 << _STEP_BITS) - 1)]
            out[i] = mantissa >> np.int32(place >> np.uint32(_STEP_BITS))
        out[len(row) : size] = _ESCAPE_WEIGHT
        out[size:] = 1
        for r in range(sums.shape[1]):
            part, high, low = out[r * columns : (r + 1) * columns], np.int32(0), np.int32(0)
            for i in range(columns):  # in halves, which are added as quickly again
                high, low = high + (part[i] >> 15), low + (part[i] & 32767)
            sums[s, r] = (np.int64(high) << 15) + low
    return True


def bits(row_sums: np.ndarray, columns: np.ndarray, row: np.ndarray, column: np.ndarray) -> float:
    """The information of n coded ids under their weights, in bits. For estimates only."""
    n = np.arange(len(row))
    total = row_sums.sum(-1) / row_sums[n, row]
    within = columns.sum(-1) / columns[n, column]
    return float((np.log2(total) + np.log2(within)).sum())
