#!/usr/bin/env python3
"""Bytes and seconds of `llmzip pack` beside zstd -19 and xz -9e on safetensors files.

python scripts/measure_pack.py small CHECKPOINT.safetensors… --out results/pack.json

`--cast bfloat16` converts the named files first. Some seconds for each 10 MB.
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import statistics
import time
import zlib
from pathlib import Path

import torch
import zstandard
from safetensors.torch import load, save

from llmzip import models
from llmzip.archive.options import Options
from llmzip.bench import circumstances
from llmzip.models import packing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", nargs="+", help="safetensors files and embedded models")
    parser.add_argument("--cast", action="append", default=[], metavar="DTYPE")
    parser.add_argument("--out", type=Path, default=Path("results/pack.json"))
    arguments = parser.parse_args()
    results = []
    for name in arguments.weights:
        path = models.shipped(name)[-1] if name in models.EMBEDDED else Path(name)
        own = path.read_bytes()
        forms = {"as it is": own}
        if name not in models.EMBEDDED:
            for cast in arguments.cast:
                dtype = getattr(torch, cast)
                forms[cast] = save({key: x.to(dtype) for key, x in load(own).items()})
        label = name if name in models.EMBEDDED else f"{path.resolve().parent.name}/{path.name}"
        for form, content in forms.items():
            small, seconds = io.BytesIO(), []
            start = time.perf_counter()
            packing.pack(io.BytesIO(content), small)
            packing_seconds = time.perf_counter() - start
            for _ in range(5):
                back = io.BytesIO()
                small.seek(0)
                start = time.perf_counter()
                packing.unpack(small, back)
                seconds.append(time.perf_counter() - start)
            entry = {
                "weights": label,
                "form": form,
                "bytes": len(content),
                "packed": len(small.getvalue()),
                "deflate -9 (a wheel)": len(zlib.compress(content, 9)),
                "zstd -19": len(zstandard.ZstdCompressor(level=19).compress(content)),
                "xz -9e": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
                "pack_seconds": packing_seconds,
                "unpack_seconds": statistics.median(seconds),
                "restored": back.getvalue() == content,
            }
            print(json.dumps(entry))
            results.append(entry)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    report = {**circumstances(Options()), "results": results}
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
