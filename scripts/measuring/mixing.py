"""What context mixing saves."""

from __future__ import annotations

from argparse import Namespace

from llmzip.bench import codecs
from measuring import MODEL, TEXTS, Report, argument, command, report_of
from measuring.archives import MIXING, sweep


@command("results/mixing.json", TEXTS, MODEL, argument("--bytes", type=int, help="of each text"))
def mixing(given: Namespace) -> Report:
    """Bits per byte of whole archives without mixing, with it, and with it in one stream.

    The same for xz, and for zpaq if it is installed.
    """
    results = sweep(given.model, given.texts, {"mixing": MIXING}, given.bytes)
    rivals = {}
    for name in ("xz -9e", "zpaq -m5"):
        rivals[name] = {
            path.name: codecs.round_trip(name, path.read_bytes()[: given.bytes])
            for path in given.texts
            if path.is_file()
        }
    return report_of(given.model, results=results, rivals=rivals)
