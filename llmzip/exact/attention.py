"""Integer queries, keys, values → attention output, and the cache that holds keys and values.

A query's keys depend on its position in its stream alone. Scores and outputs are integer dot
products; the softmax weights are integers from a table. Knows nothing of layers or models.

Shapes: S streams, H query heads, G key heads (H a multiple of G), T new tokens, n keys,
D head dimension. Integers are held in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmzip.exact import ops, tables

_SLACK = 128  # tokens that a sliding cache takes in before it moves its window to the front
_BLOCK = 1 << 20  # scores worked on at a time, so that they stay in a CPU's cache

_P_UNIT = 65536.0  # attention probabilities are multiples of 2^-16


class KeyValueCache:
    """Quantised keys and values of one layer for S streams, oldest first.

    With a `window`, only the last `window - 1` entries before a block are kept, in a buffer
    that is `slack` entries longer, so that moving them to the front is rare.
    """

    def __init__(
        self, streams: int, heads: int, head_dim: int, *, context: int, window: int | None
    ) -> None:
        self.window = window
        self.length = 0
        capacity = context if window is None else min(context, window + _SLACK)
        self._shape = (streams, heads, capacity, head_dim)
        self._buffers: tuple[Tensor, ...] = ()

    def _allocate(self, capacity: int, device: torch.device) -> tuple[Tensor, ...]:
        streams, heads, _, head_dim = self._shape
        full, thin = (streams, heads, capacity, head_dim), (streams, heads, capacity)
        return tuple(torch.empty(shape, device=device) for shape in (full, thin, full, thin))

    def append(self, *new: Tensor) -> tuple[Tensor, ...]:
        """Add (keys [S, G, T, D], scales [S, G, T], values, scales); return all n kept so far."""
        count = new[0].shape[2]
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
        return tuple(buffer[:, :, start : self.length] for buffer in self._buffers)


def attend(
    q: Tensor,
    q_scale: Tensor,
    k: Tensor,
    k_scale: Tensor,
    v: Tensor,
    v_scale: Tensor,
    window: int | None,
) -> Tensor:
    """Causal attention of the last T of n positions.

    q [S, H, T, D] with scales [S, H, T]; k, v [S, G, n, D] with scales [S, G, n]; → [S, H, T, D].
    With a `window`, a query sees itself and the `window - 1` keys before it.
    """
    streams, heads, count, head_dim = q.shape
    groups, keys = k.shape[1], k.shape[2]
    k_steps = k_scale * tables.score_scale(head_dim)
    top = _visible_maximum(v_scale, count, window)
    hidden = _hidden_keys(count, keys, window, q.device)
    out = torch.empty_like(q)
    per_stream = heads * count * keys
    step = max(1, _BLOCK // per_stream)
    shared = (heads // groups) * count
    for s in range(0, streams, step):
        part = slice(s, min(s + step, streams))
        width = part.stop - part.start
        scores = q[part].reshape(width, groups, shared, head_dim) @ k[part].transpose(-1, -2)
        scores.mul_(k_steps[part, :, None])
        scores = scores.view(width, groups, heads // groups, count, keys)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        scale = q_scale[part].view(width, groups, heads // groups, count, 1)
        weights = _softmax_weights(scores, scale)
        # float64 holds the sum of any number of 16-bit weights exactly
        total = weights.sum(-1, keepdim=True, dtype=torch.int64).float()
        bound = top[part, :, None, :, None]
        p = torch.mul(weights, v_scale[part, :, None, None]).mul_(_P_UNIT / (total * bound))
        # Σ p ≤ 2^16 + n/2, so Σ p·|v| ≤ 127 · (2^16 + n/2) < 2^24: exact in float32
        mixed = p.round_().view(width, groups, shared, keys) @ v[part]
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
