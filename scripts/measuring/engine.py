"""What the engine reaches of the rate of its products alone: one thread, no mixing, no coding."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np

from llmzip import inference, models
from llmzip.archive.options import Options
from llmzip.bench import provenance
from llmzip.coding.frame_codec import FrameCodec
from llmzip.errors import LlmzipError
from llmzip.exact.attention_rows import attention_rows, store_rows
from llmzip.exact.compiled_llama import CompiledLlama
from llmzip.exact.matmul import INSTRUCTION
from llmzip.exact.rows import activation_rows, add_rows, norm_rows
from llmzip.exact.step import multiply
from llmzip.inference.compiled_predictor import CompiledPredictor
from llmzip.tokenizer import Tokens
from measuring import Report, argument, command

ROWS = (1, 4, 16, 64)
STREAMS = (1, 4, 16)
_SECONDS = 2.0  # of each measurement, at least


@command(
    "results/engine.json",
    argument("--model", action="append", default=[], help="may be given several times"),
)
def engine(given: Namespace) -> Report:
    """Microseconds a token of the engine, and of its products alone, by models and rows.

    One thread, with a full window. Needs an idle core and about a minute a model.
    """
    report: Report = {**provenance(Options()), "instruction": INSTRUCTION.name}
    report["results"] = [_measure(name) for name in given.model or models.EMBEDDED]
    return report


def _measure(name: str) -> dict[str, Any]:
    files = models.load(name)
    context = inference.default_context(files)
    predictor = inference.build(files, activations=inference.DEFAULT_ACTIVATIONS, context=context)
    if not isinstance(predictor, CompiledPredictor):
        raise LlmzipError(f"{name} does not run in compiled code on this processor")
    codec = FrameCodec(Tokens(files.tokenizer_json, predictor.vocabulary), predictor)
    model = predictor.model
    window = model.architecture.window or context.window
    length = min(window, context.window - 32)
    found: dict[str, Any] = {
        "name": name,
        "flops_a_token": 2 * sum(w.size for w in [*model._weights, model._head]),
        "products": {str(rows): _products(model, rows) for rows in ROWS},
        "decoding": {str(s): _decoding(predictor, s, length) for s in STREAMS},
        "encoding": _encoding(predictor, length),
        "frequencies": _frequencies(codec),
        "stages": _stages(predictor, length),
    }
    for rows, seconds in found["products"].items():
        rate = found["flops_a_token"] / seconds / 1e9
        print(f"{name}: products of {rows} rows: {seconds * 1e6:.0f} us a token, {rate:.0f} GOP/s")
    shares = {s: found["products"][s] / found["decoding"][s] for s in map(str, STREAMS)}
    found["decoding_shares"] = shares
    found["encoding_share"] = found["products"]["64"] / found["encoding"]
    print(f"{name}: encoding {found['encoding'] * 1e6:.0f} us a token, of which products alone "
          f"would take {found['encoding_share']:.0%}")  # fmt: skip
    for s, share in shares.items():
        print(f"{name}: decoding {s} streams {found['decoding'][s] * 1e6:.0f} us, {share:.0%}")
    return found


def _products(model: CompiledLlama, rows: int) -> float:
    """Seconds a token of all products of weights."""
    matrices = [w for stack in model._weights for w in stack] + [model._head]
    random = np.random.default_rng(1)
    inputs = {}
    for weight in matrices:
        size = weight.shape[1] * weight.shape[2] // INSTRUCTION.lanes
        inputs[size] = random.integers(-127, 128, (rows, size)).astype(np.int8)
    sizes = [w.shape[1] * w.shape[2] // INSTRUCTION.lanes for w in matrices]

    def work() -> None:
        for weight, size in zip(matrices, sizes, strict=True):
            _multiply(inputs[size], weight)

    return _best(work) / rows


def _multiply(q: np.ndarray, weight: np.ndarray) -> np.ndarray:
    total = np.empty((len(q), len(weight) * INSTRUCTION.lanes), dtype=np.int32)
    multiply(q, weight, total, 0, 1)
    return total


def _decoding(predictor: CompiledPredictor, streams: int, length: int) -> float:
    """Seconds a token of steps after `length` tokens, without frequencies."""
    run = predictor.run(streams, length + 32)
    random = np.random.default_rng(2)
    ids = random.integers(0, predictor.vocabulary, (streams, length + 32))
    for logits in run.score(ids[:, :length]):
        del logits
    best = np.inf
    for i in range(length, length + 31):
        start = time.thread_time()
        run.step(ids[:, i])
        best = min(best, time.thread_time() - start)
    return best / streams


def _encoding(predictor: CompiledPredictor, length: int) -> float:
    """Seconds a token of whole segments, twice as long as the window."""
    ids = np.random.default_rng(3).integers(0, predictor.vocabulary, (4, 2 * length))

    def work() -> None:
        for logits in predictor.run(4, 2 * length + 1).score(ids):
            del logits

    return _best(work) / ids.size


def _stages(predictor: CompiledPredictor, length: int) -> dict[str, float]:
    """Seconds a token of the parts of all layers, for 64 tokens of one stream with a full window;
    the least of several runs."""
    model, rows = predictor.model, ROWS[-1]
    a = model.architecture
    epsilon, score_scale, gate, heads, head_dim = model._constants
    run = predictor.run(1, length + rows)
    random = np.random.default_rng(5)
    for logits in run.score(random.integers(0, predictor.vocabulary, (1, length + rows))):
        del logits
    cache, (cos, sin) = run.cache, model._rotary.arrays(length, rows)
    base = cache.length - rows
    x = random.standard_normal((rows, a.hidden_size)).astype(np.float32)
    best: dict[str, float] = {}
    for _ in range(40):
        spent = dict.fromkeys(("norms", "products", "attention", "gates", "sums", "head"), 0.0)

        def timed(part: str, work: Callable[..., Any], *given: Any) -> Any:
            start = time.thread_time()
            result = work(*given)
            spent[part] += time.thread_time() - start  # noqa: B023
            return result

        for i in range(a.layers):
            scales = [stack[i] for stack in model._scales]
            weights = [stack[i] for stack in model._weights]
            arrays = tuple(part[i] for part in cache.arrays)
            q, s = timed("norms", norm_rows, x, model._norms[0][i], epsilon, model._blocks[0])
            total = timed("products", _multiply, q, weights[0])
            timed("attention", store_rows, total, s, scales[0], cos, sin, *arrays, base,
                  score_scale, heads, head_dim, model._blocks[4], 0)  # fmt: skip
            q, s = timed("attention", attention_rows, total, s, scales[0], cos, sin, *arrays, base,
                         cache.window, heads, head_dim, model._blocks[1], model._blocks[4],
                         0)  # fmt: skip
            total = timed("products", _multiply, q, weights[1])
            timed("sums", add_rows, x.copy(), total, s, scales[1])
            q, s = timed("norms", norm_rows, x, model._norms[1][i], epsilon, model._blocks[2])
            total = timed("products", _multiply, q, weights[2])
            q, s = timed("gates", activation_rows, total, s, scales[2], gate, model._blocks[3])
            total = timed("products", _multiply, q, weights[3])
            timed("sums", add_rows, x.copy(), total, s, scales[3])
        timed("head", model.logits, x)
        best = {part: min(best.get(part, np.inf), t) for part, t in spent.items()}
    return {part: t / rows for part, t in best.items()}


def _frequencies(codec: FrameCodec) -> float:
    logits = np.random.default_rng(4).standard_normal((64, codec.predictor.vocabulary))
    rows = logits.astype(np.float32)
    given = rows.copy()  # `of` may overwrite it; a new array each time may cost more than `of`

    def work() -> None:
        np.copyto(given, rows)
        codec._frequencies.of(given)

    return _best(work) / len(rows)


def _best(work: Callable[[], object]) -> float:
    """Seconds of this thread, the least of several runs."""
    work()
    best, end = np.inf, time.perf_counter() + _SECONDS
    while time.perf_counter() < end or best == np.inf:
        start = time.thread_time()
        work()
        best = min(best, time.thread_time() - start)
    return float(best)
