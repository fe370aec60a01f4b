"""What the sweeps share: one shape of JSON, plots that look alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmzip.archive.options import Options
from llmzip.bench import circumstances


def write(path: Path, sweep: str, results: list[dict[str, Any]], model: str, **more: Any) -> None:
    """Every sweep: circumstances, its name, `results` with bits_per_byte each, and what follows."""
    report = {**circumstances(Options(model=model)), "sweep": sweep, "results": results, **more}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


def panels(count: int) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(5.5 * count, 4.5), squeeze=False)
    for one in axes[0]:
        one.spines[["top", "right"]].set_visible(False)
        one.set_ylabel("bits per byte")
    return figure, list(axes[0])


def save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)
