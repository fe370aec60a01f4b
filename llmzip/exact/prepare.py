"""Float tensors of a Llama-family checkpoint ↔ int8 tensors, as `ExactLlama` makes them itself.

For whoever wants to keep the result: it is half or a quarter as large, and loads at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import hadamard, ops
from llmzip.exact.llama import FAMILY, ROTATED

SCALE = "_scale"
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TIED = "tie_word_embeddings"


def prepared(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, embeddings: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A config.json and its tensors → those of the same model with linear layers in int8 [N, K],
    transformed, and scales `<name>_scale` [N, 1]; norms and biases as they are.

    With `embeddings`, these are in int8 too. Otherwise they stay as they are, a tied head becomes
    one of its own, and `ExactLlama` gives the same logits as from the floats. Models of other
    families, and such as have int8 weights already, are given back unchanged. One tensor is asked
    for at a time, so that a mapping may make them as it goes. The same tensors give the same bits
    everywhere. Raises UnsupportedModel for weights that are not finite, or no floats.
    """
    if config.get("model_type") not in FAMILY or any(name.endswith(SCALE) for name in tensors):
        return dict(config), dict(tensors)
    tied = bool(config.get(_TIED, False))
    result: dict[str, Tensor] = {}

    def quantise(name: str, tensor: Tensor) -> None:
        integers, scale = ops.quantise_weight(tensor, hadamard.block_of(tensor.shape[1]))
        result[name], result[name + SCALE] = integers, scale[:, None]

    for name in tensors:
        tensor = tensors[name]
        require_finite(name, tensor)
        if name == _EMBEDDING and not embeddings:
            result[name] = tensor
            if tied:
                quantise(_HEAD, tensor)
        elif name == _HEAD and tied:
            continue
        elif _is_linear(name) and tensor.ndim == 2:
            quantise(name, tensor)
        else:
            result[name] = tensor
    return {**config, _TIED: tied and embeddings, ROTATED: True}, result


def _is_linear(name: str) -> bool:
    return name in (_EMBEDDING, _HEAD) or name.removesuffix(".weight").endswith(_LINEARS)


def require_finite(name: str, tensor: Tensor) -> None:
    """Raises UnsupportedModel for what is no finite floating-point tensor."""
    if not tensor.is_floating_point():
        raise UnsupportedModel(f"{name} holds {tensor.dtype}, no floating-point weights")
    if not torch.isfinite(tensor).all():
        raise UnsupportedModel(f"{name} holds values that are not finite")


def floating(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Float32 weights for int8 ones, [N, K]: multiplied out, and transformed back."""
    rotated = bool(config.get(ROTATED))
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            continue
        if name + SCALE in tensors:
            tensor = tensor.float() * tensors[name + SCALE]
            if rotated:  # W · H / B was stored, and H · H / B is 1
                tensor = hadamard.transform(tensor, hadamard.block_of(tensor.shape[1]))
        result[name] = tensor
    return result
