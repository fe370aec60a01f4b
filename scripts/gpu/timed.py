#!/usr/bin/env python3
"""Train a model on packed texts for a given time, on a GPU or a CPU: scripts/gpu/train.

scripts/gpu/train --start START --data SLICE… --held-out FOLDER --out OUT --seconds 540

`prepare.py` makes START, the slices and the held-out texts. OUT becomes a model folder in pieces of
at most 16 MiB, which `--model` takes; the same command goes on from it. OUT/log.jsonl has the loss,
and that of the held-out texts by category. The learning rate falls to nothing at the end of the
time, which counts from the start of this program.
"""

from __future__ import annotations

import time

STARTED = time.time()  # before the imports, which take a part of the time, too

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import blocks  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch import Tensor  # noqa: E402

from llmzip.errors import LlmzipError  # noqa: E402
from llmzip.train import losses, model, optim, shards  # noqa: E402
from llmzip.train.config import Config  # noqa: E402

BATCH_OF_DOCUMENTS = 2048  # that are tokenised together
LOG_STEPS = 25
WARM_STEPS = 3


@dataclass
class Text:
    """Packed tokens, BOS before each document, and the bytes of text in them."""

    tokens: Tensor  # int32 [n]
    size: int


@dataclass
class Session:
    """What one run of this program has and how far it is."""

    given: argparse.Namespace
    config: Config
    trainee: model.Trainee
    optimisers: list[torch.optim.Optimizer]
    text: Text
    held_out: dict[str, Text]
    settings: dict[str, Any]  # config.json
    progress: dict[str, Any] = field(default_factory=dict)

    def log(self, **entry: Any) -> None:
        """A line for the log and for whoever watches."""
        line = json.dumps({"time": round(time.time() - STARTED, 1), **entry})
        print(line, flush=True)
        with (self.given.out / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def save(self) -> float:
        """Write the model; returns the seconds that it took."""
        began = time.time()
        weights = dict(self.trainee.network.named_parameters())
        tokenizer = (self.given.start_folder / "tokenizer.json").read_bytes()
        shards.write(self.given.out, self.settings, tokenizer, weights, self.progress)
        return time.time() - began


def tokenised(tokenizer: Tokenizer, documents: list[str], bos: int) -> Text:
    """Documents in this order, each after a BOS."""
    parts, size = [], 0
    for i in range(0, len(documents), BATCH_OF_DOCUMENTS):
        batch = documents[i : i + BATCH_OF_DOCUMENTS]
        size += sum(len(document.encode()) for document in batch)
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            parts.append(torch.tensor([bos, *encoding.ids], dtype=torch.int32))
    return Text(torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32), size)


def begin(given: argparse.Namespace) -> Session:
    """Read and build everything. Raises LlmzipError."""
    given.out.mkdir(parents=True, exist_ok=True)
    given.start_folder = given.out if shards.exists(given.out) else given.start
    settings, weights, progress = shards.read(given.start_folder)
    tokenizer = Tokenizer.from_file(str(given.start_folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # "<|bos|>" in a text is text
    bos = int(settings["bos_token_id"])
    config = Config(
        name=given.out.name,
        mix={"texts": 1.0},
        window=settings["sliding_window"],
        sequence=given.sequence,
        batch=given.batch,
        matrix_rate=given.matrix_rate,
        other_rate=given.other_rate,
        warmup_steps=given.warmup,
        seed=given.seed,
        compile=given.device == "cuda" and not given.no_compile,
    )
    documents = [d for _, found in blocks.read_all(given.data) for d in found]
    random.Random(given.seed).shuffle(documents)
    text = tokenised(tokenizer, documents, bos)
    if len(text.tokens) < config.sequence + 2:
        raise LlmzipError(f"{len(text.tokens)} tokens are less than a sequence of {given.sequence}")
    held_out = {
        category: tokenised(tokenizer, found, bos)
        for category, found in blocks.read_all([given.held_out])
        if found
    }
    if not held_out:
        raise LlmzipError(f"{given.held_out} has no held-out texts")
    network = model.from_weights(settings, weights).to(given.device)
    cuda = given.device == "cuda"
    if cuda:
        # without this, the sums along the layers would be float32 and take twice the traffic
        network.get_input_embeddings().register_forward_hook(lambda _, __, x: x.bfloat16())
    trainee = model.Trainee(network)
    if config.compile:
        trainee.compile_layers()
    text.tokens = text.tokens.to(given.device)
    optimisers = optim.optimisers(network, config)
    return Session(given, config, trainee, optimisers, text, held_out, settings, progress)


def batches(session: Session) -> Iterator[Tensor]:
    """Yield int64 [batch, sequence] without end. Each epoch has an order and an offset of its own;
    a run that goes on from another has others."""
    config, tokens = session.config, session.text.tokens
    chance = torch.Generator().manual_seed(config.seed + int(session.progress.get("step", 0)))
    span = torch.arange(config.sequence, device=tokens.device)
    count = max(1, len(tokens) // config.sequence - 1)
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while len(waiting) < config.batch:
            offset = torch.randint(config.sequence, (1,), generator=chance)
            offset = offset.clamp(max=len(tokens) - count * config.sequence)
            order = torch.randperm(count, generator=chance) * config.sequence + offset
            waiting = torch.cat([waiting, order])
        first, waiting = waiting[: config.batch], waiting[config.batch :]
        yield tokens[first.to(tokens.device)[:, None] + span].long()


def autocast(session: Session) -> torch.autocast:
    """Products in bfloat16 where that is fast."""
    device = session.given.device
    return torch.autocast(
        device, torch.bfloat16, enabled=optim.fast_bfloat16(device == "cuda"), cache_enabled=True
    )


def evaluate(session: Session) -> dict[str, float]:
    """Bits per byte of each held-out text, in windows that begin with BOS."""
    config = session.config
    bos, room = int(session.settings["bos_token_id"]), config.sequence - 1
    counts = {category: len(text.tokens) - 1 for category, text in session.held_out.items()}
    parts = []
    for text in session.held_out.values():
        ids = text.tokens[1:].long()
        parts.append(torch.nn.functional.pad(ids, (0, -len(ids) % room), value=bos).view(-1, room))
    windows = torch.nn.functional.pad(torch.cat(parts), (1, 0), value=bos)
    # whole batches, as compiled code is made for these
    windows = torch.nn.functional.pad(windows, (0, 0, 0, -len(windows) % config.batch), value=bos)
    nats = []
    for batch in torch.split(windows.to(session.given.device), config.batch):
        # gradients stay on, so that the compiled code of training serves
        with autocast(session):
            hidden, weight = session.trainee.hidden(batch)
            labels = batch[:, 1:].flatten()
            nats.append(losses.token_nats(hidden[:, :-1].flatten(0, 1), weight, labels).cpu())
    sizes = [part.numel() for part in parts]
    by_part = torch.split(torch.cat(nats)[: sum(sizes)], sizes)
    return {
        category: round(float(found[: counts[category]].sum()) / math.log(2) / text.size, 4)
        for (category, text), found in zip(session.held_out.items(), by_part, strict=True)
    }


def report(session: Session, finish: bool) -> float:
    """Log the held-out losses; returns the seconds that it took."""
    began = time.time()
    by_category = evaluate(session)
    mean = sum(by_category.values()) / max(1, len(by_category))
    step = session.progress.get("step", 0)
    session.log(
        event="held-out",
        step=step,
        quantised=finish,
        mean=round(mean, 4),
        bits_per_byte=by_category,
    )
    return time.time() - began


def train(session: Session) -> None:
    """Until the time is over, but for what the last evaluation and the last save need."""
    given, config, trainee, progress = (
        session.given, session.config, session.trainee, session.progress,
    )  # fmt: skip
    source = batches(session)
    if config.compile:  # both forms, before anything is timed
        for quantised in (True, False):
            trainee.quantise(quantised)
            with autocast(session):
                loss, _ = trainee(next(source))
            loss.backward()
            trainee.zero_grad(set_to_none=True)
    reserve = 1.5 * (report(session, False) + session.save()) + 0.5
    nats_to_bits = len(session.text.tokens) / session.text.size / math.log(2)
    total = torch.zeros((), device=given.device)
    first_step = step = int(progress.get("step", 0))
    begun = logged_at = saved = time.time()
    budget = max(0.0, given.seconds - (begun - STARTED) - reserve)
    logged, rate = step, 0.0
    warm = 0.0  # seconds of the first steps, which take longer where code is compiled
    for ids in source:
        passed, steps = time.time() - begun, step - first_step
        if steps == WARM_STEPS:
            warm = passed
        a_step = (passed - warm) / (steps - WARM_STEPS) if steps > WARM_STEPS else 0.0
        if passed + a_step >= budget:
            break
        spent = passed / budget
        if spent >= 1 - given.finish and not trainee.quantised:
            trainee.quantise()
            session.log(event="finish", step=step)
        rate = min(1.0, (steps + 1) / config.warmup_steps)
        rate *= 1 if spent < 1 - given.decay else (1 - spent) / given.decay
        optim.set_rates(session.optimisers, config, rate)
        with autocast(session):
            loss, nats = trainee(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainee.parameters(), 1.0)
        for optimiser in session.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        total += nats
        step += 1
        progress["step"] = step
        progress["tokens"] = progress.get("tokens", 0) + ids.numel()
        if (step - first_step) % LOG_STEPS == 0:
            mean = float(total) / (step - logged)  # waits for the device
            seconds, logged_at = time.time() - logged_at, time.time()
            session.log(
                step=step,
                tokens=progress["tokens"],
                loss=round(mean, 4),
                bits_per_byte=round(mean * nats_to_bits, 4),
                rate=round(rate, 4),
                tokens_per_second=round(ids.numel() * (step - logged) / seconds),
            )
            total.zero_()
            logged = step
            if time.time() - saved > given.save_seconds:
                report(session, trainee.quantised)
                session.save()
                saved = time.time()
    session.save()
    report(session, trainee.quantised)
    session.log(event="end", step=step, tokens=progress.get("tokens", 0), last_rate=round(rate, 5))


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--start", type=Path, required=True, help="what prepare.py start wrote, if OUT is empty")
    add("--data", type=Path, required=True, nargs="+", help="slices of prepare.py slices")
    add("--held-out", type=Path, required=True, help="what prepare.py held-out wrote")
    add("--out", type=Path, required=True)
    add("--seconds", type=float, required=True, help="time from start to end, all included")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--batch", type=int, default=32, help="sequences a step")
    add("--sequence", type=int, default=2048, help="tokens, a multiple of the window")
    add("--matrix-rate", type=float, default=0.002, help="of Muon")
    add("--other-rate", type=float, default=0.002, help="of AdamW, for embeddings and norms")
    add("--warmup", type=int, default=60, help="steps")
    add("--decay", type=float, default=0.5, help="share of the time in which the rate falls to 0")
    add("--finish", type=float, default=0.2, help="share of the time, at its end, with int8 "
        "weights and activations")  # fmt: skip
    add("--save-seconds", type=float, default=120, help="between checkpoints")
    add("--seed", type=int, default=1)
    add("--no-compile", action="store_true", help="without torch.compile on a GPU")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    given = parse(words)
    try:
        session = begin(given)
    except LlmzipError as error:
        print(f"train: {error}", file=sys.stderr)
        return 1
    session.log(
        event="start",
        start=str(given.start_folder),
        parameters=sum(p.numel() for p in session.trainee.parameters()),
        tokens=len(session.text.tokens),
        bytes=session.text.size,
        torch=torch.__version__,
        device=torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        progress=dict(session.progress),
    )
    train(session)
    return 0


if __name__ == "__main__":
    sys.exit(main())
