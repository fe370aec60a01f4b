"""Chunks ↔ a block: the plan and side information, raw bits, and entropy-coded symbols."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import zstandard

from llmzip.errors import CorruptArchive
from llmzip.models.packing import layout
from llmzip.models.packing.layout import (
    BLOCK_HEADER,
    BYTES,
    CHUNK,
    COLUMN_LEVELS,
    CONSTANT,
    RAW,
    ROW_LEVELS,
    WIDTH,
    Chunk,
    checksum,
)
from llmzip.models.packing.planes import (
    by_context,
    choose_shift,
    context_and_base,
    entropy,
    estimate_levels,
    histogram,
    join_planes,
    split_planes,
)
from llmzip.range_coder import Decoder, Encoder

_INCREMENT = 8.0  # of a symbol's frequency, each time it occurs
_MIN_RUN, _MAX_RUN = 256, 1 << 14  # symbols that are coded with the same frequencies

_CodeRun = Callable[[slice, np.ndarray], np.ndarray]  # (run, frequencies) → its symbols


def encode_block(chunks: list[Chunk]) -> bytes:
    """One block, header and checksum included."""
    writer = _Writer()
    for chunk in chunks:
        writer.put(chunk)
    return writer.block(sum(len(chunk.content) for chunk in chunks))


def decode_block(block: tuple[tuple[int, ...], bytes]) -> bytes:
    """(its first four lengths, payload) → content. Raises CorruptArchive."""
    return _Reader(*block).content()


class _Frequencies:
    """Adaptive symbol frequencies of each context."""

    def __init__(self) -> None:
        self._frequencies: dict[tuple[int, ...], np.ndarray] = {}
        self._counts: dict[tuple[int, ...], int] = {}

    def code(self, key: tuple[int, ...], count: int, symbols: int, code_run: _CodeRun) -> None:
        """Code `count` symbols below `symbols` in runs; frequencies adapt after each run."""
        frequencies = self._frequencies.setdefault(key, np.ones(symbols))
        total, done = self._counts.get(key, 0), 0
        while done < count:
            run = slice(done, min(count, done + min(max(_MIN_RUN, total), _MAX_RUN)))
            coded = code_run(run, frequencies)
            frequencies += _INCREMENT * np.bincount(coded, minlength=symbols)
            total += run.stop - done
            done = run.stop
        self._counts[key] = total


class _Writer:
    """Collects the sections of a block."""

    def __init__(self) -> None:
        self._plan, self._side, self._raw = bytearray(), bytearray(), bytearray()
        self._encoder, self._frequencies = Encoder(), _Frequencies()

    def put(self, chunk: Chunk) -> None:
        width = WIDTH[chunk.kind]
        self._plan += CHUNK.pack(chunk.kind, len(chunk.content) // width, chunk.columns)
        if chunk.kind == BYTES:
            self._side += chunk.content
            return
        planes = split_planes(chunk.kind, chunk.content)
        context, top = self._subtract_levels(chunk, planes[0])
        self._put_plane(chunk.kind, 0, top, context)
        for i, plane in enumerate(planes[1:], 1):
            self._put_plane(chunk.kind, i, plane, None)

    def _subtract_levels(
        self, chunk: Chunk, top: np.ndarray
    ) -> tuple[np.ndarray | None, np.ndarray]:
        """The first plane [n] → contexts and residuals [n], with the cheapest kind of levels."""
        if not chunk.columns:
            return None, top
        table = top.reshape(-1, chunk.columns)
        best: tuple[float, int, np.ndarray | None, np.ndarray, bytes]
        best = (entropy(histogram(None, top)), 0, None, top, b"")
        for levels in (ROW_LEVELS, ROW_LEVELS | COLUMN_LEVELS):
            rows, columns = estimate_levels(chunk.kind, table, levels)
            with_columns = levels & COLUMN_LEVELS
            side = _level_bytes(rows) + (_level_bytes(columns) if with_columns else b"")
            context, base = context_and_base(chunk.kind, rows, columns if with_columns else None)
            residual = (table - base).reshape(-1)
            context = np.ascontiguousarray(np.broadcast_to(context, table.shape)).reshape(-1)
            cost = entropy(histogram(context, residual)) + 8 * len(_compress(side))
            if cost < best[0]:
                best = cost, levels, context, residual, side
        self._plan.append(best[1])
        self._side += best[4]
        return best[2], best[3]

    def _put_plane(
        self, kind: int, index: int, plane: np.ndarray, context: np.ndarray | None
    ) -> None:
        if plane.min() == plane.max():
            self._plan += bytes([CONSTANT, plane[0]])
            return
        shift = choose_shift(histogram(context, plane))
        self._plan.append(shift)
        if shift == RAW:
            self._raw += plane.tobytes()
            return
        for bit in range(shift):
            self._raw += np.packbits(plane >> bit & 1).tobytes()
        symbols = (plane >> shift).astype(np.int32)
        for number, chosen in by_context(context, len(plane)):
            part = symbols[chosen]

            def code_run(run: slice, weights: np.ndarray, part: np.ndarray = part) -> np.ndarray:
                self._encoder.put_alike(part[run], weights)
                return part[run]

            self._frequencies.code((kind, index, shift, number), len(part), 256 >> shift, code_run)

    def block(self, content_length: int) -> bytes:
        side = struct.pack("<I", len(self._plan)) + bytes(self._plan + self._side)
        compressed, coded = _compress(side), self._encoder.payload()
        lengths = content_length, len(side), len(compressed), len(self._raw), len(coded)
        payload = compressed + bytes(self._raw) + coded
        header = BLOCK_HEADER.pack(*lengths, b"")[: -layout.CHECKSUM_BYTES]
        return header + checksum(header, payload) + payload


class _Section:
    """A section that is read from start to end."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = content, 0

    def take(self, size: int) -> bytes:
        data = self._content[self._position : self._position + size]
        if len(data) != size:
            raise CorruptArchive("a section of packed weights ends too early")
        self._position += size
        return data

    def finish(self) -> None:
        if self._position != len(self._content):
            raise CorruptArchive("a section of packed weights is too long")


class _Reader:
    """The inverse of `_Writer`."""

    def __init__(self, lengths: tuple[int, ...], payload: bytes) -> None:
        self._content, side, compressed, raw = lengths
        self._side = _Section(_decompress(payload[:compressed], side))
        (plan,) = struct.unpack("<I", self._side.take(4))
        self._plan = _Section(self._side.take(plan))
        self._raw = _Section(payload[compressed : compressed + raw])
        self._decoder, self._frequencies = Decoder(payload[compressed + raw :]), _Frequencies()

    def content(self) -> bytes:
        parts, left = [], self._content
        while left:
            parts.append(self._take_chunk(left))
            left -= len(parts[-1])
        for section in (self._plan, self._side, self._raw):
            section.finish()
        return b"".join(parts)

    def _take_chunk(self, limit: int) -> bytes:
        kind, count, columns = CHUNK.unpack(self._plan.take(CHUNK.size))
        if kind >= len(WIDTH) or not 0 < count * WIDTH[kind] <= limit:
            raise CorruptArchive(f"{count} elements of kind {kind} in packed weights")
        if kind == BYTES:
            return self._side.take(count)
        if count > layout.CHUNK_ELEMENTS or (
            columns and (count % columns or kind not in layout.LEVELLED)
        ):
            raise CorruptArchive(f"{count} elements in rows of {columns} in packed weights")
        context, base = self._take_levels(kind, count, columns)
        planes = np.empty((WIDTH[kind], count), np.uint8)
        planes[0] = self._take_plane(kind, 0, count, context)
        if base is not None:
            planes[0] += base
        for i in range(1, len(planes)):
            planes[i] = self._take_plane(kind, i, count, None)
        return join_planes(kind, planes)

    def _take_levels(
        self, kind: int, count: int, columns: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Context and base of each element, [n]."""
        levels = self._plan.take(1)[0] if columns else 0
        if levels == 0:
            return None, None
        if levels not in (ROW_LEVELS, ROW_LEVELS | COLUMN_LEVELS):
            raise CorruptArchive(f"levels of kind {levels} in packed weights")
        shape = (count // columns, columns)
        rows = _level_values(self._side.take(2 * shape[0]))
        by_column = levels & COLUMN_LEVELS
        column_levels = _level_values(self._side.take(2 * columns)) if by_column else None
        context, base = context_and_base(kind, rows, column_levels)
        context, base = (np.broadcast_to(x, shape).reshape(-1) for x in (context, base))
        return context, base

    def _take_plane(
        self, kind: int, index: int, count: int, context: np.ndarray | None
    ) -> np.ndarray:
        shift = self._plan.take(1)[0]
        if shift == CONSTANT:
            return np.full(count, self._plan.take(1)[0], np.uint8)
        if shift == RAW:
            return np.frombuffer(self._raw.take(count), np.uint8)
        if shift > CONSTANT:
            raise CorruptArchive(f"a shift by {shift} in packed weights")
        low = np.zeros(count, np.uint8)
        for bit in range(shift):
            bits = np.frombuffer(self._raw.take(-(-count // 8)), np.uint8)
            low |= np.unpackbits(bits, count=count) << np.uint8(bit)
        plane: np.ndarray = np.empty(count, np.uint8)
        for number, chosen in by_context(context, count):
            part = np.empty(count if context is None else len(chosen), np.uint8)

            def code_run(run: slice, weights: np.ndarray, part: np.ndarray = part) -> np.ndarray:
                symbols = self._decoder.get_alike(run.stop - run.start, weights)
                part[run] = symbols
                return symbols

            self._frequencies.code((kind, index, shift, number), len(part), 256 >> shift, code_run)
            plane[chosen] = part
        plane <<= np.uint8(shift)
        plane |= low
        return plane


def _level_bytes(levels: np.ndarray) -> bytes:
    """int16 [n] → all low bytes, then all high bytes."""
    return bytes(levels.view(np.uint8).reshape(-1, 2).T.tobytes())


def _level_values(content: bytes) -> np.ndarray:
    pairs = np.frombuffer(content, np.uint8).reshape(2, -1).T
    return np.ascontiguousarray(pairs).view("<i2")[:, 0]


def _compress(side: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(side)


def _decompress(compressed: bytes, length: int) -> bytes:
    """Exactly `length` bytes, whatever the zstd header says."""
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=layout.SIDE_LIMIT).stream_reader(
            compressed
        )
        side = reader.read(length + 1)
    except zstandard.ZstdError as error:
        raise CorruptArchive(f"packed weights are damaged ({error})") from None
    if len(side) != length:
        raise CorruptArchive("a section of packed weights has another length than it says")
    return bytes(side)
