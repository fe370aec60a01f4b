"""Same-environment archives: any causal model, refused elsewhere by the name of the difference."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PROSE, TINY, run
from families import FAMILIES, UNKNOWN, build, save, tokenise, train

import llmzip
from llmzip.archive import container
from llmzip.archive.header import write_header
from llmzip.archive.options import Options
from llmzip.archive.writer import ArchiveWriter
from llmzip.coding.frame import MODEL, Frame
from llmzip.errors import CorruptArchive, InexactDevice, LlmzipError, WrongEnvironment
from llmzip.inference import float_predictor

CONTENT = PROSE.encode()


def _compressed(folder: Path, **options: object) -> bytes:
    sink = io.BytesIO()
    writer = ArchiveWriter(
        sink,
        Options(model=str(folder), same_environment=True, **options),  # type: ignore[arg-type]
    )
    writer.write(CONTENT)
    writer.finish()
    return sink.getvalue()


def _has_model_frame(archive: bytes) -> bool:
    frame = container.Reader(io.BytesIO(archive)).next_frame()
    return frame is not None and frame.kind == MODEL


@pytest.fixture(
    scope="module", params=["mamba", "bloom", "gpt-j", "gemma2", "mixtral", "qwen3-next"]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained, but certain enough of the next token to beat zstd on a short text."""
    kind, given, _ = UNKNOWN[request.param]
    path = tmp_path_factory.mktemp(request.param)
    network = build(kind, given)
    train(network, tokenise(CONTENT), steps=30 if request.param == "mamba" else 80)
    save(network, path)
    return path


@pytest.mark.parametrize("streams", [1, 3])
def test_any_causal_model(folder: Path, streams: int) -> None:
    archive = _compressed(folder, streams=streams, context=(64, 32))
    assert _has_model_frame(archive)
    assert llmzip.decompress(archive, model=str(folder)) == CONTENT


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpt2")
    network = build(*FAMILIES["gpt2"])
    train(network, tokenise(CONTENT), steps=80)
    save(network, folder)
    return folder


@pytest.mark.parametrize("streams", [1, 3])
def test_after_a_prime(gpt2: Path, streams: int) -> None:
    prime = CONTENT[:500]
    archive = _compressed(gpt2, streams=streams, context=(64, 32), prime=prime)
    assert _has_model_frame(archive)
    assert llmzip.decompress(archive, model=str(gpt2), prime=prime) == CONTENT


@pytest.fixture(scope="module")
def archive(gpt2: Path) -> bytes:
    return _compressed(gpt2)


def test_the_header_records_the_environment(archive: bytes) -> None:
    header = container.Reader(io.BytesIO(archive)).model
    assert header is not None
    assert header.profile == 3 | 1 << 4
    assert json.loads(header.environment) == float_predictor.environment("cpu")
    assert {"torch", "transformers", "processor", "threads", "attention"} <= set(
        json.loads(header.environment)
    )


def test_the_environment_names_the_gpu_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(device: str | int = 0) -> str:
        if device == "cuda:7":
            raise AssertionError("Invalid device id")
        return f"GPU {str(device).removeprefix('cuda:')}"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", name_of)
    assert float_predictor.environment("cuda:1")["processor"] == "GPU 1"
    assert float_predictor.environment("auto")["processor"] == "GPU 0, GPU 1"
    with pytest.raises(InexactDevice, match="'cuda:7' cannot be used: Invalid device id"):
        float_predictor.environment("cuda:7")


def test_settings_of_the_process_are_put_back(gpt2: Path) -> None:
    """Without a GPU, "auto" takes the way of GPUs on the CPU."""
    before = torch.are_deterministic_algorithms_enabled()
    packed = _compressed(gpt2, device="auto")
    assert llmzip.decompress(packed, model=str(gpt2), device="auto") == CONTENT
    assert torch.are_deterministic_algorithms_enabled() == before


@pytest.mark.parametrize("name", ["torch", "threads", "processor", "instructions"])
def test_another_environment_is_refused_by_name(
    name: str, archive: bytes, gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = float_predictor.environment("cpu")
    monkeypatch.setattr(float_predictor, "environment", lambda device: {**here, name: "other"})
    with pytest.raises(WrongEnvironment, match=f"{name} was .*, here 'other' .*--force"):
        llmzip.decompress(archive, model=str(gpt2))


def test_force_tries_nevertheless(archive: bytes, gpt2: Path, tmp_path: Path) -> None:
    """From the command line, in a process with another number of threads."""
    path = tmp_path / "text.llmz"
    path.write_bytes(archive)
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-m", "llmzip.cli", "decompress", str(path), "--model", str(gpt2)]
    refused = subprocess.run(command, capture_output=True, env=environment, text=True)
    assert refused.returncode == 1
    assert "threads was '1', here '2'" in refused.stderr
    assert not (tmp_path / "text").exists()
    forced = subprocess.run([*command, "--force"], capture_output=True, env=environment, text=True)
    # other shapes of threads may have other bits; then the check refuses them
    if forced.returncode == 0:
        assert (tmp_path / "text").read_bytes() == CONTENT
    else:
        assert "content check" in forced.stderr
        assert not (tmp_path / "text").exists()


def test_a_frame_that_does_not_decode_is_never_written(
    gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmzip.coding.frame_codec import FrameCodec

    monkeypatch.setattr(FrameCodec, "decode", lambda self, frame, progress: b"something else")
    with pytest.raises(LlmzipError, match="verification failed"):
        _compressed(gpt2)


@pytest.mark.parametrize("environment", ["[]", "{", "\ufffd"])
def test_a_malformed_environment(environment: str, archive: bytes, gpt2: Path) -> None:
    model = container.Reader(io.BytesIO(archive)).model
    assert model is not None
    sink = io.BytesIO()
    writer = container.Writer(sink, write_header(replace(model, environment=environment)))
    writer.write(Frame(MODEL, 3, b"...", 1, 1, last=True), b"abc")
    with pytest.raises(CorruptArchive):
        llmzip.decompress(sink.getvalue(), model=str(gpt2))


def test_the_command_line(gpt2: Path, tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(CONTENT)
    done = run("compress", str(path), "--model", str(gpt2), "--same-environment")
    assert done.returncode == 0, done.stderr
    path.unlink()
    assert run("decompress", f"{path}.llmz", "--model", str(gpt2)).returncode == 0
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "options", [{"activations": "a8", "model": "x"}, {"model": None}], ids=["bits", "no model"]
)
def test_options_that_make_no_sense(options: dict[str, str | None]) -> None:
    with pytest.raises(LlmzipError, match="same"):
        Options(same_environment=True, **options)  # type: ignore[arg-type]


def test_int8_weights_are_multiplied_out() -> None:
    archive = _compressed(TINY)
    assert _has_model_frame(archive)
    assert llmzip.decompress(archive, model=str(TINY)) == CONTENT
