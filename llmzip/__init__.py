"""llmzip: lossless text compression by a causal language model, bit-exact on every machine.

>>> import llmzip
>>> archive = llmzip.compress(b"It was the best of times, it was the worst of times.")
>>> llmzip.decompress(archive)
b'It was the best of times, it was the worst of times.'
"""

from __future__ import annotations

from importlib import import_module
from io import BytesIO
from typing import TYPE_CHECKING, Any

from llmzip.errors import (
    CorruptArchive,
    InexactDevice,
    LlmzipError,
    PaddingWarning,
    TooLong,
    TruncatedArchive,
    UnsupportedArchive,
    UnsupportedModel,
    WrongEnvironment,
    WrongModel,
    WrongPrime,
)

if TYPE_CHECKING:
    from llmzip.archive.options import Options
    from llmzip.archive.reader import ArchiveReader
    from llmzip.archive.writer import ArchiveWriter
    from llmzip.io.file import LlmzipFile, open
    from llmzip.io.incremental import Compressor, Decompressor

__version__ = "1.0.0"

__all__ = [
    "ArchiveReader",
    "ArchiveWriter",
    "Compressor",
    "CorruptArchive",
    "Decompressor",
    "InexactDevice",
    "LlmzipError",
    "LlmzipFile",
    "Options",
    "PaddingWarning",
    "TooLong",
    "TruncatedArchive",
    "UnsupportedArchive",
    "UnsupportedModel",
    "WrongEnvironment",
    "WrongModel",
    "WrongPrime",
    "compress",
    "decompress",
    "open",
]


# Loaded on first use, because they import NumPy, which is slow to load.
_LAZY = {
    "ArchiveReader": "llmzip.archive.reader",
    "ArchiveWriter": "llmzip.archive.writer",
    "Compressor": "llmzip.io.incremental",
    "Decompressor": "llmzip.io.incremental",
    "LlmzipFile": "llmzip.io.file",
    "Options": "llmzip.archive.options",
    "open": "llmzip.io.file",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_LAZY[name]), name)
    return value


def compress(
    data: bytes | bytearray | memoryview,
    *,
    model: str | None = None,
    streams: int | None = None,
    device: str = "cpu",
    activations: str | None = None,
    verify: bool = False,
    same_environment: bool = False,
    prime: bytes | None = None,
) -> bytes:
    """Compress any bytes to an archive. The arguments are those of `Options`.

    `model`: name of an embedded or installed model, folder in Hugging Face format, GGUF file, or
    hub id. `streams` a frame: few give the best ratio, many the best speed. `activations`: "a8" or
    "a16". `verify`: decode each frame before it is kept. `same_environment`: run any causal model
    in floating point; only the same machine and library versions can decode the archive. `prime`:
    a text like `data`, at most 1 MiB, which makes small archives smaller; `decompress` needs it.

    Raises LlmzipError, TypeError.
    """
    from llmzip.archive.options import Options, bytes_like
    from llmzip.archive.writer import ArchiveWriter

    view = bytes_like(data, "compress")
    sink = BytesIO()
    writer = ArchiveWriter(
        sink,
        Options(
            model=model,
            streams=streams,
            device=device,
            activations=activations,
            verify=verify,
            same_environment=same_environment,
            prime=prime,
        ),
    )
    writer.write(view)
    writer.finish()
    return sink.getvalue()


def decompress(
    data: bytes | bytearray | memoryview,
    *,
    model: str | None = None,
    device: str = "cpu",
    force: bool = False,
    allow_download: bool = False,
    max_length: int | None = None,
    prime: bytes | None = None,
) -> bytes:
    """Restore the bytes that were compressed, verified; of concatenated archives, all contents.

    `model` is needed only for an archive written with a model that is neither embedded nor
    installed. `allow_download`: download the hub model that the archive names. `force`: try an
    archive of another environment. `max_length`: raise TooLong before decoding more bytes. `prime`:
    the one that the archive was written with, if any.

    Raises LlmzipError, TypeError.
    """
    from llmzip.archive.options import Options, bytes_like
    from llmzip.archive.reader import ArchiveReader

    source = BytesIO(bytes_like(data, "decompress"))
    options = Options(
        model=model,
        device=device,
        force=force,
        allow_download=allow_download,
        max_length=max_length,
        prime=prime,
    )
    return b"".join(ArchiveReader(source, options))
