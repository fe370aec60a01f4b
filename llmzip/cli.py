"""The command line: parses, calls, prints. Data goes to stdout, all else to stderr.

Exit codes: 0 done, 1 something about the data or the machine is wrong, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import llmzip
from llmzip import __version__, container
from llmzip.errors import LlmzipError

if TYPE_CHECKING:
    from llmzip.codec import Options, Progress

_READ_SIZE = 1 << 20
_KINDS = {
    container.RAW: "raw",
    container.ZSTD: "zstd",
    container.MODEL: "model",
    container.LZMA: "lzma",
}


class UsageError(Exception):
    """Options that do not fit together, or names that they do not fit to."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except UsageError as error:
        print(f"llmzip: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has left, which is its right
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except LlmzipError as error:
        print(f"llmzip: {error}", file=sys.stderr)
    except OSError as error:
        print(f"llmzip: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("llmzip: interrupted", file=sys.stderr)
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmzip", description="Lossless text compression by a causal language model."
    )
    parser.add_argument("--version", action="version", version=f"llmzip {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run)
        return sub

    sub = command("compress", _compress, "compress files to FILE.llmz")
    _add_files(sub)
    _add_output(sub)
    _add_model(sub)
    sub.add_argument("--streams", type=int, metavar="N", help="streams a frame, coded at once: "
                     "few for the best ratio, many for speed (default: by length)")  # fmt: skip
    sub.add_argument("--activations", choices=("a8", "a16"), help="bits of activations "
                     "(default: what the model was made for)")  # fmt: skip
    sub.add_argument("--verify", action="store_true", help="decode every frame before it counts")
    sub.add_argument("--no-memory", dest="memory", action="store_false", help="do not learn from "
                     "what the text has said so far (for research)")  # fmt: skip
    sub.add_argument("--same-environment", action="store_true", help="take any model, in plain "
                     "floating point: decodes on the same machine and versions alone")  # fmt: skip

    sub = command("decompress", _decompress, "restore files from FILE.llmz")
    _add_files(sub)
    _add_output(sub)
    _add_model(sub)

    sub = command("test", _test, "decode archives and verify them, writing nothing")
    _add_files(sub)
    _add_model(sub)
    sub.add_argument(
        "-f", "--force", action="store_true", help="try archives of other environments"
    )

    sub = command("info", _info, "show what archives hold, without decoding them")
    _add_files(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("models", _models, "list embedded models, and hub models in the local cache")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("doctor", _doctor, "check that this machine computes as all others do")
    sub.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("bench", _bench, "compare with other compressors on files and folders")
    sub.add_argument("files", nargs="+", type=Path, metavar="FILE")
    sub.add_argument("--model", action="append", default=[], dest="models", metavar="M",
                     help="embedded name, folder or hub id; may be repeated")  # fmt: skip
    sub.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    sub.add_argument("--streams", type=int, metavar="N", help="streams a frame")
    sub.add_argument("--codecs", metavar="A,B", help="what to compare with "
                     "(default: all that are installed)")  # fmt: skip
    sub.add_argument("--repeat", type=int, default=1, metavar="N", help="runs; medians are shown")
    for kind in ("json", "csv", "markdown", "plot"):
        sub.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"{kind} to write")

    sub = command("pack", _pack, "make a model's weights smaller, losslessly")
    sub.add_argument("weights", metavar="MODEL", help="safetensors file, folder with "
                     "model.safetensors, or embedded name")  # fmt: skip
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")

    sub = command("unpack", _unpack, "restore the safetensors file that was packed")
    sub.add_argument("packed", type=Path, metavar="FILE")
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")

    sub = command("train", _train, "fine-tune a model on texts of your own")
    sub.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="files and folders")
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="DIR",
                     help="folder for the model, which --model then takes")  # fmt: skip
    sub.add_argument("--from", dest="base", metavar="M", help="model to begin with "
                     "(default: the embedded one)")  # fmt: skip
    sub.add_argument("--minutes", type=float, default=10, metavar="N", help="time to train")
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help="- or none: stdin to stdout"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", help="name of the output; - is stdout")
    parser.add_argument("-c", "--stdout", action="store_true", help="write to stdout")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite existing files, and "
                        "try archives that were made for another environment")  # fmt: skip
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("-k", "--keep", action="store_true", help="keep the input (the default)")
    keep.add_argument("--rm", action="store_true", help="remove the input when all is well")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="embedded name, folder or hub id")
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")


def _options(arguments: argparse.Namespace) -> Options:
    given = vars(arguments)
    names = (
        "model",
        "device",
        "streams",
        "activations",
        "verify",
        "memory",
        "same_environment",
        "force",
    )
    try:
        return llmzip.Options(**{name: given[name] for name in names if name in given})
    except LlmzipError as error:
        raise UsageError(str(error)) from None


def _compress(arguments: argparse.Namespace) -> int:
    options = _options(arguments)

    def transform(source: BinaryIO, sink: BinaryIO, progress: Progress) -> None:
        writer = llmzip.ArchiveWriter(sink, options, progress)
        while data := source.read(_READ_SIZE):
            writer.write(data)
        writer.finish()

    def name(path: Path) -> Path:
        if path.suffix == container.SUFFIX:
            raise UsageError(f"{path}: has the suffix {container.SUFFIX} already; use -o or -c")
        return path.parent / (path.name + container.SUFFIX)

    return _transform_all(arguments, transform, name, binary=True)


def _decompress(arguments: argparse.Namespace) -> int:
    options = _options(arguments)

    def transform(source: BinaryIO, sink: BinaryIO, progress: Progress) -> None:
        for content in llmzip.ArchiveReader(source, options, progress):
            sink.write(content)

    def name(path: Path) -> Path:
        if path.suffix != container.SUFFIX or path.stem == "":
            raise UsageError(f"{path}: has no suffix {container.SUFFIX}; use -o or -c")
        return path.with_suffix("")

    return _transform_all(arguments, transform, name, binary=False)


def _transform_all(
    arguments: argparse.Namespace, transform: Any, target_name: Any, *, binary: bool
) -> int:
    """Every input to its output; a bad one does not stop the others. `binary`: what comes out."""
    to_stdout = arguments.stdout or arguments.output == "-"
    if arguments.output and not to_stdout and len(arguments.files) != 1:
        raise UsageError("-o names one output, so it takes one input")
    if arguments.stdout and arguments.output not in (None, "-"):
        raise UsageError("-c and -o exclude each other")
    if arguments.rm and (to_stdout or "-" in arguments.files):
        raise UsageError("--rm is for files that are replaced by files")
    prints = to_stdout or ("-" in arguments.files and not arguments.output)
    if binary and prints and sys.stdout.isatty() and not arguments.force:
        raise UsageError("compressed data is not written to a terminal; -f does it anyway")
    jobs: list[tuple[str, Path | None]] = []
    for name in arguments.files:
        if to_stdout or (name == "-" and not arguments.output):
            jobs.append((name, None))
        else:
            jobs.append((name, Path(arguments.output or target_name(Path(name)))))
    return int(sum(_attempt(name, _transform, target, arguments, transform, binary)
                   for name, target in jobs) > 0)  # fmt: skip


def _attempt(name: str, work: Any, *arguments: Any) -> bool:
    """Run `work` on one input; on failure say why, and return True."""
    try:
        work(name, *arguments)
    except BrokenPipeError:
        raise
    except LlmzipError as error:
        print(f"llmzip: {name}: {error}", file=sys.stderr)
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"llmzip: {error.filename or name}: {reason}", file=sys.stderr)
    else:
        return False
    return True


def _transform(
    name: str, target: Path | None, arguments: argparse.Namespace, transform: Any, binary: bool
) -> None:
    with _reading(name) as source, _progress(name, source, binary) as progress:
        if target is None:
            transform(source, sys.stdout.buffer, progress)
            sys.stdout.buffer.flush()
            return
        from llmzip.file import replacing

        with replacing(target, overwrite=arguments.force) as sink:
            transform(source, sink, progress)
            if name != "-":  # the temporary file gets mode and times before the target's name
                sink.flush()
                shutil.copystat(name, sink.name)
    if arguments.rm:
        Path(name).unlink()


@contextlib.contextmanager
def _reading(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
    else:
        with open(name, "rb") as source:
            yield source


@contextlib.contextmanager
def _progress(name: str, source: BinaryIO, compressing: bool) -> Iterator[Progress]:
    """A bar of content bytes on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from tqdm import tqdm

    # of an archive, the size of the content is not known before its end
    total = os.fstat(source.fileno()).st_size if compressing and name != "-" else None
    with tqdm(
        total=total,
        desc=Path(name).name,
        unit="B",
        unit_scale=True,
        leave=False,
        dynamic_ncols=True,
    ) as bar:
        done = coded = 0

        def tell(content: int, archive: int) -> None:
            nonlocal done, coded
            done, coded = done + content, coded + archive
            bar.set_postfix_str(f"{8 * coded / max(1, done):.2f} bits per byte", refresh=False)
            bar.update(content)

        yield tell


def _test(arguments: argparse.Namespace) -> int:
    options = _options(arguments)

    def test(name: str) -> None:
        with _reading(name) as source, _progress(name, source, False) as progress:
            size = sum(map(len, llmzip.ArchiveReader(source, options, progress)))
        print(f"{name}: ok, {size} bytes")

    return int(sum(_attempt(name, test) for name in arguments.files) > 0)


def _info(arguments: argparse.Namespace) -> int:
    found: list[dict[str, Any]] = []

    def look(name: str) -> None:
        with _reading(name) as source:
            found.append({"file": name, **describe(source)})

    failed = sum(_attempt(name, look) for name in arguments.files)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for entry in found:
            _print_info(entry)
    return int(failed > 0)


def _print_info(entry: dict[str, Any]) -> None:
    model, frames = entry["model"], entry["frames"]
    described = "none"
    if model:
        described = f"{model['name'] or 'unknown'} ({model['digest']}…), {model['activations']}"
        described += f", context {model['window']}, overlap {model['overlap']}"
    kinds = (f"{sum(f['kind'] == kind for f in frames)} {kind}" for kind in _KINDS.values())
    print(f"{entry['file']}: llmzip archive, format {entry['format']}")
    print(f"  content   {entry['content_bytes']:,} bytes")
    print(f"  archive   {entry['archive_bytes']:,} bytes, {entry['bits_per_byte']:.4f} b/B")
    print(f"  model     {described}")
    print(f"  frames    {len(frames)} ({', '.join(kinds)})")
    print(f"  tokens    {sum(f['tokens'] for f in frames):,}")


class _Counted:
    """Counts what is read from a stream."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self.count = source, 0

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self.count += len(data)
        return data


def describe(source: BinaryIO) -> dict[str, Any]:
    """The structure of an archive, its payloads undecoded. Raises LlmzipError."""
    from llmzip import models
    from llmzip.codec import PROFILES

    counted = _Counted(source)
    reader = container.Reader(counted)  # type: ignore[arg-type]
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(
            {
                "kind": _KINDS[frame.kind],
                "content_bytes": frame.content_length,
                "payload_bytes": len(frame.payload),
                "tokens": frame.tokens,
                "streams": frame.streams,
            }
        )
        reader.skip(frame)
    header, model = reader.model, None
    if header is not None:
        model = {
            "name": header.name or models.embedded_with_digest(header.digest_start),
            "digest": header.digest_start.hex(),
            "profile": header.profile,
            "activations": PROFILES.get(header.profile & 15),
            "memory": header.profile >> 4,
            "window": header.window,
            "overlap": header.overlap,
        }
    return {
        "format": container.VERSION,
        "content_bytes": reader.offset,
        "archive_bytes": counted.count,
        "bits_per_byte": 8 * counted.count / max(1, reader.offset),
        "model": model,
        "frames": frames,
    }


def _models(arguments: argparse.Namespace) -> None:
    from llmzip import catalogue

    embedded, cached = catalogue.embedded(), catalogue.cached()
    if arguments.json:
        print(json.dumps({"embedded": embedded, "cached": cached}, indent=2))
        return
    print("embedded:")
    for model in embedded:
        measured = ", ".join(f"{text} {bits:.3f}" for text, bits in model["bits_per_byte"].items())
        print(
            f"  {model['name']:<8}{model['bytes'] / 1e6:6.2f} MB"
            f", {model['parameters']:,} parameters"
            f"{'; bits per byte: ' + measured if measured else ''}"
            f"{'; the default' if model['default'] else ''}"
        )
    print("in the local cache of the hub:" if cached else "no hub models in the local cache")
    for model in cached:
        verdict = "may work exactly" if model["exact"] else model["obstacle"]
        print(f"  {model['name']}  {model['bytes'] / 1e6:.1f} MB, {verdict}")


def _doctor(arguments: argparse.Namespace) -> int:
    from llmzip import doctor

    report = doctor.examine(arguments.device)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        print(versions)
        print(
            f"{report['machine']}, device {report['device']}, capability "
            f"{report['capability']}, {report['threads']} threads"
        )
        for name, right in report["checks"].items():
            print(f"  {'ok     ' if right else 'DEVIATES'} {name}")
        print("this machine is exact" if report["exact"] else "THIS MACHINE DEVIATES")
    return 0 if report["exact"] else 1


def _bench(arguments: argparse.Namespace) -> int:
    from llmzip import bench
    from llmzip.bench import report as forms

    if arguments.repeat < 1:
        raise UsageError(f"{arguments.repeat} runs; at least 1 is needed")
    rivals = None if arguments.codecs is None else [c for c in arguments.codecs.split(",") if c]
    report = bench.compare(
        arguments.files,
        _options(arguments),
        models=arguments.models,
        rivals=rivals,
        repeat=arguments.repeat,
    )
    print(f"{bench.table(report)}\n\n{forms.summary_table(report)}")
    for path in (arguments.json, arguments.csv, arguments.markdown, arguments.plot):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.csv:
        with arguments.csv.open("w", newline="") as sink:
            bench.write_csv(report, sink)
    if arguments.markdown:
        arguments.markdown.write_text(forms.markdown(report))
    if arguments.plot:
        bench.plot(report, arguments.plot)
    return 0 if all(result["restored"] for result in report["results"]) else 1


def _pack(arguments: argparse.Namespace) -> None:
    from llmzip import models, pack
    from llmzip.file import replacing

    path = Path(arguments.weights)
    if not path.is_file():
        files = models.shipped(arguments.weights)
        path = files[-1]
        if len(files) > 3 or path.suffix != ".safetensors":
            raise UsageError(f"{path.parent} has not one safetensors file: name the file to pack")
    with path.open("rb") as source, replacing(arguments.output, overwrite=arguments.force) as sink:
        pack.pack(source, sink)
        sizes = source.tell(), sink.tell()
    print(f"{sizes[0]:,} → {sizes[1]:,} bytes", file=sys.stderr)


def _unpack(arguments: argparse.Namespace) -> None:
    from llmzip import pack
    from llmzip.file import replacing

    with (
        arguments.packed.open("rb") as source,
        replacing(arguments.output, overwrite=arguments.force) as sink,
    ):
        pack.unpack(source, sink)


def _train(arguments: argparse.Namespace) -> None:
    from llmzip import models
    from llmzip.train import domain

    for path in arguments.texts:
        path.stat()
    base = arguments.base or models.DEFAULT
    report = domain.train(arguments.texts, arguments.output, base, 60 * arguments.minutes)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    sys.exit(main())
