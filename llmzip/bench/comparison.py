"""Files and models → a report: every codec over every file, verified, as JSON-like data."""

from __future__ import annotations

import datetime
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmzip.bench import codecs
from llmzip.bench.record import provenance
from llmzip.errors import LlmzipError
from llmzip.parallel.ranks import Rank, current_rank

if TYPE_CHECKING:
    from llmzip.archive.options import Options


def find_files(paths: Sequence[Path], exclude: Sequence[str] = ()) -> Iterator[tuple[str, Path]]:
    """Yield (category, file). The category of a file in a folder is the name of the folder that
    holds it; hidden, empty and excluded files are skipped. A file given by itself has the category
    "". Raises OSError."""
    for path in paths:
        if not path.is_dir():
            path.stat()
            yield "", path
            continue
        for file in sorted(path.rglob("*")):
            hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
            left_out = hidden or file.name in exclude
            if file.is_file() and not left_out and file.stat().st_size:
                yield file.resolve().parent.name, file


def compare(
    paths: Sequence[Path],
    options: Options,
    *,
    models: Sequence[str] = (),
    rivals: Sequence[str] | None = None,
    repeat: int = 1,
    exclude: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Compress and restore every file with every codec; return a report, ready for JSON.

    Seconds are medians of `repeat` runs, with models loaded before; memory is that of the whole
    process, with Python's own 15 MB and the libraries it loads. `rivals`: names of codecs or their
    first words; None: all that are installed. `exclude`: names of files in folders to skip.
    `limit`: use only so many bytes from the start of each file. Ranks of torchrun or `accelerate
    launch` share the files, measure at the same time, and all return the whole report. Raises
    LlmzipError, OSError.
    """
    from tqdm import tqdm

    from llmzip import models as store

    files = list(enumerate(find_files(paths, exclude)))
    if not files:
        raise LlmzipError("no files to compare on")
    here = current_rank()
    options = replace(options, device=here.device(options.device))
    chosen = _chosen(rivals)
    names = list(models) or [options.model or store.DEFAULT]
    described = {name: describe_model(name) for name in names}
    jobs: list[tuple[str, dict[str, Any], str | None]] = [
        (f"{codecs.LLMZIP} {Path(name).name}", asdict(replace(options, model=name)), name)
        for name in names
    ]
    jobs += [(name, {}, None) for name in chosen]
    results: list[tuple[int, dict[str, Any]]] = []  # with the numbers of their files
    mine = files[here.rank :: here.world_size]
    for number, (category, path) in tqdm(mine, disable=not sys.stderr.isatty(), unit="file"):
        content = path.read_bytes()[:limit]
        for codec, given, model in jobs:
            result = {
                "file": path.name,
                "category": category,
                "sha256": hashlib.sha256(content).hexdigest(),
                "codec": codec,
                "bytes": len(content),
                **codecs.round_trip(codec, content, options=given, repeat=repeat),
            }
            if "error" in result and model is not None:
                raise LlmzipError(f"{path}: {result['error']}")
            if model is not None:
                result["model_bytes"] = described[model]["bytes"]
            result["restored"] = result.get("decoded_sha256") == result["sha256"]
            results.append((number, result))
    return {
        **provenance(replace(options, model=names[0])),
        "models": [{"name": Path(name).name, **described[name]} for name in names],
        "repeat": repeat,
        "ranks": here.world_size,
        "results": [result for _, result in sorted(_gather(results, here), key=lambda r: r[0])],
    }


def _gather(results: list[Any], here: Rank) -> list[Any]:
    """The results of all ranks."""
    if here.world_size == 1:
        return results
    import torch.distributed as ranks

    # a rank may have much more to do than another; a lost connection is noticed before
    ranks.init_process_group("gloo", timeout=datetime.timedelta(days=7))
    found: list[Any] = [None] * here.world_size
    ranks.all_gather_object(found, results)
    ranks.destroy_process_group()
    return [result for part in found for result in part]


def _chosen(rivals: Sequence[str] | None) -> list[str]:
    here = codecs.installed()
    if rivals is None:
        return here
    for name in rivals:
        if name not in [*here, *(codec.split()[0] for codec in here)]:
            raise LlmzipError(f"no codec {name!r} here; there are: {', '.join(here)}")
    return [codec for codec in here if codec in rivals or codec.split()[0] in rivals]


def describe_model(name: str) -> dict[str, Any]:
    """Size in bytes as shipped, number of parameters, digest. Raises LlmzipError."""
    from llmzip import models

    files = models.load(name)
    return {
        "bytes": sum(path.stat().st_size for path in models.model_paths(name)),
        "parameters": files.parameters,
        "digest": files.digest.hex(),
    }
