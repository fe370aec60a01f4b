"""list, info, doctor: what archives and this machine are. Decodes nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any, BinaryIO

from llmzip import container
from llmzip.cli.files import Counted, attempt, expand, reading

_KINDS = {
    container.RAW: "raw",
    container.ZSTD: "zstd",
    container.MODEL: "model",
    container.LZMA: "lzma",
}


def info(arguments: argparse.Namespace) -> int:
    found, failed = _described(arguments)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for entry in found:
            _print_info(entry)
    return int(failed)


def list_archives(arguments: argparse.Namespace) -> int:
    found, failed = _described(arguments)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return int(failed)
    print(f"{'compressed':>14} {'content':>14}  bits/byte  name")
    rows = [(e["archive_bytes"], e["content_bytes"], e["file"]) for e in found]
    if len(rows) > 1:
        rows.append((sum(r[0] for r in rows), sum(r[1] for r in rows), "(all)"))
    for small, large, name in rows:
        print(f"{small:14,} {large:14,} {8 * small / max(1, large):10.3f}  {name}")
    return int(failed)


def _described(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """Of every archive that can be read, and whether one cannot."""
    found: list[dict[str, Any]] = []

    def look(name: str) -> None:
        with reading(name) as source:
            found.append({"file": name, **describe(source)})

    names = expand(arguments.files, arguments.recursive, archives=True)
    failed = [attempt(name, look) for name in names]
    return found, any(failed)


def _print_info(entry: dict[str, Any]) -> None:
    model, frames = entry["model"], entry["frames"]
    described = "none"
    if model:
        described = f"{model['name'] or 'unknown'} ({model['digest']}…), {model['activations']}"
        described += f", context {model['window']}, overlap {model['overlap']}"
    kinds = (f"{sum(f['kind'] == kind for f in frames)} {kind}" for kind in _KINDS.values())
    print(f"{entry['file']}: llmzip archive, format {entry['format']}")
    print(f"  content   {entry['content_bytes']:,} bytes")
    print(f"  archive   {entry['archive_bytes']:,} bytes, {entry['bits_per_byte']:.4f} b/B")
    print(f"  model     {described}")
    print(f"  frames    {len(frames)} ({', '.join(kinds)})")
    print(f"  tokens    {sum(f['tokens'] for f in frames):,}")


def describe(source: BinaryIO) -> dict[str, Any]:
    """The structure of an archive, its payloads undecoded. Raises LlmzipError."""
    from llmzip import models
    from llmzip.codec import PROFILES

    counted = Counted(source)
    reader = container.Reader(counted)  # type: ignore[arg-type]
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(
            {
                "kind": _KINDS[frame.kind],
                "content_bytes": frame.content_length,
                "payload_bytes": len(frame.payload),
                "tokens": frame.tokens,
                "streams": frame.streams,
            }
        )
        reader.skip(frame)
    header, model = reader.model, None
    if header is not None:
        model = {
            "name": header.name
            or models.embedded_with_digest(header.digest_start)
            or models.installed_with_digest(header.digest_start),
            "digest": header.digest_start.hex(),
            "profile": header.profile,
            "activations": PROFILES.get(header.profile & 15),
            "memory": header.profile >> 4,
            "window": header.window,
            "overlap": header.overlap,
        }
    return {
        "format": container.VERSION,
        "content_bytes": reader.offset,
        "archive_bytes": counted.count,
        "bits_per_byte": 8 * counted.count / max(1, reader.offset),
        "model": model,
        "frames": frames,
    }


def doctor(arguments: argparse.Namespace) -> int:
    from llmzip import doctor

    report = doctor.examine(arguments.device)
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        print(versions)
        print(
            f"{report['machine']}, device {report['device']}, capability "
            f"{report['capability']}, {report['threads']} threads"
        )
        for name, right in report["checks"].items():
            print(f"  {'ok     ' if right else 'DEVIATES'} {name}")
        print("this machine is exact" if report["exact"] else "THIS MACHINE DEVIATES")
    return 0 if report["exact"] else 1
