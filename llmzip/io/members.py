"""A folder → one archive of a tar, with an index that finds a member without reading all before it.

The index is the tar's last member, so that `tar --use-compress-program=llmzip -x` reads it all the
same. Members that are alike share frames, and the memory learns from one to the next.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from llmzip.archive.options import Options
from llmzip.errors import CorruptArchive, LlmzipError
from llmzip.io.file import LlmzipFile
from llmzip.output import is_special, writing

INDEX = ".llmzip-index.json"
_BLOCK = tarfile.BLOCKSIZE
_TAIL = 1 << 16  # bytes at the end that are searched for the index at first
_INDEX_LIMIT = 1 << 28


def write(sink: BinaryIO, folder: Path, options: Options) -> None:
    """Files, folders and links below `folder`, in the order of their names, with modes and times
    but without owners. Raises OSError, LlmzipError."""
    index: dict[str, int] = {}
    with (
        LlmzipFile(sink, "w", options=options) as content,
        tarfile.TarFile(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _below(folder):
            if not (path.is_symlink() or path.is_file() or path.is_dir()):
                continue  # sockets, pipes, devices
            info = tar.gettarinfo(path, path.relative_to(folder).as_posix())
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = int(info.mtime)
            index[info.name] = tar.offset
            if info.isreg():
                with path.open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
        data = json.dumps(index, ensure_ascii=False, separators=(",", ":")).encode()
        info = tarfile.TarInfo(INDEX)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)


def read_index(content: LlmzipFile) -> dict[str, int] | None:
    """Name → where its header begins; None if there is no index. Decodes the end alone."""
    length = content.seek(0, io.SEEK_END)
    size = _TAIL
    while True:
        start = max(0, length - size) // _BLOCK * _BLOCK
        content.seek(start)
        tail = content.read(length - start)
        for at in range(len(tail) // _BLOCK * _BLOCK - _BLOCK, -1, -_BLOCK):
            if tail.startswith(INDEX.encode() + b"\0", at):
                return _parse(tail[at:])
        if not start or size > _INDEX_LIMIT:
            return None
        size *= 16


def _parse(tail: bytes) -> dict[str, int]:
    try:
        info = tarfile.TarInfo.frombuf(tail[:_BLOCK], "utf-8", "surrogateescape")
        index = json.loads(tail[_BLOCK : _BLOCK + info.size])
    except (tarfile.HeaderError, ValueError) as error:
        raise CorruptArchive(f"the index of members is damaged ({error})") from None
    if not isinstance(index, dict) or not all(isinstance(v, int) for v in index.values()):
        raise CorruptArchive("the index of members is damaged")
    return index


def extract(content: LlmzipFile, names: Sequence[str], target: Path) -> None:
    """Members, and all below those that are folders, to `target`; without names, all. Only the
    frames that hold them are decoded. Raises LlmzipError for what is not there or not safe."""
    if not hasattr(tarfile, "data_filter"):
        raise LlmzipError("this Python is too old to extract safely; newer ones of its line can")
    index = read_index(content)
    if index is None:
        raise LlmzipError("no index of members: tar --use-compress-program=llmzip -x reads it")
    chosen = [m for m in index if not names or any(_is_below(m, n) for n in names)]
    for name in names:
        if not any(_is_below(member, name) for member in index):
            raise LlmzipError(f"no member {name!r}")
    for member in chosen:
        content.seek(index[member])
        try:
            with tarfile.TarFile(fileobj=content) as tar:
                info = tar.firstmember  # type: ignore[attr-defined]
                if info is None or info.name != member:
                    raise CorruptArchive(f"the index of members leads astray at {member!r}")
                _extract(tar, info, target)
        except tarfile.FilterError as error:
            raise LlmzipError(f"not safe to extract: {error}") from None
        except tarfile.TarError as error:
            raise CorruptArchive(f"{member!r} cannot be read: {error}") from None


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo, target: Path) -> None:
    if not info.isreg():
        tar.extract(info, target, filter="data")
        return
    safe = tarfile.data_filter(info, str(target))
    source = tar.extractfile(info)
    assert source is not None  # of a regular member
    path = target / safe.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, overwrite=True) as sink:
        shutil.copyfileobj(source, sink)
        if not is_special(path):
            sink.flush()
            if safe.mode is not None:
                os.chmod(sink.name, safe.mode)
            os.utime(sink.name, (safe.mtime, safe.mtime))


def _is_below(member: str, name: str) -> bool:
    name = os.path.normpath(name)
    return member == name or member.startswith(name + "/")
