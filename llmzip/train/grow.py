"""A small trained model → a larger one that begins where it ended.

New channels, heads, hidden units and layers are added so that what the model computes stays
nearly the same, as in Net2Net (Chen et al., 2016) and its followers: whatever is new has random
inputs and writes zeros, or is read by zeros, so that it has gradients from the first step.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from llmzip.errors import LlmzipError

_PREFIX = "model."  # of weights in checkpoints


def grow(checkpoint: Path, network: PreTrainedModel) -> None:
    """Overwrite the fresh weights of `network` with those of a smaller one's checkpoint.

    Both have the same vocabulary, head dimension and number of key heads. Raises LlmzipError.
    """
    with safe_open(checkpoint, "pt") as file:
        names = [n for n in file.keys() if n.startswith(_PREFIX)]  # noqa: SIM118
        old = {n[len(_PREFIX) :]: file.get_tensor(n).float() for n in names}
    new = dict(network.named_parameters())
    layers = [
        1 + max(int(name.split(".")[2]) for name in weights if ".layers." in name)
        for weights in (old, new)
    ]
    small, large = (w["model.embed_tokens.weight"] for w in (old, new))
    keys = "model.layers.0.self_attn.k_proj.weight"
    if small.shape[0] != large.shape[0] or len(old[keys]) != len(new[keys]):
        raise LlmzipError(f"{checkpoint} has another vocabulary or other key heads")
    if small.shape[1] > large.shape[1] or layers[0] > layers[1]:
        raise LlmzipError(f"{checkpoint} is of a larger model")
    groups = int(network.config.num_key_value_heads)
    # the norms divide by a mean over more channels, of which the new ones begin empty
    norm = math.sqrt(small.shape[1] / large.shape[1])
    with torch.no_grad():
        _place(large, small, 0)
        _place(new["model.norm.weight"], old["model.norm.weight"] * norm, None)
        before = -1
        for layer in range(layers[1]):
            source = layer * layers[0] // layers[1]
            for name in (n for n in new if n.startswith(f"model.layers.{layer}.")):
                weight = old[name.replace(f".{layer}.", f".{source}.", 1)]
                _part(name, new[name], weight * (norm if weight.ndim == 1 else 1), groups)
                if source == before and name.endswith(("o_proj.weight", "down_proj.weight")):
                    new[name].zero_()  # a layer more, which leaves everything as it is
            before = source


def _place(target: Tensor, source: Tensor, fill: float | None) -> None:
    """`source` into the first rows and columns; the rest is `fill`, or stays."""
    if fill is not None:
        target[..., source.shape[-1] :] = fill
    target[tuple(slice(n) for n in source.shape)] = source


def _part(name: str, target: Tensor, source: Tensor, groups: int) -> None:
    if target.ndim == 1:
        _place(target, source, None)
    elif "q_proj" in name:  # each group of heads grows on its own, as it shares keys
        rows = target.view(groups, -1, target.shape[1])
        _place(rows, source.view(groups, -1, source.shape[1]), None)
        rows[..., source.shape[1] :] = 0
    elif "o_proj" in name:
        columns = target.view(target.shape[0], groups, -1)
        _place(columns, source.view(source.shape[0], groups, -1), 0)
    else:  # from channels, or from hidden units, of which the new ones are read by zeros
        _place(target, source, 0)
