"""An exact model over restarting windows, for any number of streams: a predictor whose bits
depend on neither batch nor machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import Outline, check, fused, ops
from llmzip.exact.fused import FusedLlama
from llmzip.exact.llama import FAMILY, ROTATED, Architecture, ExactLlama
from llmzip.inference.base import Context, context_for, require_memory
from llmzip.models import ModelFiles

if TYPE_CHECKING:
    from llmzip.exact.convert import ExactTransformer

FORWARD_ROWS = 2048  # tokens (streams · steps) that pass through the layers at a time
_LOGIT_ROWS = 128  # tokens whose logits are held at a time
_WORTH_CORES = 1 << 14  # activations,
_WORTH_CORES_WHOLE = 4  # or rows, where a step is one call

DEFAULT_ACTIVATIONS = "a8"

# levels of activations, and of queries, keys and values
ARITHMETIC = {
    "a8": (ops.A8_LEVELS, ops.KEY_LEVELS),
    "a16": (ops.A16_LEVELS, ops.WIDE_KEY_LEVELS),
}


class ExactPredictor:
    """An exact model over restarting windows."""

    def __init__(
        self,
        model: ExactLlama | FusedLlama | ExactTransformer,
        bos: int,
        context: Context,
        certificate: bytes = b"",
    ) -> None:
        """`certificate` tells apart versions of a converted model's code."""
        self.model, self.bos, self.context = model, bos, context
        self.vocabulary = model.outline.vocabulary
        self.certificate = certificate
        # whether single steps are replayed: it pays where launching kernels costs more than them
        self.replays = model.device.type == "cuda"

    def run(self, streams: int, steps: int) -> _ExactRun:
        return _ExactRun(self, streams, steps)

    def memory(self, streams: int, steps: int) -> int:
        o = self.model.outline
        kept = (min(w or self.context.window, self.context.window, steps) for w in o.windows)
        cache = sum(kept) * 2 * (o.key_values + 1) * self.model.key_bytes
        # a step's logits and weights, and the widest activations, several times over
        return streams * (cache + 16 * (o.vocabulary + 4 * o.widest))

    def cores(self, rows: int) -> int:
        # below some 16,000 activations calling an operation takes longer than computing it
        worth = rows * self.model.outline.hidden_size >= _WORTH_CORES
        if isinstance(self.model, FusedLlama) and self.model.whole:
            worth = rows >= _WORTH_CORES_WHOLE
        return torch.get_num_threads() if worth and self.model.device.type == "cpu" else 1


def build(
    files: ModelFiles, *, activations: str, context: Context, device: str = "cpu"
) -> ExactPredictor:
    """Raises UnsupportedModel if the model has no exact form or cannot fill the window."""
    levels, key_levels = ARITHMETIC[activations]
    check.require_exact(device)
    # integers that the device multiplies as floats take their place
    size = 1 if ops.int8_pays(torch.device(device).type) else 4
    # weights that come in int8 stay as they are
    rotated = not files.quantised or bool(files.config.get(ROTATED))
    count = sum(tensor.numel() for tensor in files.tensors.values())
    require_memory(count * size, device, files.name)
    form: ExactLlama | FusedLlama | ExactTransformer
    certificate = b""
    if files.config.get("model_type") in FAMILY:
        architecture = Architecture.from_config(files.config)
        _check_window(architecture.outline(), context, files.name)
        form = ExactLlama(
            architecture,
            files.tensors,
            levels=levels,
            key_levels=key_levels,
            rotated=rotated,
            device=device,
        )
        form = fused.fused(form)
    else:
        from llmzip.exact import convert

        _check_window(convert.outline(convert.read_config(files.config)), context, files.name)
        form = convert.ExactTransformer(
            files.config,
            files.tensors,
            levels=levels,
            key_levels=key_levels,
            rotated=rotated,
            device=device,
        )
        certificate = _certified(form, files, activations)
    return ExactPredictor(form, files.bos, context, certificate)


def _certified(form: ExactTransformer, files: ModelFiles, activations: str) -> bytes:
    """The certificate; of a large model it is kept, as long as nothing that it depends on changes:
    making it takes as long as some seconds of coding."""
    from llmzip.exact import certify
    from llmzip.models import cache

    if sum(t.nbytes for t in files.tensors.values()) < cache.WORTH:
        return certify.certify(form)
    conditions = certify.conditions(form.device) + files.digest + activations.encode()
    certificate = cache.certificate(conditions, certify.CERTIFICATE_BYTES)
    if certificate is None:
        certificate = certify.certify(form)
        cache.keep_certificate(conditions, certificate)
    return certificate


def _check_window(outline: Outline, context: Context, name: str) -> None:
    if None in outline.windows and context.window > outline.context:
        raise UnsupportedModel(
            f"{name} has a context of {outline.context} tokens, {context.window} were asked for"
        )


def default_context(files: ModelFiles, window: int | None = None) -> Context:
    """With a `window`, that one and the overlap that belongs to it. Raises UnsupportedModel if the
    model has no exact form by its config alone."""
    if files.config.get("model_type") in FAMILY:
        return context_for(Architecture.from_config(files.config).outline(), files.name, window)
    from llmzip.exact import convert

    return context_for(convert.outline(convert.read_config(files.config)), files.name, window)


class _Replay:
    """Single steps in shapes and places that never change; recorded once on a GPU, where a
    step would otherwise take as long as the launch of its thousand kernels."""

    def __init__(self, model: Any, cache: Any, capacity: int, streams: int) -> None:
        self._model = model
        self._ids = torch.zeros(streams, 1, dtype=torch.int64, device=model.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._ring = model.new_ring(cache, capacity, self._position)
        self._graph: Any = None  # torch.cuda.CUDAGraph

    @torch.inference_mode()
    def start(self, cache: Any, position: int) -> None:
        """Go on where `cache` is, after `position` tokens."""
        self._position.fill_(position)
        self._model.load_ring(self._ring, cache, position)

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """ids [S, 1] → logits of the next [S, V]; they stay until the next step."""
        self._ids.copy_(ids)
        if self._model.device.type != "cuda":
            logits = self._compute()
        else:
            if self._graph is None:
                self._record()
            self._graph.replay()
            logits = self._logits
        self._position.add_(1)
        return logits

    def _compute(self) -> Tensor:
        hidden = self._model.forward(self._ids, self._ring, self._position)
        logits: Tensor = self._model.logits(hidden[:, 0])
        return logits

    def _record(self) -> None:
        """What is computed on the way only writes the slot that the replay will write again."""
        side = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._model.device))
        with torch.cuda.stream(side):
            self._compute()  # fills caches of tables, and lets libraries choose their kernels
        torch.cuda.current_stream(self._model.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._compute()


class _ExactRun:
    def __init__(self, predictor: ExactPredictor, streams: int, steps: int) -> None:
        self._p = predictor
        self._streams = streams
        self._capacity = min(predictor.context.window, steps)
        self._device = predictor.model.device
        self._recent: list[Tensor] = []  # since the last restart, [S, n] each
        self._replay: _Replay | None = None
        self._restart(torch.empty(streams, 0, dtype=torch.int64, device=self._device))

    def _restart(self, prefix: Tensor) -> None:
        """Begin a window: the next tokens to feed are BOS and `prefix` [S, n]."""
        bos = torch.full((self._streams, 1), self._p.bos, dtype=torch.int64, device=self._device)
        self._position = 0
        self._recent = [prefix]
        self._waiting = torch.cat([bos, prefix], 1)
        self._cache: Any = self._p.model.new_cache(self._streams, self._capacity)

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
        self._recent.append(ids)
        if self._position == context.window:
            recent = torch.cat(self._recent, 1)
            self._restart(recent[:, recent.shape[1] - context.overlap :])
            return self.first()
        if not self._p.replays:
            return self._p.model.logits(self._feed(ids)[:, 0])
        if self._replay is None:
            self._replay = _Replay(self._p.model, self._cache, self._capacity, self._streams)
        if self._cache is not None:  # it was filled since the last step
            self._replay.start(self._cache, self._position)
            self._cache = None
        self._position += 1
        return self._replay.step(ids)

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
