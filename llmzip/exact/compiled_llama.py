"""Llama-family models of int8 weights in compiled code alone: no torch, and the bits of `llama`.

One call runs all layers for any number of rows (`step`); weights are held once, in the order in
which the processor's products read them (`matmul`). Known answers tell whether it computes here
what it computes everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from llmzip.errors import UnsupportedModel
from llmzip.exact import (
    MAX_CONTEXT,
    SCALE_FLOOR,
    SCALE_SUFFIX,
    activations,
    hadamard,
    matmul,
    tables,
)
from llmzip.exact.architecture import Architecture
from llmzip.exact.kv_cache import Cache
from llmzip.exact.rotary import RotaryTable, rotary_frequencies
from llmzip.exact.step import embed_rows, logit_rows, run_step, shared_arrays
from llmzip.exact.team import Team, run

_Scaled = tuple[np.ndarray, np.ndarray]  # int8 weights [N, K] and their scales float32 [N]
_GROUPS = (  # layers with the same inputs are one
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
# of small models, by whether their inputs are transformed: digests of what they compute
_KNOWN = {False: "5f5ed14a7ae2ba81", True: "3282a6d96617070d"}


class CompiledLlama:
    """A model with 8-bit weights, activations and keys, without biases."""

    key_bytes = 1

    def __init__(
        self, architecture: Architecture, arrays: Mapping[str, np.ndarray], *, rotated: bool
    ) -> None:
        """`arrays` by the names of the checkpoint, as `reads` wants them. Raises UnsupportedModel
        for arrays that are missing, not finite or of another shape."""
        self.architecture = a = architecture
        self.spec = a.spec()
        self._arrays, self.rotated = arrays, rotated
        hidden, queries, keys = a.hidden_size, a.heads * a.head_dim, a.kv_heads * a.head_dim
        shapes = (
            (hidden, (queries, keys, keys)),
            (queries, (hidden,)),
            (hidden, (a.intermediate_size,) * 2),
            (a.intermediate_size, (hidden,)),
        )
        layers = [f"model.layers.{i}." for i in range(a.layers)]
        self._norms = (
            np.stack([self._norm(layer + "input_layernorm") for layer in layers]),
            np.stack([self._norm(layer + "post_attention_layernorm") for layer in layers]),
            self._norm("model.norm"),
        )
        weights, scales = [], []
        for names, (inputs, outputs) in zip(_GROUPS, shapes, strict=True):
            stacks = [self._linear([layer + n for n in names], outputs, inputs) for layer in layers]
            weights.append(matmul.pack(np.stack([weight for weight, _ in stacks])))
            scales.append(np.stack([scale for _, scale in stacks]))
        self._weights: Any = tuple(weights)
        self._scales: Any = tuple(scales)
        self._embedding, self._embedding_scale = self._weight(
            "model.embed_tokens", (a.vocab_size, hidden)
        )
        head = (self._embedding, self._embedding_scale)
        if not a.tied:
            head = self._weight("lm_head", (a.vocab_size, hidden))
        self._head, self._head_scale = matmul.pack(head[0][None])[0], head[1]
        del self._arrays
        key_block = self._block(a.head_dim)
        self._constants = (
            np.float32(a.epsilon),
            np.float32(tables.score_scale(a.head_dim**-0.5 / key_block)),
            activations.gate_array("silu"),
            a.heads,
            a.head_dim,
        )
        # orders of Hadamard transforms, of inputs of each group of layers, and of queries and keys
        self._blocks: Any = (*(self._block(inputs) for inputs, _ in shapes), key_block)
        self._hidden_block, self._heads_size = self._block(hidden), queries
        self._rotary = RotaryTable(rotary_frequencies(a.rope, a.head_dim))

    def _block(self, inputs: int) -> int:
        return hadamard.block_size(inputs) if self.rotated else 1

    def _take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = self._arrays.get(name)
        if array is None:
            raise UnsupportedModel(f"the model's files lack the tensor {name}")
        if array.shape != shape:
            raise UnsupportedModel(f"{name} has shape {array.shape}, expected {shape}")
        if array.dtype != np.int8 and not np.isfinite(array).all():
            raise UnsupportedModel(f"{name} holds values that are not finite")
        return array

    def _norm(self, name: str) -> np.ndarray:
        return self._take(name + ".weight", (self.architecture.hidden_size,)).astype(np.float32)

    def _weight(self, name: str, shape: tuple[int, int]) -> _Scaled:
        weight = self._take(name + ".weight", shape)
        scale = self._take(name + ".weight" + SCALE_SUFFIX, (shape[0], 1)).astype(np.float32)
        return weight, np.maximum(scale.reshape(-1), np.float32(SCALE_FLOOR))

    def _linear(self, names: Sequence[str], outputs: Sequence[int], inputs: int) -> _Scaled:
        pairs = [self._weight(n, (size, inputs)) for n, size in zip(names, outputs, strict=True)]
        return np.concatenate([w for w, _ in pairs]), np.concatenate([s for _, s in pairs])

    def new_cache(self, streams: int, context: int) -> Cache:
        """An empty cache for `streams` streams of at most `context` tokens. Raises UnsupportedModel
        for a longer context than attention is exact for."""
        if self.architecture.window is None and context > MAX_CONTEXT:
            raise UnsupportedModel(f"a context of {context} tokens; the limit is {MAX_CONTEXT}")
        return Cache(self.architecture, streams, context)

    def forward(
        self, ids: np.ndarray, cache: Cache, position: int, team: Team | None = None
    ) -> np.ndarray:
        """The next T tokens of S streams, ids int64 [S, T], the first at `position` → hidden states
        [S, T, H] for `logits`. With a team, its threads divide the work."""
        streams, count = ids.shape
        cos, sin = self._rotary.arrays(position, count)
        cache.reserve(count)
        arrays: Any = cache.arrays
        flat = np.ascontiguousarray(ids.reshape(-1))
        assert 0 <= flat.min() <= flat.max() < len(self._embedding)  # compiled code does not check
        x = embed_rows(flat, self._embedding, self._embedding_scale, self._hidden_block)
        y = np.empty_like(x)
        shared = shared_arrays(len(x), self._scales, self._heads_size)
        run(team, run_step, x, y, shared, self._norms, self._weights, self._scales,
            self._constants, self._blocks, cos, sin, arrays, cache.length,
            cache.window)  # fmt: skip
        cache.length += count
        return y.reshape(streams, count, -1)

    def logits(self, hidden: np.ndarray, team: Team | None = None) -> np.ndarray:
        """Hidden states [R, H] → logits [R, V]."""
        rows = np.ascontiguousarray(hidden)
        logits = np.empty((len(rows), len(self._head_scale)), dtype=np.float32)
        run(team, logit_rows, rows, self._hidden_block, self._head, self._head_scale, logits)
        return logits


def reads(architecture: Architecture, arrays: Mapping[str, np.ndarray], rotated: bool) -> bool:
    """Whether a model can be compiled here: int8 weights without biases, in shapes that the
    processor's products take, and known answers that are right."""
    a = architecture
    weights = [x for name, x in arrays.items() if x.ndim == 2 and not name.endswith(SCALE_SUFFIX)]
    return (
        matmul.available()
        and all(x.dtype == np.int8 and matmul.fits(x) for x in weights)
        and not any(name.endswith(".bias") for name in arrays)
        and a.head_dim <= 1024
        and (a.window or 0) <= MAX_CONTEXT
        and agrees(rotated)
    )


@cache
def agrees(rotated: bool) -> bool:
    """Whether a small model gives the known answer here."""
    return known_answer(rotated) == _KNOWN[rotated]


def known_answer(rotated: bool) -> str:
    """The digest of what `small_model` computes: many tokens at once, step by step, and logits."""
    architecture, arrays = small_model()
    model = CompiledLlama(architecture, arrays, rotated=rotated)
    ids = small_ids(architecture)
    hasher = hashlib.blake2b(digest_size=8)
    hasher.update(model.forward(ids, model.new_cache(len(ids), 512), 0).tobytes())
    kept = model.new_cache(1, 512)
    for t in range(ids.shape[1]):
        hidden = model.forward(ids[1:2, t : t + 1], kept, t)
    hasher.update(hidden.tobytes())
    hasher.update(model.logits(hidden[0]).tobytes())
    return hasher.hexdigest()


def small_model(
    window: int | None = 33, head_dim: int = 32
) -> tuple[Architecture, dict[str, np.ndarray]]:
    """A model of random weights whose attention slides over `window` tokens."""
    h, layers = head_dim, 2
    architecture = Architecture.from_config(
        {"model_type": "mistral", "vocab_size": 8 * h, "hidden_size": 4 * h,
         "intermediate_size": 6 * h, "num_hidden_layers": layers, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": window,
         "tie_word_embeddings": True}
    )  # fmt: skip
    return architecture, _random_arrays(4 * h, 6 * h, layers, 8 * h)


def small_ids(architecture: Architecture) -> np.ndarray:
    """Tokens for it, int64 [3, 80]."""
    return np.arange(3 * 80).reshape(3, 80) * 31 % architecture.vocab_size


def _random_arrays(hidden: int, width: int, layers: int, vocabulary: int) -> dict[str, np.ndarray]:
    """Weights and scales, from a congruential generator modulo 2^64."""
    shapes = {"embed_tokens": (vocabulary, hidden)}
    for i in range(layers):
        part = f"layers.{i}."
        shapes |= dict.fromkeys((part + _GROUPS[0][1], part + _GROUPS[0][2]), (hidden // 2, hidden))
        shapes |= dict.fromkeys((part + _GROUPS[0][0], part + _GROUPS[1][0]), (hidden, hidden))
        shapes |= dict.fromkeys([part + name for name in _GROUPS[2]], (width, hidden))
        shapes |= {part + _GROUPS[3][0]: (hidden, width)}
    arrays: dict[str, np.ndarray] = {}
    state = np.arange(1, 1 + max(n * k for n, k in shapes.values()), dtype=np.uint64)
    for name, shape in shapes.items():
        state = (state ^ (state >> np.uint64(29))) * np.uint64(6364136223846793005) + np.uint64(1)
        integers = (state[: shape[0] * shape[1]] >> np.uint64(33)).astype(np.int64) % 255 - 127
        arrays[f"model.{name}.weight"] = integers.astype(np.int8).reshape(shape)
        scale = (1 + (state[: shape[0]] >> np.uint64(60)).astype(np.float32)) * np.float32(2.0**-13)
        arrays[f"model.{name}.weight{SCALE_SUFFIX}"] = scale.reshape(-1, 1)
    norms = [f"layers.{i}.{kind}" for i in range(layers)
             for kind in ("input_layernorm", "post_attention_layernorm")]  # fmt: skip
    for name in [*norms, "norm"]:
        ones = 1 + (state[:hidden] >> np.uint64(56)).astype(np.float32) * np.float32(2.0**-10)
        arrays[f"model.{name}.weight"] = ones.astype(np.float32)
    return arrays
