"""Who may import whom: imports go one way, and no modules import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmzip"
# a package or module of the root → its place: it imports from earlier ones alone
ORDER = {
    "errors": 0,
    "folders": 0,
    "output": 0,
    "compiled": 1,
    "range_coder": 1,
    "bit_decoder": 2,
    "tokenizer": 2,
    "exact": 2,
    "models": 3,
    "inference": 4,
    "mixing": 5,
    "coding": 6,
    "archive": 7,
    "io": 8,
    "parallel": 9,
    "__init__": 9,
    "fsspec": 10,
    "doctor": 10,
    "bench": 11,
    "train": 11,
    "cli": 12,
    "__main__": 13,
}
# what the packages up to `mixing` may import of each other, beside the root's first modules
NEIGHBOURS = {
    "compiled": {"folders"},
    "exact": set[str](),
    "models": {"exact", "folders", "output", "range_coder"},
    "inference": {"exact", "models"},
    "mixing": {"bit_decoder"},
    "coding": {"bit_decoder", "inference", "mixing", "range_coder", "tokenizer"},
    "tokenizer": set[str](),
}
FILES = sorted(PACKAGE.rglob("*.py"))


def _place(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module(path): path for path in FILES}


def _imports(path: Path, *, at_once: bool = False) -> set[str]:
    """Every module that a file imports, anywhere in it, as dotted names; or `at_once`, those that
    are loaded with it."""
    found = set()
    for node in _nodes(ast.parse(path.read_text()), at_once):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def _nodes(tree: ast.AST, at_once: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        )
        if not (at_once and later):
            yield node
            yield from _nodes(node, at_once)


def _own(names: set[str]) -> set[str]:
    """Modules of the package among imported names, which may be names within a module."""
    found = set()
    for name in names:
        while name.startswith("llmzip") and name not in MODULES:
            name = name.rpartition(".")[0]
        if name in MODULES:
            found.add(name)
    return found


def _used(path: Path) -> set[str]:
    used = {[*name.split("."), "__init__"][1] for name in _own(_imports(path))}
    return used - {_place(path)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    place = _place(path)
    assert all(ORDER[used] < ORDER[place] for used in _used(path))
    if place in NEIGHBOURS:
        assert _used(path) <= {"errors", "compiled"} | NEIGHBOURS[place]


def test_no_modules_import_each_other() -> None:
    graph = {name: _own(_imports(path, at_once=True)) - {name} for name, path in MODULES.items()}
    order = TopologicalSorter(graph)
    order.prepare()  # raises CycleError


def test_at_most_eight_modules_stand_beside_the_packages() -> None:
    assert len([p for p in PACKAGE.glob("*.py") if not p.name.startswith("__")]) <= 8


def test_numba_is_used_in_one_way() -> None:
    assert {p.name for p in FILES if "numba.njit" in _imports(p)} == {"compiled.py"}


def test_only_the_coder_knows_constriction() -> None:
    users = {p.name for p in FILES if any("constriction" in n for n in _imports(p))}
    assert users == {"range_coder.py"}


@pytest.mark.parametrize(
    "name", ["errors.py", "archive/container.py", "io/file.py", "cli/files.py"]
)
def test_no_torch_in(name: str) -> None:
    assert not any(i.split(".")[0] == "torch" for i in _imports(PACKAGE / name))


def test_importing_llmzip_loads_nothing_heavy() -> None:
    import subprocess
    import sys

    heavy = {"torch", "transformers", "numba", "numpy", "zstandard"}
    code = f"import sys, llmzip, llmzip.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
