"""Smaller weights: fewer bits, pruning, low rank, fewer layers; and weights packed by llmzip."""

from __future__ import annotations

import dataclasses
import io
import lzma
import re
import statistics
import time
import zlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors.torch import load, save
from torch import Tensor

from llmzip import inference, models
from llmzip.bench.plots import Series, chart
from llmzip.coding.frame_codec import FrameCodec
from llmzip.exact.architecture import LLAMA_TYPES
from llmzip.exact.quantise import dequantise_tensors
from llmzip.models import ModelFiles, packing
from llmzip.tokenizer import Tokens
from measuring import MODEL, Report, argument, command, report_of

Tensors = dict[str, Tensor]
# a matrix → as shipped (suffix → tensor), and as the engine computes with it
Form = Callable[[Tensor], tuple[Tensors, Tensor]]
_DRAWN = 1.4  # times the fewest bits per byte: what is worse is in the table alone


def linear(bits: int, group: int | None = None) -> Form:
    """±(2^(bits−1) − 1) steps with a scale for each row, or for each `group` of its elements."""

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
    """2^bits values for each matrix, by k-means of its elements ÷ the maximum of their row."""
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
    """Set the smallest elements of each matrix to 0."""

    def form(w: Tensor) -> tuple[Tensors, Tensor]:
        smallest = w.abs().flatten().argsort()[: round(share * w.numel())]
        return after(w.flatten().index_fill(0, smallest, 0.0).view_as(w))

    return form


def low_rank(share: float, after: Form) -> Form:
    """Two factors with `share` of the elements of the matrix, by singular values."""

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
    """Drop a layer; those after it move up."""
    kept = {}
    for key, x in tensors.items():
        found = re.search(r"layers\.(\d+)\.", key)
        number = int(found[1]) if found else -1
        if number != layer:
            moved = number - 1 if number > layer else number
            kept[key.replace(f"layers.{number}.", f"layers.{moved}.")] = x
    return kept


def forms() -> Iterator[tuple[str, str, Form, Form]]:
    """Yield family, name, form of the layers' matrices, form of embeddings and head."""
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


def _packed(content: bytes) -> bytes:
    sink = io.BytesIO()
    packing.pack(io.BytesIO(content), sink)
    return sink.getvalue()


def _bits_per_byte(
    files: ModelFiles, tensors: Tensors, layers: int, kind: str, text: bytes
) -> float:
    """Exactly, with these weights; each piece of text alone, without mixing."""
    config = {**files.config, "num_hidden_layers": layers}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:layers]
    changed = dataclasses.replace(files, config=config, weights=tensors)
    context = inference.default_context(changed)
    model = inference.build(changed, activations=kind, context=context)
    size = -(-len(text) // max(1, len(text) // 4096))
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    codec = FrameCodec(Tokens(files.tokenizer_json, model.vocabulary), model, mixing="none")
    return codec.bits_per_byte(pieces)


@command(
    "results/shrink.json",
    argument("texts", nargs="+", type=Path),
    MODEL,
    argument("--bytes", type=int, default=50_000, help="of each text"),
    argument("--only", default="", help="families whose names contain this"),
)
def shrink(given: Namespace) -> Report:
    """Bytes and bits per byte of a model with smaller weights, in about 50 forms.

    The engine takes int8 with a scale for each row: other forms are multiplied out and quantised to
    that (`requantised`). Bytes are those of `llmzip pack`, plus tokenizer and config. A form takes
    about 15 seconds for 100,000 bytes of text.
    """
    files = models.load(given.model)
    beside = sum(p.stat().st_size for p in models.model_paths(given.model)[:2])
    text = b"".join(path.read_bytes()[: given.bytes] for path in given.texts)
    layers, own = int(files.config["num_hidden_layers"]), dequantise_tensors({}, files.tensors)
    llama = files.config.get("model_type") in LLAMA_TYPES
    default = inference.DEFAULT_ACTIVATIONS
    results: list[dict[str, Any]] = []

    def add(family: str, name: str, shipped: Tensors, used: Tensors, count: int, kind: str) -> None:
        packed = _packed(save({k: x.contiguous() for k, x in shipped.items()}))
        entry = {
            "family": family,
            "name": name,
            "activations": kind,
            "engine": "as shipped" if used.keys() == shipped.keys() else "requantised",
            "bytes": len(packed) + beside,
            "bits_per_byte": _bits_per_byte(files, used, count, kind, text),
        }
        print(entry, flush=True)
        results.append(entry)

    for kind in ("a8", "a16"):
        add("as it is", kind, files.tensors, files.tensors, layers, kind)
    for family, name, inner, outer in forms():
        if given.only not in family:
            continue
        shipped, used = {}, {}
        for key, x in own.items():
            if x.ndim != 2:
                shipped[key] = used[key] = x
                continue
            parts, whole = (inner if ".layers." in key else outer)(x)
            named = {key + suffix: part for suffix, part in parts.items()}
            taken = llama and parts.keys() == {"", "_scale"} and parts["_scale"].shape[1] == 1
            shipped |= named
            used |= named if taken else {key: whole}
        add(family, name, shipped, used, layers, default)
    for layer in range(layers if layers > 1 and given.only in "layer dropped" else 0):
        rest = without_layer(dict(files.tensors), layer)
        add("layer dropped", f"without layer {layer + 1}", rest, rest, layers - 1, default)
    points: dict[str, list[tuple[float, float]]] = {}
    best = min(r["bits_per_byte"] for r in results)
    for r in sorted(results, key=lambda r: -int(r["bytes"])):
        if r["bits_per_byte"] < _DRAWN * best:
            points.setdefault(r["family"], []).append((r["bytes"] / 1e6, r["bits_per_byte"]))
    series = {n: Series([x for x, _ in p], [y for _, y in p]) for n, p in points.items()}
    chart(given.out.with_suffix(".png"), ("MB as shipped, with the tokenizer", series))
    return report_of(given.model, sweep="shrink", results=results, text_bytes=len(text))


@command(
    "results/pack.json",
    argument("weights", nargs="+", help="safetensors files and embedded models"),
    argument("--cast", action="append", default=[], metavar="DTYPE", help="also convert the files"),
)
def pack(given: Namespace) -> Report:
    """Bytes and seconds of `llmzip pack` beside zstd -19 and xz -9e, on safetensors files."""
    results = []
    for name in given.weights:
        embedded = name in models.EMBEDDED
        path = models.model_paths(name)[-1] if embedded else Path(name)
        own = path.read_bytes()
        kinds = {"as it is": own}
        for cast in () if embedded else given.cast:
            dtype = getattr(torch, cast)
            kinds[cast] = save({key: x.to(dtype) for key, x in load(own).items()})
        for kind, content in kinds.items():
            start = time.perf_counter()
            packed = _packed(content)
            packing_seconds, seconds = time.perf_counter() - start, []
            for _ in range(5):
                back = io.BytesIO()
                start = time.perf_counter()
                packing.unpack(io.BytesIO(packed), back)
                seconds.append(time.perf_counter() - start)
            entry = {
                "weights": name if embedded else f"{path.resolve().parent.name}/{path.name}",
                "form": kind,
                "bytes": len(content),
                "packed": len(packed),
                "deflate -9 (a wheel)": len(zlib.compress(content, 9)),
                "zstd -19": len(zstandard.ZstdCompressor(level=19).compress(content)),
                "xz -9e": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
                "pack_seconds": packing_seconds,
                "unpack_seconds": statistics.median(seconds),
                "restored": back.getvalue() == content,
            }
            print(entry, flush=True)
            results.append(entry)
    return report_of(None, results=results)
