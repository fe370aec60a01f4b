"""Models as they were converted before, so that the next start need not do it again.

In the user's cache folder, `converted/KEY` holds the int8 form of a source, KEY being the digest of
the source and of the conversion's version; `sources/KEY` the digest of files that are known by
path, size and times, so that these need not be read to find it; `certificates/KEY` what certifying
a model gave under conditions that KEY stands for. What is damaged, or not as it
should be, is as good as absent; what cannot be written is not written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmzip.folders import cache_folder
from llmzip.models.digest import BYTES, digest

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 2  # of what conversion makes of a source: another one finds nothing of the old
WORTH = 8 << 20  # bytes of a source; smaller ones are converted in no time
_SPARE = 3  # times the size of an entry must be free on the disk
_WEIGHTS, _TOKENIZER, _ENTRY = "model.safetensors", "tokenizer.json", "entry.json"
_KINDS = ("sources", "converted", "certificates")
_LARGEST_JSON = 256 << 20


@dataclass(frozen=True)
class Converted:
    """A source in the form that exact arithmetic takes."""

    config: dict[str, Any]
    tokenizer: bytes  # `canonical` JSON
    tensors: dict[str, Tensor]
    digest: bytes  # of the model, as archives carry it


def marks(paths: Sequence[Path]) -> str | None:
    """What tells files apart without reading them; None if they cannot be looked at, or are
    not worth it."""
    try:
        states = [path.stat() for path in paths]
    except OSError:
        return None
    if sum(s.st_size for s in states) < WORTH:
        return None
    found = [
        [str(path.absolute()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
        for path, s in zip(paths, states, strict=True)
    ]
    return _name(json.dumps(found).encode())


def source_of(marks: str | None) -> bytes | None:
    """The digest of the source that had these marks when it was read."""
    return None if marks is None else _recall("sources", marks, BYTES)


def remember(marks: str, source: bytes) -> None:
    _note("sources", marks, source)


def certificate(conditions: bytes, length: int) -> bytes | None:
    """What was noted under these conditions, if that has this length."""
    return _recall("certificates", _name(conditions), length)


def keep_certificate(conditions: bytes, certificate: bytes) -> None:
    _note("certificates", _name(conditions), certificate)


def _recall(kind: str, name: str, length: int) -> bytes | None:
    try:
        with (_folder(kind) / name).open("rb") as file:
            found = bytes.fromhex(file.read(2 * length + 1).decode("ascii"))
    except (OSError, ValueError):
        return None
    return found if len(found) == length else None


def _note(kind: str, name: str, content: bytes) -> None:
    with contextlib.suppress(OSError), _making(kind) as work:
        (work / name).write_text(content.hex())
        (work / name).replace(_folder(kind) / name)


def read(source: bytes) -> Converted | None:
    """What a source was converted to; None if there is nothing, or nothing whole."""
    from safetensors.torch import load_file

    place = _entry(source)
    try:
        if any((place / n).stat().st_size > _LARGEST_JSON for n in (_ENTRY, _TOKENIZER)):
            return None
        entry = json.loads((place / _ENTRY).read_bytes())
        config, tokenizer = entry["config"], (place / _TOKENIZER).read_bytes()
        tensors = load_file(place / _WEIGHTS)
        if digest(config, tokenizer, tensors).hex() != entry["checksum"]:
            return None
        return Converted(config, tokenizer, tensors, bytes.fromhex(entry["digest"]))
    except Exception:  # safetensors raises its own; and there may be anything in the folder
        return None


def write(source: bytes, converted: Converted) -> None:
    """Keep it, if that can be done."""
    from safetensors.torch import save_file

    c, place = converted, _entry(source)
    entry = {
        "config": c.config,
        "digest": c.digest.hex(),
        "checksum": digest(c.config, c.tokenizer, c.tensors).hex(),
    }
    # the cache only saves time: a full disk or a folder of someone else's is no reason to fail
    with contextlib.suppress(Exception), _making("converted") as work:
        needed = sum(tensor.nbytes for tensor in c.tensors.values())
        if shutil.disk_usage(work).free < _SPARE * needed:
            return
        save_file({n: t.contiguous() for n, t in c.tensors.items()}, work / "new" / _WEIGHTS)
        (work / "new" / _TOKENIZER).write_bytes(c.tokenizer)
        (work / "new" / _ENTRY).write_text(json.dumps(entry), encoding="utf-8")
        if place.exists():  # damaged, or another process was as quick
            place.rename(work / "old")
        (work / "new").rename(place)


def size() -> int:
    """Bytes of all that is kept."""
    kept = (path for kind in _KINDS for path in _folder(kind).rglob("*"))
    return sum(path.stat().st_size for path in kept if path.is_file())


def clean() -> None:
    """Remove all that is kept. Raises OSError."""
    for kind in _KINDS:
        if _folder(kind).is_dir():
            shutil.rmtree(_folder(kind))


def _folder(kind: str) -> Path:
    return cache_folder() / kind


def _entry(source: bytes) -> Path:
    return _folder("converted") / _name(source + bytes([VERSION]))


def _name(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


@contextlib.contextmanager
def _making(kind: str) -> Iterator[Path]:
    """A folder for what is not complete yet, on the same disk; it is gone afterwards."""
    _folder(kind).mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".", dir=_folder(kind)))
    try:
        os.mkdir(work / "new")
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
