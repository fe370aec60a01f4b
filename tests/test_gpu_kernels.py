"""Triton's kernels give the bits of the CPU: on a GPU if there is one, else by the interpreter."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from llmzip.exact import activations, hadamard, ops, tables
from llmzip.exact.architecture import Architecture
from llmzip.exact.llama import ExactLlama

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if importlib.util.find_spec("triton") is not None:
    import triton
    import triton.language as tl

    from llmzip.exact.gpu.arithmetic import OPTIONS, exp2_weight

    @triton.jit
    def _weights_kernel(distances, weights, N: tl.constexpr):  # type: ignore[no-untyped-def]
        i = tl.arange(0, N)
        tl.store(weights + i, exp2_weight(tl.load(distances + i)))


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    """Rows of several magnitudes; one of zeros, one of tiny numbers, one with an outlier."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[0], x[1] = 0, x[1] * 2.0**-70
    x[2, 3] = -3000.0
    return x


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(("width", "block"), [(96, 1), (96, 32), (80, 16), (36, 4)])
def test_rows_between_products(width: int, block: int) -> None:
    from llmzip.exact.gpu import rows as gpu

    x = rows(5, width)
    weight = torch.randn(width, generator=torch.Generator().manual_seed(1))
    expected = ops.rms_norm(x, weight, 1e-6)
    assert same(gpu.final_rows(x.to(DEVICE), weight.to(DEVICE), float(np.float32(1e-6))), expected)
    q, scale = ops.quantise(hadamard.transform(expected, block), ops.A8_LEVELS)
    found = gpu.norm_rows(x.to(DEVICE), weight.to(DEVICE), float(np.float32(1e-6)), block)
    assert same(found[0], q.to(torch.int8))
    assert same(found[1], scale[:, 0])
    q, scale = ops.quantise(hadamard.transform(x, block), ops.A8_LEVELS)
    found = gpu.quantise_rows(x.to(DEVICE), block)
    assert same(found[0], q.to(torch.int8))
    assert same(found[1], scale[:, 0])


def test_gated_rows() -> None:
    from llmzip.exact.gpu import rows as gpu

    y = rows(5, 192, seed=2) * 8
    gate, up = y.chunk(2, -1)
    q, scale = ops.quantise(hadamard.transform(ops.silu(gate).mul_(up), 32), ops.A8_LEVELS)
    table = activations.gate_table("silu").to(DEVICE)
    found = gpu.activation_rows(y.to(DEVICE), table, 32)
    assert same(found[0], q.to(torch.int8))
    assert same(found[1], scale[:, 0])


@pytest.mark.parametrize("shape", [(3, 80, 50), (17, 64, 130), (33, 1100, 40)])
@pytest.mark.parametrize("biased", [False, True])
def test_products(shape: tuple[int, int, int], biased: bool) -> None:
    from llmzip.exact.gpu.products import GpuLinear

    count, inner, outer = shape
    weight, scale = ops.quantise_weight(rows(outer, inner, seed=3))
    weight[3] = 127  # the largest sums
    bias = rows(3, outer, seed=5)[2] if biased else None
    linear = ops.Linear(weight, scale, levels=ops.A8_LEVELS, bias=bias, int8=False)
    x, residual = rows(count, inner, seed=4), rows(count, outer, seed=6)
    x[2] = 1
    q, s = ops.quantise(x, ops.A8_LEVELS)
    given = q.to(torch.int8).to(DEVICE), s[:, 0].contiguous().to(DEVICE)
    form = GpuLinear(
        weight.to(DEVICE), scale.to(DEVICE), None if bias is None else bias.to(DEVICE), 1
    )
    expected = linear(x)
    assert same(form(*given), expected)
    total = residual + expected  # the residual itself becomes the sum
    assert same(form(*given, residual=residual.to(DEVICE)), total)


def model(head_dim: int, window: int | None, rotated: bool, bias: bool) -> ExactLlama:
    """One layer, two query heads, a key head."""
    hidden, width, vocabulary = 2 * head_dim, 3 * head_dim, 50
    architecture = Architecture.from_config(
        {"model_type": "mistral", "vocab_size": vocabulary, "hidden_size": hidden,
         "intermediate_size": width, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 512, "sliding_window": window,
         "tie_word_embeddings": True}
    )  # fmt: skip
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (head_dim, hidden),
              "self_attn.v_proj": (head_dim, hidden), "self_attn.o_proj": (hidden, hidden),
              "mlp.gate_proj": (width, hidden), "mlp.up_proj": (width, hidden),
              "mlp.down_proj": (hidden, width)}  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    tensors = {f"model.layers.0.{n}.weight": torch.randn(s, generator=generator) * 0.3
               for n, s in shapes.items()}  # fmt: skip
    tensors["model.embed_tokens.weight"] = torch.randn(vocabulary, hidden, generator=generator)
    for norm in ("model.norm", "model.layers.0.input_layernorm",
                 "model.layers.0.post_attention_layernorm"):  # fmt: skip
        tensors[f"{norm}.weight"] = 1 + torch.randn(hidden, generator=generator) * 0.1
    if bias:
        tensors["model.layers.0.self_attn.k_proj.bias"] = torch.randn(head_dim) * 4
    return ExactLlama(
        architecture, tensors, levels=ops.A8_LEVELS, key_levels=ops.KEY_LEVELS, rotated=rotated,
        device=str(DEVICE),
    )  # fmt: skip


CASES = [(16, None, False, True), (32, 5, True, False), (24, 70, True, False)]


@pytest.mark.parametrize(("head_dim", "window", "rotated", "bias"), CASES)
def test_a_model_in_blocks_and_steps(
    head_dim: int, window: int | None, rotated: bool, bias: bool
) -> None:
    from llmzip.exact.gpu.llama import GpuLlama

    reference = model(head_dim, window, rotated, bias)
    form = GpuLlama(reference)
    count = 8 if window == 5 else 90 if window else 20
    ids = (torch.arange(2 * count) * 31 % 50).view(2, count).to(DEVICE)
    expected = reference.forward(ids, reference.new_cache(2, 100), 0)
    cache = form.new_cache(2, 100)
    found = [form.forward(ids[:, : count - 3], cache, 0)]
    found.append(form.forward(ids[:, count - 3 : count - 2], cache, count - 3))
    position = torch.tensor([count - 2], device=DEVICE)
    ring = form.new_ring(cache, 100, position)
    form.load_ring(ring, cache, count - 2)
    for t in (count - 2, count - 1):
        found.append(form.forward(ids[:, t : t + 1], ring, position))
        position += 1
    assert torch.equal(torch.cat(found, 1), expected)
    assert torch.equal(form.logits(expected[1, :3]), reference.logits(expected[1, :3]))


def test_a_sliding_cache_is_fed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmzip.exact.gpu import llama

    monkeypatch.setattr(llama, "_CHUNK", 1)
    monkeypatch.setattr(llama, "_CHUNKS", 1)
    reference = model(16, 61, False, False)
    form = llama.GpuLlama(reference)
    ids = (torch.arange(140) * 17 % 50).view(1, 140).to(DEVICE)
    cache = form.new_cache(1, 140)
    assert cache.chunk < 20  # the ring is written over more than once
    expected = reference.forward(ids, reference.new_cache(1, 140), 0)
    assert torch.equal(form.forward(ids, cache, 0), expected)


def test_weights_of_all_distances() -> None:
    expected = tables.attention_weights()
    distances = torch.arange(1 << 15).clamp(max=len(expected) - 1)
    found = torch.zeros(1 << 15, dtype=torch.int32, device=DEVICE)
    _weights_kernel[(1,)](distances.float().to(DEVICE), found, N=1 << 15, **OPTIONS)
    assert same(found, expected[distances])


@pytest.mark.parametrize("extra", [0, 400])
def test_frequencies_sums_and_answers(extra: int) -> None:
    from llmzip.coding.lookups import CpuLookups, GpuLookups
    from llmzip.inference.frequencies import TokenFrequencies
    from llmzip.mixing.distribution import BLOCK
    from llmzip.mixing.vocabulary import Vocabulary

    random = np.random.default_rng(1)
    spellings: list[bytes | None] = [bytes([b]) for b in range(256)]
    spellings += [random.integers(97, 100, random.integers(2, 6)).astype("u1").tobytes()
                  for _ in range(extra)]  # fmt: skip
    vocabulary = Vocabulary([*spellings, None])
    known = len(spellings) - 3  # the last ones are escapes
    logits = rows(4, known, seed=8) * 4
    logits[3] = 0
    plain = CpuLookups(vocabulary, TokenFrequencies(known, vocabulary.ids))
    form = GpuLookups(vocabulary, known, DEVICE)
    form.require_exact(TokenFrequencies(known, vocabulary.ids))
    given = form.rows(logits.to(DEVICE))()
    frequencies = plain.rows(logits.clone())().frequencies
    assert np.array_equal(given.frequencies, frequencies)
    size = len(vocabulary)
    padded = np.pad(frequencies, ((0, 0), (0, -size % BLOCK))).reshape(4, -1, BLOCK)
    sums = np.cumsum(padded.sum(-1, dtype=np.int64), 1)
    assert np.array_equal(given.sums, np.pad(sums, ((0, 0), (1, 0))))
    assert np.array_equal(given.most, padded.max(-1))
    ranks = np.array([size - 1, 97, size, 99 if not extra else 150], dtype=np.int32)
    counts = plain.counts(ranks)
    assert counts[2] == 0  # no token
    offsets = np.array([0, counts[0] + counts[3], 0, counts[0]])
    answers = [lookups.answers(logits.clone().to(device), ranks, offsets, int(counts.sum()))()
               for lookups, device in ((plain, "cpu"), (form, DEVICE))]  # fmt: skip
    assert np.array_equal(*answers)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("nan")])
def test_a_logit_that_is_not_finite_is_refused(value: float) -> None:
    from llmzip.coding.lookups import GpuLookups
    from llmzip.errors import UnsupportedModel
    from llmzip.mixing.vocabulary import Vocabulary

    form = GpuLookups(Vocabulary([bytes([b]) for b in range(256)]), 256, DEVICE)
    logits = torch.zeros(1, 256)
    logits[0, 7] = value
    with pytest.raises(UnsupportedModel, match="not finite"):
        form.rows(logits.to(DEVICE))()
