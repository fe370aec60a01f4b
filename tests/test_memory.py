"""The memory learns what repeats itself, remembers the same on both sides, and costs little."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
from conftest import PROSE, TINY
from hypothesis import given
from hypothesis import strategies as st

import llmzip
from llmzip.archive import codecs, container
from llmzip.archive.options import Options
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.streams import deal
from llmzip.mixing import (
    CANDIDATES,
    SOURCES,
    Mixer,
    Recall,
    blank,
    kinds,
    place_in_columns,
    place_in_rows,
    prior,
    tables,
)
from llmzip.mixing.recall import STATES

BYTES: list[bytes | None] = [bytes([value]) for value in range(256)]
KINDS = kinds([b"a", b"1", b"\n", *[b"b"] * 97])


def _recalled(table: np.ndarray, last: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Step by step, as a decoder does."""
    steps, streams = table.shape
    recall = Recall(streams, steps, KINDS)
    found = []
    for step in range(steps):
        candidates = np.zeros((streams, CANDIDATES), dtype=np.int32)
        evidence = np.zeros((streams, CANDIDATES, SOURCES), dtype=np.uint8)
        recall.recall(candidates, evidence)
        recall.observe(table[step, : last if step == steps - 1 else streams])
        found.append((candidates, evidence))
    return found


@given(
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=200),
    streams=st.integers(1, 7),
)
def test_recalling_all_is_recalling_step_by_step(ids: list[int], streams: int) -> None:
    table, last = deal(np.array(ids, dtype=np.int32), min(streams, len(ids)))
    candidates, evidence = Recall(table.shape[1], len(table), KINDS).recall_all(table, last)
    for step, (c, e) in enumerate(_recalled(table, last)):
        known = c >= 0
        assert np.array_equal(candidates[step], c)
        assert np.array_equal(evidence[step][known], e[known])
        assert e[known].max(initial=0) < STATES
        for row in c:
            row = row[row >= 0]
            assert len(set(row.tolist())) == len(row)


def test_what_came_before_is_recalled_in_any_stream() -> None:
    text = np.arange(40, dtype=np.int32)
    table = np.stack([np.r_[text, text], np.r_[text[20:], text, text[:20]]], 1).astype(np.int32)
    found = _recalled(table, 2)
    first = [candidates[0, 0] for candidates, _ in found[41:60]]
    assert first == list(range(1, 20))  # the stream's own past
    other = [candidates[0, 0] for candidates, _ in found[21:39]]
    assert other == list(range(21, 39))  # what the other stream has said


def test_a_context_prefers_what_came_last() -> None:
    ids = np.array([1, 2, 9, 1, 3, 8, 1, 0], dtype=np.int32)[:, None]
    candidates, _ = _recalled(ids, 1)[-1]
    assert candidates[0, :3].tolist() == [3, 2, -1]


def _weights(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    within = chance.integers(1, 1 << 30, (n, 9, 16)).astype(np.float64)
    candidates = np.argsort(chance.random((n, 9 * 16)), 1)[:, :CANDIDATES].astype(np.int32)
    candidates[:, 10:] = -1
    return (
        within,
        candidates,
        np.take_along_axis(within.reshape(n, -1), np.maximum(candidates, 0), 1),
    )


def test_weights_stand_in_their_rows_and_columns() -> None:
    within, candidates, known = _weights(5, 1)
    rows = within.sum(2)
    weights = np.where(candidates >= 0, np.arange(1.0, CANDIDATES + 1), 1)
    place_in_rows(rows, candidates, known, weights, 16)
    expected = within.copy()
    for s in range(5):
        for j in range(10):
            expected[s, candidates[s, j] // 16, candidates[s, j] % 16] = weights[s, j]
    assert np.array_equal(rows, expected.sum(2))
    for row in range(9):
        columns = within[:, row].copy()
        place_in_columns(columns, np.full(5, row, dtype=np.int32), candidates, weights)
        assert np.array_equal(columns, expected[:, row])


def test_the_mixer_learns_whom_to_trust() -> None:
    """A source that is always right, one that is always wrong."""
    mixer = Mixer(1, blank())
    candidates = np.full((1, CANDIDATES), -1, dtype=np.int32)
    candidates[0, :2] = 7, 8
    evidence = np.zeros((1, CANDIDATES, SOURCES), dtype=np.uint8)
    evidence[0, 0, 2], evidence[0, 1, 1] = 20, 20
    known, total = np.full((1, CANDIDATES), 1000.0), np.array([1e6])
    shares = []
    for _ in range(200):
        weights = mixer.mix(candidates, evidence, known, total)
        rest = total[0] - 2000
        shares.append(weights[0, :2] / (weights[0, :2].sum() + rest))
        mixer.learn(candidates, evidence, np.array([8], dtype=np.int32))
    assert shares[-1][1] > 0.95
    assert shares[-1][0] < 0.03
    assert shares[-1][1] > shares[0][1]


@pytest.mark.parametrize("value", [0.0, 1.0, 2.0**30, 2.0**43])
def test_extreme_weights(value: float) -> None:
    mixer = Mixer(3, prior())
    within, candidates, _ = _weights(3, 2)
    evidence = np.full((3, CANDIDATES, SOURCES), STATES - 1, dtype=np.uint8)
    known = np.full((3, CANDIDATES), max(1.0, value))
    for _ in range(300):
        total = known[:, :10].sum(1) + 1
        weights = mixer.mix(candidates, evidence, known, total)
        assert np.isfinite(weights).all()
        assert weights.min() >= 1
        mixer.learn(candidates, evidence, candidates[:, 0])
    del within


def test_tables() -> None:
    x = (np.arange(6144) - 3072) / 256
    assert np.abs(tables.SQUASH - np.clip(65536 / (1 + np.exp(-x)), 8, 65528)).max() <= 0.5001
    assert np.abs(tables.LOG2 - 4096 * np.log2(1 + np.arange(4096) / 4096)).max() < 2
    assert (np.diff(tables.STRETCH) >= 0).all()
    digest = hashlib.sha256()
    for table in (tables.SQUASH, tables.STRETCH, tables.LOG2, tables.SHARES):
        digest.update(np.ascontiguousarray(table, dtype="<i8").tobytes())
    assert digest.hexdigest()[:16] == "41f80ed4182e24b0"


REPEATED = b"".join(
    b"%d: the value of item %d is %d\n" % (i, i * 7 % 90, i * i % 97) for i in range(300)
)


def _size(content: bytes, **options: object) -> int:
    frame_codec = codecs.codec_for_writing(Options(model=str(TINY), **options))[1]  # type: ignore[arg-type]
    frame = frame_codec.encode(content, None, lambda *_: None)
    assert frame_codec.decode(frame, lambda *_: None) == content
    return len(frame.payload)


def test_what_repeats_itself_shrinks() -> None:
    assert _size(REPEATED) < 0.4 * _size(REPEATED, memory=False)


def test_small_texts_lose_nothing_to_speak_of() -> None:
    for length in (50, 200, 800):
        content = PROSE.encode()[:length]
        assert _size(content) <= _size(content, memory=False) * 1.01 + 2


@given(content=st.binary(min_size=1, max_size=300), streams=st.integers(1, 9))
def test_any_bytes_with_and_without(table_codec: FrameCodec, content: bytes, streams: int) -> None:
    for memory in (False, True):
        frame_codec = FrameCodec(table_codec.tokens, table_codec.predictor, memory=memory)
        frame = frame_codec.encode(content * 2, streams, lambda *_: None)
        assert frame_codec.decode(frame, lambda *_: None) == content * 2


def test_the_header_names_the_version() -> None:
    for memory, version in ((True, 1), (False, 0)):
        sink = io.BytesIO()
        writer = llmzip.ArchiveWriter(sink, Options(model=str(TINY), memory=memory))
        writer.write(PROSE.encode())
        writer.finish()
        header = container.Reader(io.BytesIO(sink.getvalue())).model
        assert header is not None
        assert header.profile == 1 | version << 4
        data = bytearray(sink.getvalue())
        data[6] = 1 | 9 << 4
        with pytest.raises(llmzip.UnsupportedArchive, match="memory"):
            llmzip.decompress(bytes(data), model=str(TINY))


def test_compiled_and_interpreted_remember_the_same() -> None:
    """The kernels as plain Python: no compiler's liberty is in the result."""
    code = (
        "import sys; sys.path.insert(0, 'tests'); import test_memory as t; "
        "sys.stdout.buffer.write(t._trace())"
    )
    from pathlib import Path

    root = Path(__file__).parent.parent
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        cwd=root,
        env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTHONPATH": str(root)},
    )
    assert done.returncode == 0, done.stderr.decode()[-500:]
    assert done.stdout == _trace()


def _trace() -> bytes:
    """A digest of all that memory computes over a short text in three streams."""
    ids = np.frombuffer(REPEATED[:600], dtype=np.uint8).astype(np.int32)
    table, last = deal(ids, 3)
    candidates, evidence = Recall(3, len(table), kinds(BYTES)).recall_all(table, last)
    mixer, digest = Mixer(3, prior()), hashlib.sha256()
    chance = np.random.default_rng(4)
    for step in range(len(table)):
        known = chance.integers(1, 1 << 30, candidates[step].shape).astype(np.float64)
        total = known.sum(1) + chance.integers(1, 1 << 34, 3)
        digest.update(candidates[step].tobytes() + evidence[step].tobytes())
        digest.update(mixer.mix(candidates[step], evidence[step], known, total).tobytes())
        mixer.learn(candidates[step], evidence[step], table[step])
    return digest.digest()
