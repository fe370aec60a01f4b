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
)

if TYPE_CHECKING:
    from llmzip.archive.options import Options
    from llmzip.archive.reader import ArchiveReader
    from llmzip.archive.writer import ArchiveWriter
    from llmzip.io.file import LlmzipFile, open
    from llmzip.io.incremental import Compressor, Decompressor

__version__ = "0.1.0"

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
    "compress",
    "decompress",
    "open",
]


# Loaded when they are first asked for, as NumPy takes longer to load than all else.
_LATER = {
    "ArchiveReader": "llmzip.archive.reader",
    "ArchiveWriter": "llmzip.archive.writer",
    "Compressor": "llmzip.io.incremental",
    "Decompressor": "llmzip.io.incremental",
    "LlmzipFile": "llmzip.io.file",
    "Options": "llmzip.archive.options",
    "open": "llmzip.io.file",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_LATER[name]), name)
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
) -> bytes:
    """Any bytes → an archive.

    `model` is an embedded model's name, a folder in Hugging Face format, or a hub id;
    `streams` trades ratio (few) against speed (many); `activations` is "a8" or "a16";
    `verify` decodes each frame before it is kept; `same_environment` takes any causal model, in
    plain floating point, for this machine and these versions alone. Raises LlmzipError.
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
) -> bytes:
    """An archive → the bytes that were compressed, or an LlmzipError; never other bytes. Of
    archives that follow each other it gives all contents.

    `model` is needed only if the archive was made with one that is not embedded; with
    `allow_download` an archive that names a hub model may have it fetched. `force` tries an
    archive of another environment. Content of more than `max_length` bytes raises TooLong
    before it is decoded.
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
    )
    return b"".join(ArchiveReader(source, options))
