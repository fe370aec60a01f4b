"""Keep a table as compressed JSON lines that pandas reads and writes through fsspec.

python examples/pandas_table.py        (needs pip install llmzip[fsspec] pandas)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import fsspec
import pandas

import llmzip.fsspec  # noqa: F401  registers compression="llmz"


def main() -> None:
    table = pandas.DataFrame(
        {"id": range(200), "text": [f"row {number} of a table" for number in range(200)]}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.jsonl.llmz")
        with fsspec.open(str(path), "wt", compression="infer") as sink:
            table.to_json(sink, orient="records", lines=True)
        with fsspec.open(str(path), "rt", compression="infer") as source:
            again = pandas.read_json(source, lines=True)
        print(f"{len(table)} rows in {path.stat().st_size:,} bytes")
        assert again.equals(table)


if __name__ == "__main__":
    main()
