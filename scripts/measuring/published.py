"""Figures that others publish. Nothing here ran their programs.

ts_zip: https://bellard.org/ts_zip/. Nacrith: arXiv 2602.19626. cmix:
https://www.byronknoll.com/cmix.html, and its speed as users report it.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Published(NamedTuple):
    """Bits per byte of two texts, and KB/s on the machines of the authors, slowest and fastest."""

    name: str
    alice29: float
    book1: float | None
    slowest: float
    fastest: float


PUBLISHED = (
    Published("ts_zip, RWKV-169M, closed, RTX 4090", 1.142, 1.431, 1000, 1000),
    Published("Nacrith, SmolLM2-135M in float, GPU", 0.918, None, 0.1, 3),
    Published("cmix v21", 1.63, 1.82, 1, 2),
)

ZPAQ_FIXED = 1015  # bytes that zpaq -m5 spends on any archive


def net(report: dict[str, Any]) -> dict[str, Any]:
    """A copy of a report whose results of zpaq are less what it spends on any archive."""
    results = [dict(r) for r in report["results"]]
    for r in results:
        if r["codec"].startswith("zpaq"):
            r["codec"] += ", net"
            r["compressed_bytes"] -= ZPAQ_FIXED
            r["bits_per_byte"] -= 8 * ZPAQ_FIXED / r["bytes"]
    return {**report, "results": results}
