"""Archives that follow each other, of any models, are one: as with gzip, xz and zstd."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from conftest import PROSE, TINY, run

import llmzip

ONE, TWO, THREE = PROSE[:300].encode(), os.urandom(100), PROSE[300:700].encode()
WHOLE = ONE + TWO + THREE + ONE


def parts() -> list[bytes]:
    """Archives of an embedded model, of none, of several frames, and of a message."""
    several = io.BytesIO()
    with llmzip.open(several, "w", options=llmzip.Options(model="nano", frame_size=150)) as file:
        file.write(THREE)
    return [
        llmzip.compress(ONE, model="nano", streams=2),
        llmzip.compress(TWO),
        several.getvalue(),
        llmzip.compress(ONE),
    ]


@pytest.fixture(scope="module")
def joined() -> bytes:
    return b"".join(parts())


@pytest.fixture
def path(joined: bytes, tmp_path: Path) -> Path:
    name = tmp_path / "x.llmz"
    name.write_bytes(joined)
    return name


def test_decompress(joined: bytes) -> None:
    assert llmzip.decompress(joined) == WHOLE
    with pytest.raises(llmzip.TooLong):
        llmzip.decompress(joined, max_length=len(WHOLE) - 1)
    assert llmzip.decompress(joined, max_length=len(WHOLE)) == WHOLE


def test_the_command_line(path: Path, joined: bytes) -> None:
    assert run("-d", input=joined).stdout == WHOLE
    assert run("-dc", path).stdout == WHOLE
    assert run("-t", path).stdout.decode() == f"{path}: ok, {len(WHOLE)} bytes\n"
    assert run("decompress", "--salvage", "-c", path).stdout == WHOLE
    (listed,) = json.loads(run("list", "--json", path).stdout)
    assert (listed["content_bytes"], listed["archive_bytes"]) == (len(WHOLE), len(joined))
    (told,) = json.loads(run("info", "--json", path).stdout)
    names = [archive["model"] and archive["model"]["name"] for archive in told["archives"]]
    assert names == ["nano", None, "nano", "small"]
    assert [len(archive["frames"]) for archive in told["archives"]] == [1, 1, 3, 1]
    assert sum(told["spent_bytes"].values()) == len(joined)
    assert b"4 concatenated" in run("info", path).stdout
    done = run(path, "-d", "--out", path.parent / "out", "--workers", "2")
    assert done.returncode == 0, done.stderr.decode()
    assert (path.parent / "out" / "x").read_bytes() == WHOLE


def test_a_file_is_seekable_over_the_whole(path: Path) -> None:
    with llmzip.open(path) as file:
        for offset in (650, 10, 350, len(WHOLE) - 5, 299, 300, 399, 400, 0):
            assert file.seek(offset) == offset
            assert file.read(7) == WHOLE[offset : offset + 7]
        assert file.seek(-3, io.SEEK_END) == len(WHOLE) - 3
        assert file.read() == WHOLE[-3:]
        file.seek(0)
        assert file.read() == WHOLE


def test_seeking_decodes_one_frame_of_one_archive(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmzip.archive import frame_reader

    decoded = []
    content = frame_reader.FrameReader.content
    monkeypatch.setattr(
        frame_reader.FrameReader,
        "content",
        lambda self, frame, *rest: (
            decoded.append(frame.content_length) or content(self, frame, *rest)
        ),
    )
    with llmzip.open(path) as file:
        file.seek(len(ONE + TWO) + 200)
        file.read(10)
    assert decoded == [150]


def test_appending(tmp_path: Path) -> None:
    path = tmp_path / "log.llmz"
    lines = [f"{i}: {PROSE[i * 50 : i * 50 + 50]}\n" for i in range(4)]
    for line in lines:
        with llmzip.open(path, "at", encoding="utf-8") as file:
            file.write(line)
    with llmzip.open(path, "rt", encoding="utf-8") as file:
        assert list(file) == lines
    with llmzip.open(path, "ab", options=llmzip.Options(model="nano")) as file:
        assert file.write(b"end") == 3
    assert llmzip.decompress(path.read_bytes()).endswith(b"\nend")


def test_fsspec(path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    import llmzip.fsspec  # noqa: F401

    with fsspec.open(str(path), "rb", compression="infer") as file:
        assert file.read() == WHOLE


def test_one_of_them_with_a_model_of_its_own(tmp_path: Path) -> None:
    archive = llmzip.compress(ONE, model=str(TINY))
    data = archive + llmzip.compress(TWO) + archive
    assert llmzip.decompress(data, model=str(TINY)) == ONE + TWO + ONE
    with pytest.raises(llmzip.WrongModel, match="tiny"):
        llmzip.decompress(data)


def test_a_decompressor_stops_at_the_first_end(joined: bytes) -> None:
    content, rest = b"", joined
    while rest:
        decompressor = llmzip.Decompressor()
        content += decompressor.decompress(rest)
        assert decompressor.eof
        rest = decompressor.unused_data
    assert content == WHOLE


@pytest.mark.parametrize("zeros", [1, 5, 10_240])
def test_zeros_after_the_end(path: Path, joined: bytes, zeros: int) -> None:
    padded = joined + bytes(zeros)
    path.write_bytes(padded)
    with pytest.warns(llmzip.PaddingWarning):
        assert llmzip.decompress(padded) == WHOLE
    done = run("-d", input=padded)
    assert (done.returncode, done.stdout) == (0, WHOLE)
    assert done.stderr.decode() == (
        f"llmzip: warning: {zeros} zero bytes after the end of the archive are ignored\n"
    )
    with pytest.warns(llmzip.PaddingWarning), llmzip.open(path) as file:
        assert file.seek(0, io.SEEK_END) == len(WHOLE)
    assert run("-t", path).returncode == 0


def test_other_bytes_after_the_end_come_after_the_content(joined: bytes, tmp_path: Path) -> None:
    done = run("-d", input=joined + b"rest")
    assert (done.returncode, done.stdout) == (1, WHOLE)
    assert done.stderr.decode().count("\n") == 1
    assert b"bytes follow the end" in done.stderr
    done = run("-d", input=joined + b"LLM")
    assert (done.returncode, done.stdout) == (1, WHOLE)
    assert b"ends too early" in done.stderr
    done = run("-d", "-o", tmp_path / "out", input=joined + b"rest")
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])


def test_damage_in_one_of_them(path: Path) -> None:
    first, second, third, fourth = parts()
    data = bytearray(first + second + third + fourth)
    data[len(first) + 20] ^= 1
    path.write_bytes(data)
    done = run("test", "--json", path)
    (report,) = json.loads(done.stdout)
    assert done.returncode == 1
    assert [(d["start"], d["end"]) for d in report["damages"]] in ([(300, 400)], [(300, None)])
    done = run("-d", "--salvage", "-c", path)
    assert (done.returncode, done.stdout) == (1, ONE + THREE + ONE)
