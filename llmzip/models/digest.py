"""Config, tokenizer and tensors → the digest that archives carry (docs/format.md, 6)."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BYTES = 32
# what transformers writes about itself, and not about the model
VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
            "use_cache")  # fmt: skip


def digest(
    config: dict[str, Any], tokenizer: dict[str, Any] | bytes, tensors: dict[str, Tensor]
) -> bytes:
    """BLAKE2b-256 over config, tokenizer and tensors, each part preceded by its length.

    The tokenizer is parsed JSON, or, which saves time, what `canonical` makes of it.
    """
    import torch

    hasher = hashlib.blake2b(digest_size=BYTES)

    def add(part: bytes | memoryview) -> None:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)

    kept = {key: value for key, value in config.items() if key not in VOLATILE}
    add(canonical(kept))
    add(tokenizer if isinstance(tokenizer, bytes) else canonical(tokenizer))
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        add(f"{key} {str(tensor.dtype)[6:]} {list(tensor.shape)}".encode())
        add(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def canonical(content: dict[str, Any]) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
