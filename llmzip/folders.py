"""Where files of a user lie: models that were installed, and what can be made again."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path


def data_folder() -> Path:
    """$LLMZIP_HOME, else the system's place for data: $XDG_DATA_HOME/llmzip and the like."""
    return _place("LLMZIP_HOME", "XDG_DATA_HOME", ".local/share", "Application Support")


def cache_folder() -> Path:
    """$LLMZIP_CACHE, else the system's place for what can be made again."""
    return _place("LLMZIP_CACHE", "XDG_CACHE_HOME", ".cache", "Caches")


def _place(own: str, xdg: str, linux: str, mac: str) -> Path:
    if given := os.environ.get(own):
        return Path(given).absolute()
    if given := os.environ.get(xdg):
        return Path(given).absolute() / "llmzip"
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():  # a user without a home: nothing is found there, nothing written
        home = Path(os.devnull)
    if sys.platform == "darwin":
        return home / "Library" / mac / "llmzip"
    if sys.platform == "win32":
        local = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
        return local / "llmzip" / ("cache" if own == "LLMZIP_CACHE" else "data")
    return home / linux / "llmzip"


def writable_cache(kind: str) -> Path | None:
    """A folder in the cache, made if need be, or one of the user's own among temporary files, as
    in containers that run under any user id; None if neither can be written to."""
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
        if not _is_ours(own):  # what others could write there would be run as code
            return None
        (own / kind).mkdir(exist_ok=True)
    except OSError:
        return None
    return own / kind


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _is_ours(folder: Path) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    status = folder.lstat()
    private = not status.st_mode & 0o077
    return stat.S_ISDIR(status.st_mode) and status.st_uid == _user() and private
