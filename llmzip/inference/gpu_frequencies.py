"""Logits on a GPU → frequencies, their sums, and answers about them, by Triton kernels.

The bits are those of `frequencies` and of `mixing.distribution`, of which `BLOCK` and the form of
questions and answers are: a question (low, -1) is answered by the sum of the frequencies of all
ranks below `low`, (low, high) by rank << 32 | frequency of the first of the likeliest there. Rows
of a vocabulary stay on the GPU where answers are enough. Import it only where `exact.gpu` is
available.
"""

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from llmzip.exact import tables
from llmzip.exact.gpu.arithmetic import OPTIONS, ordered, round_even
from llmzip.inference.frequencies import ESCAPE_FREQUENCY, OCTAVES, STEP_BITS, UNIT_BITS

BLOCK = 128  # ranks that are summed together
_TILE = 1024  # ranks that a program holds at a time
_LIMIT = tl.constexpr(float(OCTAVES << STEP_BITS))
_MANTISSA_MASK = tl.constexpr((1 << STEP_BITS) - 1)
_BITS = tl.constexpr(STEP_BITS)
_ESCAPE = tl.constexpr(ESCAPE_FREQUENCY)
_INFINITY = tl.constexpr(0x7F800000)
_LARGEST = tl.constexpr(2**31 - 1)
_LOWEST = tl.constexpr(-(2**31))
_BLOCK = tl.constexpr(BLOCK)
_ANSWER_BITS = tl.constexpr(32)


class Rows(NamedTuple):
    """Distributions of k tokens on the device."""

    frequencies: Tensor  # int32 [k, n]
    sums: Tensor  # int64 [k, blocks + 1], of all before each block
    most: Tensor  # int32 [k, blocks], the largest of each block


@triton.jit
def _frequency_kernel(
    logits,
    ids,
    mantissas,
    frequencies,
    sums,
    most,
    failed,
    V: tl.constexpr,
    SIZE: tl.constexpr,
    FACTOR: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    frequencies += row * SIZE
    sums += row * (BLOCKS + 1)
    most += row * BLOCKS
    place = tl.arange(0, TILE)
    largest = tl.full((TILE,), _LOWEST, tl.int32)
    smallest = tl.full((TILE,), _LARGEST, tl.int32)
    for first in range(0, V, TILE):
        real = first + place < V
        bits = ordered(
            tl.load(logits + first + place, mask=real, other=0.0).to(tl.int32, bitcast=True)
        )
        largest = tl.maximum(largest, tl.where(real, bits, _LOWEST))
        smallest = tl.minimum(smallest, tl.where(real, bits, _LARGEST))
    top, low = tl.max(largest, 0), tl.min(smallest, 0)
    # NaN or an infinity where the model must have an answer, see `_compute_frequencies`
    wrong = (top >= _INFINITY) | (top <= -_INFINITY - 1) | (low < -_INFINITY - 1)
    tl.store(failed, 1, mask=wrong)
    best = ordered(top).to(tl.float32, bitcast=True)
    before = tl.full((), 0, tl.int64)
    for first in range(0, SIZE, TILE):
        rank = first + place
        real = rank < SIZE
        id = tl.load(ids + rank, mask=real, other=0)
        logit = tl.load(logits + tl.where(id < V, id, 0))
        step = (best - logit) * FACTOR
        index = round_even(tl.where(step < _LIMIT, step, _LIMIT)).to(tl.int32)
        index = tl.where(wrong, 0, index)
        known = tl.load(mantissas + (index & _MANTISSA_MASK)) >> (index >> _BITS)
        frequency = tl.where(real, tl.where(id < V, known, _ESCAPE), 0)
        tl.store(frequencies + rank, frequency, mask=real)
        blocks = tl.reshape(frequency, [TILE // _BLOCK, _BLOCK])
        subtotals = tl.sum(blocks.to(tl.int64), 1)
        block = first // _BLOCK + tl.arange(0, TILE // _BLOCK)
        upto = tl.cumsum(subtotals, 0) + before
        tl.store(sums + block, upto - subtotals, mask=block < BLOCKS)
        tl.store(most + block, tl.max(blocks, 1), mask=block < BLOCKS)
        before += tl.sum(subtotals, 0)
    tl.store(sums + BLOCKS, before)


@triton.jit
def _answer_kernel(
    frequencies,
    sums,
    most,
    ranks,
    starts,
    low,
    high,
    offsets,
    answers,
    SIZE: tl.constexpr,
    BLOCKS: tl.constexpr,
    TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    frequencies += row * SIZE
    sums += row * (BLOCKS + 1)
    most += row * BLOCKS
    rank = tl.load(ranks + row)
    first = tl.load(starts + rank)
    answers += tl.load(offsets + row)
    place = tl.arange(0, _BLOCK)
    wide = tl.arange(0, TILE)
    for i in range(0, (tl.load(starts + rank + 1) - first).to(tl.int32)):
        a, b = tl.load(low + first + i), tl.load(high + first + i)
        block = a // _BLOCK
        inside = block * _BLOCK + place
        if b < 0:
            part = tl.load(frequencies + inside, mask=inside < a, other=0)
            # a block beyond the last has no number of its own: its sum is the last one
            answer = tl.load(sums + block) + tl.sum(part.to(tl.int64), 0)
            tl.store(answers + i, answer)
        else:
            # the first block with the largest frequency: this one, one within, or the last
            end = (b - 1) // _BLOCK
            part = tl.load(frequencies + inside, mask=(inside >= a) & (inside < b), other=0)
            best = tl.max(part, 0)
            for start in range(block + 1, end, TILE):
                other = start + wide
                tops = tl.load(most + other, mask=other < end, other=0)
                top = tl.max(tops, 0)
                found = tl.min(tl.where(tops == top, other, BLOCKS), 0)
                block = tl.where(top > best, found, block)
                best = tl.maximum(best, top)
            tail = end * _BLOCK + place
            part = tl.load(frequencies + tail, mask=(tail >= a) & (tail < b), other=0)
            top = tl.max(part, 0)
            block = tl.where(top > best, end, block)
            best = tl.maximum(best, top)
            inside = block * _BLOCK + place
            part = tl.load(frequencies + inside, mask=(inside >= a) & (inside < b), other=0)
            found = tl.min(tl.where(part == best, inside, SIZE), 0)
            tl.store(answers + i, (found.to(tl.int64) << _ANSWER_BITS) | best.to(tl.int64))


class GpuFrequencies:
    """Frequencies of chosen ids in a chosen order, as `TokenFrequencies`, on a device."""

    def __init__(self, vocabulary: int, ids: np.ndarray, device: torch.device) -> None:
        """`ids` int32 [n], in the order that is wanted; those from `vocabulary` on are escapes."""
        self._vocabulary, self._size = vocabulary, len(ids)
        self._blocks = -(-len(ids) // BLOCK)
        self._ids = torch.from_numpy(ids).to(device)
        mantissas = tables.exp2_mantissas(STEP_BITS, UNIT_BITS).astype(np.int32)
        self._mantissas = torch.from_numpy(mantissas).to(device)
        self.failed = torch.zeros(1, dtype=torch.int32, device=device)
        self._questions: tuple[Tensor, ...] = ()

    def ask(self, starts: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
        """The questions of every rank, as `mixing.questions.Questions`."""
        device = self._ids.device
        self._questions = tuple(torch.from_numpy(x).to(device) for x in (starts, low, high))

    @torch.inference_mode()
    def rows(self, logits: Tensor) -> Rows:
        """float32 [k, V] → their distributions. Sets `failed` where `TokenFrequencies.of`
        raises."""
        count, device = len(logits), logits.device
        frequencies = torch.empty(count, self._size, dtype=torch.int32, device=device)
        sums = torch.empty(count, self._blocks + 1, dtype=torch.int64, device=device)
        most = torch.empty(count, self._blocks, dtype=torch.int32, device=device)
        _frequency_kernel[(count,)](
            logits, self._ids, self._mantissas, frequencies, sums, most, self.failed,
            V=self._vocabulary, SIZE=self._size, FACTOR=tables.log2e_times(1 << STEP_BITS),
            BLOCKS=self._blocks, TILE=_TILE, num_warps=4, **OPTIONS,
        )  # fmt: skip
        return Rows(frequencies, sums, most)

    @torch.inference_mode()
    def answer(self, rows: Rows, ranks: Tensor, offsets: Tensor, answers: Tensor) -> None:
        """Write the answers to the questions of int32 ranks [k] to `answers` int64 [a], those of
        the i-th token from offsets[i], int64 [k]; rank n has none."""
        _answer_kernel[(len(ranks),)](
            *rows, ranks, *self._questions, offsets, answers, SIZE=self._size,
            BLOCKS=self._blocks, TILE=BLOCK, num_warps=1, **OPTIONS,
        )  # fmt: skip
