"""Figures of one style, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llmzip.bench.report import summary
from llmzip.output import writing


class Series(NamedTuple):
    """Points (x, y) of one name, in a style of matplotlib."""

    x: Sequence[Any]
    y: Sequence[float]
    style: str = "o-"


Panel = tuple[str, dict[str, Series]]  # the label of the x axis, series by name


def chart(path: Path, *panels: Panel, log: bool = False, label: str = "bits per byte") -> None:
    """Draw panels side by side, `label` upwards, x on a logarithmic scale if `log`.

    The format is that of the file's extension, PNG if there is none. Raises OSError, and
    ImportError without matplotlib.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 5), squeeze=False)
    for ax, (title, series) in zip(axes[0], panels, strict=True):
        for i, (name, (x, y, style)) in enumerate(series.items()):
            ax.plot(x, y, style, label=name, color=pyplot.get_cmap("tab20")(i % 20), ms=4, lw=1)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(xlabel=title, ylabel=label)
        if log:
            ax.set_xscale("log")
        if any(series):  # names other than ""
            ax.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    with writing(path, overwrite=True) as sink:
        figure.savefig(sink, dpi=110, format=path.suffix.lstrip(".") or "png")
    pyplot.close(figure)


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw a benchmark: bits per byte by decoding speed of each codec, a panel a category.

    Raises OSError, and ImportError without matplotlib.
    """
    panels: dict[str, dict[str, Series]] = {}
    for row in summary(report):
        point = Series([row["decode_mb_s"]], [row["bits_per_byte"]], "o")
        panels.setdefault(f"MB/s, decoding: {row['category'] or 'files'}", {})[row["codec"]] = point
    chart(path, *panels.items(), log=True)
