"""Rows of activations between two products → 8-bit rows and their scales, by Triton kernels.

The forms of `exact.rows`, a program a few rows. A row of K numbers is a matrix [B, K / B], B the
order of its Hadamard transform; the tile is padded to powers of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmzip.exact.gpu.arithmetic import (
    OPTIONS,
    absmax,
    gated,
    quantised,
    reciprocal,
    round_even,
    transformed,
)

_TILE = 2048  # numbers that a program holds at a time, unless a single row is longer


@triton.jit
def _columns(B: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr):
    """Columns of a row that a tile [B · C] holds, and which of them exist."""
    place = tl.arange(0, B * C)
    return (place // C) * WIDTH + place % C, place % C < WIDTH


@triton.jit
def _normed(x, weight, EPSILON: tl.constexpr, INVERSE: tl.constexpr):
    """Rows [R, K], zeros beyond them → their norms. See `ops.rms_norm`."""
    maximum = absmax(x)
    factor = reciprocal(maximum) * 32768.0
    grid = round_even(x * factor[:, None])
    total = tl.sum((grid * grid).to(tl.int32).to(tl.int64), 1)
    unit = maximum * (1.0 / 32768.0)
    mean = (total.to(tl.float64) * tl.full((), INVERSE, tl.float64)).to(tl.float32)
    inverse = reciprocal(tl.sqrt_rn(mean * unit * unit + EPSILON))
    return x * inverse[:, None] * weight[None, :]


@triton.jit
def _norm_kernel(
    x,
    weight,
    q,
    scales,
    y,
    rows,
    K: tl.constexpr,
    EPSILON: tl.constexpr,
    INVERSE: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    QUANTISE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column, real = _columns(B, C, K // B)
    mask = (row < rows)[:, None] & real[None, :]
    place = row[:, None] * K + column[None, :]
    gain = tl.load(weight + column, mask=real, other=0.0)
    normed = _normed(tl.load(x + place, mask=mask, other=0.0), gain, EPSILON, INVERSE)
    if QUANTISE:
        integers, scale = quantised(transformed(normed, R, B, C))
        tl.store(q + place, integers, mask=mask)
        tl.store(scales + row, scale, mask=row < rows)
    else:
        tl.store(y + place, normed, mask=mask)


@triton.jit
def _quantise_kernel(
    x,
    table,
    q,
    scales,
    rows,
    K: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    GATED: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    column, real = _columns(B, C, K // B)
    mask = (row < rows)[:, None] & real[None, :]
    if GATED:
        place = row[:, None] * (2 * K) + column[None, :]
        gate = tl.load(x + place, mask=mask, other=0.0)
        value = gated(gate, tl.load(x + place + K, mask=mask, other=0.0), table)
    else:
        value = tl.load(x + row[:, None] * K + column[None, :], mask=mask, other=0.0)
    integers, scale = quantised(transformed(value, R, B, C))
    tl.store(q + row[:, None] * K + column[None, :], integers, mask=mask)
    tl.store(scales + row, scale, mask=row < rows)


def _tile(width: int, block: int) -> dict[str, Any]:
    columns = triton.next_power_of_2(width // block)
    size = block * columns
    rows = max(1, _TILE // size)
    warps = max(1, min(8, rows * size // 512))
    return {"R": rows, "B": block, "C": columns, "num_warps": warps, **OPTIONS}


def _outputs(x: Tensor, width: int) -> tuple[Tensor, Tensor]:
    rows = x.shape[0]
    q = torch.empty(rows, width, dtype=torch.int8, device=x.device)
    return q, torch.empty(rows, dtype=torch.float32, device=x.device)


def norm_rows(x: Tensor, weight: Tensor, epsilon: float, block: int) -> tuple[Tensor, Tensor]:
    """float32 [R, K] → its norms as int8 [R, K] and scales [R], after Hadamard transforms."""
    q, scales = _outputs(x, x.shape[1])
    _launch_norm(x, weight, epsilon, block, q, scales, x)
    return q, scales


def final_rows(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """float32 [R, K] → its norms [R, K]."""
    y = torch.empty_like(x)
    _launch_norm(x, weight, epsilon, 1, None, x, y)
    return y


def _launch_norm(
    x: Tensor, weight: Tensor, epsilon: float, block: int, q: Tensor | None, s: Tensor, y: Tensor
) -> None:
    rows, width = x.shape
    tile = _tile(width, block)
    _norm_kernel[(triton.cdiv(rows, tile["R"]),)](
        x, weight, x if q is None else q, s, y, rows, K=width, EPSILON=epsilon,
        INVERSE=1.0 / width, QUANTISE=q is not None, **tile,
    )  # fmt: skip


def quantise_rows(x: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """float32 [R, K] → int8 [R, K] and scales [R], after Hadamard transforms."""
    rows, width = x.shape
    q, scales = _outputs(x, width)
    tile = _tile(width, block)
    _quantise_kernel[(triton.cdiv(rows, tile["R"]),)](
        x, x, q, scales, rows, K=width, GATED=False, **tile
    )
    return q, scales


def activation_rows(y: Tensor, table: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """float32 [R, 2I] → silu(gate) · up as int8 [R, I] and scales [R]; `table` of the gate."""
    rows, width = y.shape[0], y.shape[1] // 2
    q, scales = _outputs(y, width)
    tile = _tile(width, block)
    _quantise_kernel[(triton.cdiv(rows, tile["R"]),)](
        y, table, q, scales, rows, K=width, GATED=True, **tile
    )
    return q, scales
