"""Writes files, completely or not at all, without replacing devices.

A regular file is written to a temporary file beside its target, which is then renamed. A special
file (device, FIFO, socket, open descriptor) is opened and written; its mode and times stay as they
are. Symbolic links are followed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_LINK_LIMIT = 40  # links that lead to each other, as in Linux
# open descriptors, which shells name like this for process substitution
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|\d+)(?:/task/\d+)?)/fd/(\d+)")


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors of the system within name a file, if they name none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = name
        raise


class _File(io.FileIO):
    """A file to write to, whose errors name the target, whatever its own name is until it is
    complete: else a full disk would seem to be the source's matter."""

    def __init__(self, file: Any, mode: str, target: Path, opener: Any = None) -> None:
        super().__init__(file, mode, opener=opener)
        self._target = str(target)

    def write(self, data: Any, /) -> int:
        with naming(self._target):
            return super().write(data)


@contextlib.contextmanager
def writing(
    target: str | os.PathLike[str], *, overwrite: bool, like: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `target` when the block ends without an exception.

    After an exception no partial file is left, and an existing file is unchanged. A regular file
    gets the mode and times of the regular file `like`. Raises OSError; FileExistsError for an
    existing file or block device unless `overwrite`.
    """
    path = resolve(target)
    if is_special(path):
        if stat.S_ISBLK(_mode(path)) and not overwrite:
            raise _exists(target)
        with _open_special(path, Path(target)) as file:
            yield file
        return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory", os.fspath(target))
    if path.exists() and not overwrite:
        raise _exists(target)
    private = like is not None and os.path.isfile(like)  # else nothing gives it its mode below
    with _replacing(path, Path(target), overwrite, private=private) as file:
        yield file
        if like is not None and os.path.isfile(like):
            file.flush()  # the temporary file gets mode and times before the target's name
            shutil.copystat(like, file.name)


def write(target: str | os.PathLike[str], content: str | bytes) -> None:
    """Replace a file's content; text is encoded as UTF-8. Raises OSError."""
    with writing(target, overwrite=True) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def resolve(target: str | os.PathLike[str]) -> Path:
    """Follow symbolic links, but not the name of an open descriptor.

    Raises OSError for links that form a circle.
    """
    path = Path(os.path.abspath(target))
    for _ in range(_LINK_LIMIT):
        path = Path(os.path.realpath(path.parent)) / path.name
        if _DESCRIPTOR.fullmatch(str(path)) or not path.is_symlink():
            return path
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, "symbolic links form a circle", os.fspath(target))


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether a path names something that is neither a regular file nor a folder."""
    path = resolve(path)
    if _DESCRIPTOR.fullmatch(str(path)):
        return True
    mode = _mode(path)
    return bool(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_descriptor(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an open descriptor, as a shell's `<(command)` does."""
    return _DESCRIPTOR.fullmatch(str(resolve(path))) is not None


def _mode(path: Path) -> int:
    """0 if the path does not exist."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _open_special(path: Path, given: Path) -> BinaryIO:
    own = re.fullmatch(rf"/(?:dev|proc/{os.getpid()}(?:/task/\d+)?)/fd/(\d+)", str(path))
    if own:  # opening a regular file by this name would truncate it
        return io.BufferedWriter(_File(os.dup(int(own[1])), "wb", given))
    return io.BufferedWriter(_File(path, "wb", given))


def beside(path: Path, suffix: str) -> Path:
    """A hidden name beside a path, for what is temporary; a digest tells names apart that have to
    be cut."""
    whole = os.fsencode(path.name)
    name = whole[:200].decode("utf-8", "ignore")  # of 255 bytes at most
    if name != path.name:
        name += "-" + hashlib.blake2b(whole, digest_size=8).hexdigest()
    return path.with_name(f".{name}.{suffix}")


@contextlib.contextmanager
def _replacing(path: Path, given: Path, overwrite: bool, *, private: bool) -> Iterator[BinaryIO]:
    """A temporary file beside `path`, which nobody else may read before it has its mode, if it is
    `private`; errors name the path as it was given."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist", str(given.parent))
    temporary = beside(path, secrets.token_hex(4))
    mode = 0o600 if private else 0o666
    try:
        try:
            raw = _File(temporary, "xb", given, lambda name, flags: os.open(name, flags, mode))
        except OSError as error:  # which names the temporary file
            raise type(error)(error.errno, error.strerror, str(given)) from None
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            with naming(str(given)):
                os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, path)
        else:  # unlike a rename, a link fails if the target exists by now
            _link_new(temporary, path)
        _sync_folder(path.parent)  # the caller may remove the source next
    finally:
        temporary.unlink(missing_ok=True)


def _link_new(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError:  # it exists, or the file system has no hard links
        if target.exists():
            raise _exists(target) from None
        os.replace(temporary, target)


def _sync_folder(folder: Path) -> None:
    """Bring the name of a new file to disk, if the system can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exists(target: str | os.PathLike[str]) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "exists already; -f overwrites it", os.fspath(target))
