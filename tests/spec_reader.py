"""A second reader of the container, written from docs/format.md alone: slow, strict, plain.

Model payloads are beyond it; it is given the content to verify their checks with.
"""

from __future__ import annotations

import hashlib
import lzma
from collections.abc import Iterator

import zstandard


def frames(archive: bytes, content: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(Frame_Kind, Content_Length, content of a stored frame) for each frame."""
    if archive[0:4] in (b"LLMz", b"LLMp"):
        yield _short(archive, content)
        return
    # 2. Header
    assert archive[0:4] == b"LLMZ"
    assert archive[4] == 1
    flags = archive[5]
    assert flags < 32
    assert flags & 1 or not flags
    at = 6
    if flags & 1:
        at += 9  # Profile, Model_Digest, Window, Overlap
        if flags & 16:
            at += 8  # Prime_Digest
        if flags & 4:
            at += 4  # Certificate
        if flags & 8:
            at += 2 + int.from_bytes(archive[at : at + 2], "little")  # Environment
        if flags & 2:
            at += 1 + archive[at]  # Name_Length, Name
    header = archive[:at]

    # 3. Frames
    offset = count = 0
    last = False
    while not last:
        start = at
        kind, last = archive[at] & 3, bool(archive[at] >> 7)
        assert archive[at] & 0b0111_1100 == 0
        at += 1
        length, at = _varint(archive, at)
        payload_length = length
        if kind == 2:
            tokens, at = _varint(archive, at)
            streams, at = _varint(archive, at)
            assert 1 <= streams <= tokens <= length
        if kind != 0:
            payload_length, at = _varint(archive, at)
        fields = archive[start:at]
        payload = archive[at : at + payload_length]
        at += payload_length
        if length > 65536:
            assert archive[at : at + 4] == _hash(payload, 4)
            at += 4
        part = content[offset : offset + length]
        signed = header + offset.to_bytes(8, "little") + fields + part
        assert archive[at : at + 4] == _hash(signed, 4)
        at += 4
        if kind == 3:
            filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 26}]
            payload = lzma.decompress(payload, lzma.FORMAT_RAW, filters=filters)
        if kind == 1:
            payload = zstandard.ZstdDecompressor().decompress(payload)
        yield kind, length, payload
        offset += length
        count += 1

    # 4. Trailer
    if offset > 65536 or count > 1:
        assert archive[at : at + 8] == offset.to_bytes(8, "little")
        assert archive[at + 8 : at + 24] == _hash(content, 16)
        at += 24
    assert at == len(archive)


def _short(archive: bytes, content: bytes) -> tuple[int, int, bytes]:
    # 10. Short archives
    start = 7 if archive[0:4] == b"LLMp" else 5  # after Prime_Digest
    length, at = _varint(archive, start)
    assert length <= 65536
    payload_length, at = _varint(archive, at)
    assert payload_length <= length
    end = at + payload_length
    signed = archive[:start] + bytes(8) + archive[start:at] + content
    assert archive[end:] == _hash(signed, 4)
    return 2, length, archive[at:end]


def _varint(archive: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (archive[at] & 127) << shift
        at += 1
        if archive[at - 1] < 128:
            return value, at
        shift += 7


def _hash(data: bytes, size: int) -> bytes:
    return hashlib.blake2b(data, digest_size=size).digest()
