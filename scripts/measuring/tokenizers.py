"""Vocabulary sizes for one shape of model, each trained on the same bytes of text."""

from __future__ import annotations

import json
import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import llmzip
from llmzip import models
from llmzip.bench.plots import Series, chart
from llmzip.models.store import save_int8
from llmzip.train import config, data, evaluate, loop, run
from measuring import Report, argument, command, report_of


@command(
    "results/tokenizers.json",
    argument("corpus", type=Path, help="folder of texts to train on"),
    argument("--config", type=Path, required=True, help="TOML file with the model's shape"),
    argument("--dev", type=Path, required=True, help="folder of texts to measure on"),
    argument("--sizes", type=int, nargs="*", default=[1024, 2048, 4096, 8192]),
    argument("--megabytes", type=float, default=12, help="of text to train each on"),
    argument("--limit", type=int, default=100_000, help="bytes of each dev text"),
)
def tokenizers(given: Namespace) -> Report:
    """Bits per byte and speed by the size of the vocabulary; trains a model for each."""
    texts = sorted(path for path in given.dev.iterdir() if path.suffix == ".txt")
    base = replace(config.load(given.config), corpus_bytes=int(given.megabytes * 1.2e6))
    results = []
    for size in given.sizes:
        shape = replace(base, vocab_size=size)
        with tempfile.TemporaryDirectory() as place:
            work, folder, shipped = (Path(place, name) for name in ("work", "model", "shipped"))
            data.prepare(given.corpus, work, shape)
            a_token = float((work / "bytes.txt").read_text()) / len(np.load(work / "tokens.npy"))
            steps = int(given.megabytes * 1e6 / a_token / (shape.sequence * shape.batch))
            network, _ = loop.train(shape, work, 1, max_steps=steps)
            run.export(network, work, folder)
            save_int8(str(folder), shipped, 512, packed=True)
            alone = [evaluate.bits_per_byte(folder, text, given.limit) for text in texts]
            results.append(
                {
                    "name": f"{size}, one stage",
                    "vocabulary": size,
                    "head": "one stage",
                    "bytes_a_token": a_token,
                    "bits_per_byte": float(np.mean([bits["float32"] for bits in alone])),
                    **_archives(str(shipped), texts, given.limit),
                }
            )
        print(json.dumps(results[-1]), flush=True)
    bits = [r["archive_bits_per_byte"] for r in results]
    chart(given.out.with_suffix(".png"), *(
        (label, {"": Series([r[key] for r in results], bits)})
        for key, label in (("vocabulary", "vocabulary"), ("encode_mb_s", "MB/s, encoding"))
    ))  # fmt: skip
    return report_of(None, sweep="tokenizers", results=results, megabytes=given.megabytes,
                     shape=base.as_dict())  # fmt: skip


def _archives(model: str, texts: list[Path], limit: int) -> dict[str, Any]:
    """Bytes as shipped, mean bits per byte of archives, and MB/s by processor time, which other
    work on the machine disturbs least."""
    llmzip.compress(b"load the model before it is timed", model=model)
    bits, size, start = [], 0, time.process_time()
    for text in texts:
        content = text.read_bytes()[:limit]
        bits.append(8 * len(llmzip.compress(content, model=model)) / len(content))
        size += len(content)
    return {
        "bytes": sum(path.stat().st_size for path in models.model_paths(model)),
        "archive_bits_per_byte": float(np.mean(bits)),
        "encode_mb_s": size / 1e6 / (time.process_time() - start),
        "threads": torch.get_num_threads(),
    }
