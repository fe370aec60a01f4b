"""Frames that are coded together are the frames that are coded alone."""

from __future__ import annotations

import io
import threading
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import PROSE
from test_mixing import VOCABULARY

import llmzip
from llmzip.archive import container, options, reader, writer
from llmzip.coding import frame_codec, lookups
from llmzip.coding.frame import Frame
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.progress import silent
from llmzip.coding.streams import Cut
from llmzip.coding.token_coder import TokenEncoder
from llmzip.errors import CorruptArchive
from llmzip.inference import base
from llmzip.mixing.distribution import of_answers
from llmzip.mixing.level import LEVELS
from llmzip.mixing.questions import Questions, answers_of, questions_of
from llmzip.mixing.state import new_state
from llmzip.mixing.vocabulary import Vocabulary

CONTENTS = [PROSE.encode(), PROSE[300:500].encode(), b"a", PROSE[100:].encode()]


WAYS = {"batches": ("on_gpu", True), "threads": ("uses_torch", False), "in turn": ("on_gpu", False)}


@pytest.fixture(params=WAYS)
def together(
    request: pytest.FixtureRequest, table_codec: FrameCodec, monkeypatch: pytest.MonkeyPatch
) -> FrameCodec:
    """A copy of the codec that codes several frames in one of the ways."""
    codec = copy(table_codec)
    codec.predictor = copy(table_codec.predictor)
    monkeypatch.setattr(codec.predictor, *WAYS[request.param])
    return codec


@pytest.mark.parametrize("level", ["full", "fast", "none"])
def test_answers_take_the_place_of_rows(level: str) -> None:
    random = np.random.default_rng(3)
    count, size = 60, len(VOCABULARY)
    frequencies = random.integers(1, 1 << 20, (count, size)).astype(np.int32)
    ranks = random.integers(0, size, count).astype(np.int32)
    questions = questions_of(VOCABULARY)
    starts = np.concatenate([[0], np.cumsum(questions.counts(ranks))])
    answers = answers_of(frequencies, ranks, questions, starts[:-1], int(starts[-1]))
    coded = []
    for given in (frequencies, of_answers(answers, starts)):
        state = new_state(3, 1000, level=LEVELS.get(level))
        coder = TokenEncoder(VOCABULARY, state, mixing=level != "none")
        coded.append(coder.code(given, 0, 3, ranks))
    assert np.array_equal(coded[0][0], coded[1][0])
    assert np.array_equal(coded[0][1], coded[1][1])


@pytest.mark.parametrize("streams", [1, 5, None])
def test_frames(table_codec: FrameCodec, together: FrameCodec, streams: int | None) -> None:
    alone = [table_codec.encode(content, Cut(streams, 40), silent) for content in CONTENTS]
    assert together.encode_together(CONTENTS, 4 * [Cut(streams, 40)], silent) == alone
    assert together.decode_together(alone, silent) == CONTENTS


def test_lookups_are_made_once(together: FrameCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Vocabulary] = []

    def counted(vocabulary: Vocabulary) -> Questions:
        made.append(vocabulary)
        return questions_of(vocabulary)

    monkeypatch.setattr(together, "_lookups", None)
    monkeypatch.setattr(lookups, "questions_of", counted)
    for _ in range(2):
        together.encode_together(CONTENTS, 4 * [Cut(2)], silent)
    assert len(made) == 1


def test_batches_that_fit_into_memory(
    table_codec: FrameCodec, together: FrameCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together.predictor, "most_streams", lambda steps: 2)
    alone = [table_codec.encode(content, Cut(2), silent) for content in CONTENTS]
    assert together.encode_together(CONTENTS, 4 * [Cut(2)], silent) == alone
    assert together.decode_together(alone, silent) == CONTENTS


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (1 << 40, 2)])
def test_frames_wait_for_memory(
    table_codec: FrameCodec, monkeypatch: pytest.MonkeyPatch, limit: int, expected: int
) -> None:
    """As many at a time as there are cores, or one, if all together need more than the limit."""
    codec = copy(table_codec)
    codec.predictor = copy(table_codec.predictor)
    monkeypatch.setattr(codec.predictor, "uses_torch", False)
    monkeypatch.setattr(frame_codec, "MEMORY_LIMIT", limit)
    monkeypatch.setattr(base, "cores", lambda: 2)
    meeting = threading.Barrier(expected, timeout=20)
    encode, active, most = FrameCodec.encode, 0, 0

    def counted(*given: Any, **options: Any) -> Frame:
        nonlocal active, most
        active += 1
        most = max(most, active)
        meeting.wait()
        frame = encode(*given, **options)
        active -= 1
        return frame

    monkeypatch.setattr(FrameCodec, "encode", counted)
    codec.encode_together(CONTENTS, 4 * [Cut(2)], silent)
    assert most == expected


def test_no_more_frames_are_read_ahead_than_one_may_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = written(CONTENT[:1200])
    source = container.Reader(io.BytesIO(archive))
    monkeypatch.setattr(container, "FRAME_LIMIT", 600)
    assert [frame.content_length for frame in source.next_frames(9)] == [300, 300]


def test_progress_is_told_in_full(together: FrameCodec) -> None:
    told: list[tuple[int, int]] = []
    frames = together.encode_together(CONTENTS, 4 * [Cut(3)], lambda *done: told.append(done))
    size, coded = sum(map(len, CONTENTS)), sum(len(frame.payload) for frame in frames)
    assert tuple(map(sum, zip(*told, strict=True))) == (size, coded)
    told.clear()
    together.decode_together(frames, lambda *done: told.append(done))
    assert tuple(map(sum, zip(*told, strict=True))) == (size, coded)


def test_a_damaged_frame_is_noticed(table_codec: FrameCodec, together: FrameCodec) -> None:
    frames = [table_codec.encode(content, Cut(2), silent) for content in CONTENTS[:2]]
    frames[1] = replace(frames[1], payload=frames[1].payload[:8])
    with pytest.raises(CorruptArchive):
        together.decode_together(frames, silent)


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives are read and written three frames at a time."""
    for module in (reader, writer):
        monkeypatch.setattr(module, "frames_together", lambda device: 3)


SETTINGS = options.Options(model="nano", frame_size=300, stream_tokens=16)
CONTENT = PROSE.encode() + bytes(range(256)) + PROSE[:700].encode()


def written(content: bytes = CONTENT) -> bytes:
    sink = io.BytesIO()
    archive = writer.ArchiveWriter(sink, SETTINGS)
    archive.write(content)
    archive.finish()
    return sink.getvalue()


def test_archives(request: pytest.FixtureRequest) -> None:
    plain = {length: written(CONTENT[:length]) for length in (0, 300, 900, 901, len(CONTENT))}
    request.getfixturevalue("three")
    for length, archive in plain.items():
        assert written(CONTENT[:length]) == archive
        assert llmzip.decompress(archive + archive) == 2 * CONTENT[:length]


def test_frames_before_a_damaged_one_are_given(three: None) -> None:
    content = CONTENT[:1700]  # the last frame has 200 bytes
    archive = bytearray(written(content))
    archive[-40] ^= 1  # in the last frame
    found: list[bytes] = []
    with pytest.raises(CorruptArchive):
        for part in reader.ArchiveReader(io.BytesIO(archive)):
            found.append(part)
    assert b"".join(found) == content[:1500]
