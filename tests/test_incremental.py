"""`Compressor` and `Decompressor`: the habits of lzma's."""

from __future__ import annotations

import pytest
from conftest import PROSE, TINY
from hypothesis import given, settings
from hypothesis import strategies as st

import llmzip
from llmzip import Compressor, Decompressor

OPTIONS = llmzip.Options(model=str(TINY), frame_size=500)
CONTENT = PROSE.encode() + bytes(range(256)) * 2


@pytest.fixture(scope="module")
def archive() -> bytes:
    compressor = Compressor(OPTIONS)
    parts = [compressor.compress(CONTENT[i : i + 77]) for i in range(0, len(CONTENT), 77)]
    assert sum(map(bool, parts)) == (len(CONTENT) - 1) // OPTIONS.frame_size
    return b"".join([*parts, compressor.flush()])


def test_the_pieces_are_an_archive(archive: bytes) -> None:
    assert llmzip.decompress(archive, model=str(TINY)) == CONTENT


def test_nothing_after_the_flush() -> None:
    compressor = Compressor(OPTIONS)
    assert llmzip.decompress(compressor.compress(b"") + compressor.flush()) == b""
    with pytest.raises(ValueError, match="flushed"):
        compressor.compress(b"x")
    with pytest.raises(ValueError, match="repeated"):
        compressor.flush()


@settings(max_examples=12)
@given(size=st.integers(1, 900), limit=st.integers(-1, 700))
def test_pieces_of_any_size(archive: bytes, size: int, limit: int) -> None:
    limit = limit or 1
    decompressor, out, at = Decompressor(OPTIONS), [], 0
    while not decompressor.eof:
        fed = b""
        if decompressor.needs_input:
            assert at < len(archive)
            fed, at = archive[at : at + size], at + size
        out.append(decompressor.decompress(fed, limit))
        assert limit < 0 or len(out[-1]) <= limit
    assert b"".join(out) == CONTENT
    assert decompressor.unused_data == b""
    assert not decompressor.needs_input


def test_what_follows_is_handed_back(archive: bytes) -> None:
    decompressor = Decompressor(OPTIONS)
    assert decompressor.decompress(archive[:-1]) == CONTENT
    assert (decompressor.eof, decompressor.needs_input) == (False, True)
    assert decompressor.unused_data == b""
    assert decompressor.decompress(archive[-1:] + b"more") == b""
    assert (decompressor.eof, decompressor.unused_data) == (True, b"more")
    with pytest.raises(EOFError):
        decompressor.decompress(b"")


def test_a_bomb_comes_out_in_pieces() -> None:
    """64 MiB of zeros in some hundred bytes: not more than is asked for comes out."""
    bomb = llmzip.compress(bytes(3 << 20), model=str(TINY))
    assert len(bomb) < 1000
    decompressor = Decompressor()
    assert decompressor.decompress(bomb, max_length=10) == bytes(10)
    assert not decompressor.needs_input
    assert decompressor.decompress(b"", max_length=0) == b""
    assert len(decompressor.decompress(b"")) == (3 << 20) - 10
    assert decompressor.eof


def test_damage_is_named(archive: bytes) -> None:
    damaged = bytearray(archive)
    damaged[-30] ^= 1
    decompressor = Decompressor(OPTIONS)
    intact = decompressor.decompress(bytes(damaged[: len(archive) // 2]))
    assert intact
    assert CONTENT.startswith(intact)
    with pytest.raises(llmzip.CorruptArchive):
        decompressor.decompress(bytes(damaged[len(archive) // 2 :]))
    with pytest.raises(llmzip.CorruptArchive, match="does not begin"):
        Decompressor().decompress(b"something else")
