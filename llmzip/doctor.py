"""`llmzip doctor`: does this machine compute the same bits as others?

It compares digests of exact operations and of the embedded and installed models with stored ones.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from typing import Any

import numpy as np

from llmzip import __version__

PROBE = (
    "Call me Ishmael. 道可道，非常道。 for (int i = 0; i < n; ++i) sum += a[i];\n"
    '{"id": 17, "name": "Zoë", "ok": true}\t2026-01-31T23:59:59Z ERROR 404\r\n'
).encode() * 3

_PACKAGES = (
    "torch", "transformers", "tokenizers", "safetensors", "constriction", "numpy",
    "numba", "llvmlite",  # which compile what most archives are made by
)  # fmt: skip


def probe(name: str, device: str, kinds: tuple[str, ...] = ("a8", "a16")) -> dict[str, str]:
    """Activations → digest of a model's symbol frequencies over PROBE, in two streams."""
    import torch

    from llmzip import inference, models
    from llmzip.inference.frequencies import TokenFrequencies
    from llmzip.tokenizer import Tokens

    files = models.load(name)
    context = inference.Context(64, 32)  # short, so that the probe restarts it
    digests = {}
    for activations in kinds:
        model = inference.build(files, activations=activations, context=context, device=device)
        tokens = Tokens(files.tokenizer_json, model.vocabulary)
        every = TokenFrequencies(model.vocabulary, np.arange(tokens.size))
        ids = tokens.encode(PROBE).astype(np.int64)
        table = torch.from_numpy(ids[: len(ids) // 2 * 2].reshape(2, -1))
        hasher = hashlib.blake2b(digest_size=16)
        for logits in model.run(*table.shape).score(table):
            frequencies = every.of(logits.reshape(-1, model.vocabulary))
            hasher.update(frequencies.astype("<i4").tobytes())
        digests[activations] = hasher.hexdigest()
    return digests


def examine(device: str = "cpu") -> dict[str, Any]:
    """Versions, machine, and name of each check → whether it passed. Raises InexactDevice."""
    import torch

    from llmzip import models
    from llmzip.errors import InexactDevice
    from llmzip.exact import selftest

    try:
        checks = selftest.check_operations(device)
        records = {name: models.embedded_record(name) for name in models.EMBEDDED}
        known = models.installable()
        records |= {name: known[name] for name in models.installed() if name in known}
        for name, expected in records.items():
            checks[f"model {name}, files"] = models.load(name).digest.hex() == expected["digest"]
            for activations, digest in probe(name, device, tuple(expected["probe"])).items():
                right = digest == expected["probe"][activations]
                checks[f"model {name}, {activations}"] = right
    except (RuntimeError, AssertionError) as error:
        raise InexactDevice(f"device {device!r} cannot be used: {error}") from None
    return {
        "versions": {
            "llmzip": __version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "machine": f"{platform.system()} {platform.machine()}",
        "device": device,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "checks": checks,
        "exact": all(checks.values()),
    }
