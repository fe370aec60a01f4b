"""Safetensors files come back byte for byte, are smaller, and damage is an error of ours."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, run
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from llmzip import models
from llmzip.errors import CorruptArchive, LlmzipError, UnsupportedArchive, UnsupportedModel
from llmzip.models import compact_tokenizer, model_folder, packing
from llmzip.models.packing import file, layout
from llmzip.models.store import save_int8

DTYPES = {
    "I8": np.int8, "U8": np.uint8, "F16": np.uint16, "BF16": np.uint16, "F32": np.uint32,
    "F64": np.uint64, "I16": np.int16, "I64": np.int64, "BOOL": np.uint8, "F8_E4M3": np.uint8,
}  # fmt: skip


def packed(content: bytes, workers: int = 1) -> bytes:
    sink = io.BytesIO()
    packing.pack(io.BytesIO(content), sink, workers)
    return sink.getvalue()


def unpacked(content: bytes, workers: int = 1) -> bytes:
    sink = io.BytesIO()
    packing.unpack(io.BytesIO(content), sink, workers)
    return sink.getvalue()


def weights(dtype: torch.dtype, rows: int = 256, columns: int = 192) -> bytes:
    """Rows and columns of different sizes, as in models."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, columns, generator=generator)
    x *= torch.linspace(-3, 3, rows).exp2()[:, None] * torch.linspace(-1, 1, columns).exp2()
    if dtype == torch.int8:
        x = (x / x.abs().amax(1, keepdim=True) * 127).round()
    return save({"w": x.to(dtype), "norm": torch.ones(columns)}, {"format": "pt", "é": "ü"})


@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.bfloat16, 0.68), (torch.float16, 0.88), (torch.float32, 0.84), (torch.int8, 0.93)],
)
def test_weights_get_smaller_than_by_xz(dtype: torch.dtype, most: float) -> None:
    import lzma

    content = weights(dtype)
    small = packed(content)
    assert unpacked(small) == content
    assert len(small) < most * len(content)
    assert len(small) < len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(list(DTYPES)),
            st.lists(st.integers(0, 40), max_size=3),
            st.sampled_from(["random", "zero", "few"]),
            st.integers(0, 3),
        ),
        max_size=4,
    ),
    st.binary(max_size=20),
    st.integers(0, 2**32 - 1),
)
def test_any_tensors_come_back(
    tensors: list[tuple[str, list[int], str, int]], tail: bytes, seed: int
) -> None:
    """All bit patterns, NaNs too; gaps between tensors, and bytes after them."""
    chance = np.random.default_rng(seed)
    header: dict[str, object] = {"__metadata__": {"a": "b"}}
    data = b""
    for i, (dtype, shape, how, gap) in enumerate(tensors):
        data += bytes(gap)
        count = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        values = chance.integers(0, {"random": 256, "zero": 1, "few": 5}[how], count)
        end = len(data) + count
        header[str(i)] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), end]}
        data += values.astype(np.uint8).tobytes()
    text = json.dumps(header).encode() + b"   "
    content = len(text).to_bytes(8, "little") + text + data + tail
    assert unpacked(packed(content)) == content


@pytest.mark.parametrize(
    "entries",
    [
        {"a": [0, 8], "b": [4, 12]},
        {"a": [8, 0]},
        {"a": [0, 1 << 40]},
        {"a": [-4, 8]},
        {"a": [0, 7]},
    ],
    ids=str,
)
def test_strange_offsets_come_back(entries: dict[str, list[int]]) -> None:
    header = {
        name: {"dtype": "F32", "shape": [2], "data_offsets": offsets}
        for name, offsets in entries.items()
    }
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(range(16))
    assert unpacked(packed(content)) == content


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"\xff" * 20, b"\2" + b"\0" * 7 + b"[]", b"\4" + b"\0" * 7 + b"nope",
     b"\x08" + b"\0" * 7 + b'{"a": 1}'],
)  # fmt: skip
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(UnsupportedModel, match="no safetensors file"):
        packed(content)


def test_several_blocks_and_processes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    content = weights(torch.bfloat16)
    monkeypatch.setattr(layout, "CHUNK_ELEMENTS", 4096)  # of the writer in this process alone
    monkeypatch.setattr(layout, "BLOCK_LIMIT", 1 << 14)
    small = packed(content)
    assert packed(content, workers=2) == small
    assert unpacked(small, workers=2) == content


def test_every_flipped_or_missing_byte_is_noticed() -> None:
    content = save({"w": torch.randn(4, 16, generator=torch.Generator().manual_seed(1)).half()})
    small = packed(content)
    for i in range(len(small)):
        damaged = small[:i] + bytes([small[i] ^ 1 << i % 8]) + small[i + 1 :]
        with pytest.raises((CorruptArchive, UnsupportedArchive)):
            unpacked(damaged)
        with pytest.raises(CorruptArchive):
            unpacked(small[:i])
    with pytest.raises(CorruptArchive, match="follow"):
        unpacked(small + b"\0")


def test_damage_whose_checks_are_right_is_an_error_of_ours() -> None:
    """Someone who means ill computes checksums, too."""
    import zstandard

    small = packed(weights(torch.int8, 32, 32))
    head = layout.HEADER.size + layout.BLOCK_HEADER.size
    lengths = layout.BLOCK_HEADER.unpack(small[layout.HEADER.size : head])
    content, side, side_compressed, raw, _, _ = lengths
    payload = small[head : -layout.HASH_BYTES]
    original = bytearray(zstandard.ZstdDecompressor().decompress(payload[:side_compressed]))
    rest = payload[side_compressed:]
    chance = random.Random(1)
    refused = 0
    for _ in range(300):
        bad = bytearray(original)
        for _ in range(chance.randint(1, 3)):
            bad[chance.randrange(min(80, len(bad)))] = chance.randrange(256)
        compressed = zstandard.ZstdCompressor().compress(bytes(bad))
        lengths = struct.pack("<5I", content, side, len(compressed), raw, len(rest) - raw)
        body = compressed + rest
        check = hashlib.blake2b(lengths + body, digest_size=4).digest()
        end = small[-layout.HASH_BYTES :]
        forged = small[: layout.HEADER.size] + lengths + check + body + end
        try:
            unpacked(forged)
        except LlmzipError:
            refused += 1
    assert refused > 250  # the others changed nothing


def test_the_command_line(tmp_path: Path) -> None:
    source = TINY / "model.safetensors"
    small, back = tmp_path / "tiny.llmzw", tmp_path / "tiny.safetensors"
    assert run("pack", TINY, "-o", small).returncode == 0
    assert small.stat().st_size < source.stat().st_size
    assert run("unpack", small, "-o", back).returncode == 0
    assert back.read_bytes() == source.read_bytes()
    done = run("unpack", small, "-o", back)
    assert done.returncode == 1
    assert b"exists already" in done.stderr
    done = run("unpack", source, "-o", tmp_path / "x")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"not a file of packed weights" in done.stderr
    assert not (tmp_path / "x").exists()


def test_a_packed_model_is_the_same_model(tmp_path: Path) -> None:
    source = tmp_path / "float"
    shutil.copytree(TINY, source)
    tensors = models.load(str(TINY)).tensors
    floats = {
        key: value.float() * tensors.get(f"{key}_scale", torch.ones(1))
        for key, value in tensors.items()
        if not key.endswith("_scale")
    }
    (source / "model.safetensors").write_bytes(save(floats))
    save_int8(str(source), tmp_path / "plain")
    save_int8(str(source), tmp_path / "small", packed=True)
    names = {path.name for path in (tmp_path / "small").iterdir()}
    assert names == {"config.json", compact_tokenizer.NAME, "model.safetensors.llmzw"}
    plain, small = models.load(str(tmp_path / "plain")), models.load(str(tmp_path / "small"))
    assert small.digest == plain.digest
    assert json.loads(small.tokenizer_json) == json.loads(plain.tokenizer_json)
    path = tmp_path / "small" / "model.safetensors.llmzw"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(UnsupportedModel, match="hash is wrong"):
        models.load(str(tmp_path / "small"))
    save_int8(str(source), tmp_path / "small")
    assert models.load(str(tmp_path / "small")).digest == plain.digest


def test_a_packed_model_is_saved_and_loaded_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large it is: a library starts no processes unasked."""
    monkeypatch.setattr(layout, "CHUNK_ELEMENTS", 4096)
    monkeypatch.setattr(layout, "BLOCK_LIMIT", 1 << 14)

    def start(*arguments: object) -> None:
        raise AssertionError

    monkeypatch.setattr(file, "ProcessPoolExecutor", start)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    files = models.load(str(TINY))
    tokenizer = json.loads(files.tokenizer_json)
    model_folder.save(files.config, tokenizer, files.tensors, tmp_path / "m", packed=True)
    assert (tmp_path / "m" / model_folder.PACKED).stat().st_size > 4 * layout.BLOCK_LIMIT
    assert models.load(str(tmp_path / "m")).digest == files.digest


def test_packed_weights_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    bomb = struct.pack("<4sBQ", b"LLMW", 1, 1 << 50)
    (tmp_path / "m" / "model.safetensors.llmzw").write_bytes(bomb)
    with pytest.raises(UnsupportedModel, match="thousandfold"):
        models.load(str(tmp_path / "m"))


@pytest.mark.parametrize("name", models.EMBEDDED)
def test_tokenizers_of_embedded_models_have_a_compact_form(name: str) -> None:
    tokenizer = json.loads(models.load(name).tokenizer_json)
    small = compact_tokenizer.compact(tokenizer)
    assert small is not None
    assert compact_tokenizer.expand(json.loads(json.dumps(small))) == tokenizer
    assert len(json.dumps(small)) < 0.5 * len(json.dumps(tokenizer))


def test_tokenizers_whose_vocabulary_does_not_follow_stay_as_they_are() -> None:
    vocabulary = {"a": 0, "b": 1, "ab": 2}
    model = {"vocab": vocabulary, "merges": [["a", "b"]]}
    assert compact_tokenizer.compact({"model": model}) is not None
    assert (
        compact_tokenizer.compact({"model": {**model, "vocab": {"a": 2, "b": 1, "ab": 0}}}) is None
    )
    assert compact_tokenizer.compact({"model": {**model, "vocab": {**vocabulary, "ab": 7}}}) is None
    assert compact_tokenizer.compact({"model": {"vocab": [["a", -1.0]]}}) is None
    for bad in ({}, {"model": 1}, {"model": {"vocab": "a", "merges": [1]}}):
        with pytest.raises(UnsupportedModel, match="malformed"):
            compact_tokenizer.expand(bad)


@pytest.mark.parametrize("name", ["nano", "small"])
def test_embedded_models_unpack_in_little_time(name: str) -> None:
    weights = models.model_paths(name)[-1]
    if weights.suffix != ".safetensors":
        pytest.skip("shipped in packed form")
    small = packed(weights.read_bytes())
    start = time.process_time()
    assert unpacked(small) == weights.read_bytes()
    assert time.process_time() - start < 1.5  # 0.2 s where this was measured
