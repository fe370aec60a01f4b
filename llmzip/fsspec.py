"""`import llmzip.fsspec` registers `compression="llmz"` with fsspec, inferred from `.llmz`.

>>> import fsspec, llmzip.fsspec
>>> with fsspec.open("table.jsonl.llmz", "rt", compression="infer") as file:
...     table = pandas.read_json(file, lines=True)
"""

from __future__ import annotations

from typing import Any, BinaryIO

from fsspec.compression import register_compression

from llmzip.archive.container import SUFFIX
from llmzip.io.file import LlmzipFile

NAME = SUFFIX.lstrip(".")


def _open(file: BinaryIO, mode: str = "rb", **options: Any) -> LlmzipFile:
    """Called by fsspec with the archive as `file`, which fsspec closes."""
    return LlmzipFile(file, mode, **options)


register_compression(NAME, _open, NAME, force=True)  # force: this module may be reloaded
