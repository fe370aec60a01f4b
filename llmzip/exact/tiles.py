"""Tiles of matrix products over integers, from instructions that LLVM does not make of loops.

Three instructions multiply whole numbers exactly, and so give the same sums in any order:

- VPDPBUSD (VNNI) adds 4 products of unsigned and signed bytes to each 32-bit lane;
- SDOT (ARM) adds 4 products of signed bytes to each lane;
- VPMADDWD (AVX2) makes sums of 2 products of 16-bit words, which an addition adds to each lane.

An intrinsic inlines them into numba's loops, so that a whole step of a model runs without returning
to Python. Knows nothing of models, nor of how numbers are prepared for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from llmzip.compiled import emit_prefetch
from llmzip.exact.ahead import LINE

PAIR = 2  # blocks that are worked on together, each as wide as a register of 32-bit sums
_BYTES_128, _BYTES_64 = 0x80808080, 0x40404040  # these numbers in each byte of a lane


class Instruction(NamedTuple):
    """How an instruction takes its operands."""

    name: str  # of LLVM's intrinsic
    lanes: int  # outputs of a register: a block
    group: int  # inputs that are added up in a lane; four bytes of x
    bits: int  # of an element of its operands, in LLVM's types
    offset: int = 0  # of bytes, what is added to one factor, as the instruction wants it unsigned

    @property
    def widens(self) -> bool:
        """Whether weights are bytes in memory and words in a register."""
        return self.bits == 16

    @property
    def multiple(self) -> int:
        """Outputs come in multiples of this."""
        return PAIR * self.lanes

    @property
    def block_bytes(self) -> int:
        """Bytes of one group of weights for all lanes."""
        return self.lanes * self.group


VPDPBUSD_512 = Instruction("llvm.x86.avx512.vpdpbusd.512", 16, 4, 32, offset=128)
VPDPBUSD_256 = Instruction("llvm.x86.avx512.vpdpbusd.256", 8, 4, 32, offset=128)
SDOT = Instruction("llvm.aarch64.neon.sdot.v4i32.v16i8", 4, 4, 8)
VPMADDWD = Instruction("llvm.x86.avx2.pmadd.wd", 8, 2, 16)


def interleave(weight: np.ndarray, instruction: Instruction) -> np.ndarray:
    """Weights of one byte [..., N, K] → [..., N / lanes, K / group, lanes · group], the order in
    which they are read."""
    *before, n, k = weight.shape
    lanes, group = instruction.lanes, instruction.group
    blocks = weight.reshape(*before, n // lanes, lanes, k // group, group)
    packed = np.ascontiguousarray(np.moveaxis(blocks, -3, -2))
    return packed.reshape(*before, n // lanes, k // group, lanes * group)


def supports(feature: str) -> bool:
    """Whether numba compiles for a processor that has a feature, by LLVM's name for it."""
    try:
        compiler = cpu_target.target_context.codegen()
        name, features = compiler._get_host_cpu_name(), compiler._get_host_cpu_features()
    except AttributeError:  # another version of numba, which hides it elsewhere
        return False
    if feature == "dotprod" and str(name).startswith("apple-m"):
        return True  # the name says it; LLVM may list no features there
    return f"+{feature}" in str(features).split(",")


def tile(
    instruction: Instruction,
    rows: int,
    blocks: int = PAIR,
    *,
    signed: bool = True,
    parts: int = PAIR,
) -> Callable[..., Any]:
    """An intrinsic that multiplies `rows` rows by some blocks, with sums in registers.

    Its arguments are addresses and strides in bytes: x, its stride; weights, their stride between
    groups of inputs, and between blocks; the number of groups; the sums that each row starts with,
    int32; output, its stride; the address of what is read next, and the distance between its parts.
    Of each of the `parts`, as many bytes as a block has are fetched into the second cache: the
    processor does not do so by itself across the pages of the memory, which are as long as blocks,
    and the first cache is too small for a pair. Of bytes, x is signed, and weights have the
    instruction's offset; if not `signed`, x is unsigned, and weights are signed.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, stride, weights, step, size, groups, starts, out, pitch, far, apart = arguments
        lane, number = ir.IntType(32), ir.IntType(64)
        vector = ir.VectorType(lane, instruction.lanes)
        multiply_add = _multiply_add(builder, instruction, vector)

        def load(address: Any, kind: Any) -> Any:
            return builder.load(builder.inttoptr(address, kind.as_pointer()), align=1)

        def broadcast(value: Any) -> Any:
            first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane(0))
            mask = ir.Constant(ir.VectorType(lane, instruction.lanes), [0] * instruction.lanes)
            return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), mask)

        def plus(address: Any, step: Any, count: int) -> Any:
            return builder.add(address, builder.mul(step, number(count)))

        def load_weights(address: Any) -> Any:
            if not instruction.widens:
                return load(address, vector)
            count = instruction.block_bytes
            narrow = load(address, ir.VectorType(ir.IntType(8), count))
            return builder.sext(narrow, ir.VectorType(ir.IntType(16), count))

        # an instruction of signed bytes takes x - 128; 128 times the weights are added in the end
        shifted = not signed and not instruction.offset
        if shifted:
            flip = ir.Constant(lane, _BYTES_128)
            half = ir.Constant(vector, [_BYTES_64] * instruction.lanes)

        initial = [broadcast(load(plus(starts, number(4), r), lane)) for r in range(rows)]
        before = builder.block
        loop = builder.append_basic_block("groups")
        after = builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        i = builder.phi(number)
        i.add_incoming(number(0), before)
        sums = []
        for r in range(rows):
            for _ in range(blocks):
                phi = builder.phi(vector)
                phi.add_incoming(initial[r], before)
                sums.append(phi)
        extra = [builder.phi(vector) for _ in range(blocks if shifted else 0)]
        for phi in extra:
            phi.add_incoming(ir.Constant(vector, [0] * instruction.lanes), before)
        at = builder.add(weights, builder.mul(i, step))
        w = [load_weights(plus(at, size, b)) for b in range(blocks)]
        per_line = max(1, LINE // instruction.block_bytes)
        begins = builder.and_(i, number(per_line - 1))
        with builder.if_then(builder.icmp_signed("==", begins, number(0))):
            line = builder.add(far, builder.mul(i, number(instruction.block_bytes)))
            for part in range(parts):
                emit_prefetch(builder, plus(line, apart, part), level=2)
        at = builder.add(x, builder.mul(i, number(4)))
        updated = []
        for r in range(rows):
            group = load(plus(at, stride, r), lane)
            inputs = broadcast(builder.xor(group, flip) if shifted else group)
            for b in range(blocks):
                factors = (w[b], inputs) if signed else (inputs, w[b])  # the second is signed
                updated.append(multiply_add(sums[r * blocks + b], *factors))
        sums += extra
        updated += [multiply_add(extra[b], w[b], half) for b in range(len(extra))]
        next_i = builder.add(i, number(1))
        i.add_incoming(next_i, builder.block)
        for phi, value in zip(sums, updated, strict=True):
            phi.add_incoming(value, builder.block)
        builder.cbranch(builder.icmp_signed("<", next_i, groups), loop, after)
        builder.position_at_end(after)
        for r in range(rows):
            for b in range(blocks):
                address = plus(plus(out, pitch, r), number(4 * instruction.lanes), b)
                pointer = builder.inttoptr(address, vector.as_pointer())
                result = updated[r * blocks + b]
                if shifted:  # twice 64
                    rest = updated[rows * blocks + b]
                    result = builder.add(result, builder.add(rest, rest))
                builder.store(result, pointer, align=1)
        return context.get_dummy_value()

    def typed(
        typing: Any, x: Any, stride: Any, weights: Any, step: Any, size: Any, groups: Any,
        starts: Any, out: Any, pitch: Any, far: Any, apart: Any,
    ) -> Any:  # fmt: skip
        return types.void(*[types.int64] * 11), generate

    inlined: Callable[..., Any] = intrinsic(typed)
    return inlined


def _multiply_add(builder: Any, instruction: Instruction, vector: Any) -> Callable[..., Any]:
    """(sums, factors, factors) → sums + products, as LLVM's code."""
    bits = instruction.bits
    factors = ir.VectorType(ir.IntType(bits), instruction.lanes * 32 // bits)
    taken = [factors] * 2 if instruction.widens else [vector, factors, factors]
    kind = ir.FunctionType(vector, taken)
    dot = builder.module.declare_intrinsic(instruction.name, (), kind)

    def multiply_add(sums: Any, a: Any, b: Any) -> Any:
        operands = [x if x.type == factors else builder.bitcast(x, factors) for x in (a, b)]
        if instruction.widens:
            return builder.add(sums, builder.call(dot, operands))
        return builder.call(dot, [sums, *operands])

    return multiply_add
