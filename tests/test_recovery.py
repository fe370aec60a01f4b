"""Damaged archives: what is healthy comes back, what is lost is named, never wrong bytes."""

from __future__ import annotations

import io
import random
import time

import pytest
from conftest import PROSE, TINY
from hypothesis import given
from hypothesis import strategies as st

from llmzip import compress
from llmzip.archive import container, frame_header
from llmzip.archive.header import MAGIC, write_header
from llmzip.archive.options import Options
from llmzip.archive.recovery import Damage, Recovered, recover
from llmzip.archive.writer import ArchiveWriter
from llmzip.coding import frame as coded
from llmzip.coding.stored import store
from llmzip.errors import LlmzipError, TooLong, WrongModel


def _archive(contents: list[bytes]) -> tuple[bytes, list[int]]:
    """An archive of stored frames, and where each frame, and the trailer, begins in it."""
    sink = io.BytesIO()
    writer = container.Writer(sink, write_header(None))
    starts = [sink.tell()]
    for i, content in enumerate(contents):
        writer.write(store(content, i == len(contents) - 1), content)
        starts.append(sink.tell())
    if len(contents) > 1 or len(contents[0]) > coded.SMALL:
        starts[-1] -= container.TRAILER_BYTES
    return sink.getvalue(), starts


def _recovered(archive: bytes, options: Options | None = None) -> list[Recovered | Damage]:
    return list(recover(io.BytesIO(archive), options or Options(), lambda content, coded: None))


def _check(archive: bytes, content: bytes) -> set[tuple[int, int]]:
    """Recover; what comes is right and in order, and damage is what is missing of it. Returns
    the ranges that came."""
    at = 0
    came = set()
    for part in _recovered(archive):
        if isinstance(part, Recovered):
            assert part.offset == at
            at += len(part.content)
            assert content[part.offset : at] == part.content
            came.add((part.offset, at))
        else:
            assert part.start == at
            assert part.reason
            if part.end is None:
                break
            at = part.end
    return came


def _ranges(contents: list[bytes]) -> list[tuple[int, int]]:
    ends = [sum(map(len, contents[: i + 1])) for i in range(len(contents))]
    return [(end - len(part), end) for end, part in zip(ends, contents, strict=True)]


NOISE = random.Random(7).randbytes(4000)
SMALL = [  # raw, LZMA and zstd frames of one length, and a shorter one
    NOISE[:60],
    b"a" * 60,
    NOISE[60:120],
    b"abcdef" * 10,
    b"to be or not to be " * 3 + b"...",
    NOISE[200:220],
]


def test_an_intact_archive_has_no_damage() -> None:
    archive, _ = _archive(SMALL)
    assert [part.content for part in _recovered(archive)] == SMALL  # type: ignore[union-attr]


@pytest.mark.parametrize("flip", [1, 0x20, 0x80, 0xFF])
def test_every_flipped_byte_costs_its_own_frame_alone(flip: int) -> None:
    archive, starts = _archive(SMALL)
    ranges = _ranges(SMALL)
    for i in range(starts[0], len(archive)):
        damaged = bytearray(archive)
        damaged[i] ^= flip
        hit = sum(start <= i for start in starts) - 1
        came = _check(bytes(damaged), b"".join(SMALL))
        damage = [part for part in _recovered(bytes(damaged)) if isinstance(part, Damage)]
        if not damage:  # LZMA has bits that nothing depends on
            assert archive[starts[hit]] & 3 == coded.LZMA
            assert came == set(ranges)
            continue
        assert came == {r for n, r in enumerate(ranges) if n != hit}, i
        assert len(damage) == 1
        if hit < len(SMALL):  # else the trailer
            assert damage[0].frames == (hit, hit)
            assert damage[0].start == ranges[hit][0]
            assert damage[0].end in (ranges[hit][1], None)
        else:
            assert damage[0].start == damage[0].end == ranges[-1][1]


def test_a_damaged_header_gives_nothing_away() -> None:
    archive, starts = _archive(SMALL)
    for i in range(starts[0]):
        damaged = bytearray(archive)
        damaged[i] ^= 1
        try:
            assert _check(bytes(damaged), b"".join(SMALL)) == set()
        except LlmzipError:
            continue


def test_every_truncation_keeps_the_frames_before_it() -> None:
    archive, starts = _archive(SMALL)
    ranges = _ranges(SMALL)
    for length in range(starts[0], len(archive)):
        whole = sum(start <= length for start in starts[1:])
        assert _check(archive[:length], b"".join(SMALL)) == set(ranges[:whole])
        (damage,) = (part for part in _recovered(archive[:length]) if isinstance(part, Damage))
        if whole < len(SMALL):
            assert (damage.start, damage.end) == (ranges[whole][0], None)
            assert "too early" in damage.reason


def test_bytes_that_are_gone_or_too_many() -> None:
    archive, starts = _archive(SMALL)
    ranges = _ranges(SMALL)
    for i in range(starts[0], starts[-1]):
        hit = sum(start <= i for start in starts) - 1
        for damaged in (archive[:i] + archive[i + 1 :], archive[:i] + b"\x07" + archive[i:]):
            came = _check(damaged, b"".join(SMALL))
            others = {r for n, r in enumerate(ranges) if n not in (hit, hit - 1)}
            assert others <= came, i  # what is inserted between two frames may cost either


def test_large_frames_with_two_damaged_headers() -> None:
    rng = random.Random(3)
    contents = [rng.randbytes(70_000) for _ in range(5)] + [b"x" * 70_000, b"the end"]
    archive, starts = _archive(contents)
    ranges = _ranges(contents)
    began = time.monotonic()
    for hit in ({1, 3}, {0, 6}, {2, 3}, {5, 6}, {0, 1, 2}):
        damaged = bytearray(archive)
        for frame in hit:
            damaged[starts[frame]] = 0x7F
        came = _check(bytes(damaged), b"".join(contents))
        assert came == {r for n, r in enumerate(ranges) if n not in hit}
    assert time.monotonic() - began < 20


@given(st.data())
def test_any_damage_at_all_never_gives_wrong_bytes(data: st.DataObject) -> None:
    archive, starts = _archive(SMALL)
    damaged = bytearray(archive)
    for _ in range(data.draw(st.integers(1, 6))):
        i = data.draw(st.integers(starts[0], len(damaged) - 1))
        j = data.draw(st.integers(i, min(len(damaged), i + 40)))
        damaged[i:j] = data.draw(st.binary(max_size=40))
    _check(bytes(damaged), b"".join(SMALL))


def test_archives_within_an_archive_are_never_taken_for_it() -> None:
    inner, _ = _archive([bytes([i]) * 60 for i in range(9)])
    contents = [inner[:60].ljust(60), *(inner[i : i + 60] for i in range(60, len(inner), 60))]
    archive, starts = _archive([NOISE[:60], inner, *contents])
    for i in range(starts[0], len(archive)):
        damaged = bytearray(archive)
        damaged[i] ^= 0x81
        _check(bytes(damaged), b"".join([NOISE[:60], inner, *contents]))


@pytest.mark.parametrize("padding", [0, 700])
def test_archives_that_follow_each_other(padding: int) -> None:
    contents = [SMALL[:3], [bytes([i]) * 60 for i in range(9)], SMALL[3:4]]
    archives = [_archive(part)[0] for part in contents]
    joined, end = b"".join(archives), bytes(padding)
    frames = [frame for part in contents for frame in part]
    whole = b"".join(frames)
    assert _check(joined + end, whole) == set(_ranges(frames))
    first, second = len(archives[0]), len(archives[0] + archives[1])
    for i in range(6, len(joined)):
        damaged = bytearray(joined + end)
        damaged[i] ^= 0x81
        found = _recovered(bytes(damaged))
        came = b"".join(part.content for part in found if isinstance(part, Recovered))
        # a payload's end mark may not matter
        assert came == whole or any(isinstance(part, Damage) for part in found)
        if i < first:
            assert came.endswith(b"".join(contents[1] + contents[2]))
        elif i < second:
            assert came.startswith(b"".join(contents[0]))
            assert came.endswith(contents[2][0])
        else:
            assert came.startswith(b"".join(contents[0] + contents[1]))
        assert all(part.content in whole for part in found if isinstance(part, Recovered))
    further = [NOISE[:333], NOISE[333:777]]
    missed = 0
    for i in range(6, len(joined)):  # cut short, and another appended
        found = _recovered(joined[:i] + _archive(further)[0] + end)
        came = b"".join(part.content for part in found if isinstance(part, Recovered))
        missed += not came.endswith(b"".join(further))
    # where a frame lacks as many bytes as a header has, lengths lead on as if nothing had happened
    assert missed < sum(map(len, contents))


def test_a_damaged_short_archive() -> None:
    content = PROSE[:200].encode()
    archive = compress(content)
    assert archive.startswith(b"LLMz")
    for i in range(4, len(archive)):
        damaged = bytearray(archive)
        damaged[i] ^= 0x81
        try:
            found = _recovered(bytes(damaged))
        except WrongModel:
            assert i == 4
            continue
        if isinstance(found[0], Recovered):  # the last bits of a payload may not matter
            assert found == [Recovered(0, content)]
        else:
            assert len(found) == 1
    (damage,) = _recovered(archive[:-1])
    assert damage == Damage(0, None, (0, 0), "the archive ends too early")


def test_an_archive_made_to_keep_us_busy() -> None:
    """Everywhere something that looks like a large frame, none of them true."""
    fields = b"\x00" + frame_header.varint(70_000)
    hostile = MAGIC + b"\x01\x00\x7f" + fields * 60_000
    began = time.monotonic()
    (damage,) = _recovered(hostile)
    assert isinstance(damage, Damage)
    assert time.monotonic() - began < 20


def test_frames_of_a_model() -> None:
    sink = io.BytesIO()
    writer = ArchiveWriter(sink, Options(model=str(TINY), frame_size=300))
    content = (PROSE * 2).encode()
    writer.write(content)
    writer.finish()
    archive, options = sink.getvalue(), Options(model=str(TINY))
    assert all(isinstance(part, Recovered) for part in _recovered(archive, options))
    rng = random.Random(5)
    for _ in range(12):
        damaged = bytearray(archive)
        damaged[rng.randrange(20, len(archive) - 24)] ^= 1 << rng.randrange(8)
        parts = _recovered(bytes(damaged), options)
        pieces = [part for part in parts if isinstance(part, Recovered)]
        if pieces == parts:  # the last bits of a payload may not matter
            assert b"".join(piece.content for piece in pieces) == content
            continue
        (damage,) = (part for part in parts if isinstance(part, Damage))
        assert all(content[p.offset :].startswith(p.content) for p in pieces)
        end = damage.end or len(content)
        assert sum(len(p.content) for p in pieces) + end - damage.start == len(content)
        assert end - damage.start <= 300


def test_no_more_than_max_length() -> None:
    archive, _ = _archive(SMALL)
    with pytest.raises(TooLong):
        _recovered(archive, Options(max_length=319))
    assert len(_recovered(archive, Options(max_length=320))) == 6


def test_what_is_lost_does_not_count_for_max_length() -> None:
    archive, starts = _archive(SMALL)
    lost = bytearray(archive)
    lost[starts[1] - 1] ^= 1  # of a checksum: the content can be decoded, and is refused
    left = sum(map(len, SMALL[1:]))
    twice = 2 * (left + len(SMALL[0]))
    parts = _recovered(bytes(lost), Options(max_length=left))
    assert b"".join(p.content for p in parts if isinstance(p, Recovered)) == b"".join(SMALL[1:])
    assert len(_recovered(archive + lost, Options(max_length=twice - len(SMALL[0])))) == 12
    with pytest.raises(TooLong):
        _recovered(archive + lost, Options(max_length=twice - len(SMALL[0]) - 1))
