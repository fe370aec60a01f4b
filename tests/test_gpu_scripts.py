"""scripts/gpu: what was prepared is trained on for a given time, on a CPU and in miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROSE, TINY

import llmzip
from llmzip import models
from llmzip.errors import LlmzipError
from llmzip.exact import quantise
from llmzip.train import data, shards
from llmzip.train.config import Config

GPU = Path(__file__).parent.parent / "scripts" / "gpu"

# Python runs a module of this name when it starts
HIDE = """
import sys
from importlib.machinery import PathFinder

class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = ("constriction", "numba", "zstandard", "accelerate")
        return None if name.split(".")[0] in hidden else super().find_spec(name, path, target)

sys.meta_path = [Hiding if finder is PathFinder else finder for finder in sys.meta_path]
"""


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(GPU))
    return __import__(name)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for i in range(30):
        (folder / f"en.{i:02d}.txt").write_text(f"{i}. {PROSE * 3}")
        (folder / f"code.{i:02d}.txt").write_text(f"for (int i{i} = 0;;)\n\tsum += a[i{i}];\n" * 20)
    return folder


def mix(path: Path, **megabytes: float) -> Path:
    path.write_text("".join(f"{name} = {value}\n" for name, value in megabytes.items()))
    return path


def prepared(prepare: types.ModuleType, corpus: Path, out: Path, *words: str | Path) -> list[bytes]:
    """The documents of the slices that `prepare.py slices` writes."""
    blocks = sys.modules["blocks"]
    given = vars(prepare.build().parse_args(["slices", str(corpus), str(out), *map(str, words)]))
    given.pop("call")(**given)
    folders = sorted(out.glob("slice-*"))
    return [d.encode() for _, found in blocks.read_all(folders) for d in found]


def test_slices_hold_the_mix_and_leave_out_that_of_an_earlier_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = script("prepare", monkeypatch)
    monkeypatch.setattr(prepare, "BLOCK", 5_000)
    some = mix(tmp_path / "some.toml", en=0.03, code=0.005)
    everything = mix(tmp_path / "all.toml", code=float("inf"), en=float("inf"))
    options = ["--processes", "1"]
    first = prepared(prepare, corpus, tmp_path / "1", "--mix", some, "--seed", "5", *options)
    assert 0.035e6 < sum(map(len, first)) < 0.045e6
    again = prepared(prepare, corpus, tmp_path / "2", "--mix", some, "--seed", "5", *options)
    assert again == first
    other = prepared(prepare, corpus, tmp_path / "3", "--mix", some, "--seed", "6", *options)
    assert set(other) != set(first)
    without = ["--without-mix", some, "--without-seed", "5"]
    rest = prepared(prepare, corpus, tmp_path / "4", "--mix", everything, *without, *options)
    whole = [path.read_bytes() for path in corpus.iterdir()]
    assert sorted([*first, *rest]) == sorted(whole)


def test_slices_are_no_larger_than_asked_for(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = script("prepare", monkeypatch)
    monkeypatch.setattr(prepare, "BLOCK", 5_000)
    everything = mix(tmp_path / "all.toml", en=float("inf"), code=float("inf"))
    options = ["--processes", "1", "--limit", "0.005"]
    prepared(prepare, corpus, tmp_path / "out", "--mix", everything, *options)
    folders = sorted((tmp_path / "out").iterdir())
    sizes = [sum(path.stat().st_size for path in folder.iterdir()) for folder in folders]
    assert len(sizes) > 1
    assert max(sizes) <= 0.005 * (1 << 20)


def test_a_mix_that_is_no_mix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = script("prepare", monkeypatch)
    with pytest.raises(LlmzipError, match=r"en = -1 is no number of megabytes"):
        prepare.read_mix(mix(tmp_path / "m.toml", en=-1))


def test_pieces_are_a_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece is larger than the limit, the newest ones stay, and llmzip reads them."""
    monkeypatch.setattr(shards, "PIECE_BYTES", 110_000)
    files = models.load(str(TINY))
    floats = quantise.dequantise_tensors(files.config, files.tensors)
    for step in (3, 7):
        shards.write(tmp_path, files.config, files.tokenizer_json, floats, {"step": step})
    pieces = sorted(tmp_path.glob("model-*"))
    assert len(pieces) > 1
    assert all("0000007" in path.name and path.stat().st_size <= 110_000 for path in pieces)
    read = models.load(str(tmp_path))
    expected = quantise.quantise_matrices(floats)
    assert read.tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.tensors.items())
    config, weights, progress = shards.read(tmp_path)
    assert (config, progress) == (files.config, {"step": 7})
    again = quantise.quantise_matrices(weights)
    assert all(torch.equal(again[n], t) for n, t in expected.items() if t.dtype == torch.int8)


def test_a_matrix_larger_than_a_piece_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "PIECE_BYTES", 70_000)
    with pytest.raises(LlmzipError, match=r"big takes 10400 bytes, more than a piece"):
        shards.write(tmp_path, {}, b"{}", {"big": torch.ones(100, 100)})


@pytest.fixture
def bundle(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A start with another vocabulary, a slice and two held-out texts."""
    prepare = script("prepare", monkeypatch)
    folder = tmp_path / "bundle"
    config = Config(name="", mix={"texts": 1.0}, vocab_size=320)
    tokenizer = data.train_tokenizer([PROSE], config)
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    prepare.start(
        str(TINY), folder / "start", layers=[1], tokenizer=tmp_path / "tokenizer.json", window=16
    )
    everything = mix(tmp_path / "all.toml", en=float("inf"), code=float("inf"))
    prepared(prepare, corpus, folder, "--mix", everything, "--processes", "1")
    texts = tmp_path / "dev"
    texts.mkdir()
    (texts / "prose.txt").write_text(PROSE[::-1])
    (texts / "known.txt").write_text(PROSE)
    prepare.held_out(texts, folder / "held-out", size=500)
    return folder


def words(bundle: Path, out: Path, seconds: float) -> list[str]:
    return [
        *("--start", str(bundle / "start"), "--data", str(bundle / "slice-0")),
        *("--held-out", str(bundle / "held-out"), "--out", str(out), "--seconds", str(seconds)),
        *("--device", "cpu", "--batch", "4", "--sequence", "32", "--warmup", "5"),
    ]


def logged(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_training_for_some_seconds_and_going_on(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = script("timed", monkeypatch)
    out = tmp_path / "out"
    for part in (1, 2):
        started = timed.time.time()
        monkeypatch.setattr(timed, "STARTED", started)
        assert timed.main(words(bundle, out, 3)) == 0
        assert timed.time.time() - started < 8  # other processes may slow the last step
        lines = logged(out)
        assert [line["event"] for line in lines if "event" in line].count("end") == part
    start, end = (next(x for x in reversed(lines) if x.get("event") == e) for e in ("start", "end"))
    assert start["start"] == str(out)
    before = start["progress"]["step"]
    assert 0 < before < end["step"]
    rates = [line["rate"] for line in lines if "rate" in line and line["step"] > before + 25]
    assert rates == sorted(rates, reverse=True)
    losses = [line["bits_per_byte"] for line in lines if line.get("event") == "held-out"]
    assert all(set(loss) == {"prose", "known"} for loss in losses)
    assert losses[-1]["known"] < losses[0]["known"]
    files = models.load(str(out))
    assert files.quantised
    archive = llmzip.compress(PROSE.encode(), model=str(out))
    assert llmzip.decompress(archive, model=str(out)) == PROSE.encode()


@pytest.mark.slow
def test_it_needs_neither_numba_nor_constriction(bundle: Path, tmp_path: Path) -> None:
    """The command itself, without packages that a bare environment lacks."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(HIDE)
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(blocked)}
    command = [str(GPU / "train"), *words(bundle, tmp_path / "out", 20)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == logged(tmp_path / "out")
    assert lines[-1]["event"] == "end"
    assert lines[-1]["time"] < 25
    assert lines[-1]["last_rate"] < 0.1
