"""Safetensors files ↔ packed ones, losslessly, as docs/packed.md lays down; names are those of
the document.

Weights are split into planes of bytes, exponents are coded apart from mantissas, each in the
context of its row's and its column's level. Blocks are independent, so memory is bounded and
processes can share the work. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import zstandard

from llmzip.errors import CorruptArchive, TruncatedArchive, UnsupportedArchive, UnsupportedModel
from llmzip.range_coder import Decoder, Encoder

MAGIC = b"LLMW"
VERSION = 1
SUFFIX = ".llmzw"

_HEAD = struct.Struct("<4sBQ")  # Magic, Version, Content_Length
_BLOCK = struct.Struct("<IIIII4s")  # Content, Side, Side_Packed, Raw and Words lengths, Check
_PIECE = struct.Struct("<BII")  # Kind, Elements, Columns
BLOCK_LIMIT = 1 << 24  # bytes of content a block
_SIDE_LIMIT = 1 << 25
_PIECE_ELEMENTS = 1 << 20
_HEADER_LIMIT = 100_000_000  # of the safetensors format
_HASH_BYTES, _CHECK_BYTES = 16, 4

BYTES, INT8, HALF, BRAIN, SINGLE, DOUBLE = range(6)  # Kind
_WIDTH = (1, 1, 2, 2, 4, 8)
_KINDS = {"I8": INT8, "U8": INT8, "F8_E4M3": INT8, "F8_E5M2": INT8, "F16": HALF, "BF16": BRAIN,
          "F32": SINGLE, "F64": DOUBLE}  # fmt: skip
_LEVELLED = (INT8, HALF, BRAIN, SINGLE)
_FEWEST_COLUMNS = 16  # of rows that are worth a level

_ROWS, _COLUMNS = 1, 2  # Levels: of rows, of columns
_RAW, _CONSTANT = 8, 9  # Shift: how many low bits of a plane are stored as they are; or one value
_SLACK = 1.001  # a plane may take this much more for a larger shift, which is faster
_NO_LEVEL = 32  # the context of elements without level
_SEEN = 8.0  # what a symbol's weight gains when it comes
_FIRST_RUN, _LONGEST_RUN = 256, 1 << 14  # symbols that are coded with the same weights

_PARALLEL_BLOCKS = 4  # below that, processes take longer to start than they save

# runs of symbols and their weights → the symbols
_Turn = Callable[[slice, np.ndarray], np.ndarray]


class _Piece(NamedTuple):
    """A part of the content: of one tensor, or anything else as BYTES."""

    kind: int
    columns: int  # elements a row; 0 if unknown or too few
    content: bytes


def pack(source: BinaryIO, sink: BinaryIO, workers: int | None = None) -> None:
    """A safetensors file, seekable, to a packed one. `workers`: processes (None: by cores).

    Raises UnsupportedModel if it is no safetensors file.
    """
    source.seek(0, os.SEEK_END)
    length = source.tell()
    source.seek(0)
    hasher = hashlib.blake2b(digest_size=_HASH_BYTES)
    sink.write(_HEAD.pack(MAGIC, VERSION, length))

    def blocks() -> Iterator[list[_Piece]]:
        waiting: list[_Piece] = []
        size = 0
        for piece in _pieces(source, length):
            hasher.update(piece.content)
            if size + len(piece.content) > BLOCK_LIMIT:
                yield waiting
                waiting, size = [], 0
            waiting.append(piece)
            size += len(piece.content)
        yield waiting

    for block in _shared(_encode, blocks(), workers, length):
        sink.write(block)
    sink.write(hasher.digest())


def unpack(source: BinaryIO, sink: BinaryIO, workers: int | None = None) -> None:
    """The inverse. Nothing that was written counts unless it returns.

    Raises CorruptArchive, TruncatedArchive, UnsupportedArchive.
    """
    length = content_length(source)
    hasher = hashlib.blake2b(digest_size=_HASH_BYTES)
    done = 0
    for content in _shared(_decode, _blocks(source, length), workers, length):
        hasher.update(content)
        done += len(content)
        sink.write(content)
    if _exactly(source, _HASH_BYTES) != hasher.digest():
        raise CorruptArchive("the packed weights are damaged: their hash is wrong")
    if source.read(1):
        raise CorruptArchive("data follow the packed weights")


def content_length(source: BinaryIO) -> int:
    """Read the head of a packed file: bytes of what it holds, as it says."""
    magic, version, length = _HEAD.unpack(_exactly(source, _HEAD.size))
    if magic != MAGIC:
        raise CorruptArchive("not a file of packed weights")
    if version != VERSION:
        raise UnsupportedArchive(f"packed weights of version {version}; known: {VERSION}")
    return int(length)


def _exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise TruncatedArchive("the packed weights end too early")
    return data


def _blocks(source: BinaryIO, length: int) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Lengths and verified payload of each block."""
    while length:
        head = _exactly(source, _BLOCK.size)
        content, side, side_packed, raw, words, check = _BLOCK.unpack(head)
        if not 0 < content <= min(length, BLOCK_LIMIT) or side > _SIDE_LIMIT:
            raise CorruptArchive(f"a block of {content} bytes with {side} beside")
        if side_packed > side + 1024 or raw > content or words > 2 * content + 1024:
            raise CorruptArchive("a block is longer than its content")
        payload = _exactly(source, side_packed + raw + words)
        if _check(head[:-_CHECK_BYTES], payload) != check:
            raise CorruptArchive("a block of packed weights is damaged")
        yield (content, side, side_packed, raw), payload
        length -= content


def _check(head: bytes, payload: bytes) -> bytes:
    return hashlib.blake2b(head + payload, digest_size=_CHECK_BYTES).digest()


def _shared(
    work: Callable[[Any], bytes], blocks: Iterable[Any], workers: int | None, length: int
) -> Iterator[bytes]:
    """`work` on each block, in order, by several processes where that pays: the coder holds
    Python's lock, so threads would wait for each other."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if workers < 2 or length < _PARALLEL_BLOCKS * BLOCK_LIMIT:
        yield from map(work, blocks)
        return
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch
    with ProcessPoolExecutor(workers, context) as pool:
        waiting: deque[Future[bytes]] = deque()
        for block in blocks:
            waiting.append(pool.submit(work, block))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# -- what a safetensors file is made of ------------------------------------------------------


def _pieces(source: BinaryIO, length: int) -> Iterator[_Piece]:
    """All of the file, in its order."""
    head = source.read(8)
    size = int.from_bytes(head, "little")
    if len(head) < 8 or size > min(length - 8, _HEADER_LIMIT):
        raise UnsupportedModel("no safetensors file: its header is missing or too long")
    text = source.read(size)
    try:
        entries = _entries(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UnsupportedModel("no safetensors file: its header makes no sense") from None
    head += text
    for start in range(0, len(head), BLOCK_LIMIT):
        yield _Piece(BYTES, 0, head[start : start + BLOCK_LIMIT])
    position, end = 0, length - len(head)
    for begin, stop, kind, columns in entries:
        if position <= begin and stop <= end:  # others overlap, which the format forbids: bytes
            yield from _cut(source, BYTES, 0, begin - position)
            yield from _cut(source, kind, columns, stop - begin)
            position = stop
    yield from _cut(source, BYTES, 0, end - position)


def _entries(header: dict[str, Any]) -> list[tuple[int, int, int, int]]:
    """Begin, end, kind and columns of each tensor whose bytes are of whole elements."""
    found = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = map(int, entry["data_offsets"])
        kind = _KINDS.get(entry["dtype"], BYTES)
        shape = [int(n) for n in entry["shape"]]
        columns = shape[-1] if len(shape) > 1 else 0
        if 0 <= begin < end and (end - begin) % _WIDTH[kind] == 0:
            rows, rest = divmod((end - begin) // _WIDTH[kind], max(1, columns))
            fits = columns >= _FEWEST_COLUMNS and rows > 0 and rest == 0
            fits = fits and kind in _LEVELLED and columns <= _PIECE_ELEMENTS
            found.append((begin, end, kind, columns if fits else 0))
    return sorted(found)


def _cut(source: BinaryIO, kind: int, columns: int, length: int) -> Iterator[_Piece]:
    elements = _PIECE_ELEMENTS // max(1, columns) * max(1, columns)
    while length:
        content = source.read(min(length, elements * _WIDTH[kind]))
        if not content:
            raise TruncatedArchive("the safetensors file became shorter while it was read")
        yield _Piece(kind, columns, content)
        length -= len(content)


# -- planes ----------------------------------------------------------------------------------


def _planes(kind: int, content: bytes) -> np.ndarray:
    """uint8 [width, n], the most significant first; of floats, the sign goes to the other end."""
    if kind == INT8:
        return (np.frombuffer(content, np.uint8) ^ 0x80)[None]
    width = _WIDTH[kind]
    x = np.frombuffer(content, f"<u{width}")
    bits = x.dtype.type(8 * width - 1)
    x = x << x.dtype.type(1) | x >> bits
    return np.ascontiguousarray(x.astype(f"<u{width}").view(np.uint8).reshape(-1, width).T[::-1])


def _joined(kind: int, planes: np.ndarray) -> bytes:
    if kind == INT8:
        return bytes((planes[0] ^ 0x80).tobytes())
    width = _WIDTH[kind]
    x = np.ascontiguousarray(planes[::-1].T).view(f"<u{width}")[:, 0]
    bits = x.dtype.type(8 * width - 1)
    return bytes((x >> x.dtype.type(1) | x << bits).astype(f"<u{width}").tobytes())


def _levels(kind: int, top: np.ndarray, ways: int) -> tuple[np.ndarray, np.ndarray]:
    """How large rows, and columns beside them, are: eighths of octaves, int16 [R] and [C].

    `top` uint8 [R, C]. Only the writer needs to know; any levels decode.
    """
    if kind == INT8:
        square = (top.astype(np.float32) - 128) ** 2 + np.float32(1e-3)
        row = square.mean(1)
        column = (square / row[:, None]).mean(0) if ways & _COLUMNS else np.ones(top.shape[1])
        row, column = 4 * np.log2(row), 4 * np.log2(column)
    else:
        unit = 1.0 if kind == HALF else 8.0
        known = top > 0  # not of zeros
        row = unit * (top.sum(1) / np.maximum(1, known.sum(1)))
        beside = np.where(known, unit * top - row[:, None], 0)
        column = beside.sum(0) / np.maximum(1, known.sum(0))
        if not ways & _COLUMNS:
            column = np.zeros_like(column)
    return np.rint(row).astype("<i2"), np.rint(column).astype("<i2")


def _context(
    kind: int, rows: np.ndarray, columns: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Levels → what an element is told apart by, uint8, and what is subtracted from it, uint8;
    both of a shape that goes with [R, C]."""
    level = rows[:, None] if columns is None else rows[:, None] + columns[None]
    if kind == INT8:
        return np.clip(level >> 1, 0, _NO_LEVEL - 1).astype(np.uint8), np.zeros((1, 1), np.uint8)
    if kind == HALF:
        return np.zeros((1, 1), np.uint8), level.astype(np.uint8)
    return (level >> 1 & 3).astype(np.uint8), (level >> 3).astype(np.uint8)


def _cost(histogram: np.ndarray) -> float:
    """Bits of symbols that are counted in rows [contexts, K], each by its own frequencies."""
    counts = histogram[histogram > 0].astype(np.float64)
    sums = histogram.sum(1).astype(np.float64)
    sums = sums[sums > 0]
    return float((sums * np.log2(sums)).sum() - (counts * np.log2(counts)).sum())


def _histogram(context: np.ndarray | None, plane: np.ndarray) -> np.ndarray:
    if context is None:
        return np.bincount(plane, minlength=256)[None]
    joint = context.astype(np.uint16) << 8 | plane
    return np.bincount(joint, minlength=(_NO_LEVEL + 1) << 8).reshape(-1, 256)


def _shift(histogram: np.ndarray) -> int:
    """The most low bits to store as they are that cost next to nothing."""
    n = int(histogram.sum())
    costs = [_cost(histogram.reshape(len(histogram), -1, 1 << s).sum(2)) + s * n for s in range(8)]
    best = min(*costs, 8.0 * n)
    if best * _SLACK >= 8.0 * n:
        return _RAW
    return max(s for s in range(8) if costs[s] <= best * _SLACK)


class _Contexts:
    """What is known of the symbols of each context; learns while they are coded."""

    def __init__(self) -> None:
        self._weights: dict[tuple[int, ...], np.ndarray] = {}
        self._seen: dict[tuple[int, ...], int] = {}

    def code(self, key: tuple[int, ...], count: int, symbols: int, turn: _Turn) -> None:
        """`turn` codes runs of `count` symbols, by weights float64 [symbols], and returns them."""
        weights = self._weights.setdefault(key, np.ones(symbols))
        seen, done = self._seen.get(key, 0), 0
        while done < count:
            run = slice(done, min(count, done + min(max(_FIRST_RUN, seen), _LONGEST_RUN)))
            weights += _SEEN * np.bincount(turn(run, weights), minlength=symbols)
            seen += run.stop - done
            done = run.stop
        self._seen[key] = seen


def _groups(context: np.ndarray | None, count: int) -> Iterator[tuple[int, Any]]:
    """Each context that occurs, in order, and where: an index into [n]."""
    if context is None:
        yield _NO_LEVEL, slice(0, count)
        return
    order = np.argsort(context, kind="stable")
    ends = np.cumsum(np.bincount(context, minlength=_NO_LEVEL + 1))
    for i, (start, end) in enumerate(itertools.pairwise([0, *ends.tolist()])):
        if end > start:
            yield i, order[start:end]


# -- blocks ----------------------------------------------------------------------------------


class _Writer:
    """Collects the sections of a block."""

    def __init__(self) -> None:
        self.plan, self.side, self.raw = bytearray(), bytearray(), bytearray()
        self.encoder, self.contexts = Encoder(), _Contexts()

    def put(self, piece: _Piece) -> None:
        width = _WIDTH[piece.kind]
        self.plan += _PIECE.pack(piece.kind, len(piece.content) // width, piece.columns)
        if piece.kind == BYTES:
            self.side += piece.content
            return
        planes = _planes(piece.kind, piece.content)
        context, top = self._levelled(piece, planes[0])
        self._plane(piece.kind, 0, top, context)
        for i, plane in enumerate(planes[1:], 1):
            self._plane(piece.kind, i, plane, None)

    def _levelled(self, piece: _Piece, top: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """With the levels that save most; `top` less its level, [n]."""
        if not piece.columns:
            return None, top
        table = top.reshape(-1, piece.columns)
        best: tuple[float, int, np.ndarray | None, np.ndarray, bytes]
        best = (_cost(_histogram(None, top)), 0, None, top, b"")
        for ways in (_ROWS, _ROWS | _COLUMNS):
            rows, columns = _levels(piece.kind, table, ways)
            side = _level_bytes(rows) + (_level_bytes(columns) if ways & _COLUMNS else b"")
            context, base = _context(piece.kind, rows, columns if ways & _COLUMNS else None)
            less = (table - base).reshape(-1)
            context = np.ascontiguousarray(np.broadcast_to(context, table.shape)).reshape(-1)
            cost = _cost(_histogram(context, less)) + 8 * len(_compressed(side))
            if cost < best[0]:
                best = cost, ways, context, less, side
        self.plan.append(best[1])
        self.side += best[4]
        return best[2], best[3]

    def _plane(self, kind: int, index: int, plane: np.ndarray, context: np.ndarray | None) -> None:
        if plane.min() == plane.max():
            self.plan += bytes([_CONSTANT, plane[0]])
            return
        shift = _shift(_histogram(context, plane))
        self.plan.append(shift)
        if shift == _RAW:
            self.raw += plane.tobytes()
            return
        for bit in range(shift):
            self.raw += np.packbits(plane >> bit & 1).tobytes()
        symbols = (plane >> shift).astype(np.int32)
        for number, chosen in _groups(context, len(plane)):
            part = symbols[chosen]

            def turn(run: slice, weights: np.ndarray, part: np.ndarray = part) -> np.ndarray:
                self.encoder.put_alike(part[run], weights)
                return part[run]

            key = (kind, index, shift, number)
            self.contexts.code(key, len(part), 256 >> shift, turn)

    def block(self, content_length: int) -> bytes:
        plan = struct.pack("<I", len(self.plan)) + self.plan
        side = bytes(plan) + bytes(self.side)
        packed, words = _compressed(side), self.encoder.payload()
        lengths = content_length, len(side), len(packed), len(self.raw), len(words)
        payload = packed + bytes(self.raw) + words
        head = _BLOCK.pack(*lengths, b"")[:-_CHECK_BYTES]
        return head + _check(head, payload) + payload


def _encode(pieces: list[_Piece]) -> bytes:
    writer = _Writer()
    for piece in pieces:
        writer.put(piece)
    return writer.block(sum(len(piece.content) for piece in pieces))


class _Bytes:
    """A section that is read from its start to its end."""

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
        self._content, side, side_packed, raw = lengths
        self.side = _Bytes(_decompressed(payload[:side_packed], side))
        (plan,) = struct.unpack("<I", self.side.take(4))
        self.plan = _Bytes(self.side.take(plan))
        self.raw = _Bytes(payload[side_packed : side_packed + raw])
        self.decoder, self.contexts = Decoder(payload[side_packed + raw :]), _Contexts()

    def content(self) -> bytes:
        parts, left = [], self._content
        while left:
            parts.append(self._piece(left))
            left -= len(parts[-1])
        for section in (self.plan, self.side, self.raw):
            section.finish()
        return b"".join(parts)

    def _piece(self, most: int) -> bytes:
        kind, count, columns = _PIECE.unpack(self.plan.take(_PIECE.size))
        if kind >= len(_WIDTH) or not 0 < count * _WIDTH[kind] <= most:
            raise CorruptArchive(f"{count} elements of kind {kind} in packed weights")
        if kind == BYTES:
            return self.side.take(count)
        if count > _PIECE_ELEMENTS or (columns and (count % columns or kind not in _LEVELLED)):
            raise CorruptArchive(f"{count} elements in rows of {columns} in packed weights")
        context, base = self._levels(kind, count, columns)
        planes = np.empty((_WIDTH[kind], count), np.uint8)
        planes[0] = self._plane(kind, 0, count, context)
        if base is not None:
            planes[0] += base
        for i in range(1, len(planes)):
            planes[i] = self._plane(kind, i, count, None)
        return _joined(kind, planes)

    def _levels(
        self, kind: int, count: int, columns: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        ways = self.plan.take(1)[0] if columns else 0
        if ways == 0:
            return None, None
        if ways not in (_ROWS, _ROWS | _COLUMNS):
            raise CorruptArchive(f"levels of kind {ways} in packed weights")
        rows = _level_values(self.side.take(2 * (count // columns)))
        beside = _level_values(self.side.take(2 * columns)) if ways & _COLUMNS else None
        shape = (count // columns, columns)
        return tuple(  # type: ignore[return-value]
            np.broadcast_to(part, shape).reshape(-1) for part in _context(kind, rows, beside)
        )

    def _plane(self, kind: int, index: int, count: int, context: np.ndarray | None) -> np.ndarray:
        shift = self.plan.take(1)[0]
        if shift == _CONSTANT:
            return np.full(count, self.plan.take(1)[0], np.uint8)
        if shift == _RAW:
            return np.frombuffer(self.raw.take(count), np.uint8)
        if shift > _CONSTANT:
            raise CorruptArchive(f"a shift by {shift} in packed weights")
        low = np.zeros(count, np.uint8)
        for bit in range(shift):
            packed = np.frombuffer(self.raw.take(-(-count // 8)), np.uint8)
            low |= np.unpackbits(packed, count=count) << np.uint8(bit)
        plane = np.empty(count, np.uint8)
        for number, chosen in _groups(context, count):
            length = count if context is None else len(chosen)
            part = np.empty(length, np.uint8)

            def turn(run: slice, weights: np.ndarray, part: np.ndarray = part) -> np.ndarray:
                symbols = self.decoder.get_alike(run.stop - run.start, weights)
                part[run] = symbols
                return symbols

            self.contexts.code((kind, index, shift, number), length, 256 >> shift, turn)
            plane[chosen] = part
        plane <<= np.uint8(shift)
        plane |= low
        return plane


def _decode(block: tuple[tuple[int, ...], bytes]) -> bytes:
    return _Reader(*block).content()


def _level_bytes(levels: np.ndarray) -> bytes:
    """int16 [n], all low bytes before all high ones."""
    return bytes(levels.view(np.uint8).reshape(-1, 2).T.tobytes())


def _level_values(content: bytes) -> np.ndarray:
    pairs = np.frombuffer(content, np.uint8).reshape(2, -1).T
    return np.ascontiguousarray(pairs).view("<i2")[:, 0]


def _compressed(side: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=19).compress(side)


def _decompressed(packed: bytes, length: int) -> bytes:
    """Of exactly this length, whatever zstd's header says."""
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_SIDE_LIMIT).stream_reader(packed)
        side = reader.read(length + 1)
    except zstandard.ZstdError as error:
        raise CorruptArchive(f"packed weights are damaged ({error})") from None
    if len(side) != length:
        raise CorruptArchive("a section of packed weights has another length than it says")
    return bytes(side)
