"""The name of a model → its `ModelFiles`, converted for exact inference where that helps."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from llmzip.errors import UnsupportedModel, WrongModel
from llmzip.models import conversion_cache, model_folder, registry
from llmzip.models.conversion_cache import ConvertedModel
from llmzip.models.digest import DIGEST_BYTES, VOLATILE_KEYS, canonical, digest
from llmzip.models.model_folder import ModelFiles

EMBEDDED = ("nano", "small", "base")
DEFAULT = "small"

_PACKAGE = Path(__file__).parent
_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
_HUB_FILES = ("config.json", "tokenizer.json", "*.safetensors", "*.safetensors.index.json")


def load(name: str, *, exact: bool = False) -> ModelFiles:
    """Load an embedded or installed model, a folder, a GGUF file, or a hub id (`owner/model`).

    `exact`: the weights are for exact inference only; int8 weights, which give the same bits, may
    be made of them or taken from the cache. Raises UnsupportedModel for unsafe or incomplete files,
    WrongModel if nothing is found.
    """
    if name in EMBEDDED:
        return _load_embedded(name)
    if registry.is_installed(name):
        return model_folder.read(registry.folder(name), name)
    path = Path(name)
    if name and path.is_dir():
        return _load_folder(path, name, exact)
    if name and path.is_file():
        return _load_gguf(path, name)
    if is_hub_id(name):
        return fetch(name, exact=exact)
    if name in registry.installable():
        raise WrongModel(f"the model {name} is not installed: llmzip models install {name}")
    raise WrongModel(
        f"no model {name!r}: neither embedded ({', '.join(EMBEDDED)}) nor installed, nor a folder, "
        "a GGUF file or a hub id"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form `owner/model`."""
    return _HUB_ID.fullmatch(name) is not None


def fetch(name: str, *, exact: bool = False) -> ModelFiles:
    """Load a model from the hub by its id, even if a folder has that name; otherwise as `load`."""
    return _load_folder(_fetch(name), name, exact)


def folder(name: str) -> Path:
    """The folder of an embedded or installed model."""
    return _PACKAGE / name if name in EMBEDDED else registry.folder(name)


def model_paths(name: str) -> list[Path]:
    """The files of a model: config, tokenizer, weights; or only a GGUF file. Raises as `load`."""
    path = folder(name) if name in EMBEDDED or registry.is_installed(name) else Path(name)
    if path.is_file():
        return [path]
    if not path.is_dir():
        load(name)  # raises, or fetches it
        path = _fetch(name)
    return model_folder.paths(path)


def embedded_with_digest(start: bytes) -> str | None:
    """The name of the embedded model whose digest begins with these bytes."""
    for name in EMBEDDED:
        if bytes.fromhex(embedded_record(name)["digest"]).startswith(start):
            return name
    return None


def embedded_record(name: str) -> dict[str, Any]:
    """The check.json of an embedded model: its digest, the digest of its frequencies on the probe
    of `llmzip doctor` by activations, and bits per byte of texts."""
    return model_folder.read_json(_PACKAGE / name / "check.json")


def save_int8(
    source: str,
    target: Path,
    context: int | None = None,
    *,
    packed: bool = False,
    rotated: bool = False,
) -> None:
    """Load a model and save it with int8 matrices, as embedded models are; int8 weights stay.

    `context` replaces the config's max_position_embeddings, `packed` is that of
    `model_folder.save`. `rotated`: weights take Hadamard transforms (`exact.quantise`), for models
    that were not trained for int8; int8 weights are dequantised first.
    """
    from llmzip.exact import quantise

    files = load(source)
    config = {key: value for key, value in files.config.items() if key not in VOLATILE_KEYS}
    if context is not None:
        config["max_position_embeddings"] = context
    tensors = files.tensors
    if rotated:
        tensors = quantise.dequantise_tensors(config, tensors)
        config, tensors = quantise.quantise_tensors(config, tensors, embeddings=True)
    elif not files.quantised:
        tensors = quantise.quantise_matrices(tensors)
    model_folder.save(config, json.loads(files.tokenizer_json), tensors, target, packed=packed)


@cache
def _load_embedded(name: str) -> ModelFiles:
    return model_folder.read(_PACKAGE / name, name)


def _fetch(name: str) -> Path:
    """The local folder of a hub model, downloaded if necessary (HF_HUB_OFFLINE is respected)."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # every layer of the network has its own exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise WrongModel(
            f"hub model {name!r} is neither in the local cache nor could it be fetched ({reason})"
        ) from None


def _load_folder(folder: Path, name: str, exact: bool) -> ModelFiles:
    """A folder; if `exact`, linear layers of Llama-family models in int8, through the cache."""
    if not exact:
        return model_folder.read(folder, name)
    from llmzip.exact.architecture import LLAMA_TYPES
    from llmzip.exact.quantise import quantise_tensors

    key = conversion_cache.stat_key(model_folder.paths(folder))
    source = conversion_cache.load_source_digest(key)
    if source and (cached := conversion_cache.load(source)) and cached.digest == source:
        return _model_files(cached, name)
    config = model_folder.read_json(folder / "config.json")
    is_llama = config.get("model_type") in LLAMA_TYPES
    # other models are computed by transformers from their own weights: only the digest is cached
    files = model_folder.read(folder, name, None if is_llama else source)
    if key is None or files.quantised or (source and not is_llama):
        return files
    if is_llama:
        try:
            config, tensors = quantise_tensors(files.config, files.tensors)
        except UnsupportedModel:  # perhaps because of a tensor that the model does not use
            return files
        converted = ConvertedModel(config, files.tokenizer_json, tensors, files.digest)
        conversion_cache.save(files.digest, converted)
        files = _model_files(converted, name)
    if conversion_cache.stat_key(model_folder.paths(folder)) == key:  # unchanged meanwhile
        conversion_cache.save_source_digest(key, files.digest)
    return files


def _load_gguf(path: Path, name: str) -> ModelFiles:
    from llmzip.exact.quantise import quantise_tensors
    from llmzip.models import gguf

    key = conversion_cache.stat_key([path])
    known = conversion_cache.load_source_digest(key)
    source = _hash_file(path) if key is not None and known is None else known
    if source is not None and (cached := conversion_cache.load(source)):
        if key is not None and known is None:
            conversion_cache.save_source_digest(key, source)
        return _model_files(cached, name)
    with gguf.opened(path) as (config, tokenizer, floats):
        config, tensors = quantise_tensors(config, floats, embeddings=True)
    text = canonical(tokenizer)
    converted = ConvertedModel(config, text, tensors, digest(config, text, tensors))
    if key is not None and source is not None and conversion_cache.stat_key([path]) == key:
        conversion_cache.save(source, converted)
        conversion_cache.save_source_digest(key, source)
    return _model_files(converted, name)


def _hash_file(path: Path) -> bytes | None:
    hasher = hashlib.blake2b(digest_size=DIGEST_BYTES)
    try:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                hasher.update(part)
    except OSError:  # reported by the next read
        return None
    return hasher.digest()


def _model_files(model: ConvertedModel, name: str) -> ModelFiles:
    return ModelFiles(name, model.config, model.tensors, model.tokenizer, model.digest)
