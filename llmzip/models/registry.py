"""Models that a user has installed, and the list of models that can be installed.

The installed model NAME is the folder models/NAME in the user's data folder, in the format of
`save_int8`, with a check.json that holds its digest.
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
_MAX_CHECK_BYTES = 1 << 20


def folder(name: str) -> Path:
    """The folder of an installed model; it may not exist."""
    return data_folder() / "models" / name


def is_installed(name: str) -> bool:
    """Whether there is an installed model of this name."""
    return _NAME.fullmatch(name) is not None and (folder(name) / CHECK).is_file()


def installed() -> list[str]:
    """The names of all installed models, sorted."""
    try:
        names = sorted(entry.name for entry in (data_folder() / "models").iterdir())
    except OSError:
        return []
    return [name for name in names if is_installed(name)]


def install_record(name: str) -> dict[str, Any]:
    """The check.json of an installed model: digest (hex), source, licence. Empty if it is
    unreadable."""
    path = folder(name) / CHECK
    try:
        if path.stat().st_size > _MAX_CHECK_BYTES:
            return {}
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get("digest"), str) else {}


def installed_with_digest(start: bytes) -> str | None:
    """The name of the installed model whose digest begins with these bytes."""
    names = (n for n in installed() if install_record(n).get("digest", "").startswith(start.hex()))
    return next(names, None) if start else None


@cache
def installable() -> dict[str, dict[str, Any]]:
    """Name → source and digest of each model that can be installed."""
    content: dict[str, dict[str, Any]] = json.loads(
        (Path(__file__).parent / "installable.json").read_text()
    )
    return content


def installable_with_digest(start: bytes) -> str | None:
    """The name of the installable model whose digest begins with these bytes."""
    names = (n for n, e in installable().items() if e["digest"].startswith(start.hex()))
    return next(names, None) if start else None
