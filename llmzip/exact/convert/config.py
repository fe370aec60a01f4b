"""config.json and tensors → the network of the transformers library, and its `ModelSpec`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from llmzip.errors import UnsupportedModel
from llmzip.exact import ModelSpec


def parse_config(config: Mapping[str, Any]) -> PreTrainedConfig:
    """The content of config.json → the config object of transformers.

    Code in model folders is never run. Raises UnsupportedModel.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedModel(
            f"model type {model_type!r} is not known to the transformers library here "
            "(code that comes with a model is never run)"
        )
    try:
        parsed = CONFIG_MAPPING[model_type].from_dict(dict(config))
        parsed.get_text_config(decoder=True)
    except Exception as error:  # config classes raise anything for bad values
        raise UnsupportedModel(f"config.json is incomplete or malformed: {error!r}") from None
    if type(parsed) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(f"a model of type {model_type!r} is no causal language model")
    return parsed


def model_spec(config: PreTrainedConfig) -> ModelSpec:
    """Sizes of a model. Raises UnsupportedModel if the config does not state them."""
    try:
        text = config.get_text_config(decoder=True)
        hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
        head_dim = int(getattr(text, "head_dim", None) or hidden // heads)
        mlp = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", None)
        layers: list[Any] = DynamicCache(config=config).layers
        return ModelSpec(
            vocabulary=int(text.vocab_size),
            hidden_size=hidden,
            activation_size=hidden + int(mlp or 4 * hidden),
            context=int(getattr(text, "max_position_embeddings", None) or 2048),
            sliding_windows=tuple(
                layer.sliding_window if getattr(layer, "is_sliding", False) else None
                for layer in layers
            ),
            kv_size=int(getattr(text, "num_key_value_heads", None) or heads) * head_dim,
        )
    except AttributeError as error:  # recurrent and other models have other sizes
        raise UnsupportedModel(
            f"models of type {config.model_type!r} have no exact form ({error})"
        ) from None
    except (TypeError, ValueError, KeyError, ZeroDivisionError) as error:
        raise UnsupportedModel(f"config.json is incomplete or malformed: {error!r}") from None


def load_network(
    config: PreTrainedConfig, tensors: Mapping[str, Tensor], attention: str
) -> PreTrainedModel:
    """The network with these weights, which it shares where it can, in evaluation mode.

    `attention` is the name of an attention implementation of transformers. Raises
    UnsupportedModel if config, weights and attention do not fit together.
    """
    dtypes = {t.dtype for t in tensors.values() if t.is_floating_point()}
    if not dtypes:
        raise UnsupportedModel("the model's files hold no floating-point weights")
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    cls: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    log: Any = logging  # untyped
    verbosity, progress_bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        network, report = cls.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=dtype,
            attn_implementation=attention,
            output_loading_info=True,
        )
    except KeyError as error:
        if error.args != (attention,):
            raise UnsupportedModel(f"config.json makes no model: {error!r}") from None
        raise UnsupportedModel(
            f"{cls.__name__} has no exact form: its attention cannot be exchanged"
        ) from None
    except Exception as error:  # mismatched shapes, inconsistent configs
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UnsupportedModel(f"weights and config.json do not fit together: {reason}") from None
    finally:
        log.set_verbosity(verbosity)
        if progress_bar:
            log.enable_progress_bar()
    if missing := sorted(report["missing_keys"]):
        raise UnsupportedModel(f"the model's files lack the tensor {missing[0]}")
    result: PreTrainedModel = network.eval().requires_grad_(False)
    return result
