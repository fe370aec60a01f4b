#!/usr/bin/env python3
"""What exact arithmetic costs: bits of texts under a checkpoint, in float32 by transformers and
exactly, over the same windows without overlap.

    python scripts/measure_exactness.py CHECKPOINT TEXT... --out results/exactness.json

`a8` and `a16` are as archives are made; `direct`: without Hadamard transforms (models that come in
int8 never have them); with --parts also one part at 8 bits, directly, and all others at 15. Beside
the bits of the texts stands what one distribution costs if the other is true (`kl_percent`, of the
text's bits in float32), which varies far less with the text.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmzip import models
from llmzip.archive.options import Options
from llmzip.bench import circumstances
from llmzip.exact import convert, fused, ops
from llmzip.exact.llama import FAMILY, Architecture, ExactLlama
from llmzip.exact.prepare import floating
from llmzip.inference import Context, ExactPredictor
from llmzip.tokenizer import Tokens

LEVELS = {"a8": (ops.A8_LEVELS, ops.KEY_LEVELS), "a16": (ops.A16_LEVELS, ops.WIDE_KEY_LEVELS)}
PARTS = ("qkv", "output", "gate_up", "down", "head", "keys")
_ROWS = 1024  # tokens whose logits are held at a time


def forms(files: models.ModelFiles, parts: bool) -> Iterator[tuple[str, Any]]:
    """(name, exact model)"""
    llama = files.config.get("model_type") in FAMILY

    def build(levels: float, key_levels: float, rotated: bool) -> Any:
        if not llama:
            return convert.ExactTransformer(
                files.config, files.tensors, levels=levels, key_levels=key_levels, rotated=rotated
            )
        architecture = Architecture.from_config(files.config)
        return ExactLlama(
            architecture, files.tensors, levels=levels, key_levels=key_levels, rotated=rotated
        )

    for name, levels in LEVELS.items():
        for rotated in (False,) if files.quantised else (True, False):
            model = build(*levels, rotated)
            label = name if rotated or files.quantised else f"{name} direct"
            yield label, fused.fused(model) if llama else model
    if not parts or not llama:
        return
    for part in PARTS:
        wide, keys = LEVELS["a16"]
        model = build(wide, ops.KEY_LEVELS if part == "keys" else keys, False)
        if part == "head":
            model.head.levels = ops.A8_LEVELS
        elif part != "keys":
            for layer in model.layers:
                getattr(layer, part).levels = ops.A8_LEVELS
        yield f"only {part} a8 direct", model


def windows(files: models.ModelFiles, path: Path, count: int, window: int) -> tuple[Tensor, int]:
    """ids int64 [S, window] of a text's beginning, and how many bytes they are."""
    tokens = Tokens(files.tokenizer_json, int(files.config["vocab_size"]))
    ids = torch.from_numpy(tokens.encode(path.read_bytes()[:count])).long()
    ids = ids[: len(ids) // window * window]
    return ids.view(-1, window), len(tokens.decode(ids.numpy()))


def spent_on(ids: Tensor, logs: Tensor) -> float:
    """Bits of ids [S, T] by logarithms of probabilities [S, T, V]."""
    return -float(logs.gather(-1, ids[..., None]).sum()) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="embedded name, or a folder in Hugging Face format")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--bytes", type=int, default=20_000, help="of each text")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--name", help="in the results (default: the checkpoint's last part)")
    parser.add_argument("--out", type=Path, default=Path("results/exactness.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    files, window = models.load(arguments.checkpoint), arguments.window
    config = convert.read_config(files.config)
    reference: Any = convert.build_network(config, floating(files.config, files.tensors), "sdpa")
    reference = reference.float()
    texts = {p.name: windows(files, p, arguments.bytes, window) for p in arguments.texts}
    runs = [
        (form, ExactPredictor(model, files.bos, Context(window, 0)))
        for form, model in forms(files, arguments.parts)
    ]
    bits: dict[str, dict[str, float]] = {text: defaultdict(float) for text in texts}
    extra: dict[str, dict[str, float]] = {text: defaultdict(float) for text in texts}
    seconds: dict[str, float] = defaultdict(float)
    for text, (ids, _) in texts.items():
        for part in torch.split(ids, max(1, _ROWS // window)):
            seen = torch.nn.functional.pad(part, (1, 0), value=files.bos)[:, :-1]
            with torch.inference_mode():
                true = torch.log_softmax(reference(seen).logits, -1)
            bits[text]["float32"] += spent_on(part, true)
            for form, predictor in runs:
                start = time.process_time()
                chunks = [c.transpose(0, 1) for c in predictor.run(*part.shape).score(part)]
                seconds[form] += time.process_time() - start
                taken = torch.log_softmax(torch.cat(chunks, 1), -1)
                bits[text][form] += spent_on(part, taken)
                extra[text][form] += float((true.exp() * (true - taken)).sum()) / math.log(2)
        print(text, bits[text], extra[text], flush=True)
    results = []
    for text, (ids, size) in texts.items():
        spent, more = bits[text], extra[text]
        whole = spent["float32"]
        entry: dict[str, Any] = {"text": text, "bytes": size, "tokens": ids.numel()}
        entry["bits_per_byte"] = {form: total / size for form, total in spent.items()}
        entry["cost_percent"] = {f: 100 * (spent[f] / whole - 1) for f in more}
        entry["kl_percent"] = {form: 100 * total / whole for form, total in more.items()}
        results.append(entry)
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    tokens = sum(ids.numel() for ids, _ in texts.values())
    report[arguments.name or Path(arguments.checkpoint).name] = {
        **circumstances(Options(model=arguments.checkpoint)),
        "window": window,
        "tokens_per_cpu_second": {form: tokens / spent for form, spent in seconds.items()},
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
