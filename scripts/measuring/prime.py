"""Small records of one kind, with and without a text that both ends have."""

from __future__ import annotations

import lzma
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

import llmzip
from measuring import MODEL, Report, argument, command, report_of

Coder = Callable[[bytes], bytes]


@command(
    "results/prime.json",
    MODEL,
    argument("texts", nargs="+", type=Path, help="files of lines, all of one kind"),
    argument("--prime-bytes", type=int, default=30_000, help="of the beginning of each text"),
    argument("--skip", type=int, default=100_000, help="bytes before the first record"),
    argument("--records", type=int, default=100, help="of each text"),
    argument("--record-bytes", type=int, default=300, help="of a record, in whole lines, at least"),
)
def prime(given: Namespace) -> Report:
    """Bytes of the archives of records, each alone, and ms a record, also by xz and by zstd with
    a dictionary. All are decoded.

    One process does all of a codec; a first record, which loads the model and learns the prime, is
    timed apart.
    """
    results = {path.name: _measure(given, path) for path in given.texts}
    return report_of(given.model, results=results, prime_bytes=given.prime_bytes, skip=given.skip,
                     record_bytes=given.record_bytes)  # fmt: skip


def _measure(given: Namespace, path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    sample = text[: text.rindex(b"\n", 0, given.prime_bytes) + 1]
    lines = text[text.index(b"\n", given.skip) + 1 :].splitlines(keepends=True)
    records = [b""]
    for line in lines:
        if len(records[-1]) >= given.record_bytes:
            records.append(b"")
        records[-1] += line
    records = records[: given.records]
    return {
        "records": len(records),
        "content_bytes": sum(map(len, records)),
        "prime_bytes": len(sample),
        **{name: _round_trips(records, *coders)
           for name, coders in _coders(given.model, sample).items()},
    }  # fmt: skip


def _coders(model: str, sample: bytes) -> dict[str, tuple[Coder, Coder]]:
    raw = zstandard.ZstdCompressionDict(sample, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    # the smallest frames: no checksum, no content size, no dictionary id
    settings: dict[str, Any] = {"level": 19, "write_content_size": False, "write_dict_id": False}
    packer = zstandard.ZstdCompressor(dict_data=raw, **settings)
    unpacker = zstandard.ZstdDecompressor(dict_data=raw)
    return {
        "llmzip": (lambda r: llmzip.compress(r, model=model), llmzip.decompress),
        "llmzip --prime": (
            lambda r: llmzip.compress(r, model=model, prime=sample),
            lambda a: llmzip.decompress(a, prime=sample),
        ),
        "zstd -19": (zstandard.ZstdCompressor(**settings).compress, _unpack_zstd),
        "zstd -19 -D": (packer.compress, lambda a: unpacker.decompressobj().decompress(a)),
        "xz -9e": (lambda r: lzma.compress(r, preset=9 | lzma.PRESET_EXTREME), lzma.decompress),
    }


def _unpack_zstd(archive: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(archive)


def _round_trips(records: list[bytes], encode: Coder, decode: Coder) -> dict[str, Any]:
    first, archives, encode_ms = _timed(encode, records)
    _, decoded, decode_ms = _timed(decode, archives)
    return {
        "compressed_bytes": sum(map(len, archives)),
        "first_ms": first,
        "encode_ms": encode_ms,
        "decode_ms": decode_ms,
        "decoded": decoded == records,
    }


def _timed(work: Coder, inputs: list[bytes]) -> tuple[float, list[bytes], float]:
    """ms of processor time of a first call, results, and such ms a call: other work on the machine
    disturbs them least."""
    start = time.process_time()
    work(inputs[0])
    ready = time.process_time()
    results = [work(given) for given in inputs]
    done = time.process_time()
    return 1e3 * (ready - start), results, 1e3 * (done - ready) / len(inputs)
