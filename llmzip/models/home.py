"""Where models live that a user has installed, and which ones can be.

A model NAME is the folder models/NAME of the user's data folder, as `save_int8` writes it, with a
check.json that holds its digest. Knows nothing of how it got there.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from llmzip.folders import data_folder

CHECK = "check.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*", re.ASCII)
_LARGEST_CHECK = 1 << 20


def folder(name: str) -> Path:
    """Where an installed model lives, or would."""
    return data_folder() / "models" / name


def is_installed(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and (folder(name) / CHECK).is_file()


def installed() -> list[str]:
    """The names of all that are there."""
    try:
        names = sorted(entry.name for entry in (data_folder() / "models").iterdir())
    except OSError:
        return []
    return [name for name in names if is_installed(name)]


def recorded(name: str) -> dict[str, Any]:
    """What was noted when a model was installed: digest (hex), source, licence. Empty if that
    cannot be read."""
    path = folder(name) / CHECK
    try:
        if path.stat().st_size > _LARGEST_CHECK:
            return {}
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("digest"), str) else {}


def installed_with_digest(start: bytes) -> str | None:
    """The name of the installed model whose digest begins with these bytes, if there is one."""
    names = (n for n in installed() if recorded(n).get("digest", "").startswith(start.hex()))
    return next(names, None) if start else None


@cache
def installable() -> dict[str, dict[str, Any]]:
    """Name → where a model comes from and what it must be, for all that can be installed."""
    content: dict[str, dict[str, Any]] = json.loads(
        (Path(__file__).parent / "installable.json").read_text()
    )
    return content


def installable_with_digest(start: bytes) -> str | None:
    """The name of the model to install whose digest begins with these bytes."""
    entries = installable().items()
    found = (name for name, entry in entries if entry["digest"].startswith(start.hex()))
    return next(found, None) if start else None
