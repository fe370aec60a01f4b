#!/usr/bin/env python3
"""Write the tables of README.md and docs/ from results/.

python scripts/tables.py [--check]
"""

from __future__ import annotations

import argparse
import sys

from tabulating import ROOT, TABLES, documents, research

__all__ = ["documents", "research"]  # register their tables


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if one is stale")
    check, stale = parser.parse_args().check, 0
    for (name, mark), make in TABLES.items():
        path = ROOT / name
        text = path.read_text()
        start, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
        before, rest = text.split(start)
        _, after = rest.split(end)
        fresh = f"{before}{start}\n{make()}\n\n{end}{after}"
        if fresh != text:
            stale += 1
            print(f"{name}: {mark} {'is stale' if check else 'renewed'}")
        if not check:
            path.write_text(fresh)
    return bool(stale) and check


if __name__ == "__main__":
    sys.exit(main())
