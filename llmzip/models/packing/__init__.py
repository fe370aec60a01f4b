"""Lossless compression of safetensors files, format `.llmzw` (docs/packed.md).

Weights are split into planes of bytes; exponents are entropy-coded apart from mantissas, each in
the context of its row's and column's level. Blocks are independent, so memory is bounded and
processes share the work. `file` → `blocks` → `planes` → `layout`; `tensors` reads safetensors.
"""

from llmzip.models.packing.file import content_length, pack, unpack
from llmzip.models.packing.layout import SUFFIX

__all__ = ["SUFFIX", "content_length", "pack", "unpack"]
