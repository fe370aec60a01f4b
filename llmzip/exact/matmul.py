"""Exact matrix products of 8-bit integers with the instruction VPDPBUSD (AVX512-VNNI).

VPDPBUSD multiplies 16 groups of 4 unsigned bytes by 4 signed ones and adds the products of each
group to a 32-bit integer. LLVM does not generate it from numba's loops, so an intrinsic inlines it:
a whole step of a model then runs without returning to Python. Weights are stored as w + 128, in the
order in which they are read; sums start at -128 · Σ q of the row, which compensates for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from llmzip.compiled import compiled

_LANES = 16  # outputs of one instruction: a block
_OFFSET = 128
_PAIR = 2  # blocks that are worked on together
MULTIPLE = _PAIR * _LANES  # outputs come in multiples of it


def available() -> bool:
    """Whether numba compiles for a processor that has the instruction."""
    try:
        features = cpu_target.target_context.codegen()._get_host_cpu_features()
    except AttributeError:  # another version of numba, which hides it elsewhere
        return False
    return "+avx512vnni" in str(features)


def fits(weight: np.ndarray) -> bool:
    """Whether int8 weights [N, K] can be packed."""
    outputs, inputs = weight.shape
    return bool(outputs % MULTIPLE == 0 and inputs % 4 == 0)


def pack(weight: np.ndarray) -> np.ndarray:
    """int8 weights [..., N, K] → uint8 [..., N / 16, K / 4, 64]."""
    *before, n, k = weight.shape
    shifted = (weight.view(np.uint8) ^ np.uint8(_OFFSET)).reshape(*before, -1, _LANES, k // 4, 4)
    return np.ascontiguousarray(np.moveaxis(shifted, -3, -2)).reshape(*before, n // 16, k // 4, 64)


@compiled
def multiply(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """int8 [R, K] · packed weights [N / 16, K / 4, 64] → int32 [R, N]."""
    rows, (blocks, quads, _) = len(q), weight.shape
    total = np.empty((rows, blocks * _LANES), dtype=np.int32)
    starts = np.empty(rows, dtype=np.int32)
    for r in range(rows):
        sum = np.int32(0)
        for k in range(q.shape[1]):
            sum = np.int32(sum + np.int32(q[r, k]))
        starts[r] = np.int32(-_OFFSET * sum)
    x, y, start = q.ctypes.data, total.ctypes.data, starts.ctypes.data
    stride, pitch, size = q.shape[1], blocks * _LANES * 4, quads * 64
    for b in range(0, blocks, _PAIR):
        w = weight.ctypes.data + b * size
        out = y + b * _LANES * 4
        r = 0
        while rows - r >= 8:
            _eight(
                x + r * stride, stride, w, 64, size, quads, start + 4 * r, out + r * pitch, pitch
            )
            r += 8
        if rows - r >= 4:
            _four(x + r * stride, stride, w, 64, size, quads, start + 4 * r, out + r * pitch, pitch)
            r += 4
        if rows - r == 3:
            _three(
                x + r * stride, stride, w, 64, size, quads, start + 4 * r, out + r * pitch, pitch
            )
        elif rows - r == 2:
            _two(x + r * stride, stride, w, 64, size, quads, start + 4 * r, out + r * pitch, pitch)
        elif rows - r == 1:
            _one(x + r * stride, stride, w, 64, size, quads, start + 4 * r, out + r * pitch, pitch)
    return total


@compiled
def weighted_sum(p: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 [R, n] · int8 values [n / 4, D, 4] → int32 [R, D]."""
    rows, (quads, dim, _) = len(p), values.shape
    total = np.empty((rows, dim), dtype=np.int32)
    starts = np.zeros(rows, dtype=np.int32)
    x, y, start = p.ctypes.data, total.ctypes.data, starts.ctypes.data
    stride, pitch, step = p.shape[1], dim * 4, dim * 4
    for d in range(0, dim, MULTIPLE):
        v = values.ctypes.data + d * 4
        out = y + d * 4
        r = 0
        while rows - r >= 8:
            _eight_p(x + r * stride, stride, v, step, 64, quads, start, out + r * pitch, pitch)
            r += 8
        if rows - r >= 6:
            _six_p(x + r * stride, stride, v, step, 64, quads, start, out + r * pitch, pitch)
            r += 6
        if rows - r >= 4:
            _four_p(x + r * stride, stride, v, step, 64, quads, start, out + r * pitch, pitch)
            r += 4
        while rows - r >= 2:  # there are two for each head
            _two_p(x + r * stride, stride, v, step, 64, quads, start, out + r * pitch, pitch)
            r += 2
    return total


def _tile(rows: int, signed: bool = True) -> Callable[..., Any]:
    """An intrinsic that multiplies `rows` rows by one pair of blocks, with sums in registers.

    Its arguments are addresses and strides in bytes: x, its stride; weights, their stride between
    groups of 4 inputs, and between blocks; K / 4; start of each row's sums; output, its stride.
    If `signed`, x is signed and the weights are unsigned; otherwise the reverse.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, stride, weights, step, size, quads, starts, out, pitch = arguments
        lane, vector = ir.IntType(32), ir.VectorType(ir.IntType(32), _LANES)
        number = ir.IntType(64)
        vpdpbusd = builder.module.declare_intrinsic(
            "llvm.x86.avx512.vpdpbusd.512", (), ir.FunctionType(vector, [vector, vector, vector])
        )

        def load(address: Any, kind: Any) -> Any:
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

        def broadcast(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane(0))
            mask = ir.Constant(ir.VectorType(lane, _LANES), [0] * _LANES)
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)

        def plus(address: Any, step: Any, count: int) -> Any:
            return builder.add(address, builder.mul(step, number(count)))

        initial = [broadcast(load(plus(starts, number(4), r), lane)) for r in range(rows)]
        before = builder.block
        loop = builder.append_basic_block("quads")
        after = builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(number)
        i.add_incoming(number(0), before)
        sums = []
        for r in range(rows):
            for _ in range(_PAIR):
                phi = builder.phi(vector)
                phi.add_incoming(initial[r], before)
                sums.append(phi)
        at = builder.add(weights, builder.mul(i, step))
        w = [load(plus(at, size, b), vector) for b in range(_PAIR)]
        at = builder.add(x, builder.mul(i, number(4)))
        updated = []
        for r in range(rows):
            inputs = broadcast(load(plus(at, stride, r), lane))
            for b in range(_PAIR):
                factors = [w[b], inputs] if signed else [inputs, w[b]]  # the second is signed
                updated.append(builder.call(vpdpbusd, [sums[r * _PAIR + b], *factors]))
        next_i = builder.add(i, number(1))
        i.add_incoming(next_i, loop)
        for phi, value in zip(sums, updated, strict=True):
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", next_i, quads), loop, after)
        builder.position_at_end(after)
        for r in range(rows):
            for b in range(_PAIR):
                address = plus(plus(out, pitch, r), number(64), b)
                pointer = builder.inttoptr(address, vector.as_pointer())
                builder.store(updated[r * _PAIR + b], pointer, align=1)
        return context.get_dummy_value()

    def tile(
        typing: Any, x: Any, stride: Any, weights: Any, step: Any, size: Any, quads: Any,
        starts: Any, out: Any, pitch: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 9), generate

    inlined: Callable[..., Any] = intrinsic(tile)
    return inlined


_one, _two, _three, _four, _eight = (_tile(rows) for rows in (1, 2, 3, 4, 8))
_two_p, _four_p, _six_p, _eight_p = (_tile(rows, signed=False) for rows in (2, 4, 6, 8))
