"""Model folders in Hugging Face format: reading, checking and writing.

Torch is imported only for weights that numpy has no type for, and where tensors are asked for.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmzip import output
from llmzip.errors import UnsupportedModel
from llmzip.exact import SCALE_SUFFIX
from llmzip.models import compact_tokenizer, weight_file
from llmzip.models.digest import canonical, digest

if TYPE_CHECKING:
    from torch import Tensor

PACKED = "model.safetensors.llmzw"
_MAX_JSON = 256 << 20  # bytes; no tokenizer.json comes near it
_MAX_EXPANSION = 1000  # of packed weights: more than any real ones


@dataclass(frozen=True)
class ModelFiles:
    """The content of a model folder, read and checked but not yet interpreted."""

    name: str
    config: dict[str, Any]
    weights: Mapping[str, Any]  # tensors, or numpy arrays if all have types that numpy knows
    tokenizer_json: bytes  # `canonical`
    digest: bytes  # BLAKE2b-256, see docs/format.md

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The weights as tensors; this imports torch."""
        import torch

        return {
            # torch wants arrays that may be written to
            name: torch.from_numpy(np.require(weight, requirements="W"))
            if isinstance(weight, np.ndarray)
            else weight
            for name, weight in self.weights.items()
        }

    @property
    def arrays(self) -> dict[str, np.ndarray] | None:
        """The weights as numpy arrays, unless they were read as tensors."""
        if not all(isinstance(weight, np.ndarray) for weight in self.weights.values()):
            return None
        return dict(self.weights)

    @property
    def parameters(self) -> int:
        """How many there are; scales of int8 weights are none."""
        weights = self.weights.items()
        return sum(math.prod(w.shape) for name, w in weights if not name.endswith(SCALE_SUFFIX))

    @property
    def bos(self) -> int:
        """The id that every context begins with: bos, else eos, else 0."""
        for key in ("bos_token_id", "eos_token_id"):
            id = self.config.get(key)
            if isinstance(id, list) and id:
                id = id[0]
            if isinstance(id, int) and 0 <= id < self.config.get("vocab_size", 0):
                return id
        return 0

    @property
    def quantised(self) -> bool:
        """Whether there are int8 weights."""
        return any(name.endswith(SCALE_SUFFIX) for name in self.weights)


def read(folder: Path, name: str, known_digest: bytes | None = None) -> ModelFiles:
    """All files of a folder. `known_digest` saves computing the digest.

    Raises UnsupportedModel for unsafe, incomplete or unreadable files.
    """
    config = read_json(folder / "config.json")
    tokenizer = canonical(_read_tokenizer(folder))
    weights: dict[str, Any] = {}
    for path in _weight_paths(folder):
        try:
            weights.update(_read_weights(path))
        except Exception as error:  # safetensors raises its own, OSError and ValueError
            raise UnsupportedModel(f"{path} cannot be read: {error}") from None
    found = known_digest or digest(config, tokenizer, weights)
    return ModelFiles(name, config, weights, tokenizer, found)


def load_config_only(folder: Path) -> ModelFiles:
    """The config of a folder, without weights. Raises UnsupportedModel if weights or tokenizer are
    missing."""
    config = read_json(folder / "config.json")
    _weight_paths(folder)
    if not _tokenizer_path(folder).is_file():
        raise UnsupportedModel(f"{folder} holds no tokenizer.json")
    return ModelFiles(folder.name, config, {}, b"", b"")


def paths(folder: Path) -> list[Path]:
    """Config, tokenizer and weights. Raises UnsupportedModel if there are no weights."""
    return [folder / "config.json", _tokenizer_path(folder), *_weight_paths(folder)]


def save(
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    *,
    packed: bool = False,
) -> None:
    """Write a folder that `read` takes.

    `packed`: weights as `.llmzw`, the tokenizer in its compact form if it has one. Raises OSError.
    """
    from safetensors.torch import save as to_bytes

    folder.mkdir(parents=True, exist_ok=True)
    output.write(folder / "config.json", json.dumps(config, indent=1) + "\n")
    for old in ("tokenizer.json", compact_tokenizer.NAME, "model.safetensors", PACKED):
        (folder / old).unlink(missing_ok=True)
    small = compact_tokenizer.compact(tokenizer) if packed else None
    output.write(
        folder / (compact_tokenizer.NAME if small else "tokenizer.json"),
        json.dumps(small or tokenizer, separators=(",", ":"), ensure_ascii=small is None),
    )
    weights = to_bytes(tensors, metadata={"format": "pt"})
    if not packed:
        output.write(folder / "model.safetensors", weights)
        return
    from llmzip.models import packing

    with output.writing(folder / PACKED, overwrite=True) as sink:
        packing.pack(io.BytesIO(weights), sink, workers=1)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UnsupportedModel if the file is missing, malformed or too large."""
    try:
        if path.stat().st_size > _MAX_JSON:
            raise UnsupportedModel(f"{path} is larger than {_MAX_JSON >> 20} MiB")
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UnsupportedModel(
            f"{path} is missing; a model folder needs config.json, tokenizer.json and "
            "model.safetensors"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} holds no JSON object")
    return content


def _tokenizer_path(folder: Path) -> Path:
    compact = folder / compact_tokenizer.NAME
    path = folder / "tokenizer.json"
    return compact if compact.is_file() and not path.is_file() else path


def _read_tokenizer(folder: Path) -> dict[str, Any]:
    path = _tokenizer_path(folder)
    content = read_json(path)
    return compact_tokenizer.expand(content) if path.name == compact_tokenizer.NAME else content


def _weight_paths(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / PACKED).is_file():
        return [folder / PACKED]
    if index.is_file():
        weights = read_json(index).get("weight_map") or {}
        names = weights.values() if isinstance(weights, dict) else ()
        if not names or any(not isinstance(n, str) or "/" in n or "\\" in n for n in names):
            raise UnsupportedModel(f"{index} does not name files of its folder")
        return [folder / name for name in sorted(set(names))]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise UnsupportedModel(
            f"{folder} holds pickled weights, which can run code when loaded; save the model "
            "again with save_pretrained(…, safe_serialization=True)"
        )
    raise UnsupportedModel(f"{folder} holds no model.safetensors")


def _read_weights(path: Path) -> dict[str, Any]:
    """Numpy arrays, or tensors if numpy does not know all of their types."""
    if path.name != PACKED:
        return weight_file.read(path)
    from llmzip.models import packing

    content = io.BytesIO()
    with path.open("rb") as source:
        if packing.content_length(source) > _MAX_EXPANSION * path.stat().st_size:
            raise UnsupportedModel("packed weights would grow a thousandfold")
        source.seek(0)
        packing.unpack(source, content, workers=1)  # a library starts no processes unasked
    return weight_file.read(content.getvalue())
