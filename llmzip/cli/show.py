"""list, info, doctor: describe archives and this machine."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any, BinaryIO

from llmzip.archive import container
from llmzip.archive.frame_header import CHECKSUM_BYTES
from llmzip.archive.header import VERSION, Header
from llmzip.cli.inputs import CountingStream, attempt, expand, reading_only
from llmzip.cli.options import options_of, set_threads
from llmzip.coding.frame import LZMA, MODEL, RAW, SMALL, ZSTD, Frame

if TYPE_CHECKING:
    from llmzip.archive.options import Options

_KINDS = {
    RAW: "raw",
    ZSTD: "zstd",
    MODEL: "model",
    LZMA: "lzma",
}
_FIRST = 16  # tokens of each frame, with little context, whose cost is shown separately


def info(arguments: argparse.Namespace) -> int:
    """The command `info`; returns the exit code."""
    set_threads(arguments.threads)
    found, failed = _described(arguments, options_of(arguments) if arguments.costs else None)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        for entry in found:
            _print_info(entry)
    return int(failed)


def list_archives(arguments: argparse.Namespace) -> int:
    """The command `list`; returns the exit code."""
    found, failed = _described(arguments)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return int(failed)
    print(f"{'compressed':>14} {'content':>14}  bits/byte  name")
    rows = [(e["archive_bytes"], e["content_bytes"], e["file"] + _primes(e)) for e in found]
    if len(rows) > 1:
        rows.append((sum(r[0] for r in rows), sum(r[1] for r in rows), "(all)"))
    for small, large, name in rows:
        print(f"{small:14,} {large:14,} {8 * small / max(1, large):10.3f}  {name}")
    return int(failed)


def _described(
    arguments: argparse.Namespace, options: Options | None = None
) -> tuple[list[dict[str, Any]], bool]:
    """Descriptions of the archives that can be read, and whether one cannot."""
    found: list[dict[str, Any]] = []

    def describe_one(name: str) -> None:
        with reading_only(name) as source:
            found.append({"file": name, **describe(source, options)})

    names = expand(arguments.files, arguments.recursive, archives=True)
    failed = [attempt(name, describe_one) for name in names]
    return found, any(failed)


def _print_info(entry: dict[str, Any]) -> None:
    archives = entry["archives"]
    frames = [frame for archive in archives for frame in archive["frames"]]
    kinds = (f"{sum(f['kind'] == kind for f in frames)} {kind}" for kind in _KINDS.values())
    count = "" if len(archives) == 1 else f" ({len(archives)} concatenated)"
    print(f"{entry['file']}: llmzip archive{count}, format {entry['format']}")
    print(f"  content   {entry['content_bytes']:,} bytes")
    print(f"  archive   {entry['archive_bytes']:,} bytes, {entry['bits_per_byte']:.4f} b/B")
    for model in dict.fromkeys(_model_line(archive["model"]) for archive in archives):
        print(f"  model     {model}")
    print(f"  frames    {len(frames)} ({', '.join(kinds)})")
    if all(f["tokens"] is not None for f in frames):
        print(f"  tokens    {sum(f['tokens'] for f in frames):,}")
    spent = (f"{name} {size:,}" for name, size in entry["spent_bytes"].items() if size)
    print(f"  bytes     {', '.join(spent)}")
    if "costs" in entry:
        _print_costs(entry)


def _model_line(model: dict[str, Any] | None) -> str:
    if model is None:
        return "none"
    name = model["name"] or "unknown"  # which may hold codes for the terminal
    line = f"{name if name.isprintable() else repr(name)} ({model['digest']}…)"
    prime = f", prime {model['prime']}…" if model["prime"] else ""
    if model["defaults"]:
        return f"{line}, with its defaults{prime}"
    context = f"context {model['window']}, overlap {model['overlap']}"
    return f"{line}, {model['activations']}, {context}{prime}"


def _primes(entry: dict[str, Any]) -> str:
    models = (archive["model"] for archive in entry["archives"])
    needed = dict.fromkeys(model["prime"] for model in models if model and model["prime"])
    return f"  (needs --prime {', '.join(f'{digest}…' for digest in needed)})" if needed else ""


def _print_costs(entry: dict[str, Any]) -> None:
    costs = entry["costs"]
    size = max(1, entry["content_bytes"])
    print("  of the payload, in bytes (bits per byte of content):")
    for name, label in (
        ("model", "language model alone"),
        ("first_tokens", f"  its first {_FIRST} tokens"),
        ("mixing", "change by the mixing"),
        ("stored", "stored frames"),
        ("coder", "entropy coder beyond −log2 p"),
    ):
        print(f"    {label:<30}{costs[name] / 8:+12,.1f}  ({costs[name] / size:+.4f})")


def describe(source: BinaryIO, options: Options | None = None) -> dict[str, Any]:
    """The structure of concatenated archives, for JSON.

    With `options`, the payloads are decoded, and "costs" has the bits that each part takes. Raises
    LlmzipError.
    """
    counted = CountingStream(source)
    reader = container.Reader(counted)  # type: ignore[arg-type]
    decoder = None if options is None else _Costs(options)
    archives: list[dict[str, Any]] = []
    spent = {"headers": 0, "frame fields": 0, "checks": 0, "payloads": 0, "trailers": 0}
    while (frame := reader.next_frame()) is not None:
        if reader.archive.number == len(archives):
            archives.append({"model": _describe_model(reader.archive.header), "frames": []})
            spent["headers"] += len(reader.archive.header.data)
        archives[-1]["frames"].append(
            {
                "kind": _KINDS[frame.kind],
                "content_bytes": frame.content_length,
                "payload_bytes": len(frame.payload),
                "tokens": frame.tokens if frame.tokens or frame.kind != MODEL else None,
                "streams": frame.streams,
            }
        )
        spent["payloads"] += len(frame.payload)
        spent["checks"] += CHECKSUM_BYTES * (1 + (frame.content_length > SMALL))
        spent["frame fields"] += len(reader.fields)
        if decoder is None:
            reader.skip(frame)
        else:
            reader.verify(frame, decoder.add(frame, reader.archive.header))
    for archive in archives:
        frames = archive["frames"]
        length = sum(frame["content_bytes"] for frame in frames)
        if container.has_trailer(length, len(frames)):
            spent["trailers"] += container.TRAILER_BYTES
    found = {
        "format": VERSION,
        "content_bytes": reader.offset,
        "archive_bytes": counted.count,
        "bits_per_byte": 8 * counted.count / max(1, reader.offset),
        "archives": archives,
        "spent_bytes": spent,
    }
    return found if decoder is None else {**found, "costs": decoder.bits}


def _describe_model(header: Header) -> dict[str, Any] | None:
    from llmzip import models
    from llmzip.archive.codecs import PROFILES
    from llmzip.archive.options import MIXINGS

    model = header.model
    if model is None:
        return None
    fields = None if header.short else model  # a short header has no more than a digest
    return {
        "name": model.name
        or models.embedded_with_digest(model.digest_start)
        or models.installed_with_digest(model.digest_start),
        "digest": model.digest_start.hex(),
        "defaults": header.short,
        "profile": fields and fields.profile,
        "activations": fields and PROFILES.get(fields.profile & 15),
        "mixing": fields and dict(enumerate(MIXINGS)).get(fields.profile >> 4),
        "window": fields and fields.window,
        "overlap": fields and fields.overlap,
        "prime": model.prime.hex() or None,
    }


class _Costs:
    """Decodes frames and adds up the bits that their parts take."""

    def __init__(self, options: Options) -> None:
        from llmzip.archive.frame_reader import FrameReader

        self._frames = FrameReader(options, lambda *_: None)
        names = ("model", "first_tokens", "mixing", "stored", "coder")
        self.bits = dict.fromkeys(names, 0.0)

    def add(self, frame: Frame, header: Header) -> bytes:
        """Count a frame; returns its content. Raises LlmzipError."""
        content = self._frames.content(frame, header)
        coded = 8.0 * len(frame.payload)
        if frame.kind != MODEL:
            self.bits["stored"] += coded
            return content
        _, mixed = self._frames.costs(frame, header, content)
        _, alone = self._frames.costs(frame, header, content, mixing=False)
        self.bits["model"] += float(alone.sum())
        self.bits["first_tokens"] += float(alone[:_FIRST].sum())
        self.bits["mixing"] += float(mixed.sum() - alone.sum())
        self.bits["coder"] += coded - float(mixed.sum())
        return content


def doctor(arguments: argparse.Namespace) -> int:
    """The command `doctor`; returns the exit code."""
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
