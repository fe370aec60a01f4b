"""CPU kernels of Llama-family models: the same bits as `llama` in fewer passes over memory.

Between two matrix products, one loop processes a row of activations (a token) from start to end,
and attention reads 8-bit keys and values in place. With compiled products (`matmul`), or few rows,
a whole forward pass runs without returning to Python, so that threads do not wait for each other.
Every operation is the one that `ops` and `attention` define, under the same name; the tests compare
both, and so does `agrees` before the first use.

Shapes: R rows of S streams · T tokens, H hidden size, n keys, D head dimension, G key heads.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmzip.compiled import compiled, compiled_for_integers
from llmzip.exact import activations, hadamard, matmul, ops, tables
from llmzip.exact.attention import MAX_CONTEXT
from llmzip.exact.llama import Architecture, ExactLlama

_FEW_ROWS = 3  # rows that are multiplied layer_arrays without `matmul`; more are left to torch
_BLOCK = 64  # rows that pass through a layer together, so that activations stay in the CPU cache
_SLACK = 128  # tokens that a sliding cache takes before it moves its window to the front

_FLOOR = np.float32(ops.ACTIVATION_FLOOR)
_ONE = np.float32(1)
_A8 = np.float32(1 / ops.A8_LEVELS)
_NORM = np.float32(32768)
_NORM_UNIT = np.float32(1 / 32768)
_P = np.float32(65536)
_P_UNIT = np.float32(1 / 65536)
_STEP_BITS = tables.EXP2_STEP_BITS
_CUTOFF = np.float32(tables.EXP2_CUTOFF)
_GATE_STEPS = np.float32(1 << activations.GATE_STEP_BITS)
_GATE_LIMIT = np.float32(activations.GATE_RANGE << activations.GATE_STEP_BITS)
# adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22
_ROUNDER = np.float32(12582912)


class Cache:
    """The KV cache in 8 bits, in the memory order of the products: keys of 16 tokens and values
    of 4 interleaved (for `matmul`), or else, for numba's loops, D before n."""

    def __init__(self, architecture: Architecture, streams: int, context: int) -> None:
        a = architecture
        self.window = context if a.window is None else a.window
        self.length = 0
        self._shape = (a.layers, streams, a.kv_heads)
        self._head_dim = a.head_dim
        self._packed = matmul.available() and a.head_dim % matmul.MULTIPLE == 0
        self.arrays = self._allocate(min(context, self.window + _SLACK))

    def _allocate(self, capacity: int) -> tuple[np.ndarray, ...]:
        """Keys, values [layers, S, G, …]; scales of keys in table steps of scores, scales of
        values [layers, S, G, capacity]."""
        capacity = -(-capacity // matmul.MULTIPLE) * matmul.MULTIPLE
        d = self._head_dim
        forms: list[tuple[tuple[int, ...], type]]
        if self._packed:
            forms = [((capacity // 16, d // 4, 64), np.uint8), ((capacity // 4, d, 4), np.int8)]
        else:
            forms = [((d, capacity), np.int8)] * 2
        forms += [((capacity,), np.float32)] * 2
        return tuple(np.empty((*self._shape, *shape), dtype=kind) for shape, kind in forms)

    def reserve(self, count: int) -> None:
        """Allocate `count` more tokens; tokens that left the sliding window are dropped."""
        capacity = self.arrays[2].shape[-1]
        if self.length + count <= capacity:
            return
        drop, before = self._droppable(), self.arrays
        keep = self.length - drop
        if keep + count > capacity:
            self.arrays = self._allocate(keep + count)
        self._take(before, drop, self.length)

    def _droppable(self) -> int:
        return max(0, self.length - self.window + 1) // matmul.MULTIPLE * matmul.MULTIPLE

    def _take(self, sources: tuple[np.ndarray, ...], start: int, stop: int) -> None:
        """Hold tokens `start` … `stop - 1` of other arrays, or of these."""
        for i, (target, source) in enumerate(zip(self.arrays, sources, strict=True)):
            if self._packed and i < 2:
                unit = (16, 4)[i]
                arrays = source[:, :, :, start // unit : -(-stop // unit)].copy()
                target[:, :, :, : arrays.shape[3]] = arrays
            else:
                target[..., : stop - start] = source[..., start:stop].copy()
        self.length = stop - start

    def continue_from(self, other: Cache) -> None:
        """Hold what one stream's cache holds, for all streams of this one, which is empty."""
        self._take(other.arrays, other._droppable(), other.length)


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
            tables.attention_weights().numpy()[: 1 << _STEP_BITS].copy(),
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
        blocks = self._blocks
        if self.single_call or len(x) <= _FEW_ROWS:
            y = _step(x, self._norms, self._weights, self._scales, constants, blocks, cos, sin,
                      arrays, base, window)  # fmt: skip
        else:
            epsilon, score_scale, mantissas, gate, heads, head_dim = constants
            for i, layer in enumerate(model.layers):
                scales = [stack[i] for stack in self._scales]
                layer_arrays = tuple(part[i] for part in arrays)
                q, s = _norm_rows(x, self._norms[0][i], epsilon, blocks[0])
                total = _torch_matmul(layer.qkv, q)
                q, s = _attention_rows(total, s, scales[0], cos, sin, layer_arrays, base, window,
                                       score_scale, mantissas, heads, head_dim, blocks[1],
                                       blocks[4], 0)  # fmt: skip
                _add_rows(x, _torch_matmul(layer.output, q), s, scales[1])
                q, s = _norm_rows(x, self._norms[1][i], epsilon, blocks[2])
                q, s = _activation_rows(
                    _torch_matmul(layer.gate_up, q), s, scales[2], gate, blocks[3]
                )
                _add_rows(x, _torch_matmul(layer.down, q), s, scales[3])
            y = _final_rows(x, self._norms[2], epsilon)
        cache.length += count
        return torch.from_numpy(y).view(streams, count, -1)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [R, H] → logits [R, V]."""
        q, s = _quantise_rows(np.ascontiguousarray(hidden.numpy()), self._head_block)
        if self.single_call or len(hidden) <= _FEW_ROWS:
            total = _matmul(q, self._head_weight)
        else:
            total = _torch_matmul(self._model.head, q)
        return torch.from_numpy(_scale_rows(total, s, self._model.head.scale.numpy()))


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
    h = head_dim
    architecture = Architecture.from_config(
        {"model_type": "mistral", "vocab_size": 8 * h, "hidden_size": 4 * h,
         "intermediate_size": 6 * h, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 33,
         "tie_word_embeddings": True}
    )  # fmt: skip
    reference = ExactLlama(
        architecture, _random_weights(4 * h, 6 * h, 2, 8 * h), levels=ops.A8_LEVELS,
        key_levels=ops.KEY_LEVELS, rotated=rotated,
    )  # fmt: skip
    fast = FusedLlama(reference)
    ids = torch.arange(3 * 80).view(3, 80) * 31 % (8 * h)
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


def _random_weights(hidden: int, width: int, layers: int, vocabulary: int) -> dict[str, Tensor]:
    """Weights of a Llama with half as many key heads, from a congruential generator."""
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens": (vocabulary, hidden),
        "norm": (hidden,),
    }
    for i in range(layers):
        part = f"layers.{i}."
        shape: tuple[int, ...] = (hidden // 2, hidden)
        shapes |= dict.fromkeys((part + "self_attn.k_proj", part + "self_attn.v_proj"), shape)
        shape = (hidden, hidden)
        shapes |= dict.fromkeys((part + "self_attn.q_proj", part + "self_attn.o_proj"), shape)
        shapes |= dict.fromkeys((part + "mlp.gate_proj", part + "mlp.up_proj"), (width, hidden))
        shapes |= {part + "mlp.down_proj": (hidden, width)}
        norms = (part + "input_layernorm", part + "post_attention_layernorm")
        shapes |= dict.fromkeys(norms, (hidden,))
    weights = {}
    for seed, (name, shape) in enumerate(shapes.items()):
        state = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64) + np.uint64(seed << 32)
        for factor in (6364136223846793005, 2862933555777941757):
            state = (state ^ (state >> np.uint64(29))) * np.uint64(factor)
        mantissas = (state >> np.uint64(40)).astype(np.int64) - (1 << 23)
        values = mantissas.astype(np.float32) * np.float32(2.0**-22)
        weights[f"model.{name}.weight"] = torch.from_numpy(values).view(shape)
    return weights


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


# Functions of rows. `total`, `row_scale`, `weight_scale`: the output of a linear layer before its
# two scales. `q` and the returned scale: the quantised input of the next layer.


@compiled
def _round(x: np.float32) -> np.float32:
    """Half to even, for |x| < 2^22."""
    rounded: np.float32 = (x + _ROUNDER) - _ROUNDER
    return rounded


@compiled
def _absmax(x: np.ndarray) -> np.float32:
    """max |x|, floored; bit patterns are compared, which are in the same order, NaN last."""
    bits = x.view(np.int32)
    top = np.int32(0)
    for i in range(len(bits)):
        top = max(top, np.int32(bits[i] & np.int32(0x7FFFFFFF)))
    value: np.float32 = np.full(1, top, dtype=np.int32).view(np.float32)[0]
    return _FLOOR if value < _FLOOR else value


@compiled
def _maximum(x: np.ndarray) -> np.float32:
    """max x of positive floats, whose bit patterns are in the same order and faster to compare."""
    bits, top = x.view(np.int32), np.int32(0)
    for i in range(len(bits)):
        top = max(top, bits[i])
    value: np.float32 = np.full(1, top, dtype=np.int32).view(np.float32)[0]
    return value


@compiled
def _split_bytes(p: np.ndarray, high: np.ndarray, low: np.ndarray) -> int:
    """Integers up to 65,536 → their two bytes. Returns the index of 65,536, which is split as
    65,535, or -1. It occurs at most once, as the sum of all is about 65,536."""
    over = np.int32(0)
    for j in range(len(p)):
        value = np.int32(p[j])
        over |= value >> 16
        value = min(value, np.int32(65535))
        high[j], low[j] = np.uint8(value >> 8), np.uint8(value & 255)
    if over:
        for j in range(len(p)):
            if p[j] > np.float32(65535):
                return j
    return -1


@compiled
def _quantise(x: np.ndarray, q: np.ndarray) -> np.float32:
    scale: np.float32 = _absmax(x) * _A8
    for i in range(len(x)):
        q[i] = np.int8(np.int32(_round(x[i] / scale)))
    return scale


@compiled
def _norm(x: np.ndarray, weight: np.ndarray, epsilon: np.float32, y: np.ndarray) -> None:
    maximum = _absmax(x)
    factor = (_ONE / maximum) * _NORM
    total = np.int64(0)
    for i in range(len(x)):
        grid = _round(x[i] * factor)
        total += np.int64(np.int32(grid * grid))
    unit = maximum * _NORM_UNIT
    mean = np.float32(np.float64(total) * (1.0 / len(x))) * unit * unit
    inverse = _ONE / np.sqrt(mean + epsilon)
    for i in range(len(x)):
        y[i] = x[i] * inverse * weight[i]


@compiled
def _scale(
    total: np.ndarray, row_scale: np.float32, weight_scale: np.ndarray, y: np.ndarray
) -> None:
    for i in range(len(y)):
        y[i] = np.float32(total[i]) * row_scale * weight_scale[i]


@compiled
def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> None:
    half = len(cos)
    for i in range(half):
        a, b = x[i], x[half + i]
        x[i] = a * cos[i] - b * sin[i]
        x[half + i] = b * cos[i] + a * sin[i]


@compiled_for_integers
def _scores(q: np.ndarray, keys: np.ndarray, start: int, scores: np.ndarray) -> None:
    """Queries [h, D] · keys [D, ≥ n] from `start` → integers [h, n]. Three queries at a time, as
    models tend to have, and two dimensions, so that keys and scores are seldom read again."""
    scores[:] = 0
    heads, n = scores.shape
    for d in range(0, q.shape[1] - 1, 2):
        k0, k1 = keys[d, start : start + n], keys[d + 1, start : start + n]
        for h in range(0, heads - 2, 3):
            s0, s1, s2 = scores[h], scores[h + 1], scores[h + 2]
            a0, a1, a2 = q[h, d], q[h + 1, d], q[h + 2, d]
            b0, b1, b2 = q[h, d + 1], q[h + 1, d + 1], q[h + 2, d + 1]
            for j in range(n):
                a, b = np.float32(k0[j]), np.float32(k1[j])
                s0[j] += a0 * a + b0 * b
                s1[j] += a1 * a + b1 * b
                s2[j] += a2 * a + b2 * b
        for h in range(heads - heads % 3, heads):
            s0, a0, b0 = scores[h], q[h, d], q[h, d + 1]
            for j in range(n):
                s0[j] += a0 * np.float32(k0[j]) + b0 * np.float32(k1[j])


@compiled_for_integers
def _weighted_sum(p: np.ndarray, values: np.ndarray, start: int, out: np.ndarray) -> None:
    """p [h, n] · values [D, ≥ n] from `start` → integers [h, D]."""
    heads, n = p.shape
    for d in range(out.shape[1]):
        value = values[d, start : start + n]
        for h in range(0, heads - 2, 3):
            p0, p1, p2 = p[h], p[h + 1], p[h + 2]
            t0, t1, t2 = np.float32(0), np.float32(0), np.float32(0)
            for j in range(n):
                v = np.float32(value[j])
                t0 += p0[j] * v
                t1 += p1[j] * v
                t2 += p2[j] * v
            out[h, d], out[h + 1, d], out[h + 2, d] = t0, t1, t2
        for h in range(heads - heads % 3, heads):
            p0, t0 = p[h], np.float32(0)
            for j in range(n):
                t0 += p0[j] * np.float32(value[j])
            out[h, d] = t0


@compiled
def _softmax(
    scores: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    q_scale: np.float32,
    bound: np.float32,
    mantissas: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Scores [n] as integers → p [n] as integers, in offset. Loops are simple, to be vectorised."""
    n = len(scores)
    for j in range(n):
        scores[j] *= steps[j]
    # patterns of negative floats are in the opposite order
    patterns, top = scores.view(np.int32), np.int32(-(2**31))
    for j in range(n):
        pattern = patterns[j]
        top = max(top, np.int32(pattern ^ ((pattern >> 31) & 0x7FFFFFFF)))
    top = np.int32(top ^ ((top >> 31) & 0x7FFFFFFF))
    best = np.full(1, top, dtype=np.int32).view(np.float32)[0]
    for j in range(n):
        step = (best - scores[j]) * q_scale
        weights[j] = np.int32(_round(step if step < _CUTOFF else _CUTOFF))  # NaN, too
    for j in range(n):
        step = np.uint32(weights[j])
        # halved per octave, and 0 at the cutoff of 16
        octaves = (step >> np.uint32(_STEP_BITS)) + (step >> np.uint32(_STEP_BITS + 4))
        weights[j] = mantissas[step & np.uint32((1 << _STEP_BITS) - 1)] >> np.int32(octaves)
    total = np.int64(0)
    for j in range(n):
        total += weights[j]
    factor = (_ONE / (np.float32(total) * bound)) * _P
    for j in range(n):
        scores[j] = _round(np.float32(weights[j]) * scales[j] * factor)


@compiled
def _attention_row(
    y: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    start: int,
    at: int,
    score_scale: np.float32,
    mantissas: np.ndarray,
    heads: int,
    key_block: int,
    out: np.ndarray,
) -> None:
    """One token's queries, keys and values y [heads + 2G, D] → attention output [heads, D].
    Its key is written to offset `at` of keys [G, D, ≥ n] …, and sees those from `start`."""
    if keys.ndim == 4:  # known when this is compiled
        _attention_row_by_matmul(y, cos, sin, keys, values, steps, scales, start, at, score_scale,
                               mantissas, heads, key_block, out)  # fmt: skip
        return
    groups, head_dim, shared = len(keys), y.shape[1], heads // len(keys)
    n = at + 1 - start
    q = np.empty(head_dim, dtype=np.int8)
    queries = np.empty((shared, head_dim), dtype=np.float32)
    q_scales = np.empty(shared, dtype=np.float32)
    scores = np.empty((shared, n), dtype=np.float32)
    weights = np.empty(n, dtype=np.int32)
    for g in range(groups):
        key = y[heads + g]
        _rotate(key, cos, sin)
        hadamard.transform_row(key, key_block)
        steps[g, at] = _quantise(key, q) * score_scale
        for d in range(head_dim):
            keys[g, d, at] = q[d]
        scales[g, at] = _quantise(y[heads + groups + g], q)
        for d in range(head_dim):
            values[g, d, at] = q[d]
        bound = _maximum(scales[g, start : at + 1])
        for h in range(shared):
            query = y[g * shared + h]
            _rotate(query, cos, sin)
            hadamard.transform_row(query, key_block)
            q_scales[h] = _quantise(query, q)
            for d in range(head_dim):
                queries[h, d] = np.float32(q[d])
        _scores(queries, keys[g], start, scores)
        for h in range(shared):
            _softmax(scores[h], steps[g, start : at + 1], scales[g, start : at + 1],
                     q_scales[h], bound, mantissas, weights)  # fmt: skip
        part = out[g * shared : (g + 1) * shared]
        _weighted_sum(scores, values[g], start, part)
        for h in range(shared):
            for d in range(head_dim):
                part[h, d] *= bound * _P_UNIT


@compiled
def _attention_row_by_matmul(
    y: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    steps: np.ndarray,
    scales: np.ndarray,
    start: int,
    at: int,
    score_scale: np.float32,
    mantissas: np.ndarray,
    heads: int,
    key_block: int,
    out: np.ndarray,
) -> None:
    """The same, of keys [G, n / 16, D / 4, 64] and values [G, n / 4, D, 4]."""
    groups, head_dim, shared = len(keys), y.shape[1], heads // len(keys)
    n, first = at + 1 - start, start // matmul.MULTIPLE * matmul.MULTIPLE
    skipped = start - first  # keys that are read with the others and count for nothing
    width = (skipped + n + matmul.MULTIPLE - 1) // matmul.MULTIPLE * matmul.MULTIPLE
    q = np.empty(head_dim, dtype=np.int8)
    queries = np.empty((shared, head_dim), dtype=np.int8)
    q_scales = np.empty(shared, dtype=np.float32)
    p = np.empty(n, dtype=np.float32)
    weights = np.empty(n, dtype=np.int32)
    limbs = np.zeros((2 * shared, width), dtype=np.uint8)
    overflow = np.empty(shared, dtype=np.int64)
    for g in range(groups):
        key = y[heads + g]
        _rotate(key, cos, sin)
        hadamard.transform_row(key, key_block)
        steps[g, at] = _quantise(key, q) * score_scale
        block, offset = keys[g, at // 16], 4 * (at % 16)
        for d in range(head_dim):
            block[d // 4, offset + d % 4] = np.uint8(q[d] + np.int16(128))
        scales[g, at] = _quantise(y[heads + groups + g], q)
        for d in range(head_dim):
            values[g, at // 4, d, at % 4] = q[d]
        bound = _maximum(scales[g, start : at + 1])
        for h in range(shared):
            query = y[g * shared + h]
            _rotate(query, cos, sin)
            hadamard.transform_row(query, key_block)
            q_scales[h] = _quantise(query, queries[h])
        scores = matmul.multiply(queries, keys[g, first // 16 : (first + width) // 16])
        for h in range(shared):
            for j in range(n):
                p[j] = np.float32(scores[h, skipped + j])
            _softmax(p, steps[g, start : at + 1], scales[g, start : at + 1], q_scales[h], bound,
                     mantissas, weights)  # fmt: skip
            overflow[h] = _split_bytes(p, limbs[2 * h, skipped:], limbs[2 * h + 1, skipped:])
        sums = matmul.weighted_sum(limbs, values[g, first // 4 : (first + width) // 4])
        for h in range(shared):
            for d in range(head_dim):
                total = np.int32(256) * sums[2 * h, d] + sums[2 * h + 1, d]
                if overflow[h] >= 0:
                    j = start + overflow[h]
                    total += np.int32(values[g, j // 4, d, j % 4])
                out[g * shared + h, d] = np.float32(total) * (bound * _P_UNIT)


@compiled
def _silu_row(y: np.ndarray, table: np.ndarray, out: np.ndarray) -> None:
    """silu(gate) · up, y [2I] → [I]."""
    size = len(out)
    for i in range(size):
        step = y[i] * _GATE_STEPS
        step = step if step < _GATE_LIMIT else _GATE_LIMIT  # NaN, too
        step = step if step > -_GATE_LIMIT else -_GATE_LIMIT
        out[i] = table[np.int32(_round(step) + _GATE_LIMIT)] * y[i] * y[size + i]


@compiled
def _norm_rows(
    x: np.ndarray, weight: np.ndarray, epsilon: np.float32, block: int
) -> tuple[np.ndarray, np.ndarray]:
    q = np.empty(x.shape, dtype=np.int8)
    scales = np.empty(len(x), dtype=np.float32)
    y = np.empty(x.shape[1], dtype=np.float32)
    for r in range(len(x)):
        _norm(x[r], weight, epsilon, y)
        hadamard.transform_row(y, block)
        scales[r] = _quantise(y, q[r])
    return q, scales


@compiled
def _attention_rows(
    total: np.ndarray,
    row_scales: np.ndarray,
    weight_scale: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    base: int,
    window: int,
    score_scale: np.float32,
    mantissas: np.ndarray,
    heads: int,
    head_dim: int,
    block: int,
    key_block: int,
    first: int,
) -> tuple[np.ndarray, np.ndarray]:
    """`arrays` is one layer of a Cache's arrays, which hold `base` tokens; `first` is the number of
    the first of these rows, in the order of streams and then of tokens."""
    keys, values, steps, scales = arrays
    count = len(cos)
    q = np.empty((len(total), heads * head_dim), dtype=np.int8)
    out_scales = np.empty(len(total), dtype=np.float32)
    y = np.empty(total.shape[1], dtype=np.float32)
    out = np.empty((heads, head_dim), dtype=np.float32)
    for r in range(len(total)):
        s, t = (first + r) // count, (first + r) % count
        at = base + t
        _scale(total[r], row_scales[r], weight_scale, y)
        _attention_row(y.reshape(-1, head_dim), cos[t], sin[t], keys[s], values[s], steps[s],
                       scales[s], max(0, at + 1 - window), at, score_scale, mantissas, heads,
                       key_block, out)  # fmt: skip
        hadamard.transform_row(out.reshape(-1), block)
        out_scales[r] = _quantise(out.reshape(-1), q[r])
    return q, out_scales


@compiled
def _activation_rows(
    total: np.ndarray,
    row_scales: np.ndarray,
    weight_scale: np.ndarray,
    table: np.ndarray,
    block: int,
) -> tuple[np.ndarray, np.ndarray]:
    rows, width = total.shape
    q = np.empty((rows, width // 2), dtype=np.int8)
    scales = np.empty(rows, dtype=np.float32)
    y = np.empty(width, dtype=np.float32)
    out = np.empty(width // 2, dtype=np.float32)
    for r in range(rows):
        _scale(total[r], row_scales[r], weight_scale, y)
        _silu_row(y, table, out)
        hadamard.transform_row(out, block)
        scales[r] = _quantise(out, q[r])
    return q, scales


@compiled
def _add_rows(
    x: np.ndarray, total: np.ndarray, row_scales: np.ndarray, weight_scale: np.ndarray
) -> None:
    y = np.empty(x.shape[1], dtype=np.float32)
    for r in range(len(x)):
        _scale(total[r], row_scales[r], weight_scale, y)
        for i in range(len(y)):
            x[r, i] += y[i]


@compiled
def _final_rows(x: np.ndarray, weight: np.ndarray, epsilon: np.float32) -> np.ndarray:
    y = np.empty_like(x)
    for r in range(len(x)):
        _norm(x[r], weight, epsilon, y[r])
    return y


@compiled
def _matmul(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int8 [R, K] · int8 [N, K]ᵀ, or packed weights → int32 [R, N]."""
    if weight.ndim == 3:  # known when this is compiled
        return matmul.multiply(q, weight)
    total = np.empty((len(q), len(weight)), dtype=np.int32)
    for n in range(len(weight)):
        w = weight[n]
        for r in range(len(q)):
            x = q[r]
            sum = np.int32(0)
            for k in range(len(w)):
                sum = np.int32(sum + np.int32(x[k]) * np.int32(w[k]))
            total[r, n] = sum
    return total


@compiled
def _step(
    x: np.ndarray,
    norms: tuple[np.ndarray, np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    weight_scales: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    constants: tuple[np.float32, np.float32, np.ndarray, np.ndarray, int, int],
    blocks: tuple[int, int, int, int, int],
    cos: np.ndarray,
    sin: np.ndarray,
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    base: int,
    window: int,
) -> np.ndarray:
    """All layers, with compiled products instead of torch's; see `FusedLlama.forward`."""
    epsilon, score_scale, mantissas, gate, heads, head_dim = constants
    for i in range(len(norms[0])):
        layer_arrays = (arrays[0][i], arrays[1][i], arrays[2][i], arrays[3][i])
        for first in range(0, len(x), _BLOCK):
            part = x[first : first + _BLOCK]
            q, s = _norm_rows(part, norms[0][i], epsilon, blocks[0])
            total = _matmul(q, weights[0][i])
            q, s = _attention_rows(total, s, weight_scales[0][i], cos, sin, layer_arrays, base,
                                   window, score_scale, mantissas, heads, head_dim, blocks[1],
                                   blocks[4], first)  # fmt: skip
            _add_rows(part, _matmul(q, weights[1][i]), s, weight_scales[1][i])
            q, s = _norm_rows(part, norms[1][i], epsilon, blocks[2])
            q, s = _activation_rows(_matmul(q, weights[2][i]), s, weight_scales[2][i], gate,
                               blocks[3])  # fmt: skip
            _add_rows(part, _matmul(q, weights[3][i]), s, weight_scales[3][i])
    return _final_rows(x, norms[2], epsilon)


@compiled
def _quantise_rows(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    q = np.empty(x.shape, dtype=np.int8)
    scales = np.empty(len(x), dtype=np.float32)
    y = np.empty(x.shape[1], dtype=np.float32)
    for r in range(len(x)):
        for i in range(len(y)):  # assigning a slice takes a second longer to compile
            y[i] = x[r, i]
        hadamard.transform_row(y, block)
        scales[r] = _quantise(y, q[r])
    return q, scales


@compiled
def _scale_rows(total: np.ndarray, row_scales: np.ndarray, weight_scale: np.ndarray) -> np.ndarray:
    y = np.empty(total.shape, dtype=np.float32)
    for r in range(len(total)):
        _scale(total[r], row_scales[r], weight_scale, y[r])
    return y
