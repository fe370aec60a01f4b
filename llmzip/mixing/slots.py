"""What the contexts have seen: hashed contexts → slots of bit histories.

All contexts share one table of slots of eight bytes: a check byte, then bit histories. For each
byte a context has three slots, as in lpaq: for the flag and the first two bits, for the next three
bits, for the last three. In the first slot the histories are those of bit 1, of bit 2 after 0 and
after 1, and of the flag; in the others, of a binary tree of three levels.

The first slot also knows the context's run: the first byte that it saw, and how often it came until
another one did. Most contexts see no other. What the second and third slot would hold follows from
the run until then, so they are not in the table but made anew beside it, and moved there when
another byte comes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llmzip.compiled import address, inlined_in_place, prefetch
from llmzip.mixing.bit_history import NEXT_STATE

SLOT_BYTES = 8
FLAG_HISTORY, RUN_BYTE, RUN_LENGTH = 4, 5, 6  # their places in a first slot
_LONGEST_RUN, _ENDED = 31, 32  # a run that has ended has _ENDED added to its length
_BESIDE = 32  # slots after the table, of which each context has one
_U20, _U32 = np.uint64(20), np.uint64(32)
_BYTE = np.uint64(255)
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_PART_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)


def _slots_of_runs() -> np.ndarray:
    """A second or third slot that has seen the same three bits n times and nothing else, uint8
    [n, bits, 8]."""
    slots = np.zeros((_LONGEST_RUN + 1, 8, SLOT_BYTES), dtype=np.uint8)
    histories = np.zeros(2, dtype=np.uint8)  # after zeros, after ones
    for n in range(1, _LONGEST_RUN + 1):
        histories = NEXT_STATE[histories, [0, 1]]
        for bits in range(8):
            slots[n, bits, 1] = histories[bits >> 2]
            slots[n, bits, 2 + (bits >> 2)] = histories[bits >> 1 & 1]
            slots[n, bits, 4 + (bits >> 1)] = histories[bits & 1]
    return slots


_RUNS = _slots_of_runs()


class Lookup(NamedTuple):
    """The slots of C contexts, for one byte."""

    hashes: np.ndarray  # uint64 [C], of the contexts
    keys: np.ndarray  # uint64 [C], of the contexts and the bits so far
    slots: np.ndarray  # int64 [C]: where the slots in use are
    first: np.ndarray  # int64 [C]: where the first slots are,
    checks: np.ndarray  # uint8 [C], and their checks when they were found
    runs: np.ndarray  # int64 [C]: byte + 256 · length


def new_lookup(contexts: int) -> Lookup:
    """Before the first byte."""
    return Lookup(
        np.zeros(contexts, dtype=np.uint64),
        np.zeros(contexts, dtype=np.uint64),
        np.zeros(contexts, dtype=np.int64),
        np.zeros(contexts, dtype=np.int64),
        np.zeros(contexts, dtype=np.uint8),
        np.zeros(contexts, dtype=np.int64),
    )


def new_slots(bits: int) -> np.ndarray:
    """A table of 2^bits empty slots, and those beside it, uint8."""
    return np.zeros(SLOT_BYTES * ((1 << bits) + _BESIDE), dtype=np.uint8)


@inlined_in_place
def find_first(slots: np.ndarray, lookup: Lookup) -> None:
    """The first slots of all contexts. The first loop only fetches memory, so that all of it is on
    its way while the second one decides."""
    mask, start = _mask(slots), address(slots)
    for i in range(len(lookup.hashes)):
        key = _key(lookup.hashes[i], 0)
        lookup.keys[i] = key
        prefetch(start + (np.int64(key >> _U32) & mask) * SLOT_BYTES)
    for i in range(len(lookup.hashes)):
        at = _find_slot(slots, mask, lookup.keys[i])
        lookup.slots[i] = lookup.first[i] = at
        lookup.checks[i] = slots[at]
        lookup.runs[i] = np.int64(slots[at + RUN_BYTE]) | np.int64(slots[at + RUN_LENGTH]) << 8


@inlined_in_place
def find_next(slots: np.ndarray, lookup: Lookup, step: int, part: int) -> None:
    """The second slots at step 3, the third at step 6, after the bits `part` of this byte."""
    if step == 6:
        _keep_slots(slots, lookup, step, part)
    mask, start = _mask(slots), address(slots)
    for i in range(len(lookup.hashes)):
        run = lookup.runs[i]
        if run < 256 or (run < _ENDED << 8 and _agrees(run, step, part)):
            at = SLOT_BYTES * (mask + 1 + i)
            slots[at] = 0
            _write_run(slots, at, run, step)
            lookup.slots[i] = at
        else:
            key = _key(lookup.hashes[i], part)
            lookup.keys[i], lookup.slots[i] = key, -1
            prefetch(start + (np.int64(key >> _U32) & mask) * SLOT_BYTES)
    for i in range(len(lookup.hashes)):
        if lookup.slots[i] < 0:
            at = _find_slot(slots, mask, lookup.keys[i])
            lookup.slots[i] = at
            if slots[at + 1] == 0 and _agrees(lookup.runs[i], step, part):
                _write_run(slots, at, lookup.runs[i], step)


@inlined_in_place
def learn_byte(slots: np.ndarray, lookup: Lookup, byte: int) -> None:
    """Runs go on or end; their slots are kept if they end."""
    _keep_slots(slots, lookup, 9, byte + 256)
    for i in range(len(lookup.hashes)):
        run, at = lookup.runs[i], lookup.first[i]
        if slots[at] != lookup.checks[i]:  # it was taken for another context
            continue
        length = run >> 8
        if length == 0:
            slots[at + RUN_BYTE], slots[at + RUN_LENGTH] = byte, 1
        elif length < _ENDED:
            goes_on = (run & 255) == byte
            slots[at + RUN_LENGTH] = min(length + 1, _LONGEST_RUN) if goes_on else length | _ENDED


@inlined_in_place
def history_place(step: int, part: int) -> int:
    """Where in its slot the history of a decision is: step 0 is the flag, 1 to 8 the bits, of which
    `part` holds those known, after a leading 1."""
    if step == 0:
        return FLAG_HISTORY
    if step == 1 or step == 3 or step == 6:
        return 1
    if step == 2 or step == 4 or step == 7:
        return 2 + (part & 1)
    return 4 + (part & 3)


@inlined_in_place
def _mask(slots: np.ndarray) -> int:
    """Of places in the table."""
    return len(slots) // SLOT_BYTES - _BESIDE - 1


@inlined_in_place
def _key(context: np.uint64, part: int) -> np.uint64:
    """Of the slot for a context after the bits `part`, 0 for the first."""
    key = (context + np.uint64(part)) * _PART_MULTIPLIER
    return (key ^ key >> _U32) * _MULTIPLIER


@inlined_in_place
def _agrees(run: int, step: int, part: int) -> bool:
    """Whether the byte of a run has the bits `part` before a step."""
    return ((run & 255) + 256) >> (9 - step) == part


@inlined_in_place
def _write_run(slots: np.ndarray, at: int, run: int, step: int) -> None:
    """The histories that follow from a run, into the slot of the three bits from `step` on."""
    bits, length = run >> (6 - step) & 7, run >> 8 & _LONGEST_RUN
    for k in range(1, SLOT_BYTES):
        slots[at + k] = _RUNS[length, bits, k]


@inlined_in_place
def _keep_slots(slots: np.ndarray, lookup: Lookup, step: int, part: int) -> None:
    """Move slots from beside the table into it if the three bits before `step` ended their runs."""
    mask = _mask(slots)
    for i in range(len(lookup.hashes)):
        run, beside = lookup.runs[i], lookup.slots[i]
        if run >= 256 and beside > SLOT_BYTES * mask and not _agrees(run, step, part):
            at = _find_slot(slots, mask, _key(lookup.hashes[i], part >> 3))
            for k in range(1, SLOT_BYTES):
                slots[at + k] = slots[beside + k]


@inlined_in_place
def _find_slot(slots: np.ndarray, mask: int, key: np.uint64) -> int:
    """Three places are tried; if none has the check, the one whose first history has seen least
    is emptied."""
    index = np.int64(key >> _U32) & mask
    check = np.uint8((key >> _U20) & _BYTE)
    first = index * SLOT_BYTES
    if slots[first] == check:
        return first
    second = (index ^ 1) * SLOT_BYTES
    if slots[second] == check:
        return second
    third = (index ^ 2) * SLOT_BYTES
    if slots[third] == check:
        return third
    chosen = first
    if slots[second + 1] < slots[chosen + 1]:
        chosen = second
    if slots[third + 1] < slots[chosen + 1]:
        chosen = third
    slots[chosen] = check
    for i in range(1, SLOT_BYTES):
        slots[chosen + i] = 0
    return chosen
