#!/usr/bin/env python3
"""What exact arithmetic costs: bits per byte of texts under a Llama checkpoint, in float32 by
transformers and exactly with a8 and a16, over the same windows without overlap.

    python scripts/measure_exactness.py CHECKPOINT TEXT... --out results/exactness.json
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from llmzip import models, predictor
from llmzip.bench import circumstances
from llmzip.codec import Options
from llmzip.tokens import Tokens


def bits(logits: torch.Tensor, ids: torch.Tensor) -> float:
    return float(torch.nn.functional.cross_entropy(logits, ids, reduction="sum")) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="a folder in Hugging Face format, float weights")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--bytes", type=int, default=200_000, help="of each text")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path("results/exactness.json"))
    arguments = parser.parse_args()

    files = models.load(arguments.checkpoint)
    reference = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32)
    window = arguments.window
    results = []
    for path in arguments.texts:
        content = path.read_bytes()[: arguments.bytes]
        tokens = Tokens(files.tokenizer_json, reference.config.vocab_size)
        ids = torch.from_numpy(tokens.encode(content)).long()
        ids = ids[: len(ids) // window * window].view(-1, window)
        size = len(tokens.decode(ids.flatten().numpy()))
        spent = {"float32": 0.0, "a8": 0.0, "a16": 0.0}
        seen = torch.nn.functional.pad(ids, (1, 0), value=files.bos)[:, :-1]
        with torch.inference_mode():
            for part, known in zip(torch.split(seen, 32), torch.split(ids, 32), strict=True):
                spent["float32"] += bits(reference(part).logits.flatten(0, 1), known.flatten())
        for activations in ("a8", "a16"):
            model = predictor.build(
                files, activations=activations, context=predictor.Context(window, 0)
            )
            for known in torch.split(ids, 32):
                step = 0
                for chunk in model.run(*known.shape).score(known):
                    part = known.T[step : step + len(chunk)]
                    spent[activations] += bits(chunk.flatten(0, 1), part.flatten())
                    step += len(chunk)
        entry = {"text": path.name, "bytes": size}
        entry["bits_per_byte"] = {way: total / size for way, total in spent.items()}
        entry["cost_percent"] = {
            way: 100 * (spent[way] / spent["float32"] - 1) for way in ("a8", "a16")
        }
        results.append(entry)
        print(json.dumps(entry))
    report = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    report[Path(arguments.checkpoint).name] = {
        **circumstances(Options(model=arguments.checkpoint)),
        "window": window,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
