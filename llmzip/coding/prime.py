"""A text that comes before every frame, and a way to learn it → the state that mixing begins with.

The state is kept, so that many short frames copy it instead of learning the text again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from llmzip.mixing.level import Level
from llmzip.mixing.state import State, copy_state, new_state, spread_history, state_sizes


class Prime:
    """The text of a prime; what it leaves behind in mixing is kept for the sizes used last."""

    def __init__(
        self, text: bytes, learn: Callable[[State], None], level: Level | None = None
    ) -> None:
        """`learn` codes the text in the first stream of a state of a level."""
        self.text, self._learn, self._level = text, learn, level
        self._kept: tuple[object, State] | None = None
        self._lock = threading.Lock()

    def state(self, streams: int, length: int) -> State:
        """For a frame of `length` bytes in S streams: a copy, for the caller to change. Threads
        that want the same at once wait for one of them to learn it."""
        key = (streams, state_sizes(streams, length, len(self.text)))
        with self._lock:
            kept = self._kept
            if kept is None or kept[0] != key:
                state = new_state(streams, length, level=self._level, prime=len(self.text))
                self._learn(state)
                spread_history(state[0])
                self._kept = kept = key, state
        return copy_state(kept[1])
