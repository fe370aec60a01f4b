"""The same bits on a GPU as on the CPU; skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import PROSE, run
from families import FAMILIES, build, save, tokenise, train

import llmzip
from llmzip import inference, models
from llmzip.exact import ops
from llmzip.inference import Context

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

IDS = torch.randint(0, 512, (4, 70), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module", params=["gpt2", "llama", "qwen3", "gpt-neox", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    network = build(*FAMILIES[request.param])
    train(network, tokenise(PROSE.encode()), steps=40)
    save(network, path)
    return path


def test_the_doctor() -> None:
    done = run("doctor", "--device", "cuda", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exact"]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("shape", [(1, 48, 96), (17, 1100, 50), (40, 96, 1000)])
def test_products(int8: bool, shape: tuple[int, int, int]) -> None:
    rows, inner, outer = shape
    weight, scale = ops.quantise_weight(torch.randn(outer, inner))
    x = torch.randn(rows, inner)
    for levels in (ops.A8_LEVELS, ops.A16_LEVELS):
        expected = ops.Linear(weight, scale, levels=levels, int8=False)(x)
        on_device = ops.Linear(weight.cuda(), scale.cuda(), levels=levels, int8=int8)
        assert torch.equal(on_device(x.cuda()).cpu(), expected)


@pytest.mark.parametrize("activations", ["a8", "a16"])
def test_logits(folder: Path, activations: str) -> None:
    files = models.load(str(folder))
    context = Context(24, 12)
    results = {}
    for device in ("cpu", "cuda"):
        model = inference.build(files, activations=activations, context=context, device=device)
        scored = torch.cat([chunk.cpu() for chunk in model.run(*IDS.shape).score(IDS)])
        steps = model.run(*IDS.shape)
        logits = [steps.first().cpu()]
        logits += [steps.step(IDS[:, t]).cpu() for t in range(IDS.shape[1] - 1)]
        assert torch.equal(torch.stack(logits), scored)
        results[device] = scored
    assert torch.equal(results["cpu"], results["cuda"])


@pytest.mark.parametrize("devices", [("cpu", "cuda"), ("cuda", "cpu")], ids=str)
def test_archives_of_one_device_decode_on_the_other(folder: Path, devices: tuple[str, str]) -> None:
    content = PROSE.encode() * 4
    for model in (None, str(folder)):
        archive = llmzip.compress(content, model=model, device=devices[0], streams=5)
        assert llmzip.decompress(archive, model=model, device=devices[1]) == content


def test_any_model_over_all_devices(folder: Path) -> None:
    options = {"model": str(folder), "device": "auto", "same_environment": True}
    archive = llmzip.compress(PROSE.encode(), **options)  # type: ignore[arg-type]
    content = llmzip.decompress(archive, model=str(folder), device="auto")
    assert content == PROSE.encode()
