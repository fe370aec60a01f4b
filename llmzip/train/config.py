"""A TOML file → what a training run is: the model's shape, the mix of texts, the schedule."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llmzip.errors import LlmzipError


@dataclass(frozen=True)
class Config:
    """Lengths in tokens, sizes in bytes, rates per step. Raises LlmzipError if fields disagree."""

    name: str
    mix: dict[str, float]  # category → share of the bytes; categories of share 0 are left out

    vocab_size: int = 8192
    hidden_size: int = 192
    layers: int = 5
    heads: int = 6
    kv_heads: int = 2
    intermediate_size: int = 512
    window: int = 512  # sliding attention

    sequence: int = 1024  # a multiple of the window
    batch: int = 4  # sequences a step and process
    corpus_bytes: int = 120_000_000  # of text to pack
    tokenizer_bytes: int = 25_000_000  # of text to train the tokenizer on
    longest_excerpt: int = 200_000  # bytes taken of one document, so that the mix stays mixed

    matrix_rate: float = 0.006  # Muon, of the matrices inside
    other_rate: float = 0.004  # AdamW, of embeddings and norms
    warmup_steps: int = 50
    decay_share: float = 0.3  # of the time budget, at its end
    quantised_share: float = 0.15  # likewise: steps are then a quarter slower
    seed: int = 1
    compile: bool = False  # torch.compile of each layer, on GPUs only

    prune_from: str = (
        ""  # a checkpoint of the Llama family that gives the shape, but the vocabulary
    )
    keep_layers: Sequence[int] = ()  # of that checkpoint; () keeps all
    distill_from: str = ""  # a model with the same tokenizer, whose predictions are learned, too
    distill_weight: float = 0.5  # of what is minimised, the teacher's share

    def __post_init__(self) -> None:
        if self.sequence % self.window:
            raise LlmzipError(f"sequence {self.sequence} is no multiple of window {self.window}")
        if self.hidden_size % self.heads or self.heads % self.kv_heads:
            raise LlmzipError(
                f"hidden_size {self.hidden_size}, heads {self.heads} and kv_heads "
                f"{self.kv_heads} do not divide each other"
            )
        if not any(self.mix.values()) or min(self.mix.values()) < 0:
            raise LlmzipError("the mix has no category with a positive share")
        if not 0 <= self.quantised_share <= self.decay_share <= 1:
            raise LlmzipError(
                f"quantised_share {self.quantised_share} is not between 0 and decay_share "
                f"{self.decay_share}"
            )
        if not 0 <= self.distill_weight <= 1:
            raise LlmzipError(f"distill_weight {self.distill_weight} is not between 0 and 1")

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for a report."""
        return asdict(self)


def load(path: Path) -> Config:
    """Read a TOML file; fields that it lacks have their defaults, the name that of the file.

    Raises LlmzipError for a file that is no configuration.
    """
    content = read_toml(path)
    known = {field.name for field in fields(Config)}
    if unknown := set(content) - known:
        raise LlmzipError(f"{path} has unknown settings: {', '.join(sorted(unknown))}")
    try:
        return Config(**{"name": path.stem, **content})
    except TypeError as error:
        raise LlmzipError(f"{path}: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises LlmzipError."""
    try:
        tomllib = importlib.import_module("tomllib")
    except ModuleNotFoundError:
        raise LlmzipError("reading a configuration needs Python 3.11 or newer") from None
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LlmzipError(f"{path} cannot be read: {error}") from None
    return content
