"""bytes ↔ token ids, lossless for every byte string and any tokenizer."""

from llmzip.tokenizer.tokens import Tokens

__all__ = ["Tokens"]
