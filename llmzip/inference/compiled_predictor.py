"""The predictor of a compiled model: as `exact_predictor`, but in numpy alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from llmzip.exact import team
from llmzip.exact.compiled_llama import CompiledLlama
from llmzip.exact.kv_cache import Cache
from llmzip.inference.base import (
    FORWARD_ROWS,
    LOGIT_ROWS,
    MOST_STREAMS,
    PARALLEL_ROWS,
    Context,
    cores,
    run_memory,
)

if TYPE_CHECKING:
    import torch

    from llmzip.exact.team import Team


_CACHE_BYTES = 16 << 20  # weights beyond this are read from memory in each step


class CompiledPredictor:
    """A compiled model with a context window that restarts, for any number of streams."""

    fingerprint = b""
    on_gpu = uses_torch = False
    kernels: torch.device | None = None

    def __init__(self, model: CompiledLlama, bos: int, context: Context) -> None:
        """`bos` begins every context."""
        self.model, self.bos, self.context = model, bos, context
        self.vocabulary = model.spec.vocabulary
        self.divides_steps = model.weight_bytes > _CACHE_BYTES and team.available()
        self._after_prefix: tuple[np.ndarray, Cache, np.ndarray] | None = None

    def run(
        self, streams: int, steps: int, prefix: Any = None, threads: Team | None = None
    ) -> _Run:
        """Begin `streams` streams of at most `steps` tokens each, after `prefix`. With `threads`,
        these divide each step."""
        known = np.zeros(0, dtype=np.int64) if prefix is None else np.asarray(prefix)
        return _Run(self, streams, steps, known, threads)

    def after_prefix(self, prefix: np.ndarray) -> tuple[Cache, np.ndarray]:
        """Cache and hidden state [1, H] of one stream after BOS and a prefix; the last ones are
        kept for the next run."""
        known = self._after_prefix
        if known is None or not np.array_equal(known[0], prefix):
            run = _Run(self, 1, 1, prefix)
            hidden = run.catch_up()
            known = self._after_prefix = prefix, run.cache, hidden
        return known[1], known[2]

    def memory(self, streams: int, steps: int) -> int:
        """The bytes that such a run needs, about; a prefix counts as steps."""
        return run_memory(self.model.spec, self.model.key_bytes, self.context, streams, steps)

    def cores(self, rows: int) -> int:
        """How many cores `rows` tokens at a time keep busy."""
        return cores() if rows >= PARALLEL_ROWS else 1

    def most_streams(self, steps: int) -> int:
        """How many streams of `steps` tokens are worth joining."""
        return MOST_STREAMS


class _Run:
    def __init__(
        self,
        predictor: CompiledPredictor,
        streams: int,
        steps: int,
        prefix: np.ndarray,
        threads: Team | None = None,
    ) -> None:
        self._threads = threads
        self._p, self._model, self._streams = predictor, predictor.model, streams
        self._given = prefix
        self._capacity = min(predictor.context.window, steps + len(prefix))
        self._restart(np.repeat(prefix[None], streams, 0))

    def _restart(self, prefix: np.ndarray) -> None:
        """Begin a window: the next tokens to feed are BOS and `prefix` [S, n]."""
        bos = np.full((self._streams, 1), self._p.bos, dtype=np.int64)
        self._position = 0
        self._recent = [prefix]  # since the last restart, [S, n] each
        self._waiting = np.concatenate([bos, prefix], 1)
        self.cache = self._model.new_cache(self._streams, self._capacity)

    def _feed(self, ids: np.ndarray) -> np.ndarray:
        """ids [S, T] that fit into the window → hidden states [S, T, H]."""
        hidden = self._model.forward(ids, self.cache, self._position, self._threads)
        self._position += ids.shape[1]
        return hidden

    def _begin(self) -> np.ndarray:
        """Feed BOS and the prefix → hidden state of the last, [S, H]."""
        if not len(self._given):
            return self.catch_up()
        cache, hidden = self._p.after_prefix(self._given)
        self.cache.continue_from(cache)
        self._position = self._waiting.shape[1]
        return np.repeat(hidden, self._streams, 0)

    def catch_up(self) -> np.ndarray:
        """Feed the waiting tokens in blocks → hidden state of the last, [S, H]."""
        block = max(1, FORWARD_ROWS // self._streams)
        for start in range(0, self._waiting.shape[1], block):
            hidden = self._feed(self._waiting[:, start : start + block])
        return hidden[:, -1]

    def first(self) -> np.ndarray:
        return self._model.logits(self._begin(), self._threads)

    def step(self, ids: Any) -> np.ndarray:
        ids = np.asarray(ids)[:, None]
        context = self._p.context
        self._recent.append(ids)
        if self._position == context.window:
            recent = np.concatenate(self._recent, 1)
            self._restart(recent[:, recent.shape[1] - context.overlap :])
            return self._model.logits(self.catch_up(), self._threads)
        return self._model.logits(self._feed(ids)[:, 0], self._threads)

    def score(self, ids: Any) -> Iterator[np.ndarray]:
        start = len(self._given)
        ids = np.concatenate([self._recent[0], np.asarray(ids)], 1)
        context, block = self._p.context, max(1, FORWARD_ROWS // self._streams)
        done = start  # tokens that are known or whose logits are given
        while done < ids.shape[1]:
            if done > start:
                self._restart(ids[:, done - context.overlap : done])
            hidden = self._begin() if done == start else self.catch_up()
            yield from self._logits(hidden[:, None])
            done += 1
            stop = min(ids.shape[1], done + context.window - self._position)
            while done < stop:
                part = ids[:, done - 1 : min(done - 1 + block, stop - 1)]
                yield from self._logits(self._feed(part))
                done += part.shape[1]

    def _logits(self, hidden: np.ndarray) -> Iterator[np.ndarray]:
        """Hidden states [S, T, H] → logits of some steps at a time, [steps, S, V]."""
        steps = max(1, LOGIT_ROWS // self._streams)
        for start in range(0, hidden.shape[1], steps):
            part = hidden[:, start : start + steps].swapaxes(0, 1)
            logits = self._model.logits(part.reshape(-1, part.shape[-1]))
            yield logits.reshape(len(part), self._streams, -1)
