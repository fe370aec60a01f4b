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


Published = tuple[str, float, float, float]  # name, bits per byte, KB/s from … to
Panel = tuple[str, dict[str, Series]]  # the label of the x axis, series by name

_NAME_WIDTH, _NAME_HEIGHT = 150, 16  # of a name beside a point, pixels


def chart(path: Path, *panels: Panel, log: bool = False, label: str = "bits per byte") -> None:
    """Draw panels side by side, `label` upwards, x on a logarithmic scale if `log`; each series is
    named at its last point.

    The format is that of the file's extension, PNG if there is none. Raises OSError, and
    ImportError without matplotlib.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, len(panels), figsize=(6 * len(panels), 5), squeeze=False)
    for ax, (title, series) in zip(axes[0], panels, strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        ax.set(xlabel=title, ylabel=label)
        if log:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter("")
        for i, (name, (x, y, style)) in enumerate(series.items()):
            ax.plot(x, y, style, label=name, color=pyplot.get_cmap("tab10")(i % 10), ms=4, lw=1)
        if any(series):  # names other than "": they need room
            low, high = ax.get_xlim()
            ax.set_xlim(right=high * (high / low) ** 0.3 if log else high + 0.3 * (high - low))
            _name_ends(ax)
    _save(figure, path)


def _name_ends(ax: Any) -> None:
    """Write the names of lines to the right of their last points, one above the other where points
    are side by side."""

    def pixels(line: Any) -> tuple[float, float]:
        x, y = ax.transData.transform(line.get_xydata()[-1])
        return float(x), float(y)

    written: list[tuple[float, float]] = []
    for line in sorted(ax.get_lines(), key=lambda line: pixels(line)[1]):
        x, y = pixels(line)
        height = y
        for other_x, other_y in written:
            if abs(other_x - x) < _NAME_WIDTH and height < other_y + _NAME_HEIGHT:
                height = other_y + _NAME_HEIGHT
        written.append((x, height))
        points_up = (height - y) * 72 / ax.figure.dpi
        ax.annotate(line.get_label(), line.get_xydata()[-1], (6, points_up - 3),
                    textcoords="offset points", fontsize=9, color=line.get_color())  # fmt: skip


def plot(
    report: dict[str, Any], path: Path, text: str = "", published: Sequence[Published] = ()
) -> None:
    """Draw a benchmark: bits per byte of all bytes by decoding speed of each codec, named at its
    point; down and to the right is better. Codecs at one place share a name. `text` says what was
    compressed; figures that others have published are hollow.

    Raises OSError, and ImportError without matplotlib.
    """
    pyplot = _pyplot()
    rows = summary(report)
    rows = [row for row in rows if row["category"] == rows[-1]["category"]]
    places: dict[tuple[float, float], list[str]] = {}
    for row in sorted(rows, key=lambda row: -len(row["codec"])):
        x, y = 1000 * row["decode_mb_s"], row["bits_per_byte"]
        near = [at for at in places if abs(at[1] - y) < 0.02 and 0.5 < at[0] / x < 2]
        places.setdefault(near[0] if near else (x, y), []).append(row["codec"])
    figure, ax = pyplot.subplots(figsize=(8, 4.2))
    height = max(y for _, y in places) - min(y for _, y in places)
    for (x, y), names in places.items():
        own = any(name.startswith("llmzip") for name in names)
        # another point would be in the name
        left = any(x < at[0] < 30 * x and abs(at[1] - y) < 0.06 * height for at in places)
        ax.plot(x, y, "o", color="tab:red" if own else "tab:gray")
        ax.annotate(", ".join(sorted(names)), (x, y), (-6 if left else 6, 5),
                    textcoords="offset points", ha="right" if left else "left",
                    fontsize=9, color="tab:red" if own else "black")  # fmt: skip
    for name, bits, slowest, fastest in published:
        ax.plot([slowest, fastest], [bits, bits], "o-", color="tab:gray", mfc="white", lw=1)
        ax.annotate(f"{name} (published)", (fastest, bits), (6, -12), textcoords="offset points",
                    ha="left" if slowest == fastest else "right",
                    fontsize=9, color="tab:gray")  # fmt: skip
    text = text or f"{rows[0]['bytes'] / 1e6:,.1f} MB"
    ax.set(xscale="log", xlabel="KB/s, decompressing", ylabel=f"bits per byte of {text}")
    ax.margins(x=0.12, y=0.12)
    ax.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _pyplot() -> Any:
    """Without a screen. Raises ImportError without matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    with writing(path, overwrite=True) as sink:
        figure.savefig(sink, dpi=110, format=path.suffix.lstrip(".") or "png")
    _pyplot().close(figure)
