"""Exact attention and KV cache behind the interfaces of the transformers library.

Importing this module registers the attention implementation `ATTENTION`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import CacheLayerMixin

from llmzip.errors import UnsupportedModel
from llmzip.exact import hadamard
from llmzip.exact.attention import KVCache, RingCache, attend, quantise_heads
from llmzip.exact.convert.modules import trusted

ATTENTION = "llmzip_exact"
# arguments of the attention interface that change nothing: positions follow from the order of
# tokens, and nothing is trained
_IGNORED = {"position_ids", "cache_position", "position_embeddings", "use_cache", "layer_idx",
            "cache", "past_key_values", "num_items_in_batch", "deterministic"}  # fmt: skip


class CacheLayer(CacheLayerMixin):
    """The quantised keys and values of one layer, as a cache layer of transformers."""

    def __init__(self, context: int, window: int | None, levels: float, rotated: bool) -> None:
        """For `context` tokens; `window` of sliding attention; `levels` of keys and values;
        `rotated`: keys take a Hadamard transform."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._context, self._window, self._levels = context, window, levels
        self._rotated = rotated
        self.cache: KVCache | RingCache | None = None
        self._length = 0
        self.is_sliding = window is not None
        self.sliding_window = window

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the KV cache for keys and values like these, float32 [S, G, T, D]."""
        streams, heads, _, head_dim = key_states.shape
        if value_states.shape != key_states.shape:
            raise UnsupportedModel("values of another shape than keys have no exact form")
        self.cache = KVCache(
            streams,
            heads,
            head_dim,
            context=self._context,
            window=self._window,
            levels=self._levels,
        )
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append float32 [S, G, T, D] → all integer keys and values [S, G, n, D]."""
        with trusted():
            if self.cache is None:
                self.lazy_initialization(key_states, value_states)
            assert self.cache is not None
            self._length += key_states.shape[2]
            block = hadamard.block_size(key_states.shape[3]) if self._rotated else 1
            key_states = hadamard.transform(key_states, block)
            keys, key_scale, values, value_scale = self.cache.append(key_states, value_states)
        # a model passes the keys on to the attention; if it changes them first, this attribute
        # is lost and the attention refuses them
        settings = (self._window, self._levels, self.cache.masked, block)
        keys.llmzip = (key_scale, values, value_scale, *settings)  # type: ignore[attr-defined]
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """(keys that `query_length` new tokens see, offset of the first key)."""
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        """The number of tokens that were appended."""
        return self._length

    def get_max_length(self) -> int:
        """-1: the cache has no maximum of its own."""
        return -1

    get_max_cache_shape = get_max_length  # the name in older versions of transformers


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query [S, H, T, D], key and value as `CacheLayer.update` returned them → [S, T, H, D]."""
    entries = getattr(key, "llmzip", None)
    window = kwargs.pop("sliding_window", None)
    causal = kwargs.pop("is_causal", None)
    unknown = [
        name
        for name, value in kwargs.items()
        if name not in _IGNORED and value is not None and value is not False
    ]
    reason = None
    if entries is None:
        reason = "it changes keys after the cache"
    elif attention_mask is not None or causal is False or not getattr(module, "is_causal", True):
        reason = "its attention is not just causal"
    elif window is not None and window != entries[3]:
        reason = f"a sliding window of {window} where the cache has {entries[3]}"
    elif unknown:
        reason = f"its attention takes {', '.join(unknown)}"
    if entries is None or reason is not None:
        raise UnsupportedModel(f"{type(module).__name__} has no exact form: {reason}")
    key_scale, values, value_scale, window, levels, masked, block = entries
    with trusted():
        q, q_scale = quantise_heads(hadamard.transform(query, block), levels)
        # products of transformed rows are `block` times those of the rows
        scaling = (query.shape[3] ** -0.5 if scaling is None else scaling) / block
        out = attend(q, q_scale, key, key_scale, values, value_scale, window, scaling, masked)
        return out.transpose(1, 2), None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Exact attention is causal without a mask."""


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
