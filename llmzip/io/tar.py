"""A folder → one compressed tar file, with an index by which single members can be extracted.

The index is the last member, so that `tar --use-compress-program=llmzip -x` works as well. Members
share frames, and the mixing learns from one member to the next.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from llmzip.archive.options import Options
from llmzip.errors import CorruptArchive, LlmzipError
from llmzip.io.file import LlmzipFile
from llmzip.output import is_special, writing

INDEX = ".llmzip-index.json"
_BLOCK = tarfile.BLOCKSIZE
_TAIL_BYTES = 1 << 16  # at the end, searched for the index first
_TAIL_LIMIT = 1 << 28


def write(sink: BinaryIO, folder: Path, options: Options) -> None:
    """Compress the files, folders and links in `folder` to `sink`, sorted by name.

    Modes and times are kept, owners are not. Raises OSError, LlmzipError.
    """
    index: dict[str, int] = {}
    with (
        LlmzipFile(sink, "w", options=options) as content,
        tarfile.TarFile(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in _walk(folder):
            if not (path.is_symlink() or path.is_file() or path.is_dir()):
                continue  # sockets, pipes, devices
            tar.inodes = {}  # type: ignore[attr-defined]  # each name has the content of its own
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
        data = json.dumps(index, separators=(",", ":")).encode()  # ASCII: names may be no UTF-8
        info = tarfile.TarInfo(INDEX)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _walk(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def read_index(content: LlmzipFile) -> dict[str, int] | None:
    """Member's name → position of its header; None if there is no index.

    Decodes only the end of the content. Raises CorruptArchive.
    """
    length = content.seek(0, io.SEEK_END)
    size = _TAIL_BYTES
    while True:
        start = max(0, length - size) // _BLOCK * _BLOCK
        content.seek(start)
        tail = content.read(length - start)
        for block in range(len(tail) // _BLOCK * _BLOCK - _BLOCK, -1, -_BLOCK):
            if tail.startswith(INDEX.encode() + b"\0", block):
                return _parse_index(tail[block:])
        if not start or size >= _TAIL_LIMIT:
            return None
        size *= 16


def _parse_index(tail: bytes) -> dict[str, int]:
    try:
        info = tarfile.TarInfo.frombuf(tail[:_BLOCK], "utf-8", "surrogateescape")
        index = json.loads(tail[_BLOCK : _BLOCK + info.size])
    except (tarfile.HeaderError, ValueError, RecursionError) as error:
        raise CorruptArchive(f"the index is damaged ({error})") from None
    if not isinstance(index, dict) or not all(
        isinstance(v, int) and 0 <= v < 1 << 63 for v in index.values()
    ):
        raise CorruptArchive("the index is damaged")
    return index


def extract(content: LlmzipFile, names: Sequence[str], target: Path) -> None:
    """Extract members, and all that is in those that are folders, to the folder `target`.

    Without names, all members. Decodes only the frames that hold them. Raises LlmzipError if a
    member does not exist or is not safe to extract, CorruptArchive, OSError.
    """
    if not hasattr(tarfile, "data_filter"):
        raise LlmzipError("this Python cannot extract safely: update to its latest patch release")
    index = read_index(content)
    if index is None:
        raise LlmzipError(
            "the archive has no index: extract it with tar --use-compress-program=llmzip -x"
        )
    chosen = [m for m in index if not names or any(_is_in(m, n) for n in names)]
    for name in names:
        if not any(_is_in(member, name) for member in index):
            raise LlmzipError(f"no member {name!r}")
    bounded = _Bounded(content)
    for member in chosen:
        content.seek(index[member])
        try:
            with tarfile.TarFile(fileobj=cast(BinaryIO, bounded)) as tar:
                info = tar.firstmember  # type: ignore[attr-defined]
                if info is None or info.name != member:
                    raise CorruptArchive(f"the index is wrong about {member!r}")
                _extract(tar, info, target)
        except tarfile.FilterError as error:
            raise LlmzipError(f"not safe to extract: {error}") from None
        except MemoryError:
            raise CorruptArchive(f"{member!r} cannot be read: it needs too much memory") from None
        except (tarfile.TarError, KeyError, ValueError, OverflowError) as error:
            raise CorruptArchive(f"{member!r} cannot be read: {error}") from None


class _Bounded:
    """Content for `tarfile`, which reads as many bytes at once as a header says, be it 2^60."""

    def __init__(self, content: LlmzipFile) -> None:
        self.seek, self.tell = content.seek, content.tell
        self._content, self._length = content, content.seek(0, io.SEEK_END)

    def read(self, size: int) -> bytes:
        return self._content.read(max(0, min(size, self._length - self.tell())))


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


def _is_in(member: str, name: str) -> bool:
    name = os.path.normpath(name)
    return member == name or member.startswith(name + "/")
