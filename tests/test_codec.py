"""Content → archive → content, through every way that a frame can take."""

from __future__ import annotations

import contextlib
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from conftest import AWKWARD, PROSE, TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from table_predictor import TablePredictor

import llmzip
from llmzip import models
from llmzip.archive import codecs, container
from llmzip.archive.frame_writer import cut_of
from llmzip.archive.header import write_header
from llmzip.archive.options import Options
from llmzip.archive.reader import ArchiveReader
from llmzip.archive.writer import ArchiveWriter
from llmzip.coding.frame import FRAME_LIMIT, MODEL, RAW, ZSTD, Frame
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.streams import Cut, deal
from llmzip.errors import (
    CorruptArchive,
    LlmzipError,
    UnsupportedArchive,
    UnsupportedModel,
    WrongModel,
)
from llmzip.tokenizer import Tokens


def _silent(*_: int) -> None:
    pass


def archive(content: bytes, **options: object) -> bytes:
    sink = io.BytesIO()
    given: dict[str, Any] = {"model": str(TINY), **options}
    writer = ArchiveWriter(sink, Options(**given))
    writer.write(content)
    writer.finish()
    return sink.getvalue()


def restored(data: bytes, model: str = str(TINY)) -> bytes:
    return llmzip.decompress(data, model=model)


def kinds(data: bytes) -> list[int]:
    reader = container.Reader(io.BytesIO(data))
    found = []
    while (frame := reader.next_frame()) is not None:
        found.append(frame.kind)
        reader.skip(frame)
    return found


# A frame, whatever the model makes of it


@given(content=st.binary(min_size=1, max_size=400), streams=st.integers(1, 9))
def test_any_bytes_in_any_number_of_streams(
    table_codec: FrameCodec, content: bytes, streams: int
) -> None:
    frame = table_codec.encode(content, Cut(streams), _silent)
    assert table_codec.decode(frame, _silent) == content


@pytest.mark.parametrize("streams", [3, 5])
def test_parts_of_the_streams_are_scored_in_chunks_of_their_own(
    table_codec: FrameCodec, streams: int
) -> None:
    content = PROSE.encode() * 4  # so long that a part of one stream more has shorter chunks
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        frame = table_codec.encode(content, Cut(streams), _silent)
        assert table_codec.decode(frame, _silent) == content
    finally:
        torch.set_num_threads(before)


@given(text=st.text(min_size=1, max_size=300))
def test_any_text_without_choosing_streams(table_codec: FrameCodec, text: str) -> None:
    frame = table_codec.encode(text.encode(), Cut(), _silent)
    assert frame.streams == 1
    assert table_codec.decode(frame, _silent) == text.encode()


def test_a_frame_for_a_tokenizer_of_any_kind(tokens: Tokens) -> None:
    """Escapes and padded last rows are coded like all else."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(tokens.vocabulary + 1, tokens.vocabulary, generator=generator)
    frames = FrameCodec(tokens, TablePredictor(logits[:-1], logits[-1]))
    for content in AWKWARD.values():
        if content:
            assert frames.decode(frames.encode(content, Cut(3), _silent), _silent) == content


def test_the_overhead_of_coding_is_small(table_codec: FrameCodec) -> None:
    """At most 0.2% over the entropy that float64 softmax gives, on 100 KB and more."""
    content = (PROSE * 130).encode()
    assert len(content) > 100_000
    streams = 16
    ids = torch.from_numpy(table_codec.tokens.encode(content)).long()
    frame = table_codec.encode(content, Cut(streams), _silent)
    table, last = deal(ids.numpy().astype(np.int32), streams)
    bits = 0.0
    logits = table_codec.predictor.run(streams, len(table)).score(torch.from_numpy(table.T).long())
    logits = torch.cat(list(logits)).double().log_softmax(-1)
    chosen = -logits.gather(-1, torch.from_numpy(table).long()[..., None])[..., 0]
    bits = float((chosen.sum() - chosen[-1, last:].sum()) / np.log(2))
    assert 8 * len(frame.payload) < bits * 1.002


def test_progress_adds_up(table_codec: FrameCodec) -> None:
    content = PROSE.encode()
    told: list[tuple[int, int]] = []
    frame = table_codec.encode(content, Cut(2), lambda *done: told.append(done))
    assert sum(count for count, _ in told) == len(content)
    assert 0 < sum(coded for _, coded in told) <= len(frame.payload)
    assert min(min(done) for done in told) >= 0
    told.clear()
    table_codec.decode(frame, lambda *done: told.append(done))
    assert sum(count for count, _ in told) == len(content)
    assert sum(coded for _, coded in told) == len(frame.payload)


def test_the_default_number_of_streams_follows_the_length(table_codec: FrameCodec) -> None:
    plan = table_codec.plan_streams
    assert [plan(n, Cut()) for n in (1, 6143, 12288, 61440, 10**8)] == [1, 1, 2, 10, 256]
    assert plan(10**8, Cut(most=16)) == 16
    assert plan(5, Cut(100)) == 5
    assert plan(10**6, Cut(3)) == 3


@pytest.mark.parametrize(
    ("many", "repeats", "expected"),
    [(False, False, [1, 1, 2, 16]), (True, False, [1, 2, 4, 32]), (True, True, [1, 1, 2, 4])],
)
def test_writers_take_more_streams_for_models_that_gain_by_them(
    many: bool, repeats: bool, expected: list[int], table_codec: FrameCodec
) -> None:
    size = 200 if repeats else 500  # what zstd makes of 1,000 bytes
    cut = cut_of(Options(), bytes(1000), size, many=many)
    plan = table_codec.plan_streams
    assert [plan(n, cut) for n in (3071, 6144, 12288, 10**6)] == expected
    assert cut_of(Options(streams=5), bytes(1000), size, many=many) == Cut(5)


def test_large_models_whose_attention_slides_gain_by_streams() -> None:
    loaded = {
        name: codecs.codec_for_writing(Options(model=name))[1].predictor for name in models.EMBEDDED
    }
    assert {name: predictor.gains_by_streams for name, predictor in loaded.items()} == {
        "nano": False, "small": False, "base": True
    }  # fmt: skip


@pytest.mark.parametrize(("repeats", "expected"), [(False, 5), (True, 4)])
def test_a_text_that_repeats_itself_has_fewer_streams(repeats: bool, expected: int) -> None:
    words = [str(word) for word in np.random.default_rng(1).choice(PROSE.split(), 20_000)]
    content = " ".join(words[:2000] * 10 if repeats else words).encode()
    data = llmzip.compress(content, model="nano")
    frame = container.Reader(io.BytesIO(data)).next_frame()
    assert frame is not None
    assert (frame.kind, frame.streams) == (MODEL, expected)


# Archives


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_content(name: str) -> None:
    assert restored(archive(AWKWARD[name])) == AWKWARD[name]


@settings(max_examples=15)
@given(content=st.binary(max_size=600) | st.text(max_size=300).map(str.encode))
def test_any_content(content: bytes) -> None:
    data = archive(content)
    assert restored(data) == content
    assert len(data) <= len(content) * 1.001 + 32


@pytest.mark.parametrize("kind", ["text", "random"])
def test_content_of_a_few_bytes(kind: str) -> None:
    """Alone, and in the last frame of several."""
    text = PROSE.encode() if kind == "text" else random.Random(2).randbytes(99)
    for length in range(26):
        data = archive(text[:length], model="nano")
        assert restored(data, "nano") == text[:length]
        assert len(data) <= length + 16
        content = PROSE.encode()[:100] + text[:length]
        assert restored(archive(content, frame_size=100)) == content


@pytest.mark.parametrize("activations", ["a8", "a16"])
@pytest.mark.parametrize("streams", [None, 1, 7])
def test_prose_goes_through_the_model(activations: str, streams: int | None) -> None:
    content = PROSE.encode()
    data = archive(content, activations=activations, streams=streams, verify=True)
    assert kinds(data) == [MODEL]
    assert restored(data) == content


def test_a_short_message_pays_24_bytes_at_most() -> None:
    content = PROSE[:100].encode()
    frames = codecs.codec_for_writing(Options(model=models.DEFAULT))[1]
    payload = frames.encode(content, Cut(), _silent).payload
    data = llmzip.compress(content)
    assert kinds(data) == [MODEL]
    assert len(data) - len(payload) <= 24


@pytest.mark.parametrize(
    ("asked", "window", "overlap"), [(100, 96, 24), (19, 18, 8), (256, 256, 64)]
)
def test_a_window_has_the_overlap_of_the_default(asked: int, window: int, overlap: int) -> None:
    data = archive(PROSE.encode(), context=asked)
    header = container.Reader(io.BytesIO(data)).model
    assert header is not None
    assert (header.window, header.overlap) == (window, overlap)
    assert restored(data) == PROSE.encode()


def test_a_window_beyond_the_model_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="a context of 256 tokens, 320 were asked for"):
        archive(PROSE.encode(), context=330)


def test_several_frames_and_contexts() -> None:
    content = (PROSE * 4).encode() + b"\xff\xfe" * 10
    data = archive(content, frame_size=700, context=(64, 32))
    assert len(kinds(data)) == -(-len(content) // 700)
    assert restored(data) == content


def test_compression_does_not_depend_on_how_content_is_written() -> None:
    content = (PROSE * 2).encode()
    sink = io.BytesIO()
    writer = ArchiveWriter(sink, Options(model=str(TINY), frame_size=1000))
    for i in range(0, len(content), 77):
        writer.write(content[i : i + 77])
    writer.finish()
    assert sink.getvalue() == archive(content, frame_size=1000)


def test_threads_do_not_change_a_byte() -> None:
    content = (PROSE * 2).encode()
    before = torch.get_num_threads()
    one = archive(content)
    try:
        torch.set_num_threads(2)
        assert archive(content) == one
        assert restored(one) == content
    finally:
        torch.set_num_threads(before)


def test_what_the_model_does_not_help_is_stored() -> None:
    noise = np.random.default_rng(1).bytes(200_000)
    for content, kind in (
        (noise, RAW),
        (b"a" * 10_000_000, ZSTD),
        (noise[:50_000] * 2, ZSTD),
        (b"abc", RAW),
    ):
        data = archive(content)
        assert set(kinds(data)) == {kind}
        assert len(data) <= len(content) * 1.001 + 32
        assert restored(data) == content


def test_a_frame_size_boundary_inside_of_a_character() -> None:
    content = ("漢字" * 100).encode()
    assert restored(archive(content, frame_size=100)) == content


# Damage


def test_every_flip_and_every_truncation_of_an_archive() -> None:
    """Never wrong bytes, never another exception than ours."""
    content = PROSE[:60].encode()
    data = archive(content)
    assert kinds(data) == [MODEL]
    for i in range(len(data)):
        with pytest.raises(LlmzipError):
            restored(data[:i])
        for bit in range(8):
            damaged = bytearray(data)
            damaged[i] ^= 1 << bit
            with contextlib.suppress(LlmzipError):
                assert restored(bytes(damaged)) == content


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_cuts_insertions_and_exchanges(seed: int) -> None:
    generator = np.random.default_rng(seed)
    content = PROSE[:300].encode()
    data = bytearray(archive(content, frame_size=100))
    start, stop = sorted(generator.integers(0, len(data), 2).tolist())
    way = seed % 3
    if way == 0:
        del data[start : stop + 1]
    elif way == 1:
        data[start:start] = generator.bytes(5)
    else:
        data[start:start] = data[start : stop + 1]
    with contextlib.suppress(LlmzipError):
        assert restored(bytes(data)) == content


def test_an_archive_that_asks_for_too_much_memory_is_refused() -> None:
    """64 million streams: refused by arithmetic, before anything is allocated."""
    sink = io.BytesIO()
    header, _, _ = codecs.codec_for_writing(Options(model=str(TINY)))
    writer = container.Writer(sink, write_header(header))
    n = FRAME_LIMIT
    content = bytes(n)
    writer.write(Frame(MODEL, n, b"1234", n, n, last=True), content)
    with pytest.raises(UnsupportedArchive, match="the limit is"):
        restored(sink.getvalue())


def test_a_zstd_bomb_stays_inside_the_frames_length() -> None:
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(50_000_000))
    sink = io.BytesIO()
    writer = container.Writer(sink, write_header(None))
    frame = Frame(ZSTD, len(bomb), bomb, last=True)
    writer.write(frame, bytes(len(bomb)))
    with pytest.raises(CorruptArchive, match="content check"):
        restored(sink.getvalue())


# Models


def test_the_wrong_model_is_refused_before_decoding() -> None:
    data = archive(PROSE.encode())
    with pytest.raises(WrongModel, match="digest"):
        llmzip.decompress(data, model="small")
    with pytest.raises(WrongModel, match="needs the model 'tiny'"):
        llmzip.decompress(data)


def test_an_unknown_profile_is_refused() -> None:
    data = bytearray(archive(PROSE.encode()))
    data[6] = 99
    with pytest.raises(UnsupportedArchive, match="profile 0x63"):
        restored(bytes(data))


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(WrongModel, match="no model 'nowhere'"):
        llmzip.compress(PROSE.encode(), model="nowhere")


def test_stored_archives_need_no_model() -> None:
    content = random.Random(1).randbytes(5000)  # nothing predicts it
    assert llmzip.decompress(llmzip.compress(content, model=str(TINY))) == content


def test_verification_notices_a_frame_that_does_not_decode(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FrameCodec, "decode", lambda *_: b"something else")
    with pytest.raises(LlmzipError, match="verification failed"):
        archive(PROSE.encode(), verify=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 0}, "0 streams"),
        ({"frame_size": 0}, "0 bytes"),
        ({"activations": "a4"}, "a4"),
        ({"context": (64, 63)}, "cannot overlap by 63"),
        ({"context": 15}, "a window of 15 tokens; at least 16"),
    ],
)
def test_impossible_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(LlmzipError, match=message):
        Options(**options)  # type: ignore[arg-type]


def test_a_reader_gives_no_frame_before_it_is_verified() -> None:
    data = bytearray(archive(PROSE.encode() * 2, frame_size=1000))
    data[-60] ^= 1  # in the second frame
    reader = iter(ArchiveReader(io.BytesIO(data), Options(model=str(TINY))))
    assert next(reader) == (PROSE.encode() * 2)[:1000]
    with pytest.raises(LlmzipError):
        list(reader)


def test_estimates_are_near_to_what_coding_costs(table_codec: FrameCodec) -> None:
    content = PROSE.encode()
    plain = FrameCodec(table_codec.tokens, table_codec.predictor, mixing="none")
    payload = plain.encode(content, Cut(1), _silent).payload
    estimate = plain.bits_per_byte([content])
    assert estimate == pytest.approx(8 * len(payload) / len(content), rel=0.02)
