"""A vocabulary as a trie: its byte strings in order, so that each node of the trie is a range.

The rank of a token is its place in that order. Of tokens with the same bytes only the first id has
a rank; encoders use that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llmzip.compiled import inlined_in_place

_KEY_BYTES = 8


class SortedTokens(NamedTuple):
    """Byte strings of n tokens in order, as compiled code reads them."""

    keys: np.ndarray  # uint64 [n]: the first eight bytes, the first byte highest, zeros beyond
    lengths: np.ndarray  # int32 [n]
    starts: np.ndarray  # int32 [n]: places in `text`
    text: np.ndarray  # uint8: all byte strings
    first: np.ndarray  # int32 [257]: rank of the first token that begins with a byte or a later one


class Vocabulary:
    """Ranks of ids, and the sorted tokens."""

    def __init__(self, spellings: Sequence[bytes | None]) -> None:
        """`spellings` says what each id spells, nothing for ids that are never used. All single
        bytes have to be among them, so that any text can be spelled."""
        unique: dict[bytes, int] = {}
        for id, spelling in enumerate(spellings):
            if spelling:
                unique.setdefault(spelling, id)
        texts = sorted(unique)
        rank = {text: i for i, text in enumerate(texts)}
        self.ids = np.array([unique[text] for text in texts], dtype=np.int32)  # of ranks
        self.ranks = np.array(  # of ids, int32; -1 for those that spell nothing
            [rank[spelling] if spelling else -1 for spelling in spellings], dtype=np.int32
        )
        lengths = np.array([len(text) for text in texts], dtype=np.int32)
        heads = b"".join(text[:_KEY_BYTES].ljust(_KEY_BYTES, b"\0") for text in texts)
        firsts = np.array([text[0] for text in texts])
        self.tokens = SortedTokens(
            np.frombuffer(heads, ">u8").astype(np.uint64),
            lengths,
            (np.cumsum(lengths) - lengths).astype(np.int32),
            np.frombuffer(b"".join(texts), np.uint8).copy(),
            np.searchsorted(firsts, np.arange(257)).astype(np.int32),
        )

    def __len__(self) -> int:
        return len(self.ids)


@inlined_in_place
def byte_at(tokens: SortedTokens, rank: int, depth: int) -> int:
    """Byte `depth` of a token that has so many."""
    if depth < _KEY_BYTES:
        return np.int64((tokens.keys[rank] >> np.uint64(56 - 8 * depth)) & np.uint64(255))
    return np.int64(tokens.text[tokens.starts[rank] + depth])


@inlined_in_place
def first_from(tokens: SortedTokens, low: int, high: int, depth: int, value: int) -> int:
    """The first of the tokens low … high - 1, which agree in `depth` bytes and are longer, whose
    next byte is at least `value`; `high` if there is none."""
    if depth == 0:
        return np.int64(tokens.first[value])
    while low < high:
        middle = (low + high) >> 1
        if byte_at(tokens, middle, depth) < value:
            low = middle + 1
        else:
            high = middle
    return low
