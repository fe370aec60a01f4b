"""Streams in lockstep through a context window that restarts, for arrays of numpy or torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from llmzip.inference.base import Context

Array = TypeVar("Array", bound=Any)  # np.ndarray or Tensor


class WindowedRun(ABC, Generic[Array]):
    """A `Run` of a model with a KV cache."""

    def __init__(
        self, bos: Array, prefix: Array, context: Context, steps: int, rows: tuple[int, int]
    ) -> None:
        """BOS int64 [S, 1] and `prefix` [S, P] begin all contexts. `rows`: how many tokens pass
        through the layers, and through the head, at a time."""
        self._bos, self._prefix, self._context = bos, prefix, context
        self._streams = len(bos)
        self._block, self._logit_steps = (max(1, count // self._streams) for count in rows)
        self._capacity = min(context.window, steps + prefix.shape[1])
        self._restart(prefix)

    @abstractmethod
    def _joined(self, parts: Sequence[Array]) -> Array:
        """Ids [S, n] each → one after the other."""

    @abstractmethod
    def _as_ids(self, ids: Any) -> Array:
        """Ids of either library where the model wants them."""

    @abstractmethod
    def _new_cache(self, capacity: int) -> Any:
        """An empty KV cache of `capacity` tokens for all streams."""

    @abstractmethod
    def _forward(self, ids: Array, position: int) -> Array:
        """Ids [S, T] → hidden states [S, T, H]; `cache` then holds them, too."""

    @abstractmethod
    def _head(self, hidden: Array) -> Array:
        """Hidden states [R, H] → logits [R, V]."""

    @abstractmethod
    def _after_prefix(self) -> Array | None:
        """Fill the new cache with BOS and the prefix → hidden state of the last, [S, H]; None if
        they are to be fed."""

    def _restart(self, prefix: Array) -> None:
        """Begin a window: the next tokens to feed are BOS and `prefix` [S, n]."""
        self._position = 0
        self._recent = [prefix]  # since the last restart, [S, n] each
        self._waiting = self._joined([self._bos, prefix])
        self.cache = self._new_cache(self._capacity)

    def _feed(self, ids: Array) -> Array:
        """Ids [S, T] that fit into the window → hidden states [S, T, H]."""
        hidden = self._forward(ids, self._position)
        self._position += ids.shape[1]
        return hidden

    def _begin(self) -> Array:
        """Feed BOS and the prefix → hidden state of the last, [S, H]."""
        hidden = self._after_prefix() if self._prefix.shape[1] else None
        if hidden is None:
            return self.catch_up()
        self._position = self._waiting.shape[1]
        return hidden

    def catch_up(self) -> Array:
        """Feed the waiting tokens in blocks → hidden state of the last, [S, H]."""
        for start in range(0, self._waiting.shape[1], self._block):
            hidden = self._feed(self._waiting[:, start : start + self._block])
        last: Array = hidden[:, -1]
        return last

    def first(self) -> Array:
        """As `Run.first`."""
        return self._head(self._begin())

    def step(self, ids: Any) -> Array:
        """As `Run.step`."""
        ids = self._as_ids(ids)[:, None]
        self._recent.append(ids)
        if self._position == self._context.window:
            recent = self._joined(self._recent)
            self._restart(recent[:, recent.shape[1] - self._context.overlap :])
            return self._head(self.catch_up())
        return self._next(ids)

    def _next(self, ids: Array) -> Array:
        """Ids [S, 1] that fit into the window → logits [S, V]."""
        return self._head(self._feed(ids)[:, 0])

    def score(self, ids: Any) -> Iterator[Array]:
        """As `Run.score`."""
        start = self._prefix.shape[1]
        ids = self._joined([self._prefix, self._as_ids(ids)])
        done = start  # tokens that are known or whose logits are given
        while done < ids.shape[1]:
            if done > start:
                self._restart(ids[:, done - self._context.overlap : done])
            hidden = self._begin() if done == start else self.catch_up()
            yield from self._logits(hidden[:, None])
            done += 1
            stop = min(ids.shape[1], done + self._context.window - self._position)
            while done < stop:
                part = ids[:, done - 1 : min(done - 1 + self._block, stop - 1)]
                yield from self._logits(self._feed(part))
                done += part.shape[1]

    def _logits(self, hidden: Array) -> Iterator[Array]:
        """Hidden states [S, T, H] → logits of some steps at a time, [steps, S, V]."""
        for start in range(0, hidden.shape[1], self._logit_steps):
            part = hidden[:, start : start + self._logit_steps].swapaxes(0, 1)
            logits = self._head(part.reshape(-1, part.shape[-1]))
            yield logits.reshape(len(part), self._streams, -1)
