"""The command line as processes of its own: files, streams, exit codes, what goes where."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROSE, TINY, run

import llmzip
from llmzip.cli import main

MODEL = ("--model", TINY)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    path.chmod(0o640)
    os.utime(path, (1_500_000_000, 1_500_000_000))
    return path


@pytest.fixture
def packed(text: Path) -> Path:
    done = run("compress", text, *MODEL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    return text.with_name("prose.txt.llmz")


def test_compress_and_decompress_files(text: Path, packed: Path) -> None:
    assert text.exists()
    assert packed.stat().st_size < len(PROSE) / 2
    assert packed.stat().st_mode & 0o777 == 0o640
    assert packed.stat().st_mtime == 1_500_000_000
    text.unlink()
    done = run("decompress", packed, *MODEL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert text.read_text() == PROSE
    assert text.stat().st_mode & 0o777 == 0o640
    assert text.stat().st_mtime == 1_500_000_000
    assert sorted(path.name for path in text.parent.iterdir()) == ["prose.txt", "prose.txt.llmz"]


def test_the_default_model_in_pipes_with_other_threads_and_instructions() -> None:
    one = {"OMP_NUM_THREADS": "1"}
    other = {"OMP_NUM_THREADS": "2", "ATEN_CPU_CAPABILITY": "default"}
    packed = run("compress", input=PROSE.encode(), environment=one)
    assert packed.returncode == 0
    assert run("compress", input=PROSE.encode(), environment=other).stdout == packed.stdout
    back = run("decompress", "-", input=packed.stdout, environment=other)
    assert back.stdout == PROSE.encode()
    assert back.stderr == b""


def test_existing_files_are_kept_without_f(text: Path, packed: Path) -> None:
    before = packed.read_bytes()
    done = run("compress", text, *MODEL)
    assert done.returncode == 1
    assert done.stderr.decode() == f"llmzip: {packed}: exists already; -f overwrites it\n"
    assert packed.read_bytes() == before
    assert run("compress", "-f", text, *MODEL).returncode == 0


def test_rm_removes_the_input_when_all_is_well(text: Path) -> None:
    assert run("compress", "--rm", text, *MODEL).returncode == 0
    assert not text.exists()
    packed = text.with_name("prose.txt.llmz")
    assert run("decompress", "--rm", packed, *MODEL).returncode == 0
    assert not packed.exists()
    assert text.read_text() == PROSE


def test_output_names(text: Path, packed: Path, tmp_path: Path) -> None:
    assert run("compress", text, "-o", tmp_path / "a", *MODEL).returncode == 0
    assert (tmp_path / "a").read_bytes() == packed.read_bytes()
    assert run("decompress", tmp_path / "a", "-o", tmp_path / "b", *MODEL).returncode == 0
    assert (tmp_path / "b").read_text() == PROSE
    assert run("decompress", "-c", packed, *MODEL).stdout == PROSE.encode()
    assert run("decompress", packed, "-o", "-", *MODEL).stdout == PROSE.encode()


def test_a_bad_file_does_not_stop_the_others(text: Path, packed: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.llmz"
    bad.write_bytes(packed.read_bytes()[:-5])
    text.unlink()
    done = run("decompress", bad, packed, *MODEL)
    assert done.returncode == 1
    assert done.stderr.decode() == f"llmzip: {bad}: the archive ends too early\n"
    assert text.read_text() == PROSE
    assert not (tmp_path / "bad").exists()


def test_test(packed: Path, tmp_path: Path) -> None:
    done = run("test", packed, *MODEL)
    assert done.stdout.decode() == f"{packed}: ok, {len(PROSE.encode())} bytes\n"
    data = bytearray(packed.read_bytes())
    data[40] ^= 1
    packed.write_bytes(data)
    done = run("test", packed, *MODEL)
    assert done.returncode == 1
    assert b"llmzip: " in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_info_needs_no_model(packed: Path) -> None:
    done = run("info", "--json", packed)
    (entry,) = json.loads(done.stdout)
    assert entry["content_bytes"] == len(PROSE.encode())
    assert entry["archive_bytes"] == packed.stat().st_size
    (archive,) = entry["archives"]
    assert archive["model"]["name"] == "tiny"
    assert [frame["kind"] for frame in archive["frames"]] == ["model"]
    assert sum(entry["spent_bytes"].values()) == entry["archive_bytes"] == packed.stat().st_size
    assert "1 model" in run("info", packed).stdout.decode()


def test_info_takes_threads(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it needs to decode."""
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    assert main(["info", "--costs", "-T", "1", str(packed), "--model", str(TINY)]) == 0
    assert os.environ["RAYON_NUM_THREADS"] == "1"


def test_info_loads_no_torch(packed: Path) -> None:
    code = (
        "import sys; from llmzip.cli import main; "
        f"main(['info', {str(packed)!r}]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["squash", "x"],
        ["compress", "x.llmz"],
        ["decompress", "x.txt"],
        ["compress", "a", "b", "-o", "c"],
        ["compress", "a", "-c", "-o", "b"],
        ["compress", "-", "--rm"],
        ["compress", "a", "-k", "--rm"],
        ["compress", "a", "--streams", "0"],
        ["compress", "a", "--streams", "many"],
        ["compress", "a", "--activations", "a4"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compress", "missing"], "missing: No such file or directory"),
        (["compress", "."], "is a directory; -r goes into it"),
        (["decompress", "no.llmz"], "no.llmz: not an llmzip archive"),
        (["info", "no.llmz"], "no.llmz: not an llmzip archive"),
        (["test", "no.llmz"], "no.llmz: not an llmzip archive"),
        (["compress", "text", "--model", "nobody"], "no model 'nobody'"),
        (["compress", "text", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["doctor", "--device", "abacus"], "device 'abacus' cannot be used"),
        (["bench", "missing"], "missing: No such file or directory"),
    ],
    ids=str,
)
def test_data_errors_are_one_line_and_exit_code_1(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "no.llmz").write_bytes(b"no archive")
    (tmp_path / "text").write_text(PROSE)
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.llmz", "text"]


def test_a_terminal_shows_progress_and_gets_no_archive(text: Path) -> None:
    pty, fcntl, termios = map(pytest.importorskip, ("pty", "fcntl", "termios"))
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    command = [sys.executable, "-m", "llmzip.cli", "compress", *map(str, MODEL), str(text)]
    done = subprocess.run(command, stderr=follower)
    shown = os.read(leader, 65536).decode()
    assert done.returncode == 0
    assert "B/s" in shown
    done = subprocess.run([*command[:-1], "-c", str(text)], stdout=follower, stderr=subprocess.PIPE)
    assert done.returncode == 2
    assert b"not written to a terminal" in done.stderr
    os.close(leader)
    os.close(follower)


def test_output_into_a_pipe_that_closes() -> None:
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("no shell")
    command = f"{sys.executable} -m llmzip.cli compress | true"
    done = subprocess.run([shell, "-c", command], input=PROSE.encode() * 50, capture_output=True)
    assert b"Traceback" not in done.stderr


def test_bench_measures_and_verifies(text: Path, tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "letters"
    folder.mkdir(parents=True)
    (folder / "one").write_text(PROSE[:300])
    (folder / ".hidden").write_text("x")
    out = tmp_path / "results"
    forms = [item for kind in ("json", "csv", "markdown") for item in (f"--{kind}", out / kind)]
    arguments = [text, folder.parent, *MODEL, "--codecs", "gzip,xz", "--repeat", "2", *forms]
    done = run("bench", *arguments)
    assert done.returncode == 0, done.stderr.decode()
    report = json.loads((out / "json").read_text())
    assert [(r["category"], r["file"], r["codec"]) for r in report["results"]] == [
        (category, file, codec)
        for category, file in (("", "prose.txt"), ("letters", "one"))
        for codec in ("llmzip tiny", "gzip -9", "xz -9e")
    ]
    assert all(result["restored"] for result in report["results"])
    assert all(len(result["encode_seconds_all"]) == 2 for result in report["results"])
    own, gzip, xz = report["results"][:3]
    assert own["compressed_bytes"] < xz["compressed_bytes"]
    assert own["model_bytes"] == report["models"][0]["bytes"] > 100_000
    if sys.platform == "linux":  # a process of its own: gzip's is small, ours holds torch
        assert gzip["encode_peak_bytes"] < 50e6 < own["encode_peak_bytes"]
    assert report["command"].startswith("llmzip bench prose.txt ")
    assert b"| prose.txt |" in done.stdout
    assert b"| all | llmzip tiny | 2 |" in done.stdout
    lines = (out / "csv").read_text().splitlines()
    assert len(lines) == 1 + len(report["results"])
    assert report["command"] in (out / "markdown").read_text()


def test_bench_wants_codecs_that_are_there(text: Path) -> None:
    done = run("bench", text, *MODEL, "--codecs", "gzip,zup")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"no codec 'zup' here" in done.stderr
    assert run("bench", text, *MODEL, "--repeat", "0").returncode == 2


def test_the_length_of_the_window(text: Path) -> None:
    done = run("compress", text, *MODEL, "--context", "70", "-o", "-")
    assert done.returncode == 0
    short = text.with_name("short.llmz")
    short.write_bytes(done.stdout)
    shown = json.loads(run("info", short, "--json").stdout)
    assert '"window": 64' in json.dumps(shown)
    assert '"overlap": 16' in json.dumps(shown)
    assert run("decompress", short, *MODEL, "-c").stdout == PROSE.encode()
    for number, code, message in (("7", 2, "at least 16"), ("9999", 1, "a context of 256 tokens")):
        done = run("compress", text, *MODEL, "--context", number, "-c")
        assert done.returncode == code
        assert message in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("linked", [False, True])
def test_an_output_that_is_its_input_is_refused(text: Path, linked: bool) -> None:
    target = text
    if linked:
        target = text.with_name("link")
        target.symlink_to(text)
    done = run("compress", "-f", "--rm", text, "-o", target, *MODEL)
    assert done.returncode == 2
    assert text.read_text() == PROSE


def test_info_of_a_profile_of_the_future(tmp_path: Path) -> None:
    packed = llmzip.compress(PROSE.encode(), model=str(TINY))
    path = tmp_path / "x.llmz"
    path.write_bytes(packed[:6] + bytes([packed[6] | 0xF0]) + packed[7:])
    done = run("info", path)
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0
