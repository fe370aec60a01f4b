"""From a corpus to a model folder and its report: `scripts/train.py model`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from llmzip import models, output
from llmzip.errors import LlmzipError
from llmzip.inference.base import processor_name
from llmzip.train import config as configuration
from llmzip.train import data, evaluate, loop, prune
from llmzip.train.config import Config
from llmzip.train.teacher import Teacher


def train_model(
    config: Path,
    corpus: Path,
    work: Path,
    budget: float | None,
    *,
    out: Path | None = None,
    dev: Path | None = None,
    results: Path | None = None,
    phase: str = "all",
    resume: bool = False,
    start: Path | None = None,
    tokenizer: Path | None = None,
    keep: Path | None = None,
    prune_from: str | None = None,
    keep_layers: list[int] | None = None,
    distill_from: str | None = None,
    distill_weight: float | None = None,
) -> None:
    """Train a model on a folder of texts: one command from a corpus to a model and its report.

    `config`: a TOML file. `work` keeps packed tokens and checkpoints. `budget` in seconds; None:
    tokenise and pack the texts, and stop. `out` (WORK/export): the model's folder in Hugging Face
    format. `dev`: a folder of texts to evaluate on. `results` (WORK): the folder for report.json
    and loss.jsonl. `phase`, `resume`: as in `loop.train`. `start`: a checkpoint to begin with, if
    `work` has none. `tokenizer`: a tokenizer.json to use, by default the teacher's or a new one.
    `keep`: where to write the weights before the decay, in float16. `prune_from` and those after
    it replace the configuration's. Several processes of `accelerate launch` train together. Raises
    LlmzipError.
    """
    settings = configuration.load(config)
    given: dict[str, Any] = {
        "prune_from": prune_from,
        "keep_layers": keep_layers,
        "distill_from": distill_from,
        "distill_weight": distill_weight,
    }
    settings = replace(settings, **{n: value for n, value in given.items() if value is not None})
    if not corpus.is_dir() and not (work / "bytes.txt").exists():
        raise LlmzipError(f"{corpus} is no folder")
    processes = PartialState(cpu=not torch.cuda.is_available())
    with processes.main_process_first():
        settings = _prepare(settings, corpus, work, tokenizer)
    if budget is None:
        return
    checkpoint = work / "checkpoint.safetensors"
    if start is not None and processes.is_main_process and not checkpoint.exists():
        shutil.copyfile(start, checkpoint)
    processes.wait_for_everyone()
    results, out = results or work, out or work / "export"
    network, settings, teacher = _start(settings, work)
    network, progress = loop.train(
        settings,
        work,
        budget,
        phase=phase,
        resume=resume or start is not None,
        log=results / "loss.jsonl",
        network=network,
        teacher=teacher,
    )
    if not processes.is_main_process:
        return
    if keep is not None:
        stable = checkpoint if phase == "stable" else work / "stable.safetensors"
        loop.write_compact(stable, keep)
    export(network, work, out)
    report: dict[str, Any] = {
        "config": settings.as_dict(),
        "corpus_digest": data.manifest_digest(corpus) if corpus.is_dir() else None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "phase": phase,
        "progress": vars(progress),
        "machine": {
            "processor": processor_name(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }
    if dev is not None:
        texts = sorted(path for path in dev.iterdir() if path.suffix == ".txt")
        report["dev"] = {path.name: evaluate.bits_per_byte(out, path) for path in texts}
    results.mkdir(parents=True, exist_ok=True)
    output.write(results / "report.json", json.dumps(report, indent=1) + "\n")


def _prepare(settings: Config, corpus: Path, work: Path, tokenizer: Path | None) -> Config:
    """Pack the texts; the configuration with the vocabulary of a tokenizer that was given, or that
    of the teacher."""
    if settings.distill_from and tokenizer is None:
        tokenizer = work / "teacher.json"
        work.mkdir(parents=True, exist_ok=True)
        output.write(tokenizer, models.load(settings.distill_from).tokenizer_json)
    data.prepare(corpus, work, settings, tokenizer)
    if tokenizer is None:
        return settings
    size = Tokenizer.from_file(str(work / "tokenizer.json")).get_vocab_size()
    return replace(settings, vocab_size=size)


def _start(settings: Config, work: Path) -> tuple[PreTrainedModel | None, Config, Teacher | None]:
    """The pruned network, if there is one to start from, the configuration with its shape, and the
    teacher, if there is one."""
    tokenizer = (work / "tokenizer.json").read_bytes()
    network = teacher = None
    if settings.prune_from:
        files = models.load(settings.prune_from)
        files = prune.prune(files, settings.keep_layers, tokenizer, settings.window)
        network, settings = prune.network_of(files), prune.shaped(settings, files)
    if settings.distill_from:
        teacher = Teacher(settings.distill_from, tokenizer, settings.vocab_size, settings.sequence)
    return network, settings, teacher


def export(network: Any, work: Path, out: Path) -> None:
    """Write a folder in Hugging Face format: config, float32 weights, the tokenizer of `work`."""
    network.config.use_cache = True
    network.save_pretrained(out)
    content = (work / "tokenizer.json").read_bytes()
    output.write(out / "tokenizer.json", content)
    bos = network.config.bos_token_id or 0
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        # transformers would give a name that the tokenizer lacks an id beyond the vocabulary
        "bos_token": Tokenizer.from_str(content.decode()).id_to_token(bos),
        "clean_up_tokenization_spaces": False,
    }
    output.write(out / "tokenizer_config.json", json.dumps(about, indent=1) + "\n")
