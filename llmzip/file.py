"""Archives as files: `open` as in gzip and lzma, and safe replacement of a target file.

Knows nothing of models' insides.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

from llmzip.codec import ArchiveReader, ArchiveWriter, Options


class _Contents(io.RawIOBase):
    """The content of an archive as a raw stream; seeking back starts over."""

    def __init__(self, source: BinaryIO, options: Options) -> None:
        self._source, self._options = source, options
        self._rewind()

    def _rewind(self) -> None:
        self._frames = iter(ArchiveReader(self._source, self._options))
        self._frame = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._source.seekable()

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        while not self._frame:
            frame = next(self._frames, None)
            if frame is None:
                return 0
            self._frame = memoryview(frame)
        count = min(len(buffer), len(self._frame))
        buffer[:count] = self._frame[:count]
        self._frame = self._frame[count:]
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Emulated by decoding, so going far may be slow."""
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            self._skip(None)
            offset += self._position
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        if offset < self._position:
            self._source.seek(0)
            self._rewind()
        self._skip(offset - self._position)
        return self._position

    def _skip(self, count: int | None) -> None:
        buffer = bytearray(1 << 16)
        while count is None or count > 0:
            size = len(buffer) if count is None else min(count, len(buffer))
            got = self.readinto(memoryview(buffer)[:size])
            if not got:
                break
            count = None if count is None else count - got

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


class _Archive(io.RawIOBase):
    """What is written to it becomes an archive; `close` completes it."""

    def __init__(self, sink: BinaryIO, options: Options) -> None:
        self._sink = sink
        self._writer = ArchiveWriter(sink, options)

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        view = memoryview(data)
        self._writer.write(view.cast("B"))
        return view.nbytes

    def close(self) -> None:
        """May be called more than once without error."""
        if not self.closed:
            try:
                self._writer.finish()
            finally:
                self._sink.close()
        super().close()


def open(
    filename: str | os.PathLike[str] | BinaryIO,
    mode: str = "rb",
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    options: Options | None = None,
) -> IO[bytes] | IO[str]:
    """Open an archive for reading or writing, as gzip.open and lzma.open do.

    `filename` is a path or a binary file object, which is closed with the archive; `mode` is
    one of r, w, x, with b (the default) or t for text. Raises LlmzipError when what is read
    is no intact archive. An archive being written is complete only after `close`.
    """
    kind, text = mode.replace("t", "").replace("b", ""), "t" in mode
    if kind not in ("r", "w", "x") or (text and "b" in mode):
        raise ValueError(f"invalid mode {mode!r}")
    if not text and (encoding, errors, newline) != (None, None, None):
        raise ValueError("encoding, errors and newline are for text modes")
    file: BinaryIO
    if isinstance(filename, (str, os.PathLike)):
        file = builtins.open(filename, kind + "b")  # type: ignore[assignment] # noqa: SIM115
    else:
        file = filename
    options = options or Options()
    stream: io.BufferedReader | io.BufferedWriter
    try:
        if kind == "r":
            stream = io.BufferedReader(_Contents(file, options))
        else:
            stream = io.BufferedWriter(_Archive(file, options))
    except BaseException:
        file.close()
        raise
    return io.TextIOWrapper(stream, encoding, errors, newline) if text else stream


@contextlib.contextmanager
def replacing(target: Path, *, overwrite: bool) -> Iterator[BinaryIO]:
    """A temporary file beside `target` that takes its place when the block ends well.

    Raises FileExistsError unless `overwrite`; whatever goes wrong, no partial file stays.
    """
    if target.exists() and not overwrite:
        raise _exists(target)
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}")
    try:
        with builtins.open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, target)
        else:  # unlike a rename, a link fails if someone made the target meanwhile
            _link_new(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _link_new(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError:  # it exists, or the file system has no hard links
        if target.exists():
            raise _exists(target) from None
        os.replace(temporary, target)


def _exists(target: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "exists already; -f overwrites it", str(target))
