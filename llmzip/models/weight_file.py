"""Safetensors → numpy arrays, or tensors if numpy has no type for them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any


def read(source: Path | bytes) -> dict[str, Any]:
    """The weights by their names. Safetensors and the system raise their own exceptions."""
    import safetensors.numpy

    function = "load" if isinstance(source, bytes) else "load_file"
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # bfloat16, float8
        arrays = dict(getattr(safetensors.numpy, function)(source))
        # numpy's own types: other packages may add theirs, which torch does not take
        if all(array.dtype.kind in "biuf" for array in arrays.values()):
            return arrays
    import safetensors.torch

    return dict(getattr(safetensors.torch, function)(source))
