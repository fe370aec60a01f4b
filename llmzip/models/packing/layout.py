"""Constants and structures of the format; names are those of docs/packed.md."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

MAGIC = b"LLMW"
VERSION = 1
SUFFIX = ".llmzw"

HEADER = struct.Struct("<4sBQ")  # Magic, Version, Content_Length
# Content_Length, Side_Length, Side_Compressed_Length, Raw_Length, Coded_Length, Checksum
BLOCK_HEADER = struct.Struct("<IIIII4s")
CHUNK = struct.Struct("<BII")  # Kind, Elements, Columns
BLOCK_LIMIT = 1 << 24  # bytes of content in a block
SIDE_LIMIT = 1 << 25
CHUNK_ELEMENTS = 1 << 20
HASH_BYTES, CHECKSUM_BYTES = 16, 4

BYTES, INT8, FLOAT16, BFLOAT16, FLOAT32, FLOAT64 = range(6)  # Kind
WIDTH = (1, 1, 2, 2, 4, 8)  # bytes of an element
KINDS = {"I8": INT8, "U8": INT8, "F8_E4M3": INT8, "F8_E5M2": INT8, "F16": FLOAT16,
         "BF16": BFLOAT16, "F32": FLOAT32, "F64": FLOAT64}  # fmt: skip
LEVELLED = (INT8, FLOAT16, BFLOAT16, FLOAT32)

ROW_LEVELS, COLUMN_LEVELS = 1, 2  # bits of Levels
RAW, CONSTANT = 8, 9  # Shift: all 8 bits are stored in Raw; all bytes are equal
NO_LEVEL = 32  # the context of elements without level


class Chunk(NamedTuple):
    """A part of the content: elements of one tensor, or anything else as BYTES."""

    kind: int
    columns: int  # elements of a row; 0 if there are no levels
    content: bytes


def checksum(header: bytes, payload: bytes) -> bytes:
    """BLAKE2b-4 of a block's five lengths and its sections."""
    return hashlib.blake2b(header + payload, digest_size=CHECKSUM_BYTES).digest()
