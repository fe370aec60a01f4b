"""Blocks of text: documents joined by NUL, packed by xz or bzip2, whichever is smaller.

A block's name is CATEGORY-NUMBER.xz or .bz2. Held-out texts are blocks of one document each.
"""

from __future__ import annotations

import bz2
import lzma
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_LEAST_DICTIONARY = 4096  # of xz


def write(folder: Path, name: str, documents: Iterable[bytes]) -> Path:
    """Write a block; returns its path. `name` has no suffix."""
    content = b"\0".join(documents)
    # a dictionary as large as the content finds all that a larger one would, with less memory
    size = max(_LEAST_DICTIONARY, len(content))
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": size}]
    packed = {".xz": lzma.compress(content, filters=filters), ".bz2": bz2.compress(content)}
    suffix = min(packed, key=lambda key: len(packed[key]))
    path = folder / f"{name}{suffix}"
    path.write_bytes(packed[suffix])
    return path


def read(path: Path) -> list[str]:
    """The documents of a block."""
    module = bz2 if path.suffix == ".bz2" else lzma
    content = module.decompress(path.read_bytes())
    return [document.decode("utf-8", "ignore") for document in content.split(b"\0") if document]


def category(path: Path) -> str:
    """The category of a block."""
    return path.stem.rpartition("-")[0]


def read_all(folders: Iterable[Path]) -> Iterator[tuple[str, list[str]]]:
    """Category and documents of every block in the folders, in order of their names."""
    paths = sorted(
        path for folder in folders for path in folder.iterdir() if path.suffix in (".xz", ".bz2")
    )
    with ThreadPoolExecutor() as pool:  # both decompressors release the lock of the interpreter
        yield from zip(map(category, paths), pool.map(read, paths), strict=True)
