"""The command line: parses, calls, prints. Data goes to stdout, all else to stderr.

`parser`: words → options. `files`: compress, decompress, test. `show`: what archives, models and
this machine are. `inspection`: which parts of a text cost how much. `tools`: bench, pack, train.
`topics`: help. Exit codes: 0 done, 1 something about the data or the machine, 2 wrong usage.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from llmzip.cli import parser
from llmzip.cli.usage import UsageError
from llmzip.errors import LlmzipError

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # so that partial files are removed
    try:
        options = parser.parse(sys.argv[1:] if arguments is None else arguments)
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
    except KeyboardInterrupt as error:
        print(f"llmzip: {error or 'interrupted'}", file=sys.stderr)
        return _INTERRUPTED
    return 1


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")
