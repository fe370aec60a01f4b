#!/usr/bin/env python3
"""What shrinking a model costs and saves: bits of weights, linear and by codebook, group sizes,
activations, magnitude pruning, low rank, dropped layers, and combinations.

python scripts/sweep_shrink.py TEXT… --model small --out results/shrink.json

Bits per byte are those of exact inference, each piece of text alone, without memory. The engine
takes int8 with a scale a row: what is of another form is multiplied out and quantised to that, and
named `requantised`. Bytes are those of the weights in their own form after `llmzip pack`, plus
tokenizer and config. Some 50 forms; each takes about 15 seconds for 100,000 bytes of text.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sweeping
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from llmzip import inference, models
from llmzip.coding.frame_codec import FrameCodec
from llmzip.exact.llama import FAMILY
from llmzip.models import ModelFiles, packing
from llmzip.tokenizer import Tokens

Tensors = dict[str, Tensor]
# a matrix → as shipped (suffix → tensor), as the engine computes with it
Form = Callable[[Tensor], tuple[Tensors, Tensor]]


def floats(files: ModelFiles) -> Tensors:
    """The tensors multiplied out."""
    ones = torch.ones(1)
    return {
        key: x.float() * files.tensors.get(f"{key}_scale", ones).float()
        for key, x in files.tensors.items()
        if not key.endswith("_scale")
    }


def linear(bits: int, group: int | None = None) -> Form:
    """±(2^(bits−1) − 1) steps of a scale a row, or for each `group` of its elements."""

    def form(w: Tensor) -> tuple[Tensors, Tensor]:
        size = group if group is not None and w.shape[1] % group == 0 else w.shape[1]
        parts = w.reshape(w.shape[0], -1, size)
        top = 2 ** (bits - 1) - 1
        scale = (parts.abs().amax(-1, keepdim=True) / top).clamp_min(1e-12)
        q = (parts / scale).round()
        shipped = {"": q.to(torch.int8).reshape(w.shape), "_scale": scale[..., 0].contiguous()}
        return shipped, (q * scale).reshape(w.shape)

    return form


def codebook(bits: int) -> Form:
    """2^bits values for each matrix, by k-means of elements ÷ their row's maximum."""
    from scipy.cluster.vq import kmeans2

    def form(w: Tensor) -> tuple[Tensors, Tensor]:
        scale = w.abs().amax(1, keepdim=True).clamp_min(1e-12)
        x = (w / scale).flatten().numpy()
        sample = np.random.default_rng(1).choice(x, min(len(x), 20_000), replace=False)
        start = np.unique(np.quantile(sample, (np.arange(2**bits) + 0.5) / 2**bits))
        centres = np.sort(kmeans2(sample.astype(np.float64), start, minit="matrix")[0].ravel())
        codes = np.searchsorted((centres[1:] + centres[:-1]) / 2, x).astype(np.uint8)
        book = torch.from_numpy(centres).float()
        tensor = torch.from_numpy(codes).reshape(w.shape)
        return {"": tensor, "_book": book, "_scale": scale}, book[tensor.long()] * scale

    return form


def pruned(share: float, after: Form) -> Form:
    """The smallest elements of each matrix become 0."""

    def form(w: Tensor) -> tuple[Tensors, Tensor]:
        layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
        layer.weight.data = w.clone()
        prune.l1_unstructured(layer, "weight", amount=share)  # type: ignore[no-untyped-call]
        return after(layer.weight.detach())

    return form


def low_rank(share: float, after: Form) -> Form:
    """Two factors that have `share` of the matrix's elements, by singular values."""

    def form(w: Tensor) -> tuple[Tensors, Tensor]:
        rank = max(1, int(share * w.numel() / sum(w.shape)))
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        root = s[:rank].sqrt()
        left, a = after(u[:, :rank] * root)
        right, b = after(root[:, None] * v[:rank])
        shipped = {f".left{key}": x for key, x in left.items()}
        return shipped | {f".right{key}": x for key, x in right.items()}, a @ b

    return form


def without_layer(tensors: Tensors, layer: int) -> Tensors:
    """Those after it move up."""
    kept = {}
    for key, x in tensors.items():
        found = re.search(r"layers\.(\d+)\.", key)
        number = int(found[1]) if found else -1
        if number != layer:
            above = found is not None and number > layer
            kept[key.replace(f"layers.{number}.", f"layers.{number - 1}.") if above else key] = x
    return kept


def forms() -> Iterator[tuple[str, str, Form, Form]]:
    """Family, name, form of the layers' matrices, form of embeddings and head."""
    eight = linear(8)
    for bits in range(2, 9):
        yield "linear", f"{bits} bits", linear(bits), linear(bits)
        if bits < 8:
            yield "linear, embeddings in 8", f"{bits} bits", linear(bits), eight
    for bits in range(2, 7):
        yield "codebook", f"{bits} bits", codebook(bits), codebook(bits)
    for bits in (3, 4):
        for group in (16, 32, 64):
            form = linear(bits, group)
            yield f"linear, {bits} bits, groups", f"groups of {group}", form, form
    for percent in range(10, 100, 20):
        yield "pruned", f"{percent}% zeros", pruned(percent / 100, eight), eight
    for percent in (25, 50, 75, 90):
        yield "low rank", f"{percent}% left", low_rank(percent / 100, eight), eight
    for percent in (30, 50):
        yield "pruned, 5 bits", f"{percent}% zeros", pruned(percent / 100, linear(5)), linear(5)
    yield "low rank, 6 bits", "75% left", low_rank(0.75, linear(6)), linear(6)


def as_they_are(files: ModelFiles, parts: Tensors) -> bool:
    """Whether the engine takes a matrix in this form."""
    known = files.config.get("model_type") in FAMILY and parts.keys() == {"", "_scale"}
    return known and parts[""].dtype == torch.int8 and parts["_scale"].shape[1] == 1


def packed_bytes(tensors: Tensors) -> int:
    sink = io.BytesIO()
    packing.pack(io.BytesIO(save({k: x.contiguous() for k, x in tensors.items()})), sink)
    return len(sink.getvalue())


def measure(files: ModelFiles, tensors: Tensors, layers: int, kind: str, text: bytes) -> float:
    """Bits per byte, `tensors` in floating point."""
    config = {**files.config, "num_hidden_layers": layers}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    changed = dataclasses.replace(files, config=config, tensors=tensors)
    context = inference.default_context(changed)
    model = inference.build(changed, activations=kind, context=context)
    size = -(-len(text) // max(1, len(text) // 4096))
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    codec = FrameCodec(Tokens(files.tokenizer_json, model.vocabulary), model, memory=False)
    return codec.bits_per_byte(pieces)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--model", default=models.DEFAULT)
    parser.add_argument("--bytes", type=int, default=50_000, help="of each text")
    parser.add_argument("--only", default="", help="families whose names hold this")
    parser.add_argument("--out", type=Path, default=Path("results/shrink.json"))
    arguments = parser.parse_args()
    files = models.load(arguments.model)
    beside = sum(p.stat().st_size for p in models.shipped(arguments.model)[:2])
    text = b"".join(path.read_bytes()[: arguments.bytes] for path in arguments.texts)
    layers, own = int(files.config["num_hidden_layers"]), floats(files)
    default = inference.DEFAULT_ACTIVATIONS
    results: list[dict[str, Any]] = []

    def add(family: str, name: str, shipped: Tensors, used: Tensors, count: int, kind: str) -> None:
        entry = {
            "family": family,
            "name": name,
            "activations": kind,
            "engine": "as shipped" if used.keys() == shipped.keys() else "requantised",
            "bytes": packed_bytes(shipped) + beside,
            "bits_per_byte": measure(files, used, count, kind, text),
        }
        print(entry, flush=True)
        results.append(entry)

    for kind in ("a8", "a16"):
        add("as it is", kind, files.tensors, files.tensors, layers, kind)
    for family, name, inner, outer in forms():
        if arguments.only not in family:
            continue
        shipped, used = {}, {}
        for key, x in own.items():
            if x.ndim != 2:
                shipped[key] = used[key] = x
                continue
            parts, whole = (inner if ".layers." in key else outer)(x)
            named = {key + suffix: part for suffix, part in parts.items()}
            shipped |= named
            used |= named if as_they_are(files, parts) else {key: whole}
        add(family, name, shipped, used, layers, default)
    for layer in range(layers if layers > 1 and arguments.only in "layer dropped" else 0):
        rest = without_layer(dict(files.tensors), layer)
        add("layer dropped", f"without layer {layer + 1}", rest, rest, layers - 1, default)
    sweeping.write(arguments.out, "shrink", results, arguments.model, text_bytes=len(text))
    plot(results, arguments.out)


def plot(results: list[dict[str, Any]], out: Path) -> None:
    figure, (ax,) = sweeping.panels(1)
    figure.set_size_inches(9, 6)
    for i, family in enumerate(dict.fromkeys(r["family"] for r in results)):
        mine = sorted((r for r in results if r["family"] == family), key=lambda r: r["bytes"])
        style = "o-" if family not in ("as it is", "layer dropped") else "s"
        ax.plot([r["bytes"] / 1e6 for r in mine], [r["bits_per_byte"] for r in mine], style,
                ms=4, lw=1, label=family, color=f"C{i}" if i < 10 else "black")  # fmt: skip
    ax.set_xlabel("MB as shipped, entropy coded, tokenizer included")
    ax.legend(frameon=False, fontsize=8)
    sweeping.save(figure, out)


if __name__ == "__main__":
    main()
