"""Figures of one style, by matplotlib: of a benchmark's report, and of what scripts measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmzip.bench.report import summary
from llmzip.output import writing


def panels(count: int, width: float = 5.5) -> tuple[Any, list[Any]]:
    """A figure and its `count` axes, side by side, with bits per byte upwards."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(width * count, 5), squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
        one.set_ylabel("bits per byte")
    return figure, list(axes[0])


def label_points(axes: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Draw points (x, y, label), x on a logarithmic scale."""
    for x, y, label in points:
        axes.scatter(x, y)
        axes.annotate(label, (x, y), fontsize=8, xytext=(4, 4), textcoords="offset points")
    axes.set_xscale("log")
    axes.margins(x=0.25)


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format of the file's extension, PNG if there is none."""
    figure.tight_layout()
    with writing(path, overwrite=True) as sink:
        figure.savefig(sink, dpi=110, format=path.suffix.lstrip(".") or "png")


def plot(report: dict[str, Any], path: Path) -> None:
    """Bits per byte by category, and against decoding speed over all files. Needs matplotlib."""
    found = summary(report)
    categories = list(dict.fromkeys(row["category"] for row in found))
    codecs = list(dict.fromkeys(row["codec"] for row in found))
    figure, (left, right) = panels(2, 7)
    colours = {c: f"C{i}" for i, c in enumerate(codecs)}
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
    label_points(
        right,
        [
            (row["decode_mb_s"], row["bits_per_byte"], row["codec"])
            for row in found
            if row["category"] == last
        ],
    )
    right.set_xlabel("MB/s, decoding")
    right.set_ylabel(f"bits per byte, all bytes of {last or 'the files'}")
    save(figure, path)
