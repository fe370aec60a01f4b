"""Small proxies of a model, trained for minutes → what a change of its recipe is worth.

One change at a time from the same configuration: another seed (the noise of the comparison), each
group of texts doubled, no quantised steps at the end, hashed n-grams at the input.
"""

from __future__ import annotations

import json
import statistics
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from llmzip import models, output
from llmzip.coding.frame_codec import FrameCodec
from llmzip.coding.progress import silent
from llmzip.coding.streams import Cut
from llmzip.inference import Context
from llmzip.tokenizer import Tokens
from llmzip.train import config as configuration
from llmzip.train import data, loop, model
from llmzip.train.config import Config
from measuring import Report, argument, command, report_of

GROUPS = {
    "books": ("en-books",),
    "wiki": ("en-wiki", "en-web"),
    "docs": ("en-docs", "en-dialog"),
    "code": ("code",),
    "tables": ("markup", "data"),
    "east-asian": ("zh", "ja", "ko"),
    "european": ("de", "fr", "es", "ru", "pt", "it", "multi"),
}
ROWS = 1 << 15  # of each table of n-grams
PRIMES = 0x9E3779B1, 0x85EBCA77
HEAD = 60_000  # bytes of each text of dev
CHUNK = 512  # tokens whose logits are held at a time


class NgramEmbedding(nn.Embedding):
    """A token's vector + rows of two tables that the last two and three tokens select by a hash.

    Memory without products (Huang et al., "Over-Tokenized Transformer", 2025). The tables are
    embeddings by name, so AdamW trains them; they begin at zero.
    """

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__(tokens.num_embeddings, tokens.embedding_dim, _weight=tokens.weight.data)
        self.weight = tokens.weight  # which is the head's, too
        zeros = torch.zeros(2, ROWS, tokens.embedding_dim)
        self.embed_ngrams = nn.ParameterList(nn.Parameter(table) for table in zeros)

    def forward(self, ids: Tensor) -> Tensor:
        vectors, key = super().forward(ids), ids
        for i, table in enumerate(self.embed_ngrams, 1):
            before = nn.functional.pad(ids, (i, 0))[:, : ids.shape[1]]
            key = (key * PRIMES[0] + before * PRIMES[1] + 1) & 0xFFFFFFFF
            vectors = vectors + nn.functional.embedding((key >> 7) % ROWS, table)
        return vectors


def variants(config: Config) -> dict[str, Config]:
    """Name → configuration; names of groups have the shares of their categories doubled."""
    found = {
        "base": config,
        "seed": replace(config, seed=config.seed + 1),
        "not-quantised": replace(config, quantised_share=0.0),
        "ngrams": config,
    }
    for group, members in GROUPS.items():
        mix = {name: share * (2 if name in members else 1) for name, share in config.mix.items()}
        found[group] = replace(config, mix=mix)
    return found


@command(
    "results/training/proxies.json",
    argument("corpus", type=Path, help="texts to train on"),
    argument("dev", type=Path, help="texts to evaluate on"),
    argument("--config", type=Path, default=Path("scripts/configs/nano.toml")),
    argument("--tokenizer-of", default="nano", metavar="MODEL"),
    argument("--work", type=Path, required=True, help="folder for tokens and checkpoints"),
    argument("--tokens", type=float, default=5e6, help="to train on"),
    argument("--only", nargs="*", metavar="NAME", help="variants (default: all)"),
    argument("--workers", type=int, default=1, help="runs at a time, of one thread each"),
)
def proxies(given: Namespace) -> Report:
    """Bits per byte of texts that small models were not trained on, by how they were trained."""
    config = configuration.load(given.config)
    chosen = {
        name: made
        for name, made in variants(replace(config, corpus_bytes=int(given.tokens * 4))).items()
        if not given.only or name in given.only
    }
    steps = int(given.tokens / config.batch / config.sequence)
    tasks = [
        (name, made, given.corpus, given.dev, given.work / name, given.tokenizer_of, steps)
        for name, made in chosen.items()
    ]
    with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
        results = list(tqdm(pool.map(_run, tasks), total=len(tasks), unit="run"))
    report = report_of(None, sweep="recipes by proxies", tokens=int(given.tokens), results=results)
    if {"base", *GROUPS} <= chosen.keys():
        report["groups"] = _groups(config, results)
    return report


def _groups(config: Config, results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Each group's share, what doubling it does to the mean, and the share that would be best.

    Near the shares that were tried the mean is taken for a sum of a(g) · log2 share(g). Doubling
    one share also takes from all others, so the a(g) follow from a linear system. The sum is least
    where shares are proportional to -a(g): an extrapolation, of which half the way is prudent.
    """
    mean = {result["name"]: result["mean"]["mixed"] for result in results}
    total = sum(config.mix.values())
    share = np.array([sum(config.mix[m] for m in members) / total for members in GROUPS.values()])
    steps = np.eye(len(share)) - np.log2(1 + share)[:, None]
    gains = np.array([mean["base"] - mean[group] for group in GROUPS])
    slopes = np.linalg.solve(steps, gains).clip(0)
    best = slopes / slopes.sum()
    return {
        group: {"share": share[i], "doubled": -gains[i] / mean["base"], "best": best[i]}
        for i, group in enumerate(GROUPS)
    }


def _run(task: tuple[str, Config, Path, Path, Path, str, int]) -> dict[str, Any]:
    """Train and evaluate, unless WORK has the figures of an earlier call."""
    name, config, corpus, dev, work, tokenizer_of, steps = task
    known = work / "result.json"
    if known.exists():
        result: dict[str, Any] = json.loads(known.read_text())
        return result
    torch.set_num_threads(1)
    files = models.load(tokenizer_of)
    network: Any = model.build(config)
    if name == "ngrams":
        network.model.embed_tokens = NgramEmbedding(network.model.embed_tokens)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = work / "given.json"
    tokenizer.write_bytes(files.tokenizer_json)
    data.prepare(corpus, work, config, tokenizer)
    loop.train(config, work, 1e9, network=network, max_steps=steps)
    predictor: Any = Scoring(network, config)  # what scoring needs of a Predictor
    tokens = Tokens(files.tokenizer_json, config.vocab_size)
    texts: dict[str, dict[str, float]] = {}
    for kind, mixing in (("alone", "none"), ("mixed", "full")):
        codec = FrameCodec(tokens, predictor, mixing=mixing)
        for text in sorted(dev.glob("*.txt")):
            content = text.read_bytes()[:HEAD]
            frame = codec.encode(content, Cut(1), silent)
            texts.setdefault(text.stem, {})[kind] = 8 * len(frame.payload) / len(content)
    means = {kind: statistics.mean(t[kind] for t in texts.values()) for kind in ("alone", "mixed")}
    result = {"name": name, "mean": means, "texts": texts}
    output.write(known, json.dumps(result, indent=1) + "\n")
    return result


class Scoring:
    """A network as exact inference would quantise it, in floating point: a predictor that can
    score a text, but not decode it."""

    fingerprint = b""
    context = Context(1 << 20, 1 << 10)
    on_gpu, kernels, uses_torch = False, None, True

    def __init__(self, network: Any, config: Config) -> None:
        network.train(False)
        self._trainee = model.Trainee(network)
        self._trainee.quantise()
        self._window, self.vocabulary = config.window, config.vocab_size

    def run(self, streams: int, steps: int, *_: object) -> Scoring:
        return self

    def memory(self, streams: int, steps: int) -> int:
        return 0

    def cores(self, rows: int) -> int:
        return 1

    def score(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """As that of `inference.Run`."""
        given = torch.from_numpy(ids.copy())
        length = given.shape[1]
        seen = torch.nn.functional.pad(given[:, :-1], (1, -length % self._window))
        with torch.inference_mode():
            hidden, weight = self._trainee.hidden(seen)
            for part in torch.split(hidden[:, :length], CHUNK, 1):
                yield (part @ weight.T).transpose(0, 1).contiguous().numpy()
