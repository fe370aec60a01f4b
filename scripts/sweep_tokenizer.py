#!/usr/bin/env python3
"""Vocabulary sizes, and a two-stage head, for one shape of model: bits per byte and speed.

python scripts/sweep_tokenizer.py CORPUS --config scripts/configs/nano.toml --dev DIR

Each model is trained on the same bytes of text. The two-stage head (row of the vocabulary, then
column given the row) is tried in training alone: its rows are ids in the order of the tokenizer,
or clustered by what the model of the same vocabulary has learned.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sweeping
import torch
from torch import Tensor, nn

import llmzip
from llmzip import models
from llmzip.models.store import save_int8
from llmzip.train import config as configuration
from llmzip.train import data, evaluate, loop, model, run
from llmzip.train.config import Config

_STREAM, _STREAMS = 4096, 8  # tokens, at a time


class TwoStage(model.Trainee):
    """ids [B, T] → mean nats a token, of its row and of its column given the row: products with
    (R + C)·d weights in place of V·d. `order`: where in the grid an id stands, int64 [V]."""

    order: Tensor

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.network.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return self.nats(hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).mean()

    def nats(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """hidden [N, d], labels [N] → [N]"""
        rows, columns, given = (getattr(self.network, name).weight for name in _TABLES)
        place = self.order[labels]
        row, column = place // len(columns), place % len(columns)
        entropy = nn.functional.cross_entropy
        first = entropy(hidden @ rows.T, row, reduction="none")
        return first + entropy((hidden + given[row]) @ columns.T, column, reduction="none")


_TABLES = ("embed_rows", "embed_columns", "embed_given")  # so named, AdamW trains them


def clustered(embeddings: Tensor) -> Tensor:
    """Halves along the main direction again and again: near ids in one row. [V, d] → [V]"""
    x = embeddings.detach().float().numpy()

    def halves(members: np.ndarray) -> list[int]:
        if len(members) <= 1:
            return list(members)
        centred = x[members] - x[members].mean(0)
        direction = np.linalg.svd(centred, full_matrices=False)[2][0]
        ranked = members[np.argsort(centred @ direction, kind="stable")]
        middle = len(members) // 2
        return halves(ranked[:middle]) + halves(ranked[middle:])

    order = np.empty(len(x), dtype=np.int64)
    order[halves(np.arange(len(x)))] = np.arange(len(x))
    return torch.from_numpy(order)


def two_stage(network: Any, order: Tensor) -> type[model.Trainee]:
    """Give a network the tables of a two-stage head → the class to train it with."""
    size, d = network.lm_head.weight.shape
    rows = 1 << math.ceil(math.log2(size) / 2)
    for name, count in zip(_TABLES, (rows, -(-size // rows), rows), strict=True):
        table = nn.Embedding(count, d)
        nn.init.normal_(table.weight, std=0.02)
        network.add_module(name, table)
    return type("TwoStage", (TwoStage,), {"order": order})


def float_bits(trainee: Any, files: models.ModelFiles, texts: list[Path], limit: int) -> float:
    """Mean bits per byte of texts in float32, by a head of either kind."""
    found = []
    for text in texts:
        ids, size = evaluate._streams(files, text, limit)
        total = 0.0
        with torch.inference_mode():
            for part in torch.split(ids, _STREAMS):
                seen = nn.functional.pad(part, (1, 0), value=files.bos)
                room = -seen.shape[1] % 512  # attention goes by whole windows
                hidden = trainee.network.base_model(
                    input_ids=nn.functional.pad(seen, (0, room)), use_cache=False
                ).last_hidden_state[:, : part.shape[1]]
                total += float(_nats(trainee, hidden.flatten(0, 1), part.flatten()).sum())
        found.append(total / math.log(2) / size)
    return float(np.mean(found))


def _nats(trainee: Any, hidden: Tensor, labels: Tensor) -> Tensor:
    if isinstance(trainee, TwoStage):
        return trainee.nats(hidden, labels)
    return nn.functional.cross_entropy(
        hidden @ trainee.network.lm_head.weight.T, labels, reduction="none"
    )


def train(
    config: Config, work: Path, megabytes: float, kind: type[Any] | None, network: Any
) -> Any:
    """→ the trained object: on so much text, with a head of a kind (None: the usual one)."""
    size, tokens = float((work / "bytes.txt").read_text()), len(np.load(work / "tokens.npy"))
    steps = int(megabytes * 1e6 * tokens / size / (config.sequence * config.batch))
    usual, model.Trainee = model.Trainee, kind or model.Trainee  # type: ignore[misc]
    try:
        loop.train(config, work, 1, max_steps=steps, network=network)
        return model.Trainee(network)
    finally:
        model.Trainee = usual  # type: ignore[misc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True, help="folder of texts to measure on")
    parser.add_argument("--sizes", type=int, nargs="*", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--head", type=int, default=4096, help="size to try the head with; 0: none")
    parser.add_argument("--megabytes", type=float, default=12, help="of text to train each on")
    parser.add_argument("--limit", type=int, default=100_000, help="bytes of each dev text")
    parser.add_argument("--out", type=Path, default=Path("results/tokenizers.json"))
    arguments = parser.parse_args()
    texts = sorted(path for path in arguments.dev.iterdir() if path.suffix == ".txt")
    base = replace(
        configuration.load(arguments.config), corpus_bytes=int(arguments.megabytes * 1.2e6)
    )
    results: list[dict[str, Any]] = []
    for size in arguments.sizes:
        config = replace(base, vocab_size=size)
        with tempfile.TemporaryDirectory() as place:
            work, folder, shipped = (Path(place, name) for name in ("work", "model", "shipped"))
            data.prepare(arguments.corpus, work, config)
            network = model.build(config)
            forms: list[tuple[str, type[Any] | None, Any]] = [("one stage", None, network)]
            if size == arguments.head:
                for name in ("two stages, ids as they are", "two stages, ids clustered"):
                    forms.append((name, TwoStage, model.build(config)))
            for name, kind, fresh in forms:
                if kind is not None:
                    kind = two_stage(
                        fresh,
                        clustered(network.lm_head.weight)
                        if "clustered" in name
                        else torch.arange(size),
                    )
                trainee = train(config, work, arguments.megabytes, kind, fresh)
                if kind is None:
                    run.export(network, work, folder)
                    save_int8(str(folder), shipped, 512, packed=True)
                files = models.load(str(folder))
                entry: dict[str, Any] = {
                    "name": f"{size}, {name}",
                    "vocabulary": size,
                    "head": name,
                    "bytes_a_token": float((work / "bytes.txt").read_text())
                    / len(np.load(work / "tokens.npy", mmap_mode="r")),
                    "bits_per_byte": float_bits(trainee, files, texts, arguments.limit),
                }
                if kind is None:
                    entry |= measured(str(shipped), texts, arguments.limit)
                print(json.dumps(entry), flush=True)
                results.append(entry)
    sweeping.write(arguments.out, "tokenizers", results, models.DEFAULT,
                   megabytes=arguments.megabytes, shape=base.as_dict())  # fmt: skip
    figure, (left, right) = sweeping.panels(2)
    whole = [r for r in results if r["head"] == "one stage"]
    for ax, key, label, mark in ((left, "vocabulary", "vocabulary", "o-"),
                                 (right, "encode_mb_s", "MB/s", "o")):  # fmt: skip
        ax.plot([r[key] for r in whole], [r["archive_bits_per_byte"] for r in whole], mark)
        ax.set_xlabel(label + (", encoding" if ax is right else ""))
        ax.margins(0.15)
    left.set_xscale("log", base=2)
    for r in whole:
        right.annotate(f"{r['vocabulary']:,}", (r["encode_mb_s"], r["archive_bits_per_byte"]),
                       xytext=(4, 4), textcoords="offset points", fontsize=8)  # fmt: skip
    sweeping.save(figure, arguments.out)


def measured(folder: str, texts: list[Path], limit: int) -> dict[str, float]:
    """As shipped: bytes; with memory: mean bits per byte of archives, MB/s of all of them, by the
    time of processors, which other work on the machine disturbs least."""
    llmzip.compress(b"a text to load the model by", model=folder)
    bits, size, start = [], 0, time.process_time()
    for text in texts:
        content = text.read_bytes()[:limit]
        bits.append(8 * len(llmzip.compress(content, model=folder)) / len(content))
        size += len(content)
    return {
        "bytes": sum(path.stat().st_size for path in models.shipped(folder)),
        "archive_bits_per_byte": float(np.mean(bits)),
        "encode_mb_s": size / 1e6 / (time.process_time() - start),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
