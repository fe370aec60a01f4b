"""Dask runs frames as tasks, in threads and in processes; archives are those of one process."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from conftest import PROSE, TINY

import llmzip

dask = pytest.importorskip("dask")
fsspec = pytest.importorskip("fsspec")

OPTIONS = llmzip.Options(model=str(TINY), frame_size=300)
CONTENTS = {"a.txt": PROSE.encode(), "b.txt": b"short", "c.txt": b""}


def expected(content: bytes) -> bytes:
    sink = io.BytesIO()
    writer = llmzip.ArchiveWriter(sink, OPTIONS)
    writer.write(content)
    writer.finish()
    return sink.getvalue()


@pytest.mark.parametrize(("scheduler", "place"), [("threads", "memory://"), ("processes", "")])
def test_there_and_back(scheduler: str, place: str, tmp_path: Path) -> None:
    from llmzip.parallel import dask as dask_archives

    root = (place or "file://") + str(tmp_path)
    filesystem, _ = fsspec.core.url_to_fs(root)
    filesystem.makedirs(str(tmp_path / "out"), exist_ok=True)
    for name, content in CONTENTS.items():
        with fsspec.open(f"{root}/{name}", "wb") as file:
            file.write(content)
    tasks = dask_archives.compress([f"{root}/{name}" for name in CONTENTS], f"{root}/out", OPTIONS)
    sizes = dask.compute(*tasks, scheduler=scheduler, num_workers=2)
    archives = [f"{root}/out/{name}.llmz" for name in CONTENTS]
    for url, content, size in zip(archives, CONTENTS.values(), sizes, strict=True):
        with fsspec.open(url, "rb") as file:
            archive = file.read()
        assert archive == expected(content)
        assert len(archive) == size
    tasks = dask_archives.decompress(archives, f"{root}/out", OPTIONS)
    assert dask.compute(*tasks, scheduler=scheduler, num_workers=2) == tuple(
        map(len, CONTENTS.values())
    )
    for name, content in CONTENTS.items():
        with fsspec.open(f"{root}/out/{name}", "rb") as file:
            assert file.read() == content


def test_damage_comes_out(tmp_path: Path) -> None:
    from llmzip.parallel import dask as dask_archives

    archive = bytearray(expected(PROSE.encode()))
    archive[len(archive) // 2] ^= 1
    (tmp_path / "x.llmz").write_bytes(archive)
    tasks = dask_archives.decompress([str(tmp_path / "x.llmz")], str(tmp_path / "out"), OPTIONS)
    with pytest.raises(llmzip.CorruptArchive):
        dask.compute(*tasks, scheduler="synchronous")
    assert not (tmp_path / "out").exists()


def test_a_text_that_changes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmzip.parallel import dask as dask_archives

    text = tmp_path / "a.txt"
    text.write_bytes(PROSE.encode())
    encode = dask_archives._encode

    def encode_and_change(*arguments: object) -> object:
        coded = encode(*arguments)
        text.write_bytes(PROSE.upper().encode())
        return coded

    monkeypatch.setattr(dask_archives, "_encode", encode_and_change)
    tasks = dask_archives.compress([str(text)], str(tmp_path), OPTIONS)
    with pytest.raises(llmzip.LlmzipError, match="changed while it was compressed"):
        dask.compute(*tasks, scheduler="synchronous")
    assert [*tmp_path.iterdir()] == [text]
