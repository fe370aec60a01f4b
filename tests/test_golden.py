"""Archives of every format version decode for ever; what we write today is pinned by bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import TINY
from golden_cases import CASES, PRIME, archive
from spec_reader import frames as read_by_the_document

import llmzip

GOLDEN = sorted((Path(__file__).parent / "data" / "golden").rglob("*.llmz"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_archives_decode(path: Path) -> None:
    expected = path.with_suffix(".content").read_bytes()
    model = None if path.stem in ("short", "primed-short", "base") else str(TINY)
    assert llmzip.decompress(path.read_bytes(), model=model, prime=PRIME) == expected


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_today_has_not_changed(name: str) -> None:
    path = Path(__file__).parent / "data" / "golden" / "v1" / f"{name}.llmz"
    assert archive(name) == path.read_bytes()


def test_every_case_is_there() -> None:
    assert {path.stem for path in GOLDEN if path.parent.name == "v1"} == set(CASES)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_reader_written_from_the_document_alone_agrees(path: Path) -> None:
    expected = path.with_suffix(".content").read_bytes()
    offset = 0
    for kind, length, stored in read_by_the_document(path.read_bytes(), expected):
        if kind != 2:
            assert stored == expected[offset : offset + length]
        offset += length
    assert offset == len(expected)
