"""The mixer's inner product, in vectors of eight 32-bit integers.

LLVM unrolls a loop over 40 inputs before it vectorises, and then leaves half of it scalar.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_LANES = 8
_INT = ir.IntType(32)
_VECTOR = ir.VectorType(_INT, _LANES)


def _load(builder: Any, address: Any, i: int) -> Any:
    pointer = builder.inttoptr(address, _VECTOR.as_pointer())
    return builder.load(builder.gep(pointer, [_INT(i)]), align=4)


def _typed_product(typing: Any, weights: Any, inputs: Any, vectors: Any) -> Any:
    """The sum of weights[i] · inputs[i] >> 8, modulo 2^32, of 8 · `vectors` int32 at two addresses;
    `vectors` is a literal."""
    count = vectors.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shift = ir.Constant(_VECTOR, [8] * _LANES)
        total = ir.Constant(_VECTOR, [0] * _LANES)
        for i in range(count):
            product = builder.mul(*(_load(builder, address, i) for address in arguments[:2]))
            total = builder.add(total, builder.ashr(product, shift))
        kind = ir.FunctionType(_INT, [_VECTOR])
        reduce = builder.module.declare_intrinsic("llvm.vector.reduce.add.v8i32", (), kind)
        return builder.call(reduce, [total])

    return types.int32(types.int64, types.int64, vectors), generate


inner_product: Any = intrinsic(prefer_literal=True)(_typed_product)
