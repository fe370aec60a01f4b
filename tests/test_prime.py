"""A prime: what encoder and decoder both have makes records smaller, and is needed to decode."""

from __future__ import annotations

import gc
import hashlib
import io
import json
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import PROSE, TINY, run
from hypothesis import given
from hypothesis import strategies as st
from table_predictor import joined

import llmzip
from llmzip import Options, models
from llmzip.archive.options import PRIME_LIMIT
from llmzip.archive.recovery import Damage, Recovered, recover
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.prime import Prime
from llmzip.coding.streams import Cut
from llmzip.errors import CorruptArchive, LlmzipError, WrongPrime
from llmzip.inference import Context, build
from llmzip.mixing.state import State

PRIME = "".join(f'{{"id": {i}, "name": "Elizabeth", "estate": "Pemberley"}}\n' for i in range(40))
RECORD = b'{"id": 77, "name": "Darcy", "estate": "Pemberley"}\n'
PRIMED = Options(model="nano", prime=PRIME.encode())
TEXT = PROSE.encode()
IDS = torch.randint(0, 300, (3, 90), generator=torch.Generator().manual_seed(3))


def _silent(content: int, coded: int) -> None:
    pass


def compressed(content: bytes, options: Options) -> bytes:
    sink = io.BytesIO()
    writer = llmzip.ArchiveWriter(sink, options)
    writer.write(content)
    writer.finish()
    return sink.getvalue()


def test_a_primed_record_is_much_smaller() -> None:
    primed = llmzip.compress(RECORD, model="nano", prime=PRIMED.prime)
    assert 1.5 * len(primed) < len(llmzip.compress(RECORD, model="nano"))
    assert primed[:4] == b"LLMp"
    assert llmzip.decompress(primed, prime=PRIMED.prime) == RECORD


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("mixing", ["full", "fast", "none"])
@pytest.mark.parametrize("context", [(64, 32), (64, 0), (32, 30), None])
def test_round_trip(streams: int, mixing: bool, context: tuple[int, int] | None) -> None:
    """With windows that restart within the prefix, within the content, and never."""
    options = Options(
        model=str(TINY), prime=TEXT[:500], streams=streams, mixing=mixing, context=context
    )
    archive = compressed(TEXT[300:], options)
    assert archive[5] & 16
    with pytest.raises(WrongPrime):  # so there is a model frame
        llmzip.decompress(archive, model=str(TINY))
    reader = llmzip.ArchiveReader(io.BytesIO(archive), Options(model=str(TINY), prime=TEXT[:500]))
    assert b"".join(reader) == TEXT[300:]


@given(
    prime=st.binary(min_size=1, max_size=300),
    contents=st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=3),
    streams=st.integers(1, 5),
)
def test_any_bytes(
    table_codec: FrameCodec, prime: bytes, contents: list[bytes], streams: int
) -> None:
    """Frames of several lengths share a state, and each begins with it anew."""
    primed = table_codec.primed(prime)
    frames = [primed.encode(content, Cut(streams), _silent) for content in contents]
    assert [primed.decode(frame, _silent) for frame in frames] == contents
    assert primed.encode(contents[0], Cut(streams), _silent) == frames[0]


@pytest.mark.parametrize("activations", ["a8", "a16"])
@pytest.mark.parametrize("length", [1, 5, 20])
@pytest.mark.parametrize("context", [Context(128, 64), Context(32, 20)], ids=str)
def test_streams_after_a_prefix_continue_it(
    activations: str, length: int, context: Context
) -> None:
    """The logits are those of the same tokens in one stream that began with the prefix."""
    model = build(models.load(str(TINY)), activations=activations, context=context)
    prefix = IDS[0, :length]
    after = IDS[:, length:]
    whole = torch.cat([prefix.repeat(3, 1), after], 1)
    expected = joined(model.run(*whole.shape).score(whole))[length:]
    for streams in (3, 1):
        ids = after[:streams]
        scored = joined(model.run(*ids.shape, prefix).score(ids))
        assert torch.equal(scored, expected[:, :streams])
        stepping = model.run(*ids.shape, prefix)
        assert torch.equal(torch.as_tensor(stepping.first()), expected[0, :streams])
        for t in range(ids.shape[1] - 1):
            step = torch.as_tensor(stepping.step(ids[:, t]))
            assert torch.equal(step, expected[t + 1, :streams])


def test_only_the_last_prime_is_kept(table_codec: FrameCodec) -> None:
    first = weakref.ref(table_codec.primed(b"one"))
    assert first() is table_codec.primed(b"one")
    last = table_codec.primed(b"another")
    gc.collect()
    assert first() is None
    assert last is table_codec.primed(b"another")


def test_threads_learn_a_prime_once() -> None:
    learned = []

    def learn(state: State) -> None:
        learned.append(state)
        time.sleep(0.1)  # meanwhile the others ask

    prime = Prime(b"text", learn)
    with ThreadPoolExecutor(4) as pool:
        states = list(pool.map(lambda _: prime.state(1, 100), range(4)))
    assert len(learned) == 1
    assert len({id(state) for state in states}) == 4


def test_another_prime_or_none_is_refused() -> None:
    short = compressed(RECORD, PRIMED)
    full = compressed(RECORD, Options(model="nano", prime=PRIMED.prime, context=(64, 32)))
    for archive, digits in ((short, 4), (full, 16)):
        with pytest.raises(WrongPrime, match=f"prime of digest [0-9a-f]{{{digits}}}….*--prime"):
            llmzip.decompress(archive)
        with pytest.raises(WrongPrime, match="but the one that --prime names has"):
            llmzip.decompress(archive, prime=b"another")
        with pytest.raises(WrongPrime):
            list(recover(io.BytesIO(archive), Options(), _silent))


def test_a_digest_that_was_changed_does_not_let_another_prime_pass() -> None:
    archive = bytearray(compressed(RECORD, PRIMED))
    archive[5:7] = compressed(RECORD, Options(model="nano", prime=b"another, " * 9))[5:7]
    with pytest.raises(CorruptArchive):
        llmzip.decompress(bytes(archive), prime=b"another, " * 9)


def test_every_flip_and_truncation_is_noticed() -> None:
    archive = compressed(RECORD, PRIMED)
    for i in range(len(archive)):
        damaged = bytearray(archive)
        damaged[i] ^= 1 << i % 8
        for data in (bytes(damaged), archive[:i]):
            with pytest.raises(LlmzipError):
                llmzip.decompress(data, prime=PRIMED.prime)


def test_an_archive_that_needs_no_prime_ignores_it() -> None:
    for content in (RECORD, b"", bytes(range(256))):
        archive = llmzip.compress(content, model="nano")
        assert llmzip.decompress(archive, prime=b"something") == content


def test_stored_content_needs_no_prime() -> None:
    noise = hashlib.blake2b(b"noise").digest()
    assert llmzip.decompress(compressed(noise, PRIMED)) == noise


@pytest.mark.parametrize("prime", [b"", bytes(PRIME_LIMIT + 1)])
def test_a_prime_has_1_to_2_20_bytes(prime: bytes) -> None:
    with pytest.raises(LlmzipError, match=f"a prime of {len(prime)} bytes; 1 to 1048576 are"):
        Options(prime=prime)


def test_a_prime_is_bytes() -> None:
    with pytest.raises(TypeError, match="prime is 'text'; it must be bytes or None"):
        Options(prime="text")  # type: ignore[arg-type]


def test_concatenated_archives_and_damage() -> None:
    """With and without a prime, short and full; one of them is damaged."""
    several = Options(model="nano", prime=PRIMED.prime, context=(64, 32), frame_size=60)
    parts = [
        (compressed(RECORD, PRIMED), RECORD),
        (compressed(RECORD * 3, several), RECORD * 3),
        (llmzip.compress(RECORD, model="nano"), RECORD),
        (compressed(RECORD * 2, PRIMED), RECORD * 2),
    ]
    whole = b"".join(archive for archive, _ in parts)
    assert llmzip.decompress(whole, prime=PRIMED.prime) == RECORD * 7
    with llmzip.open(io.BytesIO(whole), options=PRIMED) as file:
        file.seek(5 * len(RECORD))
        assert file.read() == RECORD * 2
    damaged = bytearray(whole)
    damaged[len(parts[0][0]) + 30] ^= 1  # in the first frame of the second archive
    found = list(recover(io.BytesIO(damaged), PRIMED, _silent))
    assert sum(isinstance(part, Damage) for part in found) == 1
    intact = b"".join(part.content for part in found if isinstance(part, Recovered))
    assert intact == RECORD + (RECORD * 3)[60:] + RECORD * 3


def test_the_command_line(tmp_path: Path) -> None:
    prime, text = tmp_path / "sample.log", tmp_path / "record.log"
    prime.write_bytes(PRIMED.prime or b"")
    text.write_bytes(RECORD)
    archive = tmp_path / "record.log.llmz"
    done = run("compress", "--model", "nano", "--prime", prime, text)
    assert (done.returncode, done.stderr) == (0, b"")
    assert archive.read_bytes() == compressed(RECORD, PRIMED)
    digest = archive.read_bytes()[5:7].hex()

    missing = run("-dc", archive)
    assert missing.returncode == 1
    assert missing.stderr.decode() == (
        f"llmzip: {archive}: the archive was written with a prime of digest {digest}…: "
        "name it with --prime\n"
    )
    assert run("-dc", "--prime", prime, archive).stdout == RECORD
    tested = run("test", "--workers", "2", "--prime", prime, archive)
    assert (tested.returncode, tested.stdout.decode()) == (
        0,
        f"{archive}: ok, {len(RECORD)} bytes\n",
    )
    assert f"(needs --prime {digest}…)" in run("list", archive).stdout.decode()
    assert f", prime {digest}…\n" in run("info", archive).stdout.decode()
    described = json.loads(run("list", "--json", archive).stdout)
    assert described[0]["archives"][0]["model"]["prime"] == digest

    absent = run("-dc", "--prime", tmp_path / "none", archive)
    assert absent.returncode == 2
    assert b"none: No such file or directory" in absent.stderr
    prime.write_bytes(bytes(PRIME_LIMIT + 1))
    assert b"longer than 1048576 bytes" in run("-dc", "--prime", prime, archive).stderr
