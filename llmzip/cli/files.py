"""compress, decompress: files, folders and pipes, one input after the other.

A bad input does not stop the others. An output is complete, or is not written.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import llmzip
from llmzip.archive.container import SUFFIX
from llmzip.cli import corpus, damage
from llmzip.cli.inputs import (
    CountingStream,
    attempt,
    expand,
    progress_bar,
    reading,
    require_regular,
)
from llmzip.cli.options import options_of, set_threads
from llmzip.cli.usage import UsageError
from llmzip.output import is_special, writing

if TYPE_CHECKING:
    from llmzip.coding.progress import Progress

_READ_SIZE = 1 << 20


def compress(arguments: argparse.Namespace) -> int:
    """The command `compress`; returns the exit code."""
    set_threads(arguments.threads)
    options = options_of(arguments, writing=True)
    if getattr(arguments, "salvage", False):
        raise UsageError("--salvage is for decompressing")

    def transform(source: BinaryIO, sink: BinaryIO, progress: Progress) -> bool:
        writer = llmzip.ArchiveWriter(sink, options, progress)
        while data := source.read(_READ_SIZE):
            writer.write(data)
        writer.finish()
        return True

    def name(path: Path) -> Path:
        if path.suffix == SUFFIX:
            raise UsageError(f"{path}: has the suffix {SUFFIX} already; use -o or -c")
        return path.parent / (path.name + SUFFIX)

    if arguments.archive:
        return corpus.archive(arguments, options)
    if corpus.is_wanted(arguments):
        return corpus.run(arguments, options, name, compressing=True)
    return _transform_all(arguments, transform, name, compressing=True)


def decompress(arguments: argparse.Namespace) -> int:
    """The command `decompress`; returns the exit code."""
    set_threads(arguments.threads)
    options = options_of(arguments)

    def transform(source: BinaryIO, sink: BinaryIO, progress: Progress) -> bool:
        if arguments.salvage:
            return damage.salvage(source, sink, options, progress)
        for content in llmzip.ArchiveReader(source, options, progress):
            sink.write(content)
        return True

    def name(path: Path) -> Path:
        if path.suffix != SUFFIX or path.stem == "":
            raise UsageError(f"{path}: has no suffix {SUFFIX}; use -o or -c")
        return path.with_suffix("")

    if corpus.is_wanted(arguments):
        if arguments.salvage:
            raise UsageError("--salvage takes one archive after the other")
        return corpus.run(arguments, options, name, compressing=False)
    return _transform_all(arguments, transform, name, compressing=False)


def _transform_all(
    arguments: argparse.Namespace, transform: Any, target_name: Any, *, compressing: bool
) -> int:
    to_stdout = arguments.stdout or arguments.output == "-"
    names = list(expand(arguments.files, arguments.recursive, archives=not compressing))
    if arguments.output and not to_stdout and len(names) != 1:
        raise UsageError("-o names one output, so it takes one input")
    if arguments.stdout and arguments.output not in (None, "-"):
        raise UsageError("-c and -o exclude each other")
    special = bool(arguments.output) and not to_stdout and is_special(arguments.output)
    salvage = getattr(arguments, "salvage", False)
    if arguments.rm and (to_stdout or special or "-" in names or salvage):
        raise UsageError("--rm is for files that are replaced by files")
    prints = to_stdout or ("-" in names and not arguments.output)
    if compressing and prints and len(names) > 1:
        raise UsageError("one stream holds one archive; tar can make one file of several")
    if compressing and prints and sys.stdout.isatty() and not arguments.force:
        raise UsageError("compressed data is not written to a terminal; -f does it anyway")
    jobs: list[tuple[str, Path | None]] = []
    for name in names:
        if to_stdout or (name == "-" and not arguments.output):
            jobs.append((name, None))
        elif arguments.output:
            jobs.append((name, Path(arguments.output)))
        elif os.path.isdir(name) or is_special(name):
            jobs.append((name, Path(name)))  # refused later, with a message
        else:
            jobs.append((name, target_name(Path(name))))
    for name, target in jobs:
        if target is not None and name != "-" and _is_same(name, target):
            raise UsageError(f"{name} would be replaced by its own output; choose another with -o")
    failed = [attempt(name, _transform, target, arguments, transform, compressing)
              for name, target in jobs]  # fmt: skip
    return int(any(failed))


def _is_same(name: str, target: Path) -> bool:
    """Whether an input and its output are one regular file."""
    return os.path.isfile(name) and os.path.isfile(target) and os.path.samefile(name, target)


def _transform(
    name: str,
    target: Path | None,
    arguments: argparse.Namespace,
    transform: Any,
    compressing: bool,
) -> bool:
    """Write one output; False if content is missing from it."""
    if target is not None and not arguments.output:
        require_regular(name)
    with reading(name) as source, progress_bar(name, source, arguments, compressing) as progress:
        read = CountingStream(source)
        if target is None:
            written = CountingStream(sys.stdout.buffer, "stdout")
            try:
                intact = transform(read, written, progress)
                written.flush()
            except OSError:  # do not flush the rest of the buffer at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise
        else:
            like = None if name == "-" else name
            with writing(target, overwrite=arguments.force, like=like) as sink:
                written = CountingStream(sink)
                intact = transform(read, written, progress)
    if arguments.verbose:
        small, large = sorted((read.count, written.count))
        if compressing:
            small, large = written.count, read.count
        bits = f"{8 * small / max(1, large):.3f} bits per byte"
        print(f"{name}: {read.count:,} → {written.count:,} bytes, {bits}, {target or 'stdout'}",
              file=sys.stderr)  # fmt: skip
    if arguments.rm:
        Path(name).unlink()
    return bool(intact)
