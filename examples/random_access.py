"""Read some bytes in the middle of an archive: only the frame that holds them is decoded.

python examples/random_access.py
"""

from __future__ import annotations

import io
import time

import llmzip

FOX = "the quick brown fox jumps over the lazy dog"
LINES = "".join(f"{number}: {FOX}\n" for number in range(2000))


def main() -> None:
    archive = io.BytesIO()
    options = llmzip.Options(model="nano", frame_size=10_000)
    with llmzip.LlmzipFile(archive, "w", options=options) as sink:
        sink.write(LINES.encode())
    print(f"{len(LINES):,} bytes in {len(archive.getvalue()):,}")
    archive.seek(0)
    with llmzip.LlmzipFile(archive) as content:
        start = time.perf_counter()
        content.seek(50_000)
        content.readline()
        print(content.readline().decode(), end="")
        print(f"found in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
