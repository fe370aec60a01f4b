"""Speed and memory: streams, whole processes, start-up; and what they make at scale."""

from __future__ import annotations

import cProfile
import io
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

import llmzip
from llmzip import models, tokenizer
from llmzip.archive.options import FRAME_SIZE, Options
from llmzip.bench import codecs, provenance
from llmzip.bench.plots import Series, chart
from llmzip.bench.report import DIRECTIONS
from llmzip.coding.frame import ZSTD, Frame
from llmzip.coding.threads import StreamThreads
from llmzip.exact.architecture import Architecture
from llmzip.inference.base import FORWARD_ROWS
from measuring import Report, argument, command, report_of
from measuring.archives import sweep

STREAMS = (1, 4, 16, 64, 256)
STAGED = 300_000  # bytes whose time is divided among functions
PROCESSES: dict[str, codecs.Commands] = {
    "llmzip": ([sys.executable, "-m", "llmzip", "compress", "IN", "-o", "OUT"],
               [sys.executable, "-m", "llmzip", "decompress", "OUT", "-o", "BACK"]),
    "xz -9e": (["xz", "-9e", "-k", "-c", "IN", ">OUT"], ["xz", "-d", "-c", "OUT", ">BACK"]),
    "zstd -19": (["zstd", "-q", "-19", "IN", "-o", "OUT"],
                 ["zstd", "-q", "-d", "OUT", "-o", "BACK"]),
    "zpaq -m5": (["zpaq", "a", "OUT.zpaq", "IN", "-m5"],
                 ["zpaq", "x", "OUT.zpaq", "-to", "BACK"]),
}  # fmt: skip


@command(
    "results/speed.json",
    argument("text", type=Path),
    argument("--models", nargs="*", default=list(models.EMBEDDED)),
    argument("--device", default="cpu"),
    argument("--bytes", type=int, default=1_000_000, help="of the text"),
    argument("--peaks", type=int, nargs="+", default=[], metavar="MB",
             help="also the peak memory of llmzip for these sizes"),
)  # fmt: skip
def speed(given: Namespace) -> Report:
    """Speed by streams, beside what sgemm reaches; seconds and memory of whole processes.

    Needs an otherwise idle machine and about six minutes a model. xz, zstd and zpaq run if they are
    installed.
    """
    text = given.text.read_bytes()
    content = text[: given.bytes]
    report: Report = {
        **provenance(Options(device=given.device)),
        "text": given.text.name,
        "bytes": len(content),
        "models": {},
    }
    for name in given.models:
        options = {"model": name, "device": given.device}
        bound = roofline(name)
        report["models"][name] = {
            "roofline": bound,
            "stages": stages(content[:STAGED], options),
            "streams": by_streams(name, given, content, bound["sgemm_seconds_a_token"]),
        }
        print(json.dumps(report["models"][name], indent=1), flush=True)
    report["processes"] = {
        name: _process(name, content)
        for name, commands in PROCESSES.items()
        if codecs.program(commands[0][0])
    }
    report["memory"] = [_process("llmzip", text[: mb * 1_000_000]) for mb in given.peaks]
    panels = (
        {"bits per byte": ("bits_per_byte", 1.0)},
        {"compressing, KB/s": ("encode_mb_s", 1e3), "decompressing, KB/s": ("decode_mb_s", 1e3)},
    )
    chart(given.out.with_suffix(".png"), *(
        ("streams", {
            f"{name}: {label}": Series([str(e["streams"]) for e in model["streams"]],
                                       [e[key] * unit for e in model["streams"]])
            for name, model in report["models"].items() for label, (key, unit) in panel.items()
        })
        for panel in panels
    ), label="")  # fmt: skip
    return report


def roofline(name: str) -> dict[str, Any]:
    """Seconds a token that float32 sgemm takes for the products of a model of the Llama family."""
    files = models.load(name)
    a = Architecture.from_config(files.config)
    window = min(a.window or a.context, a.context)
    shapes = [
        (a.hidden_size, (a.heads + 2 * a.kv_heads) * a.head_dim, a.layers),
        (a.heads * a.head_dim, a.hidden_size, a.layers),
        (a.hidden_size, 2 * a.intermediate_size, a.layers),
        (a.intermediate_size, a.hidden_size, a.layers),
        (a.hidden_size, a.vocab_size, 1),
        (a.head_dim, window, a.layers * a.heads),  # scores of a full window
        (window, a.head_dim, a.layers * a.heads),  # and its mixed values
    ]
    rows, entries = FORWARD_ROWS, []
    for inner, outer, times in shapes:
        x, weight = torch.randn(rows, inner), torch.randn(outer, inner)
        seconds = _best(lambda x=x, weight=weight: x @ weight.T) / rows  # type: ignore[misc]
        rate = 2 * inner * outer / seconds / 1e9
        entries.append({"in": inner, "out": outer, "times": times, "sgemm_gflops": rate})
    flops = [2 * e["in"] * e["out"] * e["times"] for e in entries]
    return {
        "flops_a_token": sum(flops),
        "sgemm_seconds_a_token": sum(
            n / e["sgemm_gflops"] / 1e9 for n, e in zip(flops, entries, strict=True)
        ),
        "threads": torch.get_num_threads(),
        "shapes": entries,
    }


def _best(work: Callable[[], object], seconds: float = 0.5) -> float:
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def by_streams(name: str, given: Namespace, content: bytes, bound: float) -> list[Report]:
    """Bits per byte and speed for each number of streams; `bound`: seconds a token of sgemm."""
    files = models.load(name)
    tokens = tokenizer.Tokens(files.tokenizer_json, int(files.config["vocab_size"]))
    count = len(tokens.encode(content)) / len(content) * 1e6  # tokens a megabyte
    settings = {str(n): {"streams": n, "device": given.device} for n in STREAMS}
    settings["default"] = {"device": given.device}
    found = sweep(name, [given.text], {"streams": settings}, given.bytes)
    for entry in found:
        entry["streams"] = entry["settings"].get("streams", "default")
        entry["decode_tokens_s"] = count * entry["decode_mb_s"]
        for way in DIRECTIONS:
            entry[f"{way}_roofline_share"] = bound * count * entry[f"{way}_mb_s"]
    return found


def stages(content: bytes, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Shares of the time of encoding and decoding on one thread, by function.

    Compiled kernels are functions of their own, operations of torch count for their callers.
    Functions below 1% are left out.
    """
    archive, threads, found = llmzip.compress(content, **options), torch.get_num_threads(), {}
    llmzip.decompress(archive, **options)  # compiles what is timed
    calls = (partial(llmzip.compress, content), partial(llmzip.decompress, archive))
    torch.set_num_threads(1)
    for direction, call in zip(DIRECTIONS, calls, strict=True):
        profile = cProfile.Profile(builtins=False)
        # a profile is of one thread: nothing is computed ahead in others
        with patch.object(StreamThreads, "ahead", lambda self, lists: chain.from_iterable(lists)):
            profile.runcall(call, **options)
        spent: dict[str, float] = defaultdict(float)
        for entry in profile.getstats():
            if not isinstance(entry.code, str):
                module = Path(entry.code.co_filename).stem
                spent[f"{module}.{entry.code.co_name}"] += entry.inlinetime
        total = sum(spent.values())
        ranked = sorted(spent.items(), key=lambda item: -item[1])
        found[direction] = {n: s / total for n, s in ranked if s >= total / 100}
    torch.set_num_threads(threads)
    return found


def _process(name: str, content: bytes) -> dict[str, Any]:
    """Seconds and peak memory of whole processes, with their start."""
    found = codecs.round_trip(name, content, commands=PROCESSES[name])
    keys = ("bits_per_byte", "encode_seconds", "decode_seconds", "encode_peak_bytes",
            "decode_peak_bytes")  # fmt: skip
    if "error" in found:
        raise SystemExit(found["error"])
    return {"bytes": len(content), **{key: found[key] for key in keys}}


_READY = """
import sys, time
import safetensors.torch
import llmzip.exact.convert.verify, llmzip.exact.fused
from llmzip import inference, models
try:
    import gguf
except ImportError:
    pass
start = time.perf_counter()
files = models.load(sys.argv[1], exact=True)
loaded = time.perf_counter()
inference.build(files, activations="a8", context=inference.default_context(files))
print(loaded - start, time.perf_counter() - loaded)
"""


@command(
    "results/start.json",
    argument("models", nargs="+", metavar="MODEL"),
    argument("--repeat", type=int, default=3),
)
def start(given: Namespace) -> Report:
    """Seconds until a model is ready, without imports: with an empty cache and with a filled one.

    Each run is a process of its own; the fastest counts.
    """

    results = []
    for model in given.models:
        times: dict[str, list[list[float]]] = {"empty": [], "filled": []}
        for _ in range(given.repeat):
            with tempfile.TemporaryDirectory() as cache:
                environment = {**os.environ, "LLMZIP_CACHE": cache}
                for runs in times.values():
                    command = [sys.executable, "-c", _READY, model]
                    words = subprocess.check_output(command, env=environment).split()
                    runs.append([float(word) for word in words])
        for state, runs in times.items():
            load, build = min(runs, key=sum)
            results.append({"model": Path(model).name, "cache": state, "load_seconds": load,
                            "build_seconds": build})  # fmt: skip
            print(results[-1], flush=True)
    return report_of(None, results=results)


@command(
    "results/scaling.json",
    argument("--speed", type=Path, default=Path("results/speed.json"), help="measured rates"),
    argument("--price", type=float, default=0.04, help="assumed, of a core-hour"),
)
def scaling(given: Namespace) -> Report:
    """What a terabyte takes, computed from results/speed.json: core-hours, money, useful cores.

    Only the rate at which rank 0 joins finished frames is measured here: reading, three hashes,
    writing. Frames are dealt to workers in turn, as llmzip/parallel/runner.py does.
    """
    measured = json.loads(given.speed.read_text())
    cores, assembly = measured["machine"]["threads"], _assembly_rate()
    found: dict[str, Any] = {}
    for name, model in measured["models"].items():
        entry = next(e for e in model["streams"] if e["streams"] == "default")
        found[name] = {}
        for way in DIRECTIONS:
            rate = entry[f"{way}_mb_s"] * 1e6 / cores
            hours = 1e12 / rate / 3600
            found[name][way] = {
                "kb_s_a_core": rate / 1e3,
                "core_hours_a_terabyte": hours,
                "price_a_terabyte": hours * given.price,
                "cores_that_one_assembly_feeds": assembly / rate,
                "hours_by_cores": {
                    str(n): _makespan(10**12, rate, n, assembly) / 3600
                    for n in (1, 10, 100, 1_000, 10_000)
                },
            }
    return report_of(
        None,
        rates_from={key: measured[key] for key in ("commit", "date", "machine", "device")},
        assumed_price_of_a_core_hour=given.price,
        assembly_mb_s=assembly / 1e6,
        models=found,
    )


def _assembly_rate(frames: int = 32) -> float:
    """Bytes of content a second at which one core joins finished frames to an archive."""
    content = os.urandom(FRAME_SIZE)
    writer = llmzip.ArchiveWriter(io.BytesIO(), Options())
    # not a valid frame, but as much work as one
    frame = Frame(ZSTD, len(content), content[: FRAME_SIZE // 5], last=False)
    writer.append(frame, content)  # loads what the header needs
    start = time.perf_counter()
    for _ in range(frames):
        writer.append(frame, content)
    return frames * len(content) / (time.perf_counter() - start)


def _makespan(size: int, rate: float, workers: int, assembly: float) -> float:
    """Seconds for `size` bytes by workers of `rate` bytes a second each: the longest share of the
    frames or their assembly, whichever is slower, and one frame of the other."""
    rounds = math.ceil(math.ceil(size / FRAME_SIZE) / workers)
    coding = rounds * FRAME_SIZE / rate
    joining = size / assembly
    return max(coding, joining) + FRAME_SIZE / (assembly if coding > joining else rate)
