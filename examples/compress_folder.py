"""Compress every text of a folder into one archive, and take a single one out again.

python examples/compress_folder.py FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import llmzip
from llmzip.io import tar


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as work:
        archive = Path(work, "texts.tar.llmz")
        with archive.open("wb") as sink:
            tar.write(sink, folder, llmzip.Options())
        with llmzip.LlmzipFile(archive) as content:
            names = list(tar.read_index(content) or {})
            print(f"{archive.stat().st_size:,} bytes hold {', '.join(names)}")
            tar.extract(content, names[:1], Path(work, "back"))
        print("extracted:", *(path.name for path in Path(work, "back").rglob("*")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
