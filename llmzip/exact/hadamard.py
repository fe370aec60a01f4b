"""Walsh–Hadamard transform of activations and weights, which spreads outliers over channels.

A transformer's activations have a few channels that are tens of times larger than all others, and
a row's 8-bit grid is as coarse as its largest value wants it. With H the Hadamard matrix of order
B, symmetric and H · H = B · I, W · x = (W · H / B) · (H · x): the same product, between rows whose
values are all of about one size (QuIP, QuaRot). The weights are transformed when they are
quantised, the activations just before.

A row of K numbers is taken as a matrix [B, K / B], of which the columns are transformed, in log2 B
stages of K / 2 sums and differences each. Each stage is elementwise, so that the order of
operations is fixed; the compiled form and that of torch give the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from llmzip.compiled import compiled

_LARGEST = 64  # blocks of 512 gain nothing measurable (docs/exactness.md)


def block_of(size: int) -> int:
    """The order B for rows of `size` numbers: the largest power of two that divides it, bounded."""
    return min(_LARGEST, size & -size)


def transform(x: Tensor, block: int) -> Tensor:
    """float32 [..., K] → H · x of each row, [..., K], not normalised; x itself for a block of 1."""
    if block == 1:
        return x
    if x.device.type == "cpu":
        result = x.clone(memory_format=torch.contiguous_format)
        transform_rows(result.view(-1, x.shape[-1]).numpy(), block)
        return result
    return _by_torch(x, block)


def transform_weight(weight: Tensor, block: int) -> Tensor:
    """float32 [N, K] → W · H / B; the division is exact, as B is a power of two."""
    return weight if block == 1 else transform(weight, block).mul_(1 / block)


def _by_torch(x: Tensor, block: int) -> Tensor:
    shape, height = x.shape, x.shape[-1] // block
    while height < shape[-1]:
        first, second = x.reshape(*shape[:-1], -1, 2, height).unbind(-2)
        x = torch.stack([first + second, first - second], -2).view(shape)
        height *= 2
    return x


@compiled
def transform_row(x: np.ndarray, block: int) -> None:
    """x [K] in place. Two stages at a time, as that is one pass over the row."""
    size = len(x)
    height = size // block
    while 2 * height < size:
        for start in range(0, size, 4 * height):
            a, b = x[start : start + height], x[start + height : start + 2 * height]
            c = x[start + 2 * height : start + 3 * height]
            d = x[start + 3 * height : start + 4 * height]
            for i in range(height):
                p, q, r, s = a[i] + b[i], a[i] - b[i], c[i] + d[i], c[i] - d[i]
                a[i], b[i], c[i], d[i] = p + r, q + s, p - r, q - s
        height *= 4
    if height < size:
        a, b = x[:height], x[height:]
        for i in range(height):
            p, q = a[i], b[i]
            a[i], b[i] = p + q, p - q


@compiled
def transform_rows(x: np.ndarray, block: int) -> None:
    """x [R, K] in place."""
    for r in range(len(x)):
        transform_row(x[r], block)
