"""Products of 8-bit integers by each instruction: the sums that plain integers give."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from llmzip.exact import byte_products, matmul, word_products
from llmzip.exact.ahead import nothing

# odd numbers of rows and blocks, one group of inputs, inputs of the largest models
SHAPES = [(1, 4, 32), (2, 36, 64), (3, 8, 32), (4, 12, 96), (5, 100, 32), (6, 20, 64), (7, 512, 96),
          (12, 64, 64), (29, 2048, 32), (40, 20, 32), (64, 576, 160), (13, 32768, 32)]  # fmt: skip


@pytest.fixture(params=[byte_products, word_products], ids=["bytes", "words"])
def products(request: pytest.FixtureRequest) -> Any:
    if not request.param.available():
        pytest.skip("the processor lacks the instruction")
    return request.param


@pytest.mark.parametrize("values", ["extreme", "one sign", "random"])
@pytest.mark.parametrize(("rows", "inner", "outer"), SHAPES)
def test_sums_are_exact(products: Any, rows: int, inner: int, outer: int, values: str) -> None:
    chance = np.random.default_rng(rows)
    weights = {"extreme": [-128, -127, 127], "one sign": [-128], "random": range(-128, 128)}
    inputs = {"extreme": [-127, 0, 127], "one sign": [-127], "random": range(-127, 128)}
    weight = chance.choice(np.array(weights[values], dtype=np.int8), (outer, inner))
    q = chance.choice(np.array(inputs[values], dtype=np.int8), (rows, inner))
    expected = q.astype(np.int64) @ weight.T.astype(np.int64)
    buffer, total = np.empty(rows * inner // 2, np.int32), np.empty(expected.shape, np.int32)
    products.multiply_into(q, products.pack(weight), buffer, total, 0, nothing())
    assert np.array_equal(total, expected)


def test_what_is_planned_is_fetched_and_changes_no_sum(products: Any) -> None:
    chance = np.random.default_rng(4)
    q, weight = (chance.integers(-127, 128, (n, 64)).astype(np.int8) for n in (3, 256))
    buffer, total = np.empty(3 * 64 // 2, np.int32), np.empty((3, 256), np.int32)
    read_next = np.zeros(1 << 14, dtype=np.uint8)
    first, end, plan = read_next.ctypes.data, read_next.ctypes.data + 8192, nothing()
    plan[:] = first, end, 8192, 2
    while (before := plan[0]) < end:
        products.multiply_into(q, products.pack(weight), buffer, total, 0, plan)
        assert np.array_equal(total, q.astype(np.int64) @ weight.T.astype(np.int64))
        assert before < plan[0] <= end


def test_stacks_of_weights_are_packed_one_by_one(products: Any) -> None:
    stack = np.random.default_rng(1).integers(-127, 128, (3, 64, 8)).astype(np.int8)
    packed = products.pack(stack)
    assert all(np.array_equal(packed[i], products.pack(stack[i])) for i in range(3))


def test_keys_are_packed_as_weights_are(products: Any) -> None:
    keys = np.random.default_rng(2).integers(-127, 128, (64, 32)).astype(np.int8)
    packed = products.pack(keys)
    stored = np.zeros_like(packed)
    for at, key in enumerate(keys):
        products.put_key(stored, at, key)
    assert stored.dtype == products.KEY_TYPE
    assert np.array_equal(stored, packed)


def _weights(kind: str, rows: int, keys: int) -> np.ndarray:
    """Integers whose sum is at most 65,536 and half of their number, as those of attention."""
    chance = np.random.default_rng(keys)
    p = np.zeros((rows, keys), dtype=np.int32)
    if kind == "spread":
        p[:] = chance.integers(0, 65536 // keys + 1, p.shape)
    for row in p:
        place = chance.permutation(keys)
        if kind == "one":
            row[place[0]] = 65536
        elif kind == "two":
            row[place[:2]] = 32768
        elif kind == "edge":
            row[place[:2]] = 32767, 32768
        elif kind == "nearly all":
            row[place[:3]] = 65535, 0, 1
    return p


@pytest.mark.parametrize("kind", ["spread", "one", "two", "edge", "nearly all"])
@pytest.mark.parametrize(
    ("heads", "keys", "skipped"),
    [(1, 64, 0), (2, 61, 3), (3, 512, 0), (5, 33, 31), (8, 1000, 5)],
)
def test_values_are_mixed_exactly(
    products: Any, heads: int, keys: int, skipped: int, kind: str
) -> None:
    """Keys of no weight, as before and after those that are seen, may hold anything."""
    multiple = products.INSTRUCTION.multiple
    capacity = -(-(skipped + keys) // multiple) * multiple
    values = np.full((capacity, 64), -128, dtype=np.int8)
    visible = slice(skipped, skipped + keys)
    values[visible] = np.random.default_rng(3).choice(np.array([-127, 127, 5], np.int8), (keys, 64))
    group = products.INSTRUCTION.group
    packed = np.ascontiguousarray(values.reshape(-1, group, 64).swapaxes(1, 2))
    weights = np.zeros((heads, capacity), dtype=np.int32)
    weights[:, visible] = _weights(kind, heads, keys)
    expected = weights.astype(np.int64) @ values.astype(np.int64)
    buffer = np.full(heads * capacity // 2, -1, np.int32)
    total = np.empty((2 * heads, 64), np.int32)
    products.sum_into(weights, packed, buffer, total, nothing())
    assert np.array_equal(total[:heads], expected)


CHOICES = {
    "+avx512vnni,+avx2": ("byte_products", 32),
    "+avxvnni,+avx2": ("byte_products", 16),
    "+avx2": ("word_products", 16),
    "+dotprod": ("byte_products", 8),  # ARM's; nothing is compiled here
    "+sse2": (None, 16),
}


@pytest.mark.parametrize("features", CHOICES)
def test_the_fastest_instruction_is_chosen(features: str) -> None:
    code = (
        "from llmzip.exact import matmul\n"
        "name = matmul.multiply_into.__module__.split('.')[-1]\n"
        "print(name if matmul.available() else None, matmul.MULTIPLE)"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.split() == [str(word) for word in CHOICES[features]]


@pytest.mark.parametrize(("shape", "fits"), [((64, 8), True), ((65, 8), False), ((64, 7), False)])
def test_other_shapes_are_left_to_torch(shape: tuple[int, int], fits: bool) -> None:
    assert matmul.fits(np.zeros(shape, dtype=np.int8)) == fits
