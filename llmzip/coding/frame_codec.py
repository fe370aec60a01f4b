"""Content ↔ the payload of a model frame: tokens, predictor, mixing and entropy coder joined.

The encoder goes through the same steps as the decoder, but scores many steps at once. Knows
nothing of archives. Torch is loaded when it is needed, not before.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from llmzip.coding.frame import MODEL, Frame
from llmzip.coding.progress import Progress, Share
from llmzip.coding.scoring import Chunk, scored
from llmzip.coding.streams import Cut, deal, gather
from llmzip.coding.threads import StreamThreads, in_threads
from llmzip.errors import CorruptArchive, UnsupportedArchive

if TYPE_CHECKING:
    from llmzip.coding.lookups import Lookups
    from llmzip.coding.prime import Prime
    from llmzip.inference import Predictor, Run
    from llmzip.inference.base import Logits
    from llmzip.mixing.level import Blank
    from llmzip.mixing.state import State
    from llmzip.tokenizer import Tokens

T = TypeVar("T")
R = TypeVar("R")

MEMORY_LIMIT = 8 << 30  # bytes for the streams of a frame, binding writers and readers


class FrameCodec:
    """One model's frames."""

    def __init__(self, tokens: Tokens, predictor: Predictor, *, mixing: str = "full") -> None:
        """`mixing` is one of LEVELS; with "none", the language model alone predicts."""
        from llmzip.inference.frequencies import TokenFrequencies
        from llmzip.mixing.level import LEVELS
        from llmzip.mixing.vocabulary import Vocabulary

        self.tokens, self.predictor, self.level = tokens, predictor, LEVELS.get(mixing)
        self.vocabulary = Vocabulary(tokens.spellings)
        self._frequencies = TokenFrequencies(predictor.vocabulary, self.vocabulary.ids)
        ids = self.vocabulary.ids
        self._seen = np.where(ids < predictor.vocabulary, ids, 0).astype(np.int64)
        self._prime: Prime | None = None
        self._prefix = np.zeros(0, dtype=np.int32)  # ranks that the model sees before a stream
        self._last_primed: FrameCodec | None = None
        self._lookups: Lookups | None = None
        self._most_cores = sys.maxsize

    def primed(self, prime: bytes) -> FrameCodec:
        """The same codec, but that every frame begins as if `prime` came before it, unless it is
        b"". The codec of the last prime is kept."""
        from llmzip.coding.prime import Prime

        if not prime:
            return self
        last = self._last_primed
        if last is None or last._prime is None or last._prime.text != prime:
            last = copy(self)
            last._last_primed = None  # else each would keep the one before it
            ranks = self.ranks(prime)
            last._prime = Prime(prime, lambda state: self._learn_all(ranks, 1, state), self.level)
            last._prefix = ranks[max(0, len(ranks) - self.predictor.context.overlap) :]
            self._last_primed = last
        return last

    def without_mixing(self) -> FrameCodec:
        """The same codec, but that the language model alone predicts."""
        alone = copy(self)
        alone.level = None
        return alone

    def encode(
        self,
        content: bytes,
        cut: Cut,
        progress: Progress,
        *,
        short: bool = False,
    ) -> Frame:
        """A MODEL frame; `progress` is told of `content` while it is scored. If `short` and one
        stream holds it all, the frame is that of a short archive, without a number of tokens."""
        from llmzip.coding.token_coder import TokenEncoder
        from llmzip.range_coder import Encoder

        ranks = self.ranks(content)
        if self.predictor.on_gpu and len(ranks):
            from llmzip.coding import batches

            planned = self.plan_streams(len(ranks), cut)
            return batches.encode(self, [(content, ranks, planned)], progress, short=short)[0]
        streams = self.plan_streams(len(ranks), cut)
        short = short and streams == 1
        encoder = Encoder()
        state = self.new_state(streams, len(content))
        coder = TokenEncoder(self.vocabulary, state, mixing=self.level is not None)
        report = Share(progress, len(content), encoder.size)
        for chunk in self._known(ranks, streams):
            encoder.put_bits(*coder.code(chunk.given, 0, streams, chunk.ranks))
            report.done(chunk.share)
        payload = encoder.payload()
        progress(0, max(0, len(payload) - encoder.size()))
        tokens = 0 if short else len(ranks)
        return Frame(MODEL, len(content), payload, tokens, streams)

    def encode_together(
        self,
        contents: Sequence[bytes],
        cuts: Sequence[Cut],
        progress: Progress,
    ) -> list[Frame]:
        """`encode` of several contents, none empty, in threads or as batches of the model: the same
        frames."""
        if not self.predictor.on_gpu:
            self.lookups()  # before threads get copies, each of which would make its own
            # of as many tokens as bytes, which is the most
            streams = [cut.count(len(content)) for content, cut in zip(contents, cuts, strict=True)]
            memory = [self._memory(s, -(-len(content) // s))
                      for content, s in zip(contents, streams, strict=True)]  # fmt: skip
            return self._in_threads(
                lambda codec, item, told: codec.encode(item[0], item[1], told),
                list(zip(contents, cuts, strict=True)),
                sum(memory),
                progress,
            )
        from llmzip.coding import batches

        parts = batches.tokenised(self, contents, cuts)
        return batches.encode(self, parts, progress)

    def decode_together(self, frames: Sequence[Frame], progress: Progress) -> list[bytes]:
        """`decode` of several MODEL frames with a number of tokens, in threads or as batches of the
        model."""
        if not self.predictor.on_gpu:
            memory = sum(self._memory(*self.shape(frame)) for frame in frames)
            return self._in_threads(
                lambda codec, frame, told: codec.decode(frame, told), frames, memory, progress
            )
        from llmzip.coding import batches

        return batches.decode(self, frames, progress)

    def _in_threads(
        self,
        work: Callable[[FrameCodec, T, Progress], R],
        items: Sequence[T],
        memory: int,
        progress: Progress,
    ) -> list[R]:
        """work(codec, item, progress) for each item: as many at a time as there are cores, which
        they share; one by one, if their streams need too much `memory` in all, or the model needs
        torch, whose threads are a setting of all."""
        from llmzip.inference.base import cores

        if self.predictor.uses_torch or memory > MEMORY_LIMIT:
            return [work(self, item, progress) for item in items]
        sharing, lock = copy(self), threading.Lock()
        sharing._most_cores = max(1, cores() // len(items))

        def of(item: T, check: Callable[[], None]) -> R:
            def told(content: int, coded: int) -> None:
                check()
                with lock:
                    progress(content, coded)

            return work(sharing, item, told)

        return in_threads(of, items, min(cores(), len(items)))

    def threads(self, streams: int, rows: int, team: Any = None) -> StreamThreads:
        """Threads for streams that give the model so many rows at a time."""
        cores = 1 if team else min(self.predictor.cores(rows), self._most_cores)
        return StreamThreads(streams, cores, torch=self.predictor.uses_torch)

    def shape(self, frame: Frame) -> tuple[int, int]:
        """Streams and steps of a frame. Raises UnsupportedArchive if they need too much memory."""
        steps = -(-(frame.tokens or frame.content_length) // frame.streams)
        memory = self._memory(frame.streams, steps)
        if frame.streams > 1 and memory > MEMORY_LIMIT:
            raise UnsupportedArchive(
                f"{frame.streams} streams at once need {memory >> 20} MiB; "
                f"the limit is {MEMORY_LIMIT >> 20} MiB"
            )
        return frame.streams, steps

    def _memory(self, streams: int, steps: int) -> int:
        """Bytes that the model needs for the streams of a frame."""
        return self.predictor.memory(streams, steps + len(self._prefix))

    def lookups(self) -> Lookups:
        """Made at the first use. Raises InexactDevice."""
        if self._lookups is None:
            from llmzip.coding.lookups import CpuLookups, GpuLookups

            device = self.predictor.kernels
            if device is None:
                self._lookups = CpuLookups(self.vocabulary, self._frequencies)
            else:
                own = GpuLookups(self.vocabulary, self.predictor.vocabulary, device)
                own.require_exact(self._frequencies)
                self._lookups = own
        return self._lookups

    def costs(
        self,
        content: bytes,
        cut: Cut,
        progress: Progress,
    ) -> tuple[list[bytes], np.ndarray]:
        """What `encode` would spend: the tokens of `content`, and bits of each, float64 [n]."""
        from llmzip.coding.token_coder import TokenEncoder

        ranks = self.ranks(content)
        streams = self.plan_streams(len(ranks), cut)
        state = self.new_state(streams, len(content))
        coder = TokenEncoder(self.vocabulary, state, mixing=self.level is not None)
        spent = 0.0
        report = Share(progress, len(content), lambda: int(spent) // 8)
        table, last = deal(ranks, streams)
        costs = np.zeros(table.shape)
        place = 0
        for chunk in self._known(ranks, streams):
            for rank, given in zip(chunk.ranks, chunk.tokens(), strict=True):
                bits, probabilities = coder.code(given, place % streams, 1, rank[None])
                own = np.where(bits > 0, probabilities, 65536.0 - probabilities)
                costs.flat[place] = cost = float((16 - np.log2(own)).sum())
                place, spent = place + 1, spent + cost
            report.done(chunk.share)
        ids = self.vocabulary.ids[ranks]
        pieces = [self.tokens.decode(ids[i : i + 1]) for i in range(len(ids))]
        return pieces, gather(costs, last)

    def learn(self, content: bytes, start: Blank) -> Blank:
        """The state that `content` leaves mixing in, if it begins with `start`."""
        from llmzip.mixing.state import new_state, start_of

        ranks = self.ranks(content)
        streams = self.plan_streams(len(ranks), Cut())
        state = new_state(streams, len(content), start, level=self.level)
        self._learn_all(ranks, streams, state)
        return start_of(state)

    def _learn_all(self, ranks: np.ndarray, streams: int, state: State) -> None:
        """Code tokens for nothing but what `state` learns."""
        from llmzip.coding.token_coder import TokenEncoder

        coder = TokenEncoder(self.vocabulary, state)
        for chunk in self._known(ranks, streams):
            coder.code(chunk.given, 0, streams, chunk.ranks)

    def new_state(self, streams: int, length: int) -> State:
        """What the mixing of a frame of `length` bytes begins with."""
        from llmzip.mixing.state import new_state

        if self._prime and self.level:
            return self._prime.state(streams, length)
        return new_state(streams, length, level=self.level)

    def _known(self, ranks: np.ndarray, streams: int) -> Iterator[Chunk]:
        """What the model answers to the walks to all tokens, in the order of coding."""
        if not len(ranks):
            return
        with (
            self.predictor.team(streams, self._most_cores, known=True) as team,
            self.threads(streams, len(ranks), team) as threads,
        ):
            yield from scored(self, *deal(ranks, streams), threads, team)

    def decode(self, frame: Frame, progress: Progress) -> bytes:
        """The content of a MODEL frame, unverified. Raises CorruptArchive where it shows."""
        from llmzip.coding.token_coder import TokenDecoder

        if not frame.content_length:
            return b""
        short = not frame.tokens  # then it is over when the content is, a byte a token at least
        tokens = frame.tokens or frame.content_length
        if self.predictor.on_gpu and frame.tokens:
            return self.decode_together([frame], progress)[0]
        _, steps = self.shape(frame)
        last = tokens - (steps - 1) * frame.streams
        table = np.zeros((steps, frame.streams), dtype=np.int32)
        state = self.new_state(frame.streams, frame.content_length)
        coder = TokenDecoder(self.vocabulary, state, frame.payload, mixing=self.level is not None)
        lengths = self.vocabulary.tokens.lengths
        report = Share(progress, frame.content_length, None, len(frame.payload))
        left = frame.content_length
        with (
            self.predictor.team(frame.streams, self._most_cores) as team,
            self.threads(frame.streams, frame.streams, team) as threads,
        ):
            parts = threads.parts
            runs = [self.new_run(part.stop - part.start, steps, team) for part in parts]
            coded = [0] * len(parts)  # steps

            def take(i: int, frequencies: np.ndarray) -> np.ndarray | None:
                nonlocal left, steps
                part, step = parts[i], coded[i]
                n = part.stop - part.start
                if step == steps - 1:
                    n = max(0, min(n, last - part.start))
                ranks = coder.code(frequencies[:n], part.start, max(1, n))
                table[step, part.start : part.start + n] = ranks
                left -= int(lengths[ranks].sum())
                coded[i] += 1
                if short and not left:
                    steps = coded[i]
                if left < 0 or (not left and coded[i] < steps):
                    raise CorruptArchive("the tokens spell more than the frame holds")
                if i == len(parts) - 1:
                    report.done(1 - left / frame.content_length)
                return ranks if coded[i] < steps else None

            threads.take_turns(lambda i, ranks: self._step(runs[i], ranks), take)
        return self.text(gather(table[:steps], last))

    def new_run(self, streams: int, steps: int, team: Any = None) -> Run:
        """The model, before the first tokens of `streams` streams, whose steps a team divides."""
        prefix = self._ids(self._prefix) if len(self._prefix) else None
        return self.predictor.run(streams, steps, prefix, team)

    def _step(self, run: Run, ranks: np.ndarray | None) -> np.ndarray:
        """Each stream's last token (None at the start) → frequencies of its next, int32 [S, n]."""
        logits = run.first() if ranks is None else self.logits_after(run, ranks)
        return self._frequencies.of(logits)

    def logits_after(self, run: Run, ranks: np.ndarray) -> Logits:
        """Each stream's last token, int32 [S] → logits of its next, [S, V]."""
        return run.step(self._ids(ranks))

    def text(self, ranks: np.ndarray) -> bytes:
        """What tokens spell."""
        return self.tokens.decode(self.vocabulary.ids[ranks])

    def ranks(self, content: bytes) -> np.ndarray:
        """Content → the ranks of its tokens, int32."""
        ranks: np.ndarray = self.vocabulary.ranks[self.tokens.encode(content)]
        return ranks

    def _ids(self, ranks: np.ndarray) -> np.ndarray:
        """What the model sees, int64: escapes, which it has no embedding for, as id 0."""
        seen: np.ndarray = self._seen[ranks]
        return seen

    def plan_streams(self, tokens: int, cut: Cut) -> int:
        """Into how many streams so many tokens are cut: fewer than wanted, if memory is short."""
        streams = cut.count(tokens)
        while streams > 1 and self._memory(streams, -(-tokens // streams)) > MEMORY_LIMIT:
            streams //= 2
        return streams

    def bits_per_byte(self, snippets: list[bytes]) -> float:
        """What short texts cost the language model, each scored alone: an upper estimate for the
        whole."""
        from llmzip.inference import frequencies

        coded = [self.ranks(snippet) for snippet in snippets]
        length = min(len(ranks) for ranks in coded)
        table = np.stack([ranks[:length] for ranks in coded], axis=1)
        size = int(self.vocabulary.tokens.lengths[table].sum())
        bits, step = 0.0, 0
        with self.threads(1, 1):  # a short job: not worth threads that wait for each other
            for logits in self.scores(table):
                known = table[step : step + len(logits)].reshape(-1)
                rows = self._frequencies.of(logits.reshape(len(known), -1))
                bits += frequencies.bits(rows, known)
                step += len(logits)
        return bits / max(1, size)

    def scores(self, table: np.ndarray, team: Any = None) -> Iterator[Logits]:
        """Ranks int32 [steps, S] → logits of all of them, [some steps, S, V]."""
        if len(table):
            yield from self.new_run(table.shape[1], len(table), team).score(self._ids(table.T))
