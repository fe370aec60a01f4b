"""Header, frames and trailer against docs/format.md, section by section, and hostile bytes."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmzip.archive import header
from llmzip.archive.container import Reader, Writer
from llmzip.archive.header import ModelHeader, write_header, write_short_header
from llmzip.coding.frame import MODEL, RAW, Frame
from llmzip.errors import (
    CorruptArchive,
    LlmzipError,
    PaddingWarning,
    TruncatedArchive,
    UnsupportedArchive,
)

HEADER = ModelHeader(profile=1, digest_start=b"digest", window=512, overlap=256)


def write(contents: list[bytes], model: ModelHeader | None = None) -> bytes:
    """An archive of raw frames."""
    sink = io.BytesIO()
    writer = Writer(sink, write_header(model))
    for i, content in enumerate(contents):
        last = i == len(contents) - 1
        writer.write(Frame(RAW, len(content), content, last=last), content)
    return sink.getvalue()


def read(archive: bytes) -> list[bytes]:
    reader = Reader(io.BytesIO(archive))
    contents = []
    while (frame := reader.next_frame()) is not None:
        reader.verify(frame, frame.payload)
        contents.append(frame.payload)
    return contents


@given(contents=st.lists(st.binary(max_size=50), min_size=1, max_size=5), named=st.booleans())
def test_round_trip(contents: list[bytes], named: bool) -> None:
    assert read(write(contents, HEADER if named else None)) == contents


def test_2_header_fields() -> None:
    archive = write([b""], HEADER)
    assert archive[:4] == b"LLMZ"
    assert archive[4] == 1  # Version
    assert archive[5] == 0b01  # Flags: Has_Model
    assert archive[6] == 1  # Profile
    assert archive[7:13] == b"digest"
    assert archive[13] == 0x38  # Window: (8 + 0) << (7 - 1) = 512
    assert archive[14] == 0x30  # Overlap: (8 + 0) << (6 - 1) = 256
    assert Reader(io.BytesIO(archive)).model == HEADER


def test_2_a_model_may_be_named() -> None:
    header = ModelHeader(2, b"123456", 64, 0, "owner/modèle")
    archive = write([b"x"], header)
    assert archive[5] == 0b11
    assert Reader(io.BytesIO(archive)).model == header


@pytest.mark.parametrize("length", [0, 8, 9, 15, 16, 60, 64, 512, 1536, 32768, 15 << 30])
def test_2_lengths_that_one_byte_expresses(length: int) -> None:
    assert header.round_length(length) == length


@given(length=st.integers(0, 1 << 33))
def test_2_other_lengths_are_rounded_down_by_an_eighth_at_most(length: int) -> None:
    rounded = header.round_length(length)
    assert rounded <= length
    assert rounded == 0 if length < 8 else rounded > length * 7 / 8 - 1


def test_3_frame_fields() -> None:
    content = b"c" * 200
    sink = io.BytesIO()
    writer = Writer(sink, write_header(HEADER))
    frame = Frame(MODEL, 200, b"words...", tokens=150, streams=3, last=True)
    writer.write(frame, content)
    archive = sink.getvalue()
    fields = bytes([0x82, 200 & 0x7F | 0x80, 1, 150 & 0x7F | 0x80, 1, 3, 8])
    check = hashlib.blake2b(archive[:15] + bytes(8) + fields + content, digest_size=4).digest()
    assert archive[15:] == fields + b"words..." + check


def test_4_trailer() -> None:
    for contents in ([b"ab", b"c"], [b"x" * 65537]):
        whole = b"".join(contents)
        expected = len(whole).to_bytes(8, "little")
        expected += hashlib.blake2b(whole, digest_size=16).digest()
        assert write(contents).endswith(expected)
    single = write([b"abc"])
    assert len(single) == 6 + 2 + 3 + 4


def short(payload: bytes, content: bytes) -> bytes:
    sink = io.BytesIO()
    frame = Frame(MODEL, len(content), payload, streams=1, last=True)
    Writer(sink, write_short_header(b"\x83" + bytes(31))).write(frame, content)
    return sink.getvalue()


def test_10_a_short_archive_of_100_bytes_pays_11() -> None:
    content = b"m" * 100
    archive = short(b"payload", content)
    start = b"LLMz" + b"\x83" + bytes([100, 7])
    check = hashlib.blake2b(start[:5] + bytes(8) + start[5:] + content, digest_size=4).digest()
    assert archive == start + b"payload" + check
    reader = Reader(io.BytesIO(archive))
    assert reader.archive.header.short
    assert reader.model is not None
    assert reader.model.digest_start == b"\x83"
    frame = reader.next_frame()
    assert frame is not None
    assert (frame.payload, frame.streams, frame.tokens, frame.last) == (b"payload", 1, 0, True)
    reader.verify(frame, content)
    assert reader.next_frame() is None


def test_a_large_damaged_frame_is_noticed_before_it_is_decoded() -> None:
    archive = bytearray(write([b"x" * 70000]))
    archive[100] ^= 1
    with pytest.raises(CorruptArchive, match="payload check"):
        Reader(io.BytesIO(archive)).next_frame()


@pytest.mark.parametrize(
    ("start", "error", "message"),
    [
        (b"", CorruptArchive, "does not begin with LLMZ"),
        (b"PK\3\4 and so on", CorruptArchive, "does not begin with LLMZ"),
        (b"LL", TruncatedArchive, "ends too early"),
        (b"LLMz", TruncatedArchive, "ends too early"),
        (b"LLMz\x83\x05\x06", CorruptArchive, "payload length of 6"),
        (b"LLMz\x83\x81\x80\x04\x06", CorruptArchive, "content length of 65537"),
        (b"LLMz\x83\x05\x02ab\0\0\0\0", CorruptArchive, "content check"),
        (b"LLMZ", TruncatedArchive, "ends too early"),
        (b"LLMZ\x02\x00", UnsupportedArchive, "version 2"),
        (b"LLMZ\x01\x04", UnsupportedArchive, "unknown flags"),
        (b"LLMZ\x01\x02", UnsupportedArchive, "unknown flags"),
        (b"LLMZ\x01\x01\x01digest\x00\x00", CorruptArchive, "a window of 0"),
        (b"LLMZ\x01\x01\x01digest\x30\x38", CorruptArchive, "window of 256 with an overlap"),
        (b"LLMZ\x01\x00\x04", UnsupportedArchive, "kind of frame"),
        (b"LLMZ\x01\x00\x44", UnsupportedArchive, "kind of frame"),
        (b"LLMZ\x01\x00\x82\x01", CorruptArchive, "names none"),
        (b"LLMZ\x01\x00\x80\xff\xff\xff\xff\x01", CorruptArchive, "content length"),
        (b"LLMZ\x01\x00\x80\x80\x80\x80\x80\x80", CorruptArchive, "not a well-formed"),
        (b"LLMZ\x01\x00\x80\x81\x00", CorruptArchive, "not a well-formed"),
        (b"LLMZ\x01\x00\x81\x05\x06", CorruptArchive, "payload length of 6"),
        (b"LLMZ\x01\x00\x80\x05ab", TruncatedArchive, "ends too early"),
        (b"LLMZ\x01\x01\x01digest\x38\x30\x82\x05\x06", CorruptArchive, "tokens of 6"),
        (b"LLMZ\x01\x01\x01digest\x38\x30\x82\x05\x03\x04", CorruptArchive, "streams of 4"),
        (b"LLMZ\x01\x01\x01digest\x38\x30\x82\x05\x03\x00", CorruptArchive, "without streams"),
        (b"LLMZ\x01\x00\x80\x01a\0\0\0\0", CorruptArchive, "content check"),
    ],
)
def test_hostile_starts_are_refused_by_name(
    start: bytes, error: type[LlmzipError], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(start)


def test_what_follows_the_end_is_refused() -> None:
    for rest in (b"x", b"\0\0x", b"\0" * 70_000 + b"LLMZ\1\0\x80\0", b"PK\3\4"):
        with pytest.raises(CorruptArchive, match="follow the end"):
            read(write([b"abc"]) + rest)


def test_zeros_after_the_end_are_passed_over_with_a_warning() -> None:
    for zeros in (1, 3, 4, 512, 70_000):
        with pytest.warns(PaddingWarning, match=f"^{zeros} zero bytes"):
            assert read(write([b"abc"]) + bytes(zeros)) == [b"abc"]


@given(parts=st.lists(st.lists(st.binary(max_size=9), min_size=1, max_size=3), max_size=4))
def test_archives_that_follow_each_other_are_one(parts: list[list[bytes]]) -> None:
    parts = [[b"first"], *parts]
    archive = b"".join(
        write(contents, HEADER if i % 2 else None) for i, contents in enumerate(parts)
    )
    assert read(archive) == [content for contents in parts for content in contents]
    reader = Reader(io.BytesIO(archive))
    positions = []
    while (position := reader.position()) is not None:
        positions.append(position)
        assert reader.skip_frame()
    assert not reader.skip_frame()
    contents = [content for part in parts for content in part]
    for position in reversed(positions):
        reader.seek(position)
        frame = reader.next_frame()
        assert frame is not None
        assert frame.payload == contents[position.frame]
        reader.verify(frame, frame.payload)
        assert position.archive.header.model == (HEADER if position.archive.number % 2 else None)


def test_alone_reads_nothing_beyond_the_first_end() -> None:
    archive = write([b"abc"])
    source = io.BytesIO(archive + b"anything")
    reader = Reader(source, single=True)
    frame = reader.next_frame()
    assert frame is not None
    reader.verify(frame, frame.payload)
    assert reader.next_frame() is None
    assert source.tell() == len(archive)


def test_frames_cannot_be_exchanged_left_out_or_repeated() -> None:
    contents = [b"one", b"two", b"six", b"ten"]
    archive = write(contents)
    size = 2 + 3 + 4
    first, second = archive[6 : 6 + size], archive[6 + size : 6 + 2 * size]
    rest = archive[6 + 2 * size :]
    for wrong in (second + first + rest, second + rest, first + first + second + rest):
        with pytest.raises(CorruptArchive):
            read(archive[:6] + wrong)


def test_every_flip_and_every_truncation_is_noticed() -> None:
    archive = write([b"some content", b"", b"and more"], HEADER)
    for i in range(len(archive)):
        with pytest.raises(LlmzipError):
            read(archive[:i])
        for bit in range(8):
            damaged = bytearray(archive)
            damaged[i] ^= 1 << bit
            with pytest.raises(LlmzipError):
                read(bytes(damaged))


@given(data=st.binary(max_size=80))
def test_arbitrary_bytes_raise_our_errors_only(data: bytes) -> None:
    for archive in (data, b"LLMZ\x01\x00" + data, b"LLMZ\x01\x01\x01digest\x38\x30" + data):
        with pytest.raises(LlmzipError):
            read(archive)
