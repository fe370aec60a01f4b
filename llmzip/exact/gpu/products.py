"""8-bit rows · 8-bit weights → float32 rows, by the int8 tensor cores of a GPU.

Sums are int32 and exact. Scales, bias and residual follow in the order of `ops.Linear`, in the same
kernel, so that sums never reach memory.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmzip.exact import ops
from llmzip.exact.gpu.arithmetic import OPTIONS

_BK = 64  # of the summed dimension, at a time; sizes are no constants, so that shapes share code
_GROUP = 8  # blocks of rows whose programs follow each other, so that weights stay in the L2 cache


@triton.jit
def _product_kernel(
    x,
    weight,
    row_scale,
    weight_scale,
    bias,
    residual,
    out,
    rows,
    N,
    K,
    WHOLE: tl.constexpr,
    BIAS: tl.constexpr,
    RESIDUAL: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    columns = (N + BN - 1) // BN
    blocks = (rows + BM - 1) // BM
    program = tl.program_id(0)
    group = program // (GROUP * columns)
    height = min(blocks - group * GROUP, GROUP)
    inside = program % (GROUP * columns)
    m = (group * GROUP + inside % height) * BM + tl.arange(0, BM)
    n = (inside // height) * BN + tl.arange(0, BN)
    k = tl.arange(0, BK)
    # rows beyond the last read row 0, and are not written
    x_row = tl.where(m < rows, m, 0).to(tl.int64)
    w_row = tl.where(n < N, n, 0)
    x_at = x + x_row[:, None] * K + k[None, :]
    w_at = weight + w_row[None, :] * K + k[:, None]
    total = tl.zeros((BM, BN), dtype=tl.int32)
    for start in range(0, K, BK):
        if WHOLE:
            a, b = tl.load(x_at), tl.load(w_at)
        else:
            left = K - start
            a = tl.load(x_at, mask=k[None, :] < left, other=0)
            b = tl.load(w_at, mask=k[:, None] < left, other=0)
        total = tl.dot(a, b, acc=total, out_dtype=tl.int32)
        x_at += BK
        w_at += BK
    y = total.to(tl.float32) * tl.load(row_scale + x_row)[:, None]
    y = y * tl.load(weight_scale + w_row)[None, :]
    if BIAS:
        y = y + tl.load(bias + w_row)[None, :]
    place = x_row[:, None] * N + n[None, :]
    mask = (m < rows)[:, None] & (n < N)[None, :]
    if RESIDUAL:
        y = tl.load(residual + place, mask=mask, other=0.0) + y
    tl.store(out + place, y, mask=mask)


@dataclass(frozen=True)
class GpuLinear:
    """The weights of an `ops.Linear`: int8 [N, K], scales [N], bias [N] or None."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    block: int  # order of the Hadamard transform of its inputs

    @classmethod
    def of(cls, linear: ops.Linear) -> "GpuLinear":
        """Shares what it can with `linear`."""
        weight = linear.weight.to(torch.int8).contiguous()
        bias = None if linear.bias is None else linear.bias.contiguous()
        return cls(weight, linear.scale.contiguous(), bias, linear.block)

    def __call__(self, q: Tensor, row_scale: Tensor, residual: Tensor | None = None) -> Tensor:
        """int8 [R, K] with scales [R] → float32 [R, N], added to `residual` in place if given."""
        rows, inner = q.shape
        outer = len(self.weight)
        out = residual
        if out is None:
            out = torch.empty(rows, outer, dtype=torch.float32, device=q.device)
        tile = _tile(rows, outer)
        grid = (triton.cdiv(rows, tile["BM"]) * triton.cdiv(outer, tile["BN"]),)
        _product_kernel[grid](
            q, self.weight, row_scale, self.scale, self.scale if self.bias is None else self.bias,
            out, out, rows, outer, inner, WHOLE=inner % _BK == 0, BIAS=self.bias is not None,
            RESIDUAL=residual is not None, **tile,
        )  # fmt: skip
        return out


def _tile(rows: int, outer: int) -> dict[str, Any]:
    """Large tiles for many rows; for few, small ones, so that there are programs enough."""
    if rows >= 4096:
        sizes, warps, stages = (128, 128), 8, 3
    elif rows >= 512:
        sizes, warps, stages = (64, 128 if outer >= 4096 else 64), 4, 4
    else:
        sizes, warps, stages = (32 if rows > 16 else 16, 64), 4, 4
    return {"BM": sizes[0], "BN": sizes[1], "BK": _BK, "GROUP": _GROUP,
            "num_warps": warps, "num_stages": stages, **OPTIONS}  # fmt: skip
