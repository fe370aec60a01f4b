"""A model is trained, resumed, exported, loaded and used, all in miniature."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from conftest import PROSE
from conftest import TINY as TINY_MODEL
from table_predictor import joined
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmzip
from llmzip import inference, models
from llmzip.errors import LlmzipError
from llmzip.exact.architecture import Architecture
from llmzip.models.store import save_int8
from llmzip.train import config as configuration
from llmzip.train import data, domain, loop, model, optim, run
from llmzip.train.config import Config

CONFIGS = sorted((Path(__file__).parent.parent / "scripts" / "configs").glob("*.toml"))
TINY = Config(
    name="tiny",
    mix={"en": 3.0, "code": 1.0, "logs": 0.0},
    vocab_size=300,
    hidden_size=32,
    layers=2,
    heads=2,
    kv_heads=1,
    intermediate_size=64,
    window=16,
    sequence=32,
    batch=4,
    corpus_bytes=20_000,
    warmup_steps=3,
)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    documents = [f"{i}. {PROSE[i * 10 :]}".encode() for i in range(40)]
    packed = zstandard.ZstdCompressor().compress(b"\0".join(documents) + b"\0")
    (folder / "en.txt.zst").write_bytes(packed)
    (folder / "code.txt").write_text("for (int i = 0; i < n; ++i)\n\tsum += a[i];\n" * 50)
    (folder / "logs.txt").write_text("SECRET " * 100)
    return folder


@pytest.fixture
def work(corpus: Path, tmp_path: Path) -> Path:
    data.prepare(corpus, tmp_path / "work", TINY)
    return tmp_path / "work"


def test_every_config_has_an_exact_form_and_keeps_its_size() -> None:
    limits = {"nano": 1e6, "proxy": 1e6, "small": 4e6, "small-continued": 4e6}
    assert {path.stem for path in CONFIGS} == set(limits)
    for path in CONFIGS:
        config = configuration.load(path)
        assert config.mix["logs"] == 0
        with torch.device("meta"):
            network = model.build(config)
        Architecture.from_config(network.config.to_dict())
        # int8 and a scale a row; tokenizers of this kind take some 35 bytes an id
        size = sum(p.numel() + 4 * p.shape[0] for p in network.parameters())
        assert size + 35 * config.vocab_size < limits[path.stem]


def test_texts_are_packed_with_bos_and_without_excluded_categories(work: Path) -> None:
    from tokenizers import Tokenizer

    tokens = np.load(work / "tokens.npy")
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    assert tokens.dtype == np.uint16
    assert tokens[0] == 0
    text = tokenizer.decode(tokens.tolist())
    assert "single man" in text
    assert "sum += a[i]" in text
    assert "SECRET" not in text


def test_ids_of_large_vocabularies_are_kept(work: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    tokenizer.add_tokens([f"word{i}" for i in range(1 << 16)])
    last = tokenizer.get_vocab_size() - 1
    assert last >= 1 << 16
    tokens, size = data.pack(["word65535", "word0"], tokenizer)
    assert tokens.tolist() == [0, last, 0, last - 65535]
    assert size == len("word65535word0")


def test_an_exported_tokenizer_names_a_token_that_it_has(work: Path, tmp_path: Path) -> None:
    """Of a tokenizer from elsewhere, whose id 0 has another name."""
    content = (work / "tokenizer.json").read_text().replace(data.BOS, "<|endoftext|>")
    (work / "tokenizer.json").write_text(content)
    run.export(model.build(TINY), work, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|endoftext|>", 0)
    assert len(tokenizer) == TINY.vocab_size


def test_batches_depend_on_seed_and_step_alone(work: Path) -> None:
    one = data.batches(work, TINY, 5, 0, 1)
    assert one.shape == (4, 32)
    assert np.array_equal(one, data.batches(work, TINY, 5, 0, 1))
    pair = [data.batches(work, TINY, 2, rank, 2) for rank in (0, 1)]
    single = [data.batches(work, TINY, step, 0, 1) for step in (4, 5)]
    assert np.array_equal(np.concatenate(pair), np.concatenate(single))


def test_banded_attention_is_sliding_attention(tmp_path: Path) -> None:
    network = model.build(TINY).eval()
    network.save_pretrained(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    ids = torch.randint(0, 300, (2, 96), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        banded, expected = network(ids).logits, reference.eval()(ids).logits
    assert torch.allclose(banded, expected, atol=1e-4)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_what_is_minimised_is_the_loss_of_transformers(work: Path, bfloat16: bool) -> None:
    trainee = model.Trainee(model.build(TINY))
    network = trainee.network
    with torch.no_grad():
        for parameter in network.parameters():  # far from where all gradients are alike
            parameter.add_(torch.randn_like(parameter) * 0.05)
    ids = torch.from_numpy(data.batches(work, TINY, 0, 0, 1))
    with torch.autocast("cpu", enabled=bfloat16):
        loss, _ = trainee(ids)
    loss.backward()
    found = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    network.set_attn_implementation("eager")
    expected = network(ids, labels=ids).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=0.01 if bfloat16 else 1e-5)
    tolerance = 0.05 if bfloat16 else 1e-4
    for gradient, parameter in zip(found, network.parameters(), strict=True):
        assert (gradient - parameter.grad).norm() <= tolerance * parameter.grad.norm()


def test_muon_orthogonalises() -> None:
    x = torch.randn(3, 20, 50, generator=torch.Generator().manual_seed(1))
    for matrices in (x, x.mT):
        singular = torch.linalg.svdvals(optim.orthogonalise(matrices))
        assert 0.6 < float(singular.min()) <= float(singular.max()) < 1.4


def test_a_tokenizer_may_be_given(corpus: Path, work: Path, tmp_path: Path) -> None:
    ready = work / "tokenizer.json"
    data.prepare(corpus, tmp_path / "other", replace(TINY, seed=5, vocab_size=290), ready)
    assert (tmp_path / "other" / "tokenizer.json").read_bytes() == ready.read_bytes()


def test_a_resumed_run_equals_an_uninterrupted_one(work: Path, tmp_path: Path) -> None:
    whole, _ = loop.train(TINY, work, 1, phase="stable", max_steps=8)
    loop.train(TINY, work, 1, phase="stable", max_steps=5)
    resumed, progress = loop.train(TINY, work, 1, phase="stable", max_steps=3, resume=True)
    assert progress.step == 8
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_training_leaves_subnormal_numbers_to_its_process(work: Path) -> None:
    loop.train(TINY, work, 1, phase="stable", max_steps=1)
    assert np.float32(1e-40) * np.float32(1) > 0


def test_a_resumed_run_logs_as_an_uninterrupted_one(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it goes on from before the end of the log, and between two entries."""
    monkeypatch.setattr(loop, "_LOG_STEPS", 4)
    log = work / "loss.jsonl"

    def logged() -> list[tuple[int, float]]:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines]

    loop.train(TINY, work, 1, phase="stable", max_steps=6)
    shutil.copy(work / "checkpoint.safetensors", work / "sixth.safetensors")
    loop.train(TINY, work, 1, phase="stable", max_steps=14, resume=True)
    whole = logged()
    shutil.move(work / "sixth.safetensors", work / "checkpoint.safetensors")
    loop.train(TINY, work, 1, phase="stable", max_steps=6, resume=True)
    assert logged() == whole[:3]
    assert [step for step, _ in whole] == [4, 8, 12, 16, 20]
    losses = [loss for _, loss in whole]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[1] < 1.5  # a mean over two steps is no half of one


def test_a_run_goes_on_from_a_compact_checkpoint(work: Path) -> None:
    whole, _ = loop.train(TINY, work, 1, phase="stable", max_steps=5)
    loop.write_compact(work / "checkpoint.safetensors", work / "compact.safetensors")
    shutil.move(work / "compact.safetensors", work / "checkpoint.safetensors")
    resumed, progress = loop.train(TINY, work, 1, phase="stable", max_steps=0, resume=True)
    assert progress.step == 5
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


def test_the_finish_trains_what_exact_inference_computes(work: Path) -> None:
    network, _ = loop.train(TINY, work, 1, phase="stable", max_steps=30)
    ids = torch.from_numpy(data.batches(work, TINY, 50, 0, 1))
    with torch.no_grad():
        plain = network(ids).logits
        model.quantise_linears(network)
        rounded = network(ids).logits
    difference = (plain - rounded).pow(2).mean().sqrt() / plain.std()
    assert 0 < float(difference) < 0.1


def test_the_exported_model_has_the_loss_that_was_trained(work: Path) -> None:
    """After a quantised finish, exact inference with 8-bit activations computes what it trained."""
    network, _ = loop.train(TINY, work, 1, phase="all", max_steps=40)
    run.export(network, work, work / "floats")
    save_int8(str(work / "floats"), work / "int8")
    files = models.load(str(work / "int8"))
    rows = torch.from_numpy(data.batches(work, TINY, 50, 0, 1)[:, :31].copy())
    trainee = model.Trainee(network)
    assert not trainee.quantised  # but its layers are, since the finish
    trainee.quantised = True
    with torch.no_grad():
        _, trained = trainee(torch.nn.functional.pad(rows, (1, 0), value=files.bos))
    predictor = inference.build(files, activations="a8", context=inference.default_context(files))
    logits = joined(predictor.run(*rows.shape).score(rows))
    exported = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows.T.flatten())
    assert exported.item() == pytest.approx(trained.item(), rel=1e-3)


def test_the_whole_way(corpus: Path, tmp_path: Path) -> None:
    """Config and corpus → folder → archive, and what the training was good for."""
    config = tmp_path / "mini.toml"
    lines = [f"{k} = {v}" for k, v in TINY.as_dict().items() if isinstance(v, (int, float))]
    lines = [line.replace("True", "true").replace("False", "false") for line in lines]
    mix = [f"{k} = {v}" for k, v in TINY.mix.items()]
    config.write_text("\n".join([*lines, "[mix]", *mix]))
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "prose.txt").write_text(PROSE[::-1] + PROSE)
    script = Path(__file__).parent.parent / "scripts" / "train.py"
    source = ["--config", config, "--corpus", corpus, "--work", tmp_path / "w", "--prepare-only"]
    subprocess.run([sys.executable, script, "model", *source], check=True)
    packed = (tmp_path / "w" / "tokens.npy").read_bytes()
    folders = {"dev": dev, "out": tmp_path / "model", "results": tmp_path / "results"}
    run.train_model(config, corpus, tmp_path / "w", 4, **folders)
    assert (tmp_path / "w" / "tokens.npy").read_bytes() == packed

    report = json.loads((tmp_path / "results" / "report.json").read_text())
    assert report["config"]["name"] == "mini"
    cost = report["dev"]["prose.txt"]["a8"] / report["dev"]["prose.txt"]["float32"]
    assert 0.99 < cost < 1.02
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.decode(tokenizer("Mr. Bennet  replied").input_ids) == "Mr. Bennet  replied"
    content = PROSE.encode()
    archive = llmzip.compress(content, model=str(tmp_path / "model"))
    assert llmzip.decompress(archive, model=str(tmp_path / "model")) == content


@pytest.mark.parametrize("sliding", [False, True])
def test_a_model_learns_a_domain(sliding: bool, tmp_path: Path) -> None:
    """`llmzip train`: from int8 weights, and what was held out costs fewer bits afterwards."""
    base = Path(shutil.copytree(TINY_MODEL, tmp_path / "base"))
    if sliding:
        path = base / "config.json"
        settings = {**json.loads(path.read_text()), "model_type": "mistral", "sliding_window": 64}
        path.write_text(json.dumps(settings))
    lines = [f"host-{i % 17} sshd[{i}]: accepted key for user{i % 5}\n" for i in range(30_000)]
    (tmp_path / "log").write_text("".join(lines))
    report = domain.train([tmp_path / "log"], tmp_path / "new", str(base), 1, max_steps=25)
    assert report["bits_per_byte_after"] < 0.7 * report["bits_per_byte_before"]
    assert models.load(str(tmp_path / "new")).quantised  # so that 8-bit inference is chosen
    content = "".join(lines[:100]).encode()
    sizes = []
    for model_folder in (base, tmp_path / "new"):
        archive = llmzip.compress(content, model=str(model_folder))
        assert llmzip.decompress(archive, model=str(model_folder)) == content
        sizes.append(len(archive))
    assert sizes[1] <= sizes[0]


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "short").write_text("a few words")
    with pytest.raises(LlmzipError, match="too little"):
        domain.train([tmp_path / "short"], tmp_path / "new", str(TINY_MODEL), 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("vocab_size = 300", "mix"),
        ("depth = 3\n[mix]\na = 1", "unknown settings: depth"),
        ("sequence = 100\n[mix]\na = 1", "no multiple"),
        ("[mix]\na = 0", "positive share"),
        ("quantised_share = 0.5\n[mix]\na = 1", "quantised_share 0.5 is not"),
        ("not toml", "cannot be read"),
    ],
)
def test_configs_that_make_no_sense(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(content)
    with pytest.raises(LlmzipError, match=message):
        configuration.load(path)


def test_a_category_that_is_missing_is_named(corpus: Path) -> None:
    with pytest.raises(LlmzipError, match="category 'poems'"):
        data.sample(corpus, Config(name="x", mix={"poems": 1.0}))


def test_copies_and_pages_of_one_template_are_left_out() -> None:
    licence = b"\n".join(b"%d. Permission is hereby granted, free of charge" % i for i in range(9))
    page = licence + b"\n\n# Page %d"
    own = b"int main() { return compute_everything_that_this_file_is_for(); }\n" * 20
    documents = [page % 1, page % 2, licence + own, b"}\n" * 99, b"}\n" * 99, page % 3]
    kept = [*data.without_near_duplicates(documents)]
    assert kept == [page % 1, licence + own, b"}\n" * 99, b"}\n" * 99]
