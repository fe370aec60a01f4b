"""Token ids so far → logits of the next token: `score` a whole segment, or `step` by step.

Both give the same bits, for any number of streams. Knows nothing of tokenizers and of coding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import ops
from llmzip.exact.attention import KeyValueCache
from llmzip.exact.llama import Architecture, ExactLlama
from llmzip.models import ModelFiles

FORWARD_ROWS = 2048  # tokens (streams · steps) that pass through the layers at a time
_LOGIT_ROWS = 128  # tokens whose logits are held at a time
_WORTH_CORES = 1 << 14  # activations
_LONGEST_WINDOW = 2048  # of full attention, whose cost grows with it
_SLIDING_RESTART = 32768  # sliding attention: positions stay below this

ACTIVATION_LEVELS = {"a8": ops.A8_LEVELS, "a16": ops.A16_LEVELS}


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

    def run(self, streams: int, steps: int) -> Run:
        """Begin `streams` streams of at most `steps` tokens each."""

    def memory(self, streams: int, steps: int) -> int:
        """The bytes that such a run holds at a time, about."""

    def cores(self, rows: int) -> int:
        """How many cores `rows` tokens at a time are worth."""


class ExactPredictor:
    """An exact model over restarting windows."""

    def __init__(self, model: ExactLlama, bos: int, context: Context) -> None:
        self.model, self.bos, self.context = model, bos, context
        self.vocabulary = model.architecture.vocab_size

    def run(self, streams: int, steps: int) -> _ExactRun:
        return _ExactRun(self, streams, steps)

    def memory(self, streams: int, steps: int) -> int:
        a = self.model.architecture
        kept = min(self.context.window, steps) if a.window is None else min(a.window, steps)
        cache = kept * a.layers * a.kv_heads * (a.head_dim + 1) * 2 * 4
        # a step's logits and weights, and the widest activations, several times over
        return streams * (cache + 16 * (a.vocab_size + 4 * (a.hidden_size + a.intermediate_size)))

    def cores(self, rows: int) -> int:
        # below some 16,000 activations calling an operation takes longer than computing it
        worth = rows * self.model.architecture.hidden_size >= _WORTH_CORES
        return torch.get_num_threads() if worth and self.model.device.type == "cpu" else 1


def default_context(files: ModelFiles) -> Context:
    """The window that a model was trained for, kept in bounds; overlap a half of it."""
    architecture = Architecture.from_config(files.config)
    if architecture.window is not None:
        return Context(_SLIDING_RESTART, min(2 * architecture.window, _SLIDING_RESTART // 2))
    window = min(architecture.context, _LONGEST_WINDOW)
    if window < 16:
        raise UnsupportedModel(f"{files.name} has a context of {window} tokens; 16 are needed")
    return Context(window, window // 2)


def default_activations(files: ModelFiles) -> str:
    """`a8` for models trained with 8-bit activations in mind, `a16` for all others."""
    return "a8" if files.quantised else "a16"


def build(
    files: ModelFiles, *, activations: str, context: Context, device: str = "cpu"
) -> ExactPredictor:
    """Raises UnsupportedModel if the model has no exact form or cannot fill the window."""
    architecture = Architecture.from_config(files.config)
    if architecture.window is None and context.window > architecture.context:
        raise UnsupportedModel(
            f"{files.name} has a context of {architecture.context} tokens, "
            f"{context.window} were asked for"
        )
    model = ExactLlama(
        architecture, files.tensors, levels=ACTIVATION_LEVELS[activations], device=device
    )
    return ExactPredictor(model, files.bos, context)


class _ExactRun:
    def __init__(self, predictor: ExactPredictor, streams: int, steps: int) -> None:
        self._p = predictor
        self._streams = streams
        self._capacity = min(predictor.context.window, steps)
        self._device = predictor.model.device
        self._recent = torch.empty(streams, 0, dtype=torch.int64, device=self._device)
        self._restart(self._recent)

    def _restart(self, prefix: Tensor) -> None:
        """Begin a window: the next tokens to feed are BOS and `prefix` [S, n]."""
        bos = torch.full((self._streams, 1), self._p.bos, dtype=torch.int64, device=self._device)
        self._position = 0
        self._waiting = torch.cat([bos, prefix], 1)
        self._cache: list[KeyValueCache] = self._p.model.new_cache(self._streams, self._capacity)

    def _feed(self, ids: Tensor) -> Tensor:
        """ids [S, T] that fit into the window → hidden states [S, T, H]."""
        hidden = self._p.model.forward(ids, self._cache, self._position)
        self._position += ids.shape[1]
        return hidden

    def _catch_up(self) -> Tensor:
        """Feed the waiting tokens in blocks → hidden state of the last, [S, 1, H]."""
        block = max(1, FORWARD_ROWS // self._streams)
        for ids in torch.split(self._waiting, block, 1):
            hidden = self._feed(ids)
        return hidden[:, -1:]

    def first(self) -> Tensor:
        return self._p.model.logits(self._catch_up()[:, 0])

    def step(self, ids: Tensor) -> Tensor:
        ids = ids.to(self._device)[:, None]
        context = self._p.context
        self._recent = torch.cat([self._recent, ids], 1)
        if self._position == context.window:
            self._recent = self._recent[:, self._recent.shape[1] - context.overlap :]
            self._restart(self._recent)
            return self.first()
        return self._p.model.logits(self._feed(ids)[:, 0])

    def score(self, ids: Tensor) -> Iterator[Tensor]:
        ids = ids.to(self._device)
        context, block = self._p.context, max(1, FORWARD_ROWS // self._streams)
        done = 0  # tokens whose logits are given
        while done < ids.shape[1]:
            if done:
                self._restart(ids[:, done - context.overlap : done])
            yield from self._logits(self._catch_up())
            done += 1
            stop = min(ids.shape[1], done + context.window - self._position)
            while done < stop:
                part = ids[:, done - 1 : min(done - 1 + block, stop - 1)]
                yield from self._logits(self._feed(part))
                done += part.shape[1]

    def _logits(self, hidden: Tensor) -> Iterator[Tensor]:
        """Hidden states [S, T, H] → logits of some steps at a time, [steps, S, V]."""
        steps = max(1, _LOGIT_ROWS // self._streams)
        for part in torch.split(hidden.transpose(0, 1), steps):
            flat = part.reshape(-1, part.shape[-1])
            yield self._p.model.logits(flat).view(part.shape[0], self._streams, -1)


class TablePredictor:
    """A predictor without weights: logits depend on the last token alone. For tests."""

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
