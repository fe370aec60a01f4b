"""Files and models → a report: every codec over every file, verified, as JSON-like data."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import llmzip
from llmzip.bench import codecs
from llmzip.errors import LlmzipError
from llmzip.parallel.ranks import Rank, current_rank

if TYPE_CHECKING:
    from llmzip.archive.options import Options


def find_files(paths: Sequence[Path], exclude: Sequence[str] = ()) -> Iterator[tuple[str, Path]]:
    """(category, file): of folders all files below that are neither hidden nor empty nor excluded
    by name, their category the folder that they are in; of files given by themselves "". Raises
    OSError."""
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
    """Seconds are medians of `repeat` runs, models loaded before; memory is that of the whole
    process, Python's own 15 MB and loaded libraries included. Raises LlmzipError, OSError.

    `rivals`: names of codecs or their first words; None: all that are installed. `exclude`: names
    of files in folders to leave out; `limit`: bytes taken of the beginning of each. Ranks (of
    torchrun or `accelerate launch`) share the files, measure at the same time, and each has the
    whole report.
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
        (f"{codecs.LLMZIP} {Path(name).name}", _given(replace(options, model=name)), name)
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
                **_round_trip(codec, content, given, repeat),
            }
            if "error" in result and model is not None:
                raise LlmzipError(f"{path}: {result['error']}")
            if model is not None:
                result["model_bytes"] = described[model]["bytes"]
            result["restored"] = result.get("decoded_sha256") == result["sha256"]
            results.append((number, result))
    return {
        **circumstances(replace(options, model=names[0])),
        "models": [{"name": Path(name).name, **described[name]} for name in names],
        "repeat": repeat,
        "ranks": here.world_size,
        "results": [result for _, result in sorted(_gather(results, here), key=lambda r: r[0])],
    }


def _gather(results: list[Any], here: Rank) -> list[Any]:
    """Of all ranks."""
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


def _given(options: Options) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in fields(options)}


def _round_trip(codec: str, content: bytes, options: dict[str, Any], repeat: int) -> dict[str, Any]:
    """Encoded by one process, decoded by another that has never seen the file."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        original, archive, back = (Path(folder, name) for name in ("original", "archive", "back"))
        original.write_bytes(content)
        for way, source, target in (("encode", original, archive), ("decode", archive, back)):
            done = codecs.run(
                {
                    "codec": codec,
                    "way": way,
                    "source": str(source),
                    "target": str(target),
                    "repeat": repeat,
                    "options": options,
                }
            )
            if "error" in done:
                return {**found, "error": f"{codec}, {way}: {done['error']}"}
            found[f"{way}_seconds"] = statistics.median(done["seconds"])
            found[f"{way}_seconds_all"] = done["seconds"]
            found[f"{way}_peak_bytes"] = done["peak_bytes"]
            found[f"{way}_joules"] = done["joules"]
        size = archive.stat().st_size
        found |= {
            "compressed_bytes": size,
            "bits_per_byte": 8 * size / max(1, len(content)),
            "decoded_sha256": done["sha256"],
        }
    return found


def describe_model(name: str) -> dict[str, Any]:
    """Bytes as shipped and parameters. Raises LlmzipError."""
    from llmzip import models

    files = models.load(name)
    return {
        "bytes": sum(path.stat().st_size for path in models.shipped(name)),
        "parameters": sum(
            tensor.numel() for key, tensor in files.tensors.items() if not key.endswith("_scale")
        ),
        "digest": files.digest.hex(),
    }


def circumstances(options: Options) -> dict[str, Any]:
    """What a figure must name: command, commit, date, machine, versions, model."""
    import torch

    from llmzip import models

    name = options.model or models.DEFAULT
    packages = ("torch", "tokenizers", "constriction", "numpy", "zstandard")
    return {
        "command": _command(),
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "system": platform.system(),
        },
        "versions": {
            "llmzip": llmzip.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "model": {"name": Path(name).name, "digest": models.load(name).digest.hex()},
        "device": options.device,
        "streams": options.streams,
    }


def _command() -> str:
    """As it was typed, of paths only their last part."""
    program, *words = sys.argv
    if Path(program).name == "__main__.py":  # python -m llmzip
        program = "llmzip"
    return " ".join(Path(word).name if "/" in word else word for word in (program, *words))


def _commit() -> str | None:
    """The commit of the source tree this runs from, "+" if it was changed since."""
    folder = Path(__file__).parent.parent
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(folder), *command],
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(folder)])
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if status else "")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
