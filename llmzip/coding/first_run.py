"""The first run on a processor compiles for ten to twenty seconds; a second process does half here.

Compiled code is kept on disk, where the first process then finds what the second has compiled.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from llmzip.coding import child

enabled = False  # set by the command line: a library starts no processes unasked
_PATIENCE = 120.0  # seconds
_WORK = "from llmzip.coding import first_run; first_run.compile_mixing()"


@contextlib.contextmanager
def second_process() -> Iterator[None]:
    """Meanwhile, compile mixing in a second process, unless it is compiled or there is one core. At
    the end it is waited for, but not for ever; after an error it is ended."""
    process = _start()
    if process is None:
        yield
        return
    try:
        yield
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    finally:
        process.terminate()
        process.wait()


def _start() -> subprocess.Popen[bytes] | None:
    if not enabled or not sys.executable or getattr(sys, "frozen", False):
        return None
    from llmzip.compiled import is_cached
    from llmzip.inference.base import cores
    from llmzip.mixing.walk import code_rows

    if cores() < 2 or is_cached(code_rows):
        return None
    with contextlib.suppress(OSError, ValueError):
        return subprocess.Popen(
            child.command(_WORK),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what fails here is compiled by the first process
        )
    return None


def compile_mixing() -> None:
    """Compile what coding needs, by coding one token of a vocabulary of bytes."""
    import numpy as np

    from llmzip.coding.token_coder import TokenEncoder
    from llmzip.mixing.questions import answers_of, questions_of
    from llmzip.mixing.state import new_state
    from llmzip.mixing.vocabulary import Vocabulary

    vocabulary = Vocabulary([bytes([value]) for value in range(256)])
    frequencies, ranks = np.ones((1, 256), dtype=np.int32), np.zeros(1, dtype=np.int32)
    TokenEncoder(vocabulary, new_state(1, 1)).code(frequencies, 0, 1, ranks)
    questions = questions_of(vocabulary)
    size = int(questions.counts(ranks).sum())
    answers_of(frequencies, ranks, questions, np.zeros(1, dtype=np.int64), size)
