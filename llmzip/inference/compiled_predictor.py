"""The predictor of a compiled model: as `exact_predictor`, but in numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from llmzip.exact.compiled_llama import CompiledLlama
from llmzip.exact.kv_cache import Cache
from llmzip.exact.team import Team, available
from llmzip.inference.base import (
    FORWARD_ROWS,
    LOGIT_ROWS,
    MOST_STREAMS,
    PARALLEL_ROWS,
    Context,
    cores,
    exceeds_cache,
    gains_by_streams,
    run_memory,
)
from llmzip.inference.windowed_run import WindowedRun

if TYPE_CHECKING:
    import torch


_OWN_STREAMS = 5  # for each thread, from which it has them to itself
_LARGEST_TEAM = 16  # threads; more would wait for each other most of the time


class CompiledPredictor:
    """A compiled model with a context window that restarts, for any number of streams."""

    fingerprint = b""
    on_gpu = uses_torch = False
    kernels: torch.device | None = None

    def __init__(self, model: CompiledLlama, bos: int, context: Context) -> None:
        """`bos` begins every context."""
        self.model, self.bos, self.context = model, bos, context
        self.vocabulary = model.spec.vocabulary
        self.gains_by_streams = gains_by_streams(model.spec)
        self._after_prefix: tuple[np.ndarray, Cache, np.ndarray] | None = None

    def run(
        self, streams: int, steps: int, prefix: Any = None, threads: Team | None = None
    ) -> _Run:
        """Begin `streams` streams of at most `steps` tokens each, after `prefix`. With `threads`,
        these divide each step."""
        known = np.zeros(0, dtype=np.int64) if prefix is None else np.asarray(prefix)
        return _Run(self, streams, steps, known, threads)

    def team(
        self, streams: int, most: int, *, known: bool = False
    ) -> AbstractContextManager[Team | None]:
        """Threads that divide each step of few streams. With more streams, each thread is as fast
        with its own, and its mixing then delays no other's steps. If all tokens are known, a thread
        with a single stream is, too; so a team pays where half of the cores had none."""
        count = min(cores(), most, _LARGEST_TEAM)
        few = 2 * streams <= count if known else streams < _OWN_STREAMS * count
        if count > 1 and few and exceeds_cache(self.model.spec) and available():
            return Team(count)
        return nullcontext()

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


class _Run(WindowedRun[np.ndarray]):
    def __init__(
        self,
        predictor: CompiledPredictor,
        streams: int,
        steps: int,
        prefix: np.ndarray,
        threads: Team | None = None,
    ) -> None:
        self._p, self._model, self._threads = predictor, predictor.model, threads
        self._given = prefix
        bos = np.full((streams, 1), predictor.bos, dtype=np.int64)
        prefixes = np.repeat(prefix[None], streams, 0)
        rows = FORWARD_ROWS, LOGIT_ROWS
        super().__init__(bos, prefixes, predictor.context, steps, rows)

    def _joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(parts, 1)

    def _as_ids(self, ids: Any) -> np.ndarray:
        return np.asarray(ids)

    def _new_cache(self, capacity: int) -> Cache:
        return self._model.new_cache(self._streams, capacity)

    def _forward(self, ids: np.ndarray, position: int) -> np.ndarray:
        return self._model.forward(ids, self.cache, position, self._threads)

    def _head(self, hidden: np.ndarray) -> np.ndarray:
        return self._model.logits(hidden, self._threads)

    def _after_prefix(self) -> np.ndarray:
        cache, hidden = self._p.after_prefix(self._given)
        self.cache.continue_from(cache)
        return np.repeat(hidden, self._streams, 0)
