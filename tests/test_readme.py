"""What the README says is so: its examples run, its table is that of the results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "notes.llmz").exists()


def test_the_table_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "readme_table.py"), "--check"]
    assert subprocess.run(command).returncode == 0


def test_every_file_of_the_way_exists_and_is_named() -> None:
    for name in re.findall(r"`(llmzip/[a-z_./]+)`", README):
        assert (ROOT / name).exists()
    named = README[README.index("## The way of the data") :]
    for path in (ROOT / "llmzip").glob("*.py"):
        assert path.name in named or path.name == "__init__.py"


def test_the_commands_it_names_exist() -> None:
    from llmzip.cli import _parser

    commands = set(re.findall(r"^    llmzip ([a-z]+)", README, re.MULTILINE))
    assert commands <= set(re.findall(r"\{?([a-z]+)[,}]?", " ".join(_subcommands(_parser()))))


def _subcommands(parser: object) -> list[str]:
    (action,) = (a for a in parser._actions if a.choices)  # type: ignore[attr-defined]
    return list(action.choices)
