#!/usr/bin/env python3
"""Prepare what `scripts/gpu/train` works from: slices of training texts, held-out texts, weights.

python scripts/gpu/prepare.py slices CORPUS OUT --mix scripts/gpu/base.toml --seed 5
python scripts/gpu/prepare.py held-out FOLDER OUT
python scripts/gpu/prepare.py start CHECKPOINT OUT --layers 0,1,3,8 --tokenizer tokenizer.json
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import blocks

from llmzip import models
from llmzip.cli.options import numbers
from llmzip.errors import LlmzipError
from llmzip.train import data, prune, shards
from llmzip.train.config import read_toml

PIECE = 200_000  # bytes: long documents are cut, so that a book gives excerpts
BLOCK = 4_000_000  # bytes of text
MIB = 1 << 20
Mix = dict[str, float]  # category → MB of text; inf takes all


def chosen(
    corpus: Path, mix: Mix, seed: int, left_out: set[bytes] | None = None
) -> Iterator[tuple[str, list[bytes]]]:
    """Yield each category with its pieces: random ones, the same for a seed, until there are as
    many bytes as the mix wants. `left_out`: digests of pieces that do not count.

    Raises LlmzipError if the corpus lacks a category.
    """
    chance = random.Random(seed)
    files = data.categories(corpus)
    for category, megabytes in mix.items():
        if category not in files:
            raise LlmzipError(f"{corpus} has no file of the category {category!r}")
        documents = [d for path in files[category] for d in data.documents(path)]
        chance.shuffle(documents)
        pieces = [piece for document in documents for piece in cut(document)]
        chance.shuffle(pieces)
        wanted = megabytes * 1e6
        found = []
        for piece in pieces:
            if wanted <= 0:
                break
            if left_out is None or digest(piece) not in left_out:
                found.append(piece)
                wanted -= len(piece)
        yield category, found


def cut(document: bytes) -> Iterator[bytes]:
    """A document in pieces of 200,000 bytes, the last of which is shorter than two."""
    count = max(1, len(document) // PIECE)
    for i in range(count):
        yield document[i * PIECE : (i + 1) * PIECE if i < count - 1 else len(document)]


def digest(piece: bytes) -> bytes:
    """What a piece is recognised by."""
    return hashlib.blake2b(piece, digest_size=8).digest()


def jobs(parts: Iterator[tuple[str, list[bytes]]]) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the name of each block and its pieces."""
    for category, pieces in parts:
        block: list[bytes] = []
        number = size = 0
        for piece in pieces:
            block.append(piece)
            size += len(piece) + 1
            if size >= BLOCK:
                yield f"{category}-{number:03d}", block
                number, block, size = number + 1, [], 0
        if block:
            yield f"{category}-{number:03d}", block


def slices(
    corpus: Path,
    out: Path,
    *,
    mix: Path,
    seed: int,
    without_mix: Path | None,
    without_seed: int | None,
    limit: float,
    processes: int,
) -> None:
    """Pack a mix of a corpus into slices of similar content, OUT/slice-0, OUT/slice-1 …"""
    if (without_mix is None) != (without_seed is None):
        raise LlmzipError("--without-mix and --without-seed go together")
    left_out = None
    if without_mix is not None and without_seed is not None:
        earlier = chosen(corpus, read_mix(without_mix), without_seed)
        left_out = {digest(piece) for _, pieces in earlier for piece in pieces}
    waiting = out / "waiting"
    waiting.mkdir(parents=True, exist_ok=True)
    text = 0
    with ProcessPoolExecutor(processes) as pool:
        running = []
        for name, pieces in jobs(chosen(corpus, read_mix(mix), seed, left_out)):
            text += sum(map(len, pieces))
            running.append(pool.submit(blocks.write, waiting, name, pieces))
            if len(running) > 2 * processes:  # texts that wait take memory
                running[-2 * processes].result()
        paths = [job.result() for job in running]
    if not paths:
        raise LlmzipError("the mix leaves no text")
    random.Random(seed).shuffle(paths)  # so that each slice has some of every category
    number, room = 0, limit * MIB
    for path in paths:
        size = path.stat().st_size
        if size > room and room < limit * MIB:
            number, room = number + 1, limit * MIB
        room -= size
        folder = out / f"slice-{number}"
        folder.mkdir(exist_ok=True)
        path.replace(folder / path.name)
    waiting.rmdir()
    packed = sum(p.stat().st_size for i in range(number + 1) for p in out.glob(f"slice-{i}/*"))
    print(f"{text:,} bytes of text, {packed:,} packed, {number + 1} slices")


def read_mix(path: Path) -> Mix:
    """Category → MB, of a TOML file. Raises LlmzipError."""
    mix = read_toml(path)
    for category, megabytes in mix.items():
        if not isinstance(megabytes, int | float) or megabytes < 0 or math.isnan(megabytes):
            raise LlmzipError(f"{path}: {category} = {megabytes!r} is no number of megabytes")
    return mix


def held_out(texts: Path, out: Path, *, size: int) -> None:
    """Pack the beginning of each .txt file of a folder; names without suffix are the categories."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(texts.glob("*.txt")):
        text = path.read_bytes()[:size].replace(b"\0", b"")
        blocks.write(out, f"{path.stem}-0", [text.decode("utf-8", "ignore").encode()])


def start(
    checkpoint: str, out: Path, *, layers: list[int], tokenizer: Path | None, window: int
) -> None:
    """Write a checkpoint, or some of its layers with another tokenizer, in int8 pieces."""
    files = models.load(checkpoint)
    tokens = files.tokenizer_json if tokenizer is None else tokenizer.read_bytes()
    files = prune.prune(files, layers, tokens, window)
    shards.write(out, files.config, files.tokenizer_json, files.tensors)
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:>12,}  {path}")


def build() -> argparse.ArgumentParser:
    """The parser; each command's `call` takes the other arguments by their names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Any) -> argparse.ArgumentParser:
        text = call.__doc__.splitlines()[0].rstrip(".")
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(call=call)
        return sub

    sub = command("slices", slices)
    sub.add_argument("corpus", type=Path, help="folder of texts, as for scripts/train.py")
    sub.add_argument("out", type=Path)
    sub.add_argument("--mix", type=Path, required=True, help="TOML file: category = MB of text; "
                     "inf takes all")  # fmt: skip
    sub.add_argument("--seed", type=int, default=1)
    sub.add_argument("--without-mix", type=Path, metavar="MIX", help="leave out what a run with "
                     "this mix contained, which was chosen with")  # fmt: skip
    sub.add_argument("--without-seed", type=int, metavar="SEED", help="this seed")
    sub.add_argument("--limit", type=float, default=18, help="MiB of a slice (default: 18)")
    sub.add_argument("--processes", type=int, default=os.cpu_count())

    sub = command("held-out", held_out)
    sub.add_argument("texts", type=Path, help="folder of texts that are never trained on")
    sub.add_argument("out", type=Path)
    sub.add_argument("--size", type=int, default=100_000, help="bytes of each")

    sub = command("start", start)
    sub.add_argument("checkpoint", help="a model of the Llama family")
    sub.add_argument("out", type=Path)
    sub.add_argument("--layers", type=numbers, default=[], help="to keep (default: all)")
    sub.add_argument("--tokenizer", type=Path, help="tokenizer.json (default: the model's own)")
    sub.add_argument("--window", type=int, default=512, help="tokens of sliding attention")
    return parser


def main() -> int:
    given = vars(build().parse_args())
    try:
        given.pop("call")(**given)
    except (LlmzipError, OSError) as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
