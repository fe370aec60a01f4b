"""A larger model → the likeliest tokens at each position, for a smaller one to learn from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmzip import models
from llmzip.errors import LlmzipError
from llmzip.exact.architecture import LLAMA_TYPES
from llmzip.exact.convert.config import load_network, parse_config
from llmzip.exact.quantise import dequantise_tensors
from llmzip.tokenizer import Tokens
from llmzip.train.losses import Targets

_TOP = 64  # tokens of each position; the probability of all others is one number


class Teacher:
    """Any model that llmzip loads, computed by transformers in floating point."""

    def __init__(self, name: str, tokenizer_json: bytes, vocabulary: int, sequence: int) -> None:
        """`tokenizer_json` and `vocabulary` are the student's, `sequence` the tokens to predict at
        once. Raises LlmzipError if the teacher has another tokenizer or a shorter context."""
        files = models.load(name)
        config = parse_config(files.config)
        self.vocabulary = vocabulary
        own = Tokens(files.tokenizer_json, int(config.get_text_config(decoder=True).vocab_size))
        student = Tokens(tokenizer_json, vocabulary)
        if own.spellings[:vocabulary] != student.spellings[:vocabulary]:
            raise LlmzipError(f"{name} has another tokenizer than the model that it would teach")
        sliding = files.config.get("sliding_window") is not None
        context = getattr(config, "max_position_embeddings", None)
        if not sliding and context is not None and context < sequence:
            raise LlmzipError(
                f"{name} has a context of {context} tokens, shorter than sequences of {sequence}"
            )
        # every architecture has eager attention, but it is slower and takes more memory
        attention = "sdpa" if files.config.get("model_type") in LLAMA_TYPES else "eager"
        tensors = dequantise_tensors(files.config, files.tensors)
        network: Any = load_network(config, tensors, attention)
        self.network = network.float()  # GPUs compute in bfloat16 under autocast

    def to(self, device: torch.device) -> Teacher:
        """Move the network to a device; returns the teacher."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Targets:
        """ids int64 [B, T] → targets [B, T, K] of the tokens after each."""
        found = []
        for row in ids:  # one sequence at a time, as logits take more memory than all else
            logits = self.network(input_ids=row[None], use_cache=False).logits[0]
            logp = logits[:, : self.vocabulary].float().log_softmax(-1)
            found.append(logp.topk(min(_TOP, self.vocabulary), dim=-1))
        return Targets(
            torch.stack([top.indices for top in found]), torch.stack([top.values for top in found])
        )
