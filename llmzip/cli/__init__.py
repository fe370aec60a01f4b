"""The command line. Data goes to stdout, messages go to stderr.

`parser` defines the commands and their options. `files`, `corpus` and `damage` compress, decompress
and test; `show` describes archives and the machine; `inspection` shows the cost of a text's parts;
`model_store` lists, installs and removes models; `tools` has bench, pack, train; `topics` has help.
Exit codes: 0 success, 1 a problem with the data or the machine, 2 wrong usage, 130 interrupted or
terminated.
"""

from __future__ import annotations

import contextlib
import io
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
from llmzip.coding import first_run
from llmzip.errors import LlmzipError, PaddingWarning

__all__ = ["main"]

_INTERRUPTED = 128 + signal.SIGINT
_python_warning = warnings.showwarning
_received: list[int] = []  # signals that ended the run


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        # so that partial files are removed
        signal.signal(signal.SIGTERM, _interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
            signal.signal(signal.SIGINT, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # of a descriptor that was exchanged
            sys.stdout.reconfigure(errors="surrogateescape")  # names of files may be no UTF-8
    with warnings.catch_warnings():
        warnings.simplefilter("always", PaddingWarning)
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        code = _run(sys.argv[1:] if arguments is None else arguments)
    if code == _INTERRUPTED:
        # where a library was importing by C, CPython remembers an interruption as not handled, and
        # would end by sending itself SIGINT; running a string makes it forget
        eval("0")
    return code


def _run(words: list[str]) -> int:
    _received.clear()
    first_run.enabled = True
    try:
        options = parser.parse(words)
        _set_up_logging(getattr(options, "quiet", False))
        return int(options.run(options) or 0)
    except KeyboardInterrupt:
        return _interrupted()
    except Exception as error:
        # where Python calls back from C, an interruption can come out as another exception
        return _interrupted() if _received else _failed(error)
    finally:
        first_run.enabled = False


def _failed(error: Exception) -> int:
    """Prints what is the user's matter; raises anything else."""
    if isinstance(error, UsageError):
        print(f"llmzip: {error}", file=sys.stderr)
        return 2
    if isinstance(error, BrokenPipeError):  # the reader of our output has closed it: no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(error, LlmzipError):
        print(f"llmzip: {error}", file=sys.stderr)
    elif isinstance(error, OSError):
        print(f"llmzip: {error.filename or 'output'}: {error.strerror or error}", file=sys.stderr)
    else:
        raise error
    return 1


def _interrupted() -> int:
    terminated = signal.SIGTERM in _received
    print(f"llmzip: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
    return _INTERRUPTED


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    raise KeyboardInterrupt
