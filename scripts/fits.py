"""Exit code 0 if this interpreter has the pinned versions of what pyproject.toml asks for.

python scripts/fits.py [EXTRA]
"""

import importlib.metadata
import re
import sys
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

root = Path(__file__).parent.parent
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
needed = list(project["dependencies"])
if len(sys.argv) > 1 and sys.argv[1]:
    needed += project["optional-dependencies"][sys.argv[1]]
pins = {}
for line in (root / "constraints.txt").read_text().splitlines():
    pin, _, marker = line.partition(";")
    for_old = "<" in marker
    if "==" in pin and (not marker or for_old == (sys.version_info < (3, 11))):
        name, version = pin.strip().split("==")
        pins[name] = version
for requirement in needed:
    name = re.split(r"[<>=!~ ]", requirement)[0]
    try:
        installed = importlib.metadata.version(name).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(1)
    if installed != pins.get(name, installed):
        sys.exit(1)
