"""Exact inference on GPUs by Triton kernels, with the bits of `exact.llama` and `exact.ops`.

`arithmetic` → `rows`, `products`, `attention` → `llama`. Triton is imported by these modules, so
they are imported only where `available`. With TRITON_INTERPRET=1 the kernels run on a CPU, slowly:
so the tests compare them.
"""

from __future__ import annotations

import importlib.util
import os

import torch

_CAPABILITY = (8, 0)  # Ampere: the first with int8 tensor cores that Triton's products use


def available(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CAPABILITY
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
