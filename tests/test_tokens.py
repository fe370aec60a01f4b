"""bytes → ids → bytes, for every kind of tokenizer and every string of bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import AWKWARD, PROSE, TINY, TOKENIZERS
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from llmzip.errors import CorruptArchive, UnsupportedModel
from llmzip.mixing.vocabulary import Vocabulary
from llmzip.tokenizer import Tokens


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_text_survives(tokens: Tokens, name: str) -> None:
    ids = tokens.encode(AWKWARD[name])
    assert ids.dtype == np.int32
    assert ids.min(initial=0) >= 0
    assert ids.max(initial=0) < tokens.size
    assert tokens.decode(ids) == AWKWARD[name]


@given(data=st.binary(max_size=300))
def test_any_bytes_survive(tokens: Tokens, data: bytes) -> None:
    assert tokens.decode(tokens.encode(data)) == data


@given(text=st.text(max_size=200))
def test_any_text_survives(tokens: Tokens, text: str) -> None:
    assert tokens.decode(tokens.encode(text.encode())) == text.encode()


@given(
    pieces=st.lists(
        st.sampled_from([PROSE[:70], "  ", "\r\n", "▁", "<s>", "É", "\x00", "<0x0A>", "漢"])
        | st.binary(max_size=3),
        max_size=20,
    )
)
def test_text_among_bytes_survives(tokens: Tokens, pieces: list[str | bytes]) -> None:
    data = b"".join(p.encode() if isinstance(p, str) else p for p in pieces)
    assert tokens.decode(tokens.encode(data)) == data


def test_long_texts_are_cut_without_loss(tokens: Tokens) -> None:
    for data in (
        PROSE.encode() * 200,
        "漢字".encode() * 30000,
        b"a" * 200_000,
        b"\xff\x00" * 70000,
    ):
        assert tokens.decode(tokens.encode(data)) == data


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece"])
def test_the_tokenizers_own_cut_is_kept(name: str) -> None:
    """On ordinary text the ids are those that the model was trained on."""
    content = TOKENIZERS[name]()
    tokenizer = Tokenizer.from_str(content.decode())
    tokens = Tokens(content, tokenizer.get_vocab_size())
    ids = tokens.encode(PROSE.encode()).tolist()
    expected = tokenizer.encode(PROSE, add_special_tokens=False).ids
    # a prepended space is no part of the text, so the first word may be cut otherwise
    assert ids[-len(expected) + 3 :] == expected[3:]
    assert len(ids) <= len(expected) + 3


def test_ids_beyond_the_models_vocabulary_are_not_used() -> None:
    tokens = Tokens(TOKENIZERS["byte-level"](), 300)
    ids = tokens.encode(PROSE.encode())
    assert ids.max() < 300
    assert tokens.decode(ids) == PROSE.encode()


def test_bytes_without_a_token_take_escapes() -> None:
    content = TOKENIZERS["characters"]()
    vocabulary = Tokenizer.from_str(content.decode()).get_vocab_size()
    tokens = Tokens(content, vocabulary)
    assert tokens.size == vocabulary + 256
    assert tokens.encode(b"\xff").tolist() == [vocabulary + 255]
    assert Tokens(TOKENIZERS["byte-level"](), 400).size == 400


def test_a_literal_special_token_is_text() -> None:
    content = TOKENIZERS["byte-level"]()
    special = Tokenizer.from_str(content.decode()).token_to_id("<|endoftext|>")
    tokens = Tokens(content, 400)
    assert special not in tokens.encode(b"<|endoftext|>").tolist()


def test_ids_that_spell_nothing_are_refused() -> None:
    tokens = Tokens(TOKENIZERS["byte-level"](), 500)  # the model has rows without tokens
    with pytest.raises(CorruptArchive, match="spells nothing"):
        tokens.decode(np.array([499], dtype=np.int32))


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"model": {"type": "Magic"}}', b"\xff"])
def test_a_broken_tokenizer_is_refused(content: bytes) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json cannot be read"):
        Tokens(content, 100)


def test_tokens_with_one_id() -> None:
    """A file that gives two tokens one id, so that only one of them can be decoded."""
    settings = json.loads(TOKENIZERS["byte-level"]())
    vocabulary = settings["model"]["vocab"]
    names = sorted(vocabulary, key=vocabulary.__getitem__)
    vocabulary[names[200]] = vocabulary[names[100]]
    data = bytes(range(256))
    found = Tokens(json.dumps(settings), len(names))
    assert found.decode(found.encode(data)) == data
    turned = dict(reversed(vocabulary.items()))
    settings["model"]["vocab"] = turned
    assert Tokens(json.dumps(settings), len(names)).spellings == found.spellings


def test_a_tokenizer_at_which_the_library_panics() -> None:
    settings = json.loads(TOKENIZERS["byte-level"]())
    settings["model"]["continuing_subword_prefix"] = "a long prefix"
    with pytest.raises(UnsupportedModel, match="tokenizer"):
        Tokens(json.dumps(settings), 300)


def test_the_table_does_not_depend_on_the_layout_of_the_file() -> None:
    content = TOKENIZERS["sentencepiece"]()
    spaced = json.dumps(json.loads(content), indent=4)
    one, other = Tokens(content, 400), Tokens(spaced, 400)
    assert one.encode(PROSE.encode()).tolist() == other.encode(PROSE.encode()).tolist()


def test_byte_fallbacks_spell_only_what_has_no_token() -> None:
    """A model never sees the fallback of a letter that has a token, so it is no use to code by."""
    settings = json.loads(TOKENIZERS["sentencepiece"]())
    settings["added_tokens"] = [t for t in settings["added_tokens"] if "0x" not in t["content"]]
    tokens = Tokens(json.dumps(settings), 400)
    ids = settings["model"]["vocab"]
    assert tokens.spellings[ids["e"]] == b"e"
    assert tokens.spellings[ids["<0x65>"]] is None
    assert tokens.spellings[ids["<0x20>"]] is None  # U+2581 spells it
    assert tokens.spellings[ids["<0xFF>"]] == b"\xff"
    vocabulary = Vocabulary(tokens.spellings)
    data = "the été: \x00".encode() + bytes(range(256))
    found = tokens.encode(data)
    assert tokens.decode(vocabulary.ids[vocabulary.ranks[found]]) == data
    assert (vocabulary.ids[vocabulary.ranks[found]] == found).all()


def test_an_error_is_one_line_whatever_the_file_says() -> None:
    settings = json.loads(TOKENIZERS["byte-level"]())
    settings["model"]["merges"] = [["\n\x1b[31m", "x"]]
    with pytest.raises(UnsupportedModel, match="cannot be read") as caught:
        Tokens(json.dumps(settings), 300)
    assert str(caught.value).isprintable()


def test_a_tokenizer_that_drops_merges_at_random_does_not() -> None:
    settings = json.loads((TINY / "tokenizer.json").read_text())
    plain = Tokens(json.dumps(settings), 512).encode(PROSE.encode())
    settings["model"]["dropout"] = 0.5
    dropping = Tokens(json.dumps(settings), 512)
    for _ in range(3):
        assert (dropping.encode(PROSE.encode()) == plain).all()


def test_a_tokenizer_that_knows_no_unknown_words() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="[UNK]"))  # which is missing
    tokens = Tokens(tokenizer.to_str(), 2)
    assert tokens.decode(tokens.encode(b"abc")) == b"abc"
