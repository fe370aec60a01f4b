"""What training does on GPUs and in several processes, computed on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import TINY

from llmzip.train import data, loop, model

LENGTHS = (16, 32, 80)


def heads(length: int) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(length)
    shapes = [(2, 4, length, 8), (2, 2, length, 8), (2, 2, length, 8)]
    return [torch.randn(shape, generator=chance, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("length", LENGTHS)
def test_attention_for_gpus_is_that_for_cpus(length: int) -> None:
    """Values and gradients, with 1, 2 and 5 blocks of 16 tokens, two heads a key head."""
    module = torch.nn.Module()
    module.config = type("Config", (), {"sliding_window": 16})()  # type: ignore[assignment]
    results = []
    for by_blocks in (False, True):
        given = heads(length)
        if by_blocks:
            out = model._attention_by_blocks(*given, 16, 0.3)
        else:
            out, _ = model.banded_attention(module, *given, None, 0.3)
        out.square().sum().backward()
        results.append([out, *(x.grad for x in given)])
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.slow
def test_compiled_layers_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while they are quantised, and afterwards."""
    monkeypatch.setattr(
        model,
        "banded_attention",
        lambda module, q, k, v, *_, scaling=None, **__: (
            model._attention_by_blocks(q, k, v, module.config.sliding_window, scaling),
            None,
        ),
    )
    model.AttentionInterface.register("llmzip_banded", model.banded_attention)

    def chance() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    ids = torch.randint(0, 300, (2, 32), generator=chance())
    found = []
    try:
        for compiled in (False, True):
            trainee = model.Trainee(model.build(TINY))
            with torch.no_grad():
                for parameter in trainee.parameters():  # so that rounding matters
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=chance()))
            if compiled:
                trainee.compile_layers()
            losses = []
            for quantised in (False, True, False):
                trainee.quantise(quantised)
                trainee.zero_grad()
                loss, _ = trainee(ids)
                loss.backward()
                weight = trainee.network.model.layers[0].self_attn.q_proj.weight
                losses += [loss.item(), weight.grad.norm().item()]
            found.append(losses)
    finally:
        monkeypatch.undo()
        model.AttentionInterface.register("llmzip_banded", model.banded_attention)
    plain, compiled_losses = found
    assert plain[:2] == plain[4:]
    assert abs(plain[1] - plain[3]) > 0.01 * plain[1]
    assert compiled_losses == pytest.approx(plain, rel=1e-3)


PROGRAM = """
import sys
from pathlib import Path
from test_train import TINY
from llmzip.train import loop
loop.train(TINY, Path(sys.argv[1]), 1, phase="stable", max_steps=6)
"""


@pytest.mark.slow
def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    """By torchrun, whose processes meet over gloo: the weights come out the same."""
    chance = np.random.default_rng(1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bytes.txt").write_text("9000\n")
    tokens = chance.integers(0, 300, 3000).astype(np.uint16)
    for name in ("one", "two"):
        np.save(tmp_path / name / "tokens.npy", tokens)
    loop.train(replace(TINY, batch=8), tmp_path / "one", 1, phase="stable", max_steps=6)
    (tmp_path / "program.py").write_text(PROGRAM)
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tmp_path / "program.py"), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two = (load_file(tmp_path / n / "checkpoint.safetensors") for n in ("one", "two"))
    weights = [name for name in one if name.startswith("model.")]
    assert weights
    for name in weights:
        assert torch.allclose(one[name], two[name], atol=2e-4)


def test_the_order_of_an_epoch_is_made_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for every row: with 30 million tokens that took 11 ms a step, now 0.7."""
    made = []
    original = np.random.default_rng
    data._order.cache_clear()
    monkeypatch.setattr(np.random, "default_rng", lambda seed: made.append(seed) or original(seed))
    np.save(tmp_path / "tokens.npy", np.arange(32 * 40, dtype=np.uint16))
    rows = [data.batches(tmp_path, TINY, step, 0, 1) for step in range(12)]
    assert made == [[1, 0], [1, 1]]
    assert sorted(np.concatenate(rows[:10])[:, 0].tolist()) == list(range(0, 32 * 40, 32))
