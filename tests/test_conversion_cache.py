"""The cache of converted models: the same bits with and without; whatever lies in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf_files
import pytest
import torch
from conftest import PROSE, TINY
from safetensors.torch import load_file, save_file
from table_predictor import joined

import llmzip
from llmzip import folders, inference, models
from llmzip.archive import codecs
from llmzip.exact import quantise
from llmzip.models import conversion_cache as cache
from llmzip.models.model_folder import save


@pytest.fixture(autouse=True)
def cache_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test that takes small models too."""
    monkeypatch.setenv("LLMZIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "MIN_SOURCE_BYTES", 0)
    return tmp_path / "cache"


@pytest.fixture(params=["gguf", "folder"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "gguf":
        return str(gguf_files.write(tmp_path / "m.gguf", kind="Q8_0"))
    config, tokenizer, weights = gguf_files.tiny()
    save(config, tokenizer, {n: torch.from_numpy(w) for n, w in weights.items()}, tmp_path / "m")
    return str(tmp_path / "m")


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one at each conversion."""
    found: list[str] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        found.append("")
        return original(*arguments, **options)

    original = quantise.quantise_tensors
    monkeypatch.setattr(quantise, "quantise_tensors", counted)
    return found


def same(one: models.ModelFiles, other: models.ModelFiles) -> bool:
    return (
        one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(t, other.tensors[n]) for n, t in one.tensors.items())
        and (one.config, one.digest) == (other.config, other.digest)
        and one.quantised == other.quantised
        and json.loads(one.tokenizer_json) == json.loads(other.tokenizer_json)
    )


def test_converted_once(model: str, conversions: list[str], cache_path: Path) -> None:
    first = models.load(model, exact=True)
    assert len(conversions) == 1
    assert same(models.load(model, exact=True), first)
    assert len(conversions) == 1
    assert cache.size() > 100_000
    assert not list(cache_path.glob("*/.*"))
    cache.clean()
    assert cache.size() == 0
    assert same(models.load(model, exact=True), first)
    assert len(conversions) == 2


def test_archives_are_the_same(model: str) -> None:
    """Without the cache, when it is filled, and from it; and of the floats by themselves."""
    archives = []
    for _ in range(3):
        codecs.codec_cache.clear()
        archives.append(llmzip.compress(PROSE.encode(), model=model))
    codecs.codec_cache.clear()
    assert llmzip.decompress(archives[0], model=model) == PROSE.encode()
    assert len(set(archives)) == 1
    if Path(model).is_dir():
        floats = models.load(model)
        assert floats.tensors["model.norm.weight"].dtype == torch.float32
        assert not floats.quantised
        kept = models.load(model, exact=True)
        assert kept.quantised
        context = inference.Context(64, 32)
        ids = torch.arange(40)[None] * 7 % 512
        one, other = (
            joined(inference.build(f, activations="a8", context=context).run(1, 40).score(ids))
            for f in (floats, kept)
        )
        assert torch.equal(one, other)
        assert floats.digest == models.load(model, exact=True).digest


def test_a_changed_model_is_read_anew(model: str) -> None:
    first = models.load(model, exact=True)
    path = Path(model)
    if path.is_dir():
        tensors = load_file(path / "model.safetensors")
        tensors["model.norm.weight"][0] += 1
        save_file(tensors, path / "model.safetensors")
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    assert models.load(model, exact=True).digest != first.digest


def test_a_copy_is_known_by_its_content(tmp_path: Path, conversions: list[str]) -> None:
    model = gguf_files.write(tmp_path / "m.gguf")
    first = models.load(str(model))
    shutil.copy(model, tmp_path / "copy.gguf")
    assert same(models.load(str(tmp_path / "copy.gguf")), first)
    assert len(conversions) == 1


def test_another_version_finds_nothing(
    model: str, conversions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models.load(model, exact=True)
    monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    models.load(model, exact=True)
    assert len(conversions) == 2


def _spoil(path: Path, how: str) -> None:
    if how == "gone":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "deep":
        path.write_bytes(b"[" * 100_000)
    elif how == "huge header":
        path.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    elif how == "other JSON":
        path.write_text('{"config": 5, "digest": [], "checksum": {}}')
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("file", ["model.safetensors", "entry.json", "tokenizer.json", "sources"])
@pytest.mark.parametrize(
    "how", ["gone", "empty", "folder", "deep", "huge header", "other JSON", "a bit"]
)
def test_damage_is_as_good_as_absence(model: str, cache_path: Path, file: str, how: str) -> None:
    first = models.load(model, exact=True)
    path = next(cache_path.glob("sources/*" if file == "sources" else f"converted/*/{file}"))
    _spoil(path, how)
    assert same(models.load(model, exact=True), first)
    assert same(models.load(model, exact=True), first)  # and the new entry is complete


def test_a_folder_that_cannot_be_written(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = models.load(model, exact=True)
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/none")):
        monkeypatch.setenv("LLMZIP_CACHE", str(path))
        assert same(models.load(model, exact=True), expected)
        assert cache.size() == 0


def test_a_full_disk(model: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    models.load(model, exact=True)
    assert not list(cache_path.glob("converted/*"))
    assert not list(cache_path.glob("converted/.*"))


def test_a_disk_that_is_almost_full(
    model: str, cache_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100_000))
    models.load(model, exact=True)
    assert not list(cache_path.glob("converted/*"))


def test_small_and_embedded_ones_are_not_kept(
    cache_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "MIN_SOURCE_BYTES", 8 << 20)
    models.load(model, exact=True)
    models.load(models.DEFAULT, exact=True)
    models.load(str(TINY), exact=True)  # in int8 already
    assert not cache_path.exists()


def test_fingerprints(tmp_path: Path, cache_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that transformers computes is verified once, and again where anything differs."""
    import families

    from llmzip.exact.convert import verify

    folder = tmp_path / "gpt2"
    families.save(families.build(*families.FAMILIES["gpt2"]), folder)
    asked: list[Any] = []
    original = verify.verify
    monkeypatch.setattr(verify, "verify", lambda form: asked.append(form) or original(form))

    def fingerprint() -> bytes:
        files = models.load(str(folder), exact=True)
        context = inference.Context(64, 32)
        return inference.build(files, activations="a8", context=context).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    assert len(asked) == 1
    monkeypatch.setattr(verify.transformers, "__version__", "9")
    assert fingerprint() == first
    assert len(asked) == 2
    for note in cache_path.glob("fingerprints/*"):
        note.write_text("no fingerprint")
    assert fingerprint() == first
    assert len(asked) == 3


def test_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("LLMZIP_CACHE", "LLMZIP_HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert folders.cache_folder() == tmp_path / ".cache" / "llmzip"
    assert folders.data_folder() == tmp_path / ".local" / "share" / "llmzip"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "d"))
    assert folders.cache_folder() == tmp_path / "c" / "llmzip"
    assert folders.data_folder() == tmp_path / "d" / "llmzip"
