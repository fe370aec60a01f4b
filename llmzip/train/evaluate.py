"""A trained folder + texts → bits per byte, in float32 by transformers and exactly with a8."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from llmzip import inference, models
from llmzip.tokenizer import Tokens

_STREAM = 4096  # tokens a stream, BOS included
_STREAMS = 8  # at a time


def bits_per_byte(folder: Path, text: Path, limit: int = 200_000) -> dict[str, float]:
    """Bits per byte of the first `limit` bytes of a text, in streams of 4,096 tokens.

    → bytes, float32, a8. Raises LlmzipError if the folder holds no model with an exact form.
    """
    files = models.load(str(folder))
    ids, size = windows(files, text, limit, _STREAM)
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network.train(False)
    total = 0.0
    with torch.inference_mode():
        for part in torch.split(ids, _STREAMS):
            seen = torch.nn.functional.pad(part, (1, 0), value=files.bos)[:, :-1]
            total += bits(network(seen).logits, part)
    return {"bytes": size, "float32": total / size, "a8": _exact_bits(files, ids) / size}


def exact_bits_per_byte(files: models.ModelFiles, text: Path, limit: int = 200_000) -> float:
    """The same by exact inference with 8-bit activations alone. Raises LlmzipError."""
    ids, size = windows(files, text, limit, _STREAM)
    return _exact_bits(files, ids) / size


def windows(files: models.ModelFiles, text: Path, limit: int, length: int) -> tuple[Tensor, int]:
    """Ids int64 [S, T] of the first `limit` bytes in whole windows of T = `length` tokens (fewer
    if the text has fewer), and the bytes that they spell. Raises OSError."""
    tokens = Tokens(files.tokenizer_json, int(files.config["vocab_size"]))
    ids = torch.from_numpy(tokens.encode(text.read_bytes()[:limit])).long()
    length = min(length, len(ids))
    ids = ids[: len(ids) // length * length].view(-1, length)
    return ids, len(tokens.decode(ids.flatten().numpy()))


def bits(logits: Tensor, ids: Tensor) -> float:
    """Cross entropy in bits of ids [S, T] under logits [S, T, V], summed."""
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), ids.flatten(), reduction="sum"
    )
    return float(loss) / math.log(2)


def _exact_bits(files: models.ModelFiles, ids: Tensor) -> float:
    context = inference.default_context(files)
    exact = inference.build(files, activations="a8", context=context)
    total = 0.0
    for part in torch.split(ids, _STREAMS):
        step = 0
        for chunk in exact.run(*part.shape).score(part):
            total += bits(torch.as_tensor(chunk), part.T[step : step + len(chunk)])
            step += len(chunk)
    return total
