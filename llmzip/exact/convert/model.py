"""`ExactTransformer`: a causal language model of the transformers library in exact arithmetic.

What is left of the model's own forward must be elementwise IEEE-754 operations, reshapes and
look-ups; `verify` tests that.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from llmzip.errors import UnsupportedModel
from llmzip.exact import MAX_CONTEXT, ops
from llmzip.exact.attention import RingCache, storage_dtype
from llmzip.exact.convert.attention import ATTENTION, CacheLayer
from llmzip.exact.convert.config import load_network, model_spec, parse_config
from llmzip.exact.convert.match import match
from llmzip.exact.convert.modules import ExactRotary
from llmzip.exact.quantise import dequantise_tensors


class ExactTransformer:
    """The interface of `ExactLlama` for any architecture; for Llama models the bits are equal."""

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        *,
        levels: float = ops.A16_LEVELS,
        key_levels: float = ops.WIDE_KEY_LEVELS,
        rotated: bool = False,
        int8: bool | None = None,
        device: str = "cpu",
    ) -> None:
        """Arguments as for `ExactLlama`, but int8 weights are dequantised and quantised again.

        Raises UnsupportedModel, with the reason, if the model has no exact form.
        """
        parsed = parse_config(config)
        self.spec = model_spec(parsed)
        self.device = torch.device(device)
        self._key_levels, self.key_bytes = key_levels, storage_dtype(key_levels).itemsize
        self._rotated = rotated
        self.network = load_network(parsed, dequantise_tensors(config, tensors), ATTENTION)
        make_exact(self.network, levels=levels, rotated=rotated, int8=int8, device=self.device)
        self._rotary = [m for m in self.network.modules() if isinstance(m, ExactRotary)]
        prefix = self.network.base_model_prefix
        if prefix not in self.network._modules:
            raise UnsupportedModel(f"{type(self.network).__name__} has no {prefix!r} and a head")
        self._body: nn.Module = self.network.base_model
        parameters = inspect.signature(self._body.forward).parameters
        # the argument's name before transformers 5.24 is past_key_values
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        # the same network and head with an identity for a body
        self._head = copy.copy(self.network)
        self._head._modules = {**self.network._modules, prefix: _IdentityBody()}

    def new_cache(self, streams: int, context: int) -> Cache:
        """An empty KV cache for `streams` streams of at most `context` tokens.

        Raises UnsupportedModel for a longer context than attention is exact for.
        """
        if context > MAX_CONTEXT:
            raise UnsupportedModel(f"a context of {context} tokens; the limit is {MAX_CONTEXT}")
        for rotary in self._rotary:
            rotary.reserve(context)
        return Cache(
            layers=[
                CacheLayer(context, window, self._key_levels, self._rotated)
                for window in self.spec.sliding_windows
            ]
        )

    def new_ring(self, cache: Cache, capacity: int, position: Tensor) -> Cache:
        """As `ExactLlama.new_ring`."""
        layers: list[Any] = []
        sources: list[Any] = cache.layers
        for source, window in zip(sources, self.spec.sliding_windows, strict=True):
            layer = CacheLayer(capacity, window, self._key_levels, self._rotated)
            layer.cache = RingCache(source.cache, min(capacity, window or capacity), position)
            layers.append(layer)
        return Cache(layers=layers)

    def load_ring(self, ring: Cache, cache: Cache, position: int) -> None:
        """As `ExactLlama.load_ring`."""
        pairs: Any = zip(ring.layers, cache.layers, strict=True)
        for target, source in pairs:
            target.cache.load(source.cache, position)

    @torch.inference_mode()
    def forward(self, ids: Tensor, cache: Cache, position: int | Tensor) -> Tensor:
        """As `ExactLlama.forward`: ids int64 [S, T] → hidden states [S, T, hidden_size]."""
        hidden: Tensor = self._body(**self._inputs(ids, cache, position))[0]
        return hidden

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [rows, hidden_size] → logits [rows, vocabulary]."""
        logits: Tensor = self._head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def full_forward(self, ids: Tensor, cache: Cache, position: int) -> Tensor:
        """`forward` and `logits` by the model's own forward: logits [S, T, vocabulary]."""
        logits: Tensor = self.network(**self._inputs(ids, cache, position)).logits
        return logits

    def _inputs(self, ids: Tensor, cache: Cache, position: int | Tensor) -> dict[str, Any]:
        if isinstance(position, Tensor):
            positions = position
        else:
            positions = torch.arange(position, position + ids.shape[1], device=ids.device)
        return {
            "input_ids": ids,
            "position_ids": positions.expand(ids.shape[0], -1),
            self._cache_name: cache,
            "use_cache": True,
        }


class _IdentityBody(nn.Module):
    """Returns its input embeddings as the last hidden states."""

    def forward(
        self, *_: Any, inputs_embeds: Tensor, **__: Any
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)

    @property
    def decoder(self) -> _IdentityBody:
        """Some heads call `body.decoder`."""
        return self


def make_exact(
    network: PreTrainedModel,
    *,
    levels: float,
    rotated: bool = False,
    int8: bool | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Replace the modules of a network by exact ones, in place, and move it to `device`.

    Modules without exact form stay; `verify` names them. Weights are converted one module at a
    time, so that memory holds them once. Raises UnsupportedModel for weights that are not finite.
    """
    device = torch.device(device)

    def convert(parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            exact = match(child, network.config, device, levels=levels, rotated=rotated, int8=int8)
            if exact is None:
                convert(child)
            else:
                setattr(parent, name, exact)

    with torch.inference_mode():
        convert(network)
        for tensor in [*network.parameters(), *network.buffers()]:
            ops.require_finite(tensor, "the model")
        nn.Module.float(network)
        nn.Module.to(network, device)
