"""Content ↔ frames that need no model: raw, zstd, LZMA."""

from __future__ import annotations

import lzma

import numpy as np
import zstandard

from llmzip.coding.frame import FRAME_LIMIT, LZMA, RAW, SMALL, ZSTD, Frame
from llmzip.errors import CorruptArchive

_ZSTD_LEVEL = 19
_QUICK_LEVEL = 9  # takes a thirtieth of the time, with LZMA a sixtieth
_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": FRAME_LIMIT}]
_SMALL_LZMA = [{**_LZMA[0], "dict_size": SMALL}]  # the same bytes, in less memory


def store(content: bytes, last: bool) -> Frame:
    """The smallest of raw, zstd and LZMA."""
    payload = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(content)
    if len(payload) + 2 >= len(content):
        return Frame(RAW, len(content), content, last=last)
    filters = _SMALL_LZMA if len(content) <= SMALL else _LZMA
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=filters)
    if len(packed) < len(payload):
        return Frame(LZMA, len(content), packed, last=last)
    return Frame(ZSTD, len(content), payload, last=last)


def quick_size(content: bytes) -> int:
    """The bytes that raw or zstd need in little time: a measure of how much `content` repeats."""
    packed = zstandard.ZstdCompressor(level=_QUICK_LEVEL).compress(content)
    return min(len(content), len(packed))


def restore(frame: Frame) -> bytes:
    if frame.kind == RAW:
        return frame.payload
    if frame.kind == LZMA:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
        try:
            return unpacker.decompress(frame.payload, frame.content_length + 1)
        except lzma.LZMAError as error:
            raise CorruptArchive(f"an LZMA frame is damaged ({error})") from None
    try:
        # bounded by what the frame's header says, not by what zstd's header says
        reader = zstandard.ZstdDecompressor(max_window_size=FRAME_LIMIT).stream_reader(
            frame.payload
        )
        content = reader.read(frame.content_length + 1)
    except zstandard.ZstdError as error:
        raise CorruptArchive(f"a zstd frame is damaged ({error})") from None
    return content


def stored_costs(content: bytes, frame: Frame) -> tuple[list[bytes], np.ndarray]:
    """Lines of a stored frame, and bits of each, float64 [n]: in proportion to their length."""
    lines = content.splitlines(keepends=True)
    bits = 8 * len(frame.payload) / max(1, len(content))
    return lines, np.array([len(line) * bits for line in lines])
