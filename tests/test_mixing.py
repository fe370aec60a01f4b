"""Mixing: the kernels are the reference, both directions are one, and it learns at once."""

from __future__ import annotations

import io
from pathlib import Path

import constriction
import numpy as np
import pytest
from conftest import PROSE
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_mixing import ReferenceMixer

import llmzip
from llmzip.coding.prime import Prime
from llmzip.coding.token_coder import TokenDecoder, TokenEncoder
from llmzip.errors import CorruptArchive
from llmzip.mixing import level, state, tables
from llmzip.mixing.bit_history import COUNTS, NEXT_STATE
from llmzip.mixing.vocabulary import Vocabulary
from llmzip.range_coder import Encoder

WORDS = [b"the", b"and", b"12", b"345", b"he", b"a,", b"\n", b", ", b"then", b"abcdefghijklmno"]
SPELLINGS: list[bytes | None] = [bytes([i]) for i in range(256)]
SPELLINGS += [*(word for word in WORDS if len(word) > 1), None, b"the"]
VOCABULARY = Vocabulary(SPELLINGS)
LIKELY = [*WORDS, b"0", b"9", b";", b"x", b"\xe4", b"\xff", b" "]


def _ranks(chosen: list[int]) -> np.ndarray:
    return np.array([VOCABULARY.ranks[SPELLINGS.index(LIKELY[i])] for i in chosen], dtype=np.int32)


def _frequencies(seed: int, count: int) -> np.ndarray:
    """Some even, some steep, with and without ties."""
    chance = np.random.default_rng(seed)
    found = 2.0 ** chance.uniform(0, chance.uniform(0.1, 30, (count, 1)), (count, len(VOCABULARY)))
    found[chance.random(found.shape) < 0.3] = 1
    return np.maximum(found.astype(np.int32), 1)


def _coded(
    frequencies: np.ndarray, ranks: np.ndarray, streams: int, pieces: int = 1, mixing: str = "full"
) -> tuple[np.ndarray, np.ndarray, int]:
    """Bits, probabilities, and the length in bytes; `pieces` tokens a call or all at once."""
    length = int(VOCABULARY.tokens.lengths[ranks].sum())
    encoder = TokenEncoder(VOCABULARY, _state(streams, length, mixing), mixing=mixing != "none")
    step = len(ranks) if pieces == 1 else streams
    made = [
        encoder.code(frequencies[i : i + step], 0, streams, ranks[i : i + step])
        for i in range(0, len(ranks), step)
    ]
    return np.concatenate([m[0] for m in made]), np.concatenate([m[1] for m in made]), length


def _state(streams: int, length: int, mixing: str) -> state.State:
    return state.new_state(streams, length, level=level.LEVELS.get(mixing))


@settings(max_examples=16)
@given(
    chosen=st.lists(st.integers(0, len(LIKELY) - 1), min_size=1, max_size=60),
    streams=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    again=st.integers(0, 3),
    mixing=st.sampled_from(sorted(level.LEVELS)),
)
def test_the_kernels_are_the_reference(
    chosen: list[int], streams: int, seed: int, again: int, mixing: str
) -> None:
    ranks = _ranks(chosen * (again + 1))
    frequencies = _frequencies(seed, len(ranks))
    bits, probabilities, length = _coded(frequencies, ranks, streams, mixing=mixing)
    order = [SPELLINGS[id] or b"" for id in VOCABULARY.ids]
    start = level.initial(level.LEVELS[mixing])
    reference = ReferenceMixer(order, streams, length, start)
    expected = []
    for i, rank in enumerate(ranks.tolist()):
        found, made = reference.code(i % streams, frequencies[i], rank)
        assert found == rank
        expected += made
    assert list(zip(bits.tolist(), probabilities.tolist(), strict=True)) == expected


@pytest.mark.parametrize("mixing", level.LEVELS)
def test_the_kernels_are_the_reference_on_a_longer_text(mixing: str) -> None:
    """Long enough for long matches and for slots that are replaced."""
    chance = np.random.default_rng(1)
    passage = chance.integers(0, len(LIKELY), 150).tolist()
    ranks = _ranks([*passage, *chance.integers(0, len(LIKELY), 300).tolist(), *passage, *passage])
    frequencies = _frequencies(2, len(ranks))
    bits, probabilities, length = _coded(frequencies, ranks, 3, mixing=mixing)
    order = [SPELLINGS[id] or b"" for id in VOCABULARY.ids]
    reference = ReferenceMixer(order, 3, length, level.initial(level.LEVELS[mixing]))
    expected = [
        pair
        for i, rank in enumerate(ranks.tolist())
        for pair in reference.code(i % 3, frequencies[i], rank)[1]
    ]
    assert list(zip(bits.tolist(), probabilities.tolist(), strict=True)) == expected


@settings(max_examples=12)
@given(
    before=st.lists(st.integers(0, len(LIKELY) - 1), min_size=1, max_size=150),
    chosen=st.lists(st.integers(0, len(LIKELY) - 1), min_size=1, max_size=60),
    streams=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_a_primed_state_is_that_of_the_reference(
    before: list[int], chosen: list[int], streams: int, seed: int
) -> None:
    ranks = [_ranks(before), _ranks(chosen + before[:50])]
    frequencies = [_frequencies(seed + i, len(part)) for i, part in enumerate(ranks)]
    lengths = [int(VOCABULARY.tokens.lengths[part].sum()) for part in ranks]
    order = [SPELLINGS[id] or b"" for id in VOCABULARY.ids]
    reference = ReferenceMixer(order, streams, lengths[1], level.initial(), lengths[0])
    for row, rank in zip(frequencies[0], ranks[0].tolist(), strict=True):
        reference.code(0, row, rank)
    reference.end_prime()
    expected = [
        pair
        for i, rank in enumerate(ranks[1].tolist())
        for pair in reference.code(i % streams, frequencies[1][i], rank)[1]
    ]

    def learn(learned: state.State) -> None:
        TokenEncoder(VOCABULARY, learned).code(frequencies[0], 0, 1, ranks[0])

    prime = Prime(bytes(lengths[0]), learn)
    for _ in range(2):  # the second time from the state that was kept
        encoder = TokenEncoder(VOCABULARY, prime.state(streams, lengths[1]))
        bits, probabilities = encoder.code(frequencies[1], 0, streams, ranks[1])
        assert list(zip(bits.tolist(), probabilities.tolist(), strict=True)) == expected


@settings(max_examples=30)
@given(
    chosen=st.lists(st.integers(0, len(LIKELY) - 1), min_size=1, max_size=80),
    streams=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    mixing=st.sampled_from(["full", "fast", "none"]),
)
def test_what_is_coded_is_decoded(chosen: list[int], streams: int, seed: int, mixing: str) -> None:
    ranks = _ranks(chosen)
    frequencies = _frequencies(seed, len(ranks))
    bits, probabilities, length = _coded(frequencies, ranks, streams, mixing=mixing)
    encoder = Encoder()
    encoder.put_bits(bits, probabilities)
    start = _state(streams, length, mixing)
    decoder = TokenDecoder(VOCABULARY, start, encoder.payload(), mixing=mixing != "none")
    found = [
        decoder.code(frequencies[i : i + streams], 0, streams)
        for i in range(0, len(ranks), streams)
    ]
    assert np.array_equal(np.concatenate(found), ranks)


def test_it_does_not_matter_how_many_tokens_a_call_codes() -> None:
    ranks, frequencies = _ranks([*range(len(LIKELY))] * 3), _frequencies(5, 3 * len(LIKELY))
    for a, b in zip(_coded(frequencies, ranks, 3), _coded(frequencies, ranks, 3, 2), strict=True):
        assert np.array_equal(a, b)


def test_without_mixing_a_token_costs_what_its_frequency_says() -> None:
    ranks, frequencies = _ranks([*range(len(LIKELY))]), _frequencies(6, len(LIKELY))
    bits, probabilities, _ = _coded(frequencies, ranks, 1, mixing="none")
    own = np.where(bits > 0, probabilities, 65536.0 - probabilities)
    shares = frequencies[np.arange(len(ranks)), ranks] / frequencies.sum(1, dtype=np.int64)
    assert (16 - np.log2(own)).sum() == pytest.approx(-np.log2(shares).sum(), rel=0.1)


@given(
    probabilities=st.lists(st.integers(1, 65535), min_size=1, max_size=500),
    seed=st.integers(0, 2**32),
    extreme=st.booleans(),
)
def test_the_decoding_loop_is_the_coder_of_constriction(
    probabilities: list[int], seed: int, extreme: bool
) -> None:
    """The compiled decoder reads the words of constriction's encoder, and constriction's decoder
    those decisions."""
    p = np.array(probabilities, dtype=np.uint16)
    if extreme:
        p = np.where(p & 1, np.uint16(1), np.uint16(65535))
    bits = (np.random.default_rng(seed).random(len(p)) * 65536 < p).astype(np.uint8)
    encoder = constriction.stream.queue.RangeEncoder()
    family = constriction.stream.model.Bernoulli(perfect=False)
    encoder.encode(bits.astype(np.int32), family, p / 65536.0)
    words = encoder.get_compressed()
    assert np.array_equal(_decoded(words, p), bits)
    theirs = constriction.stream.queue.RangeDecoder(words)
    assert np.array_equal(theirs.decode(family, p / 65536.0), bits)


def _decoded(words: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    from llmzip.bit_decoder import decode_bit, new_coder
    from llmzip.compiled import compiled

    @compiled
    def decode(coder: np.ndarray, words: np.ndarray, p: np.ndarray, bits: np.ndarray) -> None:
        for i in range(len(p)):
            bits[i] = decode_bit(coder, words, np.int64(p[i]))

    bits = np.zeros(len(probabilities), dtype=np.int8)
    decode(new_coder(words), words, probabilities, bits)
    return bits


def test_too_few_words_are_refused() -> None:
    frequencies = np.ones((100_000, len(VOCABULARY)), dtype=np.int32)
    decoder = TokenDecoder(VOCABULARY, state.new_state(1, 100_000), b"\x01\x02\x03\x04")
    with pytest.raises(CorruptArchive, match="too few"):
        decoder.code(frequencies, 0, 1)


def test_a_vocabulary_is_a_trie() -> None:
    texts = [SPELLINGS[id] or b"" for id in VOCABULARY.ids]
    assert texts == sorted(texts)
    assert len(set(texts)) == len(texts)
    assert VOCABULARY.ranks[SPELLINGS.index(None)] == -1
    # the second "the" is coded as the first
    assert VOCABULARY.ranks[-1] == VOCABULARY.ranks[SPELLINGS.index(b"the")]


def test_bit_histories_are_a_closed_machine() -> None:
    used = COUNTS.sum(1) > 0
    used[0] = True
    assert used[NEXT_STATE[used]].all()
    assert used.sum() < 256
    ones = 0
    for _ in range(50):
        ones = int(NEXT_STATE[ones, 1])
    assert COUNTS[ones].tolist() == [0, COUNTS.max()]
    assert COUNTS[NEXT_STATE[ones, 0], 1] < COUNTS[ones, 1]


def test_tables_are_what_they_say() -> None:
    x = np.arange(-3072, 3072) / 256
    assert np.abs(tables.SQUASH - 65536 / (1 + np.exp(-x))).max() <= 8
    p = (np.arange(4096) + 0.5) / 4096
    assert np.abs(tables.STRETCH / 256 - np.log(p / (1 - p)))[8:-8].max() < 0.02
    assert np.abs(tables.LOG2 / 4096 - np.log2(1 + np.arange(4096) / 4096)).max() < 1 / 2048


@pytest.mark.parametrize("mixing", level.LEVELS)
def test_an_initial_state_is_kept_as_it_is(mixing: str, tmp_path: Path) -> None:
    own = level.LEVELS[mixing]
    copy = own._replace(path=tmp_path / "initial.xz")
    level.save_initial(level.initial(own), copy.path)
    for found, kept in zip(level.initial(copy), level.initial(own), strict=True):
        assert np.array_equal(found, kept)


def test_it_learns_from_other_streams_and_from_itself() -> None:
    text = PROSE.encode()[:4000]
    once = len(llmzip.compress(text, model="nano", streams=1))
    twice = len(llmzip.compress(text + text, model="nano", streams=2))
    assert twice < 1.3 * once


def test_it_learns_at_once() -> None:
    text = PROSE.encode()[:1400]
    assert _archived(text, "full") <= 1.01 * _archived(text, "none")


def _archived(text: bytes, mixing: str) -> int:
    sink = io.BytesIO()
    writer = llmzip.ArchiveWriter(sink, llmzip.Options(model="nano", mixing=mixing))
    writer.write(text)
    writer.finish()
    return len(sink.getvalue())
