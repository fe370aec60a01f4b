"""A damaged archive → its healthy frames, and where content is missing (docs/format.md, section 9).

Nothing is given away that its Content_Check does not vouch for. Knows nothing of models' insides.
"""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO

from llmzip.archive import container
from llmzip.archive.frames import FrameReader
from llmzip.archive.header import Header
from llmzip.archive.options import Options
from llmzip.archive.sections import split
from llmzip.coding.frame import FRAME_LIMIT, MODEL, SMALL, Frame
from llmzip.coding.frame_codec import Progress
from llmzip.errors import CorruptArchive, LlmzipError, UnsupportedArchive

_FIELDS_LIMIT = 1 + 4 * 5  # bytes of a frame's fields, at most
_HOPS = 4  # frames that follow each other by their lengths: not by chance
_GUESSES = 16  # multiples of the usual length that are tried as an offset after lost frames
_HASHED_PASSES = 16  # searches hash at most so many times what the archive is long
_CHUNK = 1 << 20
_TOO_EARLY = "the archive ends too early"
_NO_HEADER = "the header of a frame is damaged"

# where a frame's fields may begin
_NUMBER = rb"(?:[\x00-\x7f]|[\x80-\xff]{1,4}[\x01-\x7f])"
_FIELDS = re.compile(
    rb"(?=[\x00\x80]%b|[\x01\x03\x81\x83]%b{2}|[\x02\x82]%b{4})" % ((_NUMBER,) * 3), re.DOTALL
)


@dataclass(frozen=True)
class Piece:
    """Verified content of a frame."""

    offset: int  # in the content of the archive
    content: bytes


@dataclass(frozen=True)
class Damage:
    """Content that is lost: bytes from `start` to `end`, exclusive; None where nothing tells."""

    start: int
    end: int | None  # `start` if the archive's end alone is damaged, and no content is missing
    frames: tuple[int, int]  # first and last, from 0; beyond damaged headers an estimate
    reason: str


def recover(source: BinaryIO, options: Options, progress: Progress) -> Iterator[Piece | Damage]:
    """All that an archive, and those that follow it, still tell, in the order of their content;
    no Damage if they are intact.

    `source` is seekable and at its start. Where nothing tells how long the content of a damaged
    archive was, offsets of the next begin where what is known of it ends. Raises LlmzipError
    where the first header is damaged, a model is not at hand, or the content longer than
    `options` allow.
    """
    reader = FrameReader(options, progress)
    before = frames = 0  # content and frames of the archives so far
    for start, end in split(source):
        length = count = 0
        try:
            for found in _recover_one(_Section(source, start, end), reader):
                if isinstance(found, Piece):
                    length = found.offset + len(found.content)
                    yield Piece(before + found.offset, found.content)
                    count += 1
                    continue
                length = max(length, found.start if found.end is None else found.end)
                count = max(count, found.frames[1] + 1)
                yield Damage(
                    before + found.start,
                    None if found.end is None else before + found.end,
                    (frames + found.frames[0], frames + found.frames[1]),
                    found.reason,
                )
        except (CorruptArchive, UnsupportedArchive) as error:  # of a header
            if not start:
                raise
            yield Damage(before, None, (frames, frames), str(error))
        before, frames = before + length, frames + count


class _Section(io.RawIOBase):
    """A part of a seekable source as a source of its own."""

    def __init__(self, source: BinaryIO, start: int, end: int) -> None:
        self._source, self._start, self._size, self._at = source, start, end - start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        self._source.seek(self._start + self._at)
        data = self._source.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def _recover_one(section: _Section, reader: FrameReader) -> Iterator[Piece | Damage]:
    """The same of one archive, with nothing behind it; offsets are within its content."""
    source: Any = section
    survey = _Survey(source)
    whole = hashlib.blake2b(digest_size=container.HASH_BYTES)
    lengths: Counter[int] = Counter()  # of healthy frames
    offset = number = 0  # of the next frame
    lost = 0  # frames, or stretches where none is to be seen, since the last healthy one
    reason = ""  # why the first of them is lost
    running: int | None = 0  # the next offset, if the lengths that lost frames tell are true
    damaged = False
    doubt: int | None = None  # where to search if what follows a doubtful frame is none

    def damage(end: int | None) -> Damage:
        count = -(-(end - offset) // (_usual(lengths) or end)) if end else 1
        return Damage(offset, end, (number, number + count - 1), reason)

    at: int | None = survey.start
    while at is not None and at < survey.size:
        span = survey.span(at)
        why, ends = _NO_HEADER if at + _FIELDS_LIMIT <= survey.size else _TOO_EARLY, False
        if span is not None:
            if span.frame.kind == MODEL:
                reader.prepare(survey.header)  # what this raises is no damage
            guesses = [offset]
            if lost:
                usual = _usual(lengths) or span.frame.content_length
                known = (running, survey.offset_from_the_end(at))
                guesses = [guess for guess in known if guess is not None]
                guesses += [offset + k * usual for k in range(1, _GUESSES + 1)]
            try:
                frame = replace(span.frame, payload=survey.payload(span))
                content = reader.content(frame, survey.header)
                found = survey.place(span, content, guesses, offset + bool(lost))
            except (CorruptArchive, UnsupportedArchive) as error:
                why, ends = str(error), span.frame.last and survey.is_end(span.end)
            else:
                lengths[len(content)] += 1
                if lost:
                    reason = _NO_HEADER if reason == _TOO_EARLY else reason
                    gap = damage(found)
                    yield gap
                    number, lost, damaged = gap.frames[1] + 1, 0, True
                yield Piece(found, content)
                whole.update(content)
                offset = running = found + len(content)
                number += 1
                if span.frame.last:
                    digest = None if damaged else whole.digest()
                    flaw = survey.flaw_after(span, offset, number, digest)
                    if flaw:
                        yield Damage(offset, offset, (number, number), flaw)
                    return
                at, doubt = span.end, None
                continue
        reason, lost = reason if lost else why, lost + 1
        if span is not None and running is not None:
            running += span.frame.content_length
        if span is not None and (ends or survey.leads_on(span.end) or survey.is_sound(span)):
            at, doubt = None if ends else span.end, None
        elif span is not None and doubt is None and span.end < survey.size:
            at, doubt = span.end, at + 1
        else:
            at, doubt, running = survey.search(doubt or at + 1, _usual(lengths)), None, None
    if not lost:
        reason = _TOO_EARLY
    yield damage(survey.total_beyond(offset, lost))


def _usual(lengths: Counter[int]) -> int:
    """All frames but the last are of one length, as a rule; 0 if none is known."""
    return lengths.most_common(1)[0][0] if lengths else 0


@dataclass(frozen=True)
class _Span:
    """A frame as its fields describe it; `end` may lie beyond the archive's."""

    frame: Frame  # without payload
    fields: bytes
    at: int  # where the payload begins
    payload_length: int

    @property
    def large(self) -> bool:
        return self.frame.content_length > SMALL

    @property
    def payload_end(self) -> int:
        return self.at + self.payload_length

    @property
    def check_at(self) -> int:
        """Where Content_Check is."""
        return self.payload_end + (container.CHECK_BYTES if self.large else 0)

    @property
    def end(self) -> int:
        return self.check_at + container.CHECK_BYTES


def _span(data: bytes, at: int, header: Header) -> _Span | None:
    """The frame whose fields `data`, from `at` on, begins with."""
    stream = io.BytesIO(data)

    def take(count: int) -> bytes:
        part = stream.read(count)
        if len(part) < count:
            raise CorruptArchive(_TOO_EARLY)
        return part

    try:
        if header.short:
            frame, payload_length, fields = container.read_short_fields(take)
        else:
            frame, payload_length, fields = container.read_fields(take, header.model is not None)
    except LlmzipError:
        return None
    return _Span(frame, fields, at + len(fields), payload_length)


class _Survey:
    """Finds the frames of an archive by their lengths, and by search where these are damaged."""

    def __init__(self, source: BinaryIO) -> None:
        """Reads the archive's header."""
        self.header = container.Reader(source, alone=True).part.header
        self._header = self.header.data
        self._source, self.size = source, source.seek(0, io.SEEK_END)
        self.start = len(self._header)
        self._hashed = 0
        self._tails: dict[int, int | None] = {}

    def _read(self, at: int, size: int) -> bytes:
        self._source.seek(at)
        data = self._source.read(size)
        while len(data) < size and (more := self._source.read(size - len(data))):
            data += more
        return data

    def span(self, at: int) -> _Span | None:
        """The frame whose fields begin at `at`, if fields do."""
        return _span(self._read(at, _FIELDS_LIMIT), at, self.header)

    def is_end(self, at: int) -> bool:
        return self.size - at in (0, container.TRAILER_BYTES)

    def leads_on(self, at: int) -> bool:
        """Whether frames follow from `at`, several or up to the archive's end."""
        for _ in range(_HOPS):
            span = self.span(at)
            if span is None or span.end > self.size:
                return False
            at = span.end
            if span.frame.last:
                return self.is_end(at)
        return True

    def is_sound(self, span: _Span) -> bool:
        """Whether Payload_Check holds: then the lengths are true."""
        if not span.large or span.end > self.size:
            return False
        self._hashed += span.payload_length
        payload = self._read(span.at, span.payload_length)
        return container.check(payload) == self._read(span.payload_end, container.CHECK_BYTES)

    def search(self, start: int, usual: int) -> int | None:
        """Where the next frame seems to begin. `usual` is a likely length of its content."""
        if self.header.short:  # there is one frame alone
            return None
        if self._holds_archives:  # whose frames could be taken for this one's
            return None
        for at in self._places(start):
            span = self.span(at)
            if span is None or span.end > self.size:
                continue
            likely = span.frame.content_length == usual
            if span.large:
                if self._hashed > _HASHED_PASSES * self.size:
                    return None  # an archive made to keep us busy
                likely = likely or self.span(span.end) is not None or self.is_end(span.end)
                likely = likely and self.is_sound(span)
            elif not likely:
                likely = self.leads_on(at)
            if likely:
                return at
        return None

    def _places(self, start: int) -> Iterator[int]:
        while start < self.size:
            chunk = self._read(start, _CHUNK + _FIELDS_LIMIT)
            for match in _FIELDS.finditer(chunk):
                if match.start() < _CHUNK:
                    yield start + match.start()
            start += _CHUNK

    @functools.cached_property
    def _holds_archives(self) -> bool:
        """Whether the header occurs a second time."""
        start = 1
        while start < self.size:
            if self._header in self._read(start, _CHUNK + len(self._header)):
                return True
            start += _CHUNK
        return False

    def payload(self, span: _Span) -> bytes:
        """Raises CorruptArchive if it is not all there, or its check fails."""
        if span.end > self.size:
            raise CorruptArchive(_TOO_EARLY)
        if span.large and not self.is_sound(span):
            raise CorruptArchive("its payload check fails")
        return self._read(span.at, span.payload_length)

    def place(self, span: _Span, content: bytes, guesses: Sequence[int | None], least: int) -> int:
        """The first guess of the content's offset, at least `least`, for which Content_Check
        holds. Raises CorruptArchive if there is none."""
        expected = self._read(span.check_at, container.CHECK_BYTES)
        if len(content) == span.frame.content_length:
            for guess in dict.fromkeys(guesses):
                if (
                    guess is not None
                    and least <= guess < 1 << 64
                    and expected
                    == (container.content_check(self._header, guess, span.fields, content))
                ):
                    return guess
        raise CorruptArchive("its content check fails")

    def offset_from_the_end(self, at: int) -> int | None:
        """Where the content of the frame at `at` begins, if lengths lead from it to the trailer."""
        steps: list[tuple[int, int]] = []
        place = at
        while place not in self._tails:
            span = self.span(place)
            if span is None or span.end > self.size:
                self._tails[place] = None
                break
            steps.append((place, span.frame.content_length))
            place = span.end
            if span.frame.last:
                self._tails[place] = 0 if self.is_end(place) else None
        tail = self._tails[place]
        for start, length in reversed(steps):
            self._tails[start] = tail = None if tail is None else tail + length
        return None if tail is None else self._total() - tail

    def _total(self) -> int:
        """The length of the whole content, by a trailer at the archive's end."""
        trailer = self._read(max(0, self.size - container.TRAILER_BYTES), 8)
        return int.from_bytes(trailer, "little")

    def total_beyond(self, offset: int, frames: int) -> int | None:
        """The same, if it is a likely one for so many lost frames from `offset` on."""
        total = self._total()
        return total if 0 < total - offset <= frames * FRAME_LIMIT else None

    def flaw_after(self, span: _Span, length: int, frames: int, digest: bytes | None) -> str | None:
        """What is wrong with the archive's end; `digest` is None where content is missing."""
        rest = self._read(span.end, container.TRAILER_BYTES + 1)
        if not container.has_trailer(length, frames):
            return "bytes follow the end of the archive" if rest else None
        trailer = container.offset_bytes(length) + (digest or rest[8 : container.TRAILER_BYTES])
        if rest == trailer:
            return None
        if rest.startswith(trailer):
            return "bytes follow the end of the archive"
        return (
            "the trailer is damaged, all frames are whole" if digest else "the trailer is damaged"
        )
