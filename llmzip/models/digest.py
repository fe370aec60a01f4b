"""The digest of a model, which archives carry (docs/format.md, section 6)."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_BYTES = 32
# keys of config.json that transformers writes about itself, not about the model
VOLATILE_KEYS = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
                 "use_cache")  # fmt: skip


def digest(
    config: dict[str, Any], tokenizer: dict[str, Any] | bytes, tensors: dict[str, Tensor]
) -> bytes:
    """BLAKE2b-256 over config, tokenizer and tensors, each part preceded by its length.

    `tokenizer` is parsed JSON or, to save time, its `canonical` form.
    """
    import torch

    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def add(part: bytes | memoryview) -> None:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)

    add(canonical({key: value for key, value in config.items() if key not in VOLATILE_KEYS}))
    add(tokenizer if isinstance(tokenizer, bytes) else canonical(tokenizer))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        add(f"{name} {str(tensor.dtype)[6:]} {list(tensor.shape)}".encode())
        add(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def canonical(content: dict[str, Any]) -> bytes:
    """JSON with sorted keys, without spaces, ASCII only."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
