"""Training that begins with layers of a checkpoint, or learns from the predictions of another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROSE, TINY, TOKENIZERS
from test_train import TINY as TINY_CONFIG

import llmzip
from llmzip import models
from llmzip.cli import main
from llmzip.errors import LlmzipError
from llmzip.exact import quantise
from llmzip.tokenizer import Tokens
from llmzip.train import data, domain, losses, model, prune, run
from llmzip.train.config import Config
from llmzip.train.teacher import Teacher

TEXT = "".join(f"{i}. {PROSE}" for i in range(300))


def new_tokenizer(size: int = 400) -> bytes:
    config = Config(name="", mix={"texts": 1.0}, vocab_size=size)
    return data.train_tokenizer([TEXT], config).to_str().encode()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT)
    return tmp_path / "text"


def test_layers_stay_and_tokens_take_the_means_of_their_pieces() -> None:
    old = models.load(str(TINY))
    tokenizer = new_tokenizer()
    pruned = prune.prune(old, [1, 0], tokenizer, 32)
    assert pruned.config["num_hidden_layers"] == 2
    assert pruned.config["sliding_window"] == 32
    floats = quantise.dequantise_tensors(old.config, old.tensors)
    for new, layer in enumerate([1, 0]):
        name = "model.layers.{}.mlp.down_proj.weight"
        assert torch.equal(pruned.tensors[name.format(new)], floats[name.format(layer)].float())
    vectors = floats["model.embed_tokens.weight"].float()
    found = pruned.tensors["model.embed_tokens.weight"]
    spellings = Tokens(tokenizer, len(found)).spellings
    old_tokens = Tokens(old.tokenizer_json, len(vectors))
    assert torch.equal(found[0], vectors[old.bos])
    for i, spelling in enumerate(spellings[1:], 1):
        assert spelling is not None
        ids = old_tokens.encode(spelling)
        if i in (100, 300, 399) and ids.max() < len(vectors):
            known = [o for o, s in enumerate(old_tokens.spellings) if s == spelling]
            assert torch.allclose(found[i], vectors[known or ids.tolist()].mean(0), atol=1e-6)


def test_with_all_layers_and_its_own_tokenizer_a_model_stays_what_it_is() -> None:
    old = models.load(str(TINY))
    pruned = prune.prune(old, [], old.tokenizer_json, 64)
    ids = torch.arange(1, 64)[None]
    with torch.no_grad():
        before = prune.network_of(old)(ids).logits
        after = prune.network_of(pruned)(torch.nn.functional.pad(ids, (0, 1))).logits
    assert torch.allclose(before, after[:, :63], atol=1e-4)


def test_layers_that_are_not_there_are_refused() -> None:
    with pytest.raises(LlmzipError, match="no layer 9; its layers are 0 to"):
        prune.prune(models.load(str(TINY)), [0, 9], new_tokenizer(), 32)


def test_a_tokenizer_without_all_bytes_is_refused() -> None:
    with pytest.raises(LlmzipError, match="no token for some bytes"):
        prune.prune(models.load(str(TINY)), [0], TOKENIZERS["characters"](), 32)


def test_a_pruned_model_is_trained_and_used(text: Path, tmp_path: Path) -> None:
    method = domain.Method(prune_from=str(TINY), keep_layers=[1], vocabulary=400, window=32)
    report = domain.train([text], tmp_path / "new", "", 1, method, max_steps=25)
    assert report["bits_per_byte_after"] < 0.8 * report["bits_per_byte_before"]
    files = models.load(str(tmp_path / "new"))
    assert files.config["num_hidden_layers"] == 1
    assert files.quantised
    content = TEXT[:300].encode()
    archive = llmzip.compress(content, model=str(tmp_path / "new"))
    assert llmzip.decompress(archive, model=str(tmp_path / "new")) == content


def test_the_commands_options(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers and a teacher: a folder with its tokenizer."""
    words = ["train", str(text), "-o", str(tmp_path / "new"), "--minutes", "0.001"]
    words += ["--window", "32"]
    assert main(words) == 2
    assert "--window goes with --prune-from" in capsys.readouterr().err
    words += ["--prune-from", str(TINY), "--layers", "1"]
    words += ["--distill-from", str(TINY), "--distill-weight", "0.7"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["base"] == str(TINY)
    new, old = models.load(str(tmp_path / "new")), models.load(str(TINY))
    assert new.tokenizer_json == old.tokenizer_json
    assert new.config["num_hidden_layers"] == 1
    assert new.config["sliding_window"] == 32


def test_a_configuration_can_name_checkpoint_and_teacher(tmp_path: Path) -> None:
    """`scripts/train.py model`, with options in the file and one that replaces its own."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "en.txt").write_text(TEXT)
    config = tmp_path / "c.toml"
    lines = ["window = 16", "sequence = 32", f'prune_from = "{TINY}"', "keep_layers = [0, 1]"]
    lines += [f'distill_from = "{TINY}"', "distill_weight = 0.3", "[mix]", "en = 1"]
    config.write_text("\n".join(lines))
    run.train_model(config, corpus, tmp_path / "w", 0.5, keep_layers=[1])
    report = json.loads((tmp_path / "w" / "report.json").read_text())["config"]
    assert (report["layers"], report["keep_layers"]) == (1, [1])
    assert (report["distill_from"], report["distill_weight"]) == (str(TINY), 0.3)
    assert models.load(str(tmp_path / "w" / "export")).config["num_hidden_layers"] == 1


def test_a_weight_that_is_no_share_is_refused() -> None:
    with pytest.raises(LlmzipError, match=r"distill_weight 2\.0"):
        replace(TINY_CONFIG, distill_weight=2.0)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_distilled_loss_is_what_autograd_makes_of_its_definition(share: float) -> None:
    chance = torch.Generator().manual_seed(1)
    hidden = torch.randn(300, 8, generator=chance, requires_grad=True)
    weight = torch.randn(50, 8, generator=chance, requires_grad=True)
    labels = torch.randint(0, 50, (300,), generator=chance)
    teacher = torch.randn(300, 50, generator=chance).log_softmax(-1)
    top = teacher.topk(6)
    targets = losses.Targets(top.indices, top.values)

    logq = (hidden @ weight.T).log_softmax(-1)
    nats = torch.nn.functional.cross_entropy(logq, labels)
    p, q = top.values.exp(), logq.gather(1, top.indices).exp()
    p, q = (torch.cat([x, 1 - x.sum(1, keepdim=True)], 1) for x in (p, q))
    expected = share * (p * (p / q).log()).sum(1).mean() + (1 - share) * nats
    expected.backward()
    gradients = [hidden.grad, weight.grad]
    hidden.grad = weight.grad = None

    loss, told = losses.distilled(hidden, weight, labels, targets, share)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert told.item() == pytest.approx(nats.item(), rel=1e-5)
    for found, gradient in zip((hidden.grad, weight.grad), gradients, strict=True):
        assert torch.allclose(found, gradient, atol=1e-6)


def test_a_student_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    """With the teacher's loss alone, from random weights, as far as some steps bring it."""
    files = models.load(str(TINY))
    vocabulary = int(files.config["vocab_size"])
    config = replace(TINY_CONFIG, vocab_size=vocabulary, distill_weight=1.0)
    teacher = Teacher(str(TINY), files.tokenizer_json, vocabulary, config.sequence)
    tokens = Tokens(files.tokenizer_json, vocabulary).encode(TEXT.encode())
    rows = torch.from_numpy(tokens[: 8 * 32].astype(np.int64)).view(8, 32)
    trainee = model.Trainee(model.build(config), 1.0)
    targets = teacher(rows)
    assert targets.ids.shape == (8, 32, 64)
    assert bool((targets.logp.exp().sum(-1) <= 1.0001).all())
    optimiser = torch.optim.Adam(trainee.parameters(), 0.01)
    found = []
    for _ in range(30):
        loss, nats = trainee(rows, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append((loss.item(), nats.item()))
    assert found[-1][0] < 0.5 * found[0][0]
    assert found[-1][1] < found[0][1]  # what the teacher knows is about the text
    assert all(loss > 0 for loss, _ in found)


def test_a_teacher_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    files = models.load(str(TINY))
    other = Path(shutil.copytree(TINY, tmp_path / "other"))
    (other / "tokenizer.json").write_bytes(new_tokenizer(int(files.config["vocab_size"])))
    for compact in other.glob("tokenizer.compact*"):
        compact.unlink()
    with pytest.raises(LlmzipError, match="another tokenizer"):
        Teacher(str(other), files.tokenizer_json, int(files.config["vocab_size"]), 32)


def test_a_teacher_with_a_shorter_context_is_refused() -> None:
    files = models.load(str(TINY))
    with pytest.raises(LlmzipError, match="shorter than sequences of 100000"):
        Teacher(str(TINY), files.tokenizer_json, int(files.config["vocab_size"]), 100_000)
