"""Inputs → the probability of a decision, and what is learned from its outcome.

Two layers, as in paq8: each of several sets of weights, chosen by a context of its own, makes a
logit of the inputs; a second layer mixes these. The result is refined by what came of like
predictions. Inputs are the logits of adaptive probabilities, and the same probabilities around ½.
"""

from __future__ import annotations

import numpy as np

from llmzip.compiled import address, inlined_in_place, prefetch
from llmzip.mixing.bit_history import NEXT_STATE, SCALE_SHIFT
from llmzip.mixing.inner_product import inner_product
from llmzip.mixing.state import REFINED_KNOTS, Learned
from llmzip.mixing.tables import LOGIT_LIMIT, SHARES, SQUASH, STRETCH

_MOST_WEIGHT = np.int32((1 << 19) - 1)  # times a logit is less than 2^31
_CONSTANT = 77
_RATE, _FINAL_RATE, _REFINING_RATE, _MATCH_RATE = 16, 2, 20, 7
_MOST_SEEN = 250  # observations that a probability remembers
_HALF = np.int32(1 << 15)


@inlined_in_place
def context_inputs(
    learned: Learned, found: np.ndarray, place: int, flag: int, inputs: np.ndarray
) -> None:
    """From the bit histories at `place` of the slots `found`; 0 from those that saw nothing."""
    slots, maps = learned.slots, learned.maps
    contexts = len(maps)
    for i in range(contexts):
        state = np.int64(slots[found[i] + place])
        probability = np.int32(maps[i, state + flag] >> np.uint32(20))
        if state == 0:
            inputs[i], inputs[contexts + i] = 0, 0
        else:
            inputs[i] = STRETCH[probability]
            inputs[contexts + i] = (probability - 2048) >> SCALE_SHIFT[state]


@inlined_in_place
def match_inputs(probability: int, expected: int, inputs: np.ndarray) -> None:
    """From the probability, 22 bits, that the match is right to expect this bit; -1: none."""
    first = len(inputs) - 4
    if expected < 0:
        inputs[first], inputs[first + 1] = 0, 0
        return
    high = probability >> 10
    sign = 1 if expected else -1
    inputs[first] = sign * STRETCH[high]
    inputs[first + 1] = sign * ((high - 2048) >> 2)


@inlined_in_place
def mix(
    learned: Learned, chosen: np.ndarray, final_set: int, inputs: np.ndarray, logits: np.ndarray
) -> int:
    """The logit of the second layer; those of the first into int32 logits [k]. `chosen` are the
    sets of weights, int64, of which the first k count."""
    start, size = address(learned.weights), len(inputs)
    total = np.int64(0)
    for k in range(len(logits)):
        product = inner_product(start + chosen[k] * 4 * size, address(inputs), size)
        logits[k] = min(max(product >> 8, -LOGIT_LIMIT), LOGIT_LIMIT)
        total += np.int64(learned.final[final_set, k]) * logits[k]
    return min(max(total >> 16, -LOGIT_LIMIT), LOGIT_LIMIT)


@inlined_in_place
def fetch_refined(learned: Learned, row: int) -> None:
    """Into the cache: the table is large, and `refine` comes last."""
    first = address(learned.refined) + row * 2 * REFINED_KNOTS
    prefetch(first)
    prefetch(first + 2 * REFINED_KNOTS - 1)


@inlined_in_place
def refine(learned: Learned, by_byte: int, by_match: int, logit: int) -> int:
    """The final probability of a one, 16 bits, 1 … 65535."""
    refined = learned.refined
    knot, part = (logit + LOGIT_LIMIT + 1) >> 8, (logit + LOGIT_LIMIT + 1) & 255
    first = np.int64(refined[by_byte, knot]) * (256 - part)
    first += np.int64(refined[by_byte, knot + 1]) * part
    second = np.int64(refined[by_match, knot]) * (256 - part)
    second += np.int64(refined[by_match, knot + 1]) * part
    mixed = np.int64(SQUASH[logit + LOGIT_LIMIT + 1])
    return min(max((2 * mixed + (first >> 8) + (second >> 8) + 2) >> 2, 1), 65535)


@inlined_in_place
def learn_weights(
    learned: Learned,
    chosen: np.ndarray,
    final_set: int,
    inputs: np.ndarray,
    logits: np.ndarray,
    logit: int,
    bit: int,
) -> None:
    """Each set by its own error, the second layer by the error of the whole."""
    weights, final = learned.weights, learned.final
    target = bit << 16
    error = target - SQUASH[logit + LOGIT_LIMIT + 1]
    for k in range(len(logits)):
        final[final_set, k] += (logits[k] * error * _FINAL_RATE + (1 << 19)) >> 20
        own = np.int32((target - SQUASH[logits[k] + LOGIT_LIMIT + 1]) * _RATE >> 4)
        row = chosen[k]
        for i in range(len(inputs)):
            step = np.int32(np.int32(np.int32(inputs[i] * own) + _HALF) >> np.int32(16))
            weight = np.int32(weights[row, i] + step)
            weights[row, i] = min(max(weight, np.int32(-_MOST_WEIGHT)), _MOST_WEIGHT)


@inlined_in_place
def learn_refined(learned: Learned, by_byte: int, by_match: int, logit: int, bit: int) -> None:
    """The nearer knot of each refinement moves towards the outcome."""
    refined = learned.refined
    knot = (logit + LOGIT_LIMIT + 1 + 128) >> 8
    target = 65535 * bit
    for row in (by_byte, by_match):
        value = np.int64(refined[row, knot])
        refined[row, knot] = value + ((target - value) * _REFINING_RATE >> 10)


@inlined_in_place
def learn_contexts(learned: Learned, found: np.ndarray, place: int, flag: int, bit: int) -> None:
    """The probabilities of the bit histories, then these themselves."""
    slots, maps = learned.slots, learned.maps
    target = ((1 << 22) - 1) * bit
    for i in range(len(maps)):
        at = found[i] + place
        state = np.int64(slots[at])
        entry = np.int64(maps[i, state + flag])
        seen, probability = entry & 1023, entry >> 10
        probability += (target - probability) * SHARES[seen] >> 16
        maps[i, state + flag] = probability << 10 | min(seen + 1, _MOST_SEEN)
        slots[at] = NEXT_STATE[state, bit]


@inlined_in_place
def learn_match(learned: Learned, state: int, flag: int, right: bool) -> None:
    """Whether the match was right in its state."""
    value = learned.match[state, flag]
    target = (1 << 22) - 1 if right else 0
    learned.match[state, flag] = value + ((target - value) >> _MATCH_RATE)


@inlined_in_place
def model_input(logit: int, inputs: np.ndarray) -> None:
    """The language model's logit, and the constant."""
    inputs[len(inputs) - 2], inputs[len(inputs) - 1] = logit, _CONSTANT
