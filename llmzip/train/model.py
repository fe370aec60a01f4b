"""Config → a Mistral of transformers with banded attention, and its quantisation-aware form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoConfig,
    AutoModelForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from llmzip.errors import LlmzipError
from llmzip.train import losses
from llmzip.train.config import Config

POSITIONS = 32768  # sliding attention: positions are only bounded by the restart of windows
_QUERIES = 128  # that attend together on CPUs


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
    if query.device.type == "cpu":
        key, value = (
            x.repeat_interleave(heads // key.shape[1], 1).flatten(0, 1) for x in (key, value)
        )
        scaling = dim**-0.5 if scaling is None else scaling
        out = _Banded.apply(  # type: ignore[no-untyped-call]
            query.flatten(0, 1) * scaling, key, value, window
        )
        return out.view(batch, heads, length, dim).transpose(1, 2), None
    return _attention_by_blocks(query, key, value, window, scaling), None


def _attention_by_blocks(
    query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float | None
) -> Tensor:
    """For devices on which torch's own attention is fast. Shapes as in `banded_attention`.

    The first block sees itself alone, all others the block before, too, by one mask: fewer keys
    and a smaller mask than with an empty block before the first.
    """
    batch, heads, length, dim = query.shape
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    attend = nn.functional.scaled_dot_product_attention
    q, k, v = (x[:, :, :window] for x in (query, key, value))
    out = attend(q, k, v, is_causal=True, scale=scaling).transpose(1, 2)
    count = length // window - 1
    if not count:
        return out

    def pairs(x: Tensor) -> Tensor:
        """Each block but the first with the one before it: [B · count, H, 2W, D]."""
        blocks = x.view(batch, heads, count + 1, window, dim).transpose(1, 2)
        return torch.cat([blocks[:, :-1], blocks[:, 1:]], 3).flatten(0, 1)

    i = torch.arange(window, device=query.device)[:, None]
    j = torch.arange(2 * window, device=query.device)
    visible = (j > i) & (j <= i + window)  # as many as the window, the token itself included
    later = query[:, :, window:].view(batch, heads, count, window, dim).transpose(1, 2)
    rest = attend(later.flatten(0, 1), pairs(key), pairs(value), attn_mask=visible, scale=scaling)
    rest = rest.view(batch, count, heads, window, dim).transpose(2, 3)
    return torch.cat([out, rest.reshape(batch, -1, heads, dim)], 1)


class _Banded(torch.autograd.Function):
    """Sliding attention of q, k, v [N, T, D], q being scaled, by blocks of queries.

    Four times as fast on CPUs as torch's own with a mask (22 ms a layer instead of 95, of 2,048
    tokens on one core), as its products may be of bfloat16.
    """

    @staticmethod
    def spans(length: int, window: int) -> Iterator[tuple[slice, slice]]:
        """Blocks of queries, each with the keys that one of them may see."""
        for first in range(0, length, _QUERIES):
            end = min(first + _QUERIES, length)
            yield slice(first, end), slice(max(0, first - window + 1), end)

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
        out = torch.empty_like(v)
        weights = []
        with torch.autocast("cpu", enabled=False):
            for rows, keys in _Banded.spans(q.shape[1], window):
                scores = q[:, rows] @ k[:, keys].mT
                i = torch.arange(rows.start, rows.stop)[:, None]
                j = torch.arange(keys.start, keys.stop)
                hidden = torch.zeros(i.shape[0], j.shape[0], dtype=scores.dtype)
                hidden.masked_fill_((j > i) | (j <= i - window), -math.inf)
                weights.append((scores + hidden).softmax(-1))
                out[:, rows] = weights[-1] @ v[:, keys]
        ctx.window = window
        ctx.save_for_backward(q, k, v, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *weights = ctx.saved_tensors
        (gradient,) = gradients
        gradient = gradient.to(q.dtype)
        dq = torch.empty_like(q)
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for (rows, keys), w in zip(_Banded.spans(q.shape[1], ctx.window), weights, strict=True):
            dv[:, keys] += w.mT @ gradient[:, rows]
            dw = gradient[:, rows] @ v[:, keys].mT
            ds = torch._softmax_backward_data(dw, w, -1, w.dtype)
            dq[:, rows] = ds @ k[:, keys]
            dk[:, keys] += ds.mT @ q[:, rows]
        return dq, dk, dv, None


AttentionInterface.register("llmzip_banded", banded_attention)


class Trainee(nn.Module):
    """A causal language model as what is minimised: ids [B, T] → mean nats a predicted token."""

    def __init__(self, network: PreTrainedModel, distill_weight: float = 0.5) -> None:
        """`distill_weight`: the share of the teacher's loss where there are targets of one."""
        super().__init__()
        self.network = network
        self.distill_weight = distill_weight
        self.quantised = False

    def compile_layers(self) -> None:
        """Compile each layer by itself, for GPUs: all layers have the same code, so the time that
        this takes does not grow with their number as that of a whole model."""
        # one limit counts all layers, which share their code, in training and in evaluation
        torch._dynamo.config.cache_size_limit = 64
        layers: Any = self.network.base_model.layers
        for layer in layers:
            layer.compile(dynamic=False)

    def hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """ids int64 [B, T] → (hidden states [B, T, D], weight of the head [V, D])."""
        hidden: Tensor = self.network.base_model(input_ids=ids, use_cache=False).last_hidden_state
        weight: Tensor = self.network.lm_head.weight
        if self.quantised:
            hidden, weight = _rounded(hidden, -1), _rounded(weight, 1)
        return hidden, weight

    def forward(self, ids: Tensor, targets: losses.Targets | None = None) -> tuple[Tensor, Tensor]:
        """ids int64 [B, T], targets [B, T, K] of the tokens after each → (what is minimised, mean
        nats a token), scalars; the same without targets."""
        hidden, weight = self.hidden(ids)
        hidden, labels = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        if targets is None:
            loss = losses.next_token(hidden, weight, labels)
            return loss, loss.detach()
        told = losses.Targets(*(part[:, :-1].flatten(0, 1) for part in targets))
        return losses.distilled(hidden, weight, labels, told, self.distill_weight)

    def quantise(self, on: bool = True) -> None:
        """From now on train as exact inference computes: int8 weights a row, 8-bit activations; or
        without, again. Compiled code of both forms is kept."""
        self.quantised = on
        quantise_linears(self.network.base_model, on)


def build(config: Config) -> MistralForCausalLM:
    """A model with random weights, the same for a seed.

    Matrices have a standard deviation of 0.6 / √inputs, smaller by √(2·layers) where they add to
    the residual stream (as in GPT-2, Radford et al., 2019), embeddings of 0.02.
    """
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
            max_position_embeddings=POSITIONS,
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


def from_weights(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """A float32 network with these weights; `config` is the content of a Llama's or Mistral's
    config.json. Raises LlmzipError for weights that do not fit it."""
    sliding = config["model_type"] == "mistral" and config.get("sliding_window") is not None
    settings = {key: value for key, value in config.items() if key != "model_type"}
    parsed = AutoConfig.for_model(config["model_type"], **settings)
    parsed.use_cache = False
    make: Any = AutoModelForCausalLM.from_config
    network: PreTrainedModel = make(
        parsed, dtype=torch.float32, attn_implementation="llmzip_banded" if sliding else "sdpa"
    )
    given = {name: tensor.float() for name, tensor in weights.items()}
    try:
        missing, unexpected = network.load_state_dict(given, strict=False)
    except RuntimeError as error:  # other shapes
        raise LlmzipError(f"weights and config do not fit together: {error}") from None
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise LlmzipError("weights and config do not fit together: other names")
    network.tie_weights()
    return network


def _rounded(x: Tensor, dim: int) -> Tensor:
    """x on a grid of 127 steps to its maximum along `dim`; the gradient passes unchanged."""
    scale = x.detach().abs().amax(dim, keepdim=True).clamp_min(1e-12) / 127
    return x + ((x / scale).round() * scale - x).detach()


class _RoundedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(_rounded(x, -1), _rounded(self.weight, 1), self.bias)


def quantise_linears(model: nn.Module, on: bool = True) -> None:
    """Weights to int8 a row and inputs to 8 bits, with gradients as if they were not; or not."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            # compiled code depends on the class, so that each form gets its own
            module.__class__ = _RoundedLinear if on else nn.Linear
