"""The commands of measure.py: each is a function that makes one file of results/."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmzip import models
from llmzip.archive.options import Options
from llmzip.bench import provenance

Report = dict[str, Any]
Run = Callable[[Namespace], Report]
Argument = tuple[tuple[str, ...], dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """A function of the parsed arguments, the file it makes by default, and its arguments."""

    run: Run
    out: str
    arguments: tuple[Argument, ...]


COMMANDS: dict[str, Command] = {}


def argument(*names: str, **options: Any) -> Argument:
    """Arguments of `ArgumentParser.add_argument`."""
    return names, options


def command(out: str, *arguments: Argument) -> Callable[[Run], Run]:
    """Register a function as the command of its name; its docstring is the help."""

    def register(run: Run) -> Run:
        COMMANDS[run.__name__] = Command(run, out, arguments)
        return run

    return register


def report_of(model: str | None, **figures: Any) -> Report:
    """Figures together with the command, commit and machine that they come from."""
    return {**provenance(Options(model=model)), **figures}


TEXTS = argument("texts", nargs="+", type=Path, help="files and folders")
MODEL = argument("--model", default=models.DEFAULT)
MODELS = argument("--model", action="append", required=True, help="may be given several times")
