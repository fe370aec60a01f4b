"""What the README says is so: its examples run, its table is that of the results."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from llmzip.cli.parser import build

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "notes.llmz").exists()


def test_the_table_is_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "tables.py"), "--check"]
    assert subprocess.run(command).returncode == 0


def test_every_package_exists_and_is_named() -> None:
    for name in re.findall(r"`(llmzip/[a-z_./]+)`", README):
        assert (ROOT / name).exists()
    named = README[README.index("## The code") :]
    for path in (ROOT / "llmzip").glob("*.py"):
        assert path.name in named or path.name.startswith("__")


def test_the_commands_it_names_exist() -> None:
    named = set(re.findall(r"^    llmzip ([a-z]+) ", README, re.MULTILINE))
    assert named <= set(build()[1])


def test_the_demo_calls_what_there_is() -> None:
    demo = (ROOT / "scripts" / "demo").read_text().replace('"', "").replace("$", "")
    calls = re.findall(r"^PYTHON -m llmzip(?:\.cli)? (.*?)(?: 2>.*)?$", demo, re.MULTILINE)
    assert len(calls) == 4
    for call in calls:
        build()[0].parse_args(call.split())  # exits where it does not know an option
