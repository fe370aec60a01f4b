"""A user's texts + a model → the model fine-tuned on them: `llmzip train`.

Every twentieth piece of the texts is held out, and tells what the training was good for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from llmzip import models
from llmzip.errors import LlmzipError
from llmzip.exact.llama import ROTATED_KEY, Architecture
from llmzip.exact.quantise import dequantise_tensors
from llmzip.models.store import save_int8
from llmzip.tokenizer import Tokens
from llmzip.train import evaluate, loop, run
from llmzip.train.config import Config

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


def network_of(files: models.ModelFiles) -> PreTrainedModel:
    """A float32 model of transformers with the weights of `files`, int8 ones made floats.

    Raises LlmzipError for weights that do not fit the config.
    """
    architecture = Architecture.from_config(files.config)
    attention = "llmzip_banded" if architecture.window else "sdpa"
    left_out = ("model_type", ROTATED_KEY)
    settings = {key: value for key, value in files.config.items() if key not in left_out}
    config = AutoConfig.for_model(files.config["model_type"], **settings)
    config.use_cache = False
    from_config: Any = AutoModelForCausalLM.from_config
    network: PreTrainedModel = from_config(config, attn_implementation=attention)
    weights = {n: t.float() for n, t in dequantise_tensors(files.config, files.tensors).items()}
    missing, unexpected = network.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise LlmzipError(f"the weights of {files.name} do not fit its config")
    network.tie_weights()
    return network


def train(
    paths: list[Path], out: Path, base: str, budget: float, max_steps: int | None = None
) -> dict[str, Any]:
    """Fine-tune for `budget` seconds and write the folder `out`, int8; returns the report.

    The held-out pieces' bits per byte, before and after, are of exact inference with a8. Raises
    LlmzipError for too little text, or a model that cannot be fine-tuned.
    """
    files = models.load(base)
    architecture = Architecture.from_config(files.config)
    sequence = architecture.window or min(architecture.context, _LONGEST_SEQUENCE)
    tokens = Tokens(files.tokenizer_json, architecture.vocab_size)
    if tokens.size != architecture.vocab_size:
        raise LlmzipError(f"{base} has no token for some bytes, so it cannot be fine-tuned")
    kept, held_out, size = [], bytearray(), 0
    for i, piece in enumerate(pieces(paths)):
        if i % _HELD_OUT == 0:
            held_out += piece
        else:
            kept.append(np.concatenate([[files.bos], tokens.encode(piece)]).astype(np.uint32))
            size += len(piece)
    if sum(map(len, kept)) < 4 * sequence:
        raise LlmzipError(f"{size} bytes of text are too little to train on")
    config = Config(
        name=out.name,
        mix={"texts": 1.0},
        window=sequence,
        sequence=sequence,
        batch=8,
        matrix_rate=0.002,
        other_rate=0.001,
        warmup_steps=10,
    )
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        np.save(work / "tokens.npy", np.concatenate(kept))
        (work / "bytes.txt").write_text(f"{size}\n")
        (work / "tokenizer.json").write_bytes(files.tokenizer_json)
        (work / "held-out").write_bytes(held_out)
        before = evaluate.exact_bits_per_byte(files, work / "held-out")
        network, progress = loop.train(
            config, work, budget, phase="decay", network=network_of(files), max_steps=max_steps
        )
        run.export(network, work, work / "floats")
        # trained for 8-bit inference, which `--model` chooses for weights in this form
        save_int8(str(work / "floats"), out)
        after = evaluate.exact_bits_per_byte(models.load(str(out)), work / "held-out")
    torch.set_flush_denormal(False)
    return {
        "base": base,
        "model": str(out),
        "bytes": size,
        "held_out_bytes": len(held_out),
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "bits_per_byte_before": before,
        "bits_per_byte_after": after,
    }
