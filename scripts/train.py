#!/usr/bin/env python3
"""Train embedded models, write them as they are shipped, and train what mixing begins with.

python scripts/train.py model --config scripts/configs/small.toml --corpus DIR --work DIR \\
    --budget 2h --dev DIR --results results/training/small
accelerate launch scripts/train.py model …        # on several GPUs
python scripts/train.py embed CHECKPOINT llmzip/models/NAME --measure TEXT…
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import llmzip
from llmzip import inference, models
from llmzip.bench import write_report
from llmzip.cli import options
from llmzip.coding.frame_codec import FrameCodec
from llmzip.doctor import probe
from llmzip.errors import LlmzipError
from llmzip.mixing.level import LEVELS, blank, save_initial
from llmzip.models.store import load, save_int8
from llmzip.tokenizer import Tokens
from llmzip.train import config as configuration
from llmzip.train import data, loop, run

UNITS = {"s": 1, "m": 60, "h": 3600}
EXCERPTS = {2_000: 4, 30_000: 2}  # bytes → excerpts of each category


def seconds(text: str) -> float:
    """ "90s", "45m", "2h", "1.5h" → seconds. Raises ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 90s, 45m or 2h")
    return float(match[1]) * UNITS[match[2]]


def embed(
    checkpoint: str,
    target: Path,
    *,
    context: int | None,
    measure: list[Path],
    pack: bool,
    rotated: bool,
) -> None:
    """Write a checkpoint as models are embedded: int8 weights, scales, digests in check.json."""
    save_int8(checkpoint, target, context, packed=pack, rotated=rotated)
    measured = {}
    for text in measure:
        content = text.read_bytes()
        archive = llmzip.compress(content, model=str(target))
        measured[text.stem] = round(8 * len(archive) / len(content), 4)
    check = {
        "digest": load(str(target)).digest.hex(),
        "probe": probe(str(target), "cpu"),
        "bits_per_byte": measured,
    }
    write_report(target / "check.json", check)
    print(json.dumps(check, indent=1))
    for path in sorted(target.iterdir()):
        print(f"{path.stat().st_size:>10,}  {path}")


def mixing(corpus: Path, *, config: Path, model: str, level: str, out: Path | None) -> None:
    """Train the state that mixing begins with: what excerpts of a training corpus leave behind."""
    files = models.load(model)
    context = inference.default_context(files)
    predictor = inference.build(files, activations=inference.DEFAULT_ACTIVATIONS, context=context)
    codec = FrameCodec(Tokens(files.tokenizer_json, predictor.vocabulary), predictor, mixing=level)
    texts = _excerpts(corpus, configuration.load(config).mix)
    order = np.random.default_rng(1).permutation(len(texts))
    state = blank(LEVELS[level])
    for i in tqdm([*order, *order], unit="text"):
        state = codec.learn(texts[i], state)
    save_initial(state, out or LEVELS[level].path)


def _excerpts(corpus: Path, mix: dict[str, float]) -> list[bytes]:
    """Of each category with a share in the mix; an excerpt may span several documents."""
    chance = random.Random(1)
    found = []
    for category, files in data.categories(corpus).items():
        if mix.get(category):
            text = b"".join(document for path in files for document in data.documents(path))
            for size, count in EXCERPTS.items():
                for _ in range(count):
                    start = chance.randrange(max(1, len(text) - size))
                    found.append(text[start : start + size])
    return found


def build() -> argparse.ArgumentParser:
    """The parser; each command's `call` takes the other arguments by their names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, call: Any) -> argparse.ArgumentParser:
        text = call.__doc__.splitlines()[0]
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(call=call)
        return sub

    sub = command("model", run.train_model)
    sub.add_argument("--config", type=Path, required=True, help="TOML file")
    sub.add_argument("--corpus", type=Path, required=True, help="folder of texts")
    sub.add_argument("--work", type=Path, required=True, help="folder for tokens, checkpoints")
    budget = sub.add_mutually_exclusive_group(required=True)
    budget.add_argument("--budget", type=seconds, help="such as 90s, 45m, 2h")
    budget.add_argument("--prepare-only", dest="budget", action="store_const", const=None,
                        help="tokenise and pack, then stop")  # fmt: skip
    sub.add_argument("--out", type=Path, help="folder for the model (default: WORK/export)")
    sub.add_argument("--dev", type=Path, help="folder of texts to evaluate on, never trained on")
    sub.add_argument("--results", type=Path, help="folder for report.json and loss.jsonl")
    sub.add_argument("--phase", choices=loop.PHASES, default="all")
    sub.add_argument("--resume", action="store_true", help="continue from WORK's checkpoint")
    sub.add_argument("--start", type=Path, help="a checkpoint to begin with, if WORK has none")
    sub.add_argument("--tokenizer", type=Path, help="a tokenizer.json, instead of the "
                     "teacher's or a new one")  # fmt: skip
    sub.add_argument("--keep", type=Path, help="where to write the weights before the decay")
    sub.add_argument("--prune-from", metavar="MODEL", help="a checkpoint of the Llama family to "
                     "begin with; its shape takes the place of the configuration's")  # fmt: skip
    sub.add_argument("--layers", dest="keep_layers", type=options.numbers, metavar="0,1,3",
                     help="the layers to keep of it (default: all)")  # fmt: skip
    sub.add_argument("--distill-from", metavar="MODEL", help="a model with the same tokenizer to "
                     "learn from")  # fmt: skip
    sub.add_argument("--distill-weight", type=float, metavar="W", help="share of what is learned "
                     "from that model (default: the configuration's)")  # fmt: skip

    sub = command("embed", embed)
    sub.add_argument("checkpoint", help="a folder in Hugging Face format")
    sub.add_argument("target", type=Path, help="the folder to write")
    sub.add_argument("--context", type=int, help="context length, if not the config's")
    sub.add_argument("--measure", type=Path, nargs="*", default=[], metavar="TEXT",
                     help="texts whose bits per byte `llmzip models` shows")  # fmt: skip
    sub.add_argument("--pack", action="store_true", help="weights as `llmzip pack` writes them, a "
                     "compact tokenizer")  # fmt: skip
    sub.add_argument("--rotated", action="store_true", help="quantise after Hadamard transforms, "
                     "for a model not trained for 8-bit activations")  # fmt: skip

    sub = command("mixing", mixing)
    sub.add_argument("corpus", type=Path)
    sub.add_argument("--config", type=Path, required=True, help="TOML file with the mix")
    sub.add_argument("--model", default=models.DEFAULT)
    sub.add_argument("--level", choices=LEVELS, default="full")
    sub.add_argument("--out", type=Path, help="default: where the package has it")
    return parser


def main() -> int:
    given = vars(build().parse_args())
    try:
        given.pop("call")(**given)
    except LlmzipError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
