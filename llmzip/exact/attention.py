"""Attention over integers, and the KV cache.

What a query sees depends on its position in its stream only. Scores and outputs are integer dot
products; the softmax weights are integers from a table.

Shapes: S streams, H query heads, G key heads (H a multiple of G), T new tokens, n keys,
D head dimension. Integers of 8 bits are stored in float32, those of 15 bits in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmzip.exact import ops, tables

_SLACK = 128  # tokens that a sliding cache takes in before it moves its window to the front
_BLOCK = 1 << 20  # scores that are computed at a time, so that they stay in a CPU's cache,
_MAX_SCORES = 1 << 25  # and never more than these, so that they fit into memory
_P_UNIT = 65536.0  # attention probabilities are multiples of 2^-16


class KVCache:
    """Quantised keys and values of one layer for S streams, oldest first.

    With a sliding `window`, only the last `window - 1` entries before a block are kept, in a
    buffer that is `_SLACK` entries longer, so that moving them to the front is rare.
    """

    def __init__(
        self,
        streams: int,
        heads: int,
        head_dim: int,
        *,
        context: int,
        window: int | None,
        levels: float = ops.KEY_LEVELS,
    ) -> None:
        """`context`: the most tokens of a stream; `levels`: the largest integer."""
        self.window, self.levels, self.length = window, levels, 0
        self.masked: Tensor | None = None  # the mask follows from the order of entries
        capacity = context if window is None else min(context, window + _SLACK)
        self._shape = (streams, heads, capacity, head_dim)
        self._buffers: tuple[Tensor, ...] = ()

    def _allocate(self, capacity: int, device: torch.device) -> tuple[Tensor, ...]:
        streams, heads, _, head_dim = self._shape
        entries, scales = (streams, heads, capacity, head_dim), (streams, heads, capacity)
        shapes = ((entries, storage_dtype(self.levels)), (scales, torch.float32)) * 2
        return tuple(torch.empty(s, dtype=dtype, device=device) for s, dtype in shapes)

    def entries(self) -> tuple[Tensor, ...]:
        """Keys [S, G, n, D], scales [S, G, n], values, scales of the n cached tokens."""
        return tuple(buffer[:, :, : self.length] for buffer in self._buffers)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise and add keys and values [S, G, T, D].

        Returns keys [S, G, n, D], scales [S, G, n], values and scales that the new tokens may
        see. Raises ValueError if the tokens exceed the context.
        """
        new = (*quantise_heads(k, self.levels), *quantise_heads(v, self.levels))
        count = k.shape[2]
        if not self._buffers:
            self._buffers = self._allocate(max(count, self._shape[2]), new[0].device)
        capacity = self._buffers[0].shape[2]
        if self.length + count > capacity:
            if self.window is None:
                raise ValueError(f"{self.length + count} tokens exceed a context of {capacity}")
            keep = min(self.length, self.window - 1)
            old = [buffer[:, :, self.length - keep : self.length] for buffer in self._buffers]
            if keep + count > capacity:
                self._buffers = self._allocate(keep + count, new[0].device)
            else:  # source and target may overlap
                old = [part.clone() for part in old]
            for buffer, part in zip(self._buffers, old, strict=True):
                buffer[:, :, :keep] = part
            self.length = keep
        for buffer, part in zip(self._buffers, new, strict=True):
            buffer[:, :, self.length : self.length + count] = part
        self.length += count
        start = 0 if self.window is None else max(0, self.length - count - self.window + 1)
        keys, key_scale, values, value_scale = (b[:, :, start:] for b in self.entries())
        return keys, key_scale, values, value_scale


class RingCache:
    """A KV cache for decode steps in buffers that never move, so that a CUDA graph can use them.

    The token at position p takes slot p mod capacity; no sum depends on the order of entries. All
    slots are attended to, but for `masked` ones, which are empty.
    """

    def __init__(self, old: KVCache, capacity: int, position: Tensor) -> None:
        """`capacity`: the sliding window, or else the context; `position` int64 [1], on the device:
        that of the next token. `load` fills the cache."""
        self.window, self._levels = old.window, old.levels
        self.masked: Tensor | None = None
        self._buffers = tuple(
            torch.zeros((*b.shape[:2], capacity, *b.shape[3:]), dtype=b.dtype, device=b.device)
            for b in old.entries()
        )
        self._position = position
        self._slots = torch.arange(capacity, device=position.device)

    def load(self, old: KVCache, position: int) -> None:
        """Copy the entries of `old`, after `position` tokens."""
        capacity = len(self._slots)
        count = min(position, capacity, old.length)
        slots = torch.arange(position - count, position, device=self._slots.device) % capacity
        for buffer, part in zip(self._buffers, old.entries(), strict=True):
            buffer.zero_().index_copy_(2, slots, part[:, :, old.length - count :])

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise and add keys and values [S, G, 1, D]; returns all slots, as `KVCache.append`."""
        slot = self._position % len(self._slots)
        new = (*quantise_heads(k, self._levels), *quantise_heads(v, self._levels))
        for buffer, part in zip(self._buffers, new, strict=True):
            buffer.index_copy_(2, slot, part)
        self.masked = self._slots > self._position
        keys, key_scale, values, value_scale = self._buffers
        return keys, key_scale, values, value_scale


def storage_dtype(levels: float) -> torch.dtype:
    """The type that stores quantised queries, keys and values, and exact sums of products."""
    return torch.float32 if levels == ops.KEY_LEVELS else torch.float64


def quantise_heads(x: Tensor, levels: float) -> tuple[Tensor, Tensor]:
    """x [S, H, T, D] → (integers [S, H, T, D], scales [S, H, T])."""
    integers, scale = ops.quantise(x, levels)
    return integers.to(storage_dtype(levels)), scale[..., 0]


def attend(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    window: int | None,
    scaling: float | None = None,
    masked: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last T of n positions.

    q [S, H, T, D] with scales [S, H, T]; k, v [S, G, n, D] with scales [S, G, n] → float32
    [S, H, T, D]. With a sliding `window`, a query sees itself and the `window - 1` keys before it.
    `scaling` of the scores is 1 / √D by default. For decode steps, `masked` bool [n] may replace
    the causal mask; masked keys must have value scales of 0.
    """
    streams, heads, count, head_dim = q.shape
    groups, keys = k.shape[1], k.shape[2]
    if count > 1 and heads * count * keys > _MAX_SCORES:
        half = count // 2
        seen = keys - count + half
        parts = (
            (q[:, :, :half], q_scale[:, :, :half], k[:, :, :seen], k_scale[:, :, :seen],
             v[:, :, :seen], v_scale[:, :, :seen]),
            (q[:, :, half:], q_scale[:, :, half:], k, k_scale, v, v_scale),
        )  # fmt: skip
        return torch.cat([attend(*part, window, scaling) for part in parts], 2)
    k_steps = k_scale * tables.score_scale(head_dim**-0.5 if scaling is None else scaling)
    top = _visible_maximum(v_scale, count, window)
    if masked is None:
        masked = _causal_mask(count, keys, window, q.device)
    out = torch.empty(q.shape, device=q.device)
    per_stream = heads * count * keys
    step = max(1, _BLOCK // per_stream)
    shared = (heads // groups) * count
    for s in range(0, streams, step):
        part = slice(s, min(s + step, streams))
        width = part.stop - part.start
        scores = q[part].reshape(width, groups, shared, head_dim) @ k[part].transpose(-1, -2)
        scores = scores.float().mul_(k_steps[part, :, None])
        scores = scores.view(width, groups, heads // groups, count, keys)
        if masked is not None:
            scores.masked_fill_(masked, float("-inf"))
        scale = q_scale[part].view(width, groups, heads // groups, count, 1)
        weights = _softmax_weights(scores, scale)
        # float64 holds the sum of any number of 16-bit weights exactly
        total = weights.sum(-1, keepdim=True, dtype=torch.int64).float()
        bound = top[part, :, None, :, None]
        p = torch.mul(weights, v_scale[part, :, None, None]).mul_(_P_UNIT / (total * bound))
        # Σ p ≤ 2^16 + n/2, so Σ p·|v| ≤ 127 · (2^16 + n/2) < 2^24: exact in float32,
        # and with 15-bit values in float64
        mixed = (p.round_().view(width, groups, shared, keys).to(v.dtype) @ v[part]).float()
        mixed = mixed.view(width, groups, heads // groups, count, head_dim)
        out[part] = mixed.mul_(bound * (1 / _P_UNIT)).view(width, heads, count, head_dim)
    return out


def _softmax_weights(scores: Tensor, scale: Tensor) -> Tensor:
    """Scores (overwritten) in table steps per unit of `scale` → int32 weights up to 2^16."""
    best = scores.amax(-1, keepdim=True)
    steps = torch.sub(best, scores, out=scores).mul_(scale).round_()
    steps.nan_to_num_(nan=float(tables.EXP2_CUTOFF)).clamp_(max=float(tables.EXP2_CUTOFF))
    return ops.lookup(tables.attention_weights(), steps)


def _causal_mask(count: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [T, n], True where a query must not see a key; None if every query sees all keys."""
    if count == 1 and (window is None or keys <= window):
        return None
    query = torch.arange(keys - count, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    masked = key > query
    if window is not None:
        masked |= key <= query - window
    return masked


def _visible_maximum(scale: Tensor, count: int, window: int | None) -> Tensor:
    """Scales [S, G, n] → [S, G, T or 1], the largest among the keys that each query sees."""
    if count == 1:  # the cache gives a single query no key but those it sees
        return scale.amax(-1, keepdim=True)
    if window is None:
        return scale.cummax(-1).values[..., -count:]
    padded = torch.nn.functional.pad(scale, (max(0, window - 1 + count - scale.shape[-1]), 0))
    return padded[..., -(window - 1 + count) :].unfold(-1, window, 1).amax(-1)
