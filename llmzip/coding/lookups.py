"""Logits of many tokens → what coding needs of them: answers to encode by, rows to decode by.

On a GPU both are made there and copied while it goes on: `answers` and `rows` begin the work, and
what they return waits for it. Knows nothing of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from llmzip.errors import InexactDevice, UnsupportedModel
from llmzip.mixing.distribution import ANSWER_BITS, BLOCK, Distributions, of_rows
from llmzip.mixing.questions import SUM, answers_of, questions_of
from llmzip.mixing.vocabulary import Vocabulary

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llmzip.inference.base import Logits
    from llmzip.inference.frequencies import TokenFrequencies


class Lookups(Protocol):
    """Distributions of a vocabulary of n ranks."""

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        """How many answers each of the int32 ranks takes, int64; rank n, for padding, none."""

    def answers(
        self, logits: Logits, ranks: np.ndarray, offsets: np.ndarray, size: int
    ) -> Callable[[], np.ndarray]:
        """Logits float32 [k, V] → int64 [size], the answers of int32 ranks [k] from offsets [k]."""

    def rows(self, logits: Logits) -> Callable[[], Distributions]:
        """Logits float32 [k, V] → their distributions."""


class CpuLookups:
    """Lookups by compiled loops."""

    def __init__(self, vocabulary: Vocabulary, frequencies: TokenFrequencies) -> None:
        self._frequencies, self._questions = frequencies, questions_of(vocabulary)

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        return self._questions.counts(ranks)

    def answers(
        self, logits: Logits, ranks: np.ndarray, offsets: np.ndarray, size: int
    ) -> Callable[[], np.ndarray]:
        rows = self._frequencies.of(logits)
        found = answers_of(rows, ranks, self._questions, offsets, size)
        return lambda: found

    def rows(self, logits: Logits) -> Callable[[], Distributions]:
        found = of_rows(self._frequencies.of(logits))
        return lambda: found


class GpuLookups:
    """Lookups by Triton kernels, copied to pinned memory."""

    def __init__(self, vocabulary: Vocabulary, model_vocabulary: int, device: torch.device) -> None:
        """`model_vocabulary`: ids that the model has logits for."""
        from llmzip.inference.gpu_frequencies import GpuFrequencies

        self._device, self._questions = device, questions_of(vocabulary)
        self._frequencies = GpuFrequencies(model_vocabulary, vocabulary.ids, device)
        self._frequencies.ask(*self._questions)

    def counts(self, ranks: np.ndarray) -> np.ndarray:
        return self._questions.counts(ranks)

    def answers(
        self, logits: Any, ranks: np.ndarray, offsets: np.ndarray, size: int
    ) -> Callable[[], np.ndarray]:
        import torch

        rows = self._frequencies.rows(logits)
        answers = torch.empty(size, dtype=torch.int64, device=self._device)
        self._frequencies.answer(rows, self._moved(ranks), self._moved(offsets), answers)
        wait = self._copied(answers)
        return lambda: wait()[0]

    def rows(self, logits: Any) -> Callable[[], Distributions]:
        wait = self._copied(*self._frequencies.rows(logits))
        return lambda: of_rows(*wait())

    def require_exact(self, plain: TokenFrequencies) -> None:
        """Compare with torch's operations on the same device for a probe. Raises InexactDevice."""
        import torch

        size, vocabulary = len(self._questions.starts) - 2, plain.vocabulary
        logits = torch.arange(2 * vocabulary, device=self._device).view(2, -1) * 7919 % 4099
        logits = logits.float().mul_(1 / 256)
        ranks = np.array([size // 3, size - 1], dtype=np.int32)
        counts = self.counts(ranks)
        offsets = np.cumsum(counts) - counts
        found = self.answers(logits, ranks, offsets, int(counts.sum()))()
        given = self.rows(logits)()
        frequencies = plain.on_device(logits)
        expected = []
        for row, rank in zip(frequencies.astype(np.int64), ranks, strict=True):
            part = slice(self._questions.starts[rank], self._questions.starts[rank + 1])
            lows, highs = self._questions.low[part].tolist(), self._questions.high[part].tolist()
            for low, high in zip(lows, highs, strict=True):
                if high == SUM:
                    expected.append(int(row[:low].sum()))
                else:
                    best = low + int(row[low:high].argmax())
                    expected.append(best << ANSWER_BITS | int(row[best]))
        blocks = [
            row.reshape(-1, BLOCK) for row in np.pad(frequencies, ((0, 0), (0, -size % BLOCK)))
        ]
        right = (
            np.array_equal(given.frequencies, frequencies)
            and np.array_equal(given.sums[:, 1:], [np.cumsum(b.sum(1)) for b in blocks])
            and np.array_equal(given.most, [b.max(1) for b in blocks])
            and found.tolist() == expected
        )
        if not right:
            raise InexactDevice(f"Triton's kernels for frequencies deviate on {self._device}")

    def _moved(self, array: np.ndarray) -> Tensor:
        import torch

        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self._device.type == "cuda":
            tensor = tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor

    def _copied(self, *tensors: Tensor) -> Callable[[], list[np.ndarray]]:
        """Begin to copy; what is returned waits for the copies. Raises UnsupportedModel there, if
        a logit was not finite."""
        import torch

        sources = [*tensors, self._frequencies.failed]
        event: Any = None
        if self._device.type == "cuda":
            copies = [
                torch.empty(t.shape, dtype=t.dtype, pin_memory=True).copy_(t, non_blocking=True)
                for t in sources
            ]
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
        else:
            copies = sources

        def wait() -> list[np.ndarray]:
            if event is not None:
                event.synchronize()
            *found, failed = (copy.numpy() for copy in copies)
            if failed[0]:
                raise UnsupportedModel("the model computed a logit that is not finite")
            return found

        return wait
