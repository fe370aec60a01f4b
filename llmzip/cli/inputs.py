"""Names of files on the command line → streams to read, with a progress bar."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from llmzip.archive.container import SUFFIX
from llmzip.errors import LlmzipError
from llmzip.output import is_descriptor, is_special, naming

if TYPE_CHECKING:
    from llmzip.coding.progress import Progress

_SPOOL_SIZE = 64 << 20  # bytes of a pipe that are kept in memory
_WORK = re.compile(r"\..+\.(frames|ranks)")  # folders of runs that go on, see parallel.tasks


def require_regular(name: str, hint: str = "; -c or -o reads it all the same") -> None:
    """Raises OSError unless `name` is a regular file or "-": special files may never end."""
    if name == "-":
        return
    if os.path.isdir(name):
        raise IsADirectoryError(0, "is a directory; -r goes into it", name)
    if is_special(name):
        raise OSError(0, "is no regular file" + hint, name)


def expand(names: list[str], recursive: bool, archives: bool) -> Iterator[str]:
    """Names, and if `recursive`, for folders the files in them: archives, or all others.

    Links to folders are not followed.
    """
    for name in names:
        if not (recursive and name != "-" and os.path.isdir(name)):
            yield name
            continue
        for folder, folders, found in os.walk(name):
            folders[:] = sorted(name for name in folders if not _WORK.fullmatch(name))
            for file in sorted(found):
                path = os.path.join(folder, file)
                regular = stat.S_ISREG(os.lstat(path).st_mode)
                if regular and file.endswith(SUFFIX) == archives:
                    yield path


def attempt(name: str, work: Any, *arguments: Any) -> bool:
    """Call `work(name, *arguments)`; True if it fails, with a line on stderr, or returns False."""
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


class CountingStream:
    """A stream that counts the bytes that are read from it or written to it. Errors of writing
    give it `name`, if it has none of its own."""

    def __init__(self, stream: BinaryIO, name: str = "output") -> None:
        self._stream, self._name, self.count = stream, name, 0

    def read(self, size: int = -1) -> bytes:
        """As the stream's."""
        data = self._stream.read(size)
        self.count += len(data)
        return data

    def write(self, data: bytes) -> int:
        """As the stream's."""
        self.count += len(data)
        with naming(self._name):
            return self._stream.write(data)

    def flush(self) -> None:
        """As the stream's."""
        with naming(self._name):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """A file, or stdin for "-". Raises OSError."""
    if name == "-":
        yield sys.stdin.buffer
        return
    if os.path.isdir(name):
        raise IsADirectoryError(0, "is a directory; -r goes into it", name)
    with open(name, "rb") as source:
        yield source


@contextlib.contextmanager
def reading_only(name: str) -> Iterator[BinaryIO]:
    """As `reading`, but of special files only a shell's `<(command)`. Raises OSError."""
    if name != "-" and not is_descriptor(name):
        require_regular(name, "")
    with reading(name) as source:
        yield source


@contextlib.contextmanager
def seekable(source: BinaryIO) -> Iterator[BinaryIO]:
    """The source itself if it is seekable, else a copy."""
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
    """Show how much of the input is done, MB/s of content, bits per byte and the time left.

    Only on a terminal, or with --progress.
    """
    if arguments.quiet or not (arguments.progress or sys.stderr.isatty()):
        yield lambda *_: None
        return
    from tqdm import tqdm

    total = os.fstat(source.fileno()).st_size if name != "-" else 0
    done, left = ("{percentage:3.0f}% |{bar}| ", ", {remaining} left") if total else ("", "")
    with tqdm(
        total=total or None,
        desc=Path(name).name,
        unit="B",
        unit_scale=True,
        leave=False,
        dynamic_ncols=True,
        bar_format=f"{{desc}}: {done}{{n_fmt}}{{postfix}}{left}",
    ) as bar:
        content = coded = 0
        start = time.monotonic()

        def update(new_content: int, new_coded: int) -> None:
            nonlocal content, coded
            content, coded = content + new_content, coded + new_coded
            speed = content / 1e6 / max(1e-3, time.monotonic() - start)
            bits = 8 * coded / max(1, content)
            bar.set_postfix_str(f"{speed:.3f} MB/s, {bits:.2f} bits per byte", refresh=False)
            bar.update(new_content if compressing else new_coded)

        yield update
