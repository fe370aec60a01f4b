"""bench, pack, unpack, train, completion: commands that do not work on archives."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from llmzip.cli.inputs import require_regular
from llmzip.cli.options import options_of
from llmzip.cli.usage import UsageError
from llmzip.errors import LlmzipError
from llmzip.output import write, writing


def bench(arguments: argparse.Namespace) -> int:
    """The command `bench`; returns the exit code."""
    from llmzip import bench as benchmark
    from llmzip.bench import report as forms
    from llmzip.parallel.ranks import current_rank

    if arguments.repeat < 1:
        raise UsageError(f"{arguments.repeat} runs; at least 1 is needed")
    for path in arguments.files:
        if not path.is_dir():
            require_regular(str(path), "")
    rivals = None if arguments.codecs is None else [c for c in arguments.codecs.split(",") if c]
    report = benchmark.compare(
        arguments.files,
        options_of(arguments),
        models=arguments.models,
        rivals=rivals,
        repeat=arguments.repeat,
    )
    good = all(result["restored"] for result in report["results"])
    if current_rank().rank:  # rank 0 prints
        return 0 if good else 1
    print(f"{benchmark.table(report)}\n\n{forms.summary_table(report)}")
    for path in (arguments.json, arguments.csv, arguments.markdown, arguments.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if arguments.json:
        write(arguments.json, json.dumps(report, indent=1) + "\n")
    if arguments.csv:
        write(arguments.csv, benchmark.csv_of(report))
    if arguments.markdown:
        write(arguments.markdown, forms.markdown(report))
    if arguments.plot:
        benchmark.plot(report, arguments.plot)
    return 0 if good else 1


def pack(arguments: argparse.Namespace) -> None:
    """The command `pack`. Raises LlmzipError, OSError, UsageError."""
    from llmzip import models
    from llmzip.models import packing

    path = Path(arguments.weights)
    if not path.is_file():
        files = models.model_paths(arguments.weights)
        path = files[-1]
        if len(files) > 3 or path.suffix != ".safetensors":
            raise UsageError(
                f"{path.parent} does not have exactly one safetensors file: name the file to pack"
            )
    with path.open("rb") as source, writing(arguments.output, overwrite=arguments.force) as sink:
        packing.pack(source, sink)
        sizes = source.tell(), sink.tell()
    print(f"{sizes[0]:,} → {sizes[1]:,} bytes", file=sys.stderr)


def unpack(arguments: argparse.Namespace) -> None:
    """The command `unpack`. Raises LlmzipError, OSError."""
    from llmzip.models import packing

    with (
        arguments.packed.open("rb") as source,
        writing(arguments.output, overwrite=arguments.force) as sink,
    ):
        packing.unpack(source, sink)


def train(arguments: argparse.Namespace) -> None:
    """The command `train`. Raises LlmzipError, OSError, UsageError."""
    from llmzip import models
    from llmzip.train import domain

    for path in arguments.texts:
        path.stat()
        if not path.is_dir():
            require_regular(str(path), "")
    if arguments.prune_from is None:
        for name in ("layers", "tokenizer", "vocabulary", "window"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} goes with --prune-from")
    elif arguments.base is not None:
        raise UsageError("--from and --prune-from exclude each other")
    names = {"layers": "keep_layers"}
    options = ("prune_from", "layers", "tokenizer", "vocabulary", "window", "distill_from",
               "distill_weight")  # fmt: skip
    given = {names.get(o, o): getattr(arguments, o) for o in options}
    report = domain.train(
        arguments.texts,
        arguments.output,
        arguments.base or models.DEFAULT,
        60 * arguments.minutes,
        domain.Method(**{name: value for name, value in given.items() if value is not None}),
    )
    print(json.dumps(report, indent=2))


def completion(arguments: argparse.Namespace) -> None:
    """The command `completion`. Raises LlmzipError without shtab."""
    try:
        import shtab
    except ImportError:
        raise LlmzipError(
            "shtab, which completion needs, is missing: pip install 'llmzip[completion]'"
        ) from None
    from llmzip.cli import parser

    print(shtab.complete(parser.build()[0], shell=arguments.shell))
