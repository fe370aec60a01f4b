"""Callbacks that are told how far a frame has come."""

from __future__ import annotations

from collections.abc import Callable

# told since last told: how many bytes of content are done, and how many of the archive
Progress = Callable[[int, int], None]


def silent(content: int, coded: int) -> None:
    """No progress report."""


class Share:
    """Tells a progress callback of a frame in proportion to the work done."""

    def __init__(
        self, progress: Progress, length: int, coded: Callable[[], int] | None, payload: int = 0
    ) -> None:
        """`coded` tells the bytes of payload so far; without it they are in proportion too."""
        self._progress, self._length, self._coded, self._payload = progress, length, coded, payload
        self._told = self._told_coded = 0

    def done(self, share: float) -> None:
        reached = int(self._length * share)
        coded = self._coded() if self._coded else int(self._payload * share)
        self._progress(reached - self._told, coded - self._told_coded)
        self._told, self._told_coded = reached, coded
