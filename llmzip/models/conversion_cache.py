"""Cache of converted models, so that the next start need not convert again.

Three kinds of entries in the user's cache folder:
`converted/KEY`: the int8 form of a source; KEY is a hash of the source's digest and `VERSION`.
`sources/KEY`: the digest of source files; KEY is a hash of their paths, sizes and times, so that
they need not be read to find it.
`fingerprints/KEY`: the fingerprint of a converted model; KEY is a hash of all that it depends on.
Damaged entries count as missing. Failures to write are ignored: the cache only saves time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmzip.folders import cache_folder
from llmzip.models import weight_file
from llmzip.models.digest import DIGEST_BYTES, digest

VERSION = 2  # of the conversion; entries of other versions are not found
MIN_SOURCE_BYTES = 8 << 20  # smaller sources are converted in no time
_MIN_FREE = 3  # times the size of an entry must be free on the disk
_WEIGHTS, _TOKENIZER, _ENTRY = "model.safetensors", "tokenizer.json", "entry.json"
_KINDS = ("sources", "converted", "fingerprints")
_MAX_JSON = 256 << 20


@dataclass(frozen=True)
class ConvertedModel:
    """A model in the form that exact inference takes."""

    config: dict[str, Any]
    tokenizer: bytes  # `canonical` JSON
    tensors: Mapping[str, Any]  # or numpy arrays
    digest: bytes  # of the model, as archives carry it


def stat_key(paths: Sequence[Path]) -> str | None:
    """A hash of the paths, sizes and times of files; None if they are missing or too small to be
    cached."""
    try:
        stats = [path.stat() for path in paths]
    except OSError:
        return None
    if sum(s.st_size for s in stats) < MIN_SOURCE_BYTES:
        return None
    fields = [
        [str(path.absolute()), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino]
        for path, s in zip(paths, stats, strict=True)
    ]
    return _hash(json.dumps(fields).encode())


def load_source_digest(key: str | None) -> bytes | None:
    """The digest that was saved for a `stat_key`."""
    return None if key is None else _load_bytes("sources", key, DIGEST_BYTES)


def save_source_digest(key: str, source: bytes) -> None:
    """Save the digest of the files of a `stat_key`."""
    _save_bytes("sources", key, source)


def load_fingerprint(environment: bytes, length: int) -> bytes | None:
    """The fingerprint, of `length` bytes, that was saved for `environment`."""
    return _load_bytes("fingerprints", _hash(environment), length)


def save_fingerprint(environment: bytes, fingerprint: bytes) -> None:
    """Save the fingerprint of a model; `environment` is all that it depends on."""
    _save_bytes("fingerprints", _hash(environment), fingerprint)


def load(source: bytes) -> ConvertedModel | None:
    """The converted form of the source with this digest; None if it is missing or damaged."""
    folder = _entry(source)
    try:
        if any((folder / n).stat().st_size > _MAX_JSON for n in (_ENTRY, _TOKENIZER)):
            return None
        entry = json.loads((folder / _ENTRY).read_bytes())
        config, tokenizer = entry["config"], (folder / _TOKENIZER).read_bytes()
        tensors = weight_file.read(folder / _WEIGHTS)
        if digest(config, tokenizer, tensors).hex() != entry["checksum"]:
            return None
        return ConvertedModel(config, tokenizer, tensors, bytes.fromhex(entry["digest"]))
    except Exception:  # safetensors raises its own exceptions, and any file may be damaged
        return None


def save(source: bytes, model: ConvertedModel) -> None:
    """Save the converted form of the source with this digest."""
    from safetensors.torch import save_file

    folder = _entry(source)
    entry = {
        "config": model.config,
        "digest": model.digest.hex(),
        "checksum": digest(model.config, model.tokenizer, model.tensors).hex(),
    }
    with contextlib.suppress(Exception), _work_folder("converted") as work:
        size = sum(tensor.nbytes for tensor in model.tensors.values())
        if shutil.disk_usage(work).free < _MIN_FREE * size:
            return
        save_file({n: t.contiguous() for n, t in model.tensors.items()}, work / "new" / _WEIGHTS)
        (work / "new" / _TOKENIZER).write_bytes(model.tokenizer)
        (work / "new" / _ENTRY).write_text(json.dumps(entry), encoding="utf-8")
        if folder.exists():  # damaged, or from another process
            folder.rename(work / "old")
        (work / "new").rename(folder)


def size() -> int:
    """The size of all entries in bytes."""
    paths = (path for kind in _KINDS for path in _folder(kind).rglob("*"))
    return sum(path.stat().st_size for path in paths if path.is_file())


def clean() -> None:
    """Remove all entries. Raises OSError."""
    for kind in _KINDS:
        if _folder(kind).is_dir():
            shutil.rmtree(_folder(kind))


def _load_bytes(kind: str, key: str, length: int) -> bytes | None:
    try:
        with (_folder(kind) / key).open("rb") as file:
            content = bytes.fromhex(file.read(2 * length + 1).decode("ascii"))
    except (OSError, ValueError):
        return None
    return content if len(content) == length else None


def _save_bytes(kind: str, key: str, content: bytes) -> None:
    with contextlib.suppress(OSError), _work_folder(kind) as work:
        (work / key).write_text(content.hex())
        (work / key).replace(_folder(kind) / key)


def _folder(kind: str) -> Path:
    return cache_folder() / kind


def _entry(source: bytes) -> Path:
    return _folder("converted") / _hash(source + bytes([VERSION]))


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=20).hexdigest()


@contextlib.contextmanager
def _work_folder(kind: str) -> Iterator[Path]:
    """A temporary folder on the cache's disk, with an empty folder `new` in it."""
    _folder(kind).mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".", dir=_folder(kind)))
    try:
        os.mkdir(work / "new")
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
