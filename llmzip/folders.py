"""The folders for a user's data (installed models) and cache (what can be made again), and the
package's own sources, which what is cached depends on."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from operator import itemgetter
from pathlib import Path

_DIGEST_BYTES = 16


def data_folder() -> Path:
    """$LLMZIP_HOME, else the system's folder for data, such as $XDG_DATA_HOME/llmzip."""
    return _folder("LLMZIP_HOME", "XDG_DATA_HOME", ".local/share", "Application Support")


def cache_folder() -> Path:
    """$LLMZIP_CACHE, else the system's folder for caches, such as $XDG_CACHE_HOME/llmzip."""
    return _folder("LLMZIP_CACHE", "XDG_CACHE_HOME", ".cache", "Caches")


def _folder(own: str, xdg: str, linux: str, mac: str) -> Path:
    if given := os.environ.get(own):
        return Path(given).absolute()
    if given := os.environ.get(xdg):
        return Path(given).absolute() / "llmzip"
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():  # a user without a home: find nothing, write nothing
        home = Path(os.devnull)
    if sys.platform == "darwin":
        return home / "Library" / mac / "llmzip"
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
        return local / "llmzip" / ("cache" if own == "LLMZIP_CACHE" else "data")
    return home / linux / "llmzip"


def writable_cache(kind: str) -> Path | None:
    """A folder in the cache, made if need be; None if none can be written to.

    The fallback is a private folder among temporary files, for containers with any user id.
    """
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        pass
    else:
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    own = Path(tempfile.gettempdir(), f"llmzip-{_user()}")
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        if not _is_private(own):  # compiled code is loaded from it: others must not write there
            return None
        (own / kind).mkdir(exist_ok=True)
    except OSError:
        return None
    return own / kind


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _is_private(folder: Path) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    status = folder.lstat()
    private = not status.st_mode & 0o077
    return stat.S_ISDIR(status.st_mode) and status.st_uid == _user() and private


@cache
def source_stamp() -> str:
    """A digest of the names, times and sizes of the package's sources, as they were at the first
    call."""
    stamps = []
    for name, entry in _sources(os.path.dirname(__file__)):
        status = entry.stat()
        stamps.append((name, status.st_mtime_ns, status.st_size))
    return hashlib.blake2b(repr(sorted(stamps)).encode(), digest_size=_DIGEST_BYTES).hexdigest()


@cache
def source_digest() -> bytes:
    """A digest of the package's sources themselves: equal on all machines that have the same."""
    hasher = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for name, entry in sorted(_sources(os.path.dirname(__file__)), key=itemgetter(0)):
        hasher.update(f"{name} {entry.stat().st_size} ".encode() + Path(entry).read_bytes())
    return hasher.digest()


def _sources(folder: str, prefix: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Names relative to the package, and files."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                yield prefix + entry.name, entry
            elif entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                yield from _sources(entry.path, f"{prefix}{entry.name}/")
