"""The header of an archive ↔ bytes, as in docs/format.md, section 2.

Every length is checked before anything is allocated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from llmzip.errors import CorruptArchive, TruncatedArchive, UnsupportedArchive

MAGIC = b"LLMZ"
SHORT_MAGIC = b"LLMz"
PRIMED_MAGIC = b"LLMp"  # of a short archive with a prime
MAGICS = (MAGIC, SHORT_MAGIC, PRIMED_MAGIC)
MAGIC_BYTES = 4
VERSION = 1
LONGEST_WINDOW = 15 << 30  # tokens; the most that Window and Overlap can express
DIGEST_BYTES = 6  # of the model's digest in the header,
SHORT_DIGEST_BYTES = 1  # and in that of a short archive
CERTIFICATE_BYTES = 4
PRIME_DIGEST_BYTES = 8  # likewise of the prime's digest
SHORT_PRIME_DIGEST_BYTES = 2

_HAS_MODEL, _HAS_NAME, _HAS_CERTIFICATE, _HAS_ENVIRONMENT, _HAS_PRIME = 1, 2, 4, 8, 16
_FLAGS = _HAS_MODEL | _HAS_NAME | _HAS_CERTIFICATE | _HAS_ENVIRONMENT | _HAS_PRIME
_ENVIRONMENT_LIMIT = 1 << 12


@dataclass(frozen=True)
class ModelHeader:
    """What a decoder needs to know about the model."""

    profile: int  # low half: arithmetic, see docs/exactness.md; high half: version of the mixing
    digest_start: bytes
    window: int  # tokens
    overlap: int  # tokens
    name: str = ""
    certificate: bytes = b""  # of a converted model: checksum of what it computes
    environment: str = ""  # JSON object of strings, if only the same environment can decode
    prime: bytes = b""  # first bytes of the digest of the prime, if there is one


@dataclass(frozen=True)
class Header:
    """The first bytes of an archive, and what they mean."""

    data: bytes  # as in the archive
    model: ModelHeader | None
    # one frame of one stream by an embedded model with its defaults; of `model` only the first
    # bytes of the digests are known
    short: bool = False


def write_header(model: ModelHeader | None) -> Header:
    """The header of an archive whose frames need `model`; None if they need none."""
    flags, fields = 0, b""
    if model is not None:
        flags |= _HAS_MODEL
        assert round_length(model.window) == model.window
        assert round_length(model.overlap) == model.overlap
        fields = bytes([model.profile]) + model.digest_start
        fields += bytes([_encode_length(model.window), _encode_length(model.overlap)])
        if model.prime:
            assert len(model.prime) == PRIME_DIGEST_BYTES
            flags |= _HAS_PRIME
            fields += model.prime
        if model.certificate:
            assert len(model.certificate) == CERTIFICATE_BYTES
            flags |= _HAS_CERTIFICATE
            fields += model.certificate
        if model.environment:
            environment = model.environment.encode()
            assert len(environment) <= _ENVIRONMENT_LIMIT
            flags |= _HAS_ENVIRONMENT
            fields += len(environment).to_bytes(2, "little") + environment
        if model.name:
            name = model.name.encode(errors="replace")[:255]
            flags |= _HAS_NAME
            fields += bytes([len(name)]) + name
    return Header(MAGIC + bytes([VERSION, flags]) + fields, model)


def write_short_header(digest: bytes, prime: bytes = b"") -> Header:
    """The header of a short archive; the digests are those of an embedded model and of the prime,
    if there is one."""
    magic = PRIMED_MAGIC if prime else SHORT_MAGIC
    return _short_header(magic, digest[:SHORT_DIGEST_BYTES], prime[:SHORT_PRIME_DIGEST_BYTES])


def _short_header(magic: bytes, digest: bytes, prime: bytes) -> Header:
    model = ModelHeader(0, digest, 0, 0, prime=prime)
    return Header(magic + digest + prime, model, short=True)


def prime_digest(prime: bytes) -> bytes:
    """What a header stores of a prime, if not fewer bytes; b"" of none."""
    return hashlib.blake2b(prime, digest_size=PRIME_DIGEST_BYTES).digest() if prime else b""


def read_up_to(source: BinaryIO, count: int) -> bytes:
    """The next `count` bytes; fewer only at the end of the source."""
    parts = []
    while count and (part := source.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def read_exactly(source: BinaryIO, count: int) -> bytes:
    """The next `count` bytes. Raises TruncatedArchive if the source has fewer."""
    data = read_up_to(source, count)
    if len(data) < count:
        raise TruncatedArchive("the archive ends too early")
    return data


def read_magic(source: BinaryIO) -> bytes:
    """The magic number of an archive; fewer than MAGIC_BYTES only at the end of the source."""
    return read_up_to(source, MAGIC_BYTES)


def read_header(magic: bytes, take: Callable[[int], bytes]) -> Header:
    """The header that begins with `magic`; `take(n)` returns the next n bytes.

    Raises CorruptArchive, TruncatedArchive or UnsupportedArchive.
    """
    if magic in (SHORT_MAGIC, PRIMED_MAGIC):
        digest = take(SHORT_DIGEST_BYTES)
        prime = take(SHORT_PRIME_DIGEST_BYTES) if magic == PRIMED_MAGIC else b""
        return _short_header(magic, digest, prime)
    if magic != MAGIC:
        if magic and any(full.startswith(magic) for full in MAGICS):
            raise TruncatedArchive("the archive ends too early")
        raise CorruptArchive("not an llmzip archive (it does not begin with LLMZ)")
    version, flags = take(2)
    if version != VERSION:
        raise UnsupportedArchive(
            f"archive format version {version}; this llmzip reads version {VERSION}"
        )
    if flags & ~_FLAGS or (flags and not flags & _HAS_MODEL):
        raise UnsupportedArchive(f"the header has unknown flags ({flags:#04x})")
    data = bytearray(magic + bytes([version, flags]))

    def take_and_keep(count: int) -> bytes:
        part = take(count)
        data.extend(part)
        return part

    model = _read_model(take_and_keep, flags) if flags & _HAS_MODEL else None
    return Header(bytes(data), model)


def _read_model(take: Callable[[int], bytes], flags: int) -> ModelHeader:
    def take_text(length_bytes: int, limit: int) -> str:
        length = int.from_bytes(take(length_bytes), "little")
        if length > limit:
            raise CorruptArchive(f"a text of {length} bytes in the header")
        return take(length).decode("utf-8", "replace")

    fields = take(1 + DIGEST_BYTES + 2)
    window, overlap = (_decode_length(code) for code in fields[7:9])
    if not 0 <= overlap < window - 1:
        raise CorruptArchive(f"a window of {window} with an overlap of {overlap}")
    return ModelHeader(
        profile=fields[0],
        digest_start=fields[1:7],
        window=window,
        overlap=overlap,
        prime=take(PRIME_DIGEST_BYTES) if flags & _HAS_PRIME else b"",
        certificate=take(CERTIFICATE_BYTES) if flags & _HAS_CERTIFICATE else b"",
        environment=take_text(2, _ENVIRONMENT_LIMIT) if flags & _HAS_ENVIRONMENT else "",
        name=take_text(1, 255) if flags & _HAS_NAME else "",
    )


def round_length(length: int) -> int:
    """The largest number of tokens, at most `length`, that Window and Overlap can express."""
    return 0 if length < 8 else _decode_length(_encode_length(length))


def _encode_length(length: int) -> int:
    """One byte: 0 for 0, else 5 bits of exponent and 3 of mantissa, (8 + m) · 2^(e - 1), e ≥ 1."""
    if length < 8:
        return 0
    exponent = length.bit_length() - 3
    return exponent << 3 | (length >> (exponent - 1)) & 7


def _decode_length(code: int) -> int:
    return (8 + (code & 7)) << ((code >> 3) - 1) if code >> 3 else 0
