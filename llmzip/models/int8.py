"""Weights in floating point → int8, in the plain form that models are embedded in.

A matrix `NAME` [N, K] becomes int8, with `NAME_scale`, float32 [N, 1]; all else is float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SCALE = "_scale"


def quantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix in 8 bits, for models that were trained for that. Raises UnsupportedModel for
    weights that are not finite, or no floats."""
    from llmzip.exact import ops
    from llmzip.exact.prepare import require_finite

    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        require_finite(name, tensor)
        if tensor.ndim == 2:
            integers, scale = ops.quantise_weight(tensor)
            found[name], found[name + SCALE] = integers, scale[:, None]
        else:
            found[name] = tensor.float()
    return found
