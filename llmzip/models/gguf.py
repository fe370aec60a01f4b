"""A GGUF file of the Llama family → config and tensors as in a Hugging Face folder.

The `gguf` package dequantises the weights; `exact.quantise` then quantises them as for any other
model. The model's digest covers the resulting integers, so no version of that package can change
bits under the same digest. The config that is made here is part of the digest, too.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmzip.errors import UnsupportedModel
from llmzip.models import gguf_header, gguf_tokenizer
from llmzip.models.gguf_header import Header, TensorInfo

if TYPE_CHECKING:
    from torch import Tensor

_ARCHITECTURES = ("llama", "qwen2")
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "attn_q.weight": "self_attn.q_proj.weight",
    "attn_k.weight": "self_attn.k_proj.weight",
    "attn_v.weight": "self_attn.v_proj.weight",
    "attn_output.weight": "self_attn.o_proj.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "ffn_gate.weight": "mlp.gate_proj.weight",
    "ffn_up.weight": "mlp.up_proj.weight",
    "ffn_down.weight": "mlp.down_proj.weight",
}
_BIASES = {
    "attn_q.bias": "self_attn.q_proj.bias",
    "attn_k.bias": "self_attn.k_proj.bias",
    "attn_v.bias": "self_attn.v_proj.bias",
    "attn_output.bias": "self_attn.o_proj.bias",
}
_FREQUENCIES = "rope_freqs.weight"
# parameters of Llama 3.1 and 3.2, which llama.cpp's converter does not store
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}  # fmt: skip
_TOLERANCE = 1e-3  # relative, of frequency factors in float32


@contextmanager
def opened(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any], Mapping[str, Tensor]]]:
    """Config, parsed tokenizer.json, and float32 tensors, each dequantised when it is accessed.

    Raises UnsupportedModel, in one line, for malformed files and unknown architectures or types.
    """
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise UnsupportedModel("no GGUF file: it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = gguf_header.read_header(data, gguf_tokenizer.ARRAYS)
                architecture = header.fields.get("general.architecture")
                if architecture not in _ARCHITECTURES:
                    raise UnsupportedModel(
                        f"GGUF architecture {architecture!r} is not known; "
                        f"known: {', '.join(_ARCHITECTURES)}"
                    )
                tokenizer = gguf_tokenizer.tokenizer_json(header.fields)
                config = _config(header, architecture)
                yield config, tokenizer, _Tensors(data, header, config, architecture)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{path}: {error}") from None
    except OSError as error:
        raise UnsupportedModel(f"{path} cannot be read: {error.strerror or error}") from None


def require_package() -> None:
    """Raises UnsupportedModel, with instructions, if the package `gguf` is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UnsupportedModel(
            "GGUF files are read by the package gguf, which is missing: pip install 'llmzip[gguf]'"
        ) from None


def _config(header: Header, architecture: str) -> dict[str, Any]:
    """The content of config.json, from the metadata."""
    fields = header.fields

    def number(key: str, default: float | None = None, kind: type = int) -> Any:
        value = fields.get(f"{architecture}.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | kind):
            raise UnsupportedModel(f"malformed, or not known: {architecture}.{key} is {value!r}")
        return value

    heads = number("attention.head_count")
    hidden = number("embedding_length")
    if heads < 1 or hidden % heads:
        raise UnsupportedModel(f"{hidden} features cannot be shared by {heads} heads")
    head_dim = number("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if number(key, head_dim) != head_dim:
            raise UnsupportedModel(f"{architecture}.{key} is not the size of a head, {head_dim}")
    if number("expert_count", 0):
        raise UnsupportedModel("a mixture of experts has no exact form")
    rope = {
        "rope_type": "default",
        "rope_theta": float(number("rope.freq_base", 10000.0, float)),
        **_scaling(header, architecture, head_dim),
    }
    config = {
        # Qwen 2 is a Llama with biases
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": any(name.endswith("attn_q.bias") for name in header.tensors),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": hidden,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": number("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": float(number("attention.layer_norm_rms_epsilon", None, float)),
        "rope_parameters": rope,
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    for key in ("bos_token_id", "eos_token_id"):
        id = fields.get(f"tokenizer.ggml.{key}")
        config[key] = id if isinstance(id, int) and 0 <= id < config["vocab_size"] else None
    from llmzip.exact.architecture import Architecture

    Architecture.from_config(config)
    return config


def _scaling(header: Header, architecture: str, head_dim: int) -> dict[str, Any]:
    """rope_parameters of a linearly scaled rotary embedding, from the metadata."""
    fields = header.fields
    kind = fields.get(f"{architecture}.rope.scaling.type", "none")
    factor = fields.get(
        f"{architecture}.rope.scaling.factor", fields.get(f"{architecture}.rope.scale_linear", 1.0)
    )
    if not isinstance(factor, int | float) or not 0 < factor < 1e6:
        raise UnsupportedModel(f"malformed: a rotary embedding scaled by {factor!r}")
    if kind == "none" and factor != 1 and f"{architecture}.rope.scaling.type" not in fields:
        kind = "linear"
    if kind not in ("none", "linear"):
        raise UnsupportedModel(f"a rotary embedding scaled by {kind!r} has no exact form here")
    if kind == "linear" and factor != 1:
        if _FREQUENCIES in header.tensors:
            raise UnsupportedModel(f"a rotary embedding scaled linearly and by {_FREQUENCIES}")
        return {"rope_type": "linear", "factor": float(factor)}
    return {}


class _Tensors(Mapping[str, "Tensor"]):
    """Hugging Face name → float32 tensor, dequantised at access."""

    def __init__(
        self, data: mmap.mmap, header: Header, config: dict[str, Any], architecture: str
    ) -> None:
        require_package()
        from gguf import GGMLQuantizationType, quants

        self._kinds, self._quants = GGMLQuantizationType, quants
        self._data = data
        # rotary pairs are neighbours in llama.cpp, half a head apart in Hugging Face
        self._interleaved = architecture == "llama"
        self._heads = {
            "q_proj": config["num_attention_heads"],
            "k_proj": config["num_key_value_heads"],
        }
        if _FREQUENCIES in header.tensors:
            config["rope_parameters"] |= self._llama3(header.tensors[_FREQUENCIES], config)
        self._infos = _tensor_infos(header, config)

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, name: str) -> Tensor:
        info = self._infos[name]
        tensor = self._read(info)
        projection = name.split(".")[-2]
        if self._interleaved and projection in self._heads and "self_attn" in name:
            heads = self._heads[projection]
            pairs = tensor.view(heads, len(tensor) // heads // 2, 2, *tensor.shape[1:])
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)
        return tensor

    def _read(self, info: TensorInfo) -> Tensor:
        import numpy as np
        import torch

        raw = np.frombuffer(self._data[info.start : info.start + info.size], np.uint8)
        if info.type == "F32":  # the package would ignore the file's byte order
            values = raw.view("<f4").astype(np.float32)
        else:
            rows = raw.reshape(-1, info.size // (int(np.prod(info.shape[:-1])) or 1))
            with np.errstate(all="ignore"):  # values that are not finite are refused later
                values = self._quants.dequantize(rows, getattr(self._kinds, info.type))
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).view(info.shape)

    def _llama3(self, info: TensorInfo, config: dict[str, Any]) -> dict[str, Any]:
        """The rope_parameters that these factors were computed from, which have an exact form."""
        from llmzip.exact.rotary import rotary_frequencies

        dim, theta = config["head_dim"], config["rope_parameters"]["rope_theta"]
        if info.shape != (dim // 2,):
            raise UnsupportedModel(f"{_FREQUENCIES} has shape {info.shape}")
        factors = self._read(info).tolist()
        unscaled = rotary_frequencies({"rope_theta": theta}, dim)
        if all(factor == 1 for factor in factors):
            return {}
        if all(0 < factor < 1e6 for factor in factors):
            rope = {"rope_type": "llama3", "factor": float(round(max(factors))), **_LLAMA3}
            exact = rotary_frequencies({"rope_theta": theta, **rope}, dim)
            ratios = (float(p / e) for p, e in zip(unscaled, exact, strict=True))
            if all(abs(f - r) < _TOLERANCE * r for f, r in zip(factors, ratios, strict=True)):
                return rope
        raise UnsupportedModel(f"the factors in {_FREQUENCIES} are none of Llama 3.1 or 3.2")


def _tensor_infos(header: Header, config: dict[str, Any]) -> dict[str, TensorInfo]:
    """Hugging Face name → tensor info, with the shape checked."""
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "embed_tokens.weight": (config["vocab_size"], hidden),
        "lm_head.weight": (config["vocab_size"], hidden),
        "q_proj.weight": (queries, hidden),
        "k_proj.weight": (keys, hidden),
        "v_proj.weight": (keys, hidden),
        "o_proj.weight": (hidden, queries),
        "gate_proj.weight": (mlp, hidden),
        "up_proj.weight": (mlp, hidden),
        "down_proj.weight": (hidden, mlp),
        "q_proj.bias": (queries,),
        "k_proj.bias": (keys,),
        "v_proj.bias": (keys,),
    }
    names = {"token_embd.weight": "model.embed_tokens.weight"}
    for i in range(config["num_hidden_layers"]):
        if f"blk.{i}.attn_norm.weight" not in header.tensors:
            raise UnsupportedModel(f"it lacks the tensor blk.{i}.attn_norm.weight")
        layer = {**_LAYER, **{n: v for n, v in _BIASES.items() if f"blk.{i}.{n}" in header.tensors}}
        names |= {f"blk.{i}.{name}": f"model.layers.{i}.{v}" for name, v in layer.items()}
    names["output_norm.weight"] = "model.norm.weight"
    if not config["tie_word_embeddings"]:
        names["output.weight"] = "lm_head.weight"
    unknown = sorted(set(header.tensors) - set(names) - {_FREQUENCIES})
    if unknown:
        raise UnsupportedModel(f"the tensor {unknown[0]} has no exact form in a Llama")
    found = {}
    for source, name in names.items():
        info = header.tensors.get(source)
        if info is None:
            raise UnsupportedModel(f"it lacks the tensor {source}")
        expected = shapes.get(".".join(name.split(".")[-2:]), (hidden,))
        if info.shape != expected:
            raise UnsupportedModel(f"{source} has shape {info.shape}, expected {expected}")
        found[name] = info
    return found
