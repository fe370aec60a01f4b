"""Folders and names → model files; unsafe and incomplete ones are refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import PROSE, TINY, run
from safetensors.torch import load_file, save_file

import llmzip
from llmzip import models
from llmzip.errors import UnsupportedModel, WrongModel
from llmzip.exact.architecture import Architecture
from llmzip.exact.quantise import dequantise_tensors
from llmzip.models.store import save_int8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.mark.parametrize("name", models.EMBEDDED)
def test_embedded_models_load_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket, "socket", None)
    files = models.load(name)
    assert files.digest.hex() == models.embedded_record(name)["digest"]
    assert models.embedded_with_digest(files.digest[:6]) == name
    assert files.quantised


def test_the_digest_is_that_of_the_content_not_of_its_spelling(folder: Path) -> None:
    original = models.load(str(folder)).digest
    for name in ("config.json", "tokenizer.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    config = json.loads((folder / "config.json").read_text())
    config["transformers_version"] = "9"
    (folder / "config.json").write_text(json.dumps(config))
    assert models.load(str(folder)).digest == original


@pytest.mark.parametrize("what", ["config", "tokenizer", "weights"])
def test_the_digest_changes_with_the_content(folder: Path, what: str) -> None:
    original = models.load(str(folder)).digest
    if what == "weights":
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] += 1e-3
        save_file(tensors, folder / "model.safetensors")
    else:
        path = folder / f"{what}.json"
        content = json.loads(path.read_text())
        content["changed"] = 1
        path.write_text(json.dumps(content))
    assert models.load(str(folder)).digest != original


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickled weights, which can run code"):
        models.load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(UnsupportedModel, match=name):
        models.load(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[1, 2]", b"[" * 100_000])
def test_broken_files_are_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(UnsupportedModel, match=name):
        models.load(str(folder))


def test_an_index_cannot_reach_outside_of_its_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "../other/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnsupportedModel, match="does not name files of its folder"):
        models.load(str(folder))


@pytest.mark.parametrize("name", ["", "no-such-model", "./no-such-folder", "a/b/c", "../x"])
def test_unknown_names(name: str) -> None:
    with pytest.raises(WrongModel, match="no model"):
        models.load(name)


def test_a_hub_id_without_network_or_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WrongModel, match="neither in the local cache nor could it be fetched"):
        models.load("owner/model")


@pytest.fixture
def hub(tmp_path: Path) -> dict[str, str]:
    """An environment without network whose cache of the hub holds two models."""
    for name, change in (("tiny", {}), ("other", {"model_type": "t5"})):
        snapshot = tmp_path / f"models--owner--{name}" / "snapshots" / ("0" * 40)
        shutil.copytree(TINY, snapshot)
        config = json.loads((snapshot / "config.json").read_text()) | change
        (snapshot / "config.json").write_text(json.dumps(config))
        refs = tmp_path / f"models--owner--{name}" / "refs"
        refs.mkdir()
        (refs / "main").write_text("0" * 40)
    return {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}


def test_a_hub_id_from_the_cache(hub: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text(PROSE)
    model = ("--model", "owner/tiny")
    done = run("compress", path, *model, environment=hub)
    assert done.returncode == 0, done.stderr.decode()
    info = json.loads(run("info", "--json", f"{path}.llmz").stdout)
    assert info[0]["archives"][0]["model"]["name"] == "owner/tiny"
    path.unlink()
    assert run("decompress", f"{path}.llmz", *model, environment=hub).returncode == 0
    assert path.read_text() == PROSE
    done = run("compress", "-f", path, "--model", "owner/absent", environment=hub)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"neither in the local cache nor could it be fetched" in done.stderr


def test_the_list_of_models(hub: dict[str, str]) -> None:
    report = json.loads(run("models", "--json", environment=hub).stdout)
    assert [model["name"] for model in report["embedded"]] == list(models.EMBEDDED)
    assert all(model["parameters"] > 1e5 and model["bytes"] > 1e5 for model in report["embedded"])
    tiny, other = sorted(report["cached"], key=lambda model: not model["exact"])
    assert (tiny["name"], tiny["exact"]) == ("owner/tiny", True)
    assert (other["name"], other["exact"]) == ("owner/other", False)
    assert "no causal language model" in other["obstacle"]
    text = run("models", environment=hub).stdout.decode()
    assert "owner/tiny" in text
    assert models.DEFAULT in text


def test_the_list_of_models_without_a_cache(tmp_path: Path) -> None:
    done = run("models", environment={"HF_HUB_CACHE": str(tmp_path / "none")})
    assert done.returncode == 0
    assert b"no hub models" in done.stdout


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        ({"bos_token_id": 5, "eos_token_id": 6}, 5),
        ({"bos_token_id": None, "eos_token_id": [7, 8]}, 7),
        ({"bos_token_id": 10_000, "eos_token_id": None}, 0),
        ({"bos_token_id": None}, 0),
    ],
)
def test_what_contexts_begin_with(config: dict[str, object], bos: int) -> None:
    files = models.ModelFiles("m", {"vocab_size": 512, **config}, {}, b"", b"")
    assert files.bos == bos


def test_what_is_in_int8_is_not_quantised_again(tmp_path: Path) -> None:
    save_int8(str(TINY), tmp_path / "copy")
    assert models.load(str(tmp_path / "copy")).digest == models.load(str(TINY)).digest


def test_int8_can_be_made_for_transformed_inputs(tmp_path: Path) -> None:
    """Almost the same weights come back."""
    save_int8(str(TINY), tmp_path / "once", rotated=True)
    once, before = models.load(str(tmp_path / "once")), models.load(str(TINY))
    assert once.config["llmzip_rotated"]
    one, other = (dequantise_tensors(f.config, f.tensors) for f in (once, before))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        assert (weight - other[name]).norm() < 0.02 * weight.norm(), name


def test_the_first_byte_of_a_digest_tells_embedded_models_apart() -> None:
    """Short archives hold no more of it."""
    starts = {models.embedded_record(name)["digest"][:2] for name in models.EMBEDDED}
    assert len(starts) == len(models.EMBEDDED)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": [1]},
        {"rope_theta": None, "rope_parameters": None},
        {"rope_theta": "far", "rope_parameters": None},
        {"hidden_size": 1e999},
        {"num_hidden_layers": 10**10},
        {"num_attention_heads": 0},
        {"rms_norm_eps": {}},
    ],
    ids=str,
)
def test_configurations_that_make_no_sense(changes: dict[str, object]) -> None:
    config = {**json.loads((TINY / "config.json").read_text()), **changes}
    with pytest.raises(llmzip.LlmzipError):
        Architecture.from_config(config)
