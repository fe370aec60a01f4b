"""The mixer's inner product, in vectors of eight 32-bit integers.

LLVM unrolls a loop over 40 inputs before it vectorises, and then leaves half of it scalar.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as untyped
from numba.extending import intrinsic

cgutils: Any = untyped
_LANES = 8
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_INT, _LANES)


def _load(builder: Any, address: Any, i: Any) -> Any:
    pointer = builder.inttoptr(address, _VECTOR.as_pointer())
    return builder.load(builder.gep(pointer, [i]), align=4)


def _typed_product(typing: Any, weights: Any, inputs: Any, count: Any) -> Any:
    """The sum of weights[i] · inputs[i] >> 8, modulo 2^32, of `count` int32 at two addresses, a
    multiple of 8."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        *addresses, count = arguments
        shift = ir.Constant(_VECTOR, [8] * _LANES)
        sums = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0] * _LANES))
        with cgutils.for_range(builder, builder.lshr(count, count.type(3))) as loop:
            product = builder.mul(*(_load(builder, address, loop.index) for address in addresses))
            builder.store(builder.add(builder.load(sums), builder.ashr(product, shift)), sums)
        total = builder.load(sums)
        kind = ir.FunctionType(_INT, [_VECTOR])
        reduce = builder.module.declare_intrinsic("llvm.vector.reduce.add.v8i32", (), kind)
        return builder.call(reduce, [total])

    return types.int32(types.int64, types.int64, types.int64), generate


inner_product: Any = intrinsic(_typed_product)
