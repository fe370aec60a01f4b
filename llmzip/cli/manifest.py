"""The manifest of a folder of archives: sizes and digests, to tell what is missing or changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from llmzip.archive import container
from llmzip.cli.inputs import attempt
from llmzip.errors import CorruptArchive, LlmzipError
from llmzip.output import write as write_file

MANIFEST = "llmzip-manifest.tsv"
_COLUMNS = "archive\tcontent_bytes\tarchive_bytes\tblake2b"


def write(folder: Path) -> bool:
    """Write sizes and BLAKE2b-16 digests of all archives in a folder. True if some cannot be read:
    others may have left them there, and stderr names them. Raises OSError."""
    lines = [_COLUMNS]

    def add(name: str) -> None:
        path = Path(name)
        lines.append("\t".join(map(str, (path.relative_to(folder).as_posix(), *_entry(path)))))

    failed = [attempt(str(path), add) for path in _archives(folder)]
    write_file(folder / MANIFEST, os.fsencode("".join(f"{line}\n" for line in lines)))
    return any(failed)


def _archives(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{container.SUFFIX}") if path.is_file())


def _entry(path: Path) -> tuple[int, int, str]:
    """Bytes of content according to the frame headers, bytes of the archive, digest."""
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            hasher.update(part)
        file.seek(0)
        reader = container.Reader(file)
        while reader.skip_frame():
            pass
    return reader.offset, path.stat().st_size, hasher.hexdigest()


def verify(name: str) -> None:
    """Compare a folder with its manifest, if it has one. Raises CorruptArchive."""
    folder = Path(name)
    if not (folder / MANIFEST).is_file():
        return
    head, *lines = os.fsdecode((folder / MANIFEST).read_bytes()).split("\n")
    if head != _COLUMNS or lines[-1:] != [""]:
        raise CorruptArchive(f"{MANIFEST} is not a manifest of llmzip")
    recorded = {line.split("\t")[0]: tuple(line.split("\t")[1:]) for line in lines[:-1]}
    present = {path.relative_to(folder).as_posix(): path for path in _archives(folder)}
    problems = [f"{missing} is missing" for missing in recorded.keys() - present.keys()]
    problems += [f"{extra} is not in the manifest" for extra in present.keys() - recorded.keys()]
    for known in recorded.keys() & present.keys():
        try:
            same = tuple(map(str, _entry(present[known]))) == recorded[known]
        except CorruptArchive:
            same = False
        except (LlmzipError, OSError) as error:
            problems.append(f"{known} cannot be read: {getattr(error, 'strerror', None) or error}")
            continue
        if not same:
            problems.append(f"{known} is not what the manifest says")
    if problems:
        raise CorruptArchive("; ".join(sorted(problems)))
