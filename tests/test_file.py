"""`llmzip.open`: the file objects that users of gzip and lzma know."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from conftest import PROSE, TINY
from hypothesis import given
from hypothesis import strategies as st

import llmzip
from llmzip import output
from llmzip.archive import container, reader
from llmzip.archive.header import write_header
from llmzip.coding.frame import RAW, Frame

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


@pytest.mark.parametrize("mode", ["", "ra", "rw", "r+", "rbt", "q"])
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
    with pytest.raises(RuntimeError), output.writing(target, overwrite=True) as sink:
        sink.write(b"half of the new")
        raise RuntimeError
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_does_not_overwrite_what_appears_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with pytest.raises(FileExistsError), output.writing(target, overwrite=False) as sink:
        sink.write(b"ours")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_twice_on_purpose(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for content in (b"one", b"two"):
        with output.writing(target, overwrite=True) as sink:
            sink.write(content)
    assert target.read_bytes() == b"two"


# Random access


def _stored(tmp_path: Path, contents: list[bytes]) -> Path:
    """An archive of raw frames."""
    path = tmp_path / "large.llmz"
    with path.open("wb") as sink:
        writer = container.Writer(sink, write_header(None))
        for i, content in enumerate(contents):
            last = i == len(contents) - 1
            writer.write(Frame(RAW, len(content), content, last=last), content)
    return path


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of every frame that is decoded, of whatever kind."""
    lengths: list[int] = []
    accept = container.Reader.verify

    def counted(self: container.Reader, frame: Frame, content: bytes) -> None:
        lengths.append(len(content))
        accept(self, frame, content)

    monkeypatch.setattr(container.Reader, "verify", counted)
    return lengths


def test_1_kb_from_the_middle_of_100_mb_decodes_one_frame(
    tmp_path: Path, decoded: list[int]
) -> None:
    frame = bytes(range(256)) * (1 << 14)  # 4 MiB
    path = _stored(tmp_path, [frame] * 25)
    assert path.stat().st_size > 100_000_000
    read = []

    class Counted(io.FileIO):
        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            read.append(super().readinto(buffer))
            return read[-1]

    with Counted(path) as source, llmzip.open(source) as archive:
        archive.seek(50_000_003)
        assert archive.read(1024) == (frame * 2)[50_000_003 % len(frame) :][:1024]
        assert decoded == [len(frame)]
        assert sum(read) < len(frame) + 2000  # beside that frame, headers alone
        archive.seek(-1, io.SEEK_CUR)
        archive.read(1)
        assert len(decoded) == 1  # at hand still
        assert archive.seek(0, io.SEEK_END) == 25 * len(frame)
        assert archive.read(1) == b""
        assert len(decoded) == 1
        archive.seek(10)
        assert archive.read(1) == b"\x0a"
        assert len(decoded) == 2


def test_one_model_frame_is_decoded_for_a_few_bytes(path: Path, decoded: list[int]) -> None:
    content = PROSE.encode()
    with llmzip.open(path, options=OPTIONS) as archive:
        archive.seek(700)
        assert archive.read(9) == content[700:709]
        assert decoded == [len(content) - 500]


@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    seeks=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40)), max_size=8),
    before=st.binary(max_size=3),
)
def test_seeking_is_as_in_a_plain_file(
    tmp_path_factory: pytest.TempPathFactory,
    lengths: list[int],
    seeks: list[tuple[int, int]],
    before: bytes,
) -> None:
    """Empty frames, places beyond the end and archives inside of other files included."""
    contents = [bytes([65 + i]) * n for i, n in enumerate(lengths)]
    path = _stored(tmp_path_factory.mktemp("plain"), contents)
    source = io.BytesIO(before + path.read_bytes())
    source.seek(len(before))
    plain = io.BytesIO(b"".join(contents))
    with llmzip.open(source) as archive:
        for offset, size in seeks:
            assert archive.seek(offset) == plain.seek(offset)
            assert archive.read(size) == plain.read(size)
            assert archive.tell() == plain.tell()
        assert archive.seek(0, io.SEEK_END) == plain.seek(0, io.SEEK_END)
        archive.seek(0)
        assert archive.read() == plain.getvalue()


def test_seeking_in_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    data = _stored(tmp_path, [b"a" * 100, b"b" * 100]).read_bytes()
    for cut in (data[:-1], data[:150], data[:20]):
        archive = llmzip.open(io.BytesIO(cut))
        with pytest.raises(llmzip.TruncatedArchive):
            archive.seek(0, io.SEEK_END)
        archive.seek(150)
        if len(cut) > 216:  # the frame is whole, the trailer is not
            assert archive.read(10) == b"b" * 10
        else:
            with pytest.raises(llmzip.TruncatedArchive):
                archive.read(10)


def test_the_hash_of_the_whole_is_verified_after_a_rewind(tmp_path: Path) -> None:
    data = bytearray(_stored(tmp_path, [b"a" * 100, b"b" * 100]).read_bytes())
    data[-1] ^= 1  # in Content_Hash
    with llmzip.open(io.BytesIO(data)) as archive:
        archive.seek(150)
        assert archive.read(10) == b"b" * 10
        archive.seek(0)
        with pytest.raises(llmzip.CorruptArchive, match="hash of the whole"):
            archive.read()


# What io promises


def test_a_source_that_cannot_seek(path: Path) -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *_: int) -> int:
            raise io.UnsupportedOperation

        tell = seek  # type: ignore[assignment]

    with llmzip.open(Pipe(path.read_bytes()), options=OPTIONS) as archive:
        assert not archive.seekable()
        with pytest.raises(io.UnsupportedOperation):
            archive.seek(5)
        assert archive.read() == PROSE.encode()


def test_modes_are_kept_apart(path: Path, tmp_path: Path) -> None:
    with llmzip.open(path, options=OPTIONS) as archive:
        assert archive.readable()
        assert not archive.writable()
        with pytest.raises(io.UnsupportedOperation):
            archive.write(b"x")
        with pytest.raises(io.UnsupportedOperation):
            archive.truncate()
    with llmzip.LlmzipFile(tmp_path / "new", "w", options=OPTIONS) as archive:
        assert (archive.readable(), archive.writable(), archive.seekable()) == (False, True, False)
        with pytest.raises(io.UnsupportedOperation):
            archive.read()
        assert archive.write(memoryview(b"abcdef")[::1]) == 6
        assert archive.write(b"") == 0
        assert archive.tell() == 6
    for use in (archive.read, archive.tell, archive.readable, archive.fileno):
        with pytest.raises(ValueError, match="closed"):
            use()
    with llmzip.open(tmp_path / "new") as archive:
        assert archive.peek()[:2] == b"ab"
        assert archive.read1(2) == b"ab"
        buffer = bytearray(3)
        assert archive.readinto(buffer) == 3
        assert bytes(buffer) == b"cde"
        assert archive.readline() == b"f"


def test_an_archive_whose_writing_failed_is_not_completed(tmp_path: Path) -> None:
    class Full(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            if self.tell() > 600:
                raise OSError(28, "No space left on device")
            return super().write(data)

    sink = Full()
    options = llmzip.Options(model=str(TINY), frame_size=300)
    archive = llmzip.LlmzipFile(sink, "w", options=options)
    noise = bytes(i * i % 251 for i in range(2000))
    with pytest.raises(OSError, match="No space"):
        archive.write(noise)
    archive.close()
    with pytest.raises(llmzip.TruncatedArchive):
        llmzip.decompress(sink.getvalue(), model=str(TINY))


def test_max_length_counts_no_frame_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.llmz"
    frames = [os.urandom(500) for _ in range(4)]
    with llmzip.open(path, "w", options=llmzip.Options(frame_size=500)) as archive:
        archive.write(b"".join(frames))
    with llmzip.open(path, options=llmzip.Options(max_length=2000)) as archive:
        for start in (1500, 0, 1500, 500, 1000, 0):
            archive.seek(start)
            assert archive.read(500) == frames[start // 500]
    with llmzip.open(path, options=llmzip.Options(max_length=1999)) as archive:
        assert archive.read(1500) == b"".join(frames[:3])
        with pytest.raises(llmzip.TooLong):
            archive.read(1)


def test_a_loop_over_frames_that_was_left_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "frames_together", lambda device: 3)
    content = [bytes([i]) * 100 for i in range(8)]
    packed = io.BytesIO()
    writer = llmzip.ArchiveWriter(packed, llmzip.Options(model=str(TINY), frame_size=100))
    writer.write(b"".join(content))
    writer.finish()
    packed.seek(0)
    archive = llmzip.ArchiveReader(packed, llmzip.Options(model=str(TINY)))
    found = [next(iter(archive))]
    found.append(archive.read_frame() or b"")
    for part in archive:
        found.append(part)
        break
    assert found + list(archive) == content
    assert archive.read_frame() is None


def test_nobody_else_reads_what_is_not_complete(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"secret")
    source.chmod(0o600)
    with output.writing(tmp_path / "target", overwrite=False, like=source) as file:
        assert Path(file.name).stat().st_mode & 0o077 == 0
        file.write(b"secret")
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600


def test_names_of_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / ("道" * 84)
    output.write(path, b"text")
    assert path.read_bytes() == b"text"
