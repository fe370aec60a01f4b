#!/usr/bin/env python3
"""Fuzz the readers of model files, guided by coverage (pip install atheris):

    python tests/fuzz/models.py gguf|safetensors|packed|tokenizer FOLDER -max_len=300000

FOLDER keeps the inputs that reach something new; a file that is read is put there first.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["llmzip"]):
    from fuzz import model_files

KIND = sys.argv.pop(1)
CORPUS = Path(sys.argv[1])
WORK = tempfile.TemporaryDirectory()


def one(data: bytes) -> None:
    model_files.check(KIND, data, Path(WORK.name))


CORPUS.mkdir(parents=True, exist_ok=True)
(CORPUS / "seed").write_bytes(model_files.seed(KIND, Path(WORK.name)))
atheris.Setup(sys.argv, one)
atheris.Fuzz()
