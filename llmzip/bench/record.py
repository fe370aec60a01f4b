"""Where a figure comes from: every report begins with this. And how reports are written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmzip
from llmzip.output import write

if TYPE_CHECKING:
    from llmzip.archive.options import Options


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, and the folder it lies in if there is none. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, json.dumps(report, indent=1) + "\n")


def provenance(options: Options) -> dict[str, Any]:
    """Command, commit, date, machine, versions, model and device of a measurement."""
    import torch

    from llmzip import models
    from llmzip.inference.base import processor_name

    name = options.model or models.DEFAULT
    packages = ("torch", "tokenizers", "constriction", "numpy", "numba", "llvmlite", "zstandard")
    return {
        "command": _command(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "system": platform.system(),
        },
        "versions": {
            "llmzip": llmzip.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "model": {"name": Path(name).name, "digest": models.load(name).digest.hex()},
        "device": options.device,
        "streams": options.streams,
    }


def _command() -> str:
    """The command line, with only the last part of each path."""
    program, *words = sys.argv
    if Path(program).name == "__main__.py":  # python -m llmzip
        program = "llmzip"
    return " ".join(Path(word).name if "/" in word else word for word in (program, *words))


def _commit() -> str | None:
    """The commit of the source tree that this runs from, with "+" if it has changed since."""
    folder = Path(__file__).parent.parent
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(folder)])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if status else "")
