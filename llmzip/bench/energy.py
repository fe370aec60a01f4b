"""Energy in joules by the machine's own counters: RAPL for processors, NVML for a GPU.

The counters include whatever else the machine does meanwhile. Without them there is no figure.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")
_MOST_WATTS = 1000  # of a package: a bound on how soon its counter wraps around


class Meter:
    """Energy between `start` and `joules`, of processors and, for a CUDA device, of the GPU."""

    def __init__(self, device: str) -> None:
        """`device`: "cpu", "cuda" or "cuda:N"."""
        self._packages = [
            folder for folder in sorted(_RAPL.glob("intel-rapl:*")) if folder.name.count(":") == 1
        ]
        self._gpu = _gpu(device) if device.startswith("cuda") else None
        self._needs_gpu = device.startswith("cuda")

    def start(self) -> None:
        """Begin a measurement."""
        self._begin, self._before = time.perf_counter(), self._read()

    def joules(self) -> float | None:
        """Joules since `start`; None if a counter is missing or may have wrapped more than once."""
        seconds, after = time.perf_counter() - self._begin, self._read()
        if self._before is None or after is None:
            return None
        total = 0.0
        for (before, _), (now, span) in zip(self._before, after, strict=True):
            if span and seconds * _MOST_WATTS > span:
                return None
            total += now - before if now >= before else now - before + span
        return total

    def _read(self) -> list[tuple[float, float]] | None:
        """(joules, where the counter wraps around or 0) of each package and GPU."""
        if not self._packages or (self._needs_gpu and self._gpu is None):
            return None
        try:
            found = [
                tuple(int((folder / name).read_text()) / 1e6
                      for name in ("energy_uj", "max_energy_range_uj"))
                for folder in self._packages
            ]  # fmt: skip
            if self._gpu is not None:
                import pynvml

                found.append((pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu) / 1e3, 0.0))
        except Exception:  # no permission, or NVML's own
            return None
        return found  # type: ignore[return-value]


def _gpu(device: str) -> Any:
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2] or 0))
    except Exception:  # not installed, no driver, no such device
        return None
