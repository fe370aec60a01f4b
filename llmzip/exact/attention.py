"""Integer queries, keys, values → attention output, and the cache that holds keys and values.

A query's keys depend on its position in its stream alone. Scores and outputs are integer dot
products; the softmax weights are integers from a table. Knows nothing of layers or models.

Shapes: S streams, H query heads, G key heads (H a multiple of G), T new tokens, n keys,
D head dimension. Integers are held in float32 if they have 8 bits, in float64 if 15.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmzip.exact import ops, tables

_SLACK = 128  # tokens that a sliding cache takes in before it moves its window to the front
_BLOCK = 1 << 20  # scores worked on at a time, so that they stay in a CPU's cache,
_MOST_SCORES = 1 << 25  # and never more than these, so that they fit into memory

MAX_CONTEXT = 65536  # keys whose integer sums stay exact in float32, see `attend`

_P_UNIT = 65536.0  # attention probabilities are multiples of 2^-16


class KeyValueCache:
    """Quantised keys and values of one layer for S streams, oldest first.

    With a `window`, only the last `window - 1` entries before a block are kept, in a buffer
    that is `slack` entries longer, so that moving them to the front is rare.
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
        self.window = window
        self.levels = levels
        self._dtype = held_in(levels)
        self.length = 0
        self.hidden: Tensor | None = None  # as the order of entries says it all
        capacity = context if window is None else min(context, window + _SLACK)
        self._shape = (streams, heads, capacity, head_dim)
        self._buffers: tuple[Tensor, ...] = ()

    def _allocate(self, capacity: int, device: torch.device) -> tuple[Tensor, ...]:
        streams, heads, _, head_dim = self._shape
        full, thin = (streams, heads, capacity, head_dim), (streams, heads, capacity)
        shapes = ((full, self._dtype), (thin, torch.float32)) * 2
        return tuple(torch.empty(s, dtype=dtype, device=device) for s, dtype in shapes)

    def kept(self) -> tuple[Tensor, ...]:
        """Keys, scales, values, scales of the `length` tokens in the buffers."""
        return tuple(buffer[:, :, : self.length] for buffer in self._buffers)

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise and add keys and values [S, G, T, D]; return (keys [S, G, n, D], scales
        [S, G, n], values, scales) of all n kept so far."""
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
        start = 0
        if self.window is not None:
            start = max(0, self.length - count - self.window + 1)
        keys, key_scale, values, value_scale = (
            buffer[:, :, start : self.length] for buffer in self._buffers
        )
        return keys, key_scale, values, value_scale


class RingCache:
    """The same for single steps in buffers that never move, so that a GPU can replay a step.

    Entries stand in any order, as no sum depends on it: the token at position p takes the slot
    p mod capacity. All slots are attended to; `hidden` tells which are empty yet.
    """

    def __init__(self, old: KeyValueCache, capacity: int, position: Tensor) -> None:
        """Capacity is the window, or else the context; `position`, int64 [1] on the device, is
        that of the token to be appended next. `load` fills it."""
        self.window = old.window
        self._levels = old.levels
        self._buffers = tuple(
            torch.zeros((*b.shape[:2], capacity, *b.shape[3:]), dtype=b.dtype, device=b.device)
            for b in old.kept()
        )
        self._position = position
        self._slots = torch.arange(capacity, device=position.device)

    def load(self, old: KeyValueCache, position: int) -> None:
        """Take over what `old` keeps of the `position` tokens so far."""
        capacity = len(self._slots)
        count = min(position, capacity, old.length)
        slots = torch.arange(position - count, position, device=self._slots.device) % capacity
        for buffer, part in zip(self._buffers, old.kept(), strict=True):
            buffer.zero_().index_copy_(2, slots, part[:, :, old.length - count :])

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise and add keys and values [S, G, 1, D]; return all slots."""
        slot = self._position % len(self._slots)
        new = (*quantise_heads(k, self._levels), *quantise_heads(v, self._levels))
        for buffer, part in zip(self._buffers, new, strict=True):
            buffer.index_copy_(2, slot, part)
        self.hidden = self._slots > self._position
        keys, key_scale, values, value_scale = self._buffers
        return keys, key_scale, values, value_scale


def held_in(levels: float) -> torch.dtype:
    """What holds queries, keys and values of that many levels, and their products' sums."""
    return torch.float32 if levels == ops.KEY_LEVELS else torch.float64


def quantise_heads(x: Tensor, levels: float) -> tuple[Tensor, Tensor]:
    """x [S, H, T, D] → (integers [S, H, T, D], scales [S, H, T])."""
    integers, scale = ops.quantise(x, levels)
    return integers.to(held_in(levels)), scale[..., 0]


def attend(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    window: int | None,
    scaling: float | None = None,
    hidden: Tensor | None = None,
) -> Tensor:
    """Causal attention of the last T of n positions.

    q [S, H, T, D] with scales [S, H, T]; k, v [S, G, n, D] with scales [S, G, n]; → [S, H, T, D]
    in float32. With a `window`, a query sees itself and the `window - 1` keys before it.
    `scaling` of the scores is 1 / √D by default. `hidden`, bool [n], says for a single query
    which keys it must not see, in place of their order; those must have value scales of 0.
    """
    streams, heads, count, head_dim = q.shape
    groups, keys = k.shape[1], k.shape[2]
    if count > 1 and heads * count * keys > _MOST_SCORES:
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
    if hidden is None:
        hidden = _hidden_keys(count, keys, window, q.device)
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
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
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
    """Scores in table steps per unit of `scale` → int32 weights of at most 2^16, in place."""
    best = scores.amax(-1, keepdim=True)
    steps = torch.sub(best, scores, out=scores).mul_(scale).round_()
    steps.nan_to_num_(nan=float(tables.EXP2_CUTOFF)).clamp_(max=float(tables.EXP2_CUTOFF))
    return ops.look_up(tables.attention_weights(), steps)


def _hidden_keys(count: int, keys: int, window: int | None, device: torch.device) -> Tensor | None:
    """bool [T, n], True where a query must not see a key; None if every query sees all."""
    if count == 1 and (window is None or keys <= window):
        return None
    query = torch.arange(keys - count, keys, device=device)[:, None]
    key = torch.arange(keys, device=device)
    hidden = key > query
    if window is not None:
        hidden |= key <= query - window
    return hidden


def _visible_maximum(scale: Tensor, count: int, window: int | None) -> Tensor:
    """Of scales [S, G, n]: the largest among the keys that each of the last T queries sees."""
    if count == 1:  # the cache gives a single query no key but those it sees
        return scale.amax(-1, keepdim=True)
    if window is None:
        return scale.cummax(-1).values[..., -count:]
    padded = torch.nn.functional.pad(scale, (max(0, window - 1 + count - scale.shape[-1]), 0))
    return padded[..., -(window - 1 + count) :].unfold(-1, window, 1).amax(-1)
