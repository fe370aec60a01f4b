"""Model folders in Hugging Face format → `ModelFiles`, with the digest that archives carry.

Torch is loaded to read weights, not to look a model up.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmzip import output
from llmzip.errors import UnsupportedModel, WrongModel
from llmzip.models import compact

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = ("nano", "small", "base")
DEFAULT = "small"
DIGEST_BYTES = 32

_HOME = Path(__file__).parent
_JSON_LIMIT = 256 << 20  # no tokenizer.json comes near it
# what transformers writes about itself, and not about the model
_VOLATILE = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version",
             "use_cache")  # fmt: skip
PACKED = "model.safetensors.llmzw"
_MOST_EXPANSION = 1000  # of packed weights: more than any real ones
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_HUB_FILES = ("config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class ModelFiles:
    """What a model folder holds, read and checked but not yet interpreted."""

    name: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer_json: bytes
    digest: bytes  # BLAKE2b-256, see docs/format.md

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
        """Whether the weights come as int8, from training that knew of it."""
        return any(name.endswith("_scale") for name in self.tensors)


def load(name: str) -> ModelFiles:
    """An embedded model's name, a folder, or a hub id (`owner/model`).

    Raises UnsupportedModel for unsafe or incomplete files, WrongModel if nothing is found.
    """
    if name in EMBEDDED:
        return _embedded(name)
    folder = Path(name)
    if name and folder.is_dir():
        return _read(folder, name)
    if is_hub_id(name):
        return fetch(name)
    raise WrongModel(
        f"no model {name!r}: neither embedded ({', '.join(EMBEDDED)}), nor a folder, nor a hub id"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/model`."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(name: str) -> ModelFiles:
    """A model of the hub by its id, even where a folder has that name."""
    return _read(_fetch(name), name)


def folder(name: str) -> Path:
    """Where an embedded model lives."""
    return _HOME / name


def shipped(name: str) -> list[Path]:
    """The files that a model consists of: config, tokenizer, weights. Raises as `load`."""
    home = folder(name) if name in EMBEDDED else Path(name)
    if not home.is_dir():
        load(name)  # says why, or fetches it
        home = _fetch(name)
    tokenizer = home / "tokenizer.json"
    if not tokenizer.is_file() and (home / compact.NAME).is_file():
        tokenizer = home / compact.NAME
    return [home / "config.json", tokenizer, *_weight_files(home)]


def glance(folder: Path) -> ModelFiles:
    """Only the config of a folder that has all files: for a look at whether it may work."""
    config = _read_json(folder / "config.json")
    _weight_files(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", compact.NAME)):
        raise UnsupportedModel(f"{folder} holds no tokenizer.json")
    return ModelFiles(folder.name, config, {}, b"", b"")


def embedded_with_digest(start: bytes) -> str | None:
    """The name of the embedded model whose digest begins with these bytes, if there is one."""
    for name in EMBEDDED:
        if bytes.fromhex(expected(name)["digest"]).startswith(start):
            return name
    return None


def expected(name: str) -> dict[str, Any]:
    """Of an embedded model: its digest, and what its integer weights on the probe text hash to
    (by `llmzip doctor`), per kind of activations."""
    return _read_json(_HOME / name / "check.json")


@cache
def _embedded(name: str) -> ModelFiles:
    return _read(_HOME / name, name)


def _fetch(name: str) -> Path:
    """The local folder of a hub model, downloaded if need be (HF_HUB_OFFLINE is respected)."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # every layer of the network has exceptions of its own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WrongModel(
            f"hub model {name!r} is neither in the local cache nor could it be fetched ({reason})"
        ) from None


def _read(folder: Path, name: str) -> ModelFiles:
    config = _read_json(folder / "config.json")
    tokenizer = _read_tokenizer(folder)
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors.update(_read_weights(path))
        except Exception as error:  # safetensors raises its own, OSError and ValueError
            raise UnsupportedModel(f"{path} cannot be read: {error}") from None
    digest = _digest(config, tokenizer, tensors)
    return ModelFiles(name, config, tensors, json.dumps(tokenizer).encode(), digest)


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load, load_file

    if path.name != PACKED:
        return dict(load_file(path))
    from llmzip import pack

    content = io.BytesIO()
    with path.open("rb") as source:
        if pack.content_length(source) > _MOST_EXPANSION * path.stat().st_size:
            raise UnsupportedModel("packed weights would grow a thousandfold")
        source.seek(0)
        pack.unpack(source, content)
    return dict(load(content.getvalue()))


def _read_tokenizer(folder: Path) -> dict[str, Any]:
    if not (folder / "tokenizer.json").is_file() and (folder / compact.NAME).is_file():
        return compact.expand(_read_json(folder / compact.NAME))
    return _read_json(folder / "tokenizer.json")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise UnsupportedModel(f"{path} is larger than {_JSON_LIMIT >> 20} MiB")
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


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if (folder / PACKED).is_file():
        return [folder / PACKED]
    if index.is_file():
        names = set((_read_json(index).get("weight_map") or {}).values())
        if any(not isinstance(n, str) or "/" in n or "\\" in n for n in names):
            raise UnsupportedModel(f"{index} names a file outside of its folder")
        return [folder / name for name in sorted(names)]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise UnsupportedModel(
            f"{folder} holds pickled weights, which can run code when loaded; save the model "
            "again with save_pretrained(…, safe_serialization=True)"
        )
    raise UnsupportedModel(f"{folder} holds no model.safetensors")


def _digest(config: dict[str, Any], tokenizer: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """BLAKE2b-256 over config, tokenizer and tensors, each part preceded by its length."""
    import torch

    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def add(part: bytes | memoryview) -> None:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)

    kept = {key: value for key, value in config.items() if key not in _VOLATILE}
    add(_canonical(kept))
    add(_canonical(tokenizer))
    for key in sorted(tensors):
        tensor = tensors[key].contiguous()
        add(f"{key} {str(tensor.dtype)[6:]} {list(tensor.shape)}".encode())
        add(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.digest()


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def save_int8(
    source: str, target: Path, context: int | None = None, *, packed: bool = False
) -> None:
    """Write a model as it is embedded: matrices as int8 with a float32 scale a row (named
    `<matrix>_scale`, [rows, 1]), the rest in float32, JSON without spaces. Int8 stays as it is.

    `context` replaces the config's max_position_embeddings. `packed`: weights by `llmzip.pack`,
    the tokenizer in its compact form if it has one.
    """
    import torch
    from safetensors.torch import save

    from llmzip.exact import ops

    files = load(source)
    tensors: dict[str, Tensor] = {}
    for name, tensor in files.tensors.items():
        if tensor.dtype == torch.int8 or name.endswith("_scale"):
            tensors[name] = tensor
        elif tensor.ndim == 2:
            integers, scale = ops.quantise_weight(tensor)
            tensors[name], tensors[name + "_scale"] = integers, scale[:, None]
        else:
            tensors[name] = tensor.float()
    config = {key: value for key, value in files.config.items() if key not in _VOLATILE}
    if context is not None:
        config["max_position_embeddings"] = context
    target.mkdir(parents=True, exist_ok=True)
    output.write(target / "config.json", json.dumps(config, indent=1) + "\n")
    for old in ("tokenizer.json", compact.NAME, "model.safetensors", PACKED):
        (target / old).unlink(missing_ok=True)  # two forms of one thing would be one too many
    tokenizer = json.loads(files.tokenizer_json)
    small = compact.compact(tokenizer) if packed else None
    output.write(
        target / (compact.NAME if small else "tokenizer.json"),
        json.dumps(small or tokenizer, separators=(",", ":"), ensure_ascii=small is None),
    )
    weights = save(tensors, metadata={"format": "pt"})
    if not packed:
        output.write(target / "model.safetensors", weights)
        return
    from llmzip import pack

    with output.writing(target / PACKED, overwrite=True) as sink:
        pack.pack(io.BytesIO(weights), sink)
