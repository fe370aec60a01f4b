"""What the golden archives are made of: name → (content, options)."""

from __future__ import annotations

import io
import random

from conftest import AWKWARD, PROSE, TINY

from llmzip import ArchiveWriter, Options

_MIXED = b"\n".join(content for name, content in AWKWARD.items() if name != "all bytes")

PRIME = PROSE[:300].encode()
_SAMPLE = (TINY.parent / "sample.txt").read_bytes()  # several windows of `small`

CASES: dict[str, tuple[bytes, Options]] = {
    "empty": (b"", Options(model=str(TINY))),
    "raw": (random.Random(1).randbytes(256), Options(model=str(TINY))),
    "zstd": (b"again and again, " * 5000, Options(model=str(TINY))),
    "lzma": (AWKWARD["all bytes"] * 3 + b"again" * 40, Options(model=str(TINY))),
    "a8": (PROSE.encode(), Options(model=str(TINY), activations="a8")),
    "a16": (PROSE.encode(), Options(model=str(TINY), activations="a16", streams=3)),
    "no-mixing": (PROSE.encode(), Options(model=str(TINY), mixing="none")),
    "fast-mixing": (PROSE.encode() * 2, Options(model=str(TINY), mixing="fast")),
    "restarts": (
        (PROSE + PROSE[::-1]).encode(),
        Options(model=str(TINY), context=(64, 32), streams=2),
    ),
    "frames": (
        PROSE.encode() * 2 + bytes(range(256)) + b"x" * 400,
        Options(model=str(TINY), frame_size=400),
    ),
    "base": (PROSE.encode(), Options(model="base", streams=2)),
    "sliding": (_SAMPLE[:1500], Options(model="small")),
    "primed": (
        PROSE[200:].encode(),
        Options(model=str(TINY), context=(64, 32), streams=2, prime=PRIME),
    ),
    "primed-short": (PROSE[300:400].encode(), Options(model="nano", prime=PRIME)),
    "short": (PROSE[:100].encode(), Options(model="nano")),
    "awkward": (_MIXED + PROSE.encode(), Options(model=str(TINY))),
}


def archive(name: str) -> bytes:
    content, options = CASES[name]
    sink = io.BytesIO()
    writer = ArchiveWriter(sink, options)
    writer.write(content)
    writer.finish()
    return sink.getvalue()
