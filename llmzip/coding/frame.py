"""A frame: a run of content that decodes on its own, and how it is coded.

Knows nothing of archives and of models.
"""

from __future__ import annotations

from dataclasses import dataclass

RAW, ZSTD, MODEL, LZMA = 0, 1, 2, 3  # Frame_Kind

FRAME_LIMIT = 1 << 26  # bytes of content a frame, binding writers and readers
SMALL = 1 << 16  # content up to this needs no Payload_Checksum, and alone no trailer


@dataclass(frozen=True)
class Frame:
    """A run of content that decodes on its own."""

    kind: int
    content_length: int
    payload: bytes
    tokens: int = 0  # of MODEL frames only; 0 in short archives, where the content's length tells
    streams: int = 0
    last: bool = False
