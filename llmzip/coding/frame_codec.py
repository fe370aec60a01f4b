"""Content ↔ the payload of a model frame: tokens, predictor, mixing and entropy coder joined.

The parallel encoder is the same loop as the decoder's, fed by `score` instead of `step`. Knows
nothing of archives. Torch is loaded when it is needed, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from llmzip.coding.frame import MODEL, Frame
from llmzip.coding.streams import deal, gather
from llmzip.coding.symbols import Get, Known, Put, Weigh, code_step
from llmzip.coding.threads import Team
from llmzip.errors import CorruptArchive, UnsupportedArchive

if TYPE_CHECKING:
    from llmzip.inference import Predictor, Run
    from llmzip.inference.frequencies import Frequencies
    from llmzip.tokenizer import Tokens

STREAM_TOKENS = 2048  # by default no stream is shorter, unless it is the only one,
MOST_STREAMS = 256  # and there are no more than these: caches of keys and values are large
MEMORY_LIMIT = 8 << 30  # bytes for the streams of a frame, binding writers and readers

# told since last told: how many bytes of content are done, and how many of the archive
Progress = Callable[[int, int], None]


def silent(content: int, coded: int) -> None:
    """No progress report."""


class FrameCodec:
    """One model's way from content to payload and back."""

    def __init__(self, tokens: Tokens, predictor: Predictor, *, memory: bool = True) -> None:
        """Without `memory` the streams of a frame learn from nothing that they said."""
        from llmzip.inference.frequencies import SymbolLayout
        from llmzip.mixing import kinds

        self.tokens, self.predictor, self.memory = tokens, predictor, memory
        self._kinds = kinds(tokens.spellings)
        self._lengths = np.array([len(spelling or b"") for spelling in tokens.spellings])
        self.layout = SymbolLayout(predictor.vocabulary, tokens.size)

    def encode(
        self,
        content: bytes,
        streams: int | None,
        progress: Progress,
        stream_tokens: int = STREAM_TOKENS,
        *,
        short: bool = False,
    ) -> Frame:
        """A MODEL frame; `progress` is told of `content` while it is scored. If `short` and one
        stream holds it all, the frame is that of a short archive, without a number of tokens."""
        from llmzip.range_coder import Encoder

        ids = self.tokens.encode(content)
        streams = self._plan_streams(len(ids), streams, stream_tokens)
        short = short and streams == 1
        encoder = Encoder()
        report = _Share(progress, len(content), encoder.size)
        self._put_all(ids, streams, Put(encoder), report, len(content) if short else None)
        payload = encoder.payload()
        progress(0, max(0, len(payload) - encoder.size()))
        tokens = 0 if short else len(ids)
        return Frame(MODEL, len(content), payload, tokens, streams)

    def costs(
        self,
        content: bytes,
        streams: int | None,
        progress: Progress,
        stream_tokens: int = STREAM_TOKENS,
        *,
        short: bool = False,
    ) -> tuple[list[bytes], np.ndarray]:
        """What `encode` would spend: the tokens of `content`, and bits of each, float64 [n]."""
        ids = self.tokens.encode(content)
        streams = self._plan_streams(len(ids), streams, stream_tokens)
        weigh = Weigh()
        report = _Share(progress, len(content), lambda: int(weigh.total) // 8)
        self._put_all(ids, streams, weigh, report, len(content) if short and streams == 1 else None)
        table = np.zeros((-(-len(ids) // streams), streams))
        for step, (row, column) in enumerate(zip(weigh.bits[::2], weigh.bits[1::2], strict=True)):
            table[step, : len(row)] = row + column
        pieces = [self.tokens.decode(ids[i : i + 1]) for i in range(len(ids))]
        return pieces, gather(table, len(ids) - (len(table) - 1) * streams)

    def _put_all(
        self, ids: np.ndarray, streams: int, turn: Known, report: _Share, steps: int | None
    ) -> None:
        """Every id's row and column to `turn`, ids int32 [n]; `steps` is what the decoder makes
        room for, if not what it takes."""
        table, last = deal(ids, streams)
        memory = self._new_memory(streams, steps or len(table))
        if memory is not None:
            memory.recall_all(table, last)
        with Team(streams, self.predictor.cores(len(ids))) as team:
            scored = team.together(
                self._scored(
                    table[:, part], None if memory is None else memory.all_candidates[:, part]
                )
                for part in team.parts
            )
            for step, parts in enumerate(scored):
                arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
                rows, row, columns, column, known = arrays
                n = last if step == len(table) - 1 else streams
                turn.known = [column[:n], row[:n]]
                if memory is not None:
                    memory.turn_to(step)
                ids = code_step(
                    turn,
                    rows[:n],
                    lambda _, c=columns[:n]: c,  # type: ignore[misc]
                    memory,
                    known[:n],
                    self.layout.columns,
                )
                if memory is not None:
                    memory.learn(ids)
                report.done((step + 1) / len(table))

    def decode(self, frame: Frame, progress: Progress) -> bytes:
        """The content of a MODEL frame, unverified. Raises CorruptArchive where it shows."""
        from llmzip.range_coder import Decoder

        if not frame.content_length:
            return b""
        short = not frame.tokens  # then it is over when the content is, a byte a token at least
        tokens = frame.tokens or frame.content_length
        steps = -(-tokens // frame.streams)
        last = tokens - (steps - 1) * frame.streams
        memory = self.predictor.memory(frame.streams, steps)
        if frame.streams > 1 and memory > MEMORY_LIMIT:
            raise UnsupportedArchive(
                f"{frame.streams} streams at once need {memory >> 20} MiB; "
                f"the limit is {MEMORY_LIMIT >> 20} MiB"
            )
        table = np.zeros((steps, frame.streams), dtype=np.int32)
        no_candidates = np.zeros((frame.streams, 0), dtype=np.int32)
        decoder = Decoder(frame.payload)
        turn = Get(decoder, len(frame.payload), 2 * tokens)
        report = _Share(progress, frame.content_length, None, len(frame.payload))
        with Team(frame.streams, self.predictor.cores(frame.streams)) as team:
            parts = team.parts
            runs = [self.predictor.run(part.stop - part.start, steps) for part in parts]
            remembered = self._new_memory(frame.streams, steps)
            coming = team.start(self._advance, runs, [None] * len(parts))
            left, step = frame.content_length, 0
            while step < steps:
                candidates = remembered.recall() if remembered is not None else no_candidates
                weights = team.results(coming)
                n = last if step == steps - 1 else frame.streams

                def columns_of(
                    row: np.ndarray, weights: Sequence[Frequencies] = weights
                ) -> np.ndarray:
                    chosen = [w.columns(row[p]) for w, p in zip(weights, parts, strict=True)]
                    return np.concatenate(chosen)

                table[step, :n] = ids = code_step(
                    turn,
                    np.concatenate([w.rows() for w in weights])[:n],
                    columns_of,
                    remembered,
                    np.concatenate(
                        [w.of(candidates[p]) for w, p in zip(weights, parts, strict=True)]
                    )[:n],
                    self.layout.columns,
                )
                if int(ids.max()) >= self.layout.size:
                    raise CorruptArchive("the archive holds a token beyond the vocabulary")
                if short:
                    left -= int(self._lengths[ids[0]])
                    steps = steps if left > 0 else step + 1
                if step < steps - 1:  # the next step, while the memory learns from this one
                    coming = team.start(self._advance, runs, [ids[part] for part in parts])
                if remembered is not None:
                    remembered.learn(ids)
                    remembered.observe(ids)
                step += 1
                report.done(1 - max(0, left) / frame.content_length if short else step / steps)
        return self.tokens.decode(gather(table[:steps], last))

    def _new_memory(self, streams: int, steps: int) -> Memory | None:
        if not self.memory:
            return None
        return Memory(streams, steps, self.layout.columns, self._kinds)

    def _advance(self, run: Run, ids: np.ndarray | None) -> Frequencies:
        """Each stream's last id (None at the start) → weights of the next."""
        import torch

        logits = run.first() if ids is None else run.step(torch.from_numpy(self._shown(ids)))
        return self.layout.frequencies(logits)

    def _shown(self, ids: np.ndarray) -> np.ndarray:
        """What the model sees, int64: escapes, which it has no embedding for, as id 0."""
        return np.where(ids < self.layout.vocabulary, ids, 0).astype(np.int64)

    def _plan_streams(
        self, tokens: int, streams: int | None, stream_tokens: int = STREAM_TOKENS
    ) -> int:
        if streams is None:
            streams = min(MOST_STREAMS, tokens // stream_tokens)
        streams = max(1, min(streams, tokens))
        while streams > 1 and self.predictor.memory(streams, -(-tokens // streams)) > MEMORY_LIMIT:
            streams //= 2
        return streams

    def bits_per_byte(self, snippets: list[bytes]) -> float:
        """What short texts cost, each scored alone: an upper estimate for the whole."""
        from llmzip.inference import frequencies

        coded = [self.tokens.encode(snippet) for snippet in snippets]
        length = min(len(ids) for ids in coded)
        table = np.stack([ids[:length] for ids in coded], axis=1)
        size = sum(len(self.tokens.decode(ids[:length])) for ids in coded)
        bits = 0.0
        with Team(1, 1):  # a short job: not worth threads that wait for each other
            for rows, row, columns, column, _ in self._scored(table, None):
                bits += frequencies.bits(rows, columns, row, column)
        return bits / max(1, size)

    def _scored(
        self, table: np.ndarray, candidates: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """ids int32 [steps, S], candidates int32 [steps, S, K] → per step: weights of rows
        [S, R], row [S], weights of that row's columns [S, C], column [S], and weights of
        candidates [S, K]."""
        import torch

        step = 0
        if not len(table):
            return
        row, column = np.divmod(table, np.int32(self.layout.columns))
        ids = torch.from_numpy(self._shown(table.T))
        for logits in self.predictor.run(table.shape[1], len(table)).score(ids):
            count, streams = logits.shape[:2]
            weights = self.layout.frequencies(logits.reshape(count * streams, -1))
            rows = weights.rows().reshape(count, streams, -1)
            columns = weights.columns(row[step : step + count].reshape(-1))
            columns = columns.reshape(count, streams, -1)
            if candidates is None:
                known = np.zeros((count, streams, 0))
            else:
                known = candidates[step : step + count]
                known = weights.of(known.reshape(count * streams, -1))
                known = known.reshape(count, streams, -1)
            for i in range(count):
                yield rows[i], row[step], columns[i], column[step], known[i]
                step += 1


class Memory:
    """The memory of one frame: what it recalls for a step, and what it makes of the outcome."""

    def __init__(self, streams: int, steps: int, columns: int, kinds: np.ndarray) -> None:
        from llmzip.mixing import begin

        self._recall, self._mixer = begin(streams, steps, kinds)
        self._columns = columns
        shape = streams, self._recall.candidates
        self._candidates = np.zeros(shape, dtype=np.int32)
        self._evidence = np.zeros((*shape, self._recall.sources), dtype=np.uint8)

    def recall(self) -> np.ndarray:
        """Candidates for the next step, int32 [S, K]."""
        self._recall.recall(self._candidates, self._evidence)
        return self._candidates

    def observe(self, ids: np.ndarray) -> None:
        self._recall.observe(ids)

    def recall_all(self, table: np.ndarray, last: int) -> None:
        """What `recall` and `observe` would do for all steps, ids int32 [T, S]."""
        self.all_candidates, self._all_evidence = self._recall.recall_all(table, last)

    def turn_to(self, step: int) -> None:
        self._candidates = self.all_candidates[step]
        self._evidence = self._all_evidence[step]

    def weigh(self, rows: np.ndarray, known: np.ndarray) -> None:
        """Change weights of rows [n, R], given those of the candidates [n, K]."""
        from llmzip.mixing import place_in_rows

        n = len(rows)
        total = rows.sum(1)  # whole numbers below 2^53: exact
        self._weights = self._mixer.mix(self._candidates[:n], self._evidence[:n], known, total)
        place_in_rows(rows, self._candidates[:n], known, self._weights, self._columns)

    def weigh_columns(self, columns: np.ndarray, row: np.ndarray) -> None:
        """Change weights of columns [n, C] within each stream's row."""
        from llmzip.mixing import place_in_columns

        place_in_columns(columns, row, self._candidates[: len(row)], self._weights)

    def learn(self, ids: np.ndarray) -> None:
        self._mixer.learn(self._candidates[: len(ids)], self._evidence[: len(ids)], ids)


class _Share:
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
