"""Archives of every format version decode for ever; what we write today is pinned by bytes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from conftest import TINY
from golden_cases import CASES, PRIME, archive
from reference_decoder import EMBEDDED, Model, decode

import llmzip

GOLDEN = sorted((Path(__file__).parent / "data" / "golden").rglob("*.llmz"))
LONG = ("awkward", "base", "frames", "restarts", "sliding")  # for a decoder in plain Python


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_golden_archives_decode(path: Path) -> None:
    expected = path.with_suffix(".content").read_bytes()
    model = None if path.stem in ("short", "primed-short", "base", "sliding") else str(TINY)
    assert llmzip.decompress(path.read_bytes(), model=model, prime=PRIME) == expected


@pytest.mark.parametrize("name", CASES)
def test_what_is_written_today_has_not_changed(name: str) -> None:
    path = Path(__file__).parent / "data" / "golden" / "v1" / f"{name}.llmz"
    assert archive(name) == path.read_bytes()


def test_every_case_is_there() -> None:
    assert {path.stem for path in GOLDEN if path.parent.name == "v1"} == set(CASES)


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.stem in LONG else ()) for path in GOLDEN],
    ids=lambda path: path.stem,
)
def test_a_decoder_written_from_the_documents_agrees(path: Path) -> None:
    expected = path.with_suffix(".content").read_bytes()
    assert decode(path.read_bytes(), _models(), PRIME) == expected


@cache
def _models() -> list[Model]:
    return [Model(folder) for folder in (TINY, *EMBEDDED)]
