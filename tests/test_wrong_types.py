"""Public functions given what they cannot use say what is needed, in one line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from conftest import PROSE, TINY

import llmzip
from llmzip.archive.header import LONGEST_WINDOW


@pytest.mark.parametrize("wrong", ["text", None, 5, [1, 2], io.BytesIO(b"x")])
@pytest.mark.parametrize(
    "function",
    [
        llmzip.compress,
        llmzip.decompress,
        lambda data: llmzip.Compressor().compress(data),
        lambda data: llmzip.Decompressor().decompress(data),
        lambda data: llmzip.ArchiveWriter(io.BytesIO()).write(data),
        lambda data: llmzip.open(io.BytesIO(), "w").write(data),
    ],
)
def test_what_is_no_bytes(function: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match="needs a bytes-like object, not") as caught:
        function(wrong)
    assert ("encode the text first" in str(caught.value)) == isinstance(wrong, str)


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["x"], object()])
def test_what_is_no_file(wrong: Any) -> None:
    for function in (llmzip.open, llmzip.LlmzipFile):
        with pytest.raises(TypeError, match="path or a binary file is needed"):
            function(wrong)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(llmzip.compress(b"x"))
    with path.open() as text, pytest.raises(TypeError, match="not a text file"):
        llmzip.open(text)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="not a text file"):
        llmzip.open(io.StringIO(), "w")  # type: ignore[call-overload]
    closed = path.open("rb")
    closed.close()
    with pytest.raises(ValueError, match="closed file"):
        llmzip.open(closed)
    with pytest.raises(io.UnsupportedOperation), path.open("wb") as sink:
        llmzip.open(sink, "r")
    for mode in ("w", "x", "a"):
        with pytest.raises(FileNotFoundError):
            llmzip.open(tmp_path / "no" / "x.llmz", mode)
    with pytest.raises(FileNotFoundError):
        llmzip.open(tmp_path / "no")
    with pytest.raises(IsADirectoryError):
        llmzip.open(tmp_path)
    for wrong in (None, 5, b"r"):
        with pytest.raises((TypeError, ValueError), match="mode"):
            llmzip.open(path, wrong)


@pytest.mark.parametrize(
    "options",
    [
        {"model": 5},
        {"model": b"small"},
        {"streams": "4"},
        {"streams": 1.5},
        {"device": None},
        {"frame_size": "1M"},
        {"max_length": "9"},
        {"context": "512"},
        {"activations": 8},
    ],
)
def test_options(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises((TypeError, llmzip.LlmzipError), match=name):
        llmzip.Options(**options)


@pytest.mark.parametrize(
    "context",
    [(17, 15), (10_000, 9_998), (4, 0), (15, 0), (64, -1), (64, 63), (LONGEST_WINDOW + 1, 0),
     (1 << 40, 0), (64,), (64, 32, 16), (), ("64", 32), (64, None), (64.0, 32)],
)  # fmt: skip
def test_contexts_that_no_header_can_express(context: Any) -> None:
    with pytest.raises((TypeError, llmzip.LlmzipError), match=r"context|window"):
        llmzip.Options(context=context)


@pytest.mark.parametrize("context", [(17, 14), (16, 0), (LONGEST_WINDOW, 1), 17, 1 << 40])
def test_contexts_that_a_header_can_express(context: Any) -> None:
    assert llmzip.Options(context=context).context == context


def test_a_path_is_as_good_as_its_name() -> None:
    assert llmzip.compress(PROSE.encode(), model=TINY) == llmzip.compress(  # type: ignore[arg-type]
        PROSE.encode(), model=str(TINY)
    )


def test_any_bytes_like_object_will_do() -> None:
    import array

    data = array.array("I", [1, 2, 3])
    assert llmzip.decompress(bytearray(llmzip.compress(data))) == data.tobytes()  # type: ignore[arg-type]
    assert llmzip.decompress(memoryview(llmzip.compress(b""))) == b""
    writer = llmzip.ArchiveWriter(io.BytesIO())
    assert writer.write(memoryview(data)) == 12
