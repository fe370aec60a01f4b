"""Single exact operations inside Triton kernels, bits as `ops` and `softmax` define them.

Division and root are the correctly rounded ones; Triton's own `/` is approximate on GPUs. Kernels
are launched without contraction (`OPTIONS`). Knows nothing of models.
"""

from decimal import Decimal

import triton
import triton.language as tl

from llmzip.exact import activations, ops, tables

OPTIONS = {"enable_fp_fusion": False}  # of every launch: a·b + c takes two roundings

FLOOR = tl.constexpr(ops.ACTIVATION_FLOOR)
A8 = tl.constexpr(tables.nearest_float32(Decimal(1) / 127))
GATE_STEPS = tl.constexpr(float(1 << activations.GATE_STEP_BITS))
GATE_LIMIT = tl.constexpr(float(activations.GATE_RANGE << activations.GATE_STEP_BITS))
BELOW = tl.constexpr(tables.EXP2_CUTOFF - 0.5)
BEYOND = tl.constexpr(float(tables.EXP2_CUTOFF + (1 << tables.EXP2_STEP_BITS)))
# adding and taking away 1.5 · 2^23 rounds half to even what is below 2^22
ROUNDER = tl.constexpr(12582912.0)
SIGN_OFF = tl.constexpr(0x7FFFFFFF)
ROUNDER_BITS = tl.constexpr(0x4B400000)
UNIT_BITS = tl.constexpr(0x4B000000)  # of 2^23
CENTER = tl.constexpr(float((1 << 23) + tables.EXP2_CENTER))
C0, C1, C2, C3, C4, C5 = (tl.constexpr(c) for c in tables.EXP2_POLYNOMIAL)


@triton.jit
def round_even(x):
    """Half to even, for |x| < 2^22."""
    return (x + ROUNDER) - ROUNDER


@triton.jit
def reciprocal(x):
    """1 ÷ x, correctly rounded."""
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


@triton.jit
def ordered(x):
    """Integers in the order of floats; also their inverse, of the bits of floats. NaN is last."""
    return x ^ ((x >> 31) & SIGN_OFF)


@triton.jit
def absmax(x):
    """max |x| of each row [R, K] → [R], floored; by bit patterns, so that NaN stays NaN."""
    bits = x.to(tl.int32, bitcast=True) & SIGN_OFF
    top = tl.max(bits, 1).to(tl.float32, bitcast=True)
    return tl.where(top < FLOOR, FLOOR, top)


@triton.jit
def quantised(x):
    """Rows [R, K] → integers int8 [R, K], scales [R]. See `ops.quantise`."""
    scale = absmax(x) * A8
    q = round_even(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)))
    return q.to(tl.int32).to(tl.int8), scale


@triton.jit
def transformed(x, R: tl.constexpr, B: tl.constexpr, C: tl.constexpr):
    """Rows [R, B · C] → H · x, H of order B over elements at distance C. See `hadamard`."""
    for stage in tl.static_range(7):
        if (1 << stage) < B:
            pairs = tl.reshape(x, [R, (B >> stage) // 2, 2, C << stage])
            a, b = tl.split(tl.permute(pairs, (0, 1, 3, 2)))
            x = tl.reshape(tl.permute(tl.join(a + b, a - b), (0, 1, 3, 2)), [R, B * C])
    return x


@triton.jit
def gated(gate, up, table):
    """silu(gate) · up, silu by its table. See `ops.gated_activation`."""
    step = gate * GATE_STEPS
    step = tl.where(step < GATE_LIMIT, step, GATE_LIMIT)  # NaN, too
    step = tl.where(step > -GATE_LIMIT, step, -GATE_LIMIT)
    index = (round_even(step) + GATE_LIMIT).to(tl.int32)
    return tl.load(table + index) * gate * up


@triton.jit
def exp2_weight(distance):
    """Distances below the best score, in table steps → int32 weights, as
    `tables.attention_weights`. See `softmax._exp2_weight`."""
    bits = (tl.where(distance < BELOW, distance, BEYOND) + ROUNDER).to(tl.int32, bitcast=True)
    x = ((bits & 1023) | UNIT_BITS).to(tl.float32, bitcast=True) - CENTER
    y = ((((C5 * x + C4) * x + C3) * x + C2) * x + C1) * x + (C0 + ROUNDER)
    return (y.to(tl.int32, bitcast=True) - ROUNDER_BITS) >> ((bits >> 10) & 31)
