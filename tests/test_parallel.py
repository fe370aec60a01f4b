"""Workers and ranks write what one process writes; what died is said, and gone on with."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import time
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import PROSE, TINY, run
from families import FAMILIES, build, save

import llmzip
from llmzip.cli import manifest as manifests
from llmzip.cli.options import set_threads
from llmzip.parallel import ranks, runner, tasks
from llmzip.parallel.ranks import Rank
from llmzip.parallel.tasks import Job, Task

OPTIONS = llmzip.Options(model=str(TINY), frame_size=300)
MODEL = ("--model", TINY)


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    """Several frames, one, none; incompressible ones among them."""
    contents = {"a": PROSE.encode() + os.urandom(500), "b": PROSE[:200].encode(), "c": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return [Job(tmp_path / name, tmp_path / "out" / f"{name}.llmz") for name in contents]


@pytest.fixture(autouse=True)
def out(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()


def alone(job: Job) -> bytes:
    sink = io.BytesIO()
    writer = llmzip.ArchiveWriter(sink, OPTIONS)
    writer.write(job.source.read_bytes())
    writer.finish()
    return sink.getvalue()


def check(jobs: list[Job]) -> None:
    for job in jobs:
        assert job.target.read_bytes() == alone(job)
    left = {path.name for path in jobs[0].target.parent.iterdir()}
    assert left == {job.target.name for job in jobs}


def back(jobs: list[Job]) -> list[Job]:
    return [Job(job.target, job.source.with_suffix(".back")) for job in jobs]


def test_workers_write_what_one_process_writes(jobs: list[Job]) -> None:
    told: list[Job] = []
    runner.run(jobs, OPTIONS, workers=2, finished=told.append)
    assert told == jobs
    check(jobs)
    runner.run(back(jobs), OPTIONS, decode=True, workers=2)
    for job in jobs:
        assert job.source.with_suffix(".back").read_bytes() == job.source.read_bytes()


RANK = """
import os, sys
from pathlib import Path
import llmzip
from llmzip.parallel import runner, tasks

dies = len(sys.argv) > 3 and os.environ["RANK"] == "1"
if dies:
    encode = tasks._encode
    def once(*arguments):
        tasks._encode = lambda *_: os._exit(9)
        return encode(*arguments)
    tasks._encode = once
options = llmzip.Options(model=sys.argv[1], frame_size=300)
folder = Path(sys.argv[2])
jobs = [tasks.Job(folder / n, folder / "out" / f"{n}.llmz") for n in "abc"]
runner.run(jobs, options)
"""


def launch(tmp_path: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    root = str(Path(llmzip.__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         str(script), str(TINY), str(tmp_path), *more],
        capture_output=True, env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_ranks_write_what_one_process_writes(jobs: list[Job], tmp_path: Path) -> None:
    done = launch(tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    check(jobs)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the frames that are encoded from now on."""
    found: list[int] = []
    encode = tasks._encode

    def count(task: Task, options: llmzip.Options, content: bytes) -> object:
        found.append(task.number)
        return encode(task, options, content)

    monkeypatch.setattr(tasks, "_encode", count)
    return found


def test_a_rank_that_dies(jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = launch(tmp_path, "dies")
    assert done.returncode != 0
    assert not [job.target for job in jobs if job.target.exists()]
    total = sum(len(tasks.tasks_of(job, OPTIONS, False)) for job in jobs)
    found = counted(monkeypatch)
    runner.run(jobs, OPTIONS)
    check(jobs)
    assert 0 < len(found) < total  # the others were finished before


def test_a_rank_that_never_came(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_TIMEOUT", 0.5)
    with pytest.raises(llmzip.LlmzipError, match="rank 1 has given no sign of life"):
        runner.run(jobs, OPTIONS, rank=Rank(0, 2, 0, 2))
    assert not jobs[0].target.exists()
    found = counted(monkeypatch)
    runner.run(jobs[:1], OPTIONS)
    assert found == [1, 3]  # rank 0 has done the others
    assert jobs[0].target.read_bytes() == alone(jobs[0])


def test_what_was_left_is_used_only_if_it_fits(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "_TIMEOUT", 0.1)
    with pytest.raises(llmzip.LlmzipError):
        runner.run(jobs[:1], OPTIONS, rank=Rank(0, 2, 0, 2))
    spool = jobs[0].beside("frames")
    (spool / "0").write_bytes((spool / "0").read_bytes()[:-1])  # damaged
    content = bytearray(jobs[0].source.read_bytes())
    content[650] ^= 1  # in frame 2
    jobs[0].source.write_bytes(content)
    found = counted(monkeypatch)
    runner.run(jobs[:1], OPTIONS)
    assert set(found) >= {0, 1, 2, 3}
    assert jobs[0].target.read_bytes() == alone(jobs[0])


def test_long_names_that_begin_alike_stay_apart(tmp_path: Path) -> None:
    names = ["n" * 210 + end for end in "ab"]
    for name in names:
        (tmp_path / name).write_text(PROSE + name)
    jobs = [Job(tmp_path / name, tmp_path / "out" / f"{name}.llmz") for name in names]
    runner.run(jobs, OPTIONS, workers=2)
    check(jobs)


def test_one_model_is_held_at_a_time() -> None:
    """A worker of Dask may get frames of many options before it ends."""
    first = weakref.ref(tasks.frame_writer(OPTIONS))
    assert tasks.frame_writer(OPTIONS) is first()
    tasks.frame_writer(llmzip.Options(model=str(TINY), frame_size=301))
    gc.collect()
    assert first() is None


@pytest.mark.parametrize("name", ["source_digest", "VERSION", "ARITHMETIC"])
def test_what_other_code_has_left_is_not_used(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(ranks, "_TIMEOUT", 0.1)
    with pytest.raises(llmzip.LlmzipError):
        runner.run(jobs[:1], OPTIONS, rank=Rank(0, 2, 0, 2))
    other = (lambda: b"others") if name == "source_digest" else 99
    monkeypatch.setattr(tasks, name, other)
    found = counted(monkeypatch)
    runner.run(jobs[:1], OPTIONS)
    assert found == [task.number for task in tasks.tasks_of(jobs[0], OPTIONS, False)]


def test_frames_of_a_converted_model_belong_to_a_version_of_transformers(
    jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may compute the model differently."""
    save(build(*FAMILIES["gpt2"]), tmp_path / "gpt2")
    task = tasks.tasks_of(jobs[1], OPTIONS, False)[0]
    keys = []
    for version in ("5.0", "5.1"):
        tasks._model_digest.cache_clear()
        monkeypatch.setattr(tasks, "version", lambda package, version=version: version)
        for model in (str(tmp_path / "gpt2"), str(TINY)):
            keys.append(tasks._key(task, replace(OPTIONS, model=model), b""))
    assert keys[0] != keys[2]
    assert keys[1] == keys[3]


def test_workers_share_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the whole machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(7)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    with runner.processes(2) as pool:
        assert pool.submit(os.getenv, "RAYON_NUM_THREADS").result() == "3"  # type: ignore[arg-type, comparison-overlap]
    set_threads(0)
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_a_worker_that_dies_is_said() -> None:
    with runner.processes(1) as pool, pytest.raises(llmzip.LlmzipError, match="worker process"):
        runner._result(pool.submit(os._exit, 3))  # type: ignore[arg-type]


def test_damage_is_noticed(jobs: list[Job]) -> None:
    runner.run(jobs[:1], OPTIONS)
    archive = bytearray(jobs[0].target.read_bytes())
    for place in (len(archive) // 2, len(archive) - 3):  # a frame, the hash of the whole
        broken = bytearray(archive)
        broken[place] ^= 1
        jobs[0].target.write_bytes(broken)
        with pytest.raises(llmzip.CorruptArchive):
            runner.run(back(jobs[:1]), OPTIONS, decode=True)
        assert not jobs[0].source.with_suffix(".back").exists()


def test_processes_do_not_import_from_the_current_folder(tmp_path: Path) -> None:
    """Where a user has files of any name."""
    (tmp_path / "json.py").write_text("open('ran', 'w').close()")
    (tmp_path / "a.llmz").write_bytes(llmzip.compress(b"a"))
    script = "import sys; from llmzip.cli import main; sys.exit(main())"  # as pip installs it
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "script").write_text(script)
    done = subprocess.run(
        [sys.executable, tmp_path / "bin" / "script", "test", "--workers", "2", "a.llmz"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(llmzip.__file__).parent.parent)},
        capture_output=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a.llmz: ok, 1 bytes\n", b"")
    assert not (tmp_path / "ran").exists()


def test_a_corpus_to_a_folder_and_back(tmp_path: Path) -> None:
    folder, out, restored = (tmp_path / name for name in ("corpus", "archives", "restored"))
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text(PROSE)
    (folder / "sub" / "b.txt").write_text(PROSE[:300])
    command = ["compress", "-r", folder, "--out", out, *MODEL]
    assert run(*command).returncode == 0
    assert (out / "sub" / "b.txt.llmz").exists()
    manifest = (out / manifests.MANIFEST).read_text().splitlines()
    assert [line.split("\t")[:2] for line in manifest[1:]] == [
        ["a.txt.llmz", f"{len(PROSE.encode())}"], ["sub/b.txt.llmz", "300"]]  # fmt: skip
    done = run(*command)
    assert (done.returncode, done.stderr.count(b"--resume skips it")) == (1, 2)
    (out / "a.txt.llmz").unlink()
    assert run(*command, "--resume").returncode == 0
    assert (out / manifests.MANIFEST).read_text().splitlines() == manifest
    assert run("test", "-r", out, *MODEL, "--workers", "2").stdout.count(b": ok") == 2
    assert run("decompress", "-r", out, "--out", restored, *MODEL).returncode == 0
    assert (restored / "sub" / "b.txt").read_text() == PROSE[:300]
    assert run("compress", "-c", folder / "a.txt", "--workers", "2", *MODEL).returncode == 2


def test_the_manifest_names_what_changed(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.llmz").write_bytes(llmzip.compress(name.encode()))
    manifests.write(tmp_path)
    manifests.verify(str(tmp_path))
    (tmp_path / "a.llmz").unlink()
    (tmp_path / "b.llmz").write_bytes(llmzip.compress(b"other"))
    (tmp_path / "d.llmz").write_bytes(llmzip.compress(b"d"))
    with pytest.raises(llmzip.CorruptArchive) as error:
        manifests.verify(str(tmp_path))
    assert str(error.value) == (
        "a.llmz is missing; b.llmz is not what the manifest says; d.llmz is not in the manifest"
    )


def test_the_manifest_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    """Files of others in the folder do not cost the manifest."""
    (tmp_path / "text").write_text(PROSE)
    (tmp_path / "out" / "another.llmz").write_bytes(b"no archive")
    done = run("compress", "--out", tmp_path / "out", tmp_path / "text", *MODEL)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"another.llmz: " in done.stderr
    lines = (tmp_path / "out" / manifests.MANIFEST).read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == ["text.llmz"]


def test_archives_of_the_future_in_a_manifest(tmp_path: Path) -> None:
    archive = bytearray(llmzip.compress(PROSE.encode(), model=str(TINY)))
    for name in "ab":
        (tmp_path / f"{name}.llmz").write_bytes(archive)
    assert not manifests.write(tmp_path)
    archive[4] = 99  # the version of the format
    (tmp_path / "a.llmz").write_bytes(archive)
    (tmp_path / "b.llmz").unlink()
    with pytest.raises(llmzip.CorruptArchive) as error:
        manifests.verify(str(tmp_path))
    assert str(error.value).startswith("a.llmz cannot be read: archive format version 99")
    assert str(error.value).endswith("; b.llmz is missing")


def test_a_rank_that_comes_late(jobs: list[Job]) -> None:
    """What is there by then changes nothing in who does what."""
    order = [jobs[1], jobs[0]]  # one frame, which is rank 0's; then several
    runner.run(order[:1], OPTIONS)
    late = Rank(1, 2, 0, 2)
    runner.run(order, OPTIONS, rank=late, skip={order[0]})
    runner.run(order, OPTIONS, rank=Rank(0, 2, 0, 2), skip={order[0]})
    check(order)


def launched(program: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Two ranks of llmzip, by a launcher's module."""
    root = str(Path(llmzip.__file__).parent.parent)
    options = {
        "torch.distributed.run": ["--standalone", "--nproc-per-node", "2"],
        # it starts several processes without MPI only if told of GPUs; llmzip takes the CPU
        "accelerate.commands.launch": ["--multi_gpu", "--num_processes", "2", "--num_machines", "1",
                                       "--mixed_precision", "no", "--dynamo_backend", "no",
                                       "--main_process_port", "0"],
    }[program]  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", program, *options, "-m", "llmzip", *map(str, arguments)],
        capture_output=True, env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_command_line_by_accelerate(tmp_path: Path) -> None:
    folder, out, restored = (tmp_path / name for name in ("corpus", "archives", "restored"))
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.txt").write_text(PROSE[i * 100 :])
    program = "accelerate.commands.launch"
    done = launched(program, "compress", folder, "--out", out, *MODEL)
    assert done.returncode == 0, done.stderr.decode()
    for source in folder.iterdir():
        archive = llmzip.compress(source.read_bytes(), model=str(TINY))
        assert (out / f"{source.name}.llmz").read_bytes() == archive
    assert (out / manifests.MANIFEST).exists()
    done = launched(program, "decompress", "-r", out, "--out", restored, *MODEL)
    assert done.returncode == 0, done.stderr.decode()
    assert (restored / "2.txt").read_text() == PROSE[200:]


def test_bench_by_ranks(tmp_path: Path) -> None:
    texts = [tmp_path / f"{i}.txt" for i in range(3)]
    for i, text in enumerate(texts):
        text.write_text(PROSE[i * 100 :])
    report = tmp_path / "report.json"
    done = launched("torch.distributed.run", "bench", *texts, *MODEL, "--codecs", "xz -9e",
                    "--json", report)  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(report.read_text())
    assert found["ranks"] == 2
    assert [(r["file"], r["codec"].split()[0]) for r in found["results"]] == [
        (text.name, codec) for text in texts for codec in ("llmzip", "xz")]  # fmt: skip
    assert all(r["restored"] for r in found["results"])


def test_two_inputs_with_one_output_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text").write_text(name)
    files = (tmp_path / "one" / "text", tmp_path / "two" / "text")
    done = run("compress", "-f", "--rm", "--out", tmp_path / "out", *files, *MODEL)
    assert done.returncode == 2
    assert b"would both become" in done.stderr
    assert [file.read_text() for file in files] == ["one", "two"]


def test_an_input_that_is_named_twice_is_one(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(PROSE)
    names = (tmp_path, tmp_path / "text")
    done = run("compress", "--out", tmp_path / "out", *names, *MODEL)
    assert (done.returncode, done.stderr) == (0, b"")
    assert llmzip.decompress((tmp_path / "out" / "text.llmz").read_bytes(), model=str(TINY))


def test_folders_of_interrupted_runs_are_no_input(tmp_path: Path) -> None:
    left = tmp_path / "in" / ".text.llmz.frames"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"a finished frame")
    (tmp_path / "in" / "text").write_text(PROSE)
    assert run("compress", "-r", tmp_path / "in", *MODEL).returncode == 0
    assert [path.name for path in left.iterdir()] == ["0"]


def test_one_environment_is_one_process(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(PROSE)
    done = run("compress", "--same-environment", "--workers", "2", tmp_path / "text", *MODEL)
    assert done.returncode == 2


def test_workers_end_with_an_error() -> None:
    with pytest.raises(KeyError), runner.processes(1) as pool:
        assert pool.submit(abs, -1).result() == 1  # it has started
        pool.submit(time.sleep, 600)
        processes = list(pool._processes.values())
        raise KeyError
    for process in processes:
        # the pool's own thread waits for them, too; whoever is second learns of it a moment later
        end = time.monotonic() + 20
        while process.is_alive() and time.monotonic() < end:
            time.sleep(0.05)
        assert not process.is_alive()


def test_a_text_that_changes_between_its_frame_and_the_archive(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = jobs[1]
    assemble = tasks.assemble

    def late(job: Job, parts: list[Task], options: llmzip.Options) -> None:
        if job == changed:
            job.source.write_bytes(job.source.read_bytes()[::-1])
        assemble(job, parts, options)

    monkeypatch.setattr(runner, "assemble", late)
    with pytest.raises(llmzip.LlmzipError, match="changed"):
        runner.run(jobs, OPTIONS)
    assert not changed.target.exists()
