"""A report → summary by category, Markdown, CSV. Knows nothing of how it was measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any

DIRECTIONS = ("encode", "decode")
_ALL = "all"
_FIELDS = ("category", "file", "codec", "bytes", "compressed_bytes", "bits_per_byte", "ratio",
           "model_bytes", "bits_per_byte_with_model", "encode_mb_s", "decode_mb_s",
           "encode_peak_mb", "decode_peak_mb", "encode_j_mb", "decode_j_mb", "restored",
           "sha256")  # fmt: skip


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each result, with the figures that follow from it; None where unknown."""
    found = []
    for result in report["results"]:
        row = {name: result.get(name) for name in _FIELDS}
        size, small = result["bytes"], result.get("compressed_bytes")
        if small is not None:
            row["ratio"] = size / max(1, small)
            counted = small + result.get("model_bytes", 0)
            row["bits_per_byte_with_model"] = 8 * counted / max(1, size)
        for way in DIRECTIONS:
            seconds, joules = result.get(f"{way}_seconds"), result.get(f"{way}_joules")
            peak = result.get(f"{way}_peak_bytes")
            row[f"{way}_mb_s"] = size / 1e6 / seconds if seconds else None
            row[f"{way}_peak_mb"] = peak / 1e6 if peak else None
            row[f"{way}_j_mb"] = joules / (size / 1e6) if joules is not None and size else None
        found.append(row)
    return found


def summary(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each category and codec, and for all files together.

    Bits per byte are the mean of files, and of all bytes together, also with the model counted
    once. Speed is by the sum of seconds, memory the largest peak. There is no row for a codec that
    failed to restore a file.
    """
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in report["results"]:
        groups.setdefault((result.get("category", ""), result["codec"]), []).append(result)
    if len({category for category, _ in groups}) > 1:
        for result in report["results"]:
            groups.setdefault((_ALL, result["codec"]), []).append(result)
    found = []
    for (category, codec), members in groups.items():
        if not all(member["restored"] for member in members):
            continue
        size = max(1, sum(member["bytes"] for member in members))
        small = sum(member["compressed_bytes"] for member in members)
        model = members[0].get("model_bytes", 0)
        row: dict[str, Any] = {
            "category": category,
            "codec": codec,
            "files": len(members),
            "bytes": size,
            "compressed_bytes": small,
            "mean_bits_per_byte": sum(m["bits_per_byte"] for m in members) / len(members),
            "bits_per_byte": 8 * small / size,
            "model_bytes": model,
            "bits_per_byte_with_model": 8 * (small + model) / size,
        }
        for way in DIRECTIONS:
            joules: list[Any] = [m.get(f"{way}_joules") for m in members]
            peaks: list[Any] = [m.get(f"{way}_peak_bytes") for m in members]
            row[f"{way}_mb_s"] = size / 1e6 / sum(m[f"{way}_seconds"] for m in members)
            row[f"{way}_peak_mb"] = None if None in peaks else max(peaks) / 1e6
            row[f"{way}_j_mb"] = None if None in joules else sum(joules) / (size / 1e6)
        found.append(row)
    return found


def csv_of(report: dict[str, Any]) -> str:
    """A report as CSV, a line for each result; unknown cells are empty."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, _FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(report))
    return sink.getvalue()


def markdown_table(heads: str, rows: Iterable[Iterable[str]], texts: int = 1) -> list[str]:
    """The lines of a Markdown table. `heads` are separated by "|"; the first `texts` columns are
    aligned to the left, the others to the right."""
    names = [name.strip() for name in heads.split("|")]
    rule = ["---"] * texts + ["---:"] * (len(names) - texts)
    return [f"| {' | '.join(cells)} |" for cells in (names, rule, *rows)]


def pair(row: dict[str, Any], name: str, form: str) -> str:
    """ "encoding / decoding" of a row's figure, such as mb_s; unknown ones are left out."""
    values = [row[f"{way}_{name}"] for way in DIRECTIONS]
    known = (format(value, form) if value is not None else "" for value in values)
    return " / ".join(known) if any(value is not None for value in values) else ""


def table(report: dict[str, Any]) -> str:
    """A report as a Markdown table: bits per byte of each file, and llmzip's MB/s."""
    files: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for result in report["results"]:
        key = result.get("category", ""), result["file"]
        files.setdefault(key, {})[result["codec"]] = result
    codecs = list(next(iter(files.values())))
    own = codecs[0]
    lines = []
    for (_, name), by_codec in files.items():
        first = by_codec[own]
        speeds = {f"{way}_mb_s": first["bytes"] / 1e6 / first[f"{way}_seconds"]
                  for way in DIRECTIONS}  # fmt: skip
        bits = map(_bits, by_codec.values())
        lines.append([name, f"{first['bytes']:,}", *bits, pair(speeds, "mb_s", ".3f")])
    heads = f"file | bytes | {' | '.join(codecs)} | {own.split()[0]}, MB/s"
    return "\n".join(markdown_table(heads, lines))


def _bits(result: dict[str, Any]) -> str:
    if "error" in result:
        return "failed"
    return f"{result['bits_per_byte']:.3f}" if result["restored"] else "NOT RESTORED"


def summary_table(report: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    heads = "category | codec | files | bits per byte, mean of files | of all bytes "
    heads += "| with the model | MB/s | peak MB | J/MB"
    bits = ("mean_bits_per_byte", "bits_per_byte", "bits_per_byte_with_model")
    lines = (
        [row["category"], row["codec"], str(row["files"]), *(f"{row[key]:.3f}" for key in bits),
         pair(row, "mb_s", ".3f"), pair(row, "peak_mb", ".0f"), pair(row, "j_mb", ".2f")]
        for row in summary(report)
    )  # fmt: skip
    return "\n".join(markdown_table(heads, lines, 2))


def markdown(report: dict[str, Any]) -> str:
    """Both tables, models, machine and command as a Markdown page."""
    machine = report["machine"]
    models = "; ".join(
        f"`{m['name']}`: {m['bytes']:,} bytes, {m['parameters']:,} parameters"
        for m in report["models"]
    )
    return (
        f"# Benchmark\n\nBits per byte of each file; MB/s, peak memory of the whole process and "
        f"J/MB are encoding / decoding.\n\n{table(report)}\n\n{summary_table(report)}\n\n"
        f"{models}.\n\n{machine['processor']}, {machine['threads']} threads, {report['date']}, "
        f"commit {report['commit']}, medians of {report['repeat']} runs: `{report['command']}`\n"
    )
