"""Files → bits per byte and MB/s of llmzip beside gzip, bzip2, xz and zstd, in this process.

Nobody imports this but the command line. Every round trip is verified.
"""

from __future__ import annotations

import bz2
import datetime
import gzip
import hashlib
import importlib.metadata
import lzma
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zstandard

import llmzip
from llmzip.codec import Options

Codec = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]


def _codecs(options: Options) -> dict[str, Codec]:
    return {
        "llmzip": (
            lambda data: llmzip.compress(
                data, model=options.model, streams=options.streams, device=options.device
            ),
            lambda data: llmzip.decompress(data, model=options.model, device=options.device),
        ),
        "gzip -9": (lambda data: gzip.compress(data, 9, mtime=0), gzip.decompress),
        "bzip2 -9": (lambda data: bz2.compress(data, 9), bz2.decompress),
        "xz -9e": (
            lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
            lzma.decompress,
        ),
        "zstd -19": (
            lambda data: zstandard.ZstdCompressor(level=19).compress(data),
            lambda data: zstandard.ZstdDecompressor().decompress(data),
        ),
    }


def compare(paths: list[Path], options: Options) -> dict[str, Any]:
    """Run every codec over every file; seconds are of one run, loading not counted."""
    from tqdm import tqdm

    codecs = _codecs(options)
    llmzip.decompress(codecs["llmzip"][0](b"a text to load the model by"), model=options.model)
    results = []
    jobs = [(path, name) for path in paths for name in codecs]
    for path, name in tqdm(jobs, disable=not sys.stderr.isatty(), unit="run"):
        content = path.read_bytes()
        encode, decode = codecs[name]
        start = time.perf_counter()
        archive = encode(content)
        middle = time.perf_counter()
        restored = decode(archive)
        end = time.perf_counter()
        results.append(
            {
                "file": path.name,
                "sha256": hashlib.sha256(content).hexdigest(),
                "codec": name,
                "bytes": len(content),
                "compressed_bytes": len(archive),
                "bits_per_byte": 8 * len(archive) / max(1, len(content)),
                "encode_seconds": middle - start,
                "decode_seconds": end - middle,
                "restored": restored == content,
            }
        )
    return {**circumstances(options), "results": results}


def circumstances(options: Options) -> dict[str, Any]:
    """What a figure must name: command, commit, date, machine, versions, model."""
    import torch

    from llmzip import models

    name = options.model or models.DEFAULT
    packages = ("torch", "tokenizers", "constriction", "numpy", "zstandard")
    return {
        "command": _command(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "system": platform.system(),
        },
        "versions": {
            "llmzip": llmzip.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "model": {"name": Path(name).name, "digest": models.load(name).digest.hex()},
        "device": options.device,
        "streams": options.streams,
    }


def _command() -> str:
    """As it was typed, of paths only their last part."""
    return " ".join(Path(word).name if "/" in word else word for word in sys.argv)


def _commit() -> str | None:
    """The commit of the source tree this runs from, "+" if it was changed since."""
    folder = Path(__file__).parent
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(folder)])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if status else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def table(report: dict[str, Any]) -> str:
    """A report as a Markdown table: bits per byte, and MB/s of encoding and decoding."""
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for result in report["results"]:
        rows.setdefault(result["file"], {})[result["codec"]] = result
    codecs = list(next(iter(rows.values())))
    lines = [
        "| file | bytes | " + " | ".join(codecs) + " | llmzip, MB/s |",
        "| --- | ---: |" + " ---: |" * (len(codecs) + 1),
    ]
    for name, by_codec in rows.items():
        cells = [
            f"{r['bits_per_byte']:.3f}" if r["restored"] else "NOT RESTORED"
            for r in by_codec.values()
        ]
        own = by_codec["llmzip"]
        speeds = (own["bytes"] / 1e6 / own[f"{way}_seconds"] for way in ("encode", "decode"))
        cells.append(" / ".join(f"{speed:.3f}" for speed in speeds))
        lines.append(f"| {name} | {own['bytes']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
