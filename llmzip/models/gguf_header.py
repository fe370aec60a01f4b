"""The header of a GGUF file → metadata and tensor infos, with every length checked first.

Files are not trusted: nothing is allocated by a number in the file before the number is compared
with the remaining bytes, and with limits that no real model comes near. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from llmzip.errors import UnsupportedModel

# type number → name, weights per block, bytes per block
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# types that are refused, by name
_OTHER_TYPES = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS",
    19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16",
    26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q",
            11: "<q", 12: "<d"}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_MAX_TENSORS = 1 << 16
_MAX_FIELDS = 1 << 12
_MAX_STRINGS = 1 << 21  # in all arrays together; a vocabulary and its merges have some 500,000
_MAX_STRING = 1 << 24
_MAX_NAME = 1 << 10
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is in the file."""

    name: str
    type: str  # one of TYPES
    shape: tuple[int, ...]  # in the order of torch: rows first
    start: int  # offset in the file, bytes
    size: int  # bytes


@dataclass(frozen=True)
class Header:
    """Metadata and tensor infos of a file."""

    fields: dict[str, Any]  # without arrays that were not requested
    tensors: dict[str, TensorInfo]


def read_header(data: Any, arrays: Collection[str]) -> Header:
    """`data`: the file's bytes, as a memory map; `arrays`: keys of array fields to be read.

    Raises UnsupportedModel, with the reason, for malformed files and unknown versions.
    """
    source = _Reader(data)
    if source.take(4) != _MAGIC:
        raise UnsupportedModel("no GGUF file: it does not begin with GGUF")
    version = source.number("<I")
    if version not in _VERSIONS:
        big = version >> 16 and not version & 0xFFFF
        raise UnsupportedModel(
            "a GGUF file for big-endian machines is not read" if big
            else f"version {version} of GGUF is not known"
        )  # fmt: skip
    # a tensor takes at least 32 bytes of the header, a field 13
    tensors = source.count("tensors", 32, _MAX_TENSORS)
    fields = source.count("metadata", 13, _MAX_FIELDS)
    found: dict[str, Any] = {}
    seen = set()
    for _ in range(fields):
        key = source.text(_MAX_NAME)
        if key in seen:
            raise UnsupportedModel(f"malformed: {key} is there twice")
        seen.add(key)
        value = source.value(key in arrays)
        if value is not None:
            found[key] = value
    alignment = found.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise UnsupportedModel("malformed: general.alignment is out of range")
    entries = [source.tensor() for _ in range(tensors)]
    start = -(-source.position // alignment) * alignment
    return Header(found, _tensor_infos(entries, start, alignment, len(data)))


def _tensor_infos(
    entries: list[tuple[str, int, tuple[int, ...], int]], start: int, alignment: int, length: int
) -> dict[str, TensorInfo]:
    """Tensors within the file that do not overlap."""
    end = start
    found: dict[str, TensorInfo] = {}
    for name, number, shape, offset in sorted(entries, key=lambda entry: entry[3]):
        if number not in TYPES:
            kind = _OTHER_TYPES.get(number, f"number {number}")
            raise UnsupportedModel(
                f"{name} is of type {kind}; known: {', '.join(t[0] for t in TYPES.values())}"
            )
        kind, weights, size = TYPES[number]
        if shape[-1] % weights:
            raise UnsupportedModel(f"malformed: rows of {name} are no whole blocks of {kind}")
        info = TensorInfo(name, kind, shape, start + offset, math.prod(shape) // weights * size)
        if offset % alignment or info.start < end or name in found:
            raise UnsupportedModel(f"malformed: {name} is misplaced, or there twice")
        end = info.start + info.size
        if end > length:
            raise UnsupportedModel(f"cut short, or malformed: {name} lies beyond the file's end")
        found[name] = info
    return found


class _Reader:
    """Reads the header from start to end."""

    def __init__(self, data: Any) -> None:
        self._data, self.position = data, 0

    def _advance(self, size: int) -> int:
        start = self.position
        if size > len(self._data) - start:
            raise UnsupportedModel("cut short, or malformed: the header goes on beyond the file")
        self.position = start + size
        return start

    def take(self, size: int) -> bytes:
        start = self._advance(size)
        return bytes(self._data[start : start + size])

    def number(self, form: str) -> Any:
        return struct.unpack_from(form, self._data, self._advance(struct.calcsize(form)))[0]

    def count(self, what: str, least: int, most: int) -> int:
        """A count of items that take at least `least` bytes each, at most `most`."""
        count = int(self.number("<Q"))
        if count > most or count * least > len(self._data) - self.position:
            raise UnsupportedModel(f"cut short, or malformed: {count} {what}")
        return count

    def text(self, limit: int) -> str:
        length = self.count("characters in a row", 1, limit)
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise UnsupportedModel("malformed: a string is no UTF-8") from None

    def value(self, wanted: bool) -> Any:
        """A field's value; None for an array that is not wanted."""
        kind = self.number("<I")
        if kind == _STRING:
            return self.text(_MAX_STRING)
        if kind == _ARRAY:
            return self._array(wanted)
        if kind not in _SCALARS:
            raise UnsupportedModel(f"malformed: metadata of type {kind}")
        number = self.number(_SCALARS[kind])
        return bool(number) if kind == _BOOL else number

    def _array(self, wanted: bool) -> list[Any] | None:
        kind = self.number("<I")
        if kind in _SCALARS:
            form = _SCALARS[kind][1]
            size = struct.calcsize(form)
            count = self.count("numbers in a row", size, 1 << 62)
            start = self._advance(count * size)
            if not wanted:
                return None
            if count > _MAX_STRINGS:
                raise UnsupportedModel(f"malformed: {count} numbers about tokens")
            return list(struct.unpack_from(f"<{count}{form}", self._data, start))
        if kind != _STRING:
            raise UnsupportedModel(f"malformed: an array of type {kind}")
        count = self.count("strings in a row", 8, _MAX_STRINGS)
        if wanted:
            return [self.text(_MAX_STRING) for _ in range(count)]
        for _ in range(count):
            self._advance(self.count("characters in a row", 1, _MAX_STRING))
        return None

    def tensor(self) -> tuple[str, int, tuple[int, ...], int]:
        """Name, type number, shape, offset."""
        name = self.text(_MAX_NAME)
        dimensions = self.number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise UnsupportedModel(f"malformed: {name} has {dimensions} dimensions")
        shape = tuple(self.number("<Q") for _ in range(dimensions))
        if min(shape) < 1 or max(shape) > 1 << 31:
            raise UnsupportedModel(f"malformed: {name} has an impossible shape")
        return name, self.number("<I"), shape[::-1], self.number("<Q")
