"""The tokenizer in a GGUF file's metadata → an equivalent tokenizer.json.

Byte-level BPE (`gpt2`) gets the pre-tokenizer of llama.cpp. SentencePiece BPE (`llama`) gets merges
from the tokens' scores, and no space is prepended, so that a text is encoded as it is. The result
is part of the model's digest: a change makes archives unreadable.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmzip.errors import UnsupportedModel

ARRAYS = tuple(f"tokenizer.ggml.{key}" for key in ("tokens", "scores", "token_type", "merges"))
_CONTROL, _USER_DEFINED = 3, 4
_UNMERGED = (2, 3, 6)  # unknown, control and byte tokens, which are no result of merges
_MAX_MERGED = 64  # characters of a token that may be the result of a merge

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def _split(regex: str) -> list[dict[str, Any]]:
    pattern = {"Regex": regex}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [split, _byte_level(False)]


_GPT2 = [_byte_level(True)]
_DIGITS = [{"type": "Digits", "individual_digits": True}, _byte_level(True)]
_LLAMA3 = _split(_LETTERS + r"|\p{N}{1,3}" + _REST)
_QWEN2 = _split(_LETTERS + r"|\p{N}" + _REST)
# tokenizer.ggml.pre → pre-tokenizer
_PRE_TOKENIZERS = {
    **dict.fromkeys(("default", "gpt-2", "gpt2", "phi-2", "mpt", "olmo"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "codeshell", "command-r"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    "tekken": _split(_TEKKEN),
}


def tokenizer_json(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The parsed tokenizer.json. Raises UnsupportedModel for unknown or malformed tokenizers."""
    kind = fields.get("tokenizer.ggml.model")
    tokens = _list(fields, "tokens", str)
    types = [1] * len(tokens)
    if "tokenizer.ggml.token_type" in fields:
        types = _list(fields, "token_type", int, len(tokens))
    vocabulary: dict[str, int] = {}
    for id, token in enumerate(tokens):
        vocabulary.setdefault(token, id)  # of duplicate tokens the first is used
    added = [
        {
            "id": id,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": type == _CONTROL,
        }
        for id, (token, type) in enumerate(zip(tokens, types, strict=True))
        if type in (_CONTROL, _USER_DEFINED) and token and vocabulary[token] == id
    ]
    if kind == "gpt2":
        parts = _byte_level_bpe(fields, vocabulary)
    elif kind == "llama":
        parts = _sentencepiece_bpe(fields, vocabulary, types)
    else:
        raise UnsupportedModel(f"a tokenizer of type {kind!r} is not known; known: gpt2, llama")
    model = {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "ignore_merges": False,
        **parts.pop("model"),
        "vocab": vocabulary,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "post_processor": None,
        **parts,
        "model": model,
    }


def _list(fields: Mapping[str, Any], key: str, kind: type, count: int | None = None) -> list[Any]:
    found = fields.get(f"tokenizer.ggml.{key}")
    if not isinstance(found, list) or not found or not isinstance(found[0], kind):
        raise UnsupportedModel(f"malformed: tokenizer.ggml.{key} is missing, or no such list")
    if count is not None and len(found) != count:
        raise UnsupportedModel(f"malformed: {len(found)} entries of {key} for {count} tokens")
    return found


def _byte_level_bpe(fields: Mapping[str, Any], vocabulary: dict[str, int]) -> dict[str, Any]:
    pre = fields.get("tokenizer.ggml.pre", "default")
    stages = _PRE_TOKENIZERS.get(pre) if isinstance(pre, str) else None
    if stages is None:
        raise UnsupportedModel(
            f"a tokenizer that cuts texts as {pre!r} is not known; "
            f"known: {', '.join(_PRE_TOKENIZERS)}"
        )
    merges = []
    for merge in _list(fields, "merges", str):
        left, _, right = merge.partition(" ")
        if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
            raise UnsupportedModel(f"malformed: a merge of what is no token: {merge!r:.50}")
        merges.append([left, right])
    return {
        "normalizer": None,
        "pre_tokenizer": stages[0] if len(stages) == 1
        else {"type": "Sequence", "pretokenizers": stages},
        "decoder": _byte_level(True),
        "model": {
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": stages is _LLAMA3,  # Llama 3 does not merge a piece that is a token
            "merges": merges,
        },
    }  # fmt: skip


def _sentencepiece_bpe(
    fields: Mapping[str, Any], vocabulary: dict[str, int], types: list[int]
) -> dict[str, Any]:
    scores = _list(fields, "scores", float, len(types))
    if any(score != score for score in scores):
        raise UnsupportedModel("malformed: a token's score is no number")
    unknown = fields.get("tokenizer.ggml.unknown_token_id", 0)
    name = next((token for token, id in vocabulary.items() if id == unknown), None)
    return {
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "unk_token": name,
            "fuse_unk": True,
            "byte_fallback": True,
            "merges": _merges(vocabulary, scores, types),
        },
    }


def _merges(vocabulary: dict[str, int], scores: list[float], types: list[int]) -> list[list[str]]:
    """All merges of two tokens into a third, by descending score of the result."""
    pieces = {token: id for token, id in vocabulary.items() if types[id] not in _UNMERGED}
    found = []
    for token, id in pieces.items():
        if len(token) > _MAX_MERGED:
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in pieces and right in pieces:
                order = (-scores[id], -len(left), -len(right), id, pieces[left])
                found.append((order, left, right))
    return [[left, right] for _, left, right in sorted(found)]
