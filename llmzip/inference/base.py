"""What a predictor is: token ids so far → logits of the next token; and one without weights.

`score` takes whole segments, `step` one token of each stream; both give the same bits. Knows
nothing of tokenizers and of coding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import Outline

_LONGEST_WINDOW = 2048  # of full attention: twice as much brings 0.1 to 0.4% (docs/exactness.md)
_SLIDING_RESTART = 32768  # sliding attention: positions stay below this


@dataclass(frozen=True)
class Context:
    """What the model sees: BOS and the tokens since the last restart, `window` in all.

    When the window is full it starts again with BOS and the last `overlap` tokens.
    """

    window: int
    overlap: int

    def __post_init__(self) -> None:
        assert 0 <= self.overlap < self.window - 1


class Run(Protocol):
    """One pass over S streams in lockstep. Use either `score`, or `first` and then `step`."""

    def first(self) -> Tensor:
        """Logits of every stream's first token, [S, V]."""

    def step(self, ids: Tensor) -> Tensor:
        """Each stream's last token, int64 [S] → logits of its next, [S, V]."""

    def score(self, ids: Tensor) -> Iterator[Tensor]:
        """Whole streams, int64 [S, T] → logits of every token, as chunks [steps, S, V]."""


class Predictor(Protocol):
    """A language model with its context policy."""

    vocabulary: int  # V
    certificate: bytes  # tells apart versions of a converted model's code; empty for others

    def run(self, streams: int, steps: int) -> Run:
        """Begin `streams` streams of at most `steps` tokens each."""

    def memory(self, streams: int, steps: int) -> int:
        """The bytes that such a run holds at a time, about."""

    def cores(self, rows: int) -> int:
        """How many cores `rows` tokens at a time are worth."""


def require_memory(needed: int, device: str, name: str) -> None:
    """Raises UnsupportedModel, with the sizes, if a device has not so many bytes left."""
    free = _free_memory(device)
    if free is not None and needed > free:
        raise UnsupportedModel(
            f"{name} needs about {needed / 2**30:.1f} GiB of memory on {device}, "
            f"{free / 2**30:.1f} GiB are free"
        )


def _free_memory(device: str) -> int | None:
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvail"))
    except (OSError, StopIteration, ValueError):  # other systems say it in other ways
        return None


def context_for(outline: Outline, name: str, window: int | None = None) -> Context:
    """A window, by default the one that a model was trained for, kept in bounds; overlap a half of
    it, or, where all attention slides, two of its windows. Raises UnsupportedModel."""
    sliding = [window for window in outline.windows if window is not None]
    if sliding and len(sliding) == len(outline.windows):
        window = window or _SLIDING_RESTART
        return Context(window, min(2 * max(sliding), window // 2))
    window = window or min(outline.context, _LONGEST_WINDOW)
    if window > outline.context:
        raise UnsupportedModel(
            f"{name} has a context of {outline.context} tokens, {window} were asked for"
        )
    if window < 16:
        raise UnsupportedModel(f"{name} has a context of {window} tokens; 16 are needed")
    return Context(window, window // 2)


class TablePredictor:
    """A predictor without weights: logits depend on the last token alone. For tests."""

    certificate = b""

    def __init__(self, logits: Tensor, first: Tensor) -> None:
        """`logits` float32 [V, V], row i after token i; `first` [V]."""
        self._table = torch.cat([logits, first[None]])
        self.vocabulary = logits.shape[1]

    def run(self, streams: int, steps: int) -> _TableRun:
        return _TableRun(self._table, streams)

    def memory(self, streams: int, steps: int) -> int:
        return streams * self._table.shape[1] * 16

    def cores(self, rows: int) -> int:
        return torch.get_num_threads()


class _TableRun:
    def __init__(self, table: Tensor, streams: int) -> None:
        self._table, self._streams = table, streams

    def first(self) -> Tensor:
        return self._table[-1].repeat(self._streams, 1)

    def step(self, ids: Tensor) -> Tensor:
        return self._table[ids]

    def score(self, ids: Tensor) -> Iterator[Tensor]:
        before = torch.nn.functional.pad(ids, (1, 0), value=len(self._table) - 1)[:, :-1]
        for part in torch.split(before.T, 64):
            yield self._table[part]
