"""Walsh–Hadamard transform of activations and weights, which spreads outliers over channels.

A transformer's activations have a few channels that are tens of times larger than all others, and
they determine the quantisation scale of a row. With H the Hadamard matrix of order B, symmetric and
H · H = B · I, W · x = (W · H / B) · (H · x): the same product, between rows whose values have
similar magnitudes (QuIP, Chee et al. 2023; QuaRot, Ashkboos et al. 2024). Weights are transformed
when they are quantised, activations just before.

A row of K numbers is taken as a matrix [B, K / B] whose columns are transformed, in log2 B stages
of K / 2 sums and differences each. Stages are elementwise, so the order of operations is fixed; the
compiled form and that of torch give the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from llmzip.compiled import address, compiled, compiled_in_place
from llmzip.exact.tiles import supports

if TYPE_CHECKING:
    from torch import Tensor

_MAX_BLOCK = 64  # blocks of 512 gain nothing measurable (docs/exactness.md)
_LANES = 16  # neighbours whose stages are done in registers, and rows likewise
_SHORT = 8  # numbers of such a row, at most
_LONGEST = _SHORT if supports("avx2") else 0  # that pays; others lack loads of some lanes alone


def block_size(size: int) -> int:
    """The order B for rows of `size` numbers: the largest power of two that divides it, up to
    64."""
    return min(_MAX_BLOCK, size & -size)


def transform(x: Tensor, block: int) -> Tensor:
    """float32 [..., K] → H · x of each row, [..., K], not normalised; x itself for a block of 1."""
    if block == 1:
        return x
    if x.device.type == "cpu":
        result = x.contiguous().clone()
        transform_rows(result.view(-1, x.shape[-1]).numpy(), block)
        return result
    return _transform_by_torch(x, block)


def transform_weight(weight: Tensor, block: int) -> Tensor:
    """float32 [N, K] → W · H / B; the division is exact, as B is a power of two."""
    return weight if block == 1 else transform(weight, block).mul_(1 / block)


def _transform_by_torch(x: Tensor, block: int) -> Tensor:
    import torch

    shape, distance = x.shape, x.shape[-1] // block
    while distance < shape[-1]:
        first, second = x.reshape(*shape[:-1], -1, 2, distance).unbind(-2)
        x = torch.stack([first + second, first - second], -2).view(shape)
        distance *= 2
    return x


def _typed_first_stages(typing: Any, address: Any) -> Any:
    """The stages of distance 1, 2, 4 and 8 of 16 float32 at an address. LLVM makes scalar code of
    loops over so near neighbours."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector, lanes = ir.VectorType(ir.FloatType(), _LANES), range(_LANES)
        pointer = builder.inttoptr(arguments[0], vector.as_pointer())

        def shuffle(x: Any, y: Any, places: list[int]) -> Any:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), places)
            return builder.shuffle_vector(x, y, mask)

        x = builder.load(pointer, align=4)
        for distance in (1, 2, 4, 8):
            other = shuffle(x, x, [i ^ distance for i in lanes])
            sums, differences = builder.fadd(x, other), builder.fsub(other, x)
            second = [i + _LANES if i & distance else i for i in lanes]
            x = shuffle(sums, differences, second)
        builder.store(x, pointer, align=4)
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _typed_stages_of_rows(typing: Any, address: Any, width: Any) -> Any:
    """The first four stages of 16 rows of `width` ≤ 8 float32, one after the other at an address. A
    row is a register, of which some lanes count: LLVM's loops over so short rows take longer than
    their sums. Longer rows, as those of `base`, would take as much code again, to be compiled."""
    lanes = _SHORT

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, width = arguments
        number, index = ir.IntType(64), ir.IntType(32)
        vector, flags = ir.VectorType(ir.FloatType(), lanes), ir.VectorType(ir.IntType(1), lanes)
        pointer = vector.as_pointer()
        kind = ir.FunctionType(vector, [pointer, index, flags, vector])
        # of lanes beyond the row nothing is read, as there may be no memory
        load = builder.module.declare_intrinsic(f"llvm.masked.load.v{lanes}f32.p0", (), kind)
        mask, nothing = ir.Constant(flags, ir.Undefined), ir.Constant(vector, [0.0] * lanes)
        for i in range(lanes):
            counts = builder.icmp_signed("<", number(i), width)
            mask = builder.insert_element(mask, counts, index(i))
        size = builder.mul(width, number(4))

        def row(base: Any, r: int) -> Any:
            return builder.inttoptr(builder.add(base, builder.mul(size, number(r))), pointer)

        x = [builder.call(load, [row(first, r), index(4), mask, nothing]) for r in range(_LANES)]
        for distance in (1, 2, 4, 8):
            for a in [r for r in range(_LANES) if not r & distance]:
                b = a + distance
                x[a], x[b] = builder.fadd(x[a], x[b]), builder.fsub(x[a], x[b])
        # whole registers are stored beside the row: what one has too much, the next overwrites
        array = ir.ArrayType(ir.FloatType(), (_LANES + 1) * lanes)
        room = cgutils.alloca_once(builder, array)  # type: ignore[no-untyped-call]
        kept = builder.ptrtoint(room, number)
        for r in range(_LANES):
            builder.store(x[r], row(kept, r), align=4)
        whole = ir.VectorType(ir.FloatType(), _LANES).as_pointer()
        with cgutils.for_range(builder, width) as loop:
            at = builder.mul(loop.index, number(4 * _LANES))
            source, target = (
                builder.inttoptr(builder.add(base, at), whole) for base in (kept, first)
            )
            builder.store(builder.load(source, align=4), target, align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


_first_stages: Any = intrinsic(_typed_first_stages)
_stages_of_rows: Any = intrinsic(_typed_stages_of_rows)


@compiled_in_place
def transform_row(x: np.ndarray, block: int) -> None:
    """Transform x float32 [K], contiguous, in place: two stages in each pass over the row, or the
    first four."""
    size = len(x)
    distance = size // block
    if distance == 1 and size >= _LANES:
        for start in range(0, size, _LANES):
            _first_stages(address(x) + 4 * start)
        distance = _LANES
    elif distance <= _LONGEST and block >= _LANES:
        for start in range(0, size, _LANES * distance):
            _stages_of_rows(address(x) + 4 * start, distance)
        distance *= _LANES
    while 2 * distance < size:
        for start in range(0, size, 4 * distance):
            a, b = x[start : start + distance], x[start + distance : start + 2 * distance]
            c = x[start + 2 * distance : start + 3 * distance]
            d = x[start + 3 * distance : start + 4 * distance]
            for i in range(distance):
                p, q, r, s = a[i] + b[i], a[i] - b[i], c[i] + d[i], c[i] - d[i]
                a[i], b[i], c[i], d[i] = p + r, q + s, p - r, q - s
        distance *= 4
    if distance < size:
        a, b = x[:distance], x[distance:]
        for i in range(distance):
            p, q = a[i], b[i]
            a[i], b[i] = p + q, p - q


@compiled
def transform_rows(x: np.ndarray, block: int) -> None:
    """Transform x float32 [R, K] in place."""
    for r in range(len(x)):
        transform_row(x[r], block)
