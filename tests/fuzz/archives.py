#!/usr/bin/env python3
"""Fuzz the container and the decoders, guided by coverage (pip install atheris):

    python tests/fuzz/archives.py [--no-checks] tests/fuzz/corpus -rss_limit_mb=3000 -timeout=20

With --no-checks no frame's checksum is verified, so that the bytes reach the decoders of zstd,
LZMA and models; then only crashes, hangs and memory are looked for.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["llmzip"]):
    from conftest import table_frames

    from fuzz import properties

CHECKS = "--no-checks" not in sys.argv


def one(data: bytes) -> None:
    if not data:
        return
    with properties.any_model(FRAMES, checks=CHECKS):
        properties.check(data)


table = table_frames()
FRAMES = properties.Short(table.tokens, table.predictor)
atheris.Setup([a for a in sys.argv if a != "--no-checks"], one)
atheris.Fuzz()
