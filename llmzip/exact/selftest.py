"""Self-test of a device: digests of the result of every exact operation.

Inputs come from integer arithmetic. The digests are part of the arithmetic profile; they were
equal on every machine and setting tried (results/).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor

from llmzip.errors import InexactDevice
from llmzip.exact import hadamard, ops, tables
from llmzip.exact.attention import attend, quantise_heads
from llmzip.exact.rotary import RotaryTable, rotary_frequencies

DIGESTS = {
    "quantise weight": "20c72428306b41d3",
    "linear a8": "e96aa36a54e9e72b",
    "linear a16": "676ab54fdae1db5f",
    "square root": "7db6f6fa198c51c6",
    "rms norm": "3adae2907b94ebd9",
    "layer norm": "0b1766c91e66db50",
    "silu": "c70bc4817d6d4e93",
    "rotate": "bba240b47be8b507",
    "attention, window None": "1ff3a62811d091a4",
    "attention, window 7": "2c6367e535eb4c49",
    "attention, wide, window None": "52ed832b81d6dccf",
    "attention, wide, window 7": "1503a5e69349e4a3",
    "linear a8, transformed": "c8840a3d743199c7",
    "Hadamard transform": "f9db7fc0271b2ca3",
    "logarithmic steps": "64cb18859e4c7094",
}


def numbers(count: int, seed: int) -> Tensor:
    """float32 [count] between -8 and 8, of magnitudes down to 2^-8, from a multiplicative
    congruential generator modulo 2^64 (multiplier by Knuth)."""
    factors = np.full(count, 6364136223846793005, dtype=np.uint64)
    state = np.multiply.accumulate(factors) * np.uint64(seed * 2 + 1)
    mantissas = (state >> np.uint64(40)).astype(np.int64) - (1 << 23)
    powers = np.float32(2.0**-20) / (1 << np.arange(8)).astype(np.float32)
    values = mantissas.astype(np.float32) * powers[state >> np.uint64(37) & np.uint64(7)]
    return torch.from_numpy(values)


def _results(device: str) -> Iterator[tuple[str, Tensor]]:
    """(name of an operation, its result on fixed inputs)."""
    x = numbers(6 * 1200, 1).view(6, 1200).to(device)
    weight, scale = ops.quantise_weight(numbers(40 * 1200, 2).view(40, 1200).to(device))
    bias, norm_bias = numbers(40, 3).to(device), numbers(1200, 5).to(device)
    yield "quantise weight", weight
    for name, levels in (("a8", ops.A8_LEVELS), ("a16", ops.A16_LEVELS)):
        linear = ops.Linear(weight, scale, levels=levels, bias=bias)
        yield f"linear {name}", linear(x)
    weight, scale = ops.quantise_weight(numbers(40 * 1200, 2).view(40, 1200).to(device), 16)
    linear = ops.Linear(weight, scale, levels=ops.A8_LEVELS, block=16)
    yield "linear a8, transformed", linear(x)
    yield "Hadamard transform", hadamard.transform(x[:, :1152], 128)
    yield "square root", ops.sqrt(x.abs())
    yield "rms norm", ops.rms_norm(x, numbers(1200, 4).to(device), 1e-6)
    yield "layer norm", ops.layer_norm(x, numbers(1200, 4).to(device), norm_bias, 1e-6)
    yield "silu", ops.silu(x)
    table = RotaryTable(rotary_frequencies({"rope_theta": 10000.0}, 16))
    cos, sin = (t.to(device) for t in table.compute(70000, 20))
    heads = ops.apply_rotary(x[:, :960].reshape(3, 6, 20, 16), cos, sin)
    yield "rotate", heads
    for levels, name in ((ops.KEY_LEVELS, ""), (ops.WIDE_KEY_LEVELS, ", wide")):
        query = quantise_heads(heads[:, :4], levels)
        keys_values = (
            *quantise_heads(heads[:, 4:], levels),
            *quantise_heads(heads[:, 1:3], levels),
        )
        for window in (None, 7):
            yield f"attention{name}, window {window}", attend(*query, *keys_values, window)
    yield "logarithmic steps", torch.mul(x, tables.log2e_times(256)).round_()


def _digest(result: Tensor) -> str:
    data = result.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def check_operations(device: str) -> dict[str, bool]:
    """Name of each operation → whether its digest is the stored one. Raises RuntimeError or
    AssertionError, as torch does, for a device that does not exist."""
    return {name: _digest(result) == DIGESTS.get(name) for name, result in _results(device)}


@cache
def require_exact(device: str) -> None:
    """Run the self-test, once per device and process. Raises InexactDevice by the names of the
    operations that deviate."""
    try:
        wrong = [name for name, right in check_operations(device).items() if not right]
    except (RuntimeError, AssertionError) as error:
        raise InexactDevice(f"device {device!r} cannot be used: {error}") from None
    if wrong:
        raise InexactDevice(
            f"arithmetic on {device!r} deviates from IEEE-754 in: {', '.join(wrong)}; "
            "archives made or read with it would not be portable (see `llmzip doctor`)"
        )
