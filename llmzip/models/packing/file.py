"""Packing and unpacking of whole files, block by block, in several processes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, BinaryIO

from llmzip.errors import CorruptArchive, LlmzipError, TruncatedArchive, UnsupportedArchive
from llmzip.models.packing import layout
from llmzip.models.packing.blocks import decode_block, encode_block
from llmzip.models.packing.layout import BLOCK_HEADER, HASH_BYTES, HEADER, Chunk, checksum
from llmzip.models.packing.tensors import read_chunks

_PARALLEL_BLOCKS = 4  # below that, processes take longer to start than they save


def pack(source: BinaryIO, sink: BinaryIO, workers: int | None = None) -> None:
    """Compress a safetensors file, which must be seekable. `workers`: processes (None: one per
    core). Raises UnsupportedModel if it is no safetensors file."""
    source.seek(0, os.SEEK_END)
    length = source.tell()
    source.seek(0)
    hasher = hashlib.blake2b(digest_size=HASH_BYTES)
    sink.write(HEADER.pack(layout.MAGIC, layout.VERSION, length))

    def blocks() -> Iterator[list[Chunk]]:
        block: list[Chunk] = []
        size = 0
        for chunk in read_chunks(source, length):
            hasher.update(chunk.content)
            if size + len(chunk.content) > layout.BLOCK_LIMIT:
                yield block
                block, size = [], 0
            block.append(chunk)
            size += len(chunk.content)
        yield block

    for encoded in _map_parallel(encode_block, blocks(), workers, length):
        sink.write(encoded)
    sink.write(hasher.digest())


def unpack(source: BinaryIO, sink: BinaryIO, workers: int | None = None) -> None:
    """The inverse of `pack`. What was written is valid only if this returns.

    Raises CorruptArchive, TruncatedArchive, UnsupportedArchive.
    """
    length = content_length(source)
    hasher = hashlib.blake2b(digest_size=HASH_BYTES)
    for content in _map_parallel(decode_block, _read_blocks(source, length), workers, length):
        hasher.update(content)
        sink.write(content)
    if _read_exactly(source, HASH_BYTES) != hasher.digest():
        raise CorruptArchive("the packed weights are damaged: their hash is wrong")
    if source.read(1):
        raise CorruptArchive("data follow the packed weights")


def content_length(source: BinaryIO) -> int:
    """Read the header of a packed file: Content_Length, in bytes. Raises as `unpack`."""
    magic, version, length = HEADER.unpack(_read_exactly(source, HEADER.size))
    if magic != layout.MAGIC:
        raise CorruptArchive("not a file of packed weights")
    if version != layout.VERSION:
        raise UnsupportedArchive(f"packed weights of version {version}; known: {layout.VERSION}")
    return int(length)


def _read_exactly(source: BinaryIO, size: int) -> bytes:
    data = source.read(size)
    if len(data) != size:
        raise TruncatedArchive("the packed weights end too early")
    return data


def _read_blocks(source: BinaryIO, length: int) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """The first four lengths and the payload of each block, its checksum verified."""
    while length:
        header = _read_exactly(source, BLOCK_HEADER.size)
        content, side, side_compressed, raw, coded, expected = BLOCK_HEADER.unpack(header)
        if not 0 < content <= min(length, layout.BLOCK_LIMIT) or side > layout.SIDE_LIMIT:
            raise CorruptArchive(f"a block of {content} bytes with {side} of side information")
        if side_compressed > side + 1024 or raw > content or coded > 2 * content + 1024:
            raise CorruptArchive("a block is longer than its content")
        payload = _read_exactly(source, side_compressed + raw + coded)
        if checksum(header[: -layout.CHECKSUM_BYTES], payload) != expected:
            raise CorruptArchive("a block of packed weights is damaged")
        yield (content, side, side_compressed, raw), payload
        length -= content


def _map_parallel(
    function: Callable[[Any], bytes], blocks: Iterable[Any], workers: int | None, length: int
) -> Iterator[bytes]:
    """map(function, blocks), in processes if that pays: the entropy coder holds the GIL."""
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if workers < 2 or length < _PARALLEL_BLOCKS * layout.BLOCK_LIMIT:
        yield from map(function, blocks)
        return
    context = multiprocessing.get_context("spawn")  # a fork would copy the threads of torch
    try:
        with ProcessPoolExecutor(workers, context) as pool:
            pending: deque[Future[bytes]] = deque()
            for block in blocks:
                pending.append(pool.submit(function, block))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
    except BrokenProcessPool:
        raise LlmzipError("a worker process died, perhaps for lack of memory") from None
