"""bytes ↔ token ids, int32 [n], with any Hugging Face fast tokenizer, for *every* byte string.

The tokenizer only proposes a segmentation. Each id stands for a fixed byte string, which `Tokens`
derives from tokenizer.json, and `decode` concatenates these. Where the proposal does not spell the
input (the normalizer changed it, a character is unknown, the bytes are invalid UTF-8), the longest
matching tokens are used instead, and escape ids for bytes that no token spells.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from llmzip.errors import CorruptArchive, UnsupportedModel

_CHUNK = 1 << 16  # bytes for each call of the tokenizer
_TOGETHER = 4  # chunks for the tokenizer's threads
_SEAM = 1 << 12  # bytes by which a chunk may be shorter, to end with a line or word
_INVALID = re.compile("([\udc80-\udcff]+)")  # what surrogateescape makes of invalid bytes
_LEAST_VALID = 16  # bytes between invalid ones; if there are fewer, it is no text


class Tokens:
    """A tokenizer as a lossless code.

    Ids run from 0 to `size - 1`: the model's `vocabulary` first, then 256 escapes, one for
    each byte value, if (and only if) some byte value has no token.
    """

    def __init__(self, tokenizer_json: bytes | str, vocabulary: int) -> None:
        """`tokenizer_json` is the content of tokenizer.json; ids from `vocabulary` on are not used.

        Raises UnsupportedModel if the content is invalid.
        """
        with _panics_refused():
            try:
                settings = json.loads(tokenizer_json)
                # these only trim offsets, add special tokens or truncate texts
                settings.update(post_processor=None, truncation=None, padding=None)
                if "dropout" in settings["model"]:  # which is at random
                    settings["model"]["dropout"] = None
                self._tokenizer = Tokenizer.from_str(json.dumps(settings))
                entries = self._tokenizer.get_vocab(with_added_tokens=True)
                spellings = list(_spellings(settings, entries))
            except Exception as error:  # the library raises bare Exception
                raise UnsupportedModel(f"tokenizer.json cannot be read: {error}") from None
        # "<|endoftext|>" in the input is text
        self._tokenizer.encode_special_tokens = True
        self.vocabulary = vocabulary
        self._bytes: list[bytes | None] = [None] * vocabulary
        self._ids: dict[bytes, int] = {}
        # models have never seen the byte fallbacks of characters that have tokens of their own; of
        # tokens with one id, one counts, whatever the order in which they come
        for id, spelling, fallback in sorted(spellings, key=lambda s: (s[2], s[0], s[1])):
            known = id >= vocabulary or self._bytes[id] is not None
            if not known and spelling and not (fallback and spelling in self._ids):
                self._bytes[id] = spelling
                self._ids.setdefault(spelling, id)
        if any(bytes([value]) not in self._ids for value in range(256)):
            for value in range(256):
                self._bytes.append(bytes([value]))
                self._ids.setdefault(bytes([value]), vocabulary + value)
        self.size = len(self._bytes)
        self._lengths = _match_lengths(self._ids)

    @property
    def spellings(self) -> list[bytes | None]:
        """The bytes of each id; None for ids that are not used."""
        return self._bytes

    def encode(self, data: bytes) -> np.ndarray:
        """Bytes → ids, int32 [n]; `decode(encode(data)) == data` for any bytes."""
        parts = [np.zeros(0, dtype=np.int32)]  # a list of a whole text would take 40 bytes a token
        chunks = _chunks(data)
        while together := list(itertools.islice(chunks, _TOGETHER)):
            for chunk, encoding in zip(together, self._encode_together(together), strict=True):
                parts.append(np.array(self._encode_chunk(chunk, encoding), dtype=np.int32))
        if len(data) > _TOGETHER * _CHUNK:
            _give_memory_back()
        return np.concatenate(parts)

    def _encode_together(self, chunks: list[bytes]) -> list[Encoding | None]:
        """What the tokenizer makes of each chunk, by its own threads; None where that is to be
        asked one by one, as for bytes that are no text."""
        found: list[Encoding | None] = [None] * len(chunks)
        texts: dict[int, str] = {}
        for i, chunk in enumerate(chunks):
            with contextlib.suppress(UnicodeDecodeError):
                texts[i] = chunk.decode()
        if len(texts) < 2:
            return found
        with _panics_refused():
            try:
                encodings = self._tokenizer.encode_batch(
                    [*texts.values()], add_special_tokens=False
                )
            except Exception:  # bare, such as for a character without a token
                return found
        for i, encoding in zip(texts, encodings, strict=True):
            found[i] = encoding
        return found

    def decode(self, ids: np.ndarray) -> bytes:
        """Ids, int [n] → bytes. Raises CorruptArchive for an id without bytes."""
        try:
            return b"".join([self._bytes[id] for id in ids.tolist()])
        except (TypeError, IndexError):
            raise CorruptArchive("the archive has a token that spells nothing") from None

    def _encode_chunk(self, chunk: bytes, encoding: Encoding | None) -> list[int]:
        text = chunk.decode("utf-8", "surrogateescape")
        if encoding:
            return self._verified(text, chunk, encoding)
        if _INVALID.search(text) is None:
            return self._encode_text(text, chunk)
        parts = _INVALID.split(text)
        if len(chunk) < _LEAST_VALID * len(parts):
            return self._longest_matches(chunk)
        ids: list[int] = []
        for i, part in enumerate(parts):
            raw = part.encode("utf-8", "surrogateescape")
            ids += self._longest_matches(raw) if i & 1 else self._encode_text(part, raw)
        return ids

    def _encode_text(self, text: str, raw: bytes) -> list[int]:
        with _panics_refused():
            try:
                encoding = self._tokenizer.encode(text, add_special_tokens=False)
            except Exception:  # bare, such as for a character without a token
                return self._longest_matches(raw)
        return self._verified(text, raw, encoding)

    def _verified(self, text: str, raw: bytes, encoding: Encoding) -> list[int]:
        """The ids of an encoding of `text`, which spell `raw`."""
        proposed = [id if id < self.vocabulary else -1 for id in encoding.ids]
        if self._spell(proposed) == raw:
            return proposed
        return self._repair(text, raw, proposed, encoding.offsets)

    def _spell(self, ids: list[int]) -> bytes | None:
        parts = [self._bytes[id] if id >= 0 else None for id in ids]
        return None if None in parts else b"".join(parts)  # type: ignore[arg-type]

    def _repair(
        self, text: str, raw: bytes, proposed: list[int], offsets: list[tuple[int, int]]
    ) -> list[int]:
        """Keep each group of tokens that spells its span of `raw`; longest matches for the rest."""
        widths = [len(char.encode()) for char in text]
        starts = np.concatenate([[0], np.cumsum(widths, dtype=np.int64)]).tolist()
        ids: list[int] = []
        done = kept = 0  # bytes before `done` are in ids, before `kept` in `ids` or `pending`
        for first, last, begin, end in _groups(offsets):
            if starts[begin] < kept:
                continue  # overlaps the previous group
            group = proposed[first:last]
            if self._spell(group) == raw[starts[begin] : starts[end]]:
                ids += self._longest_matches(raw[done : starts[begin]])
                ids += group
                done = starts[end]
            kept = max(kept, starts[end])
        return ids + self._longest_matches(raw[done:])

    def _longest_matches(self, raw: bytes) -> list[int]:
        ids = []
        position, known, lengths = 0, self._ids, self._lengths
        while position < len(raw):
            for length in lengths.get(raw[position : position + 2], (1,)):
                id = known.get(raw[position : position + length])
                if id is not None:
                    ids.append(id)
                    position += length
                    break
        return ids


@contextlib.contextmanager
def _panics_refused() -> Iterator[None]:
    """Panics of the library's code, which are no Exception, as UnsupportedModel."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise UnsupportedModel(f"tokenizer.json makes the tokenizer fail: {error}") from None


def _give_memory_back() -> None:
    """Let the system have what the tokenizer's threads have freed: glibc would keep some 40 MB."""
    with contextlib.suppress(OSError, TypeError, AttributeError):  # other systems have no such call
        ctypes.CDLL(None).malloc_trim(0)


def _chunks(data: bytes) -> Iterator[bytes]:
    """Cut at a line end if one is near, else at a space, never within a UTF-8 character."""
    start = 0
    while len(data) - start > _CHUNK:
        end = start + _CHUNK
        for mark in (b"\n", b" "):
            found = data.rfind(mark, end - _SEAM, end)
            if found >= 0:
                # a space belongs to the next word, a line end to its line
                end = found + (mark == b"\n")
                break
        else:
            for back in range(4):
                if data[end - back] & 0xC0 != 0x80:
                    end -= back
                    break
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def _groups(offsets: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """Groups of tokens whose character spans overlap, because they share a character.

    Yields (first token, last token + 1, first character, last character + 1).
    """
    first = 0
    while first < len(offsets):
        begin, end = offsets[first]
        last = first + 1
        while last < len(offsets) and offsets[last][0] < end:
            end = max(end, offsets[last][1])
            last += 1
        yield first, last, begin, end
        first = last


def _match_lengths(ids: dict[bytes, int]) -> dict[bytes, tuple[int, ...]]:
    """First two bytes → lengths of the tokens that begin with them, longest first, then 1."""
    lengths: dict[bytes, set[int]] = {}
    for spelling in ids:
        if len(spelling) > 1:
            lengths.setdefault(spelling[:2], {1}).add(len(spelling))
    return {pair: tuple(sorted(found, reverse=True)) for pair, found in lengths.items()}


def _spellings(
    settings: dict[str, Any], vocabulary: dict[str, int]
) -> Iterator[tuple[int, bytes, bool]]:
    """(id, bytes, whether it is a byte fallback) of each token of tokenizer.json."""
    literal = {token["content"] for token in settings.get("added_tokens") or ()}
    model = settings["model"]
    stages = list(_stages(settings))
    byte_of = _byte_alphabet() if any(s["type"] == "ByteLevel" for s in stages) else None
    spaces = _space_marks(stages)
    joint = model.get("continuing_subword_prefix") if model["type"] == "WordPiece" else None
    for token, id in vocabulary.items():
        if token in literal:
            yield id, token.encode(), False
        elif byte_of is not None and all(char in byte_of for char in token):
            yield id, bytes(byte_of[char] for char in token), False
        elif model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token):
            yield id, bytes([int(token[3:5], 16)]), True
        else:
            if joint and token.startswith(joint):
                token = token[len(joint) :]
            for mark in spaces:
                token = token.replace(mark, " ")
            yield id, token.encode("utf-8", "replace"), False


def _stages(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every normalizer, pre-tokenizer and decoder, also within sequences."""
    waiting = [settings.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    while waiting:
        stage = waiting.pop()
        if isinstance(stage, dict):
            yield stage
            for inner in ("normalizers", "pretokenizers", "decoders"):
                waiting += stage.get(inner) or []


def _space_marks(stages: list[dict[str, Any]]) -> set[str]:
    """The characters that stand for a space in tokens, such as U+2581."""
    marks = {stage.get("replacement", "▁") for stage in stages if stage["type"] == "Metaspace"}
    for stage in stages:
        if stage["type"] == "Replace":
            pattern, content = stage.get("pattern", {}).get("String"), stage.get("content")
            if pattern == " " and content:  # a normalizer
                marks.add(content)
            elif content == " " and pattern:  # a decoder
                marks.add(pattern)
    return marks


def _byte_alphabet() -> dict[str, int]:
    """Character → byte of byte-level BPE (GPT-2), which maps bytes to printable characters.

    As `bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [value for value in range(256) if value not in set(printable)]
    table = {chr(value): value for value in printable}
    table.update({chr(256 + i): value for i, value in enumerate(rest)})
    return table
