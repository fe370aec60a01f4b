"""Exact inference of Llama-family models: `LlamaForCausalLM`, `MistralForCausalLM`.

RMSNorm, rotary embedding, grouped-query attention (optionally with a sliding window), SwiGLU, tied
or untied head (Touvron et al., 2023; Jiang et al., 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import MAX_CONTEXT, SCALE_SUFFIX, hadamard, ops
from llmzip.exact.architecture import Architecture
from llmzip.exact.attention import (
    KVCache,
    RingCache,
    attend,
    quantise_heads,
    storage_dtype,
)
from llmzip.exact.rotary import RotaryTable, rotary_frequencies


@dataclass
class Layer:
    """The weights of one layer; norms are float32 [hidden_size]."""

    input_norm: Tensor
    qkv: ops.Linear
    output: ops.Linear
    mlp_norm: Tensor
    gate_up: ops.Linear
    down: ops.Linear


class ExactLlama:
    """A Llama-family model in exact arithmetic.

    Weights that come in int8 with a `NAME_scale` are used as they are; floating-point weights are
    quantised per output row. Input embeddings are float32.
    """

    def __init__(
        self,
        architecture: Architecture,
        tensors: Mapping[str, Tensor],
        *,
        levels: float = ops.A16_LEVELS,
        key_levels: float = ops.WIDE_KEY_LEVELS,
        rotated: bool = False,
        int8: bool | None = None,
        device: str = "cpu",
    ) -> None:
        """`levels` of activations, `key_levels` of queries, keys and values: see `ops`. `rotated`:
        inputs of linear layers, queries and keys take Hadamard transforms; int8 weights must have
        been made for that. `int8` as for `ops.Linear`. Raises UnsupportedModel for tensors that are
        missing, not finite or of another shape."""
        self.rotated = rotated
        self.architecture = a = architecture
        self.spec = a.spec()
        self.key_levels, self.key_bytes = key_levels, storage_dtype(key_levels).itemsize
        self.device = torch.device(device)
        self.key_block = self._block(a.head_dim)  # of transforms of queries and keys
        self._tensors, self._levels, self._int8 = tensors, levels, int8
        self.layers = [self._layer(f"model.layers.{i}.") for i in range(a.layers)]
        self.norm_weight = self._norm("model.norm")
        head = "model.embed_tokens" if a.tied else "lm_head"
        self.head = self._linear(a.hidden_size, {head: a.vocab_size})
        self.embedding = self._embeddings()
        self.rotary = RotaryTable(rotary_frequencies(a.rope, a.head_dim))
        del self._tensors

    def _layer(self, prefix: str) -> Layer:
        a = self.architecture
        attention, mlp = prefix + "self_attn.", prefix + "mlp."
        q_size, kv_size = a.heads * a.head_dim, a.kv_heads * a.head_dim
        qkv = {"q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size}
        gate_up = dict.fromkeys(("gate_proj", "up_proj"), a.intermediate_size)
        return Layer(
            input_norm=self._norm(prefix + "input_layernorm"),
            qkv=self._linear(a.hidden_size, {attention + n: size for n, size in qkv.items()}),
            output=self._linear(q_size, {attention + "o_proj": a.hidden_size}),
            mlp_norm=self._norm(prefix + "post_attention_layernorm"),
            gate_up=self._linear(a.hidden_size, {mlp + n: size for n, size in gate_up.items()}),
            down=self._linear(a.intermediate_size, {mlp + "down_proj": a.hidden_size}),
        )

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._tensors.get(name)
        if tensor is None:
            raise UnsupportedModel(f"the model's files lack the tensor {name}")
        if tuple(tensor.shape) != shape:
            raise UnsupportedModel(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        ops.require_finite(tensor, name)
        return tensor.to(self.device)

    def _weight(self, name: str, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(int8 [N, K], float32 scale [N]) of a linear layer or an embedding."""
        weight = self._take(name + ".weight", shape)
        if weight.dtype == torch.int8:
            scale = self._take(name + ".weight" + SCALE_SUFFIX, (shape[0], 1)).float().view(-1)
            return weight, scale.clamp_min(ops.SCALE_FLOOR)
        if not weight.is_floating_point():
            raise UnsupportedModel(f"{name} holds {weight.dtype}; known: int8 and floats")
        return ops.quantise_weight(weight, self._block(shape[1]))

    def _block(self, inputs: int) -> int:
        return hadamard.block_size(inputs) if self.rotated else 1

    def _linear(self, inputs: int, outputs: Mapping[str, int]) -> ops.Linear:
        """Several linear layers of the same input, concatenated into one."""
        pairs = [self._weight(name, (size, inputs)) for name, size in outputs.items()]
        bias = None
        if any(name + ".bias" in self._tensors for name in outputs):
            bias = torch.cat([self._bias(name, size) for name, size in outputs.items()])
        return ops.Linear(
            torch.cat([weight for weight, _ in pairs]),
            torch.cat([scale for _, scale in pairs]),
            levels=self._levels,
            bias=bias,
            block=self._block(inputs),
            int8=self._int8,
        )

    def _bias(self, name: str, size: int) -> Tensor:
        if name + ".bias" not in self._tensors:
            return torch.zeros(size, device=self.device)
        return self._take(name + ".bias", (size,)).float()

    def _norm(self, name: str) -> Tensor:
        return self._take(name + ".weight", (self.architecture.hidden_size,)).float()

    def _embeddings(self) -> Tensor:
        name = "model.embed_tokens"
        shape = (self.architecture.vocab_size, self.architecture.hidden_size)
        weight = self._take(name + ".weight", shape)
        if weight.dtype != torch.int8:
            return weight.float()
        integers, scale = self._weight(name, shape)
        # a tied head stores W · H / B if the model is rotated, and H · H / B = I
        return hadamard.transform(
            integers.float().mul_(scale[:, None]), self._block(self.architecture.hidden_size)
        )

    def new_cache(self, streams: int, context: int) -> list[KVCache]:
        """Empty KV caches, one per layer, for `streams` streams of at most `context` tokens.

        Raises UnsupportedModel for a longer context than attention is exact for.
        """
        a = self.architecture
        if a.window is None and context > MAX_CONTEXT:
            raise UnsupportedModel(f"a context of {context} tokens; the limit is {MAX_CONTEXT}")
        return [
            KVCache(
                streams,
                a.kv_heads,
                a.head_dim,
                context=context,
                window=a.window,
                levels=self.key_levels,
            )
            for _ in range(a.layers)
        ]

    def new_ring(self, cache: list[KVCache], capacity: int, position: Tensor) -> list[RingCache]:
        """Ring caches for decode steps at positions below `capacity`; `load_ring` fills them.

        `position` int64 [1], on the device: the next token's, which the caller advances.
        """
        self._rotary_tables = [t.to(self.device) for t in self.rotary.cos_sin(0, capacity)]
        size = min(capacity, self.architecture.window or capacity)
        return [RingCache(layer, size, position) for layer in cache]

    def load_ring(self, ring: list[RingCache], cache: list[KVCache], position: int) -> None:
        """Copy the entries of `cache`, after `position` tokens, to `ring`."""
        for new, old in zip(ring, cache, strict=True):
            new.load(old, position)

    @torch.inference_mode()
    def forward(
        self, ids: Tensor, cache: Sequence[KVCache | RingCache], position: int | Tensor
    ) -> Tensor:
        """The next T tokens of S streams, ids int64 [S, T], the first at `position` → hidden states
        [S, T, hidden_size] for `logits`. With ring caches T is 1 and `position` is int64 [1]."""
        a = self.architecture
        streams, count = ids.shape
        if isinstance(position, Tensor):
            cos, sin = (table.index_select(0, position) for table in self._rotary_tables)
        else:
            cos, sin = (t.to(self.device) for t in self.rotary.cos_sin(position, count))
        x = self.embedding.index_select(0, ids.reshape(-1)).view(streams, count, -1)
        block = self.key_block
        scaling = a.head_dim**-0.5 / block  # as products of transformed rows are `block` times
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            h = layer.qkv(ops.rms_norm(x, layer.input_norm, a.epsilon))
            h = h.view(streams, count, -1, a.head_dim).transpose(1, 2)
            q, k, v = torch.split(h, [a.heads, a.kv_heads, a.kv_heads], dim=1)
            q, k = (hadamard.transform(ops.apply_rotary(part, cos, sin), block) for part in (q, k))
            query = quantise_heads(q, self.key_levels)
            k, k_scale, v, v_scale = layer_cache.append(k, v)
            mixed = attend(
                *query, k, k_scale, v, v_scale, a.window, scaling, masked=layer_cache.masked
            )
            x = x + layer.output(mixed.transpose(1, 2).reshape(streams, count, -1))
            h = layer.gate_up(ops.rms_norm(x, layer.mlp_norm, a.epsilon))
            gate, up = torch.split(h, a.intermediate_size, dim=-1)
            x = x.add_(layer.down(ops.silu(gate).mul_(up)))
        return ops.rms_norm(x, self.norm_weight, a.epsilon)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [rows, hidden_size] → logits [rows, vocab_size]."""
        return self.head(hidden)
