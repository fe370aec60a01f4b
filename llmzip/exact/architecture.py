"""The hyperparameters of Llama-family models: `LlamaForCausalLM`, `MistralForCausalLM`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmzip.errors import UnsupportedModel
from llmzip.exact import ModelSpec
from llmzip.exact.rotary import rotary_frequencies

LLAMA_TYPES = ("llama", "mistral")  # model_type in config.json
_MOST_LAYERS = 10_000
ROTATED_KEY = "llmzip_rotated"  # in config.json: int8 weights are made for transformed inputs


@dataclass(frozen=True)
class Architecture:
    """The hyperparameters of a Llama-family model, as in its config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    epsilon: float
    rope: Mapping[str, Any]  # rope_parameters, see rotary.rotary_frequencies
    context: int  # context window in training, tokens
    window: int | None  # sliding window: keys that a token sees, itself included
    tied: bool  # whether the head shares the weights of the embedding

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """The content of config.json → Architecture. Raises UnsupportedModel, with the reason, for
        anything without exact form."""
        model_type = config.get("model_type")
        if model_type not in LLAMA_TYPES:
            raise UnsupportedModel(
                f"model type {model_type!r} has no exact form; known: {', '.join(LLAMA_TYPES)}"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise UnsupportedModel(f"activation {config['hidden_act']!r} has no exact form")
        if config.get("pretraining_tp", 1) != 1:
            raise UnsupportedModel("pretraining_tp other than 1 has no exact form")
        try:
            rope = {
                "rope_theta": config.get("rope_theta", 10000.0),
                **(config.get("rope_parameters") or config.get("rope_scaling") or {}),
            }
            if rope.get("partial_rotary_factor", 1.0) != 1.0:
                raise UnsupportedModel("a partial rotary embedding has no exact form in Llama")
            heads = int(config["num_attention_heads"])
            hidden = int(config["hidden_size"])
            window = config.get("sliding_window") if model_type == "mistral" else None
            architecture = cls(
                vocab_size=int(config["vocab_size"]),
                hidden_size=hidden,
                intermediate_size=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                epsilon=float(config.get("rms_norm_eps", 1e-6)),
                rope=rope,
                context=int(config["max_position_embeddings"]),
                window=None if window is None else int(window),
                tied=bool(config.get("tie_word_embeddings", False)),
            )
            architecture._check()
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UnsupportedModel(f"config.json is incomplete or malformed: {error!r}") from None
        return architecture

    def _check(self) -> None:
        sizes = [self.vocab_size, self.hidden_size, self.intermediate_size, self.layers]
        sizes += [self.heads, self.kv_heads, self.head_dim, self.context, self.window or 1]
        if min(sizes) < 1 or self.vocab_size < 2 or self.context < 2:
            raise UnsupportedModel("config.json holds a size that is too small")
        if self.layers > _MOST_LAYERS:
            raise UnsupportedModel(f"{self.layers} layers are too many")
        if self.heads % self.kv_heads or self.head_dim % 2 or self.head_dim > 1024:
            raise UnsupportedModel(
                f"{self.heads} heads of {self.head_dim} over {self.kv_heads} key heads "
                "have no exact form"
            )
        if not (0 < self.epsilon < 1 and 1 < self.rope["rope_theta"] < 1e12):
            raise UnsupportedModel("config.json holds an epsilon or rope_theta out of range")
        rotary_frequencies(self.rope, self.head_dim)

    def spec(self) -> ModelSpec:
        """Sizes that a predictor needs."""
        return ModelSpec(
            vocabulary=self.vocab_size,
            hidden_size=self.hidden_size,
            activation_size=self.hidden_size + self.intermediate_size,
            context=self.context,
            sliding_windows=(self.window,) * self.layers,
            kv_size=self.kv_heads * self.head_dim,
        )
