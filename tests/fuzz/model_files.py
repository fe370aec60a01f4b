"""What must hold for any bytes that are read as a file of a model: it is read, or refused by our
error; shared by the fuzzer and the tests."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from conftest import TINY

from llmzip.errors import LlmzipError
from llmzip.models import gguf, model_folder, packing
from llmzip.tokenizer import Tokens

_MOST_UNPACKED = 1 << 22  # bytes; more takes time and finds nothing else
_TEXT = "Ein Text, 1 text… \0 <s> 文字".encode() + bytes(range(128, 140))


def read_gguf(data: bytes, folder: Path) -> None:
    """All of it: header, configuration, tokenizer and tensors."""
    path = folder / "model.gguf"
    path.write_bytes(data)
    with gguf.opened(path) as (_, tokenizer, tensors):
        for name in tensors:
            assert tensors[name].dtype.is_floating_point
        read_tokenizer(json.dumps(tokenizer).encode(), folder)


def read_safetensors(data: bytes, folder: Path) -> None:
    """As the weights of a model folder."""
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).exists():
            shutil.copy(TINY / name, folder)
    (folder / "model.safetensors").write_bytes(data)
    files = model_folder.read(folder, "fuzzed")
    assert len(files.digest) == 32


def read_packed(data: bytes, folder: Path) -> None:
    """As a .llmzw file."""
    content = io.BytesIO()
    length = packing.content_length(io.BytesIO(data))
    if length <= _MOST_UNPACKED:
        packing.unpack(io.BytesIO(data), content, workers=1)
        assert len(content.getvalue()) == length


def read_tokenizer(data: bytes, folder: Path) -> None:
    """As a tokenizer.json, which then restores any bytes."""
    tokens = Tokens(data, 512)
    try:
        ids = tokens.encode(_TEXT)
    except LlmzipError:
        return
    assert tokens.decode(ids) == _TEXT


READERS: dict[str, Callable[[bytes, Path], None]] = {
    "gguf": read_gguf,
    "safetensors": read_safetensors,
    "packed": read_packed,
    "tokenizer": read_tokenizer,
}


def seed(kind: str, folder: Path) -> bytes:
    """A file that is read."""
    if kind == "gguf":
        import gguf_files

        return gguf_files.write(folder / "seed.gguf", kind="Q8_0").read_bytes()
    if kind == "tokenizer":
        return (TINY / "tokenizer.json").read_bytes()
    weights = (TINY / "model.safetensors").read_bytes()
    if kind == "safetensors":
        return weights
    sink = io.BytesIO()
    packing.pack(io.BytesIO(weights), sink, workers=1)
    return sink.getvalue()


def check(kind: str, data: bytes, folder: Path) -> str:
    """Why the file was refused, "" if it was read. Any exception but our own passes."""
    try:
        READERS[kind](data, folder)
    except LlmzipError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        return message
    return ""
