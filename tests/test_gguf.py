"""GGUF files as models: the same weights, ids and predictions; all others refused in one line."""

from __future__ import annotations

import json
import random
import struct
import sys
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import torch
from conftest import AWKWARD, PROSE, TINY, _sentencepiece, run
from table_predictor import joined
from tokenizers import Tokenizer

import llmzip
from llmzip import inference, models
from llmzip.errors import UnsupportedModel
from llmzip.exact import hadamard, ops
from llmzip.exact.quantise import quantise_tensors
from llmzip.models import gguf_header
from llmzip.models.model_folder import save
from llmzip.tokenizer import Tokens

# as wide as a block of the K types
_WIDE = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "rope_parameters": {"rope_theta": 10000.0},
    "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
_BLOCKS = {name: (weights, size) for name, weights, size in gguf_header.TYPES.values()}


def rounded(kind: str, weight: np.ndarray) -> np.ndarray:
    """A matrix after it was written as this kind."""
    number = gguf.GGMLQuantizationType[kind]
    return np.asarray(gguf.quants.dequantize(gguf.quants.quantize(weight, number), number))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_weights_are_those_that_were_written(tmp_path: Path, kind: str) -> None:
    files = models.load(str(gguf_files.write(tmp_path / "m.gguf", kind=kind)))
    _, _, weights = gguf_files.tiny()
    assert len(files.tensors) == len(weights) + sum(w.ndim == 2 for w in weights.values())
    for name, weight in weights.items():
        if weight.ndim == 2:
            # rows are moved whole, so that blocks stay as they are
            block = hadamard.block_size(weight.shape[1])
            floats = torch.from_numpy(rounded(kind, weight))
            integers, scale = ops.quantise_weight(floats, block)
            assert torch.equal(files.tensors[name], integers)
            assert torch.equal(files.tensors[name + "_scale"], scale[:, None])
        else:
            assert torch.equal(files.tensors[name], torch.from_numpy(weight))


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K"])
def test_blocks_of_256(tmp_path: Path, kind: str) -> None:
    weights = gguf_files.random(_WIDE)
    draw = np.random.default_rng(1)
    per_row = _BLOCKS[kind][1]
    blocks = {
        gguf_files.gguf_name(name): draw.integers(0, 0x30, (len(w), per_row), dtype=np.uint8)
        for name, w in weights.items()
        if w.ndim == 2
    }
    path = gguf_files.write(
        tmp_path / "m.gguf", kind=kind, model=(_WIDE, gguf_files.tiny()[1], weights), tensors=blocks
    )
    files = models.load(str(path))
    expected = gguf.quants.dequantize(
        blocks["blk.0.ffn_up.weight"], gguf.GGMLQuantizationType[kind]
    )
    block = hadamard.block_size(expected.shape[1])
    integers, scale = ops.quantise_weight(torch.from_numpy(expected), block)
    assert torch.equal(files.tensors["model.layers.0.mlp.up_proj.weight"], integers)
    assert torch.equal(files.tensors["model.layers.0.mlp.up_proj.weight_scale"], scale[:, None])
    inference.build(files, activations="a8", context=inference.Context(64, 32))


def test_it_is_the_model_that_a_folder_holds(tmp_path: Path) -> None:
    """Config, weights and predictions as of the same floats in a folder."""
    config, tokenizer, weights = gguf_files.tiny()
    save(config, tokenizer, {n: torch.from_numpy(w) for n, w in weights.items()}, tmp_path / "f")
    floats = models.load(str(tmp_path / "f"))
    made, tensors = quantise_tensors(floats.config, floats.tensors, embeddings=True)
    folder = replace(floats, config=made, weights=tensors)
    files = models.load(str(gguf_files.write(tmp_path / "m.gguf")))
    for key in ("hidden_size", "head_dim", "num_key_value_heads", "tie_word_embeddings",
                "bos_token_id", "rope_parameters", "vocab_size"):  # fmt: skip
        assert files.config[key] == folder.config[key]
    assert files.tensors.keys() == folder.tensors.keys()
    assert all(torch.equal(t, folder.tensors[n]) for n, t in files.tensors.items())
    assert files.quantised
    ids = torch.arange(40)[None] * 7 % 512
    context = inference.Context(64, 32)
    one, other = (
        joined(inference.build(f, activations="a8", context=context).run(1, 40).score(ids))
        for f in (files, folder)
    )
    assert torch.equal(one, other)


def test_an_untied_head(tmp_path: Path) -> None:
    config, tokenizer, _ = gguf_files.tiny()
    weights = gguf_files.random(config, untied=True)
    files = models.load(str(gguf_files.write(tmp_path / "m", model=(config, tokenizer, weights))))
    assert not files.config["tie_word_embeddings"]
    head = torch.from_numpy(weights["lm_head.weight"])
    integers, _ = ops.quantise_weight(head, hadamard.block_size(head.shape[1]))
    assert torch.equal(files.tensors["lm_head.weight"], integers)


def test_qwen2_has_biases_and_plain_rows(tmp_path: Path) -> None:
    import transformers

    config, _, weights = gguf_files.tiny()
    draw = np.random.default_rng(2)
    extra = {
        f"blk.{i}.attn_{n}.bias": draw.standard_normal(size, dtype=np.float32) / 4
        for i in range(2)
        for n, size in (("q", 64), ("k", 32), ("v", 32))
    }
    path = gguf_files.write(tmp_path / "m.gguf", architecture="qwen2", tensors=extra)
    files = models.load(str(path))
    model = inference.build(files, activations="a16", context=inference.Context(64, 32))
    kept = {k: config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
            "vocab_size")}  # fmt: skip
    network = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**kept, tie_word_embeddings=True)
    )
    state = {n: torch.from_numpy(w) for n, w in weights.items()}
    for name, bias in extra.items():
        _, i, part, _ = name.split(".")
        state[f"model.layers.{i}.self_attn.{part[-1]}_proj.bias"] = torch.from_numpy(bias)
    network.load_state_dict(state, strict=False)
    ids = torch.arange(30)[None] * 7 % 512
    with torch.no_grad():
        expected = network(torch.cat([torch.zeros(1, 1, dtype=torch.int64), ids], 1)).logits[0, :-1]
    logits = joined(model.run(1, 30).score(ids))[:, 0]
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_archives_of_the_command_line(tmp_path: Path) -> None:
    text, model = tmp_path / "text", gguf_files.write(tmp_path / "m.gguf", kind="Q8_0")
    text.write_text(PROSE)
    done = run("compress", text, "--model", model)
    assert done.returncode == 0, done.stderr.decode()
    info = json.loads(run("info", "--json", f"{text}.llmz").stdout)[0]["archives"][0]["model"]
    assert (info["name"], info["activations"]) == ("m.gguf", "a8")
    text.unlink()
    done = run("decompress", f"{text}.llmz")
    assert done.returncode == 1
    assert b"needs the model 'm.gguf'" in done.stderr
    assert run("decompress", f"{text}.llmz", "--model", model).returncode == 0
    assert text.read_text() == PROSE


# tokenizers


@pytest.mark.parametrize("name", AWKWARD)
def test_byte_level_ids(tmp_path: Path, name: str) -> None:
    files = models.load(str(gguf_files.write(tmp_path / "m.gguf")))
    mine, original = (Tokens(f.tokenizer_json, 512) for f in (files, models.load(str(TINY))))
    assert mine.encode(AWKWARD[name]).tolist() == original.encode(AWKWARD[name]).tolist()
    assert mine.decode(mine.encode(AWKWARD[name])) == AWKWARD[name]


@pytest.mark.parametrize(
    ("pre", "cut"),
    [
        ("smollm", ["12", "a1", "1"]),
        ("gpt-2", ["a1"]),
        ("default", ["a1"]),
        ("llama-bpe", ["1234", "a1"]),
        ("qwen2", ["12", "a1"]),
        ("tekken", ["12", "a1"]),
    ],
)
def test_how_texts_are_cut(tmp_path: Path, pre: str, cut: list[str]) -> None:
    """What is cut in pieces is never one token, even if there is such a token."""
    _, tokenizer, _ = gguf_files.tiny()
    vocabulary = tokenizer["model"]["vocab"]
    spare = sorted(vocabulary, key=vocabulary.__getitem__)[-4:]
    # four merges are given other tasks: 12, 123, 1234, a1
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    new = dict(zip(spare, ("12", "123", "1234", "a1"), strict=True))
    merges = [" ".join(m) for m in tokenizer["model"]["merges"] if "".join(m) not in spare]
    merges += ["1 2", "12 3", "123 4", "a 1"]
    change = {
        "tokenizer.ggml.tokens": [new.get(token, token) for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.pre": pre,
    }
    files = models.load(str(gguf_files.write(tmp_path / "m.gguf", change=change)))
    code = Tokens(files.tokenizer_json, 512)
    for text in cut:
        if len(text) > 1:
            assert len(code.encode(text.encode())) > 1, text
    assert len(code.encode(b"1234")) == {"gpt-2": 1, "default": 1, "llama-bpe": 2}.get(pre, 4)


@pytest.mark.parametrize("name", AWKWARD)
def test_scored_ids(tmp_path: Path, name: str) -> None:
    """Merges that are made of scores are those that the scores were made of."""
    config, _, _ = gguf_files.tiny()
    settings = json.loads(_sentencepiece())
    settings["normalizer"] = settings["normalizer"]["normalizers"][1]
    vocabulary = settings["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    rank = {left + right: i for i, (left, right) in enumerate(settings["model"]["merges"])}
    size = {**config, "vocab_size": len(tokens)}
    change = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(rank.get(token, 1000)) for token in tokens],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
    }
    weights = gguf_files.random(size)
    model = (size, gguf_files.tiny()[1], weights)
    files = models.load(str(gguf_files.write(tmp_path / "m.gguf", model=model, change=change)))
    code, original = (
        Tokens(content, len(tokens)) for content in (files.tokenizer_json, json.dumps(settings))
    )
    Tokenizer.from_str(files.tokenizer_json.decode())
    assert code.decode(code.encode(AWKWARD[name])) == AWKWARD[name]
    if name == "prose":  # in others the original takes the names of bytes as literals
        assert code.encode(AWKWARD[name]).tolist() == original.encode(AWKWARD[name]).tolist()


# rotary embeddings that were stretched


def test_linear_scaling_is_honoured(tmp_path: Path) -> None:
    change = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    files = models.load(str(gguf_files.write(tmp_path / "m.gguf", change=change)))
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    assert files.config["rope_parameters"] == rope


def test_the_frequencies_of_llama3_are_honoured(tmp_path: Path) -> None:
    import transformers

    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    config = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=rope)
    scaled, _ = transformers.modeling_rope_utils.ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** -(torch.arange(0, 16, 2) / 16)
    factors = (plain / scaled).numpy()
    change: dict[str, Any] = {"rope.freq_base": 500000.0}
    path = gguf_files.write(
        tmp_path / "m.gguf", change=change, tensors={"rope_freqs.weight": factors}
    )
    assert models.load(str(path)).config["rope_parameters"] == rope
    other = {"rope_freqs.weight": factors + np.float32(0.1)}
    path = gguf_files.write(tmp_path / "other.gguf", change=change, tensors=other)
    with pytest.raises(UnsupportedModel, match="rope_freqs"):
        models.load(str(path))


# what is refused


_REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("architecture", {"architecture": "mamba"}, "architecture 'mamba' is not known"),
    ("tokenizer", {"change": {"tokenizer.ggml.model": "bert"}}, "type 'bert' is not known"),
    ("cut", {"change": {"tokenizer.ggml.pre": "chameleon"}}, "'chameleon' is not known"),
    ("no tokens", {"change": {"tokenizer.ggml.tokens": None}}, "tokenizer.ggml.tokens"),
    ("merge", {"change": {"tokenizer.ggml.merges": ["a b", "zzzz q"]}}, "a merge of what is no"),
    ("types", {"change": {"tokenizer.ggml.token_type": [1, 2]}}, "2 entries of token_type"),
    ("heads", {"change": {"attention.head_count": [4, 4]}}, "head_count is"),
    ("no heads", {"change": {"attention.head_count": 0}}, "heads"),
    ("epsilon", {"change": {"attention.layer_norm_rms_epsilon": None}}, "epsilon is None"),
    ("context", {"change": {"context_length": "long"}}, "context_length is 'long'"),
    ("rotary part", {"change": {"rope.dimension_count": 8}}, "dimension_count is not the size"),
    ("yarn", {"change": {"rope.scaling.type": "yarn"}}, "scaled by 'yarn'"),
    ("experts", {"change": {"expert_count": 8}}, "mixture of experts"),
    ("layers", {"change": {"block_count": 4_000_000_000}}, "layers are too many"),
    ("more layers", {"change": {"block_count": 3}}, "lacks the tensor blk.2.attn_norm"),
    ("fewer layers", {"change": {"block_count": 1}}, "blk.1.attn_k.weight has no exact form"),
    ("missing", {"tensors": {"blk.1.ffn_up.weight": None}}, "lacks the tensor blk.1.ffn_up"),
    ("shape", {"tensors": {"blk.1.ffn_up.weight": np.zeros((8, 8), np.float32)}}, "has shape"),
    ("other", {"tensors": {"blk.0.x.weight": np.zeros(8, np.float32)}}, "blk.0.x.weight has no"),
    ("nan", {"tensors": {"output_norm.weight": np.full(64, np.nan, np.float32)}}, "not finite"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "reason"), [r[1:] for r in _REFUSED], ids=[r[0] for r in _REFUSED]
)
def test_refused_by_name(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    path = gguf_files.write(tmp_path / "m.gguf", **options)
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        models.load(str(path))
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_unknown_types_are_refused_by_name(tmp_path: Path) -> None:
    weights = gguf_files.random(_WIDE)
    path = gguf_files.write(
        tmp_path / "m", kind="F32", model=(_WIDE, gguf_files.tiny()[1], weights)
    )
    data = path.read_bytes()
    place = data.index(b"token_embd.weight") + 17 + 4 + 16
    path.write_bytes(data[:place] + struct.pack("<I", 10) + data[place + 4 :])
    with pytest.raises(UnsupportedModel, match=r"token_embd.weight is of type Q2_K; known: F32"):
        models.load(str(path))


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_files.write(tmp_path / "m.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UnsupportedModel, match=r"pip install 'llmzip\[gguf\]'"):
        models.load(str(path))


def test_no_gguf_file(tmp_path: Path) -> None:
    for content in (b"", b"GG", b"hello, this is a text and nothing else"):
        (tmp_path / "m.gguf").write_bytes(content)
        with pytest.raises(UnsupportedModel, match=r"GGUF|cut short"):
            models.load(str(tmp_path / "m.gguf"))


def test_cut_short_anywhere(tmp_path: Path) -> None:
    whole = gguf_files.write(tmp_path / "m.gguf", kind="Q8_0").read_bytes()
    path = tmp_path / "cut.gguf"
    draw = random.Random(3)
    places = [*range(0, 400, 7), *draw.sample(range(len(whole)), 80), len(whole) - 1]
    for place in places:
        path.write_bytes(whole[:place])
        with pytest.raises(UnsupportedModel):
            models.load(str(path))


def test_damage_anywhere_in_the_header(tmp_path: Path) -> None:
    """Some other model, or a named error."""
    whole = gguf_files.write(tmp_path / "m.gguf", kind="Q8_0").read_bytes()
    end = whole.index(b"blk.1.ffn_down.weight")
    path = tmp_path / "damaged.gguf"
    draw = random.Random(4)
    for _ in range(250):
        damaged = bytearray(whole)
        damaged[draw.randrange(end)] ^= draw.choice((1, 0x80, 0xFF))
        path.write_bytes(damaged)
        try:
            models.load(str(path))
        except llmzip.LlmzipError as error:
            assert "\n" not in str(error)  # noqa: PT017


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _header(tensors: int = 0, fields: int = 0, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


_HUGE = (1 << 64) - 1
_TENSOR = _text(b"t") + struct.pack("<I", 1)
_ONE = _TENSOR + struct.pack("<QIQ", 8, 0, 0)
_EMPTY = _text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 22)
_HOSTILE = {
    "tensors": _header(tensors=_HUGE),
    "tensors, not so many": _header(tensors=60_000),
    "fields": _header(fields=1 << 40),
    "name": _header(fields=1, rest=struct.pack("<Q", _HUGE) + b"x" * 64),
    "string": _header(fields=1, rest=_text(b"k") + struct.pack("<IQ", 8, 1 << 63) + b"x" * 64),
    "strings": _header(fields=1, rest=_text(b"k") + struct.pack("<IIQ", 9, 8, 1 << 60)),
    "numbers": _header(fields=1, rest=_text(b"k") + struct.pack("<IIQ", 9, 4, 1 << 61)),
    "nothings": _header(fields=1, rest=_EMPTY + b"\0" * (1 << 26)),
    "array of arrays": _header(fields=1, rest=_text(b"k") + struct.pack("<IIQ", 9, 9, 1) * 50),
    "type": _header(fields=1, rest=_text(b"k") + struct.pack("<I", 99) + b"\0" * 32),
    "twice": _header(fields=2, rest=(_text(b"k") + struct.pack("<II", 4, 1)) * 2),
    "no UTF-8": _header(fields=1, rest=_text(b"\xff\xfe") + struct.pack("<II", 4, 1)),
    "alignment": _header(fields=1, rest=_text(b"general.alignment") + struct.pack("<II", 4, 0)),
    "dimensions": _header(tensors=1, rest=_text(b"t") + struct.pack("<I", 1 << 31) + b"\0" * 64),
    "dimension": _header(tensors=1, rest=_TENSOR + struct.pack("<QIQ", 1 << 62, 0, 0)),
    "no dimension": _header(tensors=1, rest=_TENSOR + struct.pack("<QIQ", 0, 0, 0) + b"\0" * 64),
    "offset": _header(tensors=1, rest=_TENSOR + struct.pack("<QIQ", 8, 0, 1 << 63) + b"\0" * 64),
    "one over another": _header(tensors=2, rest=_ONE + _ONE.replace(b"t", b"u") + b"\0" * 99),
    "version": _header(version=77),
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_headers(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(_HOSTILE[name])
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(UnsupportedModel, match=r"cut short|malformed|not known|big-endian"):
            models.load(str(path))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert time.monotonic() - start < 1


def test_windows_are_of_2048_tokens_at_most(tmp_path: Path) -> None:
    change = {"context_length": 8192}
    files = models.load(str(gguf_files.write(tmp_path / "m.gguf", change=change)))
    assert inference.default_context(files).window == 2048
