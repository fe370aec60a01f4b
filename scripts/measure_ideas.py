#!/usr/bin/env python3
"""Two ideas for faster or smaller archives, measured before they are built.

Speculation: of one stream, several tokens are guessed and scored in one pass; the coder keeps those
that came. What a pass over several tokens costs, and how often guesses are right, bounds the gain.
Primer: all streams begin with the text's first tokens as their context.

python scripts/measure_ideas.py TEXT… --out results/ideas.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure_memory import load_model, score

from llmzip.archive.options import Options
from llmzip.bench import circumstances
from llmzip.coding.frame_codec import MOST_STREAMS, STREAM_TOKENS
from llmzip.inference.weights import Layout
from llmzip.mixing import Mixer, prior
from llmzip.tokenizer import Tokens

_GUESSES = (1, 2, 3, 5, 7)
_PRIMERS = (128, 512)  # tokens
_ALONE = 9_000  # bytes that are coded as one stream


def seconds_a_pass(model: Any, layout: Layout) -> dict[int, float]:
    """Tokens scored at once, of one stream with a full window → median seconds."""
    found = {}
    for tokens in (1, *(g + 1 for g in _GUESSES)):
        run = model.run(1, 4096)
        run.first()
        chance = np.random.default_rng(1)
        for _ in range(600):
            run.step(torch.from_numpy(chance.integers(0, model.vocabulary, 1)))
        took = []
        for _ in range(200):
            ids = torch.from_numpy(chance.integers(0, model.vocabulary, (1, tokens)))
            start = time.perf_counter()
            hidden = run._feed(ids)
            layout.weights(model.model.logits(hidden[0])).rows()
            took.append(time.perf_counter() - start)
        found[tokens] = float(np.median(took))
    return found


def speculation(text: bytes, tokens: Tokens, model: Any) -> dict[str, Any]:
    layout = Layout(model.vocabulary, tokens.size)
    table = tokens.encode(text[:_ALONE])
    shown = torch.from_numpy(table.astype(np.int64))[None]
    likeliest, place = 0, 0
    for logits in model.run(1, len(table)).score(shown):
        best = logits[:, 0].argmax(-1).numpy()
        likeliest += int((best == table[place : place + len(best)]).sum())
        place += len(best)
    scored = score(text[:_ALONE], tokens, model)
    offered = scored.candidates[:, 0, 0] >= 0
    right = scored.candidates[:, 0, 0] == scored.table[:, 0]
    rates = {
        "the memory's first candidate": float(right.mean()),
        "the memory's first candidate, where there is one": float(right[offered].mean()),
        "the model's likeliest, a bound for smaller models": likeliest / len(table),
    }
    passes = seconds_a_pass(model, layout)
    gains = {}
    for name, rate in rates.items():
        for guesses in _GUESSES:
            kept = (1 - rate ** (guesses + 1)) / (1 - rate)  # the token after them comes free
            gain = kept * passes[1] / passes[guesses + 1]
            gains[f"{guesses} guesses of {name}"] = gain
    return {
        "seconds_a_pass": passes,
        "right": rates,
        "times_as_fast_if_guesses_cost_nothing": gains,
        "best": max(gains.values()),
    }


def primer(text: bytes, tokens: Tokens, model: Any) -> dict[str, Any]:
    """Bits a byte with the memory, in the default number of streams."""
    plain = score(text, tokens, model)
    steps, streams = plain.table.shape
    assert streams == max(1, min(MOST_STREAMS, steps * streams // STREAM_TOKENS))
    found = {"streams": streams, "none": _mixed_bits(plain) / plain.size}
    layout = Layout(model.vocabulary, tokens.size)
    for length in _PRIMERS:
        first = np.ascontiguousarray(plain.table[:length, :1])
        before = np.repeat(first, streams - 1, 1)
        whole = np.concatenate([before, plain.table[:, 1:]]).T.astype(np.int64)
        step = -length
        for logits in model.run(streams - 1, steps + length).score(torch.from_numpy(whole)):
            for one in logits:
                if step >= 0:
                    weights = layout.weights(one)
                    plain.known[step, 1:] = weights.of(plain.candidates[step, 1:])
                    plain.own[step, 1:] = weights.of(plain.table[step, 1:, None])[:, 0]
                    plain.total[step, 1:] = weights.rows().sum(1)
                step += 1
        found[f"{length} tokens"] = _mixed_bits(plain) / plain.size
    return found


def _mixed_bits(scored: Any) -> float:
    mixer = Mixer(scored.table.shape[1], prior())
    bits = 0.0
    for t, ids in enumerate(scored.table):
        candidates, known, total = scored.candidates[t], scored.known[t], scored.total[t]
        mixed = mixer.mix(candidates, scored.evidence[t], known, total)
        change = np.where(candidates >= 0, mixed - known, 0).sum(1)
        hit = candidates == ids[:, None]
        own = np.where(hit.any(1), (mixed * hit).sum(1), scored.own[t])
        bits += float(np.log2((total + change) / own).sum())
        mixer.learn(candidates, scored.evidence[t], ids)
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--model", help="default: the embedded one")
    parser.add_argument("--bytes", type=int, default=200_000, help="of each text, for the primer")
    parser.add_argument("--out", type=Path, default=Path("results/ideas.json"))
    arguments = parser.parse_args()
    tokens, model = load_model(arguments.model)
    report = {**circumstances(Options(model=arguments.model)), "texts": {}}
    for path in arguments.texts:
        text = path.read_bytes()
        report["texts"][path.name] = {
            "speculation": speculation(text, tokens, model),
            "primer": primer(text[: arguments.bytes], tokens, model),
        }
        print(path.name, json.dumps(report["texts"][path.name], indent=1), flush=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
