"""Packed tokens → trained weights: warm-up, stable and decay phases by a budget of time.

Resumable: a checkpoint holds weights, optimiser states, step and seconds; batches depend on the
step alone. One process or several, CPU or GPU, by accelerate.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors import safe_open
from safetensors.torch import load_file, save
from tqdm import tqdm
from transformers import PreTrainedModel

from llmzip import output
from llmzip.train import data, model, optim
from llmzip.train.config import Config
from llmzip.train.teacher import Teacher

_SAVE_SECONDS = 300
_LOG_STEPS = 25
_PREFIX = "model."  # of weights in checkpoints
PHASES = ("stable", "decay", "all")


@dataclass
class Progress:
    """How far training has come: optimiser steps, tokens of all processes, seconds of training."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    loss: float = math.nan  # nats a token, in the mean of the last steps that were logged


@contextmanager
def _subnormals_flushed() -> Iterator[None]:
    """Processors are slow with the subnormal numbers in optimiser states."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        # the mode is the thread's: what runs in it next must not be computed otherwise
        torch.set_flush_denormal(False)


@_subnormals_flushed()
def train(
    config: Config,
    work: Path,
    budget: float,
    *,
    phase: str = "all",
    resume: bool = False,
    log: Path | None = None,
    network: PreTrainedModel | None = None,
    teacher: Teacher | None = None,
    max_steps: int | None = None,
) -> tuple[PreTrainedModel, Progress]:
    """Train for `budget` seconds (of this call) on what `data.prepare` left in `work`.

    `stable` holds the rate, `decay` lets it fall to nothing and ends with quantisation switched on,
    `all` does one after the other, in the shares that the config gives. Checkpoints and the loss
    curve go to `work` (or `log`). `network` is trained on instead of a fresh one. With a `teacher`,
    its predictions are learned, too; the loss that is logged stays that of the texts. `max_steps`
    replaces the budget, for runs that must not depend on speed. Raises LlmzipError for too few
    tokens.
    """
    cuda = torch.cuda.is_available()
    # without cpu=True, processes started by torchrun would each train on their own
    accelerator = Accelerator(
        cpu=not cuda, mixed_precision="bf16" if optim.fast_bfloat16(cuda) else "no"
    )
    network = model.build(config) if network is None else network
    # fused optimisers want their parameters where they stay
    network.to(accelerator.device)
    optimisers = optim.optimisers(network, config)
    progress = Progress()
    checkpoint = work / "checkpoint.safetensors"
    if resume and checkpoint.exists():
        progress = _load(checkpoint, network, optimisers)
    trainee = model.Trainee(network, config.distill_weight)
    if config.compile and cuda:
        trainee.compile_layers()
    prepared, *optimisers = accelerator.prepare(trainee, *optimisers)
    if teacher is not None:
        teacher.to(accelerator.device)
    nats_to_bits = _bits_per_byte(work)
    decay_from = {"stable": 1.0, "decay": 0.0, "all": 1 - config.decay_share}[phase]
    quantised_from = 1.0 if phase == "stable" else 1 - config.quantised_share
    keep_stable = phase != "stable"
    first_step, saved, start = progress.step, time.time(), time.time()
    before = progress.seconds
    log = log or work / "loss.jsonl"
    main = accelerator.is_main_process
    if main:
        _rewind(log, progress.step)
    total = torch.zeros((), device=accelerator.device)  # nats since last logged
    logged = progress.step
    bar = tqdm(total=round(budget), unit="s", desc=config.name, disable=None if main else True)
    while True:
        spent = (time.time() - start) / budget
        if accelerator.num_processes > 1:  # one clock for all, or some would wait for ever
            clock = torch.tensor(spent, device=accelerator.device)
            spent = float(broadcast(clock))
        steps = progress.step - first_step
        if steps >= max_steps if max_steps is not None else spent >= 1:
            break
        if max_steps is not None:  # tests: by steps, which are the same on every machine
            spent = steps / max_steps
        if spent >= decay_from and keep_stable:
            keep_stable = False
            if main:
                _save(work / "stable.safetensors", network, optimisers, progress)
        if spent >= quantised_from and not trainee.quantised:
            trainee.quantise()
        falling = 1.0 if spent < decay_from else max(0.01, (1 - spent) / (1 - decay_from))
        optim.set_rates(
            optimisers, config, falling * min(1, (progress.step + 1) / config.warmup_steps)
        )
        rows = data.batches(
            work, config, progress.step, accelerator.process_index, accelerator.num_processes
        )
        ids = torch.from_numpy(rows).to(accelerator.device)
        with accelerator.autocast():
            loss, nats = prepared(ids, None if teacher is None else teacher(ids))
        total += nats
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        progress.step += 1
        progress.tokens += rows.size * accelerator.num_processes
        progress.seconds = before + time.time() - start
        if main and progress.step % _LOG_STEPS == 0:
            progress.loss = float(total) / (progress.step - logged)  # waits for the device
            total.zero_()
            logged = progress.step
            bits = progress.loss * nats_to_bits
            _append(log, progress, bits, falling)
            bar.set_postfix(bits_per_byte=f"{bits:.3f}", tokens=f"{progress.tokens / 1e6:.1f}M")
            bar.n = min(bar.total, round(time.time() - start))
            bar.refresh()
            if time.time() - saved > _SAVE_SECONDS:
                _save(checkpoint, network, optimisers, progress)
                saved = time.time()
    bar.close()
    if main:
        _save(checkpoint, network, optimisers, progress)
    return network, progress


def _bits_per_byte(work: Path) -> float:
    """From nats a token to bits a byte, in the mean over the packed text."""
    import numpy as np

    tokens = len(np.load(work / "tokens.npy", mmap_mode="r"))
    return tokens / float((work / "bytes.txt").read_text()) / math.log(2)


def _rewind(log: Path, step: int) -> None:
    """Drop entries after the step that training resumes from: it is done again."""
    if log.exists():
        lines = log.read_text().splitlines(keepends=True)
        kept = "".join(line for line in lines if json.loads(line)["step"] <= step)
        output.write(log, kept)


def _append(log: Path, progress: Progress, bits: float, falling: float) -> None:
    entry = {
        "step": progress.step,
        "tokens": progress.tokens,
        "seconds": round(progress.seconds, 1),
        "loss": round(progress.loss, 4),
        "bits_per_byte": round(bits, 4),
        "rate": round(falling, 4),
    }
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _save(
    path: Path,
    network: PreTrainedModel,
    optimisers: list[torch.optim.Optimizer],
    progress: Progress,
) -> None:
    tensors = {_PREFIX + name: p.detach().cpu() for name, p in network.named_parameters()}
    tensors |= {f"optimiser.{name}": t.cpu() for name, t in optim.state(optimisers).items()}
    metadata = {key: repr(value) for key, value in vars(progress).items()}
    output.write(path, save(tensors, metadata=metadata))


def write_compact(checkpoint: Path, target: Path) -> None:
    """A checkpoint's weights alone, in float16: small enough to keep with the project."""
    with safe_open(checkpoint, "pt") as file:
        names = list(file.keys())
        tensors = {n: file.get_tensor(n).half() for n in names if n.startswith(_PREFIX)}
        metadata = file.metadata()
    target.parent.mkdir(parents=True, exist_ok=True)
    output.write(target, save(tensors, metadata=metadata))


def _load(
    path: Path, network: PreTrainedModel, optimisers: list[torch.optim.Optimizer]
) -> Progress:
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(tensors[_PREFIX + name])
    prefix = "optimiser."
    states = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
    if states:  # a compact checkpoint has none: their averages begin anew
        optim.restore(optimisers, states)
    with safe_open(path, "pt") as file:
        saved = file.metadata()
    return Progress(
        step=int(saved["step"]),
        tokens=int(saved["tokens"]),
        seconds=float(saved["seconds"]),
        loss=float(saved["loss"]),
    )
