"""A user's texts + a model → a model trained on them: `llmzip train`.

Every twentieth piece of the texts is held out, and tells what the training was good for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from llmzip import models
from llmzip.errors import LlmzipError
from llmzip.exact.architecture import Architecture
from llmzip.models.store import save_int8
from llmzip.tokenizer import Tokens
from llmzip.train import data, evaluate, loop, prune, run
from llmzip.train.config import Config
from llmzip.train.teacher import Teacher

_PIECE = 1 << 15  # bytes of text that are trained on, or held out, together
_HELD_OUT = 20  # one piece of so many
_LONGEST_SEQUENCE = 512  # tokens, for models without sliding attention


def _texts(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.is_file())
        else:
            yield path


def pieces(paths: list[Path]) -> Iterator[bytes]:
    """Yield the texts in pieces of about 32 KB, cut at line ends. Raises OSError."""
    for path in _texts(paths):
        with path.open("rb") as file:
            while piece := file.read(_PIECE) + file.readline():
                yield piece


@dataclass(frozen=True)
class Method:
    """How `train` makes the new model, if not by fine-tuning alone.

    `prune_from`: a checkpoint of the Llama family to begin with, of which the layers `keep_layers`
    stay (all, if there are none), with the tokenizer of the file `tokenizer`, else that of the
    teacher, else a new one of `vocabulary` tokens, and a sliding window of `window` tokens.
    `distill_from`: a teacher with the same tokenizer, whose predictions are learned with the share
    `distill_weight`.
    """

    prune_from: str = ""
    keep_layers: Sequence[int] = ()
    tokenizer: Path | None = None
    vocabulary: int = 8192
    window: int = 512
    distill_from: str = ""
    distill_weight: float = 0.5


FINE_TUNING = Method()


def train(
    paths: list[Path],
    out: Path,
    base: str,
    budget: float,
    method: Method = FINE_TUNING,
    *,
    max_steps: int | None = None,
) -> dict[str, Any]:
    """Train for `budget` seconds and write the folder `out`, int8; returns the report.

    `base` is fine-tuned, unless `method` names a checkpoint to prune. The held-out pieces' bits per
    byte, before and after, are of exact inference with a8. Raises LlmzipError for too little text,
    or a model that cannot be trained.
    """
    train_pieces, held_out = _divided(paths)
    size = sum(map(len, train_pieces))
    files = models.load(method.prune_from or base)
    if method.prune_from:
        files = _pruned(files, method, train_pieces)
    architecture = Architecture.from_config(files.config)
    sequence = architecture.window or min(architecture.context, _LONGEST_SEQUENCE)
    tokens = Tokens(files.tokenizer_json, architecture.vocab_size)
    if tokens.size != architecture.vocab_size:
        raise LlmzipError(f"{base} has no token for some bytes, so it cannot be fine-tuned")
    packed = [np.array([files.bos, *tokens.encode(piece)], np.uint32) for piece in train_pieces]
    if sum(map(len, packed)) < 4 * sequence:
        raise LlmzipError(f"{size} bytes of text are too little to train on")
    config = _config(out.name, sequence, method)
    teacher = None
    if method.distill_from:
        teacher = Teacher(
            method.distill_from, files.tokenizer_json, architecture.vocab_size, sequence
        )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "tokens.npy", np.concatenate(packed))
        (work / "bytes.txt").write_text(f"{size}\n")
        (work / "tokenizer.json").write_bytes(files.tokenizer_json)
        (work / "held-out").write_bytes(held_out)
        before = evaluate.exact_bits_per_byte(files, work / "held-out")
        network, progress = loop.train(
            config,
            work,
            budget,
            # a model that fits already is trained for int8 from the first step
            phase="all" if method.prune_from else "decay",
            network=prune.network_of(files),
            teacher=teacher,
            max_steps=max_steps,
        )
        run.export(network, work, work / "floats")
        # trained for 8-bit inference, which `--model` chooses for weights in this form
        save_int8(str(work / "floats"), out)
        after = evaluate.exact_bits_per_byte(models.load(str(out)), work / "held-out")
    return {
        "base": method.prune_from or base,
        "model": str(out),
        "bytes": size,
        "held_out_bytes": len(held_out),
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "bits_per_byte_before": before,
        "bits_per_byte_after": after,
    }


def _divided(paths: list[Path]) -> tuple[list[bytes], bytes]:
    """The pieces to train on, and the held-out ones in one text. Raises OSError."""
    kept, held_out = [], bytearray()
    for i, piece in enumerate(pieces(paths)):
        if i % _HELD_OUT == 0:
            held_out += piece
        else:
            kept.append(piece)
    return kept, bytes(held_out)


def _config(name: str, sequence: int, method: Method) -> Config:
    """What differs from training a model from the start: lower rates, short sequences."""
    config = Config(
        name=name,
        mix={"texts": 1.0},
        window=sequence,
        sequence=sequence,
        batch=8,
        matrix_rate=0.002,
        other_rate=0.001,
        warmup_steps=10,
        distill_weight=method.distill_weight,
        decay_share=1.0,
        quantised_share=1.0,
    )
    if not method.prune_from:
        return config
    # pruned layers are farther from where they will end than a whole model
    return replace(config, other_rate=0.002, decay_share=0.5, quantised_share=0.15)


def _pruned(files: models.ModelFiles, method: Method, texts: list[bytes]) -> models.ModelFiles:
    if method.tokenizer is not None:
        tokenizer = method.tokenizer.read_bytes()
    elif method.distill_from:
        tokenizer = models.load(method.distill_from).tokenizer_json
    else:
        documents = [text.decode("utf-8", "ignore") for text in texts]
        settings = Config(name="", mix={"texts": 1.0}, vocab_size=method.vocabulary)
        tokenizer = data.train_tokenizer(documents, settings).to_str().encode()
    return prune.prune(files, method.keep_layers, tokenizer, method.window)
