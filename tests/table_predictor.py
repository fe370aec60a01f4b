"""A predictor without weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from llmzip.inference import Context
from llmzip.inference.base import Ids, Logits


def joined(chunks: Iterable[Logits]) -> Tensor:
    """What `Run.score` gives, in one tensor."""
    return torch.cat([torch.as_tensor(chunk).clone() for chunk in chunks])


class TablePredictor:
    """Logits depend only on the last token."""

    fingerprint = b""
    context = Context(64, 32)
    gains_by_streams = on_gpu = False
    kernels = None
    uses_torch = True

    def __init__(self, logits: Tensor, first: Tensor) -> None:
        """`logits` float32 [V, V], row i after token i; `first` [V]."""
        self._table = torch.cat([logits, first[None]])
        self.vocabulary = logits.shape[1]

    def run(
        self, streams: int, steps: int, prefix: Ids | None = None, threads: object = None
    ) -> _TableRun:
        return _TableRun(self._table, streams, -1 if prefix is None else int(prefix[-1]))

    def team(self, streams: int, most: int, *, known: bool = False) -> AbstractContextManager[None]:
        """None: torch has threads of its own."""
        return nullcontext()

    def memory(self, streams: int, steps: int) -> int:
        return streams * self._table.shape[1] * 16

    def most_streams(self, steps: int) -> int:
        return 64

    def cores(self, rows: int) -> int:
        return torch.get_num_threads()


class _TableRun:
    def __init__(self, table: Tensor, streams: int, before: int) -> None:
        self._table, self._streams = table, streams
        self._before = before % len(table)

    def first(self) -> Tensor:
        return self._table[self._before].repeat(self._streams, 1)

    def step(self, ids: Ids) -> Tensor:
        return self._table[torch.as_tensor(ids)]

    def score(self, ids: Ids) -> Iterator[Tensor]:
        before = torch.nn.functional.pad(torch.as_tensor(ids), (1, 0), value=self._before)[:, :-1]
        for part in torch.split(before.T, max(1, 100 // self._streams)):
            yield self._table[part]
