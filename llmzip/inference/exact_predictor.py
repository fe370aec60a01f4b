"""The predictor of an exact model: its bits depend neither on the batch nor on the machine."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmzip.exact import fused, gpu, ops, selftest
from llmzip.exact.architecture import LLAMA_TYPES, ROTATED_KEY, Architecture
from llmzip.exact.fused import FusedLlama
from llmzip.exact.llama import ExactLlama
from llmzip.inference.base import (
    FORWARD_ROWS,
    LOGIT_ROWS,
    MOST_STREAMS,
    PARALLEL_ROWS,
    Context,
    Ids,
    cores,
    gains_by_streams,
    repeated,
    require_memory,
    run_memory,
)
from llmzip.inference.windowed_run import WindowedRun
from llmzip.models import ModelFiles

if TYPE_CHECKING:
    from llmzip.exact.convert.model import ExactTransformer
    from llmzip.exact.gpu.llama import GpuLlama

# in place of FORWARD_ROWS, and at most of LOGIT_ROWS, for Triton's kernels: a GPU wants rows enough
# for all of its processors, and chunks so large that Python's work for each does not matter
_GPU_ROWS = 1 << 15
_LOGIT_SHARE = 16  # of the GPU's memory, for logits and frequencies
_PARALLEL_ELEMENTS = 1 << 14  # activations from which threads pay; below, calls dominate

# levels of activations, and of queries, keys and values
ARITHMETIC = {"a8": (ops.A8_LEVELS, ops.KEY_LEVELS), "a16": (ops.A16_LEVELS, ops.WIDE_KEY_LEVELS)}


class ExactPredictor:
    """An exact model with a context window that restarts, for any number of streams."""

    uses_torch = True

    def __init__(
        self,
        model: ExactLlama | FusedLlama | GpuLlama | ExactTransformer,
        bos: int,
        context: Context,
        fingerprint: bytes = b"",
    ) -> None:
        """`fingerprint` tells apart versions of a converted model's code."""
        self.model, self.bos, self.context = model, bos, context
        self.vocabulary, self.fingerprint = model.spec.vocabulary, fingerprint
        self.gains_by_streams = gains_by_streams(model.spec)
        self.on_gpu = model.device.type == "cuda"
        # whether decode steps are replayed as a CUDA graph
        self.replays = self.on_gpu
        self.kernels = model.device if self.on_gpu and gpu.available(model.device) else None
        self.forward_rows, self.logit_rows = FORWARD_ROWS, LOGIT_ROWS
        if self.on_gpu and getattr(model, "many_rows", False):
            room = torch.cuda.mem_get_info(model.device)[1] // _LOGIT_SHARE
            self.forward_rows = _GPU_ROWS
            self.logit_rows = max(LOGIT_ROWS, min(_GPU_ROWS, room // (8 * self.vocabulary)))
        self._after_prefix: tuple[Tensor, Any, Tensor] | None = None

    def run(
        self, streams: int, steps: int, prefix: Ids | None = None, threads: Any = None
    ) -> _ExactRun:
        """Begin `streams` streams of at most `steps` tokens each, after `prefix`."""
        known = None if prefix is None else torch.as_tensor(prefix)
        return _ExactRun(self, streams, steps, known)

    def after_prefix(self, prefix: Tensor) -> tuple[Any, Tensor] | None:
        """Cache and hidden state [1, H] of one stream after BOS and a prefix; the last ones are
        kept for the next run. None if the model's caches cannot be copied."""
        if not isinstance(self.model, FusedLlama):
            return None
        known = self._after_prefix
        if known is None or not torch.equal(known[0], prefix):
            run = _ExactRun(self, 1, 1, prefix)
            hidden = run.catch_up()
            known = self._after_prefix = prefix, run.cache, hidden
        return known[1:]

    def team(self, streams: int, most: int, *, known: bool = False) -> AbstractContextManager[None]:
        """None: torch has threads of its own."""
        return nullcontext()

    def memory(self, streams: int, steps: int) -> int:
        """The bytes that such a run needs, about: KV cache, logits, frequencies, activations.
        A prefix counts as steps."""
        return run_memory(self.model.spec, self.model.key_bytes, self.context, streams, steps)

    def most_streams(self, steps: int) -> int:
        """How many streams of `steps` tokens fit into memory, about. Steps that are replayed have a
        second KV cache, and there is more than the cache."""
        if not self.on_gpu:
            return MOST_STREAMS
        free = torch.cuda.mem_get_info(self.model.device)[0]
        return max(1, min(MOST_STREAMS, free // 3 // self.memory(1, steps)))

    def cores(self, rows: int) -> int:
        """How many cores `rows` tokens at a time keep busy."""
        parallel = rows * self.model.spec.hidden_size >= _PARALLEL_ELEMENTS
        if isinstance(self.model, FusedLlama) and self.model.single_call:
            parallel = rows >= PARALLEL_ROWS
        return cores() if parallel and self.model.device.type == "cpu" else 1


def build(
    files: ModelFiles, *, activations: str, context: Context, device: str = "cpu"
) -> ExactPredictor:
    """The predictor of a model. `activations`: a key of ARITHMETIC.

    Raises UnsupportedModel if the model has no exact form or does not fit into memory;
    InexactDevice if the device deviates.
    """
    levels, key_levels = ARITHMETIC[activations]
    selftest.require_exact(device)
    # a device without fast int8 products holds integers in float32
    size = 1 if ops.int8_is_faster(torch.device(device).type) else 4
    count = sum(tensor.numel() for tensor in files.tensors.values())
    require_memory(count * size, device, files.name)
    settings: dict[str, Any] = {
        "levels": levels,
        "key_levels": key_levels,
        # weights that come in int8 stay as they are
        "rotated": not files.quantised or bool(files.config.get(ROTATED_KEY)),
        "device": device,
    }
    if files.config.get("model_type") in LLAMA_TYPES:
        architecture = Architecture.from_config(files.config)
        llama = ExactLlama(architecture, files.tensors, **settings)
        if gpu.available(llama.device) and llama.device.type == "cuda":
            from llmzip.exact.gpu.llama import accelerated

            return ExactPredictor(accelerated(llama), files.bos, context)
        return ExactPredictor(fused.fused(llama), files.bos, context)
    from llmzip.exact.convert.model import ExactTransformer

    model = ExactTransformer(files.config, files.tensors, **settings)
    return ExactPredictor(model, files.bos, context, _fingerprint(model, files, activations))


def _fingerprint(model: ExactTransformer, files: ModelFiles, activations: str) -> bytes:
    """`verify`, which takes as long as seconds of coding; its result is cached for large models."""
    from llmzip.exact.convert import verify
    from llmzip.models import conversion_cache as cache

    if sum(t.nbytes for t in files.tensors.values()) < cache.MIN_SOURCE_BYTES:
        return verify.verify(model)
    environment = verify.environment(model.device) + files.digest + activations.encode()
    fingerprint = cache.load_fingerprint(environment, verify.FINGERPRINT_BYTES)
    if fingerprint is None:
        fingerprint = verify.verify(model)
        cache.save_fingerprint(environment, fingerprint)
    return fingerprint


class _Replay:
    """Decode steps in constant shapes and buffers; on a GPU they are recorded as a CUDA graph, as
    launching a thousand kernels takes longer than running them."""

    def __init__(self, model: Any, cache: Any, capacity: int, streams: int) -> None:
        self._model = model
        self._ids = torch.zeros(streams, 1, dtype=torch.int64, device=model.device)
        self._position = torch.zeros(1, dtype=torch.int64, device=model.device)
        self._ring = model.new_ring(cache, capacity, self._position)
        self._graph: Any = None  # torch.cuda.CUDAGraph

    @torch.inference_mode()
    def start(self, cache: Any, position: int) -> None:
        """Continue from `cache`, which holds `position` tokens."""
        self._position.fill_(position)
        self._model.load_ring(self._ring, cache, position)

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """ids [S, 1] → logits of the next token [S, V], valid until the next step."""
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
        """Record one step. It only writes the slot that the replay will write again."""
        side = torch.cuda.Stream(self._model.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self._model.device))
        with torch.cuda.stream(side):
            self._compute()  # fills caches of tables; libraries choose their kernels
        torch.cuda.current_stream(self._model.device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # other threads may free pinned memory meanwhile
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = self._compute()


class _ExactRun(WindowedRun[Tensor]):
    def __init__(
        self, predictor: ExactPredictor, streams: int, steps: int, prefix: Tensor | None
    ) -> None:
        self._p, self._model, self._given = predictor, predictor.model, prefix
        self._device = predictor.model.device
        self._replay: _Replay | None = None
        bos = torch.full((streams, 1), predictor.bos, dtype=torch.int64, device=self._device)
        prefixes = repeated(prefix, streams).to(self._device)
        rows = predictor.forward_rows, predictor.logit_rows
        super().__init__(bos, prefixes, predictor.context, steps, rows)

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts), 1)

    def _as_ids(self, ids: Any) -> Tensor:
        return torch.as_tensor(ids).to(self._device)

    def _new_cache(self, capacity: int) -> Any:
        return self._model.new_cache(self._streams, capacity)

    def _forward(self, ids: Tensor, position: int) -> Tensor:
        return self._model.forward(ids, self.cache, position)

    def _head(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)

    def _after_prefix(self) -> Tensor | None:
        known = None if self._given is None else self._p.after_prefix(self._given)
        if known is None:
            return None
        cache, hidden = known
        self.cache.continue_from(cache)
        return hidden.expand(self._streams, -1)

    def _next(self, ids: Tensor) -> Tensor:
        if not self._p.replays:
            return super()._next(ids)
        if self._replay is None:
            self._replay = _Replay(self._model, self.cache, self._capacity, self._streams)
        if self.cache is not None:  # it was filled since the last step
            self._replay.start(self.cache, self._position)
            self.cache = None
        self._position += 1
        return self._replay.step(ids)
