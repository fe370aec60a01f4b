"""The interface of a predictor: token ids so far → logits of the next token.

`score` takes whole segments, `step` one token of each stream; both give the same bits.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

import numpy as np

from llmzip.errors import UnsupportedModel
from llmzip.exact import MAX_CONTEXT, ModelSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llmzip.exact.team import Team

Ids: TypeAlias = Union[np.ndarray, "Tensor"]  # int64
Logits: TypeAlias = Union[np.ndarray, "Tensor"]  # float32

FORWARD_ROWS = 2048  # tokens (streams · steps) that pass through the layers at a time
LOGIT_ROWS = 64  # tokens whose logits are held at a time
PARALLEL_ROWS = 4  # rows from which threads pay if a step is a single call
MOST_STREAMS = 4096  # of joined frames: more rows make a decode step no more efficient
_MAX_WINDOW = 2048  # of full attention: more costs more than it gains (docs/exactness.md)
_CACHE_WEIGHTS = 16 << 20  # of a byte each, that caches hold
_SLIDING_RESTART = 32768  # window of models whose layers all slide, unless another is wanted


@dataclass(frozen=True)
class Context:
    """The context window: BOS and the tokens since the last restart, at most `window` in all.

    When it is full, a new one begins with BOS and the last `overlap` tokens.
    """

    window: int
    overlap: int

    def __post_init__(self) -> None:
        assert 0 <= self.overlap < self.window - 1


class Run(Protocol):
    """One pass over S streams in lockstep. Use either `score`, or `first` and then `step`."""

    def first(self) -> Logits:
        """Logits of every stream's first token, [S, V]."""

    def step(self, ids: Ids) -> Logits:
        """Each stream's last token, int64 [S] → logits of its next, [S, V]."""

    def score(self, ids: Ids) -> Iterator[Logits]:
        """Whole streams, int64 [S, T] → logits of every token, as chunks [steps, S, V]."""


class Predictor(Protocol):
    """A language model with its context window."""

    vocabulary: int  # V
    context: Context
    fingerprint: bytes  # of the code of a converted model (`exact.convert.verify`); else empty
    gains_by_streams: bool  # whether more of them than usual pay, see the function
    on_gpu: bool  # then frames are coded together, as batches, if there are several
    uses_torch: bool  # whose threads are a setting of the process
    kernels: torch.device | None  # where Triton's kernels take the logits; None: nowhere

    def run(
        self, streams: int, steps: int, prefix: Ids | None = None, threads: Team | None = None
    ) -> Run:
        """Begin `streams` streams of at most `steps` tokens each.

        All of them begin after BOS and `prefix`, int64 [P], at most the overlap: as if the window
        had just restarted. `threads` are what `team` gave.
        """

    def team(
        self, streams: int, most: int, *, known: bool = False
    ) -> AbstractContextManager[Team | None]:
        """Threads, `most` at most, that divide each step, if that is faster than streams of their
        own for each; else None. Steps are of one token of each stream, or of many if all are
        `known`."""

    def memory(self, streams: int, steps: int) -> int:
        """The bytes that such a run needs, about; a prefix counts as steps."""

    def cores(self, rows: int) -> int:
        """How many cores `rows` tokens at a time keep busy."""

    def most_streams(self, steps: int) -> int:
        """How many streams of `steps` tokens fit into memory, about, when frames are joined."""


def exceeds_cache(spec: ModelSpec) -> bool:
    """Whether the weights of a model are read from memory in each step."""
    return spec.weights > _CACHE_WEIGHTS


def gains_by_streams(spec: ModelSpec) -> bool:
    """Whether more streams make decoding faster, as they share what a step reads, and cost little,
    as attention that slides has soon seen enough again. It depends on the model's sizes alone:
    archives must not depend on who writes them."""
    return exceeds_cache(spec) and None not in spec.sliding_windows


def run_memory(spec: ModelSpec, key_bytes: int, context: Context, streams: int, steps: int) -> int:
    """The bytes that a run needs, about: KV cache, logits, frequencies, activations. A prefix
    counts as steps."""
    limit = min(context.window, steps)
    tokens = sum(min(window or limit, limit) for window in spec.sliding_windows)
    cache = tokens * 2 * (spec.kv_size + 1) * key_bytes
    # logits, frequencies and the largest activations, several times
    return streams * (cache + 16 * (spec.vocabulary + 4 * spec.activation_size))


def repeated(prefix: Tensor | None, streams: int) -> Tensor:
    """The prefix of each stream, int64 [S, P]."""
    import torch

    if prefix is None:
        return torch.empty(streams, 0, dtype=torch.int64)
    return prefix[None].repeat(streams, 1)


def require_memory(needed: int, device: str, name: str) -> None:
    """Raises UnsupportedModel if a device has less than `needed` bytes of free memory."""
    free = _free_memory(device)
    if free is not None and needed > free:
        raise UnsupportedModel(
            f"{name} needs about {needed / 2**30:.1f} GiB of memory on {device}, "
            f"{free / 2**30:.1f} GiB are free"
        )


def _free_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError):  # other systems say it in other ways
        return None


def context_for(spec: ModelSpec, name: str, window: int | None = None) -> Context:
    """The context of a model: `window`, by default that of its training, within limits.

    The overlap is a quarter of a window, at least 8 tokens; if all layers slide, two sliding
    windows. Raises UnsupportedModel.
    """
    sliding = [size for size in spec.sliding_windows if size is not None]
    if sliding and len(sliding) == len(spec.sliding_windows):
        window = window or _SLIDING_RESTART
        require_window(spec, window, name)
        return Context(window, min(2 * max(sliding), window // 2))
    window = window or min(spec.context, _MAX_WINDOW)
    require_window(spec, window, name)
    if window < 16:
        raise UnsupportedModel(f"{name} has a context of {window} tokens; 16 are needed")
    # half a window saves 0.2 to 0.5%, but restarts then take half of the time (docs/exactness.md);
    # a header expresses no overlap of 1 to 7 tokens
    return Context(window, max(8, window // 4))


def require_window(spec: ModelSpec, window: int, name: str) -> None:
    """Raises UnsupportedModel if the model cannot see `window` tokens.

    Sliding attention could see any number; but tables of positions grow with them, and an archive
    may ask for billions.
    """
    limit = spec.context if None in spec.sliding_windows else MAX_CONTEXT
    if window > limit:
        raise UnsupportedModel(f"{name} has a context of {limit} tokens, {window} were asked for")


def cores() -> int:
    """How many cores may be used: as torch says, or would say."""
    torch: Any = sys.modules.get("torch")
    if hasattr(torch, "get_num_threads"):  # not while another thread imports it
        return int(torch.get_num_threads())
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return cores_of_machine()


def cores_of_machine() -> int:
    """How many cores the system lets this process use, whatever its settings."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1


def processor_name() -> str:
    """The name of this machine's processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:  # other systems say it in other ways
        pass
    return platform.processor() or platform.machine()
