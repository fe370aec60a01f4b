"""`Options`: how to compress and decompress, checked when they are made."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from llmzip.archive.header import LONGEST_WINDOW, round_length
from llmzip.coding.frame import FRAME_LIMIT
from llmzip.errors import LlmzipError

FRAME_SIZE = 4 << 20  # bytes of content
_SHORTEST_WINDOW = 16  # tokens
_ACTIVATIONS = ("a8", "a16")
MIXINGS = ("none", "full", "fast")  # by the number in headers
PRIME_LIMIT = 1 << 20  # bytes
_MOST_FRAMES = 16  # at a time: each needs some 110 MB and its share of a KV cache

_NONE = type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str, _NONE),
    "device": (str,),
    "streams": (int, _NONE),
    "stream_tokens": (int, _NONE),
    "activations": (str, _NONE),
    "context": (int, tuple, _NONE),
    "frame_size": (int,),
    "mixing": (str,),
    "max_length": (int, _NONE),
    "prime": (bytes, _NONE),
}


@dataclass(frozen=True)
class Options:
    """How to compress and decompress.

    Raises TypeError for a value of a wrong type, LlmzipError for one that is out of range.
    """

    # For both directions:
    model: str | None = None  # name, folder, GGUF file or hub id; None: default, or the archive's
    device: str = "cpu"  # torch device
    # a text like the content, which is learned from before it; the decoder needs it, too
    prime: bytes | None = field(default=None, repr=False)
    # For compression:
    streams: int | None = None  # a frame; None: by the frame's length, see stream_tokens
    # tokens a stream, at least: the fewer, the more streams. None: 6,144, and no more than 16
    # streams; with models that gain by them, as `base`, 3,072 and 32; or 4 streams of a text that
    # zstd makes 4.4 times smaller
    stream_tokens: int | None = None
    activations: str | None = None  # "a8" (default) or "a16": slower, hardly fewer bits
    # tokens: (window, overlap), or the window, rounded down to what a header can express; None:
    # the model's
    context: tuple[int, int] | int | None = None
    frame_size: int = FRAME_SIZE  # bytes of content
    verify: bool = False  # decode every frame before it is written
    # predictions from the earlier content of the frame: "full"; "fast", of few contexts; "none"
    mixing: str = "full"
    same_environment: bool = False  # any model in floating point; decodes only here
    # For decompression:
    force: bool = False  # decode a same-environment archive in another environment
    allow_download: bool = False  # download the hub model that an archive names
    max_length: int | None = None  # bytes; refuse archives with more content

    def __post_init__(self) -> None:
        given: Any = self.model
        if isinstance(given, os.PathLike):
            object.__setattr__(self, "model", os.fspath(given))
        for name, types in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, types) or isinstance(value, bool):
                wanted = " or ".join("None" if type is _NONE else type.__name__ for type in types)
                raise TypeError(f"{name} is {value!r}; it must be {wanted}")
        if self.streams is not None and self.streams < 1:
            raise LlmzipError(f"{self.streams} streams; at least 1 is needed")
        if self.stream_tokens is not None and self.stream_tokens < 1:
            raise LlmzipError(f"streams of {self.stream_tokens} tokens; at least 1 is needed")
        if self.max_length is not None and self.max_length < 0:
            raise LlmzipError(f"max_length is {self.max_length}; it must not be negative")
        if self.prime is not None and not 1 <= len(self.prime) <= PRIME_LIMIT:
            raise LlmzipError(
                f"a prime of {len(self.prime)} bytes; 1 to {PRIME_LIMIT} are possible"
            )
        if not 1 <= self.frame_size <= FRAME_LIMIT:
            raise LlmzipError(f"frames of {self.frame_size} bytes; 1 to {FRAME_LIMIT} are possible")
        if self.context is not None:
            _check_context(self.context)
        if self.activations not in (None, *_ACTIVATIONS):
            raise LlmzipError(f"activations {self.activations!r}; choose a8 or a16")
        if self.mixing not in MIXINGS:
            raise LlmzipError(f"mixing {self.mixing!r}; choose full, fast or none")
        if self.same_environment and self.activations is not None:
            raise LlmzipError("same-environment mode has no choice of activations: leave it out")
        if self.same_environment and self.model is None:
            raise LlmzipError("same-environment mode needs a model: name one")


def _check_context(context: Any) -> None:
    pair = context if isinstance(context, tuple) else (context, 0)
    if len(pair) != 2 or any(not isinstance(n, int) or isinstance(n, bool) for n in pair):
        raise TypeError(f"context is {context!r}; it must be a window or (window, overlap)")
    window, overlap = pair
    if window < _SHORTEST_WINDOW:
        raise LlmzipError(f"a window of {window} tokens; at least {_SHORTEST_WINDOW} are needed")
    if context is pair and window > LONGEST_WINDOW:  # a window alone is rounded down
        raise LlmzipError(f"a window of {window} tokens; at most {LONGEST_WINDOW} are possible")
    fits = round_length(overlap) < round_length(window) - 1  # as the header has them
    if not (0 <= overlap < window - 1 and fits):
        raise LlmzipError(f"a window of {window} tokens cannot overlap by {overlap}")


def frames_together(device: str) -> int:
    """How many frames are coded at a time: one for each core, up to a limit; on a GPU, twice as
    many as threads can mix, so that there is always a half that waits for them."""
    from llmzip.inference.base import cores

    if device.startswith("cuda"):
        return 2 * (os.cpu_count() or 1)
    return min(cores(), _MOST_FRAMES)


def bytes_like(data: Any, function: str) -> memoryview:
    """A bytes-like object as a view of bytes [n]; raises TypeError for anything else.

    `function` names the caller in the error.
    """
    try:
        view = memoryview(data)
    except TypeError:
        encode = "; encode the text first, as in text.encode()" if isinstance(data, str) else ""
        raise TypeError(
            f"{function} needs a bytes-like object, not {type(data).__name__}{encode}"
        ) from None
    return view.cast("B") if view.nbytes else memoryview(b"")
