"""Llama-family models on GPUs: the same bits as `exact.llama`, in a few Triton kernels a layer.

A forward pass launches ten kernels a layer, whose order and shapes depend on the number of rows
alone, so that a decode step can be recorded as a CUDA graph. The position is read from memory.

Shapes: R rows of S streams · T tokens, H hidden size.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmzip.exact import activations, ops, tables
from llmzip.exact.gpu.attention import KEYS, LayerCache, attention_rows, new_layer
from llmzip.exact.gpu.products import GpuLinear
from llmzip.exact.gpu.rows import activation_rows, final_rows, norm_rows, quantise_rows
from llmzip.exact.llama import ExactLlama

_log = logging.getLogger("llmzip")
# tokens that a sliding cache takes at a time beside its window: of a stream, and of all together
_CHUNK, _CHUNKS = 64, 1 << 15


class GpuCache:
    """The KV cache of S streams in rings that never move; a graph may read and write them."""

    def __init__(
        self,
        layers: list[LayerCache],
        window: int,
        rotary: tuple[Tensor, Tensor],
        position: Tensor,
    ) -> None:
        """`rotary`: cos and sin [positions, D / 2]; `position` int64 [1], on the device: that of
        the next token."""
        self.layers, self.window, self.rotary, self.position = layers, window, rotary, position

    @property
    def chunk(self) -> int:
        """How many tokens of a stream may be appended at a time."""
        return self.layers[0].keys.shape[2] - self.window + 1


class GpuLlama:
    """An `ExactLlama` with 8-bit activations and keys, by Triton kernels."""

    key_bytes = 1
    many_rows = True  # a pass is efficient for tens of thousands of rows alone

    def __init__(self, model: ExactLlama) -> None:
        """Weights are shared with `model` where it holds them in int8."""
        self.architecture, self.spec, self.device = model.architecture, model.spec, model.device
        self._model = model
        self._layers = [
            (
                layer.input_norm.contiguous(),
                GpuLinear.of(layer.qkv),
                GpuLinear.of(layer.output),
                layer.mlp_norm.contiguous(),
                GpuLinear.of(layer.gate_up),
                GpuLinear.of(layer.down),
            )
            for layer in model.layers
        ]
        self._head = GpuLinear.of(model.head)
        self._epsilon = float(np.float32(self.architecture.epsilon))
        self._gate = activations.gate_table("silu").to(self.device)
        self._key_block = model.key_block
        scaling = self.architecture.head_dim**-0.5 / model.key_block
        self._score_scale = tables.score_scale(scaling)
        self._rotary = (torch.empty(0, device=self.device),) * 2

    def new_cache(self, streams: int, context: int) -> GpuCache:
        """An empty cache for `streams` streams of at most `context` tokens. Raises UnsupportedModel
        for a longer context than attention is exact for."""
        self._model.new_cache(0, context)
        a = self.architecture
        window = context if a.window is None else min(a.window, context)
        chunk = 1 if window == context else max(_CHUNK, min(context, _CHUNKS // max(1, streams)))
        slots = -(-(window - 1 + chunk) // KEYS) * KEYS
        if context > len(self._rotary[0]):
            cos, sin = (t.contiguous() for t in self._model.rotary.cos_sin(0, context))
            self._rotary = cos.to(self.device), sin.to(self.device)
        layers = [
            new_layer(streams, a.kv_heads, a.head_dim, slots, self.device) for _ in range(a.layers)
        ]
        position = torch.zeros(1, dtype=torch.int64, device=self.device)
        return GpuCache(layers, window, self._rotary, position)

    def new_ring(self, cache: GpuCache, capacity: int, position: Tensor) -> GpuCache:
        """A cache like `cache` whose position is a tensor of the caller; `load_ring` fills it."""
        layers = [LayerCache(*map(torch.empty_like, layer)) for layer in cache.layers]
        return GpuCache(layers, cache.window, cache.rotary, position)

    def load_ring(self, ring: GpuCache, cache: GpuCache, position: int) -> None:
        """Copy the entries of `cache` to `ring`: a slot depends on a position alone."""
        for new, old in zip(ring.layers, cache.layers, strict=True):
            for target, source in zip(new, old, strict=True):
                target.copy_(source)

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: GpuCache, position: int | Tensor) -> Tensor:
        """As `ExactLlama.forward`: ids int64 [S, T] → hidden states [S, T, H]. A `position` on the
        device is the cache's own, for one token a stream."""
        with _on(self.device):
            if isinstance(position, Tensor):
                return self._forward(ids, cache, position)
            parts = []
            # with full attention nothing is overwritten while a stream fits into its context
            full = position + ids.shape[1] <= cache.window
            size = ids.shape[1] if full else cache.chunk
            for part in torch.split(ids, size, 1):
                cache.position.fill_(position)
                parts.append(self._forward(part, cache, cache.position))
                position += part.shape[1]
            return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _forward(self, ids: Tensor, cache: GpuCache, position: Tensor) -> Tensor:
        a = self.architecture
        x = self._model.embedding.index_select(0, ids.reshape(-1))
        for (norm, qkv, output, mlp_norm, gate_up, down), layer in zip(
            self._layers, cache.layers, strict=True
        ):
            h = qkv(*norm_rows(x, norm, self._epsilon, qkv.block))
            h = attention_rows(
                h, *cache.rotary, position, layer, heads=a.heads, window=cache.window,
                score_scale=self._score_scale, block=self._key_block,
            )  # fmt: skip
            output(*quantise_rows(h, output.block), residual=x)
            h = gate_up(*norm_rows(x, mlp_norm, self._epsilon, gate_up.block))
            down(*activation_rows(h, self._gate, down.block), residual=x)
        return final_rows(x, self._model.norm_weight, self._epsilon).view(*ids.shape, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [R, H] → logits [R, V]."""
        with _on(self.device):
            return self._head(*quantise_rows(hidden.contiguous(), self._head.block))


def _on(device: torch.device) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def accelerated(model: ExactLlama) -> ExactLlama | GpuLlama:
    """The `GpuLlama` of a model, if the kernels cover it and give the same bits here; else the
    model."""
    if not fits(model):
        return model
    form = GpuLlama(model)
    if agree(form, model):
        return form
    _log.warning("Triton's kernels deviate on %s; slower operations take their place", model.device)
    return model


@torch.inference_mode()
def agree(form: GpuLlama, model: ExactLlama, tokens: int = 40) -> bool:
    """Whether both forms give the same bits for a probe of two streams, in one pass and a step."""
    ids = torch.arange(2 * tokens, device=model.device) * 7919 % model.spec.vocabulary
    ids = ids.view(2, tokens)
    expected = model.forward(ids, model.new_cache(2, tokens), 0)
    cache = form.new_cache(2, tokens)
    parts = [form.forward(ids[:, :-1], cache, 0), form.forward(ids[:, -1:], cache, tokens - 1)]
    return torch.equal(torch.cat(parts, 1), expected) and torch.equal(
        form.logits(expected[0]), model.logits(expected[0])
    )


def fits(model: ExactLlama) -> bool:
    """Whether the kernels cover a model: 8-bit activations, keys and values."""
    linears = [x for y in model.layers for x in (y.qkv, y.output, y.gate_up, y.down)]
    return (
        model.key_levels == ops.KEY_LEVELS
        and all(x.levels == ops.A8_LEVELS for x in [*linears, model.head])
        and model.architecture.head_dim <= 256
    )
