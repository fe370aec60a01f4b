"""`llmzip.open`: the file objects that users of gzip and lzma know."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from conftest import PROSE, TINY

import llmzip
from llmzip import file

OPTIONS = llmzip.Options(model=str(TINY), frame_size=500)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    name = tmp_path / "prose.llmz"
    with llmzip.open(name, "wb", options=OPTIONS) as archive:
        for line in PROSE.encode().splitlines(keepends=True):
            assert archive.write(line) == len(line)
    return name


def test_read_what_was_written(path: Path) -> None:
    with llmzip.open(path, options=OPTIONS) as archive:
        assert archive.read() == PROSE.encode()
        assert archive.read() == b""
    assert llmzip.decompress(path.read_bytes(), model=str(TINY)) == PROSE.encode()


@pytest.mark.parametrize("size", [1, 7, 499, 500, 501, 5000])
def test_any_read_size(path: Path, size: int) -> None:
    with llmzip.open(path, options=OPTIONS) as archive:
        parts = iter(lambda: archive.read(size), b"")
        assert b"".join(parts) == PROSE.encode()


def test_text_lines(tmp_path: Path) -> None:
    text = "Zeile eins\nzweite Zeile: äöü\n漢字\n"
    with llmzip.open(tmp_path / "t.llmz", "wt", encoding="utf-8", options=OPTIONS) as archive:
        archive.write(text)
    with llmzip.open(tmp_path / "t.llmz", "rt", encoding="utf-8", options=OPTIONS) as archive:
        assert list(archive) == text.splitlines(keepends=True)


def test_seek_and_tell(path: Path) -> None:
    content = PROSE.encode()
    with llmzip.open(path, options=OPTIONS) as archive:
        for offset in (900, 10, len(content) - 5, 0, len(content) + 100):
            archive.seek(offset)
            assert archive.read(20) == content[offset : offset + 20]
        assert archive.seek(-7, io.SEEK_END) == len(content) - 7
        assert archive.tell() == len(content) - 7
        assert archive.read() == content[-7:]
        with pytest.raises(ValueError, match="negative"):
            archive.seek(-1)


def test_file_objects_that_cannot_seek(path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with llmzip.open(Pipe(path.read_bytes()), options=OPTIONS) as archive:
        assert not archive.seekable()
        assert archive.read() == PROSE.encode()


def test_exclusive_creation(path: Path) -> None:
    with pytest.raises(FileExistsError):
        llmzip.open(path, "xb")


@pytest.mark.parametrize("mode", ["", "a", "rw", "r+", "rbt", "q"])
def test_modes_that_make_no_sense(path: Path, mode: str) -> None:
    with pytest.raises(ValueError, match="invalid mode"):
        llmzip.open(path, mode)


def test_encoding_is_for_text(path: Path) -> None:
    with pytest.raises(ValueError, match="text modes"):
        llmzip.open(path, "rb", encoding="utf-8")


def test_damage_shows_while_reading(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 4
    with (
        pytest.raises(llmzip.LlmzipError),
        llmzip.open(io.BytesIO(data), options=OPTIONS) as archive,
    ):
        archive.read()


def test_what_is_no_archive_is_refused_at_once(tmp_path: Path) -> None:
    source = io.BytesIO(b"something else")
    with pytest.raises(llmzip.CorruptArchive):
        llmzip.open(source)
    assert not source.closed  # it is the caller's


def test_close_twice(path: Path) -> None:
    archive = llmzip.open(path, "wb", options=OPTIONS)
    archive.write(b"x")
    archive.close()
    archive.close()
    with llmzip.open(path, options=OPTIONS) as archive:
        assert archive.read() == b"x"


def test_replacing_leaves_nothing_behind_when_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), file.replacing(target, overwrite=True) as sink:
        sink.write(b"half of the new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_does_not_overwrite_what_appears_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(FileExistsError), file.replacing(target, overwrite=False) as sink:
        sink.write(b"ours")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_twice_on_purpose(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in (b"one", b"two"):
        with file.replacing(target, overwrite=True) as sink:
            sink.write(content)
    assert target.read_bytes() == b"two"
