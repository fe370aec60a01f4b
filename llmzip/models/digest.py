"""The digest of a model, which archives carry (docs/format.md, section 6)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

DIGEST_BYTES = 32
# keys of config.json that transformers writes about itself, not about the model
VOLATILE_KEYS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
                 "use_cache")  # fmt: skip


def digest(
    config: dict[str, Any], tokenizer: dict[str, Any] | bytes, weights: Mapping[str, Any]
) -> bytes:
    """BLAKE2b-256 over config, tokenizer and weights, each part preceded by its length.

    `tokenizer` is parsed JSON or, to save time, its `canonical` form; weights are numpy arrays or
    tensors.
    """
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def add(part: bytes | memoryview) -> None:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)

    add(canonical({key: value for key, value in config.items() if key not in VOLATILE_KEYS}))
    add(tokenizer if isinstance(tokenizer, bytes) else canonical(tokenizer))
    for name in sorted(weights):
        kind, array = _bytes_of(weights[name])
        add(f"{name} {kind} {list(weights[name].shape)}".encode())
        add(array.data)
    return hasher.digest()


def _bytes_of(weight: Any) -> tuple[str, np.ndarray]:
    """The name of its type, and its bytes, uint8 [n]."""
    if isinstance(weight, np.ndarray):
        return str(weight.dtype), np.ascontiguousarray(weight).reshape(-1).view(np.uint8)
    import torch

    flat: np.ndarray = weight.contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(weight.dtype).removeprefix("torch."), flat


def canonical(content: dict[str, Any]) -> bytes:
    """JSON with sorted keys, without spaces, ASCII only."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
