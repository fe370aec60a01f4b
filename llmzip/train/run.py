"""From a corpus to a model folder and its report: what scripts/train_model.py runs."""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from llmzip import output
from llmzip.errors import LlmzipError
from llmzip.train import config as configuration
from llmzip.train import data, loop

_UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(text: str) -> float:
    """ "90s", "45m", "2h", "1.5h" → seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 45m or 2h")
    return float(match[1]) * _UNITS[match[2]]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train an embedded model from a corpus.")
    parser.add_argument("--config", type=Path, required=True, help="TOML file")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of texts")
    parser.add_argument("--budget", type=seconds, help="such as 90s, 45m, 2h")
    parser.add_argument("--work", type=Path, required=True, help="folder for tokens, checkpoints")
    parser.add_argument("--out", type=Path, help="folder for the model (default: WORK/export)")
    parser.add_argument("--dev", type=Path, help="folder of texts to evaluate on, never trained on")
    parser.add_argument("--results", type=Path, help="folder for report.json and loss.jsonl")
    parser.add_argument("--phase", choices=loop.PHASES, default="all")
    parser.add_argument("--resume", action="store_true", help="go on from WORK's checkpoint")
    parser.add_argument("--start", type=Path, help="a checkpoint to begin with, if WORK has none")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, instead of a new one")
    parser.add_argument("--keep", type=Path, help="where to write the weights before the decay")
    parser.add_argument("--prepare-only", action="store_true", help="tokenise and pack, then stop")
    return parser


def main(arguments: list[str] | None = None) -> int:
    options = parser()
    given = options.parse_args(arguments)
    if given.budget is None and not given.prepare_only:
        options.error("--budget is needed, unless --prepare-only")
    try:
        run(given)
    except LlmzipError as error:
        print(f"train_model: {error}", file=sys.stderr)
        return 1
    return 0


def run(given: argparse.Namespace) -> None:
    settings = configuration.load(given.config)
    if not given.corpus.is_dir() and not (given.work / "bytes.txt").exists():
        raise LlmzipError(f"{given.corpus} is no folder")
    processes = PartialState(cpu=not torch.cuda.is_available())
    with processes.main_process_first():
        data.prepare(given.corpus, given.work, settings, given.tokenizer)
    if given.prepare_only:
        return
    checkpoint = given.work / "checkpoint.safetensors"
    if given.start is not None and processes.is_main_process and not checkpoint.exists():
        shutil.copyfile(given.start, checkpoint)
    processes.wait_for_everyone()
    results = given.results or given.work
    out = given.out or given.work / "export"
    network, progress = loop.train(
        settings,
        given.work,
        given.budget,
        phase=given.phase,
        resume=given.resume or given.start is not None,
        log=results / "loss.jsonl",
    )
    if not processes.is_main_process:
        return
    if given.keep is not None:
        stable = checkpoint if given.phase == "stable" else given.work / "stable.safetensors"
        loop.write_compact(stable, given.keep)
    export(network, given.work, out)
    report: dict[str, Any] = {
        "config": settings.as_dict(),
        "corpus_digest": data.manifest_digest(given.corpus) if given.corpus.is_dir() else None,
        "parameters": sum(p.numel() for p in network.parameters()),
        "phase": given.phase,
        "progress": vars(progress),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }
    if given.dev is not None:
        from llmzip.train import evaluate

        report["dev"] = {
            path.name: evaluate.bits_per_byte(out, path)
            for path in sorted(given.dev.iterdir())
            if path.suffix == ".txt"
        }
    results.mkdir(parents=True, exist_ok=True)
    output.write(results / "report.json", json.dumps(report, indent=1) + "\n")


def export(network: Any, work: Path, out: Path) -> None:
    """A folder in Hugging Face format: config, float32 weights, tokenizer."""
    network.config.use_cache = True
    network.save_pretrained(out)
    output.write(out / "tokenizer.json", (work / "tokenizer.json").read_bytes())
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": data.BOS,
        "clean_up_tokenization_spaces": False,
    }
    output.write(out / "tokenizer_config.json", json.dumps(about, indent=1) + "\n")
