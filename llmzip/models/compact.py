"""A byte-pair tokenizer.json ↔ a smaller JSON that says nothing twice.

The vocabulary of most such tokenizers follows from its first tokens and the merges, in their
order; only these are kept, a merge as one string. Expanding gives the parsed JSON back, exactly,
and with it the model's digest.
"""

from __future__ import annotations

from typing import Any

from llmzip.errors import UnsupportedModel

NAME = "tokenizer.compact.json"


def compact(tokenizer: dict[str, Any]) -> dict[str, Any] | None:
    """The smaller form; None where it would not give the same back."""
    try:
        model = tokenizer["model"]
        first = len(model["vocab"]) - len(model["merges"])
        names = sorted(model["vocab"], key=model["vocab"].__getitem__)
        merges = [" ".join(pair) for pair in model["merges"]]
        small = {**tokenizer, "model": {**model, "vocab": names[:first], "merges": merges}}
        return small if expand(small) == tokenizer else None
    except (KeyError, TypeError, ValueError, AttributeError, UnsupportedModel):
        return None


def expand(small: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer.json that a compact form stands for. Raises UnsupportedModel."""
    try:
        model = small["model"]
        pairs = [merge.split(" ") for merge in model["merges"]]
        names = model["vocab"] + [left + right for left, right in pairs]
        vocabulary = {name: id for id, name in enumerate(names)}
        return {**small, "model": {**model, "vocab": vocabulary, "merges": pairs}}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnsupportedModel(f"{NAME} is malformed") from None
