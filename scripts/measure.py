#!/usr/bin/env python3
"""Measure what README and docs quote: one command for each file of results/.

python scripts/measure.py COMMAND --help

Each command writes JSON with its command line, commit and machine; `python scripts/tables.py` then
renews the tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measuring import (
    COMMANDS,
    archives,
    engine,
    exactness,
    mixing,
    prime,
    proxies,
    shrink,
    speed,
    tokenizers,
    training,
)

from llmzip.bench import write_report
from llmzip.errors import LlmzipError

# they register commands
MODULES = (archives, engine, exactness, mixing, prime, proxies, shrink, speed, tokenizers, training)


def build() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = command.run.__doc__ or ""
        sub = commands.add_parser(name, help=text.splitlines()[0], description=text)
        for names, options in command.arguments:
            sub.add_argument(*names, **options)
        sub.add_argument("--out", type=Path, default=Path(command.out), help=command.out)
    return parser


def main() -> int:
    given = build().parse_args()
    try:
        report = COMMANDS[given.command].run(given)
    except LlmzipError as error:
        print(f"measure.py: {error}", file=sys.stderr)
        return 1
    write_report(given.out, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
