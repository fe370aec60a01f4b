#!/usr/bin/env python3
"""What a terabyte takes, from measured rates: core-hours, money, and where more cores stop paying.

python scripts/scaling.py --price 0.04 --out results/scaling.json

Rates are those of results/speed.json at the default number of streams. Measured here: how fast rank
0 puts finished frames together (reading, three hashes, writing), which it alone does. All else is
computed: frames are dealt to workers in turn, as llmzip/parallel/runner.py does.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from llmzip import ArchiveWriter, Options
from llmzip.archive.options import FRAME_SIZE
from llmzip.bench import circumstances
from llmzip.coding.frame import ZSTD, Frame

_TERABYTE = 10**12
_WORKERS = (1, 10, 100, 1_000, 10_000)


def assembly_rate(frames: int = 32) -> float:
    """Bytes of content a second at which finished frames become an archive, on one core."""
    content = os.urandom(FRAME_SIZE)
    payload = content[: FRAME_SIZE // 5]
    writer = ArchiveWriter(io.BytesIO(), Options())
    # not a true frame, but as much work as one
    frame = Frame(ZSTD, len(content), payload, last=False)
    writer.append(frame, content)  # which loads what the header needs
    start = time.perf_counter()
    for _ in range(frames):
        writer.append(frame, content)
    return frames * len(content) / (time.perf_counter() - start)


def makespan(size: int, rate: float, workers: int, assembly: float) -> float:
    """Seconds for `size` bytes by workers of `rate` bytes a second each: the longest share of the
    frames, or the assembly that follows them, whichever is slower, and one frame of the other."""
    rounds = math.ceil(math.ceil(size / FRAME_SIZE) / workers)
    coding = rounds * FRAME_SIZE / rate
    joining = size / assembly
    return max(coding, joining) + FRAME_SIZE / (assembly if coding > joining else rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--speed", type=Path, default=Path("results/speed.json"))
    parser.add_argument("--price", type=float, default=0.04, help="assumed, of a core-hour")
    parser.add_argument("--out", type=Path, default=Path("results/scaling.json"))
    arguments = parser.parse_args()
    speed = json.loads(arguments.speed.read_text())
    cores, assembly = speed["machine"]["threads"], assembly_rate()
    report: dict[str, Any] = {
        **circumstances(Options()),
        "rates_from": {key: speed[key] for key in ("commit", "date", "machine", "device")},
        "assumed_price_of_a_core_hour": arguments.price,
        "assembly_mb_s": assembly / 1e6,
        "models": {},
    }
    for name, model in speed["models"].items():
        entry = next(e for e in model["streams"] if e["streams"] == "default")
        report["models"][name] = {
            way: _of(entry[f"{way}_mb_s"] * 1e6 / cores, arguments.price, assembly)
            for way in ("encode", "decode")
        }
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def _of(rate: float, price: float, assembly: float) -> dict[str, Any]:
    """`rate`: bytes a second and core."""
    hours = _TERABYTE / rate / 3600
    return {
        "kb_s_a_core": rate / 1e3,
        "core_hours_a_terabyte": hours,
        "price_a_terabyte": hours * price,
        "cores_that_one_assembly_feeds": assembly / rate,
        "hours_by_cores": {str(n): makespan(_TERABYTE, rate, n, assembly) / 3600 for n in _WORKERS},
    }


if __name__ == "__main__":
    main()
