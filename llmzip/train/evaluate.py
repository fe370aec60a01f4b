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
    """Of the first `limit` bytes of a text, in streams of 4,096 tokens."""
    files = models.load(str(folder))
    ids, size = _streams(files, text, limit)
    return {
        "bytes": size,
        "float32": _float_bits(folder, files.bos, ids) / size,
        "a8": _exact_bits(files, ids) / size,
    }


def exact_bits_per_byte(files: models.ModelFiles, text: Path, limit: int = 200_000) -> float:
    ids, size = _streams(files, text, limit)
    return _exact_bits(files, ids) / size


def _streams(files: models.ModelFiles, text: Path, limit: int) -> tuple[Tensor, int]:
    """(ids [S, T] of whole streams, the bytes that they spell)."""
    tokens = Tokens(files.tokenizer_json, int(files.config["vocab_size"]))
    ids = torch.from_numpy(tokens.encode(text.read_bytes()[:limit])).long()
    length = min(_STREAM, len(ids))
    ids = ids[: len(ids) // length * length].view(-1, length)
    return ids, len(tokens.decode(ids.flatten().numpy()))


def _bits(logits: Tensor, ids: Tensor) -> float:
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), ids.flatten(), reduction="sum"
    )
    return float(loss) / math.log(2)


def _float_bits(folder: Path, bos: int, ids: Tensor) -> float:
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    network.train(False)
    total = 0.0
    with torch.inference_mode():
        for part in torch.split(ids, _STREAMS):
            seen = torch.nn.functional.pad(part, (1, 0), value=bos)[:, :-1]
            total += _bits(network(seen).logits, part)
    return total


def _exact_bits(files: models.ModelFiles, ids: Tensor) -> float:
    context = inference.default_context(files)
    exact = inference.build(files, activations="a8", context=context)
    total = 0.0
    for part in torch.split(ids, _STREAMS):
        step = 0
        for chunk in exact.run(*part.shape).score(part):
            total += _bits(chunk, part.T[step : step + len(chunk)])
            step += len(chunk)
    return total
