#!/usr/bin/env python3
"""How fast, in which stages, how near to the hardware, with how much memory; JSON and a plot.

python scripts/benchmark_speed.py TEXT --out results/speed.json
python scripts/benchmark_speed.py TEXT --peaks 1 5 9

The first needs an otherwise idle machine, and some six minutes a model. `zpaq`, `xz` and `zstd`
are run if they are installed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llmzip
from llmzip import inference, models, range_coder, tokenizer
from llmzip.archive.options import Options
from llmzip.bench import circumstances
from llmzip.coding import frame_codec
from llmzip.coding.threads import Team
from llmzip.compiled import compiled
from llmzip.exact import dots, ops
from llmzip.exact.fused import FusedLlama
from llmzip.exact.llama import Architecture
from llmzip.inference import predictor, weights

STREAMS = (1, 4, 16, 64, 256)
_REPEATS = 100
_PIECE = 1_000_000  # bytes of text that rooflines and stages are taken on
_TOOLS = {  # compress INPUT to OUTPUT, and back
    "llmzip": (["-m", "llmzip.cli", "compress", "IN", "-o", "OUT"],
               ["-m", "llmzip.cli", "decompress", "OUT", "-o", "BACK"]),
    "xz -9e": (["xz", "-9e", "-k", "-c", "IN", ">OUT"], ["xz", "-d", "-c", "OUT", ">BACK"]),
    "zstd -19": (["zstd", "-q", "-19", "IN", "-o", "OUT"],
                 ["zstd", "-q", "-d", "OUT", "-o", "BACK"]),
    "zpaq -m5": (["zpaq", "a", "OUT", "IN", "-m5"], ["zpaq", "x", "OUT", "-to", "BACK"]),
}  # fmt: skip


# -- the roofline: floating-point operations ÷ what sgemm does for the same shapes --------------


def _best(work: Callable[[], object], seconds: float = 0.5) -> float:
    work()  # compiles, if it was never called
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def roofline(name: str) -> dict[str, Any]:
    """Seconds a token that sgemm would take for the model's products, by shape."""
    files = models.load(name)
    model = inference.build(files, activations="a8", context=inference.default_context(files)).model
    assert isinstance(model, FusedLlama)
    a = model.architecture
    window = min(a.window or a.context, a.context)
    layer = [
        (a.hidden_size, (a.heads + 2 * a.kv_heads) * a.head_dim),
        (a.heads * a.head_dim, a.hidden_size),
        (a.hidden_size, 2 * a.intermediate_size),
        (a.intermediate_size, a.hidden_size),
    ]
    shapes = [(*shape, a.layers) for shape in layer] + [(a.hidden_size, a.vocab_size, 1)]
    own = [_own(*shape) for shape in shapes] if model.whole else []
    # scores and mixed values of a full window, the heads that share keys as rows
    shapes += [(a.head_dim, window, a.layers * a.heads), (window, a.head_dim, a.layers * a.heads)]
    own += [seconds / a.heads for seconds in _own_attention(a, window)] if model.whole else []
    rows, entries, seconds = predictor.FORWARD_ROWS, [], 0.0
    for i, (inner, outer, times) in enumerate(shapes):
        x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
        took = _best(lambda x=x, weight=weight: x @ weight.T) / rows  # type: ignore[misc]
        seconds += took * times
        entries.append(
            {"in": inner, "out": outer, "times": times, "sgemm_gflops": _gflops(inner, outer, took)}
        )
        if own:
            entries[-1]["own_gflops_a_thread"] = _gflops(inner, outer, own[i])
    flops = sum(2 * e["in"] * e["out"] * e["times"] for e in entries)
    return {
        "flops_a_token": flops,
        "sgemm_seconds_a_token": seconds,
        "products_seconds_a_token": sum(t * e["times"] for t, e in zip(own, entries, strict=False)),
        "threads": torch.get_num_threads(),
        "shapes": entries,
    }


def _gflops(inner: int, outer: int, seconds: float) -> float:
    return 2 * inner * outer / seconds / 1e9


def _own(inner: int, outer: int, times: int, rows: int = 64) -> float:
    """Seconds a row of the products that are compiled here, on one thread."""
    weight = dots.packed(np.full((outer, inner), 3, dtype=np.int8))
    q = np.full((rows, inner), 5, dtype=np.int8)
    return _best(lambda: _multiplied(_REPEATS, q, weight)) / rows / _REPEATS


def _own_attention(a: Architecture, window: int) -> tuple[float, float]:
    """The same of scores, and of mixed values: seconds a token and layer."""
    shared = a.heads // a.kv_heads
    queries = np.ones((shared, a.head_dim), dtype=np.int8)
    keys = np.ones((window // 16, a.head_dim // 4, 64), dtype=np.uint8)
    p = np.ones((2 * shared, window), dtype=np.uint8)
    values = np.ones((window // 4, a.head_dim, 4), dtype=np.int8)
    return (
        a.kv_heads * _best(lambda: _multiplied(_REPEATS, queries, keys)) / _REPEATS,
        a.kv_heads * _best(lambda: _weighed(_REPEATS, p, values)) / _REPEATS,
    )


# as a call from Python takes longer than some of these products


@compiled
def _multiplied(times: int, q: np.ndarray, weight: np.ndarray) -> None:
    for _ in range(times):
        dots.multiply(q, weight)


@compiled
def _weighed(times: int, p: np.ndarray, values: np.ndarray) -> None:
    for _ in range(times):
        dots.weigh(p, values)


# -- how long each stage takes --------------------------------------------------------------------

_STAGES: list[tuple[Any, str, str]] = [
    (ops.Linear, "product", "products by torch"),
    (FusedLlama, "forward", "layers"),
    (FusedLlama, "logits", "vocabulary head"),
    (weights.Layout, "weights", "frequencies"),
    (frame_codec.Memory, "recall", "memory"),
    (frame_codec.Memory, "recall_all", "memory"),
    (frame_codec.Memory, "observe", "memory"),
    (frame_codec.Memory, "weigh", "memory"),
    (frame_codec.Memory, "weigh_columns", "memory"),
    (frame_codec.Memory, "learn", "memory"),
    (range_coder.Encoder, "put", "coder"),
    (range_coder.Decoder, "get", "coder"),
    (tokenizer.Tokens, "encode", "tokens"),
    (tokenizer.Tokens, "decode", "tokens"),
]


@contextlib.contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds by stage, each without the stages that it calls; for one thread."""
    spent: dict[str, float] = defaultdict(float)
    inner = [0.0]

    def wrap(function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            inner.append(0.0)
            result = function(*arguments, **options)
            took = time.perf_counter() - start
            spent[stage] += took - inner.pop()
            inner[-1] += took
            return result

        return run

    before = [(owner, name, getattr(owner, name)) for owner, name, _ in _STAGES]
    for owner, name, stage in _STAGES:
        setattr(owner, name, wrap(getattr(owner, name), stage))
    try:
        yield spent
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def stages(content: bytes, options: dict[str, Any], products: float) -> dict[str, dict[str, float]]:
    """Direction → stage → share of the time, on one thread. `products`: seconds a token of those
    that are compiled with the layers and the head; their share is of both."""
    threads, found = torch.get_num_threads(), {}
    torch.set_num_threads(1)  # so that no thread computes ahead while another is timed
    archive = llmzip.compress(content, **options)
    ways: dict[str, Callable[[], bytes]] = {
        "encode": lambda: llmzip.compress(content, **options),
        "decode": lambda: llmzip.decompress(archive, **options),
    }
    for way, work in ways.items():
        start = time.perf_counter()
        with timed() as spent:
            _alone(work)
        took = time.perf_counter() - start
        shares = {stage: seconds / took for stage, seconds in sorted(spent.items())}
        count = len(_tokens(options["model"]).encode(content))
        found[way] = {
            **shares,
            "the rest": 1 - sum(shares.values()),
            "seconds": took,
            "products within": products * count / took,
        }
    torch.set_num_threads(threads)
    return found


def _alone(work: Callable[[], bytes]) -> bytes:
    """Without the threads of a team, which would compute ahead."""
    ahead = Team.together
    setattr(Team, "together", lambda self, parts: zip(*parts, strict=True))  # noqa: B010
    try:
        return work()
    finally:
        setattr(Team, "together", ahead)  # noqa: B010


# -- speed and ratio against streams ---------------------------------------------------------------


def sweep(content: bytes, options: dict[str, Any], seconds_a_token: float) -> list[dict[str, Any]]:
    found = []
    for streams in (*STREAMS, None):
        start = time.perf_counter()
        archive = llmzip.compress(content, **options, streams=streams)
        middle = time.perf_counter()
        restored = llmzip.decompress(archive, model=options["model"], device=options["device"])
        end = time.perf_counter()
        assert restored == content
        count = len(_tokens(options["model"]).encode(content))
        entry = {
            "streams": streams or "default",
            "bits_per_byte": 8 * len(archive) / len(content),
            "encode_mb_s": len(content) / (middle - start) / 1e6,
            "decode_mb_s": len(content) / (end - middle) / 1e6,
            "decode_tokens_s": count / (end - middle),
            "encode_roofline_share": seconds_a_token * count / (middle - start),
            "decode_roofline_share": seconds_a_token * count / (end - middle),
        }
        print({k: v if isinstance(v, str) else round(v, 4) for k, v in entry.items()}, flush=True)
        found.append(entry)
    return found


def _tokens(name: str) -> tokenizer.Tokens:
    files = models.load(name)
    return tokenizer.Tokens(files.tokenizer_json, int(files.config["vocab_size"]))


# -- whole processes -------------------------------------------------------------------------------


# A small process starts the one that is measured: a child begins with its parent's peak.
_LAUNCHER = """
import json, os, sys, time
start, output = time.perf_counter(), os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
child = os.posix_spawnp(
    sys.argv[2], sys.argv[2:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, output, 1)]
)
_, status, usage = os.wait4(child, 0)
print(json.dumps([status, time.perf_counter() - start, usage.ru_maxrss * 1024]))
"""


def _run(command: list[str], places: dict[str, str]) -> tuple[float, int]:
    """(seconds, peak resident bytes) of a whole process."""
    output = "/dev/null"
    if command[-1].startswith(">"):
        output = places[command[-1][1:]]
        command = command[:-1]
    if command[0] == "-m":
        command = [sys.executable, *command]
    command = [places.get(word, word) for word in command]
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCHER, output, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    status, seconds, memory = json.loads(done.stdout)
    if status:
        raise SystemExit(f"{' '.join(command)}: status {status}")
    return seconds, memory


def processes(content: bytes, names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        compress, decompress = _TOOLS[name]
        if compress[0] != "-m" and shutil.which(compress[0]) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            places = {"IN": f"{folder}/in", "OUT": f"{folder}/out.zpaq", "BACK": f"{folder}/back"}
            Path(places["IN"]).write_bytes(content)
            encode, encode_memory = _run(compress, places)
            size = Path(places["OUT"]).stat().st_size
            decode, decode_memory = _run(decompress, places)
        found[name] = {
            "bytes": len(content),
            "bits_per_byte": 8 * size / len(content),
            "encode_seconds": encode,
            "decode_seconds": decode,
            "encode_peak_bytes": encode_memory,
            "decode_peak_bytes": decode_memory,
        }
        print(name, found[name], flush=True)
    return found


def plot(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(15, 4.5))
    for model, entry in report["models"].items():
        points = [p for p in entry["streams"] if p["streams"] != "default"]
        x = [p["streams"] for p in points]
        left.plot(x, [p["encode_mb_s"] * 1000 for p in points], "o-", label=f"{model}, encoding")
        left.plot(x, [p["decode_mb_s"] * 1000 for p in points], "s--", label=f"{model}, decoding")
        middle.plot(x, [p["bits_per_byte"] for p in points], "o-", label=model)
    left.set_ylabel("KB/s")
    middle.set_ylabel("bits per byte")
    for axes in (left, middle):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("streams")
        axes.legend()
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    bars = [(m, w, s) for m, e in report["models"].items() for w, s in e["stages"].items()]
    names = sorted(
        {stage for _, _, shares in bars for stage in shares} - {"seconds", "products within"}
    )
    base = [0.0] * len(bars)
    for i, stage in enumerate(names):
        heights = [100 * shares.get(stage, 0) for _, _, shares in bars]
        colour = pyplot.get_cmap("tab10")(i)
        right.bar(
            [f"{m}, {w}" for m, w, _ in bars], heights, bottom=base, label=stage, color=colour
        )
        base = [b + h for b, h in zip(base, heights, strict=True)]
    right.set_ylabel("% of the time, one thread")
    right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--models", nargs="*", default=list(models.EMBEDDED))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bytes", type=int, default=_PIECE, help="of the text")
    parser.add_argument("--peaks", type=int, nargs="+", metavar="MB", help="measure the peak "
                        "memory for these sizes alone, and add it to the report")  # fmt: skip
    parser.add_argument("--add", action="store_true", help="measure the models alone, and add them "
                        "to the report")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    arguments = parser.parse_args()
    text = arguments.text.read_bytes()
    if arguments.peaks:
        report = json.loads(arguments.out.read_text())
        report["memory"] = peaks(text, arguments.peaks)
        write(report, arguments.out)
        return
    content = (text * (1 + arguments.bytes // len(text)))[: arguments.bytes]
    now = circumstances(Options(device=arguments.device))
    report = {**now, "text": arguments.text.name, "bytes": len(content), "models": {}}
    if arguments.add:
        report = json.loads(arguments.out.read_text())
    for name in arguments.models:
        options = {"model": name, "device": arguments.device}
        llmzip.decompress(llmzip.compress(content[:3000], **options), **options)
        roof = roofline(name)
        print({k: v for k, v in roof.items() if k != "shapes"}, flush=True)
        report["models"][name] = {
            "commit": now["commit"],
            "date": now["date"],
            "roofline": roof,
            "stages": stages(
                content[: len(content) // 3], options, roof["products_seconds_a_token"]
            ),
            "streams": sweep(content, options, roof["sgemm_seconds_a_token"]),
        }
    if not arguments.add:
        report["processes"] = processes(content, list(_TOOLS))
    write(report, arguments.out)


def write(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    plot(report, path.with_suffix(".png"))


def peaks(text: bytes, sizes: list[int]) -> list[dict[str, Any]]:
    """Peak memory by size of input, in MB; needs no idle machine."""
    found = []
    for size in sizes:
        if size * 1_000_000 > len(text):
            raise SystemExit(f"the text is shorter than {size} MB")
        run = processes(text[: size * 1_000_000], ["llmzip"])["llmzip"]
        found.append({"bytes": run["bytes"], **{k: v for k, v in run.items() if "peak" in k}})
    return found


if __name__ == "__main__":
    main()
