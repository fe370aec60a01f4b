"""The KV cache of compiled steps: 8-bit keys and values in the memory order of the products."""

from __future__ import annotations

import numpy as np

from llmzip.exact import matmul
from llmzip.exact.architecture import Architecture

_SLACK = 128  # tokens that a sliding cache takes before it moves its window to the front


class Cache:
    """The KV cache in 8 bits, in the memory order of the products: keys of L tokens and values of
    a group interleaved (for `matmul`), or else, for numba's loops, D before n."""

    def __init__(self, architecture: Architecture, streams: int, context: int) -> None:
        a = architecture
        self.window = context if a.window is None else a.window
        self.length = 0
        self._shape = (a.layers, streams, a.kv_heads)
        self._head_dim = a.head_dim
        self._packed = matmul.available() and a.head_dim % matmul.MULTIPLE == 0
        self.arrays = self._allocate(min(context, self.window + _SLACK))

    def _allocate(self, capacity: int) -> tuple[np.ndarray, ...]:
        """Keys, values [layers, S, G, …]; scales of keys in table steps of scores, scales of
        values [layers, S, G, capacity]."""
        capacity = -(-capacity // matmul.MULTIPLE) * matmul.MULTIPLE
        d = self._head_dim
        forms: list[tuple[tuple[int, ...], type]]
        if self._packed:
            lanes, group = matmul.LANES, matmul.GROUP
            forms = [
                ((capacity // lanes, d // group, lanes * group), matmul.KEY_TYPE),
                ((capacity // group, d, group), np.int8),
            ]
        else:
            forms = [((d, capacity), np.int8)] * 2
        forms += [((capacity,), np.float32)] * 2
        return tuple(np.empty((*self._shape, *shape), dtype=kind) for shape, kind in forms)

    def reserve(self, count: int) -> None:
        """Allocate `count` more tokens; tokens that left the sliding window are dropped."""
        capacity = self.arrays[2].shape[-1]
        if self.length + count <= capacity:
            return
        drop, before = self._droppable(), self.arrays
        keep = self.length - drop
        if keep + count > capacity:
            self.arrays = self._allocate(keep + count)
        self._take(before, drop, self.length)

    def _droppable(self) -> int:
        return max(0, self.length - self.window + 1) // matmul.MULTIPLE * matmul.MULTIPLE

    def _take(self, sources: tuple[np.ndarray, ...], start: int, stop: int) -> None:
        """Hold tokens `start` … `stop - 1` of other arrays, or of these."""
        for i, arrays in enumerate(zip(self.arrays, sources, strict=True)):
            unit = (matmul.LANES, matmul.GROUP)[i] if self._packed and i < 2 else 1
            for target, source in zip(*arrays, strict=True):  # layers: a copy of all takes memory
                if unit > 1:
                    some = source[:, :, start // unit : -(-stop // unit)].copy()
                    target[:, :, : some.shape[2]] = some
                else:
                    target[..., : stop - start] = source[..., start:stop].copy()
        self.length = stop - start

    def continue_from(self, other: Cache) -> None:
        """Hold what one stream's cache holds, for all streams of this one, which is empty."""
        self._take(other.arrays, other._droppable(), other.length)
