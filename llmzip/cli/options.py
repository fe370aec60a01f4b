"""Arguments of the command line → `llmzip.Options`, and the number of threads."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

import llmzip
from llmzip.cli.usage import UsageError
from llmzip.errors import LlmzipError

if TYPE_CHECKING:
    from llmzip.archive.options import Options

_NAMES = ("model", "device", "streams", "stream_tokens", "activations", "context", "verify",
          "mixing", "same_environment", "force", "allow_download")  # fmt: skip
WIDE = {"frame_size": 1 << 20, "stream_tokens": 1024}
# embedded model, tokens a stream, mixing
PRESETS = {"fast": ("nano", 512, "fast"), "best": ("base", None, "full")}


def options_of(arguments: argparse.Namespace, *, writing: bool = False) -> Options:
    """The options that were given; presets count only if `writing`. Raises UsageError."""
    given = {n: v for n in _NAMES if (v := getattr(arguments, n, None)) is not None}
    if getattr(arguments, "max_output", None) is not None:
        given["max_length"] = arguments.max_output
    if getattr(arguments, "prime", None) is not None:
        given["prime"] = _read_prime(arguments.prime)
    if writing and getattr(arguments, "wide", False):
        given = {**WIDE, **given}
    preset = getattr(arguments, "preset", None)
    if writing and preset is not None:
        from llmzip import models

        model, tokens, mixing = PRESETS[preset]
        given = {"stream_tokens": tokens, "mixing": mixing, **given}
        if model in models.EMBEDDED:
            given = {"model": model, **given}
    try:
        return llmzip.Options(**given)
    except LlmzipError as error:
        raise UsageError(str(error)) from None


def _read_prime(name: str) -> bytes:
    from llmzip.archive.options import PRIME_LIMIT

    try:
        with open(name, "rb") as file:
            prime = file.read(PRIME_LIMIT + 1)
    except OSError as error:
        raise UsageError(f"--prime {name}: {error.strerror or error}") from None
    if len(prime) > PRIME_LIMIT:
        raise UsageError(f"--prime {name}: longer than {PRIME_LIMIT} bytes, the limit")
    return prime


def set_threads(count: int | None) -> None:
    """Set the number of threads of torch, whether it is loaded or not, and of the tokenizer. Raises
    UsageError."""
    if count is None:
        return
    if count < 0:
        raise UsageError(f"{count} threads; 0 means all cores")
    if not count:
        from llmzip.inference.base import cores_of_machine

        count = cores_of_machine()
    os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def numbers(text: str) -> list[int]:
    """ "0,1,3" → [0, 1, 3]. Raises argparse.ArgumentTypeError."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 0,1,3") from None
