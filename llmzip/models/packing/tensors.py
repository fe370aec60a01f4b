"""A safetensors file → chunks of elements of one kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from llmzip.errors import TruncatedArchive, UnsupportedModel
from llmzip.models.packing import layout
from llmzip.models.packing.layout import BYTES, KINDS, WIDTH, Chunk

_HEADER_LIMIT = 100_000_000  # of the safetensors format
_MIN_COLUMNS = 16  # of rows that are worth a level


def read_chunks(source: BinaryIO, length: int) -> Iterator[Chunk]:
    """The whole file of `length` bytes, in order.

    Raises UnsupportedModel if it is no safetensors file, TruncatedArchive if it gets shorter.
    """
    head = source.read(8)
    size = int.from_bytes(head, "little")
    if len(head) < 8 or size > min(length - 8, _HEADER_LIMIT):
        raise UnsupportedModel("no safetensors file: its header is missing or too long")
    text = source.read(size)
    try:
        tensors = _tensors(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        raise UnsupportedModel("no safetensors file: its header makes no sense") from None
    head += text
    for start in range(0, len(head), layout.BLOCK_LIMIT):
        yield Chunk(BYTES, 0, head[start : start + layout.BLOCK_LIMIT])
    position, end = 0, length - len(head)
    for begin, stop, kind, columns in tensors:
        if position <= begin and stop <= end:  # tensors that overlap, an error, are BYTES
            yield from _split(source, BYTES, 0, begin - position)
            yield from _split(source, kind, columns, stop - begin)
            position = stop
    yield from _split(source, BYTES, 0, end - position)


def _tensors(header: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Begin, end, kind and columns of each tensor that consists of whole elements."""
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = map(int, entry["data_offsets"])
        kind = KINDS.get(entry["dtype"], BYTES)
        shape = [int(n) for n in entry["shape"]]
        columns = shape[-1] if len(shape) > 1 else 0
        if 0 <= begin < end and (end - begin) % WIDTH[kind] == 0:
            rows, rest = divmod((end - begin) // WIDTH[kind], max(1, columns))
            fits = columns >= _MIN_COLUMNS and rows > 0 and rest == 0
            fits = fits and kind in layout.LEVELLED and columns <= layout.CHUNK_ELEMENTS
            found.append((begin, end, kind, columns if fits else 0))
    return sorted(found)


def _split(source: BinaryIO, kind: int, columns: int, length: int) -> Iterator[Chunk]:
    """The next `length` bytes in chunks of whole rows."""
    elements = layout.CHUNK_ELEMENTS // max(1, columns) * max(1, columns)
    while length:
        content = source.read(min(length, elements * WIDTH[kind]))
        if not content:
            raise TruncatedArchive("the safetensors file became shorter while it was read")
        yield Chunk(kind, columns, content)
        length -= len(content)
