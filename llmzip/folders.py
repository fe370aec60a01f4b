"""Where files of a user are kept that can be made again. Knows nothing of what is in them."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """A folder for caches of one kind, made if need be; None if there is none to be written to.

    In XDG_CACHE_HOME, else ~/.cache, else a folder of the user's own among temporary files, as
    in containers that run under any user id.
    """
    for base in _bases():
        folder = base / "llmzip" / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
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


def _bases() -> list[Path]:
    found = []
    if os.environ.get("XDG_CACHE_HOME"):
        found.append(Path(os.environ["XDG_CACHE_HOME"]))
    home = os.path.expanduser("~")  # stays "~" for a user whom the system does not know
    if os.path.isabs(home) and home != "/":
        found.append(Path(home, ".cache"))
    return found


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


def _is_ours(folder: Path) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    status = folder.lstat()
    private = not status.st_mode & 0o077
    return stat.S_ISDIR(status.st_mode) and status.st_uid == _user() and private
