"""What is no regular file is never replaced, and never read without being asked for."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import PROSE, TINY, run

import llmzip
from llmzip import output

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs")
MODEL = ("--model", TINY)
NULL = os.makedev(1, 3)  # as /dev/null, which tests leave alone


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    return path


@pytest.fixture
def packed(text: Path) -> Path:
    path = text.with_name("prose.txt.llmz")
    path.write_bytes(llmzip.compress(PROSE.encode(), model=str(TINY)))
    return path


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A character device that takes everything and holds nothing."""
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o640 | stat.S_IFCHR, NULL)
        path.write_bytes(b"x")
    except OSError:
        pytest.skip("device nodes can be made by root alone, where the file system takes them")
    return path


class Reading:
    """A FIFO, and all that comes out of it."""

    def __init__(self, path: Path) -> None:
        self.path, self.data = path, b""
        os.mkfifo(path)
        os.chmod(path, 0o640)

    def __enter__(self) -> Reading:
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        return self

    def _read(self) -> None:
        self.data = self.path.read_bytes()

    def __exit__(self, *_: object) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def facts(path: Path) -> tuple[int, int, int, int]:
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_rdev, status.st_nlink


@pytest.mark.parametrize("force", [(), ("-f",)])
def test_a_device_stays_one(device: Path, text: Path, packed: Path, force: tuple[str]) -> None:
    before, names = facts(device), sorted(device.parent.iterdir())
    for words in (
        (text, "-o", device, *MODEL),
        ("-d", packed, "-o", device, *MODEL),
        ("inspect", text, "--html", device, *MODEL),
        ("pack", TINY, "-o", device),
    ):
        done = run(*words, *force)
        assert (done.returncode, done.stderr.count(b"Error")) == (0, 0), done.stderr.decode()
        assert facts(device) == before
    assert sorted(device.parent.iterdir()) == names


def test_reports_go_into_a_device(device: Path, text: Path) -> None:
    before, names = facts(device), sorted(device.parent.iterdir())
    reports = ("--json", device, "--csv", device, "--markdown", device)
    done = run("bench", text, "--codecs", "xz", *MODEL, *reports)
    assert done.returncode == 0, done.stderr.decode()
    assert facts(device) == before
    assert sorted(device.parent.iterdir()) == names


def test_a_fifo_is_written_to(tmp_path: Path, text: Path, packed: Path) -> None:
    for words, expected in (((text,), packed.read_bytes()), (("-d", packed), PROSE.encode())):
        with Reading(tmp_path / "fifo") as fifo:
            before = facts(fifo.path)
            assert run(*words, *MODEL, "-o", fifo.path).returncode == 0
        assert fifo.data == expected
        assert facts(fifo.path) == before
        assert not list(tmp_path.glob(".*"))
        fifo.path.unlink()


def test_the_source_stays_if_its_output_cannot_be_read_back(device: Path, text: Path) -> None:
    done = run("--rm", text, "-o", device, *MODEL)
    assert (done.returncode, text.read_text()) == (2, PROSE)


def test_a_block_device_wants_force(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    try:
        os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, 255))
    except OSError:
        pytest.skip("device nodes can be made by root alone")
    with pytest.raises(FileExistsError), output.writing(path, overwrite=False):
        pass
    assert stat.S_ISBLK(path.stat().st_mode)


def test_members_of_a_corpus(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with Reading(out / "prose.txt.llmz") as fifo:
        before = facts(fifo.path)
        assert run(text, "--out", out, "-f", *MODEL).returncode == 0
        assert facts(fifo.path) == before
    assert llmzip.decompress(fifo.data, model=str(TINY)) == PROSE.encode()


def test_members_that_are_extracted(tmp_path: Path) -> None:
    folder, back, archive = (tmp_path / name for name in ("folder", "back", "x.tar.llmz"))
    folder.mkdir()
    back.mkdir()
    (folder / "a").write_text("content of a")
    assert run(folder, "--archive", "-o", archive, *MODEL).returncode == 0
    with Reading(back / "a") as fifo:
        before = facts(fifo.path)
        done = run("extract", archive, "-C", back, *MODEL)
        assert done.returncode == 0, done.stderr.decode()
    assert fifo.data == b"content of a"
    assert facts(fifo.path) == before


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_open_descriptors(name: str, packed: Path, tmp_path: Path) -> None:
    """Also when they are regular files, whose content so far must stay."""
    assert run("-d", packed, "-o", name, *MODEL).stdout == PROSE.encode()
    log = tmp_path / "log"
    with log.open("wb") as sink:
        sink.write(b"before\n")
        sink.flush()
        inode = log.stat().st_ino
        command = [sys.executable, "-m", "llmzip", "-d", packed, "-o", name, *MODEL]
        assert subprocess.run(command, stdout=sink).returncode == 0
    assert log.read_bytes() == b"before\n" + PROSE.encode()
    assert log.stat().st_ino == inode


def test_links_are_followed(tmp_path: Path, text: Path) -> None:
    (tmp_path / "far").mkdir()
    link, target = tmp_path / "link", tmp_path / "far" / "target"
    link.symlink_to(Path("far", "target"))
    assert run(text, "-o", link, *MODEL).returncode == 0  # it dangles
    assert link.is_symlink()
    archive = target.read_bytes()
    assert llmzip.decompress(archive, model=str(TINY)) == PROSE.encode()
    done = run(text, "-o", link, *MODEL)
    assert (done.returncode, target.read_bytes()) == (1, archive)
    assert b"exists already" in done.stderr
    target.write_bytes(b"old")
    assert run(text, "-f", "-o", link, *MODEL).returncode == 0
    assert link.is_symlink()
    assert target.read_bytes() == archive
    assert [path.name for path in (tmp_path / "far").iterdir()] == ["target"]
    link.unlink()
    link.symlink_to("link")
    done = run(text, "-f", "-o", link, *MODEL)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert link.is_symlink()


def test_a_link_to_a_device(device: Path, text: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(device)
    before = facts(device)
    assert run(text, "-f", "-o", link, *MODEL).returncode == 0
    assert link.is_symlink()
    assert facts(device) == before


def test_mode_and_times_go_to_new_files_alone(text: Path, device: Path) -> None:
    text.chmod(0o444)
    os.utime(text, (1e9, 1e9))
    assert run(text, *MODEL).returncode == 0
    made = text.with_name("prose.txt.llmz").stat()
    assert (made.st_mode & 0o777, made.st_mtime) == (0o444, 1e9)
    assert run(text, "-o", device, *MODEL).returncode == 0
    assert device.stat().st_mode & 0o777 == 0o640
    assert device.stat().st_mtime != 1e9


# Inputs


def test_special_inputs_are_refused_by_name(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for name in (fifo, Path("/dev/zero")):
        for words in (
            (name,),
            ("-d", name),
            ("-t", name),
            ("-l", name),
            ("info", name),
            ("inspect", name),
            (name, "--out", tmp_path / "out"),
            ("bench", name),
            ("train", name, "-o", tmp_path / "model"),
        ):
            done = run(*words, timeout=60)
            assert done.returncode == 1, words
            (line,) = done.stderr.decode().splitlines()
            assert f"{name}: is no regular file" in line
    assert [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_special_inputs_that_are_asked_for(tmp_path: Path) -> None:
    fifo, out = tmp_path / "fifo", tmp_path / "out"
    os.mkfifo(fifo)
    (tmp_path / "usual").touch()
    for words in (("-c", fifo), (fifo, "-o", out)):
        writer = threading.Thread(target=fifo.write_text, args=(PROSE,), daemon=True)
        writer.start()
        done = run(*words, *MODEL)
        writer.join(60)
        assert done.returncode == 0
        data = done.stdout or out.read_bytes()
        assert done.stdout or out.stat().st_mode == tmp_path.joinpath("usual").stat().st_mode
        assert llmzip.decompress(data, model=str(TINY)) == PROSE.encode()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_process_substitution(tmp_path: Path, packed: Path) -> None:
    command, model = f"{sys.executable} -m llmzip", f"--model {TINY}"

    def bash(script: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True)

    for script in (
        f"{command} {model} -c <(cat prose.txt) > a.llmz && {command} {model} -dc <(cat a.llmz)",
        f"{command} -t {model} <(cat prose.txt.llmz) > told && cat prose.txt",
        f"{command} -l <(cat prose.txt.llmz) > told && cat prose.txt",
    ):
        done = bash(script)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout == PROSE.encode()
    done = bash(f"{command} {model} <(cat prose.txt)")
    assert done.returncode == 1
    assert b"is no regular file; -c or -o" in done.stderr


# Errors


def test_a_missing_folder_is_named(tmp_path: Path, text: Path) -> None:
    done = run(text, "-o", tmp_path / "no" / "x.llmz", *MODEL)
    assert done.returncode == 1
    assert done.stderr.decode() == f"llmzip: {tmp_path / 'no'}: the folder does not exist\n"
    done = run(text, "-f", "-o", tmp_path, *MODEL)
    assert done.returncode == 1
    assert done.stderr.decode() == f"llmzip: {tmp_path}: is a directory\n"
