#!/usr/bin/env python3
"""Check that archives are written and decoded to the same bytes in every environment at hand.

    python scripts/verify_portability.py [--with NAME=COMMAND]… [--out results/portability.json]

Archives are made first; then each environment is a process of its own that decodes them, compresses
their contents again, and compares both by bytes. With this Python: instruction sets, numbers of
threads, a GPU if there is one. COMMAND runs another Python that has llmzip's dependencies, of a
virtual environment or under an emulator, with ENV=VALUE before it. Results of COMMANDs of an
earlier run stay in the file until they are run again.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PACKAGES = ("torch", "transformers", "tokenizers", "numba", "numpy", "constriction")
LENGTH = 4000  # bytes of content: about ten thousand steps of models in all
TRAINING_STEPS = 150  # of the converted model, so that its archives are smaller than zstd's

Environment = tuple[list[str], dict[str, str], str]  # Python, variables, device


def cases(folder: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Name → (content, options): the embedded model, the one of the tests, a converted one."""
    text = (TESTS / "data" / "sample.txt").read_bytes()[:LENGTH]
    tiny = {"model": str(TESTS / "data" / "tiny")}
    return {
        "embedded": (text, {}),
        "tiny, a8, short windows": (text, {**tiny, "activations": "a8", "context": (64, 32)}),
        "tiny, a16, 3 streams": (text, {**tiny, "activations": "a16", "streams": 3}),
        "converted GPT-2": (text, {"model": str(folder / "gpt2"), "streams": 2}),
        "several frames": (text[:1500] + bytes(range(256)), {**tiny, "frame_size": 500}),
    }


def make_converted(folder: Path) -> None:
    sys.path.insert(0, str(TESTS))
    from families import FAMILIES, build, save, tokenise, train  # type: ignore[import-not-found]

    network = build(*FAMILIES["gpt2"])
    text = (TESTS / "data" / "sample.txt").read_bytes()[LENGTH:]
    train(network, tokenise(text), steps=TRAINING_STEPS)
    save(network, folder)


def examine(folder: Path, device: str) -> dict[str, Any]:
    """Decode and encode the archives in `folder` in this process → outcomes and versions."""
    import torch

    import llmzip
    from llmzip.bench.codecs import archive_of

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    start = time.time()
    outcome: dict[str, str] = {}
    for name, (content, options) in cases(folder).items():
        archive = (folder / f"{name}.llmz").read_bytes()
        model = options.get("model")
        try:
            decoded = llmzip.decompress(archive, model=model, device=device) == content
            written = archive_of(content, llmzip.Options(**options, device=device)) == archive
        except Exception as error:  # shown in the table
            outcome[name] = f"{type(error).__name__}: {error}"
        else:
            outcome[name] = "same" if decoded and written else "OTHER BYTES"
    hardware = platform.machine()
    if device == "cuda":
        hardware = torch.cuda.get_device_name()
    return {
        "machine": hardware,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "seconds": round(time.time() - start, 1),
        "archives": outcome,
    }


def version(package: str) -> str:
    """The version that is imported, of tests/pure too, or else the one that is installed."""
    imported = getattr(sys.modules.get(package), "__version__", None)
    return imported or importlib.metadata.version(package)


def environments() -> dict[str, Environment]:
    """Those of this Python by name."""
    import torch

    here = [sys.executable]
    found = {}
    for kind in ("default", "avx2", "best"):
        variables = {} if kind == "best" else {"ATEN_CPU_CAPABILITY": kind}
        if kind == "default":
            variables["NUMBA_CPU_NAME"] = "generic"
        if kind == "avx2":
            variables |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
        for threads in ("1", "2"):
            name = f"{kind} instructions, {threads} thread{'s' if threads > '1' else ''}"
            found[name] = (here, {**variables, "OMP_NUM_THREADS": threads}, "cpu")
    if torch.cuda.is_available():
        found["GPU"] = (here, {}, "cuda")
    return found


def run(command: list[str], variables: dict[str, str], device: str, folder: Path) -> dict[str, Any]:
    """`examine` in a process of an environment."""
    arguments = [*command, str(Path(__file__).resolve()), "--examine", str(folder), device]
    environment = {**os.environ, **variables, "NUMBA_CACHE_DIR": str(folder / "numba")}
    paths = [str(ROOT), variables.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def other_python(text: str) -> tuple[str, Environment]:
    """NAME=COMMAND → name, environment. Raises ArgumentTypeError."""
    name, _, command = text.partition("=")
    words = shlex.split(command)
    variables = {}
    while words and "=" in words[0]:
        key, _, value = words.pop(0).partition("=")
        variables[key] = value
    if not words:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COMMAND")
    return name, (words, {"OMP_NUM_THREADS": "1", **variables}, "cpu")


def main() -> int:
    if sys.argv[1:2] == ["--examine"]:
        print(json.dumps(examine(Path(sys.argv[2]), sys.argv[3])))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--with", dest="given", action="append", default=[], type=other_python,
                        metavar="NAME=COMMAND", help="another Python")  # fmt: skip
    parser.add_argument(
        "--only-given", action="store_true", help="skip the environments of this Python"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "portability.json")
    arguments = parser.parse_args()
    import llmzip
    from llmzip.bench import provenance, write_report
    from llmzip.bench.codecs import archive_of

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_converted(folder / "gpt2")
        made = {}
        for case, (content, options) in cases(folder).items():
            archive = archive_of(content, llmzip.Options(**options))
            (folder / f"{case}.llmz").write_bytes(archive)
            digest = hashlib.sha256(archive).hexdigest()
            made[case] = {"content": len(content), "archive": len(archive), "sha256": digest}
        earlier = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        outcomes: dict[str, Any] = earlier["ways"] if earlier.get("archives") == made else {}
        tried = {} if arguments.only_given else environments()
        for name, (command, variables, device) in (tried | dict(arguments.given)).items():
            outcomes[name] = run(command, variables, device, folder)
            print(name, json.dumps(outcomes[name]), flush=True)
    report = {**provenance(llmzip.Options()), "archives": made, "ways": outcomes}
    write_report(arguments.out, report)
    good = all(set(o.get("archives", {"": ""}).values()) == {"same"} for o in outcomes.values())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
