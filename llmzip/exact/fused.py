"""Llama-family models on CPUs: the same bits as `llama` in fewer passes over memory.

Between two matrix products, one loop processes a row of activations from start to end (`rows`), and
attention reads 8-bit keys and values in place (`attention_rows`). With compiled products
(`matmul`), or few rows, a whole forward pass runs without returning to Python (`step`).
Every operation is the one that `ops` and `attention` define, under the same name; the tests compare
both, and so does `agrees` before the first use.

Shapes: R rows of S streams · T tokens, H hidden size.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmzip.exact import MAX_CONTEXT, activations, compiled_llama, matmul, ops, tables
from llmzip.exact.attention_rows import attention_rows, store_rows
from llmzip.exact.kv_cache import Cache
from llmzip.exact.llama import ExactLlama
from llmzip.exact.rows import (
    activation_rows,
    add_rows,
    final_rows,
    norm_rows,
    quantise_rows,
    scale_rows,
)
from llmzip.exact.step import logit_rows, run_step, shared_arrays
from llmzip.exact.team import ALONE

_FEW_ROWS = 3  # rows that are multiplied without `matmul`; more are left to torch


class FusedLlama:
    """An `ExactLlama` with 8-bit activations and keys, without biases, on a CPU."""

    def __init__(self, model: ExactLlama) -> None:
        """Weights that are int8 are shared with `model`."""
        self.architecture, self.spec = model.architecture, model.spec
        self.device, self.key_bytes = model.device, 1
        self._model = model
        layers, a = model.layers, model.architecture
        self._norms = (
            np.stack([layer.input_norm.numpy() for layer in layers]),
            np.stack([layer.mlp_norm.numpy() for layer in layers]),
            model.norm_weight.numpy(),
        )
        kinds = [[getattr(layer, kind) for layer in layers] for kind in _LINEARS]
        stacks = [_stack_weights(linears) for linears in [*kinds, [model.head]]]
        # whether one compiled call runs all layers, for any number of rows
        self.single_call = matmul.available() and all(matmul.fits(stack[0]) for stack in stacks)
        if self.single_call:
            stacks = [matmul.pack(stack) for stack in stacks]
        *weights, head = stacks
        self._weights: Any = tuple(weights)
        self._head_weight = head[0]
        self._scales: Any = tuple(np.stack([x.scale.numpy() for x in linears]) for linears in kinds)
        self._embedding = model.embedding.numpy()
        self._constants = (
            np.float32(a.epsilon),
            np.float32(tables.score_scale(a.head_dim**-0.5 / model.key_block)),
            activations.gate_table("silu").numpy(),
            a.heads,
            a.head_dim,
        )
        # orders of Hadamard transforms, of inputs of each kind of layer, and of queries and keys
        self._blocks = (*(getattr(layers[0], kind).block for kind in _LINEARS), model.key_block)
        self._head_block = model.head.block

    def new_cache(self, streams: int, context: int) -> Cache:
        """An empty cache for `streams` streams of at most `context` tokens."""
        self._model.new_cache(0, context)  # refuses what is too long
        return Cache(self.architecture, streams, context)

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: Cache, position: int) -> Tensor:
        """As `ExactLlama.forward`: ids int64 [S, T] → hidden states [S, T, H]."""
        streams, count = ids.shape
        model = self._model
        cos, sin = (table.numpy() for table in model.rotary.cos_sin(position, count))
        cache.reserve(count)
        arrays: Any = cache.arrays
        x = self._embedding[ids.reshape(-1).numpy()]
        base, window, constants = cache.length, cache.window, self._constants
        blocks, y = self._blocks, np.empty_like(x)
        if self.single_call or len(x) <= _FEW_ROWS:
            shared = shared_arrays(len(x), self._scales, constants[3] * constants[4])
            run_step(ALONE, x, y, shared, self._norms, self._weights, self._scales, constants,
                     blocks, cos, sin, arrays, base, window)  # fmt: skip
        else:
            epsilon, score_scale, gate, heads, head_dim = constants
            for i, layer in enumerate(model.layers):
                scales = [stack[i] for stack in self._scales]
                keys, values, steps, key_scales = (part[i] for part in arrays)
                q, s = norm_rows(x, self._norms[0][i], epsilon, blocks[0])
                total = _torch_matmul(layer.qkv, q)
                store_rows(total, s, scales[0], cos, sin, keys, values, steps, key_scales, base,
                           score_scale, heads, head_dim, blocks[4], 0)  # fmt: skip
                q, s = attention_rows(total, s, scales[0], cos, sin, keys, values, steps,
                                      key_scales, base, window, heads, head_dim, blocks[1],
                                      blocks[4], 0)  # fmt: skip
                add_rows(x, _torch_matmul(layer.output, q), s, scales[1])
                q, s = norm_rows(x, self._norms[1][i], epsilon, blocks[2])
                q, s = activation_rows(
                    _torch_matmul(layer.gate_up, q), s, scales[2], gate, blocks[3]
                )
                add_rows(x, _torch_matmul(layer.down, q), s, scales[3])
            final_rows(x, self._norms[2], epsilon, y)
        cache.length += count
        return torch.from_numpy(y).view(streams, count, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [R, H] → logits [R, V]."""
        rows, scale = np.ascontiguousarray(hidden.numpy()), self._model.head.scale.numpy()
        if self.single_call or len(hidden) <= _FEW_ROWS:
            logits = np.empty((len(rows), len(scale)), dtype=np.float32)
            logit_rows(ALONE, rows, self._head_block, self._head_weight, scale, logits)
            return torch.from_numpy(logits)
        q, s = quantise_rows(rows, self._head_block)
        return torch.from_numpy(scale_rows(_torch_matmul(self._model.head, q), s, scale))


_LINEARS = ("qkv", "output", "gate_up", "down")


def fits(model: ExactLlama) -> bool:
    """Whether a model can be fused."""
    linears = [getattr(layer, kind) for layer in model.layers for kind in _LINEARS]
    return (
        model.device.type == "cpu"
        and model.key_levels == ops.KEY_LEVELS
        and all(x.levels == ops.A8_LEVELS and x.bias is None for x in [*linears, model.head])
        and model.architecture.head_dim <= 1024
        and (model.architecture.window or 0) <= MAX_CONTEXT
    )


def fused(model: ExactLlama) -> ExactLlama | FusedLlama:
    """The `FusedLlama` of a model, if it exists and gives the same bits here; else the model."""
    if not fits(model):
        return model
    form = FusedLlama(model)
    same = agrees(32, model.rotated) and (form.single_call or agrees(12, model.rotated))
    return form if same else model


@cache
def agrees(head_dim: int, rotated: bool) -> bool:
    """Whether both forms of a small model give the same bits here. Heads of 32 use `matmul`."""
    architecture, arrays = compiled_llama.small_model(head_dim=head_dim)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    reference = ExactLlama(
        architecture, tensors, levels=ops.A8_LEVELS, key_levels=ops.KEY_LEVELS, rotated=rotated
    )
    fast = FusedLlama(reference)
    ids = torch.from_numpy(compiled_llama.small_ids(architecture))
    expected = reference.forward(ids, reference.new_cache(3, 512), 0)
    once = fast.forward(ids, fast.new_cache(3, 512), 0)
    cache = fast.new_cache(1, 512)
    steps = [fast.forward(ids[1:2, t : t + 1], cache, t) for t in range(80)]
    logits = reference.logits(expected[0])
    return (
        torch.equal(once, expected)
        and torch.equal(torch.cat(steps, 1), expected[1:2])
        and torch.equal(fast.logits(expected[0, :2]), logits[:2])
    )


def _stack_weights(linears: list[ops.Linear]) -> np.ndarray:
    """int8 weights [layers, N, K] of several linear layers, which then share them."""
    stack = np.stack([linear.weight.to(torch.int8).numpy() for linear in linears])
    for weight, linear in zip(stack, linears, strict=True):
        if linear.int8:
            linear.weight = torch.from_numpy(weight)
    return stack


def _torch_matmul(linear: ops.Linear, q: np.ndarray) -> np.ndarray:
    """int8 [R, K] → exact sums [R, N], int32 or held in floats."""
    product: np.ndarray = linear.multiply(torch.from_numpy(q)).numpy()
    return product
