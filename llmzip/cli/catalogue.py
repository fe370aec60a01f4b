"""Lists the models: embedded, installed, installable, and hub models in the local cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llmzip import models
from llmzip.errors import LlmzipError
from llmzip.models import registry


def embedded() -> list[dict[str, Any]]:
    """Name, bytes of the folder, parameters, and measured bits per byte of each."""
    found = []
    for name in models.EMBEDDED:
        folder = models.folder(name)
        found.append(
            {
                "name": name,
                "default": name == models.DEFAULT,
                "bytes": sum(path.stat().st_size for path in folder.iterdir()),
                "parameters": models.load(name).parameters,
                "bits_per_byte": models.embedded_record(name).get("bits_per_byte", {}),
            }
        )
    return found


def installed() -> list[dict[str, Any]]:
    """Name, bytes of the folder, source and licence of each."""
    found = []
    for name in models.installed():
        note = registry.install_record(name)
        size = sum(path.stat().st_size for path in models.folder(name).iterdir())
        found.append(
            {
                "name": name,
                "bytes": size,
                "source": str(note.get("source", "unknown")),
                "licence": str(note.get("licence", "unknown")),
            }
        )
    return found


def installable() -> list[dict[str, Any]]:
    """Name, package, bytes to fetch and licence of each model that is not installed yet."""
    return [
        {
            "name": name,
            "model": entry["model"],
            "package": f"{entry['package']} {entry['version']}",
            "bytes": entry["wheel_bytes"],
            "licence": entry["licence"],
        }
        for name, entry in models.installable().items()
        if name not in models.installed()
    ]


def cached() -> list[dict[str, Any]]:
    """Name and bytes of each model in the hub's cache, and whether its kind has an exact form."""
    from huggingface_hub import CacheNotFound, scan_cache_dir

    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    found = []
    for repository in sorted(repositories, key=lambda r: r.repo_id):
        if repository.repo_type != "model" or not repository.revisions:
            continue
        newest = max(repository.revisions, key=lambda r: r.last_modified)
        obstacle = _obstacle(newest.snapshot_path)
        found.append(
            {
                "name": repository.repo_id,
                "bytes": repository.size_on_disk,
                "exact": obstacle is None,
                "obstacle": obstacle,
            }
        )
    return found


def _obstacle(folder: Path) -> str | None:
    """Why a folder's model has no exact form, as far as its config says; None if it may have."""
    from llmzip.inference import default_context

    try:
        default_context(models.load_config_only(folder))
    except LlmzipError as error:
        return str(error)
    return None
