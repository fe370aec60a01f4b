"""Exit code 0 if this interpreter has the pinned versions of what pyproject.toml asks for.

python scripts/fits.py [EXTRA]
"""

import importlib.metadata
import re
import sys
from pathlib import Path

if sys.version_info < (3, 11):  # no tomllib: let a fresh environment decide
    sys.exit(1)
import tomllib

root = Path(__file__).parent.parent
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
needed = list(project["dependencies"])
if len(sys.argv) > 1 and sys.argv[1]:
    needed += project["optional-dependencies"][sys.argv[1]]
pins = dict(
    line.split(";")[0].strip().split("==")
    for line in (root / "constraints.txt").read_text().splitlines()
    if "==" in line and 'python_version < "3.11"' not in line
)
for requirement in needed:
    name = re.split(r"[<>=!~ ]", requirement)[0]
    try:
        installed = importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(1)
    if installed != pins.get(name, installed):
        sys.exit(1)
