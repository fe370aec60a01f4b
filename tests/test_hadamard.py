"""Hadamard transforms leave every product as it is, and give the same bits in all forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from test_llama import IDS, _random_model, _scored, _stepped

from llmzip import models
from llmzip.exact import hadamard, ops
from llmzip.exact.architecture import ROTATED_KEY, Architecture
from llmzip.exact.fused import FusedLlama, fused
from llmzip.exact.llama import ExactLlama
from llmzip.exact.quantise import quantise_tensors
from llmzip.inference import Context, build

SIZES = [(48, 16), (576, 64), (1536, 64), (128, 64), (96, 32), (172, 4), (30, 2), (64, 8),
         (512, 64), (256, 16), (544, 32), (960, 64)]  # fmt: skip


def _matrix(size: int, block: int) -> torch.Tensor:
    """The whole transform, float64 [K, K]: Sylvester's construction, between strided numbers."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < block:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return torch.kron(h, torch.eye(size // block, dtype=torch.float64))


@pytest.mark.parametrize(("size", "block"), SIZES)
def test_it_is_the_hadamard_transform_in_every_form(size: int, block: int) -> None:
    torch.manual_seed(size)
    x = torch.randint(-1000, 1000, (5, size)).float()
    expected = (x.double() @ _matrix(size, block)).float()  # integers: exact
    assert torch.equal(hadamard.transform(x, block), expected)
    wild = torch.randn(7, 3, size) * 10.0 ** torch.randint(-30, 30, (7, 3, size))
    assert torch.equal(hadamard.transform(wild, block), hadamard._transform_by_torch(wild, block))
    assert torch.equal(
        hadamard.transform(wild.transpose(0, 1), block),
        hadamard.transform(wild, block).transpose(0, 1),
    )
    row = wild[0, 0].numpy().copy()
    hadamard.transform_row(row, block)
    assert np.array_equal(row, hadamard.transform(wild, block)[0, 0].numpy())


@pytest.mark.parametrize(("size", "block"), SIZES)
def test_what_lies_beside_a_row_stays(size: int, block: int) -> None:
    array = np.random.default_rng(size).standard_normal(size + 64).astype(np.float32)
    before = array.copy()
    hadamard.transform_row(array[32:-32], block)
    assert np.array_equal(array[:32], before[:32])
    assert np.array_equal(array[-32:], before[-32:])


@pytest.mark.parametrize(("size", "block"), SIZES)
def test_products_are_unchanged(size: int, block: int) -> None:
    """By equality, in numbers that float64 holds exactly."""
    torch.manual_seed(size)
    x, weight = (torch.randint(-1000, 1000, (n, size)).float() for n in (5, 7))
    moved = hadamard.transform(x, block).double()
    turned = hadamard.transform_weight(weight, block).double()
    assert torch.equal(moved @ turned.T, x.double() @ weight.double().T)


def test_orders_are_powers_of_two_that_divide() -> None:
    orders = [hadamard.block_size(size) for size in (576, 1536, 4096, 100, 172, 7, 1)]
    assert orders == [64, 64, 64, 4, 4, 1, 1]
    x = torch.randn(3, 7)
    assert hadamard.transform(x, 1) is x


def test_outliers_cost_less() -> None:
    """One channel that is fifty times as large as all others, as in trained models."""
    torch.manual_seed(1)
    x, weight = torch.randn(50, 256), torch.randn(64, 256)
    x[:, 17] *= 50
    expected = x @ weight.T
    errors = []
    for block in (1, hadamard.block_size(256)):
        integers, scale = ops.quantise_weight(weight, block)
        linear = ops.Linear(integers, scale, levels=ops.A8_LEVELS, block=block)
        errors.append(float((linear(x) - expected).square().mean()))
    assert errors[1] < errors[0] / 20


def _model(kind: str, activations: float, keys: float) -> ExactLlama:
    network = _random_model(kind)
    return ExactLlama(
        Architecture.from_config(network.config.to_dict()),
        {name: tensor.detach() for name, tensor in network.state_dict().items()},
        levels=activations,
        key_levels=keys,
        rotated=True,
    )


@pytest.mark.parametrize("context", [Context(128, 64), Context(24, 0)], ids=str)
@pytest.mark.parametrize("kind", ["tied", "biased", "sliding"])
def test_one_pass_equals_single_steps_equals_the_fused_form(kind: str, context: Context) -> None:
    for levels, keys in (
        (ops.A16_LEVELS, ops.WIDE_KEY_LEVELS),
        (ops.A8_LEVELS, ops.KEY_LEVELS),
    ):
        unfused = _model(kind, levels, keys)
        whole = _scored(unfused, IDS, context)
        assert torch.equal(whole, _stepped(unfused, IDS, context))
        assert torch.equal(whole[1:3, :40], _scored(unfused, IDS[1:3, :40], context))
    if kind == "biased":
        return
    fast = fused(unfused)
    assert isinstance(fast, FusedLlama)
    assert torch.equal(_scored(fast, IDS, context), whole)
    for streams in (slice(0, 5), slice(1, 3), slice(4, 5)):
        assert torch.equal(_stepped(fast, IDS[streams], context), whole[streams])


@pytest.mark.parametrize("kind", ["tied", "untied", "biased", "sliding"])
def test_prepared_tensors_give_the_same_logits(kind: str, tmp_path: Path) -> None:
    network = _random_model(kind)
    network.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    files = models.load(str(tmp_path))
    config, tensors = quantise_tensors(files.config, files.tensors)
    assert config[ROTATED_KEY]
    matrices = [name for name, tensor in tensors.items() if tensor.dtype == torch.int8]
    assert len(matrices) == 2 * 7 + 1
    for activations in ("a8", "a16"):
        expected, actual = (
            build(some, activations=activations, context=Context(64, 32)).run(*IDS.shape)
            for some in (
                files,
                models.ModelFiles("", config, tensors, files.tokenizer_json, files.digest),
            )
        )
        assert all(
            torch.equal(a, b) for a, b in zip(expected.score(IDS), actual.score(IDS), strict=True)
        )
    assert quantise_tensors(config, tensors) == (config, tensors)


def test_a_tied_head_in_int8_gives_the_embeddings_back() -> None:
    network = _random_model("tied")
    config, tensors = quantise_tensors(network.config.to_dict(), network.state_dict())
    config["tie_word_embeddings"] = True
    embedding = tensors["model.embed_tokens.weight"]
    for name in ("weight", "weight_scale"):
        tensors["model.embed_tokens." + name] = tensors.pop("lm_head." + name)
    model = ExactLlama(Architecture.from_config(config), tensors, rotated=True)
    error = (model.embedding - embedding).square().mean().sqrt() / embedding.square().mean().sqrt()
    assert float(error) < 0.01


def test_models_in_int8_stay_as_they_are() -> None:
    files = models.load(str(TINY))
    config, tensors = quantise_tensors(files.config, files.tensors)
    assert config == files.config
    assert tensors.keys() == files.tensors.keys()
    model = build(files, activations="a8", context=Context(64, 32)).model
    assert not getattr(model, "_model", model).rotated
