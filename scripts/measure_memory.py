#!/usr/bin/env python3
"""What the memory brings: bits per byte of texts without it, with matches alone, with contexts
alone, with both, and with the adaptive correction on top; as JSON and as a plot. With --archives
also whole archives of those texts, and of two made ones, beside xz -9e and zstd -22 --long.

python scripts/measure_memory.py TEXT... --archives MORE... --out results/memory.json
"""

from __future__ import annotations

import argparse
import io
import json
import lzma
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

import llmzip
from llmzip import inference, models
from llmzip.archive.options import Options
from llmzip.bench import circumstances
from llmzip.coding import frame_codec
from llmzip.inference.weights import Layout
from llmzip.mixing import CANDIDATES, MATCH, Mixer, Recall, kinds, prior
from llmzip.tokenizer import Tokens

WAYS = ("none", "matches", "contexts", "both", "both, corrected")


class _Uncorrected(Mixer):
    """Its adaptive table never adapts."""

    def learn(self, candidates: np.ndarray, evidence: np.ndarray, ids: np.ndarray) -> None:
        before = self._refined.copy()
        super().learn(candidates, evidence, ids)
        self._refined[:] = before


def only(way: str, candidates: np.ndarray, evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidates and evidence as if the other sources did not exist."""
    if way not in ("matches", "contexts"):
        return candidates, evidence
    evidence = evidence.copy()
    if way == "matches":
        evidence[..., :MATCH] = 0
        known = np.asarray((evidence[..., MATCH] >= 16) & (evidence[..., MATCH] < 80))
    else:
        evidence[..., MATCH] = 0
        known = np.asarray((evidence >= 8).any(-1))
    order = np.argsort(~known, axis=-1, kind="stable")  # the coder's candidates have no gaps
    kept = np.take_along_axis(np.where(known, candidates, -1), order, -1)
    return kept, np.take_along_axis(evidence, order[..., None], -2)


@dataclass
class Scored:
    """A text's ids [T, S], what is recalled for each, and what the language model gives."""

    size: int  # bytes
    table: np.ndarray
    candidates: np.ndarray
    evidence: np.ndarray
    known: np.ndarray  # weights of the candidates
    own: np.ndarray  # of the id that came
    total: np.ndarray


def score(content: bytes, tokens: Tokens, model: Any) -> Scored:
    """In as many streams as by default."""
    ids = tokens.encode(content)
    streams = max(1, min(frame_codec.MOST_STREAMS, len(ids) // frame_codec.STREAM_TOKENS))
    table = ids[: len(ids) // streams * streams].reshape(streams, -1).T.astype(np.int32)
    table = np.ascontiguousarray(table)
    steps = len(table)
    candidates, evidence = Recall(streams, steps, kinds(tokens.spellings)).recall_all(
        table, streams
    )
    layout = Layout(model.vocabulary, tokens.size)
    known = np.zeros((steps, streams, CANDIDATES))
    own, total = np.zeros((steps, streams)), np.zeros((steps, streams))
    shown = torch.from_numpy(np.where(table < model.vocabulary, table, 0).T.astype(np.int64))
    step = 0
    for logits in model.run(streams, steps).score(shown):
        n = len(logits)
        weights = layout.weights(logits.reshape(n * streams, -1))
        asked = candidates[step : step + n].reshape(n * streams, -1)
        came = table[step : step + n].reshape(-1, 1)
        known[step : step + n] = weights.of(asked).reshape(n, streams, -1)
        own[step : step + n] = weights.of(came).reshape(n, streams)
        total[step : step + n] = weights.rows().sum(1).reshape(n, streams)
        step += n
    size = len(tokens.decode(np.ascontiguousarray(table.T).reshape(-1)))
    return Scored(size, table, candidates, evidence, known, own, total)


def measure(scored: Scored) -> dict[str, float]:
    """Way → bits per byte."""
    table, candidates, total = scored.table, scored.candidates, scored.total
    found = {"none": float(np.log2(total / scored.own).sum()) / scored.size}
    for way in WAYS[1:]:
        streams = table.shape[1]
        mixer = (_Uncorrected if way == "both" else Mixer)(streams, prior())
        bits = 0.0
        for t in range(len(table)):
            chosen, reasons = only(way, candidates[t], scored.evidence[t])
            places = np.argmax(chosen[:, :, None] == candidates[t][:, None, :], -1)
            weight = np.take_along_axis(scored.known[t], places, -1)
            mixed = mixer.mix(chosen, reasons, weight, total[t])
            given = chosen >= 0
            change = np.where(given, mixed - weight, 0).sum(1)
            hit = given & (chosen == table[t][:, None])
            mine = np.where(hit.any(1), (mixed * hit).sum(1), scored.own[t])
            bits += float(np.log2((total[t] + change) / mine).sum())
            mixer.learn(chosen, reasons, table[t])
        found[way] = bits / scored.size
    return found


def load_model(name: str | None) -> tuple[Tokens, Any]:
    files = models.load(name or models.DEFAULT)
    model = inference.build(
        files,
        activations=inference.DEFAULT_ACTIVATIONS,
        context=inference.default_context(files),
    )
    return Tokens(files.tokenizer_json, model.vocabulary), model


def repeated_line() -> bytes:
    """10 MB of one line."""
    line = b"2026-01-31T23:59:59Z INFO worker 7: nothing to do, sleeping for 5 seconds\n"
    return line * (10_000_000 // len(line))


def template_log() -> bytes:
    """5 MB: 200 lines over and over, the numbers in them changing."""
    chance = random.Random(1)
    words = [
        f"{a}{b}" for a in ("serv", "work", "cach", "rout", "queu") for b in ("er", "ed", "ing")
    ]
    template = [
        " ".join(chance.choice(words) if chance.random() < 0.7 else "{}" for _ in range(12))
        for _ in range(200)
    ]
    lines, size = [], 0
    while size < 5_000_000:
        for form in template:
            numbers = (str(chance.randrange(10 ** chance.randrange(1, 5))) for _ in range(12))
            line = form.format(*numbers) + "\n"
            lines.append(line)
            size += len(line)
    return "".join(lines).encode()


def archive_size(content: bytes, options: Options) -> int:
    sink = io.BytesIO()
    writer = llmzip.ArchiveWriter(sink, options)
    writer.write(content)
    writer.finish()
    return sink.tell()


def archives(paths: list[Path], model: str | None) -> Iterator[dict[str, Any]]:
    """Bytes of whole archives; of texts also of those that are written without memory."""
    long = zstandard.ZstdCompressionParameters.from_level(22, window_log=27, enable_ldm=True)
    made = {"(5 MB log)": template_log, "(10 MB of one line)": repeated_line}
    texts = {path.name: path.read_bytes for path in paths} | made
    for name, read in texts.items():
        content = read()
        entry: dict[str, Any] = {
            "text": name,
            "bytes": len(content),
            "llmzip": archive_size(content, Options(model=model)),
            "xz -9e": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
            "zstd -22 --long": len(
                zstandard.ZstdCompressor(compression_params=long).compress(content)
            ),
        }
        if name not in made:
            without = archive_size(content, Options(model=model, memory=False))
            entry["llmzip --no-memory"] = without
            entry["saved_percent"] = 100 * (1 - entry["llmzip"] / without)
        print(entry, flush=True)
        yield entry


def plot(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 5))
    width = 0.8 / (len(WAYS) + 1)
    places = np.arange(len(results))
    for i, way in enumerate((*WAYS, "xz -9e")):
        heights = [r["xz"] if way == "xz -9e" else r["bits_per_byte"][way] for r in results]
        colour = "0.6" if way == "xz -9e" else pyplot.get_cmap("viridis")(i / len(WAYS))
        axes.bar(places + (i - len(WAYS) / 2) * width, heights, width, label=way, color=colour)
    axes.set_xticks(places, [r["text"] for r in results], rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("bits per byte")
    axes.legend(title="memory", loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--archives", nargs="*", type=Path, metavar="TEXT")
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--bytes", type=int, default=200_000, help="of each text")
    parser.add_argument("--out", type=Path, default=Path("results/memory.json"))
    arguments = parser.parse_args()
    tokens, model = load_model(arguments.model)
    results = []
    for path in arguments.texts:
        content = path.read_bytes()[: arguments.bytes]
        entry: dict[str, Any] = {"text": path.name, "bytes": len(content)}
        entry["bits_per_byte"] = measure(score(content, tokens, model))
        entry["xz"] = 8 * len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) / len(content)
        results.append(entry)
        bits = entry["bits_per_byte"]
        print(path.name, *(f"{way} {bits[way]:.4f}" for way in WAYS), f"xz {entry['xz']:.4f}")
    report = {**circumstances(Options(model=arguments.model)), "results": results}
    if arguments.archives is not None:
        report["archives"] = list(archives(arguments.archives, arguments.model))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    plot(results, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
