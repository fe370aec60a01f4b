"""How to compress and decompress: what callers may choose, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from llmzip.coding.frame import FRAME_LIMIT
from llmzip.coding.frame_codec import STREAM_TOKENS
from llmzip.errors import LlmzipError

FRAME_SIZE = 4 << 20  # bytes of content
_SHORTEST_WINDOW = 16
_ACTIVATIONS = ("a8", "a16")

_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {  # of Options
    "model": (str, _NONE),
    "device": (str,),
    "streams": (int, _NONE),
    "stream_tokens": (int,),
    "activations": (str, _NONE),
    "context": (int, tuple, _NONE),
    "frame_size": (int,),
    "max_length": (int, _NONE),
}


@dataclass(frozen=True)
class Options:
    """How to compress, and with which model and device in either direction."""

    # embedded or installed name, folder, GGUF file, hub id; None: default, or the archive's
    model: str | None = None
    device: str = "cpu"
    streams: int | None = None  # None: by length, as follows
    stream_tokens: int = STREAM_TOKENS  # fewer make more streams of a frame: faster, larger
    activations: str | None = None  # "a8", the default, or "a16": slower, hardly more exact
    # window and overlap, or the window alone, rounded down to what a header can express;
    context: tuple[int, int] | int | None = None  # None: the model's
    frame_size: int = FRAME_SIZE
    verify: bool = False  # decode every frame before it is written
    memory: bool = True  # learn from what the frame has said so far
    same_environment: bool = False  # plain floating point: any model, this environment alone
    force: bool = False  # read such an archive in another environment
    allow_download: bool = False  # load the hub model that an archive names
    max_length: int | None = None  # refuse archives with more bytes of content

    def __post_init__(self) -> None:
        given: Any = self.model
        if isinstance(given, os.PathLike):
            object.__setattr__(self, "model", os.fspath(given))
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                wanted = " or ".join("None" if kind is _NONE else kind.__name__ for kind in kinds)
                raise TypeError(f"{name} is {value!r}, where {wanted} is needed")
        if self.streams is not None and self.streams < 1:
            raise LlmzipError(f"{self.streams} streams; at least 1 is needed")
        if self.stream_tokens < 1:
            raise LlmzipError(f"streams of {self.stream_tokens} tokens; at least 1 is needed")
        if self.max_length is not None and self.max_length < 0:
            raise LlmzipError(f"a content of at most {self.max_length} bytes")
        if not 1 <= self.frame_size <= FRAME_LIMIT:
            raise LlmzipError(
                f"a frame of {self.frame_size} bytes; possible are 1 to {FRAME_LIMIT}"
            )
        if isinstance(self.context, int):
            if self.context < _SHORTEST_WINDOW:
                raise LlmzipError(
                    f"a window of {self.context} tokens; at least {_SHORTEST_WINDOW} are needed"
                )
        elif self.context is not None and not 0 <= self.context[1] < self.context[0] - 1:
            window, overlap = self.context
            raise LlmzipError(f"a window of {window} tokens cannot overlap by {overlap}")
        if self.activations not in (None, *_ACTIVATIONS):
            raise LlmzipError(f"activations {self.activations!r}; known: a8, a16")
        if self.same_environment and self.activations is not None:
            raise LlmzipError("activations have no choice of bits in the same environment alone")
        if self.same_environment and self.model is None:
            raise LlmzipError("the same-environment mode is for models of your own: name one")


def bytes_like(data: Any, function: str) -> memoryview:
    """A view of any bytes-like object as bytes. Raises TypeError that says what is needed."""
    try:
        view = memoryview(data)
    except TypeError:
        encode = "; encode the text first, as in text.encode()" if isinstance(data, str) else ""
        raise TypeError(
            f"{function} needs a bytes-like object, not {type(data).__name__}{encode}"
        ) from None
    return view.cast("B") if view.nbytes else memoryview(b"")
