"""The programs of examples/ run as they say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PROSE

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "texts"
    made.mkdir()
    for number in range(4):
        (made / f"{number}.txt").write_text(f"{number}. {PROSE}" * (1 if number == 3 else 5))
    return made


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("compress_folder", ["FOLDER"], "extracted: 0.txt"),
        ("random_access", [], "the quick brown fox"),
        ("pandas_table", [], "200 rows in"),
        ("own_model", ["FOLDER", "0.05"], "held out:"),
    ],
)
def test_it_runs(name: str, arguments: list[str], said: str, folder: Path) -> None:
    if name == "pandas_table":
        pytest.importorskip("pandas")
    words = [str(folder) if word == "FOLDER" else word for word in arguments]
    root = str(EXAMPLES.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *sys.path])}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *words],
        capture_output=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert said in done.stdout.decode()


def test_all_are_tried() -> None:
    assert len(list(EXAMPLES.glob("*.py"))) == 4
