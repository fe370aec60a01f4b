"""What the memory saves, and which of its sources save it."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from unittest.mock import patch

import numpy as np

from llmzip import inference, mixing, models
from llmzip.bench import codecs
from llmzip.bench.plots import Series, chart
from llmzip.coding.frame_codec import FrameCodec, silent
from llmzip.mixing import MATCH, Mixer, Recall
from llmzip.tokenizer import Tokens
from measuring import MODEL, Report, argument, command, report_of
from measuring.archives import MEMORY, sweep


class _Matches(Recall):
    """Recalls what matches offer alone."""

    def recall(self, candidates: np.ndarray, evidence: np.ndarray) -> None:
        super().recall(candidates, evidence)
        evidence[..., :MATCH] = 0
        match = evidence[..., MATCH]
        _keep(candidates, evidence, np.asarray((match >= 16) & (match < 80)))


class _Contexts(Recall):
    """Recalls what contexts offer alone."""

    def recall(self, candidates: np.ndarray, evidence: np.ndarray) -> None:
        super().recall(candidates, evidence)
        evidence[..., MATCH] = 0
        _keep(candidates, evidence, np.asarray((evidence >= 8).any(-1)))


def _keep(candidates: np.ndarray, evidence: np.ndarray, chosen: np.ndarray) -> None:
    """Leave the chosen candidates [S, K], without gaps, as the coder expects them."""
    order = np.argsort(~chosen, axis=-1, kind="stable")
    candidates[:] = np.take_along_axis(np.where(chosen, candidates, -1), order, -1)
    evidence[:] = np.take_along_axis(evidence, order[..., None], -2)


class _Uncorrected(Mixer):
    """Its adaptive table never adapts."""

    def learn(self, candidates: np.ndarray, evidence: np.ndarray, ids: np.ndarray) -> None:
        before = self._refined.copy()
        super().learn(candidates, evidence, ids)
        self._refined[:] = before


PARTS = {
    "none": (Recall, Mixer),  # and the memory switched off
    "matches": (_Matches, Mixer),
    "contexts": (_Contexts, Mixer),
    "both": (Recall, _Uncorrected),
    "both, corrected": (Recall, Mixer),
}


@command(
    "results/memory.json",
    argument("texts", nargs="+", type=Path),
    argument("--archives", nargs="*", type=Path, default=[], metavar="TEXT",
             help="also whole archives of these, with and without memory"),
    MODEL,
    argument("--bytes", type=int, default=200_000, help="of each text"),
)  # fmt: skip
def memory(given: Namespace) -> Report:
    """Bits per byte of texts without memory, with matches, contexts, both, and both corrected.

    A text of 200 KB takes about a minute and a half.
    """
    files = models.load(given.model)
    context = inference.default_context(files)
    model = inference.build(files, activations=inference.DEFAULT_ACTIVATIONS, context=context)
    tokens, results = Tokens(files.tokenizer_json, model.vocabulary), []
    for path in given.texts:
        content, bits = path.read_bytes()[: given.bytes], {}
        for part, (recall, mixer) in PARTS.items():
            codec = FrameCodec(tokens, model, memory=part != "none")
            with patch.multiple(mixing, Recall=recall, Mixer=mixer):
                bits[part] = 8 * len(codec.encode(content, None, silent).payload) / len(content)
        xz = codecs.round_trip("xz -9e", content)["bits_per_byte"]
        results.append({"text": path.name, "bytes": len(content), "bits_per_byte": bits, "xz": xz})
        print(results[-1], flush=True)
    names = [r["text"] for r in results]
    chart(given.out.with_suffix(".png"), ("text", {
        part: Series(names, [r["bits_per_byte"][part] for r in results], "o") for part in PARTS
    }))  # fmt: skip
    archives = sweep(given.model, given.archives, {"memory": MEMORY}) if given.archives else []
    return report_of(given.model, results=results, archives=archives)
