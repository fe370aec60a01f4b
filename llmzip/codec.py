"""Content ↔ archive: plans frames and streams, and joins tokens, predictor and coder.

A single step, `_code_step`, drives both directions; they differ only in the object that codes.
The parallel encoder is the same loop fed by `score` instead of `step`. Knows nothing of files
and of terminals. Torch is loaded when a model is needed, not before.
"""

from __future__ import annotations

import bisect
import json
import lzma
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import zstandard

from llmzip import container
from llmzip.errors import (
    CorruptArchive,
    LlmzipError,
    TooLong,
    UnsupportedArchive,
    WrongEnvironment,
    WrongModel,
)
from llmzip.header import (
    DIGEST_START,
    LONGEST,
    Header,
    ModelHeader,
    round_length,
    write_header,
    write_short_header,
)
from llmzip.team import Team

if TYPE_CHECKING:
    from llmzip.coder import Decoder, Encoder
    from llmzip.frequencies import Weights
    from llmzip.models import ModelFiles
    from llmzip.predictor import Predictor, Run
    from llmzip.tokens import Tokens

FRAME_SIZE = 4 << 20  # bytes of content
_SHORTEST_WINDOW = 16
STREAM_TOKENS = 2048  # by default no stream is shorter, unless it is the only one,
MOST_STREAMS = 256  # and there are no more than these: caches of keys and values are large

MEMORY_LIMIT = 8 << 30  # bytes for the streams of a frame, binding writers and readers

# the header's profile, low half: which exact arithmetic, or none
PROFILES = {1: "old a8", 2: "old a16k8", 3: "old a16", 4: "plain", 5: "a8", 6: "a16"}
_MEMORIES = (0, 1, 2)  # high half: version of the memory, 0 for none; the last is written
_ACTIVATIONS = ("a8", "a16")  # that are written today

_ZSTD_LEVEL = 19
_LZMA = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": container.FRAME_LIMIT}
]
_FEW = 4096  # symbols a word: no text is so plain that a model frame reaches it
_PLAIN_RATIO = 400  # what zstd makes this much smaller needs no model
_SAMPLE = 1024  # bytes a snippet,
_SNIPPETS = 16  # by which a large frame is tried
_DENSE = 3.0  # bits a byte where it is stored: of what is smaller, the memory may make more
_HOPELESS = 1.5  # times the stored size: the whole frame would not do better

# told since last told: how many bytes of content are done, and how many of the archive
Progress = Callable[[int, int], None]


_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {  # of Options
    "model": (str, _NONE),
    "device": (str,),
    "streams": (int, _NONE),
    "stream_tokens": (int,),
    "activations": (str, _NONE),
    "context": (int, tuple, _NONE),
    "frame_size": (int,),
    "max_length": (int, _NONE),
}


@dataclass(frozen=True)
class Options:
    """How to compress, and with which model and device in either direction."""

    # embedded or installed name, folder, GGUF file, hub id; None: default, or the archive's
    model: str | None = None
    device: str = "cpu"
    streams: int | None = None  # None: by length, as follows
    stream_tokens: int = STREAM_TOKENS  # fewer make more streams of a frame: faster, larger
    activations: str | None = None  # "a8", the default, or "a16": slower, hardly more exact
    # window and overlap, or the window alone, rounded down to what a header can express;
    context: tuple[int, int] | int | None = None  # None: the model's
    frame_size: int = FRAME_SIZE
    verify: bool = False  # decode every frame before it is written
    memory: bool = True  # learn from what the frame has said so far
    same_environment: bool = False  # plain floating point: any model, this environment alone
    force: bool = False  # read such an archive in another environment
    allow_download: bool = False  # load the hub model that an archive names
    max_length: int | None = None  # refuse archives with more bytes of content

    def __post_init__(self) -> None:
        given: Any = self.model
        if isinstance(given, os.PathLike):
            object.__setattr__(self, "model", os.fspath(given))
        for name, kinds in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                wanted = " or ".join("None" if kind is _NONE else kind.__name__ for kind in kinds)
                raise TypeError(f"{name} is {value!r}, where {wanted} is needed")
        if self.streams is not None and self.streams < 1:
            raise LlmzipError(f"{self.streams} streams; at least 1 is needed")
        if self.stream_tokens < 1:
            raise LlmzipError(f"streams of {self.stream_tokens} tokens; at least 1 is needed")
        if self.max_length is not None and self.max_length < 0:
            raise LlmzipError(f"a content of at most {self.max_length} bytes")
        if not 1 <= self.frame_size <= container.FRAME_LIMIT:
            raise LlmzipError(
                f"a frame of {self.frame_size} bytes; possible are 1 to {container.FRAME_LIMIT}"
            )
        if isinstance(self.context, int):
            if self.context < _SHORTEST_WINDOW:
                raise LlmzipError(
                    f"a window of {self.context} tokens; at least {_SHORTEST_WINDOW} are needed"
                )
        elif self.context is not None and not 0 <= self.context[1] < self.context[0] - 1:
            window, overlap = self.context
            raise LlmzipError(f"a window of {window} tokens cannot overlap by {overlap}")
        if self.activations not in (None, *_ACTIVATIONS):
            raise LlmzipError(f"activations {self.activations!r}; known: a8, a16")
        if self.same_environment and self.activations is not None:
            raise LlmzipError("activations have no choice of bits in the same environment alone")
        if self.same_environment and self.model is None:
            raise LlmzipError("the same-environment mode is for models of your own: name one")


class _Turn(Protocol):
    """Puts the next known symbols, or gets the next unknown ones."""

    def code(self, weights: np.ndarray) -> np.ndarray:
        """float64 [n, K] → int32 [n]"""


class _Known(_Turn, Protocol):
    """Knows the next symbols."""

    known: list[np.ndarray]  # the first last


class _Put:
    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self.known: list[np.ndarray] = []

    def code(self, weights: np.ndarray) -> np.ndarray:
        symbols = self.known.pop()
        self._encoder.put(symbols, weights)
        return symbols


class _Weigh:
    """Codes nothing: notes what it would cost."""

    def __init__(self) -> None:
        self.known: list[np.ndarray] = []
        self.bits: list[np.ndarray] = []  # of every call, float64 [n]
        self.total = 0.0

    def code(self, weights: np.ndarray) -> np.ndarray:
        symbols = self.known.pop()
        bits = np.log2(weights.sum(1) / weights[np.arange(len(symbols)), symbols])
        self.bits.append(bits)
        self.total += float(bits.sum())
        return symbols


class _Get:
    """Of few words for many symbols, damage shows when these have said more than words can: it
    would take hours to come to the end, and to the check of the content."""

    def __init__(self, decoder: Decoder, payload_length: int, symbols: int) -> None:
        self._decoder = decoder
        words = -(-payload_length // 4)
        # 32 bits a word, and a quarter more, as the coder rounds rare symbols to 2^-24
        self._left = 40.0 * (words + 4) if symbols > _FEW * (words + 4) else math.inf

    def code(self, weights: np.ndarray) -> np.ndarray:
        symbols = self._decoder.get(weights)
        if self._left < math.inf:
            chosen = weights[np.arange(len(symbols)), symbols] / weights.sum(1)
            self._left += float(np.log2(np.maximum(chosen, 2.0**-24)).sum())
            if self._left < 0:
                raise CorruptArchive("the coded words are too few for what they say")
        return symbols


def _code_step(
    turn: _Turn,
    rows: np.ndarray,
    columns_of: Callable[[np.ndarray], np.ndarray],
    memory: _Memory | None,
    known: np.ndarray,
    columns_a_row: int,
) -> np.ndarray:
    """One id of each stream, int32 [n]: its row by weights [n, R] (overwritten), then its column
    by weights [n, C] given the row. `known` are the weights of the memory's candidates [n, K]."""
    if memory is None:
        row = turn.code(rows)
        plain: np.ndarray = row * columns_a_row + turn.code(columns_of(row))
        return plain
    memory.weigh(rows, known)
    row = turn.code(rows)
    columns = columns_of(row)
    memory.weigh_columns(columns, row)
    ids: np.ndarray = row * columns_a_row + turn.code(columns)
    return ids


class FrameCodec:
    """One model's way from content to payload and back."""

    def __init__(
        self, tokens: Tokens, predictor: Predictor, *, memory: int = _MEMORIES[-1]
    ) -> None:
        """`memory` is the version of what the streams of a frame learn from, 0 for nothing."""
        from llmzip.frequencies import Layout
        from llmzip.memory import kinds

        self.tokens, self.predictor, self.memory = tokens, predictor, memory
        self._kinds = kinds(tokens.spellings)
        self._lengths = np.array([len(spelling or b"") for spelling in tokens.spellings])
        self.layout = Layout(predictor.vocabulary, tokens.size)

    def encode(
        self,
        content: bytes,
        streams: int | None,
        progress: Progress,
        stream_tokens: int = STREAM_TOKENS,
        *,
        short: bool = False,
    ) -> container.Frame:
        """A MODEL frame; `progress` is told of `content` while it is scored. If `short` and one
        stream holds it all, the frame is that of a short archive, without a number of tokens."""
        from llmzip.coder import Encoder

        ids = self.tokens.encode(content)
        streams = self._plan_streams(len(ids), streams, stream_tokens)
        short = short and streams == 1
        encoder = Encoder()
        report = _Share(progress, len(content), encoder.size)
        self._put_all(ids, streams, _Put(encoder), report, len(content) if short else None)
        payload = encoder.payload()
        progress(0, max(0, len(payload) - encoder.size()))
        tokens = 0 if short else len(ids)
        return container.Frame(container.MODEL, len(content), payload, tokens, streams)

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
        weigh = _Weigh()
        report = _Share(progress, len(content), lambda: int(weigh.total) // 8)
        self._put_all(ids, streams, weigh, report, len(content) if short and streams == 1 else None)
        table = np.zeros((-(-len(ids) // streams), streams))
        for step, (row, column) in enumerate(zip(weigh.bits[::2], weigh.bits[1::2], strict=True)):
            table[step, : len(row)] = row + column
        pieces = [self.tokens.decode(ids[i : i + 1]) for i in range(len(ids))]
        return pieces, _gather(table, len(ids) - (len(table) - 1) * streams)

    def _put_all(
        self, ids: np.ndarray, streams: int, turn: _Known, report: _Share, steps: int | None
    ) -> None:
        """Every id's row and column to `turn`, ids int32 [n]; `steps` is what the decoder makes
        room for, if not what it takes."""
        table, last = _deal(ids, streams)
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
                ids = _code_step(
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

    def decode(self, frame: container.Frame, progress: Progress) -> bytes:
        """The content of a MODEL frame, unverified. Raises CorruptArchive where it shows."""
        from llmzip.coder import Decoder

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
        turn = _Get(decoder, len(frame.payload), 2 * tokens)
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

                def columns_of(row: np.ndarray, weights: Sequence[Weights] = weights) -> np.ndarray:
                    chosen = [w.columns(row[p]) for w, p in zip(weights, parts, strict=True)]
                    return np.concatenate(chosen)

                table[step, :n] = ids = _code_step(
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
        return self.tokens.decode(_gather(table[:steps], last))

    def _new_memory(self, streams: int, steps: int) -> _Memory | None:
        if not self.memory:
            return None
        return _Memory(self.memory, streams, steps, self.layout.columns, self._kinds)

    def _advance(self, run: Run, ids: np.ndarray | None) -> Weights:
        """Each stream's last id (None at the start) → weights of the next."""
        import torch

        logits = run.first() if ids is None else run.step(torch.from_numpy(self._shown(ids)))
        return self.layout.weights(logits)

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
        from llmzip import frequencies

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
            weights = self.layout.weights(logits.reshape(count * streams, -1))
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


class _Memory:
    """The memory of one frame: what it recalls for a step, and what it makes of the outcome."""

    def __init__(
        self, version: int, streams: int, steps: int, columns: int, kinds: np.ndarray
    ) -> None:
        from llmzip.memory import begin

        self._recall, self._mixer = begin(version, streams, steps, kinds)
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
        from llmzip.memory import place_in_rows

        n = len(rows)
        total = rows.sum(1)  # whole numbers below 2^53: exact
        self._weights = self._mixer.mix(self._candidates[:n], self._evidence[:n], known, total)
        place_in_rows(rows, self._candidates[:n], known, self._weights, self._columns)

    def weigh_columns(self, columns: np.ndarray, row: np.ndarray) -> None:
        """Change weights of columns [n, C] within each stream's row."""
        from llmzip.memory import place_in_columns

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


def _deal(ids: np.ndarray, streams: int) -> tuple[np.ndarray, int]:
    """Cut ids [n] into S consecutive streams → (int32 [steps, S], streams of the last step).

    The first streams are one token longer than the others, which are padded with id 0.
    """
    steps = -(-len(ids) // streams)
    last = len(ids) - (steps - 1) * streams
    lengths = np.full(streams, steps - 1)
    lengths[:last] += 1
    table = np.zeros((streams, steps), dtype=np.int32)
    table[np.arange(steps) < lengths[:, None]] = ids
    return np.ascontiguousarray(table.T), last


def _gather(table: np.ndarray, last: int) -> np.ndarray:
    """The inverse of `_deal`."""
    steps, streams = table.shape
    lengths = np.full(streams, steps - 1)
    lengths[:last] += 1
    ids: np.ndarray = table.T[np.arange(steps) < lengths[:, None]]
    return ids


_ready: dict[tuple[object, ...], FrameCodec] = {}  # the codec used last, for short messages


def _frame_codec(
    files: ModelFiles, kind: str, window: int, overlap: int, device: str, memory: int
) -> FrameCodec:
    """`kind` is one of PROFILES."""
    from llmzip import predictor
    from llmzip.tokens import Tokens

    key = (files.digest, kind, window, overlap, device, memory)
    if key not in _ready:
        _ready.clear()  # first, so that memory holds one model at a time
        context = predictor.Context(window, overlap)
        model: Any
        if kind == "plain":
            from llmzip.predictor import plain

            model = plain.PlainPredictor(files, context, device)
        else:
            model = predictor.build(files, activations=kind, context=context, device=device)
        tokens = Tokens(files.tokenizer_json, model.vocabulary)
        _ready[key] = FrameCodec(tokens, model, memory=memory)
    return _ready[key]


def _for_writing(options: Options) -> tuple[ModelHeader, FrameCodec, Header | None]:
    """What the header says of the model, the codec, and the header of a short archive where such
    a one would decode to the same."""
    from llmzip import models, predictor

    name = options.model or models.DEFAULT
    files = models.load(name, exact=not options.same_environment)
    environment = ""
    asked = None
    if isinstance(options.context, int):
        asked = round_length(min(options.context, LONGEST))
    if options.same_environment:
        from llmzip.predictor import plain

        kind, default = "plain", plain.default_context(files, asked)
        environment = json.dumps(plain.environment(options.device))
    else:
        kind = options.activations or predictor.DEFAULT_ACTIVATIONS
        default = predictor.default_context(files, asked)
    window, overlap = default.window, default.overlap
    if isinstance(options.context, tuple):
        window, overlap = options.context
    window, overlap = round_length(window), round_length(overlap)
    memory = _MEMORIES[-1] if options.memory else 0
    codec = _frame_codec(files, kind, window, overlap, options.device, memory)
    profile = next(number for number, k in PROFILES.items() if k == kind)
    header = ModelHeader(
        profile=profile | memory << 4,
        digest_start=files.digest[:DIGEST_START],
        window=window,
        overlap=overlap,
        certificate=codec.predictor.certificate,
        environment=environment,
        name="" if name in models.EMBEDDED else _public_name(name),
    )
    usual = (options.context, options.memory, kind) == (None, True, predictor.DEFAULT_ACTIVATIONS)
    short = write_short_header(files.digest) if usual and name in models.EMBEDDED else None
    return header, codec, short


def _public_name(name: str) -> str:
    """A hub id as it is; of a folder or file only the last part, as paths are nobody else's
    business."""
    from pathlib import Path

    from llmzip import models

    if name in models.installed():
        return name
    return Path(name).resolve().name if Path(name).exists() else name


def _for_reading(header: Header, options: Options) -> FrameCodec:
    model = header.model
    assert model is not None  # the container sees to it
    if header.short:
        return _for_short(model, options)
    kind, memory = PROFILES.get(model.profile & 15), model.profile >> 4
    if kind is None or memory not in _MEMORIES:
        raise UnsupportedArchive(
            f"profile {model.profile:#04x}; this llmzip knows arithmetic {sorted(PROFILES)} "
            f"and memory {list(_MEMORIES)}"
        )
    files = find_model(
        model, options.model, allow_download=options.allow_download, exact=kind != "plain"
    )
    if kind == "plain" and not options.force:
        _require_environment(model.environment, options.device)
    codec = _frame_codec(files, kind, model.window, model.overlap, options.device, memory)
    if codec.predictor.certificate != model.certificate:
        from importlib.metadata import version

        raise WrongModel(
            f"transformers {version('transformers')} computes {files.name} otherwise than the "
            "version that the archive was written with; another version may decode it"
        )
    return codec


def _for_short(model: ModelHeader, options: Options) -> FrameCodec:
    """An embedded model with its defaults."""
    from llmzip import models, predictor

    name = models.embedded_with_digest(model.digest_start)
    if name is None:
        raise WrongModel(
            f"the archive needs an embedded model of digest {model.digest_start.hex()}…, which "
            "this version of llmzip does not have"
        )
    files = find_model(model, options.model or name)
    context, kind = predictor.default_context(files), predictor.DEFAULT_ACTIVATIONS
    window, overlap = round_length(context.window), round_length(context.overlap)
    return _frame_codec(files, kind, window, overlap, options.device, _MEMORIES[-1])


def _require_environment(recorded: str, device: str) -> None:
    """Raises WrongEnvironment by the names of what is different."""
    from llmzip.predictor import plain

    try:
        there = json.loads(recorded)
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise CorruptArchive("the header's environment is no JSON object")
    here = plain.environment(device)
    different = [
        f"{name} was {there.get(name)!r}, here {here.get(name)!r}"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if different:
        raise WrongEnvironment(
            "the archive decodes in the environment alone that it was made in: "
            f"{'; '.join(different)} (--force tries nevertheless)"
        )


def find_model(
    header: ModelHeader,
    name: str | None = None,
    *,
    allow_download: bool = False,
    exact: bool = False,
) -> ModelFiles:
    """The model that an archive asks for: the one named, or an embedded or installed one.

    An archive makes us fetch a model only with `allow_download`. `exact` as for `models.load`.
    Raises WrongModel.
    """
    from llmzip import models

    digest = header.digest_start.hex()
    start = header.digest_start
    at_hand = models.embedded_with_digest(start) or models.installed_with_digest(start)
    from_hub = models.is_hub_id(header.name)
    if name is not None or at_hand is not None:
        files = models.load(name or at_hand or "", exact=exact)
    elif from_hub and allow_download:
        files = models.fetch(header.name, exact=exact)
    elif (known := models.installable_with_digest(start)) is not None:
        raise WrongModel(
            f"the archive needs the model {known}, which is not installed: "
            f"llmzip models install {known}"
        )
    else:
        made_with = repr(header.name) if header.name else "one that is not embedded here"
        raise WrongModel(
            f"the archive needs the model {made_with} (digest {digest}…): name it with --model"
            + (", or have it fetched with --allow-download" if from_hub else "")
        )
    if not files.digest.startswith(header.digest_start):
        raise WrongModel(
            f"the archive was made with a model of digest {digest}…, "
            f"but {files.name} has {files.digest.hex()[: len(digest)]}…"
        )
    return files


class FrameWriter:
    """Contents → frames, whose bytes depend on content and options alone; the model is loaded for
    the first frame that stands to gain from it."""

    def __init__(self, options: Options, progress: Progress | None = None) -> None:
        self._options, self._progress = options, progress or _silent
        self._model: tuple[ModelHeader, FrameCodec, Header | None] | None = None

    def header(self, frame: container.Frame) -> Header:
        """What an archive begins with whose first frame is this one: no model if it needs none."""
        needed = frame.kind == container.MODEL or not frame.last
        if not needed:
            return write_header(None)
        model, _, short = self._with_model()
        if frame.kind == container.MODEL and not frame.tokens:
            assert short is not None
            return short
        return write_header(model)

    def _with_model(self) -> tuple[ModelHeader, FrameCodec, Header | None]:
        if self._model is None:
            self._model = _for_writing(self._options)
        return self._model

    def _model_fields(self, frame: container.Frame, first: bool) -> int:
        """Bytes that a model frame needs in the header and by itself, if it is the first."""
        if not first or not frame.tokens:
            return 0
        header = self._with_model()[0]
        texts = header.name.encode() + header.environment.encode() + header.certificate
        return container.MODEL_FIELDS + len(texts)

    def frame(self, content: bytes, *, first: bool, last: bool) -> container.Frame:
        """The smallest of raw, zstd, LZMA and model, the latter only where it stands a chance.
        Raises LlmzipError."""
        stored = _stored(content, last)
        if len(content) < 2 or len(stored.payload) * _PLAIN_RATIO < len(content):
            self._progress(len(content), len(stored.payload))
            return stored
        _, codec, short = self._with_model()
        if not _stands_a_chance(codec, content, 8 * len(stored.payload) / len(content)):
            self._progress(len(content), len(stored.payload))
            return stored
        options = self._options
        frame = codec.encode(
            content,
            options.streams,
            self._progress,
            options.stream_tokens,
            short=short is not None and first and last and len(content) <= container.SMALL,
        )
        if len(frame.payload) + self._model_fields(frame, first) >= len(stored.payload):
            self._progress(0, len(stored.payload) - len(frame.payload))
            return stored
        if (options.verify or options.same_environment) and codec.decode(frame, _silent) != content:
            raise LlmzipError("verification failed: the frame does not decode to its content")
        return container.Frame(
            frame.kind, frame.content_length, frame.payload, frame.tokens, frame.streams, last
        )


class ArchiveWriter:
    """Compresses what is written to it, a frame at a time; `finish` completes the archive."""

    def __init__(
        self, sink: BinaryIO, options: Options | None = None, progress: Progress | None = None
    ) -> None:
        self._sink, self._options = sink, options or Options()
        self._frames = FrameWriter(self._options, progress)
        self._buffer = bytearray()
        self._writer: container.Writer | None = None

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Take `data` in; frames that are complete go to the sink. Returns its length in bytes.
        Raises TypeError for what is not bytes-like."""
        with bytes_like(data, "write") as view:
            self._buffer += view
            length = view.nbytes
        size = self._options.frame_size
        while len(self._buffer) > size:  # the last frame must be known as such, so keep one
            self._write_frame(bytes(self._buffer[:size]), last=False)
            del self._buffer[:size]
        return length

    def finish(self) -> None:
        """Write the last frame."""
        self._write_frame(bytes(self._buffer), last=True)
        self._buffer.clear()

    def _write_frame(self, content: bytes, last: bool) -> None:
        first = self._writer is None
        self.append(self._frames.frame(content, first=first, last=last), content)

    def append(self, frame: container.Frame, content: bytes) -> None:
        """Write a frame that a FrameWriter of the same options made of `content`."""
        if self._writer is None:
            self._writer = container.Writer(self._sink, self._frames.header(frame))
        self._writer.write(frame, content)


def bytes_like(data: Any, function: str) -> memoryview:
    """A view of any bytes-like object as bytes. Raises TypeError that says what is needed."""
    try:
        view = memoryview(data)
    except TypeError:
        encode = "; encode the text first, as in text.encode()" if isinstance(data, str) else ""
        raise TypeError(
            f"{function} needs a bytes-like object, not {type(data).__name__}{encode}"
        ) from None
    return view.cast("B") if view.nbytes else memoryview(b"")


def _silent(content: int, coded: int) -> None:
    """No progress report."""


def _stored(content: bytes, last: bool) -> container.Frame:
    """The smallest of raw, zstd and LZMA."""
    payload = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(content)
    if len(payload) + 2 >= len(content):
        return container.Frame(container.RAW, len(content), content, last=last)
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=_LZMA)
    if len(packed) < len(payload):
        return container.Frame(container.LZMA, len(content), packed, last=last)
    return container.Frame(container.ZSTD, len(content), payload, last=last)


def _unstored(frame: container.Frame) -> bytes:
    if frame.kind == container.RAW:
        return frame.payload
    if frame.kind == container.LZMA:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA)
        try:
            return unpacker.decompress(frame.payload, frame.content_length + 1)
        except lzma.LZMAError as error:
            raise CorruptArchive(f"an LZMA frame is damaged ({error})") from None
    try:
        # bounded by what the frame's header says, not by what zstd's header says
        reader = zstandard.ZstdDecompressor(max_window_size=container.FRAME_LIMIT).stream_reader(
            frame.payload
        )
        content = reader.read(frame.content_length + 1)
    except zstandard.ZstdError as error:
        raise CorruptArchive(f"a zstd frame is damaged ({error})") from None
    return content


def stored_costs(content: bytes, frame: container.Frame) -> tuple[list[bytes], np.ndarray]:
    """Lines of a stored frame, and bits of each, float64 [n]: in proportion to their length."""
    lines = content.splitlines(keepends=True)
    bits = 8 * len(frame.payload) / max(1, len(content))
    return lines, np.array([len(line) * bits for line in lines])


def _stands_a_chance(codec: FrameCodec, content: bytes, stored_bits: float) -> bool:
    """Try a large frame by evenly spaced snippets before all of it is scored."""
    if len(content) < 4 * _SAMPLE * _SNIPPETS or stored_bits < _DENSE:
        return True
    stride = len(content) // _SNIPPETS
    snippets = [content[i * stride : i * stride + _SAMPLE] for i in range(_SNIPPETS)]
    return codec.bits_per_byte(snippets) < _HOPELESS * stored_bits


class FrameReader:
    """Frames of one archive → their contents, unverified; the model is loaded for the first
    frame that needs it."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options, self._progress = options, progress
        self._header: Header | None = None
        self._codec: FrameCodec | None = None
        self._length = 0

    def prepare(self, header: Header) -> FrameCodec:
        """Load the model that an archive asks for, if it is not. Raises LlmzipError if it cannot
        be had."""
        if self._codec is None or header != self._header:
            self._codec = None
            self._codec = _for_reading(header, self._options)
            self._header = header
        return self._codec

    def content(
        self, frame: container.Frame, header: Header, offset: int | None = None
    ) -> bytes:
        """The content of a frame of an archive that begins with `header`.

        Raises CorruptArchive where it shows, and TooLong before what ends more than max_length
        bytes from the start is decoded; `offset` is where it starts, after what was decoded so
        far unless it is given."""
        limit = self._options.max_length
        start = self._length if offset is None else offset
        if limit is not None and start + frame.content_length > limit:
            raise TooLong(f"the archive holds more than {limit} bytes, the most that is allowed")
        if frame.kind == container.MODEL:
            content = self.prepare(header).decode(frame, self._progress)
        else:
            content = _unstored(frame)
            self._progress(len(content), len(frame.payload))
        self._length += len(content)
        return content

    def costs(
        self, frame: container.Frame, header: Header, content: bytes, *, memory: bool = True
    ) -> tuple[list[bytes], np.ndarray]:
        """The tokens of a frame, and bits of each; a stored frame's bits are the same for all.
        Without `memory`, what the language model alone would spend."""
        if frame.kind == container.MODEL:
            short, codec = not frame.tokens, self.prepare(header)
            codec = codec if memory else FrameCodec(codec.tokens, codec.predictor, memory=0)
            return codec.costs(content, frame.streams, _silent, short=short)
        return stored_costs(content, frame)


def costs(
    content: bytes, options: Options, progress: Progress = _silent
) -> tuple[list[bytes], np.ndarray]:
    """What compressing `content` as one frame would spend: its tokens, and bits of each,
    float64 [n]. Raises LlmzipError."""
    _, codec, short = _for_writing(options)
    return codec.costs(
        content,
        options.streams,
        progress,
        options.stream_tokens,
        short=short is not None and len(content) <= container.SMALL,
    )


def archive_costs(
    source: BinaryIO, options: Options, progress: Progress = _silent
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """The same of each frame of an archive, verified; of stored frames, of their lines."""
    reader = container.Reader(source)
    frames = FrameReader(options, progress)
    while (frame := reader.next_frame()) is not None:
        header = reader.part.header
        content = frames.content(frame, header)
        reader.accept(frame, content)
        yield frames.costs(frame, header, content)


class ArchiveReader:
    """Iterates over the verified contents of an archive's frames, and of those archives that
    follow it in the source."""

    def __init__(
        self,
        source: BinaryIO,
        options: Options | None = None,
        progress: Progress | None = None,
        *,
        alone: bool = False,
    ) -> None:
        """Reads the header; if `alone`, nothing beyond the first archive's end is read.

        Raises CorruptArchive, UnsupportedArchive.
        """
        self._reader = container.Reader(source, alone=alone)
        self._frames = FrameReader(options or Options(), progress or _silent)
        # of the frames known so far: first byte in the source and in the content, and the number
        # of the archive that they belong to; for `seek`
        self._positions, self._offsets = array("Q"), array("Q")
        self._numbers, self._parts = array("Q"), list[container.Part]()
        if source.seekable():
            self._note(self._reader.place())

    @property
    def model(self) -> ModelHeader | None:
        """What the archive that was read last asks for."""
        return self._reader.model

    def __iter__(self) -> Iterator[bytes]:
        while (content := self.read_frame()) is not None:
            yield content

    def read_frame(self) -> bytes | None:
        """The content of the next frame, verified; None after the last. Raises LlmzipError."""
        frame = self._reader.next_frame()
        if frame is None:
            return None
        content = self._frames.content(frame, self._reader.part.header, self._reader.offset)
        self._reader.accept(frame, content)
        return content

    def seek(self, offset: int) -> int:
        """Turn to the frame that holds byte `offset` of the content, or to the end, and return
        where in the content that is. Decodes nothing: frames are hopped over by their lengths.

        The source must be seekable. Raises CorruptArchive where the lengths lead astray.
        """
        known = bisect.bisect_right(self._offsets, offset) - 1
        self._reader.go(
            container.Place(
                self._parts[self._numbers[known]],
                known,
                self._positions[known],
                self._offsets[known],
            )
        )
        while (place := self._reader.place()) is not None:
            self._note(place)
            self._reader.hop()
            if self._reader.offset > offset:
                self._reader.go(place)
                return place.offset
        return self._reader.offset

    def _note(self, place: container.Place | None) -> None:
        if place is not None and place.frame == len(self._offsets):
            self._positions.append(place.position)
            self._offsets.append(place.offset)
            self._numbers.append(place.part.number)
            if place.part.number == len(self._parts):
                self._parts.append(place.part)
