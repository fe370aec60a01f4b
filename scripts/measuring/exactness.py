"""The cost of exact arithmetic: bits of texts in float32 by transformers, and exactly."""

from __future__ import annotations

import json
import math
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmzip import models
from llmzip.exact import fused, ops
from llmzip.exact.architecture import LLAMA_TYPES, ROTATED_KEY, Architecture
from llmzip.exact.convert.config import load_network, parse_config
from llmzip.exact.convert.model import ExactTransformer
from llmzip.exact.llama import ExactLlama
from llmzip.exact.quantise import dequantise_tensors
from llmzip.inference import Context
from llmzip.inference.exact_predictor import ExactPredictor
from llmzip.train.evaluate import bits, windows
from measuring import Report, argument, command, report_of

LEVELS = {"a8": (ops.A8_LEVELS, ops.KEY_LEVELS), "a16": (ops.A16_LEVELS, ops.WIDE_KEY_LEVELS)}
PARTS = ("qkv", "output", "gate_up", "down", "head", "keys")
ROWS = 1024  # tokens whose logits are held at a time


def _forms(files: models.ModelFiles, parts: bool) -> Iterator[tuple[str, Any]]:
    """Yield (name, exact model). "direct" is without Hadamard transforms."""
    llama = files.config.get("model_type") in LLAMA_TYPES
    shape: Any = Architecture.from_config(files.config) if llama else files.config
    kind: Any = ExactLlama if llama else ExactTransformer

    def build(levels: float, key_levels: float, rotated: bool) -> Any:
        return kind(shape, files.tensors, levels=levels, key_levels=key_levels, rotated=rotated)

    for name, levels in LEVELS.items():
        stored = bool(files.config.get(ROTATED_KEY))  # how int8 weights were made
        for rotated in (stored,) if files.quantised else (True, False):
            model = build(*levels, rotated)
            label = name if rotated or files.quantised else f"{name} direct"
            yield label, fused.fused(model) if llama else model
    for part in PARTS if parts and llama else ():
        wide, keys = LEVELS["a16"]
        model = build(wide, ops.KEY_LEVELS if part == "keys" else keys, False)
        for layer in model.layers if part not in ("head", "keys") else ():
            getattr(layer, part).levels = ops.A8_LEVELS
        if part == "head":
            model.head.levels = ops.A8_LEVELS
        yield f"only {part} a8 direct", model


@command(
    "results/exactness.json",
    argument("checkpoint", help="embedded name, or a folder in Hugging Face format"),
    argument("texts", nargs="+", type=Path),
    argument("--bytes", type=int, default=20_000, help="of each text"),
    argument("--window", type=int, default=256, help="tokens; windows do not overlap"),
    argument("--parts", action="store_true", help="also one part in 8 bits, all others in 15"),
    argument("--name", help="of this report in the file (default: the last part of CHECKPOINT)"),
)
def exactness(given: Namespace) -> Report:
    """Bits per byte in float32 and exactly, with 8- and 15-bit activations; added to the file.

    `kl_percent` is the divergence from the float32 distributions, as a share of the text's bits; it
    varies far less with the text than the bits do.
    """
    torch.set_num_threads(1)
    files = models.load(given.checkpoint)
    network: Any = load_network(
        parse_config(files.config), dequantise_tensors(files.config, files.tensors), "sdpa"
    )
    reference = network.float()
    runs = {
        form: ExactPredictor(model, files.bos, Context(given.window, 0))
        for form, model in _forms(files, given.parts)
    }
    seconds: dict[str, float] = defaultdict(float)
    results, tokens = [], 0
    for path in given.texts:
        ids, size = windows(files, path, given.bytes, given.window)
        tokens += ids.numel()
        spent: dict[str, float] = defaultdict(float)
        divergence: dict[str, float] = defaultdict(float)
        for part in torch.split(ids, max(1, ROWS // given.window)):
            seen = torch.nn.functional.pad(part, (1, 0), value=files.bos)[:, :-1]
            with torch.inference_mode():
                true = torch.log_softmax(reference(seen).logits, -1)
            spent["float32"] += bits(true, part)
            for form, predictor in runs.items():
                start = time.process_time()
                chunks = [c.transpose(0, 1) for c in predictor.run(*part.shape).score(part)]
                seconds[form] += time.process_time() - start
                exact = torch.log_softmax(torch.cat(chunks, 1), -1)
                spent[form] += bits(exact, part)
                divergence[form] += _divergence(true, exact)
        whole = spent["float32"]
        entry = {
            "text": path.name,
            "bytes": size,
            "tokens": ids.numel(),
            "bits_per_byte": {form: total / size for form, total in spent.items()},
            "cost_percent": {form: 100 * (spent[form] / whole - 1) for form in runs},
            "kl_percent": {form: 100 * total / whole for form, total in divergence.items()},
        }
        print(json.dumps(entry), flush=True)
        results.append(entry)
    report: Report = json.loads(given.out.read_text()) if given.out.exists() else {}
    report[given.name or Path(given.checkpoint).name] = report_of(
        given.checkpoint,
        window=given.window,
        tokens_per_cpu_second={form: tokens / spent for form, spent in seconds.items()},
        results=results,
    )
    return report


def _divergence(true: Tensor, taken: Tensor) -> float:
    """Kullback-Leibler divergence in bits of log-probabilities [S, T, V], summed."""
    return float((true.exp() * (true - taken)).sum()) / math.log(2)
