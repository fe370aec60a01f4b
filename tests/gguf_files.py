"""GGUF files of small models, written by the `gguf` package as llama.cpp's converter does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from conftest import TINY

from llmzip import models

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny() -> tuple[dict[str, Any], dict[str, Any], dict[str, np.ndarray]]:
    """Config, tokenizer.json and float32 tensors of TINY."""
    files = models.load(str(TINY))
    tensors = {
        name: (t.float() * files.tensors.get(name + "_scale", torch.ones(1))).numpy()
        for name, t in files.tensors.items()
        if not name.endswith("_scale")
    }
    return files.config, json.loads(files.tokenizer_json), tensors


def random(config: Mapping[str, Any], *, untied: bool = False) -> dict[str, np.ndarray]:
    """Tensors of a Llama of this shape."""
    h, wide, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    q, k = (config[f"num_{n}_heads"] * config["head_dim"] for n in ("attention", "key_value"))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (v, h)}
    for i in range(config["num_hidden_layers"]):
        part = {
            "self_attn.q_proj": (q, h), "self_attn.k_proj": (k, h), "self_attn.v_proj": (k, h),
            "self_attn.o_proj": (h, q), "mlp.gate_proj": (wide, h), "mlp.up_proj": (wide, h),
            "mlp.down_proj": (h, wide), "input_layernorm": (h,), "post_attention_layernorm": (h,),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in part.items()}
    shapes["model.norm.weight"] = (h,)
    if untied:
        shapes["lm_head.weight"] = (v, h)
    draw = np.random.default_rng(5)
    return {n: draw.standard_normal(s, dtype=np.float32) / 8 for n, s in shapes.items()}


def gguf_name(name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    if stem.startswith("model.layers."):
        _, _, i, stem = stem.split(".", 3)
        return f"blk.{i}.{_NAMES[stem]}.{kind}"
    return f"{_NAMES[stem]}.{kind}"


def fields(
    config: Mapping[str, Any], tokenizer: Mapping[str, Any], architecture: str = "llama"
) -> dict[str, Any]:
    """The metadata; what is set to None in them is left out by `write`."""
    special = {t["content"] for t in tokenizer["added_tokens"]}
    tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    return {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
        "rope.dimension_count": config["head_dim"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in tokenizer["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
    }


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter makes of the rows of q and k."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def write(
    path: Path,
    *,
    kind: str = "F32",
    architecture: str = "llama",
    model: tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, np.ndarray]] | None = None,
    change: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """TINY, or `model`, with its matrices of this kind. `change`: metadata other than usual;
    `tensors`: by GGUF name other ones, in float32, or None for those to leave out."""
    config, tokenizer, weights = model or tiny()
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**fields(config, tokenizer), **(change or {})}.items():
        key = key if key.startswith(("tokenizer.", "general.")) else f"{architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_array(key, value)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    found: dict[str, np.ndarray | None] = {}
    for name, weight in weights.items():
        if architecture == "llama" and name.split(".")[-2] in heads:
            weight = permuted(weight, heads[name.split(".")[-2]])
        found[gguf_name(name)] = weight
    number = gguf.GGMLQuantizationType[kind]
    for name, weight in {**found, **(tensors or {})}.items():
        if weight is None:
            continue
        if weight.dtype == np.uint8:  # blocks, as they are
            writer.add_tensor(name, weight, raw_dtype=number)
        elif weight.ndim == 2 and kind != "F32":
            writer.add_tensor(name, gguf.quants.quantize(weight, number), raw_dtype=number)
        else:
            writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
