"""Float tensors of a Llama-family checkpoint → int8 tensors, as `ExactLlama` makes them itself.

For whoever wants to keep the result: it is half or a quarter as large, and loads at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from llmzip.exact import hadamard, ops
from llmzip.exact.llama import FAMILY, ROTATED

_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def prepared(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A config.json and its tensors → those of the same model with linear layers in int8 [N, K],
    transformed, and scales `<name>_scale` [N, 1]; embeddings, norms and biases as they are.

    A tied head becomes one of its own, as embeddings are not quantised. Models of other families,
    and such as have int8 weights already, are given back unchanged. The same tensors give the
    same bits everywhere, and `ExactLlama` the same logits as from the floats.
    """
    result = dict(tensors)
    if config.get("model_type") not in FAMILY or any(n.endswith("_scale") for n in tensors):
        return dict(config), result
    if config.get("tie_word_embeddings", False):
        result[_HEAD] = tensors[_EMBEDDING]
    for name, tensor in list(result.items()):
        if name == _HEAD or (name.removesuffix(".weight").endswith(_LINEARS) and tensor.ndim == 2):
            integers, scale = ops.quantise_weight(tensor, hadamard.block_of(tensor.shape[1]))
            result[name], result[name + "_scale"] = integers, scale[:, None]
    return {**config, "tie_word_embeddings": False, ROTATED: True}, result
