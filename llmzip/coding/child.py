"""The command of a Python process that finds the modules of this one.

`-m` and `-c` look into the current folder first, where a user has files of any name: a `json.py`
among texts must not run.
"""

from __future__ import annotations

import sys


def command(code: str, *arguments: str) -> list[str]:
    """To run `code`, which may use `sys`, with these arguments."""
    # sys is built in: when the path is set, nothing was looked for yet
    path = [str(folder) for folder in sys.path]
    return [sys.executable, "-c", f"import sys; sys.path[:] = {path!r}; {code}", *arguments]


def module_command(name: str, *arguments: str) -> list[str]:
    """To run a module as `-m` does."""
    run = f"import runpy; runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    return command(run, *arguments)
