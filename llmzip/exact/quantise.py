"""Floating-point checkpoints ↔ checkpoints with int8 weights.

`quantise_tensors` makes the int8 weights that `ExactLlama` would make itself, for whoever wants to
keep them: they are half or a quarter as large and load faster.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmzip.errors import UnsupportedModel
from llmzip.exact import SCALE_SUFFIX, hadamard, ops
from llmzip.exact.architecture import LLAMA_TYPES, ROTATED_KEY

_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TIED_KEY = "tie_word_embeddings"


def quantise_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, embeddings: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of a Llama-family model → the same with int8 weights.

    Linear layers become int8 [N, K] with scales `NAME_scale` float32 [N, 1], after Hadamard
    transforms. Norms and biases stay. Embeddings become int8 if `embeddings`; otherwise they stay,
    and a tied head gets weights of its own, so that `ExactLlama` gives the logits of the original.
    Other families and models with int8 weights are returned unchanged. Tensors are read one at a
    time, so `tensors` may create them lazily. Raises UnsupportedModel for weights that are not
    finite or not floating-point.
    """
    if config.get("model_type") not in LLAMA_TYPES or any(
        n.endswith(SCALE_SUFFIX) for n in tensors
    ):
        return dict(config), dict(tensors)
    tied = bool(config.get(_TIED_KEY, False))
    result: dict[str, Tensor] = {}
    for name in tensors:
        tensor = tensors[name]
        _require_finite_floats(tensor, name)
        if name == _EMBEDDING and not embeddings:
            result[name] = tensor
            if tied:
                _add_int8(result, _HEAD, tensor, hadamard.block_size(tensor.shape[1]))
        elif name == _HEAD and tied:
            continue
        elif _is_linear(name) and tensor.ndim == 2:
            _add_int8(result, name, tensor, hadamard.block_size(tensor.shape[1]))
        else:
            result[name] = tensor
    return {**config, _TIED_KEY: tied and embeddings, ROTATED_KEY: True}, result


def quantise_matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix [N, K] in int8 with scales, without transforms, the rest in float32: the form
    of models that were trained for int8. Raises as `quantise_tensors`."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _require_finite_floats(tensor, name)
        if tensor.ndim == 2:
            _add_int8(result, name, tensor, block=1)
        else:
            result[name] = tensor.float()
    return result


def dequantise_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Float32 weights [N, K] in place of int8 weights and scales; other tensors stay."""
    rotated = bool(config.get(ROTATED_KEY))
    result = {}
    for name, tensor in tensors.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        if name + SCALE_SUFFIX in tensors:
            tensor = tensor.float() * tensors[name + SCALE_SUFFIX]
            if rotated:  # W · H / B is stored, and H · H / B = I
                tensor = hadamard.transform(tensor, hadamard.block_size(tensor.shape[1]))
        result[name] = tensor
    return result


def _add_int8(result: dict[str, Tensor], name: str, tensor: Tensor, block: int) -> None:
    integers, scale = ops.quantise_weight(tensor, block)
    result[name], result[name + SCALE_SUFFIX] = integers, scale[:, None]


def _is_linear(name: str) -> bool:
    return name in (_EMBEDDING, _HEAD) or name.removesuffix(".weight").endswith(_LINEARS)


def _require_finite_floats(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        raise UnsupportedModel(f"{name} holds {tensor.dtype}, no floating-point weights")
    ops.require_finite(tensor, name)
