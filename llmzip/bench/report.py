"""A report → summary by category, Markdown, CSV, plot. Knows nothing of how it was measured."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from llmzip.output import writing

_ALL = "all"
_FIELDS = ("category", "file", "codec", "bytes", "compressed_bytes", "bits_per_byte", "ratio",
           "model_bytes", "bits_per_byte_with_model", "encode_mb_s", "decode_mb_s",
           "encode_peak_mb", "decode_peak_mb", "encode_j_mb", "decode_j_mb", "restored",
           "sha256")  # fmt: skip


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a result, with all that follows from it; None where it is not known."""
    found = []
    for result in report["results"]:
        row = {name: result.get(name) for name in _FIELDS}
        size, small = result["bytes"], result.get("compressed_bytes")
        if small is not None:
            row["ratio"] = size / max(1, small)
            counted = small + result.get("model_bytes", 0)
            row["bits_per_byte_with_model"] = 8 * counted / max(1, size)
        for way in ("encode", "decode"):
            seconds, joules = result.get(f"{way}_seconds"), result.get(f"{way}_joules")
            peak = result.get(f"{way}_peak_bytes")
            row[f"{way}_mb_s"] = size / 1e6 / seconds if seconds else None
            row[f"{way}_peak_mb"] = peak / 1e6 if peak else None
            row[f"{way}_j_mb"] = joules / (size / 1e6) if joules is not None and size else None
        found.append(row)
    return found


def summary(report: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each category and codec, and for all files: bits per byte as the mean of files
    and of all bytes together, there with the model counted once; speed by all seconds, the largest
    peak. Of failed round trips there is none."""
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
        for way in ("encode", "decode"):
            joules: list[Any] = [m.get(f"{way}_joules") for m in members]
            peaks: list[Any] = [m.get(f"{way}_peak_bytes") for m in members]
            row[f"{way}_mb_s"] = size / 1e6 / sum(m[f"{way}_seconds"] for m in members)
            row[f"{way}_peak_mb"] = None if None in peaks else max(peaks) / 1e6
            row[f"{way}_j_mb"] = None if None in joules else sum(joules) / (size / 1e6)
        found.append(row)
    return found


def csv_of(report: dict[str, Any]) -> str:
    """A line a result; cells that are not known are empty."""
    sink = io.StringIO()
    writer = csv.DictWriter(sink, _FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows(report))
    return sink.getvalue()


def table(report: dict[str, Any]) -> str:
    """A report as a Markdown table: bits per byte of each file, and llmzip's MB/s."""
    files: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for result in report["results"]:
        key = result.get("category", ""), result["file"]
        files.setdefault(key, {})[result["codec"]] = result
    codecs = list(next(iter(files.values())))
    own = codecs[0]
    lines = [
        "| file | bytes | " + " | ".join(codecs) + f" | {own.split()[0]}, MB/s |",
        "| --- | ---: |" + " ---: |" * (len(codecs) + 1),
    ]
    for (_, name), by_codec in files.items():
        cells = [_bits(result) for result in by_codec.values()]
        first = by_codec[own]
        speeds = (first["bytes"] / 1e6 / first[f"{way}_seconds"] for way in ("encode", "decode"))
        cells.append(" / ".join(f"{speed:.3f}" for speed in speeds))
        lines.append(f"| {name} | {first['bytes']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _bits(result: dict[str, Any]) -> str:
    if "error" in result:
        return "failed"
    return f"{result['bits_per_byte']:.3f}" if result["restored"] else "NOT RESTORED"


def summary_table(report: dict[str, Any]) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| category | codec | files | bits per byte, mean of files | of all bytes "
        "| with the model | MB/s | peak MB | J/MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in summary(report):
        bits = (row["mean_bits_per_byte"], row["bits_per_byte"], row["bits_per_byte_with_model"])
        cells = [row["category"], row["codec"], str(row["files"]), *(f"{b:.3f}" for b in bits)]
        for name, digits in (("mb_s", 3), ("peak_mb", 0), ("j_mb", 2)):
            values = [row[f"{way}_{name}"] for way in ("encode", "decode")]
            known = (f"{value:.{digits}f}" if value is not None else "" for value in values)
            cells.append(" / ".join(known) if any(v is not None for v in values) else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def markdown(report: dict[str, Any]) -> str:
    """Both tables, and where they are from."""
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


def plot(report: dict[str, Any], path: Path) -> None:
    """Bits per byte by category, and against decoding speed over all files. Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = summary(report)
    categories = list(dict.fromkeys(row["category"] for row in found))
    codecs = list(dict.fromkeys(row["codec"] for row in found))
    colours = {c: pyplot.get_cmap("tab20")(i % 20) for i, c in enumerate(codecs)}
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 5), width_ratios=(3, 2))
    width = 0.85 / len(codecs)
    for i, codec in enumerate(codecs):
        mine = {
            row["category"]: row["mean_bits_per_byte"] for row in found if row["codec"] == codec
        }
        places = [categories.index(c) + (i - (len(codecs) - 1) / 2) * width for c in mine]
        left.bar(places, list(mine.values()), width, color=colours[codec], label=codec)
    left.set_xticks(range(len(categories)), [c or "files" for c in categories])
    left.set_ylabel("bits per byte, mean of files")
    left.legend(fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1), frameon=False)
    last = categories[-1]
    for row in found:
        if row["category"] == last:
            right.scatter(row["decode_mb_s"], row["bits_per_byte"], color=colours[row["codec"]])
            right.annotate(row["codec"], (row["decode_mb_s"], row["bits_per_byte"]), fontsize=8,
                           xytext=(4, 4), textcoords="offset points")  # fmt: skip
    right.set_xscale("log")
    right.margins(x=0.25)
    right.set_xlabel("MB/s, decoding")
    right.set_ylabel(f"bits per byte, all bytes of {last or 'the files'}")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with writing(path, overwrite=True) as sink:
        figure.savefig(sink, dpi=110, format=path.suffix.lstrip(".") or "png")
    pyplot.close(figure)
