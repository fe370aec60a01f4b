"""Bit patterns of float32 inside of numba's loops, which stay vectorised.

Numba has no operation for them on single numbers, and shifts 32-bit integers as 64-bit ones, for
which AVX2 has no instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from llmzip.compiled import inlined


def _bits_of(typing: Any, x: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


def _float_of(typing: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


def _shift_right(typing: Any, x: Any, count: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.lshr(*arguments)

    return types.int32(types.int32, types.int32), generate


bits_of: Callable[..., Any] = intrinsic(_bits_of)  # float32 → int32
float_of: Callable[..., Any] = intrinsic(_float_of)  # int32 → float32
shift_right: Callable[..., Any] = intrinsic(_shift_right)  # int32 as unsigned, by less than 32


@inlined
def ordered(bits: Any) -> Any:
    """Patterns of floats as int32 in the order of the floats, NaN first or last; its own inverse:
    those of negative floats are in the opposite order."""
    return bits ^ shift_right(bits >> 31, 1)
