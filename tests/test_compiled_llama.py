"""Models without torch: the bits of the reference, and no import of it."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PROSE
from table_predictor import joined

from llmzip import models
from llmzip.errors import UnsupportedModel
from llmzip.exact import compiled_llama, matmul, ops
from llmzip.exact.architecture import ROTATED_KEY, Architecture
from llmzip.exact.compiled_llama import CompiledLlama
from llmzip.exact.llama import ExactLlama
from llmzip.inference import Context, build
from llmzip.inference.compiled_predictor import CompiledPredictor
from llmzip.inference.exact_predictor import ExactPredictor

pytestmark = pytest.mark.skipif(not matmul.available(), reason="no instruction for products")

SETTINGS = {"levels": ops.A8_LEVELS, "key_levels": ops.KEY_LEVELS}
USE = """
import sys, llmzip
text = sys.stdin.buffer.read()
options = {"model": "small", "streams": int(sys.argv[1])}
assert llmzip.decompress(llmzip.compress(text, **options)) == text
assert "torch" not in sys.modules, "torch was imported"
"""


@pytest.mark.parametrize("rotated", [False, True])
def test_the_known_answers_are_those_of_the_reference(rotated: bool) -> None:
    architecture, arrays = compiled_llama.small_model()
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model = ExactLlama(architecture, tensors, rotated=rotated, **SETTINGS)
    ids = torch.from_numpy(compiled_llama.small_ids(architecture))
    hidden = model.forward(ids, model.new_cache(len(ids), 512), 0)
    last = hidden[1:2, -1:]
    hasher = hashlib.blake2b(digest_size=8)
    for part in (hidden, last.contiguous(), model.logits(last[0])):
        hasher.update(part.numpy().tobytes())
    assert hasher.hexdigest() == compiled_llama.known_answer(rotated)
    assert compiled_llama.agrees(rotated)


@pytest.mark.parametrize("name", ["nano", "base"])
def test_its_logits_are_those_of_the_reference(name: str) -> None:
    """Through a restart of the window, scored and in steps, after a prefix and without."""
    files, context = models.load(name), Context(32, 20)
    rotated = bool(files.config.get(ROTATED_KEY))
    architecture = Architecture.from_config(files.config)
    exact = ExactLlama(architecture, files.tensors, rotated=rotated, **SETTINGS)
    reference = ExactPredictor(exact, files.bos, context)
    compiled = build(files, activations="a8", context=context)
    assert isinstance(compiled, CompiledPredictor)
    ids = torch.arange(3 * 40).view(3, 40) * 37 % architecture.vocab_size
    for prefix in (None, ids[0, :9]):
        expected = joined(reference.run(3, 40, prefix).score(ids))
        assert torch.equal(joined(compiled.run(3, 40, prefix).score(ids.numpy())), expected)
        run = compiled.run(3, 40, prefix)
        steps = [run.first(), *(run.step(ids[:, t].numpy()) for t in range(39))]
        assert np.array_equal(np.stack(steps), expected.numpy())


@pytest.mark.parametrize("streams", [1, 6])
def test_torch_is_not_imported(streams: int) -> None:
    command = [sys.executable, "-c", USE, str(streams)]
    done = subprocess.run(command, input=PROSE.encode(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("model.norm.weight"), "lack the tensor model.norm"),
        (lambda x: x.update({"model.norm.weight": np.ones(3, np.float32)}), "expected"),
        (lambda x: x["model.norm.weight"].fill(np.nan), "not finite"),
    ],
)
def test_files_that_are_wrong(change: object, message: str) -> None:
    architecture, arrays = compiled_llama.small_model()
    assert callable(change)
    change(arrays)
    with pytest.raises(UnsupportedModel, match=message):
        CompiledLlama(architecture, arrays, rotated=False)


def test_too_long_a_context_is_refused() -> None:
    architecture, arrays = compiled_llama.small_model(window=None)
    with pytest.raises(UnsupportedModel, match="the limit is 65536"):
        CompiledLlama(architecture, arrays, rotated=False).new_cache(1, 100_000)
