"""The same bits whatever the batch, the threads, the instruction set, the way of feeding."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROSE, TINY
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from llmzip import models
from llmzip.errors import UnsupportedModel
from llmzip.exact import matmul, ops, selftest, tables
from llmzip.exact.activations import gate_table
from llmzip.exact.attention import attend
from llmzip.exact.fused import FusedLlama, agrees, fused
from llmzip.exact.llama import Architecture, ExactLlama
from llmzip.exact.rotary import RotaryTable, rotary_frequencies
from llmzip.inference import Context, ExactPredictor, build
from llmzip.tokenizer import Tokens

LEVELS = {"a8": ops.A8_LEVELS, "a16": ops.A16_LEVELS}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _random_model(kind: str) -> torch.nn.Module:
    torch.manual_seed(7)
    shape = {
        "vocab_size": 300,
        "hidden_size": 48,
        "intermediate_size": 1100,  # longer than float32 sums are exact for
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "pad_token_id": None,
    }
    if kind == "sliding":
        model = MistralForCausalLM(MistralConfig(**shape, sliding_window=9))
    elif kind == "biased":
        model = LlamaForCausalLM(LlamaConfig(**shape, attention_bias=True, mlp_bias=True))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=kind == "tied"))
    for parameter in model.parameters():  # wider than the initialisation, norms not all 1
        parameter.data += torch.randn_like(parameter) * 0.05
    return model.eval()


KINDS = ["tied", "untied", "biased", "sliding"]


@pytest.fixture(scope="module", params=KINDS)
def reference(request: pytest.FixtureRequest) -> torch.nn.Module:
    return _random_model(request.param)


def _exact(model: torch.nn.Module, activations: str, int8: bool | None = None) -> ExactLlama:
    architecture = Architecture.from_config(model.config.to_dict())
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return ExactLlama(architecture, tensors, levels=LEVELS[activations], int8=int8)


def _scored(model: ExactLlama | FusedLlama, ids: torch.Tensor, context: Context) -> torch.Tensor:
    """[S, T, V], the logits of each token by one parallel pass."""
    run = ExactPredictor(model, 0, context).run(*ids.shape)
    return torch.cat([chunk.clone() for chunk in run.score(ids)]).transpose(0, 1)


def _stepped(model: ExactLlama | FusedLlama, ids: torch.Tensor, context: Context) -> torch.Tensor:
    run = ExactPredictor(model, 0, context).run(*ids.shape)
    logits = [run.first()]
    logits += [run.step(ids[:, t]) for t in range(ids.shape[1] - 1)]
    return torch.stack(logits, 1)


IDS = torch.randint(0, 300, (5, 75), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("activations", LEVELS)
@pytest.mark.parametrize("context", [Context(128, 64), Context(32, 16), Context(24, 0)], ids=str)
def test_score_equals_step_equals_any_batch(
    reference: torch.nn.Module, activations: str, context: Context
) -> None:
    model = _exact(reference, activations)
    whole = _scored(model, IDS, context)
    assert torch.equal(whole, _stepped(model, IDS, context))
    for stream in range(len(IDS)):
        assert torch.equal(whole[stream : stream + 1], _scored(model, IDS[stream, None], context))
    assert torch.equal(whole[:, :40], _scored(model, IDS[:, :40], context))
    assert torch.equal(whole[1:3], _stepped(model, IDS[1:3], context))


@pytest.mark.parametrize("context", [Context(128, 64), Context(32, 16), Context(24, 0)], ids=str)
@pytest.mark.parametrize("kind", ["tied", "untied", "sliding"])
def test_the_fused_form_computes_the_same(kind: str, context: Context) -> None:
    network = _random_model(kind)
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    architecture = Architecture.from_config(network.config.to_dict())
    for int8 in (False, True):
        unfused = ExactLlama(
            architecture,
            tensors,
            levels=ops.A8_LEVELS,
            key_levels=ops.KEY_LEVELS,
            int8=int8,
        )
        expected = _scored(unfused, IDS, context)
        fast = fused(unfused)
        assert isinstance(fast, FusedLlama)
        assert torch.equal(_scored(fast, IDS, context), expected)
        for streams in (slice(0, 5), slice(1, 3), slice(4, 5)):
            assert torch.equal(_stepped(fast, IDS[streams], context), expected[streams])
        assert torch.equal(_scored(fast, IDS[:, :40], context), expected[:, :40])


@pytest.mark.parametrize("window", [None, 9, 40])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1), (8, 1)])
def test_products_of_bytes_compute_the_same(heads: int, kv_heads: int, window: int | None) -> None:
    """Shapes that `matmul` takes, where the processor has one of its instructions."""
    torch.manual_seed(heads)
    shape = {
        "vocab_size": 320,
        "hidden_size": 96,
        "head_dim": 32,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 160,
        "bos_token_id": 0,
        "pad_token_id": None,
    }
    network = MistralForCausalLM(MistralConfig(**shape, sliding_window=window))
    for parameter in network.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    unfused = ExactLlama(
        Architecture.from_config(network.config.to_dict()),
        {name: tensor.detach() for name, tensor in network.state_dict().items()},
        levels=ops.A8_LEVELS,
        key_levels=ops.KEY_LEVELS,
    )
    fast = fused(unfused)
    assert isinstance(fast, FusedLlama)
    assert fast.single_call == matmul.available()
    context = Context(160, 40)
    ids = torch.randint(0, 320, (7, 190), generator=torch.Generator().manual_seed(3))
    expected = _scored(unfused, ids, context)
    assert torch.equal(_scored(fast, ids, context), expected)
    for streams in (slice(0, 7), slice(1, 3), slice(4, 5)):
        assert torch.equal(_stepped(fast, ids[streams], context), expected[streams])


def test_only_what_agrees_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _random_model("tied")
    assert agrees(12, False)
    assert agrees(32, False)
    assert not isinstance(fused(_exact(network, "a16")), FusedLlama)
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    architecture = Architecture.from_config(network.config.to_dict())
    model = ExactLlama(architecture, tensors, levels=127.0, key_levels=127.0)
    monkeypatch.setattr("llmzip.exact.fused.agrees", lambda head_dim, rotated: head_dim == 12)
    assert fused(model) is model


def test_square_roots_are_correctly_rounded() -> None:
    x = torch.cat([selftest.numbers(20000, 5).abs(), 2.0 ** torch.arange(-126, 128)])
    x = torch.cat([x, torch.nextafter(x * x, torch.tensor(0.0)).clamp_min(2.0**-126)])
    assert np.array_equal(ops.sqrt(x).numpy(), np.sqrt(x.numpy()))


@pytest.mark.parametrize("activations", LEVELS)
def test_threads_and_backends_agree(
    reference: torch.nn.Module, activations: str, threads: int
) -> None:
    context = Context(64, 32)
    results = [_scored(_exact(reference, activations, int8), IDS, context) for int8 in (0, 1)]
    assert torch.equal(*results)
    torch.set_num_threads(3 - threads)
    assert torch.equal(results[0], _scored(_exact(reference, activations), IDS, context))


@pytest.mark.parametrize("activations", LEVELS)
def test_near_to_transformers(reference: torch.nn.Module, activations: str) -> None:
    """The exact model is the same model: logits within the error of 8-bit weights."""
    ids = torch.nn.functional.pad(IDS, (1, 0))[:, :-1]
    with torch.inference_mode():
        expected = reference(ids).logits
    actual = _scored(_exact(reference, activations), IDS, Context(128, 64))
    error = (actual - expected).pow(2).mean().sqrt() / expected.std()
    assert float(error) < (0.08 if activations == "a8" else 0.06)


@pytest.mark.parametrize(("activations", "cost"), [("a8", 0.007), ("a16", 0.007)])
def test_exactness_costs_little_on_a_trained_model(activations: str, cost: float) -> None:
    """Bits of a text it was not trained on, against transformers in float32."""
    files = models.load(str(TINY))
    tensors = dict(files.tensors)
    for name in [n for n in tensors if n.endswith("_scale")]:
        weight = name.removesuffix("_scale")
        tensors[weight] = tensors[weight].float() * tensors.pop(name)
    config = LlamaConfig(**files.config)
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    tokens = Tokens(files.tokenizer_json, config.vocab_size)
    ids = torch.from_numpy(tokens.encode(PROSE.encode())).long()[None, :255]
    with torch.inference_mode():
        fp32 = model(torch.nn.functional.pad(ids, (1, 0), value=files.bos)[:, :-1]).logits
    exact = build(files, activations=activations, context=Context(256, 128)).run(*ids.shape)
    logits = torch.cat(list(exact.score(ids)))[:, 0]
    losses = [torch.nn.functional.cross_entropy(x, ids[0]).item() for x in (fp32[0], logits)]
    assert losses[1] < losses[0] * (1 + cost)


@pytest.mark.parametrize(
    ("capability", "count"),
    [("default", "2"), ("avx2", "1"), (None, "2")]
    + [pytest.param(*p, marks=pytest.mark.slow) for p in (("default", "1"), ("avx2", "2"))]
    + [pytest.param(None, "1", marks=pytest.mark.slow)],
)
def test_other_processes_with_other_instruction_sets_agree(
    capability: str | None, count: str
) -> None:
    """Digests of every operation and of the embedded model are the stored ones."""
    environment = {**os.environ, "OMP_NUM_THREADS": count}
    if capability:
        environment["ATEN_CPU_CAPABILITY"] = capability
    done = subprocess.run(
        [sys.executable, "-m", "llmzip.cli", "doctor", "--json"],
        capture_output=True,
        env=environment,
    )
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["exact"]
    assert len(report["checks"]) >= len(selftest.DIGESTS) + 3
    assert report["threads"] == int(count)
    if capability == "default":
        assert report["capability"] == "DEFAULT"


def test_a_deviating_operation_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmzip.errors import InexactDevice

    monkeypatch.setitem(selftest.DIGESTS, "silu", "0" * 16)
    selftest.require_exact.cache_clear()
    with pytest.raises(InexactDevice, match="deviates from IEEE-754 in: silu;"):
        selftest.require_exact("cpu")
    selftest.require_exact.cache_clear()


def test_an_unknown_device_is_refused() -> None:
    from llmzip.errors import InexactDevice

    with pytest.raises(InexactDevice, match="cannot be used"):
        selftest.require_exact("abacus")


def test_attention_hides_the_future_and_what_slid_away() -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randint(-127, 128, (1, 2, 12, 8), generator=generator).float()
    k = torch.randint(-127, 128, (1, 1, 12, 8), generator=generator).float()
    v = torch.randint(-127, 128, (1, 1, 12, 8), generator=generator).float()
    q_scale, scale = torch.full((1, 2, 12), 0.02), torch.full((1, 1, 12), 0.02)
    for window in (None, 4):
        before = attend(q, q_scale, k, scale, v, scale, window)
        changed_k, changed_v = k.clone(), v.clone()
        changed_k[:, :, 7], changed_v[:, :, 7] = 127, -127
        after = attend(q, q_scale, changed_k, scale, changed_v, scale, window)
        same = (before == after).all(-1).all(1)[0]
        seen = range(7, 12) if window is None else range(7, 11)
        assert [t for t in range(12) if not same[t]] == list(seen)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "model type 'gpt2' has no exact form"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary embedding of type 'yarn'"),
        ({"num_key_value_heads": 3}, "4 heads of 12 over 3"),
        ({"hidden_size": "many"}, "incomplete or malformed"),
        ({"num_attention_heads": 0}, "incomplete or malformed|too small"),
        ({"vocab_size": 1}, "too small"),
        ({"rms_norm_eps": 0}, "out of range"),
    ],
)
def test_configs_without_exact_form_are_refused(change: dict[str, object], reason: str) -> None:
    config = {**_random_model("tied").config.to_dict(), **change}
    with pytest.raises(UnsupportedModel, match=reason):
        Architecture.from_config(config)


def test_missing_misshapen_and_infinite_weights_are_refused() -> None:
    model = _random_model("tied")
    architecture = Architecture.from_config(model.config.to_dict())
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    name = "model.layers.1.mlp.down_proj.weight"
    for bad, reason in (
        (None, "lack the tensor"),
        (tensors[name][:, :-1], "has shape"),
        (tensors[name] * float("inf"), "not finite"),
    ):
        changed = copy.copy(tensors)
        changed.pop(name)
        if bad is not None:
            changed[name] = bad
        with pytest.raises(UnsupportedModel, match=reason):
            ExactLlama(architecture, changed)


def test_tables_are_correctly_rounded() -> None:
    """Against decimal, whose exp is correctly rounded, at entries spread over the tables."""
    with localcontext() as context:
        context.prec = 50
        for i in range(0, 256, 17):
            expected = (Decimal(2).ln() * (30 - Decimal(i) / 256)).exp()
            assert tables.exp2_mantissas(8, 30)[i] == int(expected.to_integral_value())
        table, limit = gate_table("silu"), 16 * 1024
        for i in range(-limit + 1, limit, 997):
            expected = 1 / (1 + (-Decimal(i) / 1024).exp())
            assert table[limit + i].item() == np.float32(float(expected))
    frequencies = rotary_frequencies({"rope_theta": 10000.0}, 16)
    cos, sin = RotaryTable(frequencies).cos_sin(100_000, 3)
    angle = np.arange(100_000, 100_003)[:, None] * 10000.0 ** (-np.arange(8) / 8)
    assert np.abs(cos.numpy() - np.cos(angle)).max() < 2e-7
    assert np.abs(sin.numpy() - np.sin(angle)).max() < 2e-7


def test_a_transformers_checkpoint_folder_loads(tmp_path: Path) -> None:
    """What save_pretrained writes is what `models.load` reads, sharded or not."""
    model = _random_model("untied")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    digests = []
    for name in ("one", "many"):
        (tmp_path / name / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
        files = models.load(str(tmp_path / name))
        digests.append(files.digest)
        built = build(files, activations="a16", context=Context(64, 32))
        assert built.vocabulary == 300
    assert digests[0] == digests[1]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert loaded.config.vocab_size == 300
