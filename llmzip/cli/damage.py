"""test and decompress --salvage: verify archives, report damage, recover intact content."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

import llmzip
from llmzip.cli import corpus, manifest
from llmzip.cli.inputs import attempt, expand, progress_bar, reading_only, seekable
from llmzip.cli.options import options_of, set_threads
from llmzip.errors import CorruptArchive, LlmzipError

if TYPE_CHECKING:
    from llmzip.archive.options import Options
    from llmzip.archive.recovery import Damage
    from llmzip.coding.progress import Progress


def salvage(source: BinaryIO, sink: BinaryIO, options: Options, progress: Progress) -> bool:
    """Write what a damaged archive still holds; False if something is missing."""
    from llmzip.archive.recovery import Damage, recover

    intact = True
    with seekable(source) as archive:
        for found in recover(archive, options, progress):
            if isinstance(found, Damage):
                intact = False
                print(f"llmzip: {_describe(found)}", file=sys.stderr)
            else:
                sink.write(found.content)
    return intact


def _describe(damage: Damage) -> str:
    """One line: which frames, which bytes of the content, why."""
    first, last = damage.frames
    frames = f"frame {first} is" if first == last else f"frames {first} to {last} are"
    if damage.end == damage.start:
        return f"no content is lost, but {damage.reason}"
    end = "the end" if damage.end is None else f"{damage.end - 1:,}"
    return f"{frames} lost: bytes {damage.start:,} to {end} are missing: {damage.reason}"


def test(arguments: argparse.Namespace) -> int:
    """The command `test`; returns the exit code."""
    set_threads(arguments.threads)
    options = options_of(arguments)
    found: list[dict[str, Any]] = []

    def test_one(name: str) -> bool:
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
        failed = [not intact for intact in corpus.test_all(names, arguments)]
    else:
        failed = [attempt(name, test_one) for name in names]
    if arguments.json:
        print(json.dumps(found, indent=2))
    for folder in filter(os.path.isdir, arguments.files):
        failed += [attempt(folder, manifest.verify)]
    return int(any(failed))


def _damaged(
    name: str, archive: BinaryIO, options: Options, error: CorruptArchive, silent: bool
) -> dict[str, Any]:
    """All damage of an archive, for JSON; on stderr as well, unless `silent`."""
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
    except LlmzipError:  # the first header is damaged
        damages = []
    if not silent:
        for line in [_describe(damage) for damage in damages] or [str(error)]:
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
