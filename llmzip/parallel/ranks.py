"""Which rank of a launcher this process is, and signs of life among ranks.

Ranks may run on several machines; they meet only in a file system that they share.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from llmzip.errors import LlmzipError

_INTERVAL = 1.0  # seconds between heartbeats of a rank
_TIMEOUT = 60.0  # seconds without one until a rank counts as dead


@dataclass(frozen=True)
class Rank:
    """This process among those that share the work."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on this machine
    local_world_size: int = 1

    def device(self, device: str) -> str:
        """The torch device of this rank: a GPU of its own if "cuda" is asked for."""
        shares_cuda = self.world_size > 1 and device == "cuda"
        return f"cuda:{self.local_rank}" if shares_cuda else device


def current_rank() -> Rank:
    """The rank that torchrun or `accelerate launch` gave to this process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    try:
        return Rank(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError):
        return Rank()


class Heartbeats:
    """A context manager that writes this rank's heartbeat to a file, every second."""

    def __init__(self, folder: Path, this: Rank) -> None:
        """`folder` is common to all ranks; it is made if there are several."""
        self._folder, self._this, self._stop = folder, this, threading.Event()
        if this.world_size > 1:
            folder.mkdir(parents=True, exist_ok=True)
        self._seen: dict[int, tuple[str, float]] = {}  # by rank: last heartbeat, when it was seen

    def __enter__(self) -> Heartbeats:
        self._thread = threading.Thread(target=self._beat, daemon=True)
        if self._this.world_size > 1:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._this.world_size > 1:
            self._thread.join()
        if self._this.rank == 0:  # also what an interrupted run left
            shutil.rmtree(self._folder, ignore_errors=True)

    def _beat(self) -> None:
        while not self._stop.wait(_INTERVAL):
            with contextlib.suppress(OSError):
                (self._folder / f"{self._this.rank}").write_text(f"{time.time()}")

    def require(self, rank: int) -> None:
        """Raises LlmzipError if a rank has been silent for a minute since the first call."""
        beat = ""
        with contextlib.suppress(OSError):
            beat = (self._folder / f"{rank}").read_text()
        before, when = self._seen.get(rank, (None, 0.0))
        if beat != before:
            self._seen[rank] = beat, time.monotonic()
        elif time.monotonic() - when > _TIMEOUT:
            raise LlmzipError(
                f"rank {rank} has given no sign of life for {_TIMEOUT:.0f} s; finished frames "
                "are kept: run the same command again to go on"
            )
