"""A Llama-family checkpoint → a smaller model to train further: fewer layers, another tokenizer.

The kept layers stay as they are. The vector of a new token is the mean of the vectors that the
checkpoint has for the same bytes. Attention becomes sliding attention, as positions are then only
bounded by the restart of windows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmzip.errors import LlmzipError
from llmzip.exact.architecture import ROTATED_KEY, Architecture
from llmzip.exact.quantise import dequantise_tensors
from llmzip.models import ModelFiles
from llmzip.tokenizer import Tokens
from llmzip.train.config import Config
from llmzip.train.model import POSITIONS, from_weights

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_VECTORS = ("model.embed_tokens.weight", "lm_head.weight")


def prune(
    files: ModelFiles, layers: Sequence[int], tokenizer_json: bytes, window: int
) -> ModelFiles:
    """The chosen layers of `files`, in this order, with the vocabulary of `tokenizer_json` and a
    sliding window of `window` tokens; float32 weights, no digest.

    Raises LlmzipError for layers that do not exist, weights that cannot be kept, or a tokenizer
    that lacks bytes.
    """
    architecture = Architecture.from_config(files.config)
    chosen = list(layers) or list(range(architecture.layers))
    for layer in chosen:
        if not 0 <= layer < architecture.layers:
            raise LlmzipError(
                f"{files.name} has no layer {layer}; its layers are 0 to {architecture.layers - 1}"
            )
    tensors = dequantise_tensors(files.config, files.tensors)
    if any(name.endswith(".bias") for name in tensors):
        raise LlmzipError(f"{files.name} has biases, which sliding attention here does not have")
    tokens = Tokens(tokenizer_json, _vocabulary(tokenizer_json))
    if tokens.size != tokens.vocabulary:
        raise LlmzipError("the new tokenizer has no token for some bytes")
    old_tokens = Tokens(files.tokenizer_json, architecture.vocab_size)
    kept: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if name in _VECTORS:
            if name == _VECTORS[0] or not architecture.tied:
                kept[name] = mean_vectors(tensor.float(), old_tokens, tokens, files.bos)
        elif match is None:
            kept[name] = tensor.float()
        else:
            for place, layer in enumerate(chosen):
                if int(match[1]) == layer:
                    kept[f"model.layers.{place}.{match[2]}"] = tensor.float().clone()
    config = _config(files.config, architecture, len(chosen), tokens.vocabulary, window)
    return ModelFiles(f"{files.name}, pruned", config, kept, tokenizer_json, b"")


def mean_vectors(vectors: Tensor, old: Tokens, new: Tokens, bos: int) -> Tensor:
    """Vectors of the old tokens [V, D] → of the new ones, [W, D].

    A token of the same bytes gives its vector, else those that spell them in the old tokenizer
    give their mean. The new token 0 begins contexts, so it takes the vector of `bos`. Where old
    tokens spell nothing, the mean of all takes their place.
    """
    same = {spelling: i for i, spelling in enumerate(old.spellings) if spelling is not None}
    result = torch.empty(new.vocabulary, vectors.shape[1])
    everything = vectors.mean(0)
    for i, spelling in enumerate(new.spellings):
        ids = [bos] if i == 0 else []
        if spelling is not None and not ids:
            known = same.get(spelling)
            ids = old.encode(spelling).tolist() if known is None else [known]
        ids = [id for id in ids if id < len(vectors)]  # escapes of bytes have no vector
        result[i] = vectors[ids].mean(0) if ids else everything
    return result


def network_of(files: ModelFiles) -> PreTrainedModel:
    """A float32 model of transformers with the weights of `files`, int8 ones made floats.

    Raises LlmzipError for weights that do not fit the config.
    """
    Architecture.from_config(files.config)
    config = {key: value for key, value in files.config.items() if key != ROTATED_KEY}
    return from_weights(config, dequantise_tensors(files.config, files.tensors))


def shaped(config: Config, files: ModelFiles) -> Config:
    """The configuration with the shape of a pruned model. Raises LlmzipError."""
    a = Architecture.from_config(files.config)
    return replace(
        config,
        vocab_size=a.vocab_size,
        hidden_size=a.hidden_size,
        layers=a.layers,
        heads=a.heads,
        kv_heads=a.kv_heads,
        intermediate_size=a.intermediate_size,
    )


def _vocabulary(tokenizer_json: bytes) -> int:
    from tokenizers import Tokenizer

    try:
        return int(Tokenizer.from_str(tokenizer_json.decode()).get_vocab_size())
    except Exception as error:  # the library raises bare Exception
        raise LlmzipError(f"the new tokenizer cannot be read: {error}") from None


def _config(
    old: dict[str, Any], a: Architecture, layers: int, vocabulary: int, window: int
) -> dict[str, Any]:
    """The config.json of the pruned model: a Mistral, whose attention slides."""
    left_out = ("rope_scaling", "rope_theta", "layer_types", "quantization_config", ROTATED_KEY)
    return {
        **{key: value for key, value in old.items() if key not in left_out},
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "vocab_size": vocabulary,
        "num_hidden_layers": layers,
        "head_dim": a.head_dim,
        "sliding_window": window,
        "max_position_embeddings": POSITIONS,
        "rope_parameters": {"rope_type": "default", **a.rope},
        "tie_word_embeddings": a.tied,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
