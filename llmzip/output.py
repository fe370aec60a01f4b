"""Where everything that llmzip writes goes to a file: all of it or nothing, and no harm to devices.

A regular file is written beside its target and renamed over it. What exists and is none (a
device, a FIFO, a socket, an open descriptor) is opened and written, never replaced, and its
mode and times are left alone. A symbolic link is followed: what it points to is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_LINKS = 40  # that may follow each other, as in Linux
# names of open descriptors of this process, as shells give them for process substitution
_DESCRIPTOR = re.compile(r"/(?:dev|proc/(?:self|\d+)(?:/task/\d+)?)/fd/(\d+)")


@contextlib.contextmanager
def writing(
    target: str | os.PathLike[str], *, overwrite: bool, like: str | os.PathLike[str] | None = None
) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `target` when the block ends well.

    A new or replaced file gets mode and times of the regular file `like`. Raises
    FileExistsError unless `overwrite`, if there is a regular file or a block device; whatever
    goes wrong, no partial file stays, and a file that was there stays as it was.
    """
    place = resolve(target)
    if is_special(place):
        if stat.S_ISBLK(_mode(place)) and not overwrite:
            raise _exists(target)
        with _open_special(place) as file:
            yield file
        return
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory", os.fspath(target))
    if place.exists() and not overwrite:
        raise _exists(target)
    with _replacing(place, Path(target), overwrite) as file:
        yield file
        if like is not None and os.path.isfile(like):
            file.flush()  # the temporary file gets mode and times before the target's name
            shutil.copystat(like, file.name)


def write(target: str | os.PathLike[str], content: str | bytes) -> None:
    """Make `content` all that a file holds, text as UTF-8. Raises OSError."""
    with writing(target, overwrite=True) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def resolve(target: str | os.PathLike[str]) -> Path:
    """What a path stands for when symbolic links are followed, up to an open descriptor's name.

    Raises OSError for links that lead in a circle.
    """
    path = Path(os.path.abspath(target))
    for _ in range(_LINKS):
        path = Path(os.path.realpath(path.parent)) / path.name
        if _DESCRIPTOR.fullmatch(str(path)) or not path.is_symlink():
            return path
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, "symbolic links lead in a circle", os.fspath(target))


def is_special(path: str | os.PathLike[str]) -> bool:
    """Whether something is there that is neither a regular file nor a folder, links followed."""
    place = resolve(path)
    if _DESCRIPTOR.fullmatch(str(place)):
        return True
    mode = _mode(place)
    return bool(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_descriptor(path: str | os.PathLike[str]) -> bool:
    """Whether a path names an open descriptor, as `<(command)` of a shell does."""
    return _DESCRIPTOR.fullmatch(str(resolve(path))) is not None


def _mode(path: Path) -> int:
    """0 if there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _open_special(place: Path) -> BinaryIO:
    own = re.fullmatch(rf"/(?:dev|proc/{os.getpid()}(?:/task/\d+)?)/fd/(\d+)", str(place))
    if own:  # opened by its name, a regular file would lose what stands in it already
        return os.fdopen(os.dup(int(own[1])), "wb")
    return open(place, "wb")


@contextlib.contextmanager
def _replacing(place: Path, told: Path, overwrite: bool) -> Iterator[BinaryIO]:
    """A temporary file beside `place`, which the user knows as `told`."""
    if not place.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(told.parent))
    temporary = place.with_name(f".{place.name[:200]}.{secrets.token_hex(4)}")
    try:
        try:
            file = open(temporary, "xb")  # noqa: SIM115
        except OSError as error:  # nobody knows the temporary name
            raise type(error)(error.errno, error.strerror, str(told)) from None
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if overwrite:
            os.replace(temporary, place)
        else:  # unlike a rename, a link fails if someone made the target meanwhile
            _link_new(temporary, place)
        _sync_folder(place.parent)  # who removes the source now must not lose both
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
    """Bring the name of a new file to disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _exists(target: str | os.PathLike[str]) -> FileExistsError:
    return FileExistsError(errno.EEXIST, "exists already; -f overwrites it", os.fspath(target))
