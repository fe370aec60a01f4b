"""Config → a Mistral of transformers with banded attention, and its quantisation-aware form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, MistralConfig, MistralForCausalLM

from llmzip.train.config import Config

_POSITIONS = 32768  # sliding attention: positions are only bounded by the restart of windows


def banded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Sliding attention in time linear in the length: blocks of W queries see 2·W keys.

    query [B, H, T, D], key and value [B, G, T, D], T a multiple of the window W → [B, T, H, D].
    """
    window: int = module.config.sliding_window  # type: ignore[assignment, union-attr]
    batch, heads, length, dim = query.shape
    if length % window:
        raise ValueError(f"{length} tokens are no multiple of the window {window}")
    blocks, groups = length // window, key.shape[1]
    q = query.view(batch, heads, blocks, window, dim).transpose(1, 2)

    def pairs(x: Tensor) -> Tensor:
        """Each block of keys with the one before it: [B, blocks, H, 2W, D]."""
        x = x.repeat_interleave(heads // groups, 1)
        current = x.view(batch, heads, blocks, window, dim)
        before = nn.functional.pad(current, (0, 0, 0, 0, 1, 0))[:, :, :-1]
        return torch.cat([before, current], 3).transpose(1, 2)

    i = torch.arange(window, device=query.device)[:, None]
    j = torch.arange(2 * window, device=query.device)
    visible = (j > i) & (j <= i + window)  # as many as the window, the token itself included
    first = visible & (j >= window)
    mask = torch.stack([first, *[visible] * (blocks - 1)])[None, :, None]
    mask = mask.expand(batch, -1, -1, -1, -1)
    out = nn.functional.scaled_dot_product_attention(
        q.flatten(0, 1),
        pairs(key).flatten(0, 1),
        pairs(value).flatten(0, 1),
        mask.flatten(0, 1),
        scale=scaling,
    )
    out = out.view(batch, blocks, heads, window, dim).transpose(2, 3)
    return out.reshape(batch, length, heads, dim), None


AttentionInterface.register("llmzip_banded", banded_attention)


def build(config: Config) -> MistralForCausalLM:
    """Matrices start at 0.6 / √inputs, those that add to the residual smaller by √(2·layers)."""
    torch.manual_seed(config.seed)
    model = MistralForCausalLM(
        MistralConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.hidden_size // config.heads,
            sliding_window=config.window,
            max_position_embeddings=_POSITIONS,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
            use_cache=False,
            attn_implementation="llmzip_banded",  # type: ignore[call-arg]
        )
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            deviation = 0.02 if "embed" in name else 0.6 / math.sqrt(parameter.shape[1])
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= math.sqrt(2 * config.layers)
            nn.init.normal_(parameter, std=deviation)
    return model


def _rounded(x: Tensor, dim: int) -> Tensor:
    """x on a grid of 127 steps to its maximum along `dim`; the gradient passes unchanged."""
    scale = x.detach().abs().amax(dim, keepdim=True).clamp_min(1e-12) / 127
    return x + ((x / scale).round() * scale - x).detach()


def quantise_linears(model: nn.Module) -> None:
    """From now on train as exact inference computes: int8 weights a row, 8-bit activations."""

    def forward(self: nn.Linear, x: Tensor) -> Tensor:
        return nn.functional.linear(_rounded(x, -1), _rounded(self.weight, 1), self.bias)

    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.forward = forward.__get__(module)  # type: ignore[method-assign]
