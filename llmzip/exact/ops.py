"""Exact operations: quantisation, linear layers, norms, activations, rotary embedding.

Sums run over integers only, everything else is one IEEE-754 operation per kernel, so that no
order of summation, batch shape or thread count can change a bit. No tensor is divided by a
Python number, because some devices multiply by the rounded reciprocal instead.

Tensors are float32 unless stated otherwise; `rows` stands for any leading dimensions.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import activations, hadamard

# Lower bounds of a row's max |x| and of a weight scale. Every product of scales stays a normal
# float32, so it does not matter whether a processor flushes subnormals to zero.
ACTIVATION_FLOOR = 2.0**-64
SCALE_FLOOR = 2.0**-40

A8_LEVELS = 127.0  # activations in one limb
A16_LEVELS = 127.0 * 128  # activations in two limbs, hi·128 + lo, |hi| ≤ 127, |lo| ≤ 64
KEY_LEVELS = 127.0  # queries, keys and values, stored in float32,
WIDE_KEY_LEVELS = 127.0 * 128  # or stored in float64

_FLOAT_SLICE = 1040  # 1040 · 127 · 127 < 2^24: longer sums are not exact in float32
_CHUNK = 1 << 22  # weights that are in float32 at a time while they are quantised
_CLEARLY = 8  # times faster: no need to measure again
_NORM_LEVELS = 32768.0  # grid on which RMSNorm squares activations
_MEAN_LEVELS = 8388608.0  # grid on which LayerNorm adds them


def require_finite(tensor: Tensor, name: str) -> None:
    """Raises UnsupportedModel if a floating-point tensor holds NaN or an infinity."""
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UnsupportedModel(f"{name} holds values that are not finite")


def quantise(x: Tensor, levels: float) -> tuple[Tensor, Tensor]:
    """x [rows, K] → (integers in float32 [rows, K], scale [rows, 1]); x ≈ integers · scale.

    `levels`: the largest integer.
    """
    scale = row_absmax(x).mul_(1 / levels)
    return torch.div(x, scale).round_(), scale


def row_absmax(x: Tensor) -> Tensor:
    """max |x| of each row, [rows, 1], never below ACTIVATION_FLOOR. NaN stays NaN."""
    return x.abs().amax(-1, keepdim=True).clamp_min_(ACTIVATION_FLOOR)


def quantise_weight(weight: Tensor, block: int = 1) -> tuple[Tensor, Tensor]:
    """A weight [N, K] of any float type → (int8 [N, K], scale [N]), after the Hadamard transform
    of order `block`."""
    integers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), device=weight.device)
    rows = max(1, _CHUNK // weight.shape[1])
    for i in range(0, len(weight), rows):
        part = hadamard.transform_weight(weight[i : i + rows].float(), block)
        torch.mul(part.abs().amax(1), 1 / 127.0, out=scale[i : i + rows]).clamp_min_(SCALE_FLOOR)
        integers[i : i + rows] = torch.div(part, scale[i : i + rows, None]).round_()
    return integers, scale


def _multiply_float(x: Tensor, weight: Tensor) -> Tensor:
    """Integers in float32 [M, K] · [N, K]ᵀ → exact sums in float32 or float64 [M, N]."""
    if x.shape[1] <= _FLOAT_SLICE:
        return x @ weight.T
    slices = range(0, x.shape[1], _FLOAT_SLICE)
    parts = (x[:, k : k + _FLOAT_SLICE] @ weight[:, k : k + _FLOAT_SLICE].T for k in slices)
    total = next(parts).double()
    for part in parts:
        total += part
    return total


def _multiply_int8(x: Tensor, weight: Tensor) -> Tensor:
    """Integers of at most 8 bits [M, K] · int8 [N, K]ᵀ → int32 [M, N], by int8 instructions."""
    if not x.is_cuda:
        return torch._int_mm(x.to(torch.int8), weight.T)
    # CUDA needs more than 16 rows and multiples of 8 in the other dimensions; pad with zeros
    rows, columns = x.shape[0], weight.shape[0]
    inner, outer = -x.shape[1] % 8, -columns % 8
    x = torch.nn.functional.pad(x.to(torch.int8), (0, inner, 0, max(0, 17 - rows)))
    if inner or outer:
        weight = torch.nn.functional.pad(weight, (0, inner, 0, outer))
    return torch._int_mm(x, weight.T)[:rows, :columns]


@cache
def int8_is_faster(device_type: str) -> bool:
    """Whether int8 products are exact and faster than float32 ones on this device.

    Measured once per process. Processors without int8 dot products run `torch._int_mm` many
    times slower; some saturate sums of two products, which operands of ±127 reveal.
    """
    device = torch.device(device_type)
    x = torch.full((128, 256), 127.0, device=device)
    x[:, ::3] = -127.0
    weight = torch.full((1024, 256), 127.0, device=device)
    weight[:, ::3] = -127.0
    weight8 = weight.to(torch.int8)
    try:
        if not torch.equal(_multiply_int8(x, weight8).float(), _multiply_float(x, weight)):
            return False
    except (RuntimeError, NotImplementedError):
        return False
    if device.type != "cpu":
        return True
    # the best of several alternating runs, since other processes disturb both
    seconds = [float("inf"), float("inf")]
    for run in range(8):
        for i, (multiply, w) in enumerate(((_multiply_int8, weight8), (_multiply_float, weight))):
            start = time.perf_counter()
            multiply(x, w)
            seconds[i] = min(seconds[i], time.perf_counter() - start)
        if run > 1 and max(seconds) > _CLEARLY * min(seconds):
            break
    return seconds[0] < seconds[1]


class Linear:
    """y = x · Wᵀ over integers, W int8 [N, K] with one scale per output row, optional bias [N].

    The exact integer sum is rounded to float32 once, multiplied by the scale of the input row,
    then by the scale of the weight row; the bias is added last. Inputs take the Hadamard transform
    of order `block`, as the weights did.
    """

    def __init__(
        self,
        weight: Tensor,
        scale: Tensor,
        *,
        levels: float,
        bias: Tensor | None = None,
        block: int = 1,
        int8: bool | None = None,
    ) -> None:
        """`levels` of quantised inputs; `int8`: use int8 instructions (None: if they are faster),
        which changes no bit."""
        assert weight.dtype == torch.int8
        assert scale.shape == weight.shape[:1]
        self.int8 = int8_is_faster(weight.device.type) if int8 is None else int8
        self.weight = weight if self.int8 else weight.float()
        self.scale, self.bias, self.levels, self.block = scale, bias, levels, block

    def multiply(self, x: Tensor) -> Tensor:
        """Integers of at most 8 bits [M, K], of any type → exact sums [M, N], in int32, float32 or
        float64."""
        if self.int8:
            return _multiply_int8(x, self.weight)
        return _multiply_float(x.float(), self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, K] → [rows, N]."""
        rows = x.shape[:-1]
        x = hadamard.transform(x.reshape(-1, x.shape[-1]), self.block)
        q, scale = quantise(x, self.levels)
        if self.levels == A8_LEVELS:
            total = self.multiply(q)
        else:
            high = torch.mul(q, 1 / 128).round_()
            low = q.sub_(high * 128)
            # these sums may exceed the exact integers of float32 if K is large
            wide = torch.float32 if q.shape[1] <= _FLOAT_SLICE else torch.float64
            total = self.multiply(high).to(wide).mul_(128).add_(self.multiply(low))
        y = total.float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*rows, -1)


def sqrt(x: Tensor) -> Tensor:
    """√x, correctly rounded; torch's own is not where it calls MKL on an AMD CPU.

    A float64 root rounds to the right float32 even if its own last bits are wrong: roots of
    24-bit numbers are at least 2^-49, relatively, away from a rounding boundary.
    """
    return x.double().sqrt_().float()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / √(mean(x²) + ε) · weight (Zhang and Sennrich, 2019), squares summed on a grid.

    x [rows, K], weight [K] → [rows, K].
    """
    maximum = row_absmax(x)
    squares = torch.mul(x, _NORM_LEVELS / maximum).round_().square_()
    # float32 integers up to 2^30, added in float64: every partial sum is exact
    total = squares.sum(-1, keepdim=True, dtype=torch.float64)
    unit = maximum * (1 / _NORM_LEVELS)
    mean = (total * (1 / x.shape[-1])).float() * unit * unit
    return torch.mul(x, 1.0 / sqrt(mean + epsilon)).mul_(weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """(x - mean) / √(variance + ε) · weight + bias (Ba et al., 2016), sums taken on a grid.

    x [rows, K], weight and bias [K] → [rows, K].
    """
    maximum = row_absmax(x)
    grid = torch.mul(x, _MEAN_LEVELS / maximum).round_()
    # float32 integers up to 2^23, added in float64: every partial sum is exact
    total = grid.sum(-1, keepdim=True, dtype=torch.float64)
    mean = (total * (1 / x.shape[-1])).float() * (maximum * (1 / _MEAN_LEVELS))
    y = rms_norm(x - mean, weight, epsilon)
    return y if bias is None else y.add_(bias)


def gated_activation(x: Tensor, table: Tensor) -> Tensor:
    """x · gate(x), the gate looked up in an `activations.gate_table` at the nearest 1/1024."""
    limit = float(activations.GATE_RANGE << activations.GATE_STEP_BITS)
    step = torch.mul(x, float(1 << activations.GATE_STEP_BITS)).round_().clamp_(-limit, limit)
    return lookup(table, step.add_(limit)).mul_(x)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x), elementwise."""
    return gated_activation(x, activations.gate_table("silu"))


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for integers in float32 (overwritten); NaN reads the last entry.

    `table` must live as long as the process, as its copies on other devices do.
    """
    integers = index.nan_to_num_(nan=float(len(table) - 1)).to(torch.int32)
    return _on_device(table, index.device).index_select(0, integers.view(-1)).view(index.shape)


_copies: dict[tuple[int, torch.device], Tensor] = {}


def _on_device(table: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return table
    key = (id(table), device)
    if key not in _copies:
        _copies[key] = table.to(device)
    return _copies[key]


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves (GPT-NeoX): x [S, H, T, D], cos and sin [T, D/2] →
    [S, H, T, D]."""
    first, second = x.chunk(2, -1)
    return torch.cat([(first * cos).sub_(second * sin), (second * cos).add_(first * sin)], dim=-1)
