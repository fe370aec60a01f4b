"""Any bytes at all, read as an archive: the original or a named error, soon, in bounded memory."""

from __future__ import annotations

import io
import random
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROSE, TINY
from fuzz import model_files, properties
from hypothesis import given
from hypothesis import strategies as st

import llmzip
from llmzip.archive import codecs, container
from llmzip.archive.header import LONGEST_WINDOW, ModelHeader, write_header
from llmzip.coding import stored as stored_module
from llmzip.coding.frame import FRAME_LIMIT, LZMA, MODEL, RAW, Frame
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.stored import store
from llmzip.coding.streams import Cut
from llmzip.exact import MAX_CONTEXT

CORPUS = sorted((Path(__file__).parent / "fuzz" / "corpus").iterdir())
HEADER = ModelHeader(0x12, b"digest", 512, 256)


def mixed(frames: FrameCodec) -> tuple[bytes, bytes]:
    """An archive with a frame of each kind, and two of the model; and its content."""
    text, plain = PROSE[:48].encode(), b"again and again, " * 20
    noise = bytes(range(0, 250, 7))
    stored = store(plain, last=False)
    packed = Frame(LZMA, len(plain), _lzma(plain), last=True)
    sink = io.BytesIO()
    writer = container.Writer(sink, write_header(HEADER))
    writer.write(frames.encode(text, Cut(1), lambda *_: None), text)
    writer.write(Frame(RAW, len(noise), noise), noise)
    writer.write(frames.encode(text, Cut(3), lambda *_: None), text)
    writer.write(stored, plain)
    writer.write(packed, plain)
    return sink.getvalue(), text + noise + text + plain + plain


def _lzma(content: bytes) -> bytes:
    import lzma

    return lzma.compress(content, lzma.FORMAT_RAW, filters=stored_module._LZMA)


def test_every_flip_and_truncation_of_several_frames(table_codec: FrameCodec) -> None:
    """Read in one go, in pieces, and at places here and there."""
    archive, content = mixed(table_codec)
    with properties.any_model(table_codec, checks=True):
        assert properties.whole(archive) == content
        for i in range(len(archive)):
            assert properties.whole(archive[:i]) is None
            if not i % 5:
                assert properties.in_pieces(archive[:i], 50, 1000) is None
                properties.by_seeking_damaged(archive[:i], content)
            for flip in (1 << i % 8, 0xFF):
                damaged = bytearray(archive)
                damaged[i] ^= flip
                found = properties.whole(bytes(damaged))
                # names of models are for people; the profile is for the stand-in to ignore
                assert found in (None, content)
            properties.by_seeking_damaged(bytes(damaged), content)


@given(seed=st.integers(0, 2**32), name=st.sampled_from(CORPUS), checks=st.booleans())
def test_mutations_of_the_corpus(
    table_codec: FrameCodec, seed: int, name: Path, checks: bool
) -> None:
    """What the fuzzer does, in short."""
    chance = random.Random(seed)
    data = bytearray(name.read_bytes())
    for _ in range(chance.randrange(4)):
        at = chance.randrange(1, len(data))
        way = chance.randrange(4)
        if way == 0:
            data[at] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        elif way == 1:
            del data[at : at + chance.randrange(1, 9)]
        elif way == 2:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        else:
            data[at:at] = data[chance.randrange(1, len(data)) :][: chance.randrange(1, 60)]
        if len(data) < 2:
            return
    frames = properties.Short(table_codec.tokens, table_codec.predictor)
    with properties.any_model(frames, checks=checks):
        properties.check(bytes(data))


@pytest.fixture(scope="module")
def model_seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("seeds")
    return {kind: model_files.seed(kind, folder) for kind in model_files.READERS}


@pytest.mark.parametrize("kind", model_files.READERS)
def test_mutations_of_model_files(model_seeds: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    """What the fuzzer of model files does, in short."""
    whole, chance = model_seeds[kind], random.Random(kind)
    assert model_files.check(kind, whole, tmp_path) == ""
    assert model_files.check(kind, whole[: len(whole) // 2], tmp_path)
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):  # most files say at their beginning what they hold
            at = chance.randrange(min(len(data), chance.choice((64, 1024, len(data)))))
            data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        model_files.check(kind, bytes(data), tmp_path)


@given(data=st.binary(min_size=1, max_size=200))
def test_arbitrary_frames(table_codec: FrameCodec, data: bytes) -> None:
    frames = properties.Short(table_codec.tokens, table_codec.predictor)
    with properties.any_model(frames, checks=False):
        properties.check(data[:1] + b"LLMZ\1\0" + data[1:])
        properties.check(data[:1] + b"LLMZ\1\1\x16digest\x38\x30" + data[1:])


def test_few_words_for_many_tokens_are_refused_soon_and_in_bounded_memory(tmp_path: Path) -> None:
    """64 million tokens promised by the words of some 60, all checks in order: not the hours of
    so many steps, and no more memory than docs/format.md states in section 3."""
    header, frames, _ = codecs.codec_for_writing(llmzip.Options(model=str(TINY)))
    words = frames.encode(PROSE[:200].encode(), Cut(1), lambda *_: None).payload
    n = FRAME_LIMIT
    path = tmp_path / "endless.llmz"
    with path.open("wb") as sink:
        writer = container.Writer(sink, write_header(header))
        writer.write(Frame(MODEL, n, words, n, 1, last=True), bytes(n))
    code = (
        "import resource, sys, llmzip\n"
        "try: llmzip.decompress(open(sys.argv[1], 'rb').read(), model=sys.argv[2])\n"
        "except llmzip.CorruptArchive as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(TINY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    message, peak = done.stdout.splitlines()
    assert "too few" in message
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # with torch and all, in KiB
    assert int(peak) < here + (1 << 20)


def test_windows_of_more_tokens_than_attention_is_exact_for_are_refused() -> None:
    """The embedded models' attention slides, so nothing in their files limits a window; tables of
    positions would grow with it."""
    header, frames, _ = codecs.codec_for_writing(llmzip.Options(model="nano"))
    frame = frames.encode(PROSE[:100].encode(), Cut(1), lambda *_: None)

    def archive(window: int) -> bytes:
        sink = io.BytesIO()
        writer = container.Writer(sink, write_header(replace(header, window=window)))
        writer.write(replace(frame, last=True), PROSE[:100].encode())
        return sink.getvalue()

    assert llmzip.decompress(archive(MAX_CONTEXT)) == PROSE[:100].encode()
    for window in (MAX_CONTEXT + (MAX_CONTEXT >> 3), LONGEST_WINDOW):
        with pytest.raises(llmzip.UnsupportedModel, match=f"context of {MAX_CONTEXT} tokens"):
            llmzip.decompress(archive(window))
        with pytest.raises(llmzip.UnsupportedModel, match=f"context of {MAX_CONTEXT} tokens"):
            codecs.codec_for_writing(llmzip.Options(model="nano", context=window))
