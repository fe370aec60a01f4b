"""compress, decompress, test: over files, folders and pipes, one input at a time.

A bad input does not stop the others. Of an output there is all or nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import llmzip
from llmzip.archive import container
from llmzip.cli import corpus
from llmzip.cli.usage import UsageError
from llmzip.errors import CorruptArchive, LlmzipError
from llmzip.output import is_descriptor, is_special, writing

if TYPE_CHECKING:
    from llmzip.archive.options import Options
    from llmzip.archive.recovery import Damage
    from llmzip.coding.frame_codec import Progress

_READ_SIZE = 1 << 20
_SPOOL_SIZE = 64 << 20  # of a pipe held in memory
_OPTIONS = ("model", "device", "streams", "stream_tokens", "activations", "context", "verify",
            "memory", "same_environment", "force", "allow_download")  # fmt: skip
# by preset: embedded model, if there is such a one, and tokens a stream
PRESETS = {"fast": ("nano", 512), "best": ("base", 8192)}


def options_of(arguments: argparse.Namespace, *, writing: bool = False) -> Options:
    """Raises UsageError."""
    given = {n: v for n in _OPTIONS if (v := getattr(arguments, n, None)) is not None}
    if getattr(arguments, "max_output", None) is not None:
        given["max_length"] = arguments.max_output
    preset = getattr(arguments, "preset", None)
    if writing and preset is not None:
        from llmzip import models

        model, tokens = PRESETS[preset]
        given = {"stream_tokens": tokens, **given}
        if model in models.EMBEDDED:
            given = {"model": model, **given}
    try:
        return llmzip.Options(**given)
    except LlmzipError as error:
        raise UsageError(str(error)) from None


def set_threads(count: int | None) -> None:
    """Before torch is loaded, and if it is already. Raises UsageError."""
    if count is None:
        return
    if count < 0:
        raise UsageError(f"{count} threads; 0 means all cores")
    count = count or os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def require_regular(name: str, hint: str = "; -c or -o reads it all the same") -> None:
    """Raises OSError for what is no regular file: read as one, it might never end."""
    if name == "-":
        return
    if os.path.isdir(name):
        raise IsADirectoryError(0, "is a directory; -r goes into it", name)
    if is_special(name):
        raise OSError(0, "is no regular file" + hint, name)


def expand(names: list[str], recursive: bool, archives: bool) -> Iterator[str]:
    """Names, and for folders all files in them: archives, or all but those. Links to folders are
    not followed."""
    for name in names:
        if not (recursive and name != "-" and os.path.isdir(name)):
            yield name
            continue
        for folder, folders, found in os.walk(name):
            folders.sort()
            for file in sorted(found):
                path = os.path.join(folder, file)
                regular = stat.S_ISREG(os.lstat(path).st_mode)
                if regular and file.endswith(container.SUFFIX) == archives:
                    yield path


def compress(arguments: argparse.Namespace) -> int:
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
        if path.suffix == container.SUFFIX:
            raise UsageError(f"{path}: has the suffix {container.SUFFIX} already; use -o or -c")
        return path.parent / (path.name + container.SUFFIX)

    if arguments.archive:
        return corpus.archive(arguments, options)
    if corpus.is_wanted(arguments):
        return corpus.run(arguments, options, name, compressing=True)
    return _transform_all(arguments, transform, name, compressing=True)


def decompress(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    options = options_of(arguments)

    def transform(source: BinaryIO, sink: BinaryIO, progress: Progress) -> bool:
        if arguments.salvage:
            return _salvage(source, sink, options, progress)
        for content in llmzip.ArchiveReader(source, options, progress):
            sink.write(content)
        return True

    def name(path: Path) -> Path:
        if path.suffix != container.SUFFIX or path.stem == "":
            raise UsageError(f"{path}: has no suffix {container.SUFFIX}; use -o or -c")
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
            jobs.append((name, Path(name)))  # which will be refused
        else:
            jobs.append((name, target_name(Path(name))))
    failed = [attempt(name, _transform, target, arguments, transform, compressing)
              for name, target in jobs]  # fmt: skip
    return int(any(failed))


def attempt(name: str, work: Any, *arguments: Any) -> bool:
    """Run `work` on one input; on failure say why, and return True, as if it returns False."""
    try:
        return work(name, *arguments) is False
    except BrokenPipeError:
        raise
    except LlmzipError as error:
        print(f"llmzip: {name}: {error}", file=sys.stderr)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"llmzip: {error.filename or name}: {reason}", file=sys.stderr)
    return True


class Counted:
    """A stream that counts what is read from it or written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self.count = stream, 0

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self.count += len(data)
        return data

    def write(self, data: bytes) -> int:
        self.count += len(data)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _transform(
    name: str,
    target: Path | None,
    arguments: argparse.Namespace,
    transform: Any,
    compressing: bool,
) -> bool:
    """False if the output lacks something."""
    if target is not None and not arguments.output:
        require_regular(name)
    with reading(name) as source, progress_bar(name, source, arguments, compressing) as progress:
        taken = Counted(source)
        if target is None:
            given = Counted(sys.stdout.buffer)
            try:
                whole = transform(taken, given, progress)
                sys.stdout.buffer.flush()
            except OSError:  # what is left in the buffer must not be tried again at the exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                raise
        else:
            like = None if name == "-" else name
            with writing(target, overwrite=arguments.force, like=like) as sink:
                given = Counted(sink)
                whole = transform(taken, given, progress)
    if arguments.verbose:
        small, large = sorted((taken.count, given.count))
        if compressing:
            small, large = given.count, taken.count
        bits = f"{8 * small / max(1, large):.3f} bits per byte"
        print(f"{name}: {taken.count:,} → {given.count:,} bytes, {bits}, {target or 'stdout'}",
              file=sys.stderr)  # fmt: skip
    if arguments.rm:
        Path(name).unlink()
    return bool(whole)


@contextlib.contextmanager
def reading_only(name: str) -> Iterator[BinaryIO]:
    """To look at, where nothing is written: a special file only as a shell's <(command)."""
    if name != "-" and not is_descriptor(name):
        require_regular(name, "")
    with reading(name) as source:
        yield source


@contextlib.contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    if os.path.isdir(name):
        raise IsADirectoryError(0, "is a directory; -r goes into it", name)
    with open(name, "rb") as source:
        yield source


@contextlib.contextmanager
def seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    """The same, or a copy of what comes from a pipe."""
    if source.seekable():
        yield source
        return
    with tempfile.SpooledTemporaryFile(_SPOOL_SIZE) as copy:
        shutil.copyfileobj(source, copy)
        copy.seek(0)
        yield copy  # type: ignore[misc]


@contextlib.contextmanager
def progress_bar(
    name: str, source: BinaryIO, arguments: argparse.Namespace, compressing: bool
) -> Iterator[Progress]:
    """How much of the input is done, MB/s of content, bits per byte so far, time left; on a
    terminal, or if it is asked for."""
    if arguments.quiet or not (arguments.progress or sys.stderr.isatty()):
        yield lambda *_: None
        return
    from tqdm import tqdm

    total = os.fstat(source.fileno()).st_size if name != "-" else 0
    done, form = ("{percentage:3.0f}% |{bar}| ", ", {remaining} left") if total else ("", "")
    with tqdm(
        total=total or None,
        desc=Path(name).name,
        unit="B",
        unit_scale=True,
        leave=False,
        dynamic_ncols=True,
        bar_format=f"{{desc}}: {done}{{n_fmt}}{{postfix}}{form}",
    ) as bar:
        content = coded = 0
        start = time.monotonic()

        def tell(new_content: int, new_coded: int) -> None:
            nonlocal content, coded
            content, coded = content + new_content, coded + new_coded
            speed = content / 1e6 / max(1e-3, time.monotonic() - start)
            bits = 8 * coded / max(1, content)
            bar.set_postfix_str(f"{speed:.3f} MB/s, {bits:.2f} bits per byte", refresh=False)
            bar.update(new_content if compressing else new_coded)

        yield tell


def _salvage(source: BinaryIO, sink: BinaryIO, options: Options, progress: Progress) -> bool:
    from llmzip.archive.recovery import Damage, recover

    whole = True
    with seekable(source) as archive:
        for found in recover(archive, options, progress):
            if isinstance(found, Damage):
                whole = False
                print(f"llmzip: {describe_damage(found)}", file=sys.stderr)
            else:
                sink.write(found.content)
    return whole


def describe_damage(damage: Damage) -> str:
    """In a line: which frames, which bytes of the content, why."""
    first, last = damage.frames
    frames = f"frame {first} is" if first == last else f"frames {first} to {last} are"
    if damage.end == damage.start:
        return f"no content is lost, but {damage.reason}"
    end = "the end" if damage.end is None else f"{damage.end - 1:,}"
    return f"{frames} lost: bytes {damage.start:,} to {end} are missing: {damage.reason}"


def test(arguments: argparse.Namespace) -> int:
    set_threads(arguments.threads)
    options = options_of(arguments)
    found: list[dict[str, Any]] = []

    def one(name: str) -> bool:
        with (
            reading_only(name) as source,
            progress_bar(name, source, arguments, False) as progress,
            seekable(source) as archive,
        ):
            try:
                length = sum(map(len, llmzip.ArchiveReader(archive, options, progress)))
            except CorruptArchive as error:
                found.append(_damaged(name, archive, options, error, arguments.json))
                return False
        found.append({"file": name, "whole": True, "content_bytes": length, "damages": []})
        if not (arguments.json or arguments.quiet):
            print(f"{name}: ok, {length} bytes")
        return True

    names = list(expand(arguments.files, arguments.recursive, archives=True))
    if arguments.workers > 1:
        failed = [not whole for whole in corpus.test_all(names, arguments)]
    else:
        failed = [attempt(name, one) for name in names]
    if arguments.json:
        print(json.dumps(found, indent=2))
    for folder in filter(os.path.isdir, arguments.files):
        failed += [attempt(folder, corpus.verify)]
    return int(any(failed))


def _damaged(
    name: str, archive: BinaryIO, options: Options, error: CorruptArchive, silent: bool
) -> dict[str, Any]:
    """Tell everything that an archive has lost."""
    from llmzip.archive.recovery import Damage, recover

    archive.seek(0)
    damages: list[Damage] = []
    length = 0
    try:
        for found in recover(archive, options, lambda *_: None):
            if isinstance(found, Damage):
                damages.append(found)
            else:
                length += len(found.content)
    except LlmzipError:  # without its header nothing can be told
        damages = []
    if not silent:
        lines = [describe_damage(damage) for damage in damages] or [str(error)]
        for line in lines:
            print(f"llmzip: {name}: {line}", file=sys.stderr)
    return {
        "file": name,
        "whole": False,
        "content_bytes": length,
        "reason": str(error),
        "damages": [
            {"start": d.start, "end": d.end, "frames": list(d.frames), "reason": d.reason}
            for d in damages
        ],
    }
