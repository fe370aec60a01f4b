"""Tokens ↔ binary decisions: the walk through the trie, one function for both directions.

While encoding, decisions and their probabilities are noted, for the entropy coder to encode in
bulk; while decoding, each is asked of a copy of that coder (`decode_bit`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmzip.bit_decoder import decode_bit
from llmzip.compiled import compiled_in_place, inlined_in_place
from llmzip.mixing import mixer
from llmzip.mixing.contexts import (
    CONTEXTS,
    hash_bytes,
    hash_few,
    hash_tokens,
)
from llmzip.mixing.distribution import (
    ANSWER_BITS,
    BLOCK,
    Distributions,
    likeliest,
    logit,
    sum_before,
    sum_blocks,
)
from llmzip.mixing.history import (
    LAST8,
    MATCH,
    MATCH_LENGTH,
    MATCH_STREAM,
    MISSES,
    POSITION,
    TOKEN,
    TOKEN_BEFORE,
    History,
    observe,
)
from llmzip.mixing.level import SET_STARTS, STEPS, Level
from llmzip.mixing.slots import (
    Lookup,
    find_first,
    find_next,
    history_place,
    learn_byte,
    new_lookup,
)
from llmzip.mixing.state import BY_BYTE, Learned
from llmzip.mixing.vocabulary import SortedTokens, byte_at, first_from

_SET1, _SET2, _SET3, _SET4 = SET_STARTS[1:]
_FREQUENCY = (1 << ANSWER_BITS) - 1
_SURE = 11  # classes of how sure the language model is of its likeliest byte


class Decisions(NamedTuple):
    """What was decided; `made` of them."""

    bits: np.ndarray  # uint8 [N]
    probabilities: np.ndarray  # uint16 [N]: of a one, 16 bits
    made: np.ndarray  # int64 [1]


class Scratch(NamedTuple):
    """Arrays that one call needs."""

    sums: np.ndarray
    most: np.ndarray
    lookup: Lookup
    inputs: np.ndarray
    chosen: np.ndarray
    logits: np.ndarray


def new_scratch(ranks: int, level: Level) -> Scratch:
    """For a vocabulary of so many ranks."""
    blocks = -(-ranks // BLOCK)
    return Scratch(
        np.zeros((1, blocks + 1), dtype=np.int64),
        np.zeros((1, blocks), dtype=np.int32),
        new_lookup(level.contexts),
        np.zeros(level.inputs, dtype=np.int32),
        np.zeros(len(SET_STARTS), dtype=np.int64),
        np.zeros(level.sets, dtype=np.int32),
    )


@compiled_in_place
def code_rows(
    decoding: bool,
    mixing: bool,
    tokens: SortedTokens,
    history: History,
    learned: Learned,
    scratch: Scratch,
    given: Distributions,
    summed: bool,
    first_stream: int,
    streams: int,
    ranks: np.ndarray,
    decisions: Decisions,
    coder: np.ndarray,
    words: np.ndarray,
) -> bool:
    """One token after the other: k of them, whose distributions are given, of the streams
    first_stream … first_stream + streams - 1 in turn. Encodes int32 ranks [k] into decisions, or
    decodes them by coder and words; False where the words make no sense. Unless frequencies are
    `summed`, the sums given have room for those of one token."""
    answered = len(given.starts) > 0
    for row in range(len(ranks)):
        s = first_stream + row % streams
        frequencies = given.frequencies[0 if answered else row]
        sums, most = given.sums[row if summed else 0], given.most[row if summed else 0]
        if not answered and not summed:
            sum_blocks(frequencies, sums, most)
        rank = _code_token(
            decoding, mixing, answered, tokens, history, learned, scratch, frequencies, sums, most,
            given.answers, given.starts[row] if answered else np.int64(0), s,
            np.int64(ranks[row]), decisions, coder, words,
        )  # fmt: skip
        if rank < 0:
            return False
        ranks[row] = rank
    return True


@inlined_in_place
def _code_token(
    decoding: bool,
    mixing: bool,
    answered: bool,
    tokens: SortedTokens,
    history: History,
    learned: Learned,
    scratch: Scratch,
    frequencies: np.ndarray,
    sums: np.ndarray,
    most: np.ndarray,
    answers: np.ndarray,
    asked: int,
    s: int,
    rank: int,
    decisions: Decisions,
    coder: np.ndarray,
    words: np.ndarray,
) -> int:
    """The rank of the next token of stream `s`; -1 where the words make no sense. Its distribution
    is that of `frequencies`, or known by the `answers` from the place `asked` on to all that is
    asked here, in this order."""
    counters = history.counters
    # the tokens low … high - 1 are possible; they agree in `depth` bytes
    # numba takes a plain 0 for a type of its own first, and compiles what it is given to twice
    low, high, depth = np.int64(0), np.int64(len(tokens.lengths)), np.int64(0)
    # sums of frequencies below low, high
    below, upto = np.int64(0), answers[asked] if answered else sums[len(most)]
    asked += 1
    best, full = np.int64(-1), len(scratch.lookup.hashes) == CONTEXTS
    while True:
        ends = depth > 0 and tokens.lengths[low] == depth
        inner = low + 1 if ends else low  # the first token that goes on
        if inner == high:
            break
        sure = 0
        frequency = np.int64(0)
        if answered:
            best, frequency = answers[asked] >> ANSWER_BITS, answers[asked] & _FREQUENCY
            asked += 1
        if mixing and not full:
            hash_few(history, s, scratch.lookup.hashes)
        elif mixing:
            if not answered:
                if best < inner or best >= high:
                    best = likeliest(frequencies, most, inner, high)
                frequency = np.int64(frequencies[best])
            odds = logit(frequency, max(upto - below - frequency, 1))
            sure = min(max((odds + 1024) >> 8, 0), _SURE)
            hash_bytes(history, s, scratch.lookup.hashes)
            hash_tokens(
                history, s, low, depth, byte_at(tokens, best, depth), sure, scratch.lookup.hashes
            )
        # of the byte: value_low … value_high - 1 are possible; `part` holds its known bits
        value_low, value_high, part = np.int64(0), np.int64(256), np.int64(1)
        ended = False
        for step in range(STEPS):
            # the slots of the flag and the first bits are found with whichever comes first
            if mixing and step == (0 if ends else 1):
                find_first(learned.slots, scratch.lookup)
            elif mixing and (step == 3 or step == 6):
                find_next(learned.slots, scratch.lookup, step, part)
            if step == 0:
                if not ends:
                    continue
                middle = inner
                split = answers[asked] if answered else below + frequencies[low]
                one, zero = split - below, upto - split
            else:
                value = (value_low + value_high) >> 1
                middle = first_from(tokens, inner, high, depth, value)
                if middle in (inner, high):  # one outcome is possible
                    part = part * 2 + (1 if middle == inner else 0)
                    if middle == inner:
                        value_low = value
                    else:
                        value_high = value
                    continue
                split = answers[asked] if answered else sum_before(frequencies, sums, middle)
                one, zero = upto - split, split - below
            asked += 1
            bit = _code_decision(
                decoding, mixing, history, learned, scratch, s, step, part, min(depth, 3), sure,
                one, zero,
                (1 if rank == low else 0) if step == 0 else (1 if rank >= middle else 0),
                decisions, coder, words,
            )  # fmt: skip
            if bit < 0:
                return -1
            if step == 0:
                if bit:
                    ended = True
                    break
                below = split
            elif bit:
                value_low, inner, below, part = value, middle, split, part * 2 + 1
            else:
                value_high, high, upto, part = value, middle, split, part * 2
        if ended:
            break
        low, depth = inner, depth + 1
        if mixing:
            learn_byte(learned.slots, scratch.lookup, value_low)
            observe(history, s, value_low, full)
    if not mixing:
        return low
    history.ends[s, (counters[s, POSITION] - 1) & (history.ends.shape[1] - 1)] = 1
    counters[s, TOKEN_BEFORE], counters[s, TOKEN] = counters[s, TOKEN], low
    return low


@inlined_in_place
def _code_decision(
    decoding: bool,
    mixing: bool,
    history: History,
    learned: Learned,
    scratch: Scratch,
    s: int,
    step: int,
    part: int,
    depth: int,
    sure: int,
    one: int,
    zero: int,
    bit: int,
    decisions: Decisions,
    coder: np.ndarray,
    words: np.ndarray,
) -> int:
    """One decision: its probability, its outcome (`bit`, if that is known), what it teaches."""
    inputs, chosen, logits = scratch.inputs, scratch.chosen, scratch.logits
    flag = 1 if step == 0 else 0
    place = history_place(step, part)
    final_set = by_byte = by_match = mixed = state = 0
    expected = -1
    if mixing:
        expected, state = _expected(history, s, step, part)
        last = np.int64(history.hashes[s, LAST8] & np.uint64(255))
        bits = 0 if flag else part
        by_byte, by_match = last * 257 + bits, BY_BYTE + state * 3 + expected + 1
        mixer.fetch_refined(learned, by_byte)
        model = logit(one, zero)
        mixer.context_inputs(learned, scratch.lookup.slots, place, flag << 8, inputs)
        mixer.match_inputs(np.int64(learned.match[state, flag]), expected, inputs)
        mixer.model_input(model, inputs)
        chosen[0] = state
        chosen[1] = _SET1 + min(abs(model) >> 8, 11) + 12 * flag + 24 * min(sure >> 2, 3)
        chosen[2] = _SET2 + bits
        chosen[3] = _SET3 + depth * STEPS + step
        chosen[4] = _SET4 + last
        final_set = state * STEPS + step
        mixed = mixer.mix(learned, chosen, final_set, inputs, logits)
        probability = mixer.refine(learned, by_byte, by_match, mixed)
    else:
        probability = min(max((one << 16) // (one + zero), 1), 65535)
    if decoding:
        bit = decode_bit(coder, words, probability)
        if bit < 0:
            return -1
    else:
        at = decisions.made[0]
        decisions.bits[at], decisions.probabilities[at] = bit, probability
        decisions.made[0] = at + 1
    if not mixing:
        return bit
    mixer.learn_weights(learned, chosen, final_set, inputs, logits, mixed, bit)
    mixer.learn_refined(learned, by_byte, by_match, mixed, bit)
    mixer.learn_contexts(learned, scratch.lookup.slots, place, flag << 8, bit)
    if expected >= 0:
        mixer.learn_match(learned, state, flag, expected == bit)
    return bit


@inlined_in_place
def _expected(history: History, s: int, step: int, part: int) -> tuple[int, int]:
    """The bit that the match of stream `s` expects, or -1, and the state of the match."""
    counters = history.counters
    match = counters[s, MATCH]
    if match < 0:
        return -1, 0
    stream, mask = counters[s, MATCH_STREAM], history.ring.shape[1] - 1
    if step == 0:
        expected = np.int64(history.ends[stream, (match - 1) & mask])
    else:
        byte = np.int64(history.ring[stream, match & mask])
        if (byte + 256) >> (9 - step) != part:
            return -1, 0
        expected = (byte >> (8 - step)) & 1
    length = counters[s, MATCH_LENGTH]
    size = length if length < 16 else min(16 + (length >> 3), 31)
    return expected, 1 + size + 32 * min(counters[s, MISSES], 3)
