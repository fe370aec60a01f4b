#!/usr/bin/env python3
"""How long a model takes to be ready, imports left out: with an empty cache of converted models,
and with a filled one. Each is a process of its own; the least of several counts.

    python scripts/measure_start.py MODEL... [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

_READY = """
import sys, time
import safetensors.torch
import llmzip.exact.fused
from llmzip import models
from llmzip import inference
import llmzip.exact.certify
try:
    import gguf
except ImportError:
    pass
start = time.perf_counter()
files = models.load(sys.argv[1], exact=True)
loaded = time.perf_counter()
context = inference.default_context(files)
inference.build(files, activations="a8", context=context)
print(loaded - start, time.perf_counter() - loaded)
"""


def ready(model: str, cache: str) -> tuple[float, float]:
    """Seconds to load and to build."""
    done = subprocess.run(
        [sys.executable, "-c", _READY, model],
        env={**os.environ, "LLMZIP_CACHE": cache},
        stdout=subprocess.PIPE,
        check=True,
    )
    load, build = map(float, done.stdout.split())
    return load, build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    print("model, cache: seconds to load + to build")
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as kept:
            for state in ("empty", "filled"):
                times = []
                for _ in range(arguments.repeat):
                    if state == "filled":
                        times.append(ready(model, kept))
                    else:
                        with tempfile.TemporaryDirectory() as nothing:
                            times.append(ready(model, nothing))
                load, build = min(times, key=sum)
                print(f"{model}, {state}: {load:.2f} + {build:.2f} = {load + build:.2f} s")
                ready(model, kept)  # fills it


if __name__ == "__main__":
    main()
