"""The API reference: pdoc makes it without warnings, and every public name has a docstring."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmzip"
DOCUMENTED = ("archive", "cli", "io", "parallel", "tokenizer")
FILES = [*PACKAGE.glob("*.py"), *(p for name in DOCUMENTED for p in (PACKAGE / name).glob("*.py"))]


def reference(folder: Path, *modules: str) -> None:
    pytest.importorskip("pdoc")
    command = [sys.executable, "-W", "error::UserWarning", "-m", "pdoc", *modules, "-o", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_public_interface(tmp_path: Path) -> None:
    reference(tmp_path, "llmzip")
    assert "ArchiveReader" in (tmp_path / "llmzip.html").read_text()


@pytest.mark.slow
def test_all_modules(tmp_path: Path) -> None:
    names = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
             for path in PACKAGE.rglob("*.py") if not path.stem.startswith("__")}  # fmt: skip
    reference(tmp_path, *names)
    assert all((tmp_path / f"{name.replace('.', '/')}.html").exists() for name in names)


def undocumented(node: ast.Module | ast.ClassDef) -> Iterator[str]:
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.ClassDef) or child.name.startswith("_"):
            continue
        overload = any(ast.unparse(decorator) == "overload" for decorator in child.decorator_list)
        if not (overload or ast.get_docstring(child)):
            yield child.name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    assert not list(undocumented(tree))
