"""The tables of tables.py: each is a function of files of results/, shown in a document."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llmzip.bench.report import markdown_table

ROOT = Path(__file__).parent.parent.parent
Report = dict[str, Any]

# (document, mark) → what makes the text between <!-- mark --> and <!-- /mark -->
TABLES: dict[tuple[str, str], Callable[[], str]] = {}


def shown(*documents: str) -> Callable[[Callable[[], str]], Callable[[], str]]:
    """Register a table of these documents, marked there by the function's name."""

    def register(make: Callable[[], str]) -> Callable[[], str]:
        TABLES.update({(document, make.__name__): make for document in documents})
        return make

    return register


def read(name: str) -> Report:
    report: Report = json.loads((ROOT / "results" / name).read_text())
    return report


def filled(form: str, rows: list[Report], texts: int = 1) -> list[str]:
    """A Markdown table. `form`: the heads, and below them the formats of a row's cells."""
    heads, cells = form.strip().split("\n")
    kinds = [cell.strip() for cell in cells.split("|")]
    return markdown_table(heads, ([kind.format(**row) for kind in kinds] for row in rows), texts)


def machine(report: Report) -> str:
    return f"{report['machine']['processor']}, {report['machine']['threads']} threads"


def noted(lines: list[str], report: Report, *more: str) -> str:
    """A table, further lines, and where its figures come from."""
    commit = (report["commit"] or "?")[:7]
    note = f"{machine(report)}, {report['date']}, commit {commit}."
    return "\n".join([*lines, "", *more, note])


def kept(report: Report) -> list[str]:
    """A line about results of models that were measured earlier, if there are any."""
    commits = report.get("kept", {})
    line = ", ".join(f"`{name}` at commit {commit[:7]}" for name, commit in commits.items())
    return [f"{line}; the others:"] if commits else []


def ordered(report: Report, key: str) -> list[Any]:
    """The values of a key in the results, each once."""
    return list(dict.fromkeys(r[key] for r in report["results"]))
