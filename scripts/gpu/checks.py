#!/usr/bin/env python3
"""Check and measure the GPU engine: scripts/gpu/check [--text FILE]… [--out results/gpu.json].

Stages, each with a cap of seconds, in this order: `equality` of archives of CPU and GPU in both
directions; `profile` of kernels; `speed` on growing texts; `cores`, the speed of mixing by number
of threads; `families`, equality for random models. A stage that reaches its cap gives the rate up
to there. The report is written after each stage. --interpret runs a miniature without a GPU.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()  # before the imports, which take a part of the time, too

import argparse  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import traceback  # noqa: E402
from collections.abc import Callable  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

LIMIT = 150.0  # seconds for all stages
CAPS = {"equality": 50.0, "profile": 25.0, "speed": 60.0, "cores": 10.0, "families": 25.0}
ROOT = Path(__file__).parents[2]
MB = 1_000_000
FRAME, STREAM_TOKENS = 1 << 20, 1024  # the preset for GPUs
STEPS = 16  # of a profile
SHAPE_135M = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True,
    "llmzip_rotated": True, "bos_token_id": 0,
}  # fmt: skip


class CapReached(Exception):
    """A stage used up its time."""


class Clock:
    """What is left of a stage's time."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + max(0.0, seconds)

    @property
    def left(self) -> float:
        """Seconds; raises CapReached if there are none."""
        left = self.end - time.monotonic()
        if left <= 0:
            raise CapReached
        return left

    def progress(self, done: list[int]) -> Callable[[int, int], None]:
        """A progress callback that adds up content in done[0] and raises CapReached."""

        def told(content: int, coded: int) -> None:
            done[0] += content
            _ = self.left

        return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, action="append", default=[], help="real texts")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu.json")
    parser.add_argument("--stages", default=",".join(CAPS), help="which, in this order")
    parser.add_argument("--seconds", type=float, default=LIMIT, help="for all stages")
    parser.add_argument("--interpret", action="store_true", help="a miniature without a GPU")
    given = parser.parse_args()
    if given.interpret:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not given.interpret and not torch.cuda.is_available():
        sys.exit("check: no CUDA device; --interpret runs a miniature on the CPU")
    if given.interpret and torch.cuda.is_available():
        sys.exit("check: --interpret is for machines without a GPU")
    check = Check(given)
    for name in given.stages.split(","):
        if name not in CAPS:
            sys.exit(f"check: no stage {name!r}; there are {', '.join(CAPS)}")
        left = given.seconds - (time.monotonic() - STARTED)
        check.run(name, Clock(min(CAPS[name], left)))
    sys.exit(0 if check.passed else 1)


class Check:
    """The report, and what its stages share."""

    def __init__(self, given: argparse.Namespace) -> None:
        import torch

        from llmzip.bench.record import provenance
        from llmzip.exact import gpu

        self.device = "interpreter" if given.interpret else "cuda"
        self._small, self._out = given.interpret, given.out
        card = self.device if given.interpret else torch.cuda.get_device_name()
        self.report: dict[str, Any] = {"about": self._about(provenance), "card": card}
        device = torch.device("cpu" if given.interpret else "cuda")
        self.report |= {"kernels": gpu.available(device), "cores": os.cpu_count()}
        self.report["imported_after"] = round(time.monotonic() - STARTED, 2)
        self.passed = True
        self.text = b"".join(path.read_bytes() for path in given.text) or generated(4 * MB)
        self.report["text"] = [path.name for path in given.text] or "generated"
        self._codecs: dict[tuple[str, str], Any] = {}

    @staticmethod
    def _about(provenance: Any) -> Any:
        from llmzip import Options

        try:
            return provenance(Options())
        except Exception as error:  # a bare machine may lack packages that it names
            return repr(error)

    def run(self, name: str, clock: Clock) -> None:
        """Run a stage, and write what is known so far."""
        from llmzip.bench.record import write_report

        start = time.monotonic()
        entry: dict[str, Any] = {}
        self.report[name] = entry
        try:
            _ = clock.left
            getattr(self, name)(clock, entry)
        except CapReached:
            entry["ended_by_cap"] = True
        except Exception:  # the other stages still tell something
            entry["error"] = traceback.format_exc()[-2000:]
            self.passed = False
        entry["seconds"] = round(time.monotonic() - start, 2)
        write_report(self._out, self.report)
        print(name, entry, flush=True)

    def codec(self, name: str, device: str) -> Any:
        """The codec of a model: embedded, of a family with random weights, or `135m`."""
        from llmzip import inference, models
        from llmzip.coding.frame_codec import FrameCodec
        from llmzip.tokenizer import Tokens

        if (name, device) not in self._codecs:
            files = models.load(name) if name in models.EMBEDDED else random_model(name)
            context = inference.default_context(files)
            model: Any
            if device == "cpu" or not self._small:
                model = inference.build(files, activations="a8", context=context, device=device)
            else:
                model = _interpreted(files, context)
            tokens = Tokens(files.tokenizer_json, model.vocabulary)
            self._codecs[name, device] = FrameCodec(tokens, model)
        return self._codecs[name, device]

    def equality(self, clock: Clock, entry: dict[str, Any]) -> None:
        """Payloads of both devices are equal, and each device decodes them."""
        self._compare(["llama"] if self._small else ["small", "base"], 20_000, clock, entry)

    def families(self, clock: Clock, entry: dict[str, Any]) -> None:
        """The same for models with random weights, two of which take torch's operations."""
        self._compare([] if self._small else ["llama", "gpt2", "qwen2"], 3_000, clock, entry)

    def _compare(self, names: list[str], size: int, clock: Clock, entry: dict[str, Any]) -> None:
        from llmzip.coding.progress import silent
        from llmzip.coding.streams import Cut

        size = 40 if self._small else size
        for name in names:
            contents = [self.text[:size], self.text[size : 2 * size + 17]]
            start = time.monotonic()
            gpu = self.codec(name, self.device)
            frames = gpu.encode_together(contents, len(contents) * [Cut(8)], silent)
            entry[name] = {"first_frames": round(time.monotonic() - start, 2)}
            cpu = self.codec(name, "cpu")
            expected = [cpu.encode(content, Cut(8), silent) for content in contents]
            entry[name]["form"] = type(gpu.predictor.model).__name__
            entry[name]["encoded_equal"] = frames == expected
            entry[name]["decoded_equal"] = gpu.decode_together(expected, silent) == contents
            entry[name]["decoded_by_cpu"] = [cpu.decode(f, silent) for f in frames] == contents
            self.passed &= all(v for v in entry[name].values() if isinstance(v, bool))
            _ = clock.left

    def speed(self, clock: Clock, entry: dict[str, Any]) -> None:
        """MB/s of growing texts, in each model's share of the time."""
        models = ["llama"] if self._small else ["small", "base", "135m"]
        end = clock.end
        for i, name in enumerate(models):
            share = (end - time.monotonic()) / (len(models) - i)
            entry[name] = {}
            own = Clock(share)
            try:
                self._speed_of(name, own, entry[name])
            except CapReached:
                entry[name]["ended_by_cap"] = True

    def _speed_of(self, name: str, clock: Clock, entry: dict[str, Any]) -> None:
        from llmzip.coding.progress import silent
        from llmzip.coding.streams import Cut

        codec = self.codec(name, self.device)
        frame = 30 if self._small else FRAME
        cut = Cut(tokens=STREAM_TOKENS)
        warm = codec.encode_together([self.text[:frame]] * 2, [cut] * 2, silent)
        codec.decode_together(warm, silent)  # compiles kernels
        for megabytes in (0.00006,) if self._small else (4, 16, 64):
            size = int(megabytes * MB)
            content = (self.text * (size // len(self.text) + 1))[:size]
            contents = [content[i : i + frame] for i in range(0, size, frame)]
            row: dict[str, Any] = {"frames": len(contents)}
            entry[f"{megabytes} MB"] = row
            frames = _timed(
                row, "encode", clock,
                partial(codec.encode_together, contents, [cut] * len(contents)),
            )  # fmt: skip
            row["bits_per_byte"] = round(8 * sum(len(f.payload) for f in frames) / size, 4)
            row["streams"] = sum(f.streams for f in frames)
            back = _timed(row, "decode", clock, partial(codec.decode_together, frames))
            row["equal"] = back == contents
            self.passed &= row["equal"]
            rates = row["encode_mb_s"], row["decode_mb_s"]
            if sum(4 * megabytes / rate for rate in rates) > clock.left:
                return

    def cores(self, clock: Clock, entry: dict[str, Any]) -> None:
        """MB/s of mixing, each thread on a state of its own, by the number of threads."""
        import numpy as np

        from llmzip.coding.token_coder import TokenEncoder
        from llmzip.mixing.distribution import of_rows

        codec = self.codec("llama" if self._small else "nano", self.device)
        streams, steps = 16, 1 if self._small else 32
        ranks = codec.ranks(self.text[: 64 * streams * steps])[: streams * steps]
        table = ranks.reshape(streams, steps).T
        rows = np.concatenate([codec.lookups().rows(x.reshape(-1, x.shape[-1]))().frequencies
                               for x in codec.scores(table)])  # fmt: skip
        size = int(codec.vocabulary.tokens.lengths[ranks].sum())

        def code(repeats: int) -> None:
            coder = TokenEncoder(codec.vocabulary, codec.new_state(streams, repeats * size))
            for _ in range(repeats):
                coder.code(of_rows(rows), 0, streams, table.reshape(-1))

        code(1)
        repeats, count = 1 if self._small else 100, 1
        while count <= (os.cpu_count() or 1):
            _ = clock.left
            start = time.monotonic()
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(code, [repeats] * count))
            rate = count * repeats * size / (time.monotonic() - start) / MB
            entry[f"{count} threads"] = round(rate, 4)
            count *= 2

    def profile(self, clock: Clock, entry: dict[str, Any]) -> None:
        """Microseconds of each kernel, for a large pass and for decode steps."""
        import numpy as np
        from torch import profiler

        profiled: Any = profiler.profile
        kinds = [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA]
        for name in ["llama"] if self._small else ["small", "base", "135m"]:
            codec = self.codec(name, self.device)
            streams = 2 if self._small else 1024
            ids = np.arange(streams * (1 if self._small else 48), dtype=np.int32)
            table = (ids * 31 % len(codec.vocabulary)).reshape(-1, streams)
            for _ in range(1 if self._small else 2):  # the first compiles kernels
                parts: Any = {"pass": lambda c=codec, t=table: _pass(c, t),
                         "steps": lambda c=codec, t=table: _steps(c, t)}  # fmt: skip
                for part, work in parts.items():
                    _ = clock.left
                    start = time.monotonic()
                    with profiled(activities=kinds) as p:
                        work()
                    rows = sorted(p.key_averages(), key=_device_time, reverse=True)[:14]
                    entry[f"{name}, {part}"] = {
                        "tokens": table.size if part == "pass" else STEPS * streams,
                        "seconds": round(time.monotonic() - start, 4),
                        "kernels_us": {r.key[:60]: [round(_device_time(r)), r.count] for r in rows},
                    }


def _pass(codec: Any, table: Any) -> None:
    lookups = codec.lookups()
    for logits in codec.scores(table):
        lookups.rows(logits.reshape(-1, logits.shape[-1]))


def _steps(codec: Any, table: Any) -> None:
    lookups, run = codec.lookups(), codec.new_run(table.shape[1], STEPS + 1)
    lookups.rows(run.first())
    for ranks in table[:STEPS]:
        lookups.rows(codec.logits_after(run, ranks))()


def _device_time(row: Any) -> float:
    """Of the kernel itself; the attribute's name before torch 2.5 was another one."""
    for attribute in ("self_device_time_total", "self_cuda_time_total"):
        if (found := getattr(row, attribute, None)) is not None:
            return float(found)
    return 0.0


def _timed(row: dict[str, Any], what: str, clock: Clock, work: Callable[[Any], Any]) -> Any:
    """Do work, and note its MB/s, also if it is ended by its cap."""
    done, start = [0], time.monotonic()
    try:
        return work(clock.progress(done))
    finally:
        row[f"{what}_mb_s"] = round(done[0] / max(1e-9, time.monotonic() - start) / MB, 4)


def random_model(name: str) -> Any:
    """The files of a model with random weights: a family of transformers, or the 135M shape."""
    import torch

    from llmzip import models
    from llmzip.models import ModelFiles

    if name == "135m":
        generator = torch.Generator().manual_seed(1)
        tensors: dict[str, torch.Tensor] = {}
        config: dict[str, Any] = dict(SHAPE_135M)
        h, i, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]

        def matrix(key: str, outer: int, inner: int) -> None:
            shape = outer, inner
            tensors[f"{key}.weight"] = torch.randint(
                -127, 128, shape, generator=generator, dtype=torch.int8
            )
            tensors[f"{key}.weight_scale"] = torch.full((outer, 1), 0.3 / inner**0.5 / 64)

        matrix("model.embed_tokens", v, h)
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            for key, outer, inner in (
                ("self_attn.q_proj", h, h), ("self_attn.k_proj", h // 3, h),
                ("self_attn.v_proj", h // 3, h), ("self_attn.o_proj", h, h),
                ("mlp.gate_proj", i, h), ("mlp.up_proj", i, h), ("mlp.down_proj", h, i),
            ):  # fmt: skip
                matrix(at + key, outer, inner)
            for norm in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"{at}{norm}.weight"] = torch.ones(h)
        tensors["model.norm.weight"] = torch.ones(h)
        tokenizer = models.load("base").tokenizer_json
        return ModelFiles(name, config, tensors, tokenizer, b"135m" * 8)
    import transformers

    common = {"vocab_size": 512, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    wide = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **common,
            "max_position_embeddings": 256, "intermediate_size": 160,
            "num_key_value_heads": 2}  # fmt: skip
    narrow = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, **common}
    kind, settings = {"llama": ("LlamaConfig", wide), "qwen2": ("Qwen2Config", wide),
                      "gpt2": ("GPT2Config", narrow)}[name]  # fmt: skip
    torch.manual_seed(7)
    auto: Any = transformers.AutoModelForCausalLM
    network = auto.from_config(getattr(transformers, kind)(**settings))
    state = {key: value.detach() for key, value in network.state_dict().items()}
    tokenizer = models.load(str(ROOT / "tests" / "data" / "tiny")).tokenizer_json
    return ModelFiles(name, network.config.to_dict(), state, tokenizer, name.encode().ljust(32))


def _interpreted(files: Any, context: Any) -> Any:
    """A predictor by Triton's kernels on the CPU."""
    import torch

    from llmzip.exact import ops
    from llmzip.exact.architecture import Architecture
    from llmzip.exact.gpu.llama import GpuLlama
    from llmzip.exact.llama import ExactLlama
    from llmzip.inference.exact_predictor import ExactPredictor

    model = ExactLlama(
        Architecture.from_config(files.config), files.tensors, levels=ops.A8_LEVELS,
        key_levels=ops.KEY_LEVELS, rotated=not files.quantised,
    )  # fmt: skip
    predictor = ExactPredictor(GpuLlama(model), files.bos, context)
    predictor.kernels = torch.device("cpu")
    return predictor


def generated(size: int) -> bytes:
    """Words of README in a random order, the same every time."""
    words = (ROOT / "README.md").read_text().split()
    state, out, length = 1, [], 0
    while length < size:
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        out.append(words[(state >> 40) % len(words)])
        length += len(out[-1].encode()) + 1
    return " ".join(out).encode()[:size]


if __name__ == "__main__":
    main()
