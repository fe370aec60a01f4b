"""Options or an archive's header → the model and the codec of its frames."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmzip.archive.header import (
    DIGEST_START,
    LONGEST,
    Header,
    ModelHeader,
    round_length,
    write_short_header,
)
from llmzip.archive.options import Options
from llmzip.coding.frame_codec import FrameCodec
from llmzip.errors import CorruptArchive, UnsupportedArchive, WrongEnvironment, WrongModel

if TYPE_CHECKING:
    from llmzip.models import ModelFiles

# the header's profile, low half: which exact arithmetic, or none
PROFILES = {1: "a8", 2: "a16", 3: "plain"}
_MEMORIES = (0, 1)  # high half: version of the memory, 0 for none

ready: dict[tuple[object, ...], FrameCodec] = {}  # the codec used last, for short messages


def for_writing(options: Options) -> tuple[ModelHeader, FrameCodec, Header | None]:
    """What the header says of the model, the codec, and the header of a short archive where such
    a one would decode to the same."""
    from llmzip import inference, models

    name = options.model or models.DEFAULT
    files = models.load(name, exact=not options.same_environment)
    environment = ""
    asked = None
    if isinstance(options.context, int):
        asked = round_length(min(options.context, LONGEST))
    if options.same_environment:
        from llmzip.inference import float_predictor

        kind, default = "plain", float_predictor.default_context(files, asked)
        environment = json.dumps(float_predictor.environment(options.device))
    else:
        kind = options.activations or inference.DEFAULT_ACTIVATIONS
        default = inference.default_context(files, asked)
    window, overlap = default.window, default.overlap
    if isinstance(options.context, tuple):
        window, overlap = options.context
    window, overlap = round_length(window), round_length(overlap)
    memory = _MEMORIES[-1] if options.memory else 0
    codec = frame_codec(files, kind, window, overlap, options.device, memory)
    profile = next(number for number, k in PROFILES.items() if k == kind)
    header = ModelHeader(
        profile=profile | memory << 4,
        digest_start=files.digest[:DIGEST_START],
        window=window,
        overlap=overlap,
        certificate=codec.predictor.fingerprint,
        environment=environment,
        name="" if name in models.EMBEDDED else _public_name(name),
    )
    usual = (options.context, options.memory, kind) == (None, True, inference.DEFAULT_ACTIVATIONS)
    short = write_short_header(files.digest) if usual and name in models.EMBEDDED else None
    return header, codec, short


def _public_name(name: str) -> str:
    """A hub id as it is; of a folder or file only the last part, as paths are nobody else's
    business."""
    from pathlib import Path

    from llmzip import models

    if name in models.installed():
        return name
    return Path(name).resolve().name if Path(name).exists() else name


def for_reading(header: Header, options: Options) -> FrameCodec:
    model = header.model
    assert model is not None  # the container sees to it
    if header.short:
        return _for_short(model, options)
    kind, memory = PROFILES.get(model.profile & 15), model.profile >> 4
    if kind is None or memory not in _MEMORIES:
        raise UnsupportedArchive(
            f"profile {model.profile:#04x}; this llmzip knows arithmetic {sorted(PROFILES)} "
            f"and memory {list(_MEMORIES)}"
        )
    files = find_model(
        model, options.model, allow_download=options.allow_download, exact=kind != "plain"
    )
    if kind == "plain" and not options.force:
        _require_environment(model.environment, options.device)
    codec = frame_codec(files, kind, model.window, model.overlap, options.device, memory)
    if codec.predictor.fingerprint != model.certificate:
        from importlib.metadata import version

        raise WrongModel(
            f"transformers {version('transformers')} computes {files.name} otherwise than the "
            "version that the archive was written with; another version may decode it"
        )
    return codec


def _for_short(model: ModelHeader, options: Options) -> FrameCodec:
    """An embedded model with its defaults."""
    from llmzip import inference, models

    name = models.embedded_with_digest(model.digest_start)
    if name is None:
        raise WrongModel(
            f"the archive needs an embedded model of digest {model.digest_start.hex()}…, which "
            "this version of llmzip does not have"
        )
    files = find_model(model, options.model or name)
    context, kind = inference.default_context(files), inference.DEFAULT_ACTIVATIONS
    window, overlap = round_length(context.window), round_length(context.overlap)
    return frame_codec(files, kind, window, overlap, options.device, _MEMORIES[-1])


def _require_environment(recorded: str, device: str) -> None:
    """Raises WrongEnvironment by the names of what is different."""
    from llmzip.inference import float_predictor

    try:
        there = json.loads(recorded)
    except ValueError:
        there = None
    if not isinstance(there, dict):
        raise CorruptArchive("the header's environment is no JSON object")
    here = float_predictor.environment(device)
    different = [
        f"{name} was {there.get(name)!r}, here {here.get(name)!r}"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if different:
        raise WrongEnvironment(
            "the archive decodes in the environment alone that it was made in: "
            f"{'; '.join(different)} (--force tries nevertheless)"
        )


def find_model(
    header: ModelHeader,
    name: str | None = None,
    *,
    allow_download: bool = False,
    exact: bool = False,
) -> ModelFiles:
    """The model that an archive asks for: the one named, or an embedded or installed one.

    An archive makes us fetch a model only with `allow_download`. `exact` as for `models.load`.
    Raises WrongModel.
    """
    from llmzip import models

    digest = header.digest_start.hex()
    start = header.digest_start
    at_hand = models.embedded_with_digest(start) or models.installed_with_digest(start)
    from_hub = models.is_hub_id(header.name)
    if name is not None or at_hand is not None:
        files = models.load(name or at_hand or "", exact=exact)
    elif from_hub and allow_download:
        files = models.fetch(header.name, exact=exact)
    elif (known := models.installable_with_digest(start)) is not None:
        raise WrongModel(
            f"the archive needs the model {known}, which is not installed: "
            f"llmzip models install {known}"
        )
    else:
        made_with = repr(header.name) if header.name else "one that is not embedded here"
        raise WrongModel(
            f"the archive needs the model {made_with} (digest {digest}…): name it with --model"
            + (", or have it fetched with --allow-download" if from_hub else "")
        )
    if not files.digest.startswith(header.digest_start):
        raise WrongModel(
            f"the archive was made with a model of digest {digest}…, "
            f"but {files.name} has {files.digest.hex()[: len(digest)]}…"
        )
    return files


def frame_codec(
    files: ModelFiles, kind: str, window: int, overlap: int, device: str, memory: int
) -> FrameCodec:
    """`kind` is one of PROFILES."""
    from llmzip import inference
    from llmzip.tokenizer import Tokens

    key = (files.digest, kind, window, overlap, device, memory)
    if key not in ready:
        ready.clear()  # first, so that memory holds one model at a time
        context = inference.Context(window, overlap)
        model: Any
        if kind == "plain":
            from llmzip.inference import float_predictor

            model = float_predictor.FloatPredictor(files, context, device)
        else:
            model = inference.build(files, activations=kind, context=context, device=device)
        tokens = Tokens(files.tokenizer_json, model.vocabulary)
        ready[key] = FrameCodec(tokens, model, mixing=bool(memory))
    return ready[key]
