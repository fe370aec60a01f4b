"""Safetensors → numpy arrays, or tensors if numpy has no type for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read(source: Path | bytes) -> dict[str, Any]:
    """The weights by their names. Safetensors and the system raise their own exceptions."""
    import safetensors.numpy

    function = "load" if isinstance(source, bytes) else "load_file"
    try:
        return dict(getattr(safetensors.numpy, function)(source))
    except (KeyError, TypeError, AttributeError):  # bfloat16, float8
        import safetensors.torch

        return dict(getattr(safetensors.torch, function)(source))
