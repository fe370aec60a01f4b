#!/usr/bin/env python3
"""How the length of the model's window acts on bits and speed: whole archives of a checkpoint.

    python scripts/measure_context.py MODEL TEXT... --windows 512,1024,2048 --streams 1,4

Speeds are of processor time on one core, so that other processes disturb them little.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from pathlib import Path
from typing import Any

import torch

import llmzip
from llmzip.archive.options import Options
from llmzip.bench import circumstances


def compressed(content: bytes, options: Options) -> bytes:
    sink = io.BytesIO()
    writer = llmzip.ArchiveWriter(sink, options)
    writer.write(content)
    writer.finish()
    return sink.getvalue()


def timed(work: Any) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def measure(model: str, content: bytes, window: int, overlap: int, streams: int) -> dict[str, Any]:
    options = Options(model=model, context=(window, overlap), streams=streams)
    llmzip.decompress(compressed(content[:2000], options), model=model)  # loads and compiles
    archive, encoding = timed(lambda: compressed(content, options))
    restored, decoding = timed(lambda: llmzip.decompress(archive, model=model))
    assert restored == content
    return {
        "window": window,
        "overlap": overlap,
        "streams": streams,
        "bytes": len(content),
        "bits_per_byte": 8 * len(archive) / len(content),
        "encode_kb_per_s": len(content) / 1000 / encoding,
        "decode_kb_per_s": len(content) / 1000 / decoding,
    }


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="embedded name, folder or hub id")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--bytes", type=int, default=60_000, help="of each text")
    parser.add_argument("--windows", type=numbers, default=[512, 1024, 2048, 4096])
    parser.add_argument("--streams", type=numbers, default=[4, 1])
    parser.add_argument("--overlap", type=float, default=0.5, help="as a share of the window")
    parser.add_argument("--out", type=Path, default=Path("results/context.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    name = Path(arguments.model).name
    results = report.get(name, {}).get("results", [])
    for streams in arguments.streams:
        for path in arguments.texts:
            content = path.read_bytes()[: arguments.bytes]
            for window in arguments.windows:
                overlap = int(window * arguments.overlap)
                entry = measure(arguments.model, content, window, overlap, streams)
                results.append({"text": path.name, **entry})
                print(json.dumps(results[-1]), flush=True)
                report[name] = {
                    **circumstances(Options(model=arguments.model)),
                    "results": results,
                }
                arguments.out.parent.mkdir(parents=True, exist_ok=True)
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
