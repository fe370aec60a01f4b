"""A folder in one archive: members are read alone, tar reads it all, hostile names get nowhere."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from conftest import PROSE, TINY, run

import llmzip
from llmzip.archive import container, frame_reader
from llmzip.io import tar

OPTIONS = llmzip.Options(model=str(TINY), frame_size=2000)
MODEL = ("--model", TINY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "sub" / "deep").mkdir(parents=True)
    for i in range(9):
        (folder / "sub" / f"{i}.txt").write_text(f"{i}. {PROSE}")
    (folder / "sub" / "deep" / ("n" * 120)).write_text("a long name")
    (folder / "ünïcode 道").write_text("text")
    (folder / "link").symlink_to("sub/0.txt")
    (folder / "empty").touch()
    (folder / "sub" / "1.txt").chmod(0o600)
    return folder


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "x.tar.llmz"
    with path.open("wb") as sink:
        tar.write(sink, folder, OPTIONS)
    return path


def test_one_member_decodes_few_frames(
    folder: Path, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    content = frame_reader.FrameReader.content

    def count(self: frame_reader.FrameReader, *arguments: object) -> bytes:
        decoded.append(1)
        return content(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(frame_reader.FrameReader, "content", count)
    with llmzip.open(archive, options=OPTIONS) as file:
        monkeypatch.setattr(tar, "_TAIL_BYTES", 11_000)  # a tar ends with up to 10 KiB of nothing
        tar.extract(file, ["sub/4.txt"], tmp_path / "out")
    assert (tmp_path / "out" / "sub" / "4.txt").read_text() == f"4. {PROSE}"
    with archive.open("rb") as source:
        reader, frames = container.Reader(source), 0
        while reader.skip_frame():
            frames += 1
    assert len(decoded) <= 10 < 14 < frames  # six of the end, and of the member as few as hold it
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["4.txt"]


def test_all_comes_back(folder: Path, archive: Path, tmp_path: Path) -> None:
    with llmzip.open(archive, options=OPTIONS) as file:
        tar.extract(file, [], tmp_path / "out")
    found, expected = (
        {
            p.relative_to(root): p.read_bytes()
            for root in [place]
            for p in root.rglob("*")
            if p.is_file()
        }
        for place in (tmp_path / "out", folder)
    )
    assert found == expected
    assert (tmp_path / "out" / "link").is_symlink()
    assert (tmp_path / "out" / "sub" / "1.txt").stat().st_mode & 0o777 == 0o600


def test_the_same_folder_gives_the_same_bytes(folder: Path, archive: Path) -> None:
    sink = io.BytesIO()
    tar.write(sink, folder, OPTIONS)
    assert sink.getvalue() == archive.read_bytes()


def test_at_the_command_line(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "y.tar.llmz"
    assert run("compress", "--archive", folder, "-o", target, *MODEL).returncode == 0
    listed = run("extract", target, "--list", *MODEL).stdout.decode().splitlines()
    assert "sub/3.txt" in listed
    done = run("extract", target, "sub/deep", "link", "-C", tmp_path / "out", *MODEL)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out" / "sub" / "deep" / ("n" * 120)).read_text() == "a long name"
    piped = run("compress", "--archive", folder, "-o", "-", *MODEL, cwd=tmp_path)
    assert (piped.returncode, piped.stdout) == (0, target.read_bytes())
    assert not (tmp_path / "-").exists()
    assert run("extract", target, "nothing", *MODEL).returncode == 1
    assert run("compress", "--archive", folder / "empty", *MODEL).returncode == 2
    assert run("compress", "--archive", ".", "-o", "z", *MODEL, cwd=folder).returncode == 2
    if shutil.which("tar"):
        program = f"--use-compress-program={sys.executable} -m llmzip --model {TINY}"
        (tmp_path / "tar").mkdir()
        subprocess.run(["tar", program, "-xf", str(target)], cwd=tmp_path / "tar", check=True)
        assert (tmp_path / "tar" / "sub" / "8.txt").read_text() == f"8. {PROSE}"


@pytest.mark.parametrize("name", ["../evil", "/tmp/llmzip-evil", "sub/../../evil"])
def test_hostile_members_get_nowhere(name: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.TarFile(fileobj=content, mode="w") as writer:
        info = tarfile.TarInfo(name)
        info.size = 4
        writer.addfile(info, io.BytesIO(b"evil"))
        index = f'{{"{name}":0}}'.encode()
        info = tarfile.TarInfo(tar.INDEX)
        info.size = len(index)
        writer.addfile(info, io.BytesIO(index))
    path = tmp_path / "deep" / "x.llmz"
    path.parent.mkdir()
    path.write_bytes(llmzip.compress(content.getvalue(), model=str(TINY)))
    with llmzip.open(path, options=OPTIONS) as file, contextlib.suppress(llmzip.LlmzipError):
        tar.extract(file, [], tmp_path / "deep" / "out")
    outside = [p for p in tmp_path.rglob("*evil*") if tmp_path / "deep" / "out" not in p.parents]
    assert outside == []
    assert not Path("/tmp/llmzip-evil").exists()


@pytest.mark.parametrize("index", [b"[1]", b'{"a": "b"}', b"{", b'{"a": 512}'])
def test_a_false_index_is_refused(index: bytes, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.TarFile(fileobj=content, mode="w") as writer:
        info = tarfile.TarInfo(tar.INDEX)
        info.size = len(index)
        writer.addfile(info, io.BytesIO(index))
    path = tmp_path / "x.llmz"
    path.write_bytes(llmzip.compress(content.getvalue(), model=str(TINY)))
    with llmzip.open(path, options=OPTIONS) as file, pytest.raises(llmzip.CorruptArchive):
        tar.extract(file, [], tmp_path / "out")


def test_an_archive_without_index(tmp_path: Path) -> None:
    (tmp_path / "x.llmz").write_bytes(llmzip.compress(PROSE.encode()))
    with llmzip.open(tmp_path / "x.llmz") as file, pytest.raises(llmzip.LlmzipError, match="tar"):
        tar.extract(file, [], tmp_path)


def test_the_search_for_an_index_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "_TAIL_BYTES", 1 << 10)
    monkeypatch.setattr(tar, "_TAIL_LIMIT", 1 << 14)
    sizes = []

    class File(llmzip.LlmzipFile):
        def read(self, size: int | None = -1) -> bytes:
            sizes.append(size)
            return super().read(size)

    (tmp_path / "x.llmz").write_bytes(llmzip.compress(os.urandom(1 << 16)))
    with File(tmp_path / "x.llmz") as file:
        assert tar.read_index(file) is None
    assert sizes == [1 << 10, 1 << 14]


def test_each_name_of_a_file_can_be_extracted_alone(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_text(PROSE)
    os.link(folder / "a", folder / "b")
    target = tmp_path / "x.tar.llmz"
    with target.open("wb") as sink:
        tar.write(sink, folder, OPTIONS)
    with llmzip.open(target, options=OPTIONS) as file:
        tar.extract(file, ["b"], tmp_path / "out")
    assert (tmp_path / "out" / "b").read_text() == PROSE


@pytest.mark.skipif(sys.platform != "linux", reason="other systems know no such names")
def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    name = os.fsdecode(b"caf\xe9.txt")
    (folder / name).write_text(PROSE)
    target = tmp_path / "x.tar.llmz"
    assert run("compress", "--archive", folder, "-o", target, *MODEL).returncode == 0
    listed = run("extract", target, "--list", *MODEL, stdin=subprocess.DEVNULL)
    assert (listed.returncode, listed.stdout) == (0, b"caf\xe9.txt\n")
    assert run("extract", target, "-C", tmp_path / "out", *MODEL).returncode == 0
    assert (tmp_path / "out" / name).read_text() == PROSE


@pytest.mark.parametrize("index", ['{"a":-1}', '{"a":1e3}', f'{{"a":{10**30}}}', "[" * 100_000])
def test_a_hostile_index_is_refused(index: str, tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.TarFile(fileobj=content, mode="w") as writer:
        info = tarfile.TarInfo(tar.INDEX)
        info.size = len(index)
        writer.addfile(info, io.BytesIO(index.encode()))
    path = tmp_path / "x.llmz"
    path.write_bytes(llmzip.compress(content.getvalue(), model=str(TINY)))
    with llmzip.open(path, options=OPTIONS) as file, pytest.raises(llmzip.CorruptArchive):
        tar.extract(file, [], tmp_path / "out")


@pytest.mark.parametrize("size", [1 << 60, -(1 << 60)])
@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_cannot_ask_for_more_than_there_is(
    kind: bytes, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    with tarfile.TarFile(fileobj=content, mode="w") as writer:
        info = tarfile.TarInfo("a")
        info.type = kind
        content.write(info.tobuf(tarfile.GNU_FORMAT))
        content.seek(124)  # the size, in base 256
        content.write((size % (1 << 96)).to_bytes(12, "big"))
        if size > 0:
            content.seek(124)
            content.write(b"\x80")
        block = bytearray(content.getvalue())
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        content.seek(0)
        content.write(block)
        info = tarfile.TarInfo(tar.INDEX)
        info.size = 7
        writer.addfile(info, io.BytesIO(b'{"a":0}'))
    read = llmzip.LlmzipFile.read
    monkeypatch.setattr(llmzip.LlmzipFile, "read", lambda file, size=-1: _read(read, file, size))
    path = tmp_path / "x.llmz"
    path.write_bytes(llmzip.compress(content.getvalue(), model=str(TINY)))
    with llmzip.open(path, options=OPTIONS) as file, pytest.raises(llmzip.CorruptArchive):
        tar.extract(file, [], tmp_path / "out")


def _read(read: Any, file: llmzip.LlmzipFile, size: int) -> Any:
    assert 0 <= size <= 1 << 16  # what is asked for is what may be allocated
    return read(file, size)


def test_a_member_for_which_memory_is_too_small(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extract(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(tar, "_extract", extract)
    error = pytest.raises(llmzip.CorruptArchive, match=r"sub/4.txt.*memory")
    with llmzip.open(archive, options=OPTIONS) as file, error:
        tar.extract(file, ["sub/4.txt"], tmp_path / "out")
