"""A byte-pair tokenizer.json ↔ a smaller JSON without redundancy.

Most vocabularies follow from their first tokens and the merges, in order; only these are stored,
and a merge becomes one string. Expanding gives the parsed JSON back exactly, hence the same digest.
"""

from __future__ import annotations

from typing import Any

from llmzip.errors import UnsupportedModel

NAME = "tokenizer.compact.json"


def compact(tokenizer: dict[str, Any]) -> dict[str, Any] | None:
    """The compact form of a parsed tokenizer.json; None if it cannot be expanded again."""
    try:
        model = tokenizer["model"]
        first = len(model["vocab"]) - len(model["merges"])
        tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
        merges = [" ".join(pair) for pair in model["merges"]]
        small = {**tokenizer, "model": {**model, "vocab": tokens[:first], "merges": merges}}
        return small if expand(small) == tokenizer else None
    except (KeyError, TypeError, ValueError, AttributeError, UnsupportedModel):
        return None


def expand(small: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `compact`. Raises UnsupportedModel."""
    try:
        model = small["model"]
        pairs = [merge.split(" ") for merge in model["merges"]]
        tokens = model["vocab"] + [left + right for left, right in pairs]
        vocabulary = {token: id for id, token in enumerate(tokens)}
        return {**small, "model": {**model, "vocab": vocabulary, "merges": pairs}}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UnsupportedModel(f"{NAME} is malformed") from None
