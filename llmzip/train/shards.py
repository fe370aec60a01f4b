"""Weights ↔ a model folder whose int8 weights are in pieces of at most 16 MiB.

Only torch and safetensors are needed, so that machines on which llmzip cannot be installed can
write what `--model` takes elsewhere. New pieces count once the index names them, so a run that is
interrupted while it writes leaves the earlier ones valid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from llmzip import output
from llmzip.errors import LlmzipError
from llmzip.exact import SCALE_SUFFIX

PIECE_BYTES = 16 << 20
_HEADER_BYTES = 1 << 16  # left free in each piece
_SCALE_FLOOR = 2.0**-40  # that of exact inference
_INDEX = "model.safetensors.index.json"


def write(
    folder: Path,
    config: Mapping[str, Any],
    tokenizer_json: bytes,
    weights: Mapping[str, Tensor],
    progress: Mapping[str, Any] | None = None,
) -> None:
    """Write config, tokenizer and weights, matrices in int8 with a scale a row.

    `progress` is kept with them. Raises OSError, and LlmzipError for a matrix larger than a piece.
    """
    folder.mkdir(parents=True, exist_ok=True)
    output.write(folder / "config.json", json.dumps(dict(config), indent=1) + "\n")
    output.write(folder / "tokenizer.json", tokenizer_json)
    old = set(folder.glob("model-*.safetensors"))
    step = int((progress or {}).get("step", 0))
    places = {}
    for i, tensors in enumerate(_pieces(weights)):
        name = f"model-{step:07d}-{i:02d}.safetensors"
        output.write(folder / name, save(tensors, metadata={"format": "pt"}))
        places.update(dict.fromkeys(tensors, name))
    index = {"metadata": dict(progress or {}), "weight_map": places}
    output.write(folder / _INDEX, json.dumps(index, indent=1) + "\n")
    for path in old - {folder / name for name in places.values()}:
        path.unlink()


def exists(folder: Path) -> bool:
    """Whether `write` has finished in this folder."""
    return (folder / _INDEX).is_file()


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Config, float32 weights and progress that `write` left. Raises LlmzipError."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
        index = json.loads((folder / _INDEX).read_bytes())
        names = sorted(set(index["weight_map"].values()))
        stored = {n: t for name in names for n, t in load_file(folder / name).items()}
    except (OSError, ValueError, KeyError) as error:
        raise LlmzipError(f"{folder} holds no weights in pieces: {error}") from None
    weights = {}
    for name, tensor in stored.items():
        if not name.endswith(SCALE_SUFFIX):
            scale = stored.get(name + SCALE_SUFFIX)
            weights[name] = tensor.float() if scale is None else tensor.float() * scale
    return config, weights, index["metadata"]


def _pieces(weights: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    piece: dict[str, Tensor] = {}
    room = PIECE_BYTES - _HEADER_BYTES
    for name, weight in weights.items():
        stored = _int8(name, weight.detach().float().cpu())
        size = sum(t.numel() * t.itemsize for t in stored.values())
        if size > PIECE_BYTES - _HEADER_BYTES:
            raise LlmzipError(f"{name} takes {size} bytes, more than a piece of {PIECE_BYTES}")
        if size > room:
            yield piece
            piece, room = {}, PIECE_BYTES - _HEADER_BYTES
        piece |= stored
        room -= size
    yield piece


def _int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    """As `exact.quantise.quantise_matrices`, which needs numba."""
    if weight.ndim != 2:
        return {name: weight.contiguous()}
    scale = (weight.abs().amax(1, keepdim=True) * (1 / 127.0)).clamp_min(_SCALE_FLOOR)
    return {name: (weight / scale).round().to(torch.int8), name + SCALE_SUFFIX: scale}
