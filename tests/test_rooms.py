"""The walls between the stages: who may import whom (README, "The way of the data")."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmzip"
STAGES = {
    "errors": 0,
    "folders": 0,
    "output": 0,
    "compiled": 0.5,
    "tokens": 1,
    "exact": 2,
    "coder": 2,
    "pack": 2.5,
    "models": 3,
    "predictor": 4,
    "frequencies": 5,
    "memory": 6,
    "header": 7,
    "container": 8,
    "sections": 8.5,
    "team": 8,
    "codec": 9,
    "file": 10,
    "incremental": 10,
    "salvage": 10,
    "parallel": 10.5,
    "members": 11,
    "fsspec": 11,
    "dask": 11,
    "__init__": 11,
    "bench": 12,
    "catalogue": 12,
    "doctor": 12,
    "install": 12.5,
    "train": 12,
    "cli": 13,
    "__main__": 14,
}
# the only imports among the stages below codec, beside errors
NEIGHBOURS = {
    "compiled": {"folders"},
    "pack": {"coder"},
    "models": {"exact", "folders", "output", "pack"},
    "predictor": {"exact", "models"},
    "frequencies": {"exact"},  # its tables alone
    "container": {"header"},
    "sections": {"container", "header"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def _stage(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def _stages_used(path: Path) -> set[str]:
    used = set()
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "llmzip":
            used.add(parts[1] if len(parts) > 1 and parts[1] in STAGES else "__init__")
    return used - {_stage(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_earlier_stages_only(path: Path) -> None:
    stage = _stage(path)
    assert all(STAGES[used] < STAGES[stage] for used in _stages_used(path))
    if STAGES[stage] < STAGES["codec"]:
        assert _stages_used(path) <= {"errors", "compiled"} | NEIGHBOURS.get(stage, set())


def test_numba_is_used_in_one_way() -> None:
    assert {p.name for p in FILES if "numba.njit" in _imports(p)} == {"compiled.py"}


def test_only_the_coder_knows_constriction() -> None:
    users = {p.name for p in FILES if any("constriction" in name for name in _imports(p))}
    assert users == {"coder.py"}


@pytest.mark.parametrize("name", ["errors.py", "container.py", "file.py", "cli/files.py"])
def test_no_torch_in(name: str) -> None:
    assert not any(i.split(".")[0] == "torch" for i in _imports(PACKAGE / name))


def test_importing_llmzip_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = {"torch", "transformers", "numba", "numpy", "zstandard"}
    code = f"import sys, llmzip, llmzip.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
