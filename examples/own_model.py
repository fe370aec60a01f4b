"""Fine-tune the smallest embedded model on texts of one kind, and compress another with it.

python examples/own_model.py FOLDER [MINUTES]        (a folder of texts)
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import llmzip
from llmzip.train import domain


def main(folder: Path, minutes: float) -> None:
    texts = sorted(path for path in folder.rglob("*") if path.is_file())
    *known, new = texts
    with tempfile.TemporaryDirectory() as work:
        own = Path(work, "own")
        report = domain.train(known, own, "nano", 60 * minutes)
        print(
            f"held out: {report['bits_per_byte_before']:.3f} bits per byte before, "
            f"{report['bits_per_byte_after']:.3f} after {report['tokens']:,} tokens"
        )
        content = new.read_bytes()
        for name in ("nano", str(own)):
            archive = llmzip.compress(content, model=name)
            assert llmzip.decompress(archive, model=name) == content
            print(f"{Path(name).name}: {len(content):,} → {len(archive):,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 5)
