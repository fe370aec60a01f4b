"""The predictor of any causal language model in floating point, for one environment only.

The order in which sums are rounded depends on libraries and hardware, so encoder and decoder take
the same steps in the same shapes, and `environment` lists what else must be the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from llmzip.errors import InexactDevice, UnsupportedModel
from llmzip.exact import ModelSpec
from llmzip.exact.convert.config import load_network, model_spec, parse_config
from llmzip.exact.quantise import dequantise_tensors
from llmzip.inference.base import (
    Context,
    Ids,
    context_for,
    processor_name,
    repeated,
    require_memory,
)
from llmzip.models import ModelFiles

_ATTENTION = "eager"  # every architecture has it
# if installed, transformers uses these for some layers
_KERNELS = ("kernels", "flash-linear-attention", "causal-conv1d", "mamba-ssm", "flash-attn")
_CACHES = ("past_key_values", "cache_params", "state")  # "cache" since transformers 5.24


def environment(device: str) -> dict[str, str]:
    """What the bits of floating-point inference depend on, as far as known: name → value. Raises
    InexactDevice for a device that does not exist."""
    cuda = device != "cpu" and torch.cuda.is_available()
    return {
        "device": device,
        "processor": _gpu_name(device) if cuda else processor_name(),
        "instructions": "" if cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "attention": _ATTENTION,
        "kernels": ", ".join(f"{n} {v}" for n in _KERNELS if (v := _version(n))),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }


def _gpu_name(device: str) -> str:
    """The name of a GPU, or of all that "auto" may spread a model over."""
    try:
        if device == "auto":
            return ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
        return torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise InexactDevice(f"device {device!r} cannot be used: {error}") from None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class FloatPredictor:
    """A model of transformers, on a GPU in the precision of its files, else in float32."""

    fingerprint = b""
    gains_by_streams = False  # each stream is a batch of its own
    on_gpu = False  # streams stay apart, as their number is part of the shapes
    uses_torch = True
    kernels: torch.device | None = None

    def __init__(self, files: ModelFiles, context: Context, device: str = "cpu") -> None:
        """`device` "auto" spreads the model over all devices (accelerate's device_map)."""
        config = parse_config(files.config)
        size = sum(
            t.numel() * (4 if device == "cpu" else t.itemsize) for t in files.tensors.values()
        )
        if device != "auto":
            require_memory(size, device, files.name)
        tensors = dequantise_tensors(files.config, files.tensors)
        network: Any = load_network(config, tensors, _ATTENTION)
        try:
            if device == "cpu":
                network = network.float()
            else:
                network = _spread(network) if device == "auto" else network.to(device)
        except (RuntimeError, AssertionError) as error:
            raise InexactDevice(f"device {device!r} cannot be used: {error}") from None
        self.network, self.bos, self.context = network, files.bos, context
        self.vocabulary = int(config.get_text_config(decoder=True).vocab_size)
        self.threads = torch.get_num_threads()
        self.deterministic = device != "cpu"

    def run(
        self, streams: int, steps: int, prefix: Ids | None = None, threads: Any = None
    ) -> _FloatRun:
        """Begin `streams` streams, after `prefix`."""
        return _FloatRun(self, streams, None if prefix is None else torch.as_tensor(prefix))

    def team(
        self, streams: int, most: int, *, known: bool = False
    ) -> contextlib.AbstractContextManager[None]:
        """None: torch has threads of its own."""
        return contextlib.nullcontext()

    def memory(self, streams: int, steps: int) -> int:
        """The bytes of logits and frequencies; the size of the KV cache is not known."""
        return streams * 16 * self.vocabulary

    def most_streams(self, steps: int) -> int:
        """1: frames are never joined."""
        return 1

    def cores(self, rows: int) -> int:
        """1: streams stay together, as their number is part of the shapes."""
        return 1


def default_context(files: ModelFiles, window: int | None = None) -> Context:
    """The context of any architecture: `window`, else that of the config, else 2,048 tokens.

    Raises UnsupportedModel for an unknown architecture or a window longer than the context.
    """
    config = parse_config(files.config)
    try:
        spec = model_spec(config)
    except UnsupportedModel:
        text = config.get_text_config(decoder=True)
        context = getattr(text, "max_position_embeddings", None) or 2048
        spec = ModelSpec(int(text.vocab_size), 0, 0, int(context), (None,), 0)
    # a restart feeds the overlap in one block, so windows stay short even for sliding attention
    return context_for(replace(spec, sliding_windows=(None,)), files.name, window)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """Operations that give the same bits each time, where there are any. The setting is one of the
    whole process, so it is put back."""
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def _spread(network: Any) -> Any:
    from accelerate import dispatch_model, infer_auto_device_map

    kept_whole = network._no_split_modules
    return dispatch_model(
        network, infer_auto_device_map(network, no_split_module_classes=kept_whole)
    )


class _FloatRun:
    def __init__(self, predictor: FloatPredictor, streams: int, prefix: Tensor | None) -> None:
        self._p, self._streams = predictor, streams
        self._recent = repeated(prefix, streams)
        self._restart(self._recent)

    def _restart(self, prefix: Tensor) -> None:
        bos = torch.full((self._streams, 1), self._p.bos, dtype=torch.int64)
        self._waiting = torch.cat([bos, prefix], 1)
        self._position = 0
        self._cache: dict[str, Any] = {}

    @torch.inference_mode()
    def _feed(self, ids: Tensor) -> Tensor:
        """ids [S, T] → logits after the last, [S, V]."""
        torch.set_num_threads(self._p.threads)  # per-thread setting that changes the order of sums
        given = dict(self._cache)
        if "cache_params" in given:  # for state-space models
            given["cache_position"] = torch.tensor([self._position])
        name = type(self._p.network).__name__
        try:
            with _deterministic() if self._p.deterministic else contextlib.nullcontext():
                ids = ids.to(self._p.network.device)
                out = self._p.network(input_ids=ids, use_cache=True, **given)
        except Exception as error:  # some architectures cannot continue from a cache
            raise UnsupportedModel(f"{name} fails in {type(error).__name__}: {error}") from None
        names = ("cache",) if out.get("cache") is not None else _CACHES
        self._cache = {n: out[n] for n in names if out.get(n) is not None}
        if not self._cache:
            raise UnsupportedModel(f"{name} keeps no cache to continue from")
        self._position += ids.shape[1]
        logits: Tensor = out.logits[:, -1].float().cpu()
        if not torch.isfinite(logits).all():
            raise UnsupportedModel("the model's logits are not finite")
        return logits

    def first(self) -> Tensor:
        return self._feed(self._waiting)

    def step(self, ids: Ids) -> Tensor:
        ids, context = torch.as_tensor(ids)[:, None].cpu(), self._p.context
        self._recent = torch.cat([self._recent, ids], 1)[:, -max(1, context.overlap) :]
        if self._position == context.window:
            self._restart(self._recent[:, len(self._recent[0]) - context.overlap :])
            return self.first()
        return self._feed(ids)

    def score(self, ids: Ids) -> Iterator[Tensor]:
        """In decode steps, as the decoder does."""
        yield self.first()[None]
        for t in range(1, ids.shape[1]):
            yield self.step(ids[:, t - 1])[None]
