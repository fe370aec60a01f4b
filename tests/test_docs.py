"""Documents: the API reference has no warnings, every public name a docstring, and files that are
named exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmzip"
DOCUMENTED = (
    "archive",
    "cli",
    "io",
    "parallel",
    "tokenizer",
    "exact",
    "models",
    "inference",
    "bench",
    "train",
)
FILES = [*PACKAGE.glob("*.py"), *(p for name in DOCUMENTED for p in (PACKAGE / name).rglob("*.py"))]


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


ROOT = PACKAGE.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = "llmzip|scripts|tests|docs|results|examples"
    paths = re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*[\w/]", page.read_text())
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_modules_that_readme_lists_exist() -> None:
    """In the table of the code: names in parentheses, or after a colon."""
    rows = re.findall(r"^\| `llmzip/(\w+)/` \| (.*) \|$", (ROOT / "README.md").read_text(), re.M)
    assert len(rows) > 5
    for package, text in rows:
        for name in re.findall(r"`([a-z_0-9]+)/?`", text):
            path = PACKAGE / package / name
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"{package}: {name}"


def test_the_manual_page_names_every_command_and_option() -> None:
    from llmzip.cli import parser

    page = (PACKAGE.parent / "docs" / "llmzip.1").read_text().replace("\\-", "-")
    _, commands = parser.build()
    named = set(re.findall(r"--[a-z-]+|-[a-zA-Z0-9]\b", page))
    flags = {flag for action in parser._flat()._actions for flag in action.option_strings}
    assert flags <= named
    assert set(commands) <= set(re.findall(r"[a-z]+", page))


def test_the_version_names_format_and_arithmetic() -> None:
    from llmzip.archive.header import VERSION

    command = [sys.executable, "-m", "llmzip", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    heading = (PACKAGE.parent / "docs" / "exactness.md").read_text().splitlines()[0]
    assert f"format {VERSION}, arithmetic {heading.split()[-1]})" in said
