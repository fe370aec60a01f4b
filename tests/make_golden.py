"""Write golden archives that do not exist yet: python tests/make_golden.py

Existing ones are never rewritten; a difference is shown and must be understood first.
"""

from __future__ import annotations

import sys
from pathlib import Path

from golden_cases import CASES, archive

FOLDER = Path(__file__).parent / "data" / "golden" / "v1"


def main() -> int:
    different = 0
    for name, (content, _) in CASES.items():
        path = FOLDER / f"{name}.llmz"
        data = archive(name)
        if not path.exists():
            path.write_bytes(data)
            path.with_suffix(".content").write_bytes(content)
            print(f"{name}: {len(content)} -> {len(data)} bytes")
        elif path.read_bytes() != data:
            different += 1
            print(f"{name}: DIFFERS from what this version would write, kept")
    return different


if __name__ == "__main__":
    sys.exit(main())
