#!/usr/bin/env python3
"""Write the README's table from results/bench.json: python scripts/readme_table.py [--check]"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from llmzip.bench import table

ROOT = Path(__file__).parent.parent
START, END = "<!-- bench -->\n", "<!-- /bench -->"


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    report = json.loads((ROOT / "results" / "bench.json").read_text())
    machine = report["machine"]
    note = (
        f"{machine['processor']}, {machine['threads']} threads, model `{report['model']['name']}`"
    )
    fresh = f"{before}{START}\n{table(report)}\n\n{note}, {report['date']}.\n\n{END}{after}"
    if "--check" in sys.argv:
        return int(fresh != text)
    readme.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
