"""The command line. Data goes to stdout, messages go to stderr.

`parser` defines the commands and their options. `files`, `corpus` and `damage` compress, decompress
and test; `show` describes archives and the machine; `inspection` shows the cost of a text's parts;
`model_store` lists, installs and removes models; `tools` has bench, pack, train; `topics` has help.
Exit codes: 0 success, 1 a problem with the data or the machine, 2 wrong usage.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from types import FrameType
from typing import Any

from llmzip.cli import parser
from llmzip.cli.usage import UsageError
from llmzip.errors import LlmzipError, PaddingWarning

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT
_python_warning = warnings.showwarning


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)  # so that partial files are removed
    with warnings.catch_warnings():
        warnings.simplefilter("always", PaddingWarning)
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        return _run(sys.argv[1:] if arguments is None else arguments)


def _run(words: list[str]) -> int:
    try:
        options = parser.parse(words)
        _set_up_logging(getattr(options, "quiet", False))
        return int(options.run(options) or 0)
    except UsageError as error:
        print(f"llmzip: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has closed it: no error
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


def _show_warning(message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, PaddingWarning):
        print(f"llmzip: warning: {message}", file=sys.stderr)
    else:
        _python_warning(message, category, *where)


def _set_up_logging(quiet: bool) -> None:
    """Print log messages on stderr."""
    log = logging.getLogger("llmzip")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("llmzip: %(message)s"))
        log.addHandler(handler)
        log.propagate = False
    log.setLevel(logging.ERROR if quiet else logging.INFO)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt("terminated")
