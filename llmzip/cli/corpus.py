"""Many files: several workers or ranks, output folders, tar archives."""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmzip.archive import container
from llmzip.cli import manifest
from llmzip.cli.inputs import expand, require_regular
from llmzip.cli.options import options_of
from llmzip.cli.usage import UsageError
from llmzip.coding.child import module_command
from llmzip.errors import CorruptArchive
from llmzip.output import writing

if TYPE_CHECKING:
    from llmzip.archive.options import Options
    from llmzip.parallel.tasks import Job


def is_wanted(arguments: argparse.Namespace) -> bool:
    """Whether the arguments ask for workers, ranks or an output folder."""
    ranks = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    return bool(arguments.out or arguments.workers > 1 or arguments.resume or ranks)


def run(
    arguments: argparse.Namespace,
    options: Options,
    name: Callable[[Path], Path],
    *,
    compressing: bool,
) -> int:
    """Compress or decompress all files; `name` gives the target of each. Returns the exit code."""
    from llmzip.parallel import runner
    from llmzip.parallel.ranks import current_rank

    if arguments.workers < 1:
        raise UsageError(f"{arguments.workers} workers; at least 1 is needed")
    if arguments.stdout or arguments.output or "-" in arguments.files:
        raise UsageError("--workers, --out and --resume work on files: no -c, -o, stdin")
    rank = current_rank()
    options = replace(options, device=rank.device(options.device))
    if options.same_environment and (arguments.workers > 1 or rank.world_size > 1):
        raise UsageError("--same-environment works in one process: no --workers, no ranks")
    found = _distinct(_jobs(arguments, name, compressing))
    skip = set()
    failed = False
    for job in found:
        if job.target.exists() and (arguments.resume or not options.force):
            skip.add(job)
            if rank.rank == 0 and not arguments.resume:  # else rank 0 may have written it just now
                failed = True
                print(f"llmzip: {job.target}: exists already; -f overwrites it, --resume skips it",
                      file=sys.stderr)  # fmt: skip
            continue
        job.target.parent.mkdir(parents=True, exist_ok=True)
    jobs = [job for job in found if job not in skip]
    with _bar(jobs, arguments, rank.rank) as progress:

        def finished(job: Job) -> None:
            if arguments.verbose:
                print(f"{job.source} → {job.target}", file=sys.stderr)

        runner.run(found, options, decode=not compressing, workers=arguments.workers, rank=rank,
                     skip=skip, finished=finished, progress=progress)  # fmt: skip
    if rank.rank == 0:
        if arguments.out and compressing:
            failed |= manifest.write(Path(arguments.out))
        for job in jobs if arguments.rm else ():
            job.source.unlink()
    return int(failed)


def _distinct(jobs: Iterator[Job]) -> list[Job]:
    """The jobs, each once. Raises UsageError if two inputs have one output."""
    found: dict[str, Job] = {}
    for job in jobs:
        other = found.setdefault(os.path.abspath(job.target), job)
        if os.path.abspath(other.source) != os.path.abspath(job.source):
            raise UsageError(f"{other.source} and {job.source} would both become {job.target}")
    return list(found.values())


def _jobs(
    arguments: argparse.Namespace, name: Callable[[Path], Path], compressing: bool
) -> Iterator[Job]:
    from llmzip.parallel.tasks import Job

    deep = arguments.recursive or bool(arguments.out)
    for given in arguments.files:
        for found in expand([given], deep, archives=not compressing):
            require_regular(found, "")
            source = Path(found)
            target = name(source)
            if arguments.out:
                root = given if os.path.isdir(given) else os.path.dirname(found)
                target = Path(arguments.out, os.path.relpath(target, root or "."))
            yield Job(source, target)


@contextlib.contextmanager
def _bar(
    jobs: Sequence[Job], arguments: argparse.Namespace, rank: int
) -> Iterator[Callable[[int], None]]:
    if arguments.quiet or rank or not (arguments.progress or sys.stderr.isatty()):
        yield lambda content: None
        return
    from tqdm import tqdm

    total = sum(job.source.stat().st_size for job in jobs)
    with tqdm(total=total, unit="B", unit_scale=True, leave=False, dynamic_ncols=True) as bar:
        yield lambda content: bar.update(content) and None


def archive(arguments: argparse.Namespace, options: Options) -> int:
    """The option --archive: a folder as one compressed tar file. Returns the exit code."""
    from llmzip.io import tar

    if len(arguments.files) != 1 or not os.path.isdir(arguments.files[0]):
        raise UsageError("--archive takes one folder")
    if arguments.stdout or arguments.rm or arguments.out or arguments.workers > 1:
        raise UsageError("--archive goes with -o alone: no -c, --rm, --out, --workers")
    folder = Path(arguments.files[0])
    if arguments.output == "-":
        if sys.stdout.isatty() and not arguments.force:
            raise UsageError("compressed data is not written to a terminal; -f does it anyway")
        tar.write(sys.stdout.buffer, folder, options)
        sys.stdout.buffer.flush()
        return 0
    target = Path(arguments.output or f"{folder.resolve().name}.tar{container.SUFFIX}")
    if folder.resolve() in target.resolve().parents:
        raise UsageError(f"{target} would be inside the folder; choose another target with -o")
    with writing(target, overwrite=arguments.force) as sink:
        tar.write(sink, folder, options)
    return 0


def extract(arguments: argparse.Namespace) -> int:
    """The command `extract`; returns the exit code."""
    from llmzip.io import tar
    from llmzip.io.file import LlmzipFile

    with LlmzipFile(arguments.archive, options=options_of(arguments)) as content:
        if arguments.list:
            index = tar.read_index(content)
            if index is None:
                raise CorruptArchive("the archive has no index of members")
            print("".join(f"{name}\n" for name in index), end="")
        else:
            tar.extract(content, arguments.members, Path(arguments.directory))
    return 0


def test_all(names: Sequence[str], arguments: argparse.Namespace) -> Iterator[bool]:
    """Test each archive in a process of its own, several at a time; whether each is intact."""
    if arguments.json:
        raise UsageError("--json needs a single process: leave out --workers")
    from concurrent.futures import ThreadPoolExecutor

    from llmzip.inference.base import cores_of_machine

    command = module_command("llmzip", "test", "--device", arguments.device)
    for option in ("model", "max_output", "prime"):
        if getattr(arguments, option) is not None:
            command += [f"--{option.replace('_', '-')}", str(getattr(arguments, option))]
    command += ["--allow-download"] * arguments.allow_download + ["-f"] * arguments.force
    command += ["-q"] * arguments.quiet
    threads = max(1, cores_of_machine() // arguments.workers)

    def test_one(name: str) -> bool:
        done = subprocess.run([*command, "-T", str(threads), name], capture_output=True)
        sys.stdout.write(done.stdout.decode(errors="replace"))
        sys.stderr.write(done.stderr.decode(errors="replace"))
        return done.returncode == 0

    with ThreadPoolExecutor(arguments.workers) as pool:
        yield from pool.map(test_one, names)
