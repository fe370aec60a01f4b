"""Archives as file objects: `open` and `LlmzipFile`, as in gzip and lzma."""

from __future__ import annotations

import builtins
import io
import os
import sys
from typing import Any, BinaryIO, Literal, cast, overload

from llmzip.archive.options import Options, bytes_like
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter

_Text = Literal["rt", "wt", "xt", "at", "tr", "tw", "tx", "ta"]
_Binary = Literal["r", "w", "x", "a", "rb", "wb", "xb", "ab", "br", "bw", "bx", "ba"]


class _Content(io.RawIOBase):
    """The content of an archive as a raw stream.

    Seeking only sets the position; the next read decodes the frame that holds it.
    """

    def __init__(self, source: BinaryIO, options: Options) -> None:
        self._reader = ArchiveReader(source, options)
        self._seekable = source.seekable()
        self._position = 0
        self._frame = memoryview(b"")  # content of the frame that was decoded last,
        self._start = 0  # its offset,
        self._next: int | None = 0  # and that of the next frame; None: unknown since an error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._seekable

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        while not 0 <= self._position - self._start < len(self._frame):
            if self._next != self._position:
                self._find(self._position)
            start = self._next
            if self._seekable:
                self._next = None
            content = self._reader.read_frame()
            self._next = start
            if content is None:
                return 0
            assert start is not None
            self._frame, self._start = memoryview(content), start
            self._next = start + len(content)
        part = self._frame[self._position - self._start :][: len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _find(self, offset: int) -> int:
        """Go to the frame that holds `offset`, or to the end; returns its offset."""
        self._next = None
        self._next = self._reader.seek(offset)
        return self._next

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if not self._seekable:
            raise io.UnsupportedOperation("the archive is read from a source that is not seekable")
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self._find(sys.maxsize)
        elif whence != io.SEEK_SET:
            raise ValueError(f"invalid whence {whence}")
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        self._position = offset
        return offset


def _binary_file(file: Any, method: str) -> BinaryIO:
    """Raises TypeError, or ValueError for a closed file."""
    if not hasattr(file, method):
        raise TypeError(f"a path or a binary file is needed, not {type(file).__name__}")
    if isinstance(file, io.TextIOBase):
        raise TypeError("a binary file is needed, not a text file: open it with mode 'b'")
    if getattr(file, "closed", False):
        raise ValueError("I/O operation on closed file")
    return cast(BinaryIO, file)


class LlmzipFile(io.BufferedIOBase):
    """An archive as a binary file object, for reading or writing its content.

    Reading can seek, and decodes only the frames that hold what is read; writing cannot seek. A
    written archive is complete only after `close`.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str] | BinaryIO,
        mode: str = "r",
        *,
        options: Options | None = None,
    ) -> None:
        """`filename` is a path, or a binary file object, which `close` leaves open.

        `mode` is r, w, x or a, with or without b; a appends a further archive, as concatenated
        archives are read as one. Raises LlmzipError if a file to be read is not an archive,
        OSError, ValueError for other modes, TypeError for anything but a path or a binary file.
        """
        self._reading: io.BufferedReader | None = None
        self._writing: ArchiveWriter | None = None
        self._file: BinaryIO | None = None
        self._failed = False
        self._written = 0
        if not isinstance(mode, str):
            raise TypeError(f"mode is {mode!r}; it must be str")
        kind = mode.replace("b", "", 1)
        if kind not in ("r", "w", "x", "a"):
            raise ValueError(f"invalid mode {mode!r}; possible are r, w, x, a, with b or t")
        self._owned = isinstance(filename, (str, os.PathLike))
        if isinstance(filename, (str, os.PathLike)):
            self._file = cast(BinaryIO, builtins.open(filename, kind + "b"))  # noqa: SIM115
        else:
            self._file = _binary_file(filename, "read" if kind == "r" else "write")
        try:
            options = options or Options()
            if kind == "r":
                self._reading = io.BufferedReader(_Content(self._file, options))
            else:
                self._writing = ArchiveWriter(self._file, options)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Complete a written archive; further calls do nothing. Raises LlmzipError, OSError."""
        if self._file is None:
            return
        file, self._file = self._file, None
        try:
            if self._reading is not None:
                self._reading.close()
            if self._writing is not None and not self._failed:
                self._writing.finish()
        finally:
            self._reading = self._writing = None
            if self._owned:
                file.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._file is None

    def _open_file(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("I/O operation on closed file")
        return self._file

    def _reader(self) -> io.BufferedReader:
        self._open_file()
        if self._reading is None:
            raise io.UnsupportedOperation("not open for reading")
        return self._reading

    def fileno(self) -> int:
        """The file descriptor of the archive. Raises OSError if there is none."""
        return self._open_file().fileno()

    def readable(self) -> bool:
        """Whether content can be read."""
        return self._open_file() is not None and self._reading is not None

    def writable(self) -> bool:
        """Whether content can be written."""
        return self._open_file() is not None and self._writing is not None

    def seekable(self) -> bool:
        """Whether `seek` works: when reading from a seekable file."""
        return self.readable() and self._reader().seekable()

    def read(self, size: int | None = -1) -> bytes:
        """Up to `size` bytes of content, all of it by default; b"" at the end.

        Raises CorruptArchive if a frame that holds them, or the end, is damaged.
        """
        return self._reader().read(size)

    def read1(self, size: int = -1) -> bytes:
        """Up to `size` bytes of content from one frame."""
        return self._reader().read1(size)

    def readinto(self, buffer: Any) -> int:
        """Fill a writable buffer with content; returns the number of bytes."""
        return self._reader().readinto(buffer)

    def readinto1(self, buffer: Any) -> int:
        """As `readinto`, from one frame."""
        return self._reader().readinto1(buffer)

    def readline(self, size: int | None = -1) -> bytes:
        """The next line, or up to `size` bytes of it."""
        return self._reader().readline(-1 if size is None else size)

    def peek(self, size: int = 0) -> bytes:
        """The next bytes without advancing: at least one, unless at the end."""
        return self._reader().peek(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a byte of the content; returns its offset.

        Seeking from the end reads the header of every frame but decodes none.
        """
        return self._reader().seek(offset, whence)

    def tell(self) -> int:
        """The offset of the next byte of content that is read or written."""
        return self._reader().tell() if self._writing is None else self._written

    def write(self, data: Any) -> int:
        """Add a bytes-like object to the content; returns its bytes. Raises LlmzipError."""
        self._open_file()
        if self._writing is None:
            raise io.UnsupportedOperation("not open for writing")
        with bytes_like(data, "write") as view:
            try:
                self._writing.write(view)
            except BaseException:
                self._failed = (
                    True  # a partial frame may be written: the archive cannot be completed
                )
                raise
            self._written += view.nbytes
            return view.nbytes


@overload
def open(
    filename: str | os.PathLike[str] | BinaryIO,
    mode: _Binary = "rb",
    *,
    options: Options | None = None,
) -> LlmzipFile: ...


@overload
def open(
    filename: str | os.PathLike[str] | BinaryIO,
    mode: _Text,
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    options: Options | None = None,
) -> io.TextIOWrapper: ...


@overload
def open(
    filename: str | os.PathLike[str] | BinaryIO,
    mode: str,
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    options: Options | None = None,
) -> LlmzipFile | io.TextIOWrapper: ...


def open(
    filename: str | os.PathLike[str] | BinaryIO,
    mode: str = "rb",
    *,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    options: Options | None = None,
) -> LlmzipFile | io.TextIOWrapper:
    """Open an archive as a file object, as gzip.open and lzma.open do.

    `filename` and `mode` are as for LlmzipFile; with t in `mode`, the file is a text file. Raises
    LlmzipError, OSError, ValueError, TypeError, as LlmzipFile does.
    """
    text = isinstance(mode, str) and "t" in mode
    if text and "b" in mode:
        raise ValueError(f"invalid mode {mode!r}")
    if not text and (encoding, errors, newline) != (None, None, None):
        raise ValueError("encoding, errors and newline are only for text modes")
    if not text:
        return LlmzipFile(filename, mode, options=options)
    file = LlmzipFile(filename, mode.replace("t", "", 1), options=options)
    return io.TextIOWrapper(cast(io.BufferedReader, file), encoding, errors, newline)
