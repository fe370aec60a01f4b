"""The habits of gzip and zstd, pipes into other tools, folders, presets, signals and full disks."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROSE, TINY, run

import llmzip
from llmzip import cli
from llmzip.cli import options, parser
from llmzip.errors import LlmzipError

MODEL = ("--model", TINY)
LLMZIP = f"{sys.executable} -m llmzip --model {TINY}"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "prose.txt"
    path.write_text(PROSE)
    return path


def test_as_gzip_and_zstd(text: Path) -> None:
    packed = text.with_name("prose.txt.llmz")
    done = run(text, *MODEL)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert text.exists()
    assert run("-dc", packed, *MODEL).stdout == PROSE.encode()
    assert run("-tq", packed, *MODEL).stdout == b""
    assert (
        run("-t", packed, *MODEL).stdout.decode() == f"{packed}: ok, {len(PROSE.encode())} bytes\n"
    )
    listed = run("-l", packed).stdout.decode().splitlines()
    assert listed[1].split()[-1] == str(packed)
    assert f"{packed.stat().st_size:,}" in listed[1]
    text.unlink()
    assert run("-dk", packed, *MODEL).returncode == 0
    assert run("-d", packed, *MODEL).returncode == 1  # it exists already
    assert run("-df", packed, "--rm", *MODEL).returncode == 0
    assert text.read_text() == PROSE
    assert not packed.exists()
    assert (
        run("-z9v", text, *MODEL).stderr.decode().startswith(f"{text}: {len(PROSE.encode()):,} → ")
    )


def test_stdin_to_stdout_without_arguments() -> None:
    packed = run(input=PROSE.encode())
    assert (packed.returncode, packed.stderr) == (0, b"")
    assert packed.stdout.startswith(b"LLMz")
    assert run("-d", input=packed.stdout).stdout == PROSE.encode()
    assert run("test", input=packed.stdout).stdout.startswith(b"-: ok")


def test_a_word_that_is_nothing(tmp_path: Path) -> None:
    done = run("squash", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(b"llmzip: squash: neither a command nor a file")
    (tmp_path / "test").write_text(PROSE)
    assert run("./test", *MODEL, cwd=tmp_path).returncode == 0
    assert (tmp_path / "test.llmz").exists()


def test_folders(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "sub").mkdir(parents=True)
    (corpus / "a").write_text(PROSE[:500])
    (corpus / "sub" / ".b").write_text(PROSE[500:900])
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "c").write_text("not here")
    (corpus / "link").symlink_to(tmp_path / "elsewhere")
    (corpus / "pipe").symlink_to("/dev/null")
    assert run("-r", corpus, *MODEL).returncode == 0
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.llmz")) == [
        "corpus/a.llmz", "corpus/sub/.b.llmz"]  # fmt: skip
    tested = run("-tr", corpus, *MODEL)
    assert tested.stdout.count(b": ok, ") == 2
    assert run("list", "-r", corpus).stdout.count(b".llmz") == 2
    (corpus / "a").unlink()
    (corpus / "sub" / ".b").unlink()
    assert run("-dr", "--rm", corpus, *MODEL).returncode == 0
    assert (corpus / "a").read_text() + (corpus / "sub" / ".b").read_text() == PROSE[:900]
    assert not list(tmp_path.rglob("*.llmz"))
    done = run(corpus, *MODEL)
    assert done.returncode == 1
    assert done.stderr.decode() == f"llmzip: {corpus}: is a directory; -r goes into it\n"


def test_one_stream_holds_one_archive(text: Path) -> None:
    done = run("-c", text, text, *MODEL)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"one stream holds one archive" in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--fast x", {"stream_tokens": 512, "mixing": "fast"}),
        ("-1 --stream-tokens 99 x", {"stream_tokens": 99}),
        ("--wide x", {"stream_tokens": 1024, "frame_size": 1 << 20}),
        ("compress --best x --streams 3", {"stream_tokens": None, "streams": 3}),
        ("-9 --model m x", {"model": "m"}),
        ("--mixing none x", {"mixing": "none"}),
    ],
)
def test_presets_and_options(
    words: str, expected: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    found = options.options_of(parser.parse(words.split()), writing=True)
    assert {name: getattr(found, name) for name in expected} == expected


def test_presets_do_not_touch_what_is_read() -> None:
    assert options.options_of(parser.parse(["-d", "--best", "x.llmz"])) == llmzip.Options()


@pytest.mark.parametrize(
    ("text", "bytes"), [("7", 7), ("3K", 3000), ("2MiB", 2 << 20), ("1 G", 10**9), ("4KB", 4000)]
)
def test_sizes(text: str, bytes: int) -> None:
    assert parser.size(text) == bytes


def test_max_output_stops_before_decoding(text: Path) -> None:
    packed = text.with_name("prose.txt.llmz")
    run(text, *MODEL)
    done = run("-dc", packed, *MODEL, "--max-output", "500")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"more than 500 bytes" in done.stderr
    assert run("-t", packed, *MODEL, "--max-output", "1M").returncode == 0
    assert run("-t", packed, "--max-output", "many").returncode == 2


def damaged(path: Path) -> bytes:
    """An archive of several frames at `path`, one in its middle damaged → what is left."""
    content = (PROSE * 5).encode()[:4000]
    with path.open("wb") as sink:
        writer = llmzip.ArchiveWriter(sink, llmzip.Options(model=str(TINY), frame_size=1000))
        writer.write(content)
        writer.finish()
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 8] ^= 4  # in the second of four frames of like sizes
    path.write_bytes(data)
    return content[:1000] + content[2000:]


def test_what_is_lost_is_told_and_the_rest_salvaged(tmp_path: Path) -> None:
    path = tmp_path / "x.llmz"
    left = damaged(path)
    done = run("test", path, *MODEL)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"llmzip: {path}: frame 1 is lost: bytes 1,000 to 1,999 are missing")
    for source in (path.read_bytes(), None):
        name = "-" if source else path
        done = run("test", "--json", name, *MODEL, input=source)
        (report,) = json.loads(done.stdout)
        assert (done.returncode, report["whole"], report["content_bytes"]) == (1, False, 3000)
        assert [(d["start"], d["end"]) for d in report["damages"]] == [(1000, 2000)]
        done = run("decompress", "--salvage", "-c", name, *MODEL, input=source)
        assert (done.returncode, done.stdout) == (1, left)
        assert b"bytes 1,000 to 1,999 are missing" in done.stderr
    assert run("-d", path, *MODEL).returncode == 1
    assert not (tmp_path / "x").exists()
    assert run("-d", "--salvage", path, *MODEL).returncode == 1
    assert (tmp_path / "x").read_bytes() == left
    assert run("-d", "--salvage", "--rm", path, *MODEL).returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_partial_file(number: int, tmp_path: Path) -> None:
    command = [*LLMZIP.split(), "-", "-o", "out.llmz"]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        # what a shell starts in the background ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdin is not None
    process.stdin.write(PROSE.encode())
    process.stdin.flush()
    end = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.count(b"\n") == 1
    assert b"Traceback" not in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGINT], 130), ([signal.SIGTERM], 130), ([], 1)]
)
def test_an_interruption_that_comes_out_as_another_exception(
    signals: list[int],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(words: list[str]) -> None:
        try:
            for number in signals:
                signal.raise_signal(number)
        except KeyboardInterrupt:
            pass
        raise LlmzipError("what came out")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(cli.parser, "parse", fail)
    try:
        assert cli.main([]) == code
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    said = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
    expected = said[signals[0]] if signals else "what came out"
    assert capsys.readouterr().err == f"llmzip: {expected}\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_line_and_leaves_the_source(text: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*LLMZIP.split(), "-c", str(text)], stdout=full, stderr=subprocess.PIPE
        )
    assert done.returncode == 1
    assert done.stderr.decode() == "llmzip: stdout: No space left on device\n"
    for name in ("/dev/full", "/proc/self/fd/1"):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [*LLMZIP.split(), str(text), "-o", name], stdout=full, stderr=subprocess.PIPE
            )
        assert done.returncode == 1
        assert done.stderr.decode() == f"llmzip: {name}: No space left on device\n"
    import resource

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    done = subprocess.run(
        [*LLMZIP.split(), "--rm", str(text)], stderr=subprocess.PIPE, preexec_fn=small_files
    )
    assert done.returncode == 1
    assert done.stderr.decode() == f"llmzip: {text}.llmz: File too large\n"
    assert [path.name for path in text.parent.iterdir()] == ["prose.txt"]


def test_completion_completes() -> None:
    pytest.importorskip("shtab")
    done = run("completion", "bash")
    assert done.returncode == 0
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    script = done.stdout.decode() + (
        '\nCOMP_WORDS=(llmzip decomp); COMP_CWORD=1; COMP_LINE="llmzip decomp"\n'
        '$(complete -p llmzip | sed "s/.*-F \\([^ ]*\\).*/\\1/"); echo "${COMPREPLY[@]}"\n'
    )
    found = subprocess.run([bash, "-c", script], capture_output=True)
    assert found.stdout.decode().strip() == "decompress", found.stderr.decode()


def test_help() -> None:
    topics = run("help").stdout.decode()
    assert "pipes" in topics
    assert b"tar --use-compress-program" in run("help", "pipes").stdout
    assert run("help", "compress").stdout == run("compress", "--help").stdout
    assert run("compress", "--help").stdout.startswith(b"usage: llmzip compress [-h]")
    assert b"\nllmzip train: error: the following" in run("train").stderr
    assert run("help", "nothing").returncode == 2
    assert b"llmzip [-d|-t|-l]" in run("--help").stdout


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", f"set -eo pipefail; {script}"], cwd=folder, capture_output=True
    )


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("bash")), reason="no tar or bash")
def test_tar(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "prose").write_text(PROSE)
    program = f"--use-compress-program='{LLMZIP}'"
    script = f"tar {program} -cf x.tar.llmz dir; rm -r dir; tar {program} -xf x.tar.llmz"
    done = shell(script, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "dir" / "prose").read_text() == PROSE
    assert (tmp_path / "x.tar.llmz").stat().st_size < len(PROSE)


@pytest.mark.skipif(not (shutil.which("age") and shutil.which("bash")), reason="no age or bash")
def test_encryption_by_age(tmp_path: Path, text: Path) -> None:
    script = (
        "age-keygen -o key 2> told; "
        f"{LLMZIP} -c prose.txt | age -r $(age-keygen -y key) > x.age; "
        f"age -d -i key x.age | {LLMZIP} -d"
    )
    done = shell(script, tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == PROSE
