"""Model folders in Hugging Face format, and GGUF files → `ModelFiles`, with their digest.

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
from llmzip.models import cache as converted_before
from llmzip.models import compact, home, int8
from llmzip.models.cache import Converted
from llmzip.models.digest import BYTES, VOLATILE, canonical, digest

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDED = ("nano", "small", "base")
DEFAULT = "small"

_HOME = Path(__file__).parent
_JSON_LIMIT = 256 << 20  # no tokenizer.json comes near it
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
    tokenizer_json: bytes  # `canonical`
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
        """Whether the weights are in int8."""
        return any(name.endswith(int8.SCALE) for name in self.tensors)


def load(name: str, *, exact: bool = False) -> ModelFiles:
    """The name of an embedded or installed model, a folder, a GGUF file, or a hub id
    (`owner/model`).

    `exact`: the weights are for exact arithmetic alone, so that int8 ones do, made now or before,
    which give the same bits. Raises UnsupportedModel for unsafe or incomplete files, WrongModel if
    nothing is found.
    """
    if name in EMBEDDED:
        return _embedded(name)
    if home.is_installed(name):
        return _read(home.folder(name), name)
    path = Path(name)
    if name and path.is_dir():
        return _for_exact(path, name) if exact else _read(path, name)
    if name and path.is_file():
        return _read_gguf(path, name)
    if is_hub_id(name):
        return fetch(name, exact=exact)
    if name in home.installable():
        raise WrongModel(f"the model {name} is not installed: llmzip models install {name}")
    raise WrongModel(
        f"no model {name!r}: neither embedded ({', '.join(EMBEDDED)}) nor installed, nor a folder, "
        "a GGUF file or a hub id"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/model`."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(name: str, *, exact: bool = False) -> ModelFiles:
    """A model of the hub by its id, even where a folder has that name; `exact` as for `load`."""
    path = _fetch(name)
    return _for_exact(path, name) if exact else _read(path, name)


def folder(name: str) -> Path:
    """Where an embedded or installed model lives."""
    return _HOME / name if name in EMBEDDED else home.folder(name)


def shipped(name: str) -> list[Path]:
    """The files that a model consists of: config, tokenizer, weights; or a GGUF file alone. Raises
    as `load`."""
    place = folder(name) if name in EMBEDDED or home.is_installed(name) else Path(name)
    if place.is_file():
        return [place]
    if not place.is_dir():
        load(name)  # says why, or fetches it
        place = _fetch(name)
    return _files(place)


def _files(place: Path) -> list[Path]:
    tokenizer = place / "tokenizer.json"
    if not tokenizer.is_file() and (place / compact.NAME).is_file():
        tokenizer = place / compact.NAME
    return [place / "config.json", tokenizer, *_weight_files(place)]


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


def _read(folder: Path, name: str, known: bytes | None = None) -> ModelFiles:
    """`known`: the digest, where that was found out before."""
    config = _read_json(folder / "config.json")
    tokenizer = canonical(_read_tokenizer(folder))
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            tensors.update(_read_weights(path))
        except Exception as error:  # safetensors raises its own, OSError and ValueError
            raise UnsupportedModel(f"{path} cannot be read: {error}") from None
    found = known or digest(config, tokenizer, tensors)
    return ModelFiles(name, config, tensors, tokenizer, found)


def _for_exact(folder: Path, name: str) -> ModelFiles:
    """As `_read`, its weights in int8 where exact arithmetic would round them so at every start.

    Embeddings are looked up with the precision that they come in, so they stay as they are.
    """
    from llmzip.exact.llama import FAMILY
    from llmzip.exact.prepare import prepared

    marks = converted_before.marks(_files(folder))
    source = converted_before.source_of(marks)
    if source is not None and (kept := converted_before.read(source)) and kept.digest == source:
        return _with(kept, name)
    llama = _read_json(folder / "config.json").get("model_type") in FAMILY
    files = _read(folder, name, None if llama else source)
    if marks is None or files.quantised:
        return files
    if not llama:  # of those, transformers makes a network, from weights as they are
        if source is None and converted_before.marks(_files(folder)) == marks:
            converted_before.remember(marks, files.digest)
        return files
    try:
        config, tensors = prepared(files.config, files.tensors)
    except UnsupportedModel:  # of a tensor that the model may not even have
        return files
    kept = Converted(config, files.tokenizer_json, tensors, files.digest)
    converted_before.write(files.digest, kept)
    if converted_before.marks(_files(folder)) == marks:  # nobody has changed it meanwhile
        converted_before.remember(marks, files.digest)
    return _with(kept, name)


def _read_gguf(path: Path, name: str) -> ModelFiles:
    from llmzip.exact.prepare import prepared
    from llmzip.models import gguf

    marks = converted_before.marks([path])
    known = converted_before.source_of(marks)
    source = _hash(path) if marks is not None and known is None else known
    if source is not None and (kept := converted_before.read(source)):
        if marks is not None and known is None:
            converted_before.remember(marks, source)
        return _with(kept, name)
    with gguf.opened(path) as (config, tokenizer, floats):
        config, tensors = prepared(config, floats, embeddings=True)
    text = canonical(tokenizer)
    kept = Converted(config, text, tensors, digest(config, text, tensors))
    if marks is not None and source is not None and converted_before.marks([path]) == marks:
        converted_before.write(source, kept)
        converted_before.remember(marks, source)
    return _with(kept, name)


def _hash(path: Path) -> bytes | None:
    hasher = hashlib.blake2b(digest_size=BYTES)
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                hasher.update(part)
    except OSError:  # whoever reads it next says so
        return None
    return hasher.digest()


def _with(kept: Converted, name: str) -> ModelFiles:
    return ModelFiles(name, kept.config, kept.tensors, kept.tokenizer, kept.digest)


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load, load_file

    if path.name != PACKED:
        return dict(load_file(path))

    from llmzip.models import packing

    content = io.BytesIO()
    with path.open("rb") as source:
        if packing.content_length(source) > _MOST_EXPANSION * path.stat().st_size:
            raise UnsupportedModel("packed weights would grow a thousandfold")
        source.seek(0)
        packing.unpack(source, content)
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


def save_int8(
    source: str,
    target: Path,
    context: int | None = None,
    *,
    packed: bool = False,
    rotated: bool = False,
) -> None:
    """Write a model as it is embedded: matrices as int8 with a float32 scale a row (named
    `<matrix>_scale`, [rows, 1]), the rest in float32, JSON without spaces. Int8 stays as it is.

    `rotated`: the matrices are made for transformed inputs (`exact.prepare`), for a model that was
    not trained with 8-bit activations in mind; int8 is made floats before. `context` replaces the
    config's max_position_embeddings. `packed`: weights by `packing`, the tokenizer in its compact
    form if it has one.
    """
    files = load(source)
    config = {key: value for key, value in files.config.items() if key not in VOLATILE}
    if context is not None:
        config["max_position_embeddings"] = context
    tokenizer = json.loads(files.tokenizer_json)
    if rotated:
        from llmzip.exact.prepare import floating, prepared

        floats = floating(config, files.tensors)
        config, tensors = prepared(config, floats, embeddings=True)
    else:
        tensors = files.tensors if files.quantised else int8.quantised(files.tensors)
    save(config, tokenizer, tensors, target, packed=packed)


def save(
    config: dict[str, Any],
    tokenizer: dict[str, Any],
    tensors: dict[str, Tensor],
    target: Path,
    *,
    packed: bool = False,
) -> None:
    """Write a folder that `load` takes. Raises OSError."""
    from safetensors.torch import save as to_bytes

    target.mkdir(parents=True, exist_ok=True)
    output.write(target / "config.json", json.dumps(config, indent=1) + "\n")
    for old in ("tokenizer.json", compact.NAME, "model.safetensors", PACKED):
        (target / old).unlink(missing_ok=True)  # two forms of one thing would be one too many
    small = compact.compact(tokenizer) if packed else None
    output.write(
        target / (compact.NAME if small else "tokenizer.json"),
        json.dumps(small or tokenizer, separators=(",", ":"), ensure_ascii=small is None),
    )
    weights = to_bytes(tensors, metadata={"format": "pt"})
    if not packed:
        output.write(target / "model.safetensors", weights)
        return
    from llmzip.models import packing

    with output.writing(target / PACKED, overwrite=True) as sink:
        packing.pack(io.BytesIO(weights), sink)
