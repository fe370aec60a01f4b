"""float32 activations → float32 activations: linear layers, norms, activations, rotary embedding.

Sums run over integers alone, everything else is one IEEE-754 operation a kernel, so that no
order of summation, batch shape or thread count can change a bit. No tensor is divided by a
Python number: some devices multiply by the rounded reciprocal instead. Knows nothing of models.

Every tensor is float32 unless said otherwise; `rows` stands for any leading dimensions.
"""

from __future__ import annotations

import time
from functools import cache

import torch
from torch import Tensor

from llmzip.exact import hadamard, tables

# The smallest |max| that a row of activations is scaled by, and the smallest weight scale:
# together they keep every product of scales a normal float32, so that a processor that
# flushes subnormals to zero has nothing to flush.
ACTIVATION_FLOOR = 2.0**-64
SCALE_FLOOR = 2.0**-40

A8_LEVELS = 127.0  # activations in one limb
A16_LEVELS = 127.0 * 128  # activations in two limbs, hi·128 + lo, |hi| ≤ 127, |lo| ≤ 64
KEY_LEVELS = 127.0  # queries, keys and values, held in float32,
WIDE_KEY_LEVELS = 127.0 * 128  # or held in float64

_FLOAT_SLICE = 1040  # 1040 · 127 · 127 < 2^24: longer sums leave float32's exact integers
_WEIGHTS = 1 << 22  # that are held in float32 while they are quantised
_NORM_LEVELS = 32768.0  # RMSNorm squares activations on this grid
_MEAN_LEVELS = 8388608.0  # LayerNorm adds them on this one


def quantise(x: Tensor, levels: float) -> tuple[Tensor, Tensor]:
    """x [rows, K] → (integers in float32 [rows, K], scale [rows, 1]); x ≈ integers · scale."""
    scale = row_maximum(x).mul_(1 / levels)
    return torch.div(x, scale).round_(), scale


def row_maximum(x: Tensor) -> Tensor:
    """max |x| of each row, [rows, 1], never below ACTIVATION_FLOOR. NaN stays NaN."""
    return x.abs().amax(-1, keepdim=True).clamp_min_(ACTIVATION_FLOOR)


def quantise_weight(weight: Tensor, block: int = 1) -> tuple[Tensor, Tensor]:
    """A float weight [N, K] → (int8 [N, K], scale [N]): 8 bits per output row, after the
    Hadamard transform of order `block`."""
    integers = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), device=weight.device)
    rows = max(1, _WEIGHTS // weight.shape[1])
    for i in range(0, len(weight), rows):
        part = hadamard.transform_weight(weight[i : i + rows].float(), block)
        torch.mul(part.abs().amax(1), 1 / 127.0, out=scale[i : i + rows]).clamp_min_(SCALE_FLOOR)
        integers[i : i + rows] = torch.div(part, scale[i : i + rows, None]).round_()
    return integers, scale


def _multiply_float(x: Tensor, weight: Tensor) -> Tensor:
    """Integers [M, K] · integers [N, K]ᵀ → exact float64 or float32 [M, N], all held in floats."""
    if x.shape[1] <= _FLOAT_SLICE:
        return x @ weight.T
    slices = range(0, x.shape[1], _FLOAT_SLICE)
    parts = (x[:, k : k + _FLOAT_SLICE] @ weight[:, k : k + _FLOAT_SLICE].T for k in slices)
    total = next(parts).double()
    for part in parts:
        total += part
    return total


def _multiply_int8(x: Tensor, weight: Tensor) -> Tensor:
    """The same product by int8 instructions, int32 [M, N]."""
    if not x.is_cuda:
        return torch._int_mm(x.to(torch.int8), weight.T)
    # there, more than 16 rows are asked for, and multiples of 8 else; zeros change no sum
    rows, columns = x.shape[0], weight.shape[0]
    inner, outer = -x.shape[1] % 8, -columns % 8
    x = torch.nn.functional.pad(x.to(torch.int8), (0, inner, 0, max(0, 17 - rows)))
    if inner or outer:
        weight = torch.nn.functional.pad(weight, (0, inner, 0, outer))
    return torch._int_mm(x, weight.T)[:rows, :columns]


@cache
def int8_pays(device_type: str) -> bool:
    """Whether int8 products are exact and faster than float32 ones on this device.

    Measured once: processors without int8 dot products run `torch._int_mm` many times
    slower, and some saturate pairs of products, which operands of ±127 bring to light.
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
    # the best of several, taken in turns, as other processes disturb both
    seconds = [float("inf"), float("inf")]
    for _ in range(8):
        for way, (multiply, w) in enumerate(((_multiply_int8, weight8), (_multiply_float, weight))):
            start = time.perf_counter()
            multiply(x, w)
            seconds[way] = min(seconds[way], time.perf_counter() - start)
    return seconds[0] < seconds[1]


class Linear:
    """y = x · Wᵀ over integers, W int8 [N, K] with one scale an output row, optional bias.

    The exact integer sum is rounded to float32 once, then multiplied by the row's activation
    scale, then by the weight's scale; a bias is added last, by itself. Weights that were
    quantised with a `block` above 1 expect inputs transformed likewise, which is done here.
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
        """`int8` chooses the backend (None: the faster one); it never changes a bit."""
        assert weight.dtype == torch.int8
        assert scale.shape == weight.shape[:1]
        self.int8 = int8_pays(weight.device.type) if int8 is None else int8
        self.weight = weight if self.int8 else weight.float()
        self.scale, self.bias, self.levels, self.block = scale, bias, levels, block

    def product(self, x: Tensor) -> Tensor:
        """Integers of at most 8 bits [M, K], in any type → exact sums [M, N], in one of three."""
        if self.int8:
            return _multiply_int8(x, self.weight)
        return _multiply_float(x.float(), self.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """x [rows, K] → [rows, N]."""
        rows = x.shape[:-1]
        x = hadamard.transform(x.reshape(-1, x.shape[-1]), self.block)
        q, scale = quantise(x, self.levels)
        if self.levels == A8_LEVELS:
            total = self.product(q)
        else:
            high = torch.mul(q, 1 / 128).round_()
            low = q.sub_(high * 128)
            # int32 and float32 could overflow their exact integers here, float64 cannot
            wide = torch.float32 if q.shape[1] <= _FLOAT_SLICE else torch.float64
            total = self.product(high).to(wide).mul_(128).add_(self.product(low))
        y = total.float().mul_(scale).mul_(self.scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*rows, -1)


def root(x: Tensor) -> Tensor:
    """√x, correctly rounded, which torch's own float32 root is not where it is MKL's on an AMD CPU.

    A float64 root rounds to the right float32, even if its own last bits are wrong: roots of 24
    bits stay 2^-49 away, relatively, from where rounding turns.
    """
    return x.double().sqrt_().float()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x²) + ε) · weight, the squares summed on a grid of the row's maximum."""
    maximum = row_maximum(x)
    squares = torch.mul(x, _NORM_LEVELS / maximum).round_().square_()
    # float32 integers up to 2^30, added in float64: every partial sum is exact
    total = squares.sum(-1, keepdim=True, dtype=torch.float64)
    unit = maximum * (1 / _NORM_LEVELS)
    mean = (total * (1 / x.shape[-1])).float() * unit * unit
    return torch.mul(x, 1.0 / root(mean + epsilon)).mul_(weight)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + ε) · weight + bias; the mean is taken on a grid, too."""
    maximum = row_maximum(x)
    grid = torch.mul(x, _MEAN_LEVELS / maximum).round_()
    # float32 integers up to 2^23, added in float64: every partial sum is exact
    total = grid.sum(-1, keepdim=True, dtype=torch.float64)
    mean = (total * (1 / x.shape[-1])).float() * (maximum * (1 / _MEAN_LEVELS))
    y = rms_norm(x - mean, weight, epsilon)
    return y if bias is None else y.add_(bias)


def gated(x: Tensor, table: Tensor) -> Tensor:
    """x · gate(x), the gate read off one of `tables.gate_table` at the nearest 1/1024."""
    reach = float(tables.GATE_RANGE << tables.GATE_STEP_BITS)
    step = torch.mul(x, float(1 << tables.GATE_STEP_BITS)).round_().clamp_(-reach, reach)
    return look_up(table, step.add_(reach)).mul_(x)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    return gated(x, tables.gate_table("silu"))


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index] for integers held in floats; NaN reads the last entry."""
    whole = index.nan_to_num_(nan=float(len(table) - 1)).to(torch.int32)
    return _on_device(table, index.device).index_select(0, whole.view(-1)).view(index.shape)


_placed: dict[tuple[int, torch.device], Tensor] = {}


def _on_device(table: Tensor, device: torch.device) -> Tensor:
    """One of the tables, which live for ever, copied to a device once."""
    if device.type == "cpu":
        return table
    key = (id(table), device)
    if key not in _placed:
        _placed[key] = table.to(device)
    return _placed[key]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding by halves: x [S, H, T, D], cos and sin [T, D/2] → [S, H, T, D]."""
    first, second = x.chunk(2, -1)
    return torch.cat([(first * cos).sub_(second * sin), (second * cos).add_(first * sin)], dim=-1)
