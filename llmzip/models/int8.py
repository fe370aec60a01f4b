"""Weights in floating point → the int8 integers that exact arithmetic multiplies by.

A matrix `NAME` [N, K] becomes int8, with `NAME_scale`, float32 [N, 1]; all else is float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from llmzip.errors import UnsupportedModel

if TYPE_CHECKING:
    from torch import Tensor

SCALE = "_scale"


def quantised(tensors: Mapping[str, Tensor], keep: Collection[str] = ()) -> dict[str, Tensor]:
    """Every matrix in 8 bits, but those of the names in `keep`, which stay as they are.

    One tensor is asked for at a time, so that a mapping may make them as it goes. Raises
    UnsupportedModel for weights that are not finite, or no floats.
    """
    import torch

    from llmzip.exact import ops

    found: dict[str, Tensor] = {}
    for name in tensors:
        tensor = tensors[name]
        if not tensor.is_floating_point():
            raise UnsupportedModel(f"{name} holds {tensor.dtype}, no floating-point weights")
        if not torch.isfinite(tensor).all():
            raise UnsupportedModel(f"{name} holds values that are not finite")
        if name in keep:
            found[name] = tensor
        elif tensor.ndim == 2:
            integers, scale = ops.quantise_weight(tensor)
            found[name], found[name + SCALE] = integers, scale[:, None]
        else:
            found[name] = tensor.float()
    return found
