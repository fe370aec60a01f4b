"""Exact inference on GPUs by Triton kernels, with the bits of `exact.llama` and `exact.ops`.

`arithmetic` → `rows`, `products`, `attention` → `llama`. Triton is imported by these modules, so
they are imported only where `available`. With TRITON_INTERPRET=1 the kernels run on a CPU, slowly:
so the tests compare them.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from functools import cache

import torch

_log = logging.getLogger("llmzip")
_CAPABILITY = (8, 0)  # Ampere: the first with int8 tensor cores that Triton's products use


def available(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device."""
    if importlib.util.find_spec("triton") is None:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= _CAPABILITY and _runs(device)
    return device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


@cache
def _runs(device: torch.device) -> bool:
    """Whether a kernel compiles and is right: Triton needs a C compiler and a driver."""
    try:
        from llmzip.exact.gpu.rows import quantise_rows

        with torch.cuda.device(device):
            q, scale = quantise_rows(torch.arange(-127.0, 128.0, device=device)[None], 1)
        right = q[0].tolist() == list(range(-127, 128)) and scale.tolist() == [1.0]
        reason = "" if right else "its results are wrong"
    except Exception as error:  # whatever compilers and drivers raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
    if reason:
        _log.warning("no Triton on %s (%s): slower operations take its place", device, reason)
    return not reason
