"""The mixing of docs/mixing.md in plain Python integers: slow, and written for reading.

One object is the state of a frame; `code` walks one token and returns its decisions as pairs of
bit and probability. With a function `decide` in place of the token it decodes.
"""

from __future__ import annotations

import lzma
from bisect import bisect_left
from collections.abc import Callable, Sequence
from copy import deepcopy
from decimal import Decimal, localcontext
from itertools import accumulate
from typing import NamedTuple

import numpy as np

M64 = (1 << 64) - 1
BESIDE = 9  # a slot of the table has 8
M, W, P = 0x9E3779B97F4A7C15, 0x2F0B4C4745D9F3B5, 0xD6E8FEB86659FD93


class Start(NamedTuple):
    """What a frame's mixing begins with; C contexts, I inputs, K sets of weights."""

    maps: np.ndarray  # [C, 512]: probability · 2^10 + observations
    match: np.ndarray  # [129, 2]
    weights: np.ndarray  # [sum of sizes of sets, I]
    final: np.ndarray  # [129 · 9, K]


def initial_state(file: bytes) -> Start:
    """The state in initial.xz or initial-fast.xz: 16-bit numbers, the parts one after the other."""
    numbers = np.frombuffer(lzma.decompress(file), "<i2").astype(np.int64)
    contexts, sets, rows = (18, 5, 773) if len(numbers) > 20_000 else (2, 3, 481)
    sizes = ((contexts, 512), (129, 2), (rows, 2 * contexts + 4), (129 * 9, sets))
    ends = np.cumsum([a * b for a, b in sizes])
    assert ends[-1] == len(numbers)
    parts = [p.reshape(s) for p, s in zip(np.split(numbers, ends[:-1]), sizes, strict=True)]
    maps, match, weights, final = parts
    return Start((maps & 0xFFFF) << 16 | 60, (match & 0xFFFF) << 6, weights << 4, final << 4)


def _squash_table() -> list[int]:
    """2^16 / (1 + e^(-x / 256)) at x = -3072 … 3071, within 8 … 2^16 - 8."""
    with localcontext() as context:
        context.prec = 40
        decay, power, upper = (Decimal(-1) / 256).exp(), Decimal(1), []
        for _ in range(3073):
            upper.append(int((65536 / (1 + power)).to_integral_value()))
            power *= decay
    both = [65536 - value for value in upper[:0:-1]] + upper[:-1]
    return [max(8, min(65528, value)) for value in both]


def _log2_table() -> list[int]:
    """2^12 · log2(1 + i / 4096), by squaring in 32 bits, rounded down at each step."""
    table = []
    for i in range(4096):
        y, result = (4096 + i) << 19, 0
        for _ in range(12):
            y = y * y >> 31
            bit = y >> 32
            result, y = result * 2 + bit, y >> bit
        table.append(result)
    return table


SQUASH, LOG2 = _squash_table(), _log2_table()
STRETCH = [bisect_left(SQUASH, 16 * p + 8) - 3072 for p in range(4096)]
SHARES = [655360 // (10 * n + 16) for n in range(1024)]

COUNTED = [*range(13), 14, 16, 18, 20, 24, 28, 32, 40]
MOST = {0: 40, 1: 30, 2: 14, 3: 10, 4: 7, 5: 6}  # largest count beside the smaller one


def _after(state: tuple[int, int, int], bit: int) -> tuple[int, int, int]:
    """The bit history (zeros, ones, the last two bits) after one bit more."""
    counts, last = list(state[:2]), (state[2] * 2 + bit) & 3
    other = counts[1 - bit]
    if 2 < other < 6:
        other = (other + 1) >> 1
    elif 6 <= other < 20:
        other = max(3, other * 2 // 5 + 1)
    elif other >= 20:
        other = 6
    counts[bit] = COUNTED[min(COUNTED.index(counts[bit]) + 1, len(COUNTED) - 1)]
    counts[1 - bit] = max(count for count in COUNTED if count <= other)
    while max(counts) > MOST.get(min(counts), 0):
        larger = bit if counts[bit] > 5 or counts[bit] >= counts[1 - bit] else 1 - bit
        counts[larger] = COUNTED[COUNTED.index(counts[larger]) - 1]
    zeros, ones = counts
    if not zeros or not ones:
        last = 3 if ones else 0
    elif zeros + ones > 14 and max(counts) > 14:
        last = 3 * (last & 1)
    return zeros, ones, last


def _histories() -> tuple[list[tuple[int, int]], list[int]]:
    """The next history after a zero and a one, and the smaller count, of each; numbered by the
    sum of the counts, then by these, then by the last bits."""
    found, waiting = {(0, 0, 0)}, [(0, 0, 0)]
    while waiting:
        state = waiting.pop()
        for after in (_after(state, 0), _after(state, 1)):
            if after not in found:
                found.add(after)
                waiting.append(after)
    ordered = sorted(found, key=lambda state: (state[0] + state[1], state))
    number = {state: i for i, state in enumerate(ordered)}
    following = [(number[_after(s, 0)], number[_after(s, 1)]) for s in ordered]
    spare = 256 - len(ordered)
    return following + [(0, 0)] * spare, [min(s[:2]) for s in ordered] + [0] * spare


NEXT_STATE, FEWER = _histories()


def log2(value: int) -> int:
    octave = value.bit_length() - 1
    scaled = value >> (octave - 12) if octave >= 12 else value << (12 - octave)
    return (octave << 12) + LOG2[scaled - 4096]


def logit(one: int, zero: int) -> int:
    return max(-3071, min(3071, (log2(one) - log2(zero)) * 2839 >> 16))


def squash(x: int) -> int:
    return SQUASH[x + 3072]


def agrees(byte: int, step: int, part: int) -> bool:
    return (byte + 256) >> (9 - step) == part


def run_slot(byte: int, n: int, step: int) -> list[int]:
    """What a slot for three bits has seen after `n` times the same byte; with a mark: it is not in
    the table."""
    slot, bits = [0] * BESIDE, byte >> (6 - step) & 7
    for _ in range(n & 31):
        for place, bit in (
            (1, bits >> 2), (2 + (bits >> 2), bits >> 1 & 1), (4 + (bits >> 1), bits & 1)
        ):  # fmt: skip
            slot[place] = NEXT_STATE[slot[place]][bit]
    return slot


class Stream:
    def __init__(self) -> None:
        self.text = bytearray()
        self.ends: list[int] = []
        self.word = self.word_before = self.word_two_before = self.field = self.digits = 0
        self.shape: list[int] = [0] * 12
        self.elements: list[int] = []
        self.above: list[int] = []
        self.line, self.line_above = 0, -1
        self.match: tuple[int, int] | None = None  # stream, position
        self.length = self.misses = self.token = self.token_before = 0


class ReferenceMixer:
    def __init__(
        self,
        spellings: Sequence[bytes],
        streams: int,
        length: int,
        start: Start | None,
        prime: int = 0,
    ) -> None:
        """`spellings` in order of ranks; lengths of the frame's content and of its prime. The level
        is that of `start`; with none, there is no mixing."""
        self.mixes, self.fast = start is not None, start is not None and len(start.maps) < 18
        self.spellings = spellings
        bits = max(length, prime).bit_length()
        self.slot_count = 1 << min(max(bits + 5, 12), 23)
        self.place_count = 1 << min(max(bits + 1, 10), 22)
        self.ring = 1 << min(max(bits + (prime > 0), 7), ((1 << 22) // streams).bit_length() - 1)
        self.slots = [[0] * 8 for _ in range(self.slot_count)]
        if start:
            self.maps = [[(v >> 10, v & 1023) for v in row.tolist()] for row in start.maps]
            self.right = start.match.tolist()
            self.weights = start.weights.astype(np.int64)
            self.final = start.final.astype(np.int64)
        self.refined: dict[tuple[int, int], list[int]] = {}
        self.places: list[dict[int, tuple[int, int]]] = [{}, {}]
        self.streams = [Stream() for _ in range(streams)]

    def end_prime(self) -> None:
        """It was coded in stream 0."""
        self.streams[1:] = [deepcopy(self.streams[0]) for _ in self.streams[1:]]

    def code(
        self, s: int, frequencies: np.ndarray, rank: int, decide: Callable[[int], int] | None = None
    ) -> tuple[int, list[tuple[int, int]]]:
        st, f = self.streams[s], frequencies.tolist()
        upto = [0, *accumulate(f)]
        low, high, depth, best, made = 0, len(f), 0, -1, []
        while True:
            ends = depth > 0 and len(self.spellings[low]) == depth
            inner = low + ends
            if inner == high:
                break
            if not inner <= best < high:
                best = inner + f[inner:high].index(max(f[inner:high]))
            odds = logit(f[best], max(upto[high] - upto[low] - f[best], 1))
            sure = min(max((odds + 1024) >> 8, 0), 11)
            hashes = self.hashes(st, low, depth, self.spellings[best][depth], sure)
            if self.fast:
                hashes, sure = [hashes[2], hashes[3]], 0
            elif not self.mixes:
                hashes = []
            part, ended = 1, False
            for step in range(9):
                if step == (0 if ends else 1):
                    first, checks, runs = [], [], []
                    for h in hashes:
                        slot = self.find(h, 0)
                        first.append(slot)
                        checks.append(slot[0])
                        runs.append((slot[5], slot[6]))
                    found = first
                elif step in (3, 6):
                    if step == 6:
                        self.keep(hashes, runs, found, step, part)
                    found = self.find_next(hashes, runs, step, part)
                if step == 0:
                    if not ends:
                        continue
                    middle, one, zero = inner, f[low], upto[high] - upto[inner]
                else:
                    value = ((part << (9 - step)) + (1 << (8 - step))) & 255
                    middle = inner
                    while middle < high and self.spellings[middle][depth] < value:
                        middle += 1
                    if middle in (inner, high):
                        part = part * 2 + (middle == inner)
                        continue
                    one, zero = upto[high] - upto[middle], upto[middle] - upto[inner]
                known = int(rank == low) if step == 0 else int(rank >= middle)
                if self.mixes:
                    bit, probability = self.decision(
                        st, found, step, part, min(depth, 3), sure, logit(one, zero), known, decide
                    )
                else:
                    probability = min(max((one << 16) // (one + zero), 1), 65535)
                    bit = decide(probability) if decide else known
                made.append((bit, probability))
                if step == 0:
                    ended = bool(bit)
                    if ended:
                        break
                elif bit:
                    inner, part = middle, part * 2 + 1
                else:
                    high, part = middle, part * 2
            if ended:
                break
            self.keep(hashes, runs, found, 9, part)
            for slot, check, (byte, n) in zip(first, checks, runs, strict=True):
                if slot[0] == check and n == 0:
                    slot[5:7] = part & 255, 1
                elif slot[0] == check and n < 32:
                    slot[6] = min(n + 1, 31) if byte == part & 255 else n + 32
            low, depth = inner, depth + 1
            self.observe(s, part & 255)
        st.ends[-1] = 1
        st.token_before, st.token = st.token, low
        return low, made

    def hashes(self, st: Stream, low: int, depth: int, byte: int, sure: int) -> list[int]:
        t = st.text
        last = int.from_bytes(t[-8:], "big")
        c1, position = last & 255, len(t)

        def at(place: int) -> int:
            return t[place] if 0 <= place < position and position - place < self.ring else 0

        above = st.line_above + position - st.line
        inside = st.line_above >= 0 and above + 1 < st.line and position - above < self.ring
        a0, a1 = (t[above], t[above + 1]) if inside else (0, 0)
        column, run, element = min(position - st.line, 255), min(st.digits, 15), len(st.elements)
        within = st.digits > 0 and element > 0
        e = element - within
        b0 = b1 = 0
        if e < len(st.above):
            place = st.above[e] + (st.digits if within else 0)
            after = place + 1 if within else st.above[e + 1] if e + 1 < len(st.above) else -1
            b0, b1 = at(place), at(after)
        shapes = []
        z = 0
        for i, code in enumerate(st.shape):
            z = (z + code) * W & M64
            shapes += [z] if i in (4, 11) else []
        node = low | depth << 20
        return [h & M64 for h in (
            1, c1 + (2 << 8), (last & 0xFFFF) + (3 << 24), (last & 0xFFFFFFFF) * M + 4,
            st.word * M + 5, (st.word * M + st.word_before) * M + 6,
            (st.word * M + st.field) * M + 7, (st.word * M + st.word_two_before) * M + 8,
            (a0 | a1 << 8 | c1 << 16) * M + 9,
            (column | a0 << 8 | st.field << 16) * M + 10, (b0 | b1 << 8 | run << 16) * M + 11,
            (last & 0xFFFFFFFFFFFF) * M + 19 if c1 >= 128
            else (b0 | c1 << 8 | min(element, 255) << 16) * M + 12, (shapes[0] * M + run) * M + 13,
            (shapes[1] * M + run) * M + 14, (byte | sure << 8 | c1 << 16) * M + 15,
            (byte | (last & 0xFFFFFF) << 8) * M + 16, (st.token * M + node) * M + 17,
            ((st.token_before * M + st.token) * M + node) * M + 18,
        )]  # fmt: skip

    def find(self, context: int, part: int) -> list[int]:
        key = (context + part) * P & M64
        key = (key ^ key >> 32) * M & M64
        index, check = (key >> 32) & (self.slot_count - 1), key >> 20 & 255
        tried = [self.slots[index ^ i] for i in range(3)]
        for slot in tried:
            if slot[0] == check:
                return slot
        slot = min(tried, key=lambda slot: slot[1])
        slot[:] = [check] + [0] * 7
        return slot

    def find_next(
        self, hashes: list[int], runs: list[tuple[int, int]], step: int, part: int
    ) -> list[list[int]]:
        found = []
        for h, (byte, n) in zip(hashes, runs, strict=True):
            if n == 0 or (n < 32 and agrees(byte, step, part)):
                found.append(run_slot(byte, n, step))
                continue
            slot = self.find(h, part)
            if slot[1] == 0 and agrees(byte, step, part):
                slot[1:] = run_slot(byte, n, step)[1:8]
            found.append(slot)
        return found

    def keep(
        self, hashes: list[int], runs: list[tuple[int, int]], found: list[list[int]], step: int,
        part: int,
    ) -> None:  # fmt: skip
        """What is beside the table moves there if its run has ended in the last three bits."""
        for h, (byte, n), slot in zip(hashes, runs, found, strict=True):
            if n > 0 and len(slot) == BESIDE and not agrees(byte, step, part):
                self.find(h, part >> 3)[1:] = slot[1:8]

    def decision(
        self, st: Stream, found: list[list[int]], step: int, part: int, depth: int, sure: int,
        model: int, bit: int, decide: Callable[[int], int] | None,
    ) -> tuple[int, int]:  # fmt: skip
        flag = int(step == 0)
        second = 2 + part % 2
        places = {0: 4, 1: 1, 2: second, 3: 1, 4: second, 6: 1, 7: second}
        place = places.get(step, 4 + part % 4)
        expected, state = self.expected(st, step, part)
        contexts = len(found)
        x = [0] * (2 * contexts + 4)
        for i, slot in enumerate(found):
            history = slot[place]
            if history:
                p = self.maps[i][history + 256 * flag][0] >> 10
                x[i], x[contexts + i] = (
                    STRETCH[p],
                    (p - 2048) >> (3 if FEWER[history] else 2),
                )
        if expected >= 0:
            p, sign = self.right[state][flag] >> 10, 1 if expected else -1
            x[-4], x[-3] = sign * STRETCH[p], sign * ((p - 2048) >> 2)
        x[-2:] = model, 77
        last, bits = st.text[-1] if st.text else 0, 0 if flag else part
        sets = (
            state, 129 + min(abs(model) >> 8, 11) + 12 * flag + 24 * min(sure >> 2, 3),
            225 + bits, 481 + depth * 9 + step, 517 + last,
        )[: 3 if self.fast else 5]  # fmt: skip
        inputs, own = np.array(x), list(sets)
        logits = (self.weights[own] * inputs >> 8).sum(1) >> 8
        logits = logits.clip(-3071, 3071)
        final = self.final[state * 9 + step]
        dot = max(-3071, min(3071, int(final @ logits) >> 16))
        knots = [SQUASH[min(256 * i, 6143)] for i in range(25)]
        rows = [
            self.refined.setdefault((0, last * 257 + bits), knots.copy()),
            self.refined.setdefault((1, state * 3 + expected + 1), knots.copy()),
        ]
        knot, rest = (dot + 3072) >> 8, (dot + 3072) & 255
        refined = [(row[knot] * (256 - rest) + row[knot + 1] * rest) >> 8 for row in rows]
        probability = min(max((2 * squash(dot) + sum(refined) + 2) >> 2, 1), 65535)
        bit = decide(probability) if decide else bit
        error = (bit << 16) - squash(dot)
        final += (logits * error * FINAL_RATE + (1 << 19)) >> 20
        errors = np.array([((bit << 16) - squash(out)) * RATE >> 4 for out in logits.tolist()])
        self.weights[own] += (inputs * errors[:, None] + 32768) >> 16
        self.weights[own] = self.weights[own].clip(-524287, 524287)
        nearer = (dot + 3072 + 128) >> 8
        for row in rows:
            row[nearer] += ((65535 * bit - row[nearer]) * 20) >> 10
        for i, slot in enumerate(found):
            history = slot[place]
            p, seen = self.maps[i][history + 256 * flag]
            p += ((4194303 * bit - p) * SHARES[seen]) >> 16
            self.maps[i][history + 256 * flag] = p, min(seen + 1, 250)
            slot[place] = NEXT_STATE[history][bit]
        if expected >= 0:
            value = self.right[state][flag]
            self.right[state][flag] += ((4194303 if expected == bit else 0) - value) >> 7
        return bit, probability

    def expected(self, st: Stream, step: int, part: int) -> tuple[int, int]:
        if st.match is None:
            return -1, 0
        other, place = self.streams[st.match[0]], st.match[1]
        if step == 0:
            bit = other.ends[place - 1]
        elif (other.text[place] + 256) >> (9 - step) != part:
            return -1, 0
        else:
            bit = other.text[place] >> (8 - step) & 1
        size = st.length if st.length < 16 else min(16 + (st.length >> 3), 31)
        return bit, 1 + size + 32 * min(st.misses, 3)

    def observe(self, s: int, byte: int) -> None:
        st = self.streams[s]
        position = len(st.text)
        st.text.append(byte)
        st.ends.append(0)
        if (chr(byte).isalpha() and byte < 128) or byte >= 128:
            st.word = (st.word + (byte | 32)) * W & M64
        elif st.word:
            st.word_two_before, st.word_before, st.word = st.word_before, st.word, 0
        digit = 48 <= byte <= 57
        if digit and st.digits:
            st.digits += 1
        else:
            st.digits = int(digit)
            if len(st.elements) < 256:
                st.elements.append(position)
            st.shape = [1 if digit else byte + 2, *st.shape[:11]]
        if byte == 10:
            st.above, st.elements = st.elements, []
            st.line_above, st.line, st.field = st.line, position + 1, 0
        elif byte in b",\t|;":
            st.field += 1
        if st.match is not None:
            stream, place = st.match
            if self.streams[stream].text[place] == byte:
                st.length += 1
                st.misses = 0 if st.length >= 16 else st.misses
            else:
                st.length, st.misses = 0, st.misses + 1
            place, written = place + 1, len(self.streams[stream].text)
            st.match = stream, place
            if st.misses > 8 or place >= written or written - place > self.ring - 65:
                st.match, st.length, st.misses = None, 0, 0
        self.find_match(s)

    def find_match(self, s: int) -> None:
        st = self.streams[s]
        last8 = int.from_bytes(st.text[-8:], "big")
        before = int.from_bytes(st.text[-12:-8], "big")
        for which, least in enumerate((12, 5)):
            if len(st.text) < least:
                continue
            hashed = (last8 * M + before) if which == 0 else last8 & 0xFFFFFFFFFF
            slot = (hashed * M & M64) >> 40 & (self.place_count - 1)
            place = self.places[which].get(slot)
            self.places[which][slot] = s, len(st.text) - 1
            if place is None or st.length >= 16:
                continue
            stream, text = place[0], self.streams[place[0]].text
            # the ring holds the latest byte of that place
            after = len(text) - (len(text) - 1 - place[1]) % self.ring
            if after >= len(text) or (stream, after) == st.match:
                continue
            most = min(32, after, len(st.text), self.ring - (len(text) - after))
            equal = 0
            while equal < most and text[after - 1 - equal] == st.text[-1 - equal]:
                equal += 1
            if equal >= 5 and equal > st.length:
                st.match, st.length, st.misses = (stream, after), equal, 0


RATE, FINAL_RATE = 16, 2
