"""`compression="llmz"` for fsspec, and so for pandas and datasets."""

from __future__ import annotations

import json
from pathlib import Path

import fsspec
import pytest

import llmzip.fsspec

ROWS = [{"id": i, "text": f"row {i}, äöü 漢字", "ok": i % 2 == 0} for i in range(50)]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.jsonl.llmz"
    with fsspec.open(str(path), "wt", compression="infer", encoding="utf-8") as file:
        for row in ROWS:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    assert path.read_bytes().startswith(b"LLMz")
    return path


@pytest.mark.parametrize("compression", ["infer", "llmz"])
def test_lines_come_back(table: Path, compression: str) -> None:
    with fsspec.open(str(table), "rt", compression=compression, encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == ROWS


def test_bytes_and_seeking(table: Path) -> None:
    with fsspec.open(str(table), "rb", compression="infer") as file:
        content = file.read()
        file.seek(100)
        assert file.read(20) == content[100:120]


def test_registering_twice_is_no_error() -> None:
    import importlib

    importlib.reload(llmzip.fsspec)


def test_pandas_reads_it(table: Path) -> None:
    pandas = pytest.importorskip("pandas")
    with fsspec.open(str(table), "rt", compression="infer", encoding="utf-8") as file:
        assert pandas.read_json(file, lines=True).to_dict("records") == ROWS
    # pandas hands names of this form to fsspec
    frame = pandas.read_json(
        f"local://{table}", lines=True, storage_options={"compression": "infer"}
    )
    assert frame.to_dict("records") == ROWS


def test_a_column_of_a_parquet_file(tmp_path: Path) -> None:
    """As docs/corpora.md has it."""
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    pandas.DataFrame(ROWS).to_parquet(tmp_path / "docs.parquet")
    table = pandas.read_parquet(tmp_path / "docs.parquet", columns=["text"])
    name = str(tmp_path / "docs.jsonl.llmz")
    with fsspec.open(name, "wt", compression="infer", encoding="utf-8") as file:
        table.to_json(file, orient="records", lines=True, force_ascii=False)
    with fsspec.open(name, "rt", compression="infer", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == [{"text": row["text"]} for row in ROWS]
