"""Logits → integer symbol frequencies for the entropy coder. Only this module computes them.

F1: every frequency is an integer, at least 1. F2: the sum of all is below 2^53, so float64 holds it
exactly in any order of summation. F3: only one rounding, of one product, determines a frequency.

`size` ids are arranged in R rows of C columns, id = row · C + column, for coding in two stages: the
row, then the column. Ids beyond `size` pad the last row.
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
_UNIT_BITS = 30  # the frequency of the likeliest id is 2^30,
_OCTAVES = 30  # of ids 30 octaves below it, 1
_ESCAPE_FREQUENCY = 1 << 14  # of each escape id: about 2^-16, as little is known of them
_NOT_FINITE = "the model computed a logit that is not finite"


@cache
def _frequency_table(device: torch.device) -> Tensor:
    """int32 [30·256 + 1]: the frequency of an id `t` steps below the likeliest."""
    table = torch.from_numpy(tables.exp2_table(_STEP_BITS, _UNIT_BITS, _OCTAVES))
    return torch.cat([table, table.new_ones(1)]).to(torch.int32).to(device)


class Frequencies(Protocol):
    """The symbol frequencies of n next tokens, each in R rows of C columns."""

    def rows(self) -> np.ndarray:
        """The first stage: sums of the rows, integers in float64 [n, R]."""

    def columns(self, rows: np.ndarray) -> np.ndarray:
        """The second stage: the columns of row int32 [m] of the first m ≤ n, float64 [m, C]."""

    def of(self, ids: np.ndarray) -> np.ndarray:
        """Of ids int32 [n, K] → float64 [n, K]; entries of negative ids have no meaning."""

    def table(self) -> np.ndarray:
        """All frequencies, int32 [n, R, C]."""


class SymbolLayout:
    """The arrangement of `size` ids in rows and columns; those from `vocabulary` on are escapes."""

    def __init__(self, vocabulary: int, size: int) -> None:
        assert 2 <= vocabulary <= size
        self.vocabulary, self.size = vocabulary, size
        self.columns = 1 << ((size - 1).bit_length() + 1) // 2
        self.rows = max(2, -(-size // self.columns))  # the coder needs at least two symbols

    def frequencies(self, logits: Tensor) -> Frequencies:
        """float32 [n, V] (overwritten) → integer frequencies of n ids.

        Raises UnsupportedModel if a logit is NaN or +infinity: the model has no answer there.
        """
        if logits.device.type == "cpu":
            return self.frequencies_on_cpu(logits)
        return self.frequencies_on_device(logits)

    def frequencies_on_cpu(self, logits: Tensor) -> Frequencies:
        """`frequencies` by a compiled loop."""
        frequencies = np.empty((len(logits), self.rows * self.columns), dtype=np.int32)
        sums = np.empty((len(logits), self.rows))
        rows = np.ascontiguousarray(logits.numpy())
        mantissas = _frequency_table(logits.device).numpy()[: 1 << _STEP_BITS]
        factor = np.float32(tables.log2e_times(1 << _STEP_BITS))
        if not _compute_frequencies(
            rows, factor, mantissas, frequencies, sums, self.columns, self.size
        ):
            raise UnsupportedModel(_NOT_FINITE)
        return _CpuFrequencies(frequencies, sums)

    @torch.inference_mode()
    def frequencies_on_device(self, logits: Tensor) -> Frequencies:
        """`frequencies` by operations of torch."""
        best = logits.amax(-1, keepdim=True)
        if not torch.isfinite(best).all():
            raise UnsupportedModel(_NOT_FINITE)
        steps = torch.sub(best, logits, out=logits).mul_(tables.log2e_times(1 << _STEP_BITS))
        index = steps.round_().clamp_(max=float(_OCTAVES << _STEP_BITS)).to(torch.int32)
        known = _frequency_table(logits.device).index_select(0, index.view(-1))
        full = self.rows * self.columns
        frequencies = torch.ones(len(logits), full, dtype=torch.int32, device=logits.device)
        frequencies[:, : self.vocabulary] = known.view(-1, self.vocabulary)
        frequencies[:, self.vocabulary : self.size] = _ESCAPE_FREQUENCY
        return _DeviceFrequencies(frequencies.view(-1, self.rows, self.columns))


class _CpuFrequencies:
    def __init__(self, frequencies: np.ndarray, sums: np.ndarray) -> None:
        """int32 [n, R · C], float64 [n, R]"""
        self._frequencies, self._sums = frequencies, sums

    def rows(self) -> np.ndarray:
        return self._sums

    def columns(self, rows: np.ndarray) -> np.ndarray:
        columns: np.ndarray = self.table()[np.arange(len(rows)), rows].astype(np.float64)
        return columns

    def of(self, ids: np.ndarray) -> np.ndarray:
        streams = np.arange(len(ids))[:, None]
        known: np.ndarray = self._frequencies[streams, np.maximum(ids, 0)].astype(np.float64)
        return known

    def table(self) -> np.ndarray:
        n, rows = self._sums.shape
        return self._frequencies.reshape(n, rows, -1)


class _DeviceFrequencies:
    def __init__(self, frequencies: Tensor) -> None:
        self._frequencies = frequencies

    def rows(self) -> np.ndarray:
        sums: np.ndarray = self._frequencies.sum(-1, dtype=torch.int64).double().cpu().numpy()
        return sums

    def columns(self, rows: np.ndarray) -> np.ndarray:
        chosen = torch.from_numpy(rows).long().to(self._frequencies.device)
        streams = torch.arange(len(rows), device=self._frequencies.device)
        columns: np.ndarray = self._frequencies[streams, chosen].double().cpu().numpy()
        return columns

    def of(self, ids: np.ndarray) -> np.ndarray:
        index = torch.from_numpy(np.maximum(ids, 0).astype(np.int64)).to(self._frequencies.device)
        known: np.ndarray = self._frequencies.flatten(1).gather(1, index).double().cpu().numpy()
        return known

    def table(self) -> np.ndarray:
        table: np.ndarray = self._frequencies.cpu().numpy()
        return table


@compiled
def _compute_frequencies(
    logits: np.ndarray,
    factor: np.float32,
    mantissas: np.ndarray,
    frequencies: np.ndarray,
    sums: np.ndarray,
    columns: int,
    size: int,
) -> bool:
    """`frequencies_on_device` in one pass. False if a logit is NaN or +infinity, or all are
    -infinity. Loops are simple, to be vectorised; `frequencies` holds the steps first."""
    limit = np.float32(_OCTAVES << _STEP_BITS)
    rounder = np.float32(12582912)  # adding and taking it away rounds half to even below 2^22
    infinity = np.int32(0x7F800000)
    for s in range(len(logits)):
        row, out = logits[s], frequencies[s]
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
            step = np.uint32(out[i])
            mantissa = mantissas[step & np.uint32((1 << _STEP_BITS) - 1)]
            out[i] = mantissa >> np.int32(step >> np.uint32(_STEP_BITS))
        out[len(row) : size] = _ESCAPE_FREQUENCY
        out[size:] = 1
        for r in range(sums.shape[1]):
            part, high, low = out[r * columns : (r + 1) * columns], np.int32(0), np.int32(0)
            for i in range(columns):  # in halves, which are added as quickly again
                high, low = high + (part[i] >> 15), low + (part[i] & 32767)
            sums[s, r] = (np.int64(high) << 15) + low
    return True


def bits(row_sums: np.ndarray, columns: np.ndarray, row: np.ndarray, column: np.ndarray) -> float:
    """The information content of n coded ids in bits, a float for estimates.

    `row_sums` [n, R] and `columns` [n, C] as in `Frequencies`; `row`, `column` [n] are the ids."""
    n = np.arange(len(row))
    total = row_sums.sum(-1) / row_sums[n, row]
    within = columns.sum(-1) / columns[n, column]
    return float((np.log2(total) + np.log2(within)).sum())
