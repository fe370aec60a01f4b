"""Options, or the header of an archive → the model, and the codec of its frames."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmzip.archive.header import (
    DIGEST_BYTES,
    LONGEST_WINDOW,
    Header,
    ModelHeader,
    prime_digest,
    round_length,
    write_short_header,
)
from llmzip.archive.options import MIXINGS, Options
from llmzip.coding.frame_codec import FrameCodec
from llmzip.errors import (
    CorruptArchive,
    UnsupportedArchive,
    WrongEnvironment,
    WrongModel,
    WrongPrime,
)

if TYPE_CHECKING:
    from llmzip.models import ModelFiles

# low half of the header's profile: which exact arithmetic, or none; high half: MIXINGS
PROFILES = {1: "a8", 2: "a16", 3: "plain"}

# holds the codec that was used last, so that many short messages do not load it again
codec_cache: dict[tuple[object, ...], FrameCodec] = {}


def codec_for_writing(options: Options) -> tuple[ModelHeader, FrameCodec, Header | None]:
    """The header's fields of the model, the codec, and the header of a short archive.

    The last is None if a short archive cannot express the options. Raises LlmzipError.
    """
    from llmzip import inference, models

    name = options.model or models.DEFAULT
    files = models.load(name, exact=not options.same_environment)
    environment = ""
    wanted = None  # window
    if isinstance(options.context, int):
        wanted = round_length(min(options.context, LONGEST_WINDOW))
    if options.same_environment:
        from llmzip.inference import float_predictor

        kind, default = "plain", float_predictor.default_context(files, wanted)
        environment = json.dumps(float_predictor.environment(options.device))
    else:
        kind = options.activations or inference.DEFAULT_ACTIVATIONS
        default = inference.default_context(files, wanted)
    window, overlap = default.window, default.overlap
    if isinstance(options.context, tuple):
        window, overlap = options.context
    window, overlap = round_length(window), round_length(overlap)
    prime = options.prime or b""
    codec = frame_codec(files, kind, window, overlap, options.device, options.mixing).primed(prime)
    profile = next(number for number, k in PROFILES.items() if k == kind)
    header = ModelHeader(
        profile=profile | MIXINGS.index(options.mixing) << 4,
        digest_start=files.digest[:DIGEST_BYTES],
        window=window,
        overlap=overlap,
        certificate=codec.predictor.fingerprint,
        environment=environment,
        name="" if name in models.EMBEDDED else _public_name(name),
        prime=prime_digest(prime),
    )
    usual = (options.context, options.mixing, kind) == (None, "full", inference.DEFAULT_ACTIVATIONS)
    if not usual or name not in models.EMBEDDED:
        return header, codec, None
    return header, codec, write_short_header(files.digest, header.prime)


def _public_name(name: str) -> str:
    """The name in the archive: a hub id, or the last part of a path, which may be private."""
    from pathlib import Path

    from llmzip import models

    if name in models.installed():
        return name
    return Path(name).resolve().name if Path(name).exists() else name


def codec_for_reading(header: Header, options: Options) -> FrameCodec:
    """The codec of the model frames of an archive that begins with `header`.

    Raises UnsupportedArchive, WrongModel, WrongPrime, WrongEnvironment.
    """
    model = header.model
    assert model is not None  # the container refuses model frames without it
    prime = _find_prime(model, options)
    codec = _short_codec(model, options) if header.short else _full_codec(model, options)
    return codec.primed(prime)


def _find_prime(model: ModelHeader, options: Options) -> bytes:
    """The prime, if the archive needs one: an archive without it ignores what was given."""
    if not model.prime:
        return b""
    needed = model.prime.hex()
    if options.prime is None:
        raise WrongPrime(
            f"the archive was written with a prime of digest {needed}…: name it with --prime"
        )
    digest = prime_digest(options.prime)
    if not digest.startswith(model.prime):
        raise WrongPrime(
            f"the archive was written with a prime of digest {needed}…, but the one that --prime "
            f"names has {digest.hex()[: len(needed)]}…"
        )
    return options.prime


def _full_codec(model: ModelHeader, options: Options) -> FrameCodec:
    kind, mixing = PROFILES.get(model.profile & 15), model.profile >> 4
    if kind is None or mixing >= len(MIXINGS):
        raise UnsupportedArchive(
            f"profile {model.profile:#04x}; this llmzip reads arithmetic {sorted(PROFILES)} "
            f"and mixing {list(range(len(MIXINGS)))}"
        )
    files = find_model(
        model, options.model, allow_download=options.allow_download, exact=kind != "plain"
    )
    if kind == "plain" and not options.force:
        _require_environment(model.environment, options.device)
    codec = frame_codec(files, kind, model.window, model.overlap, options.device, MIXINGS[mixing])
    if codec.predictor.fingerprint != model.certificate:
        from importlib.metadata import version

        raise WrongModel(
            f"transformers {version('transformers')} computes {files.name} differently from the "
            "version that wrote the archive: try that version"
        )
    return codec


def _short_codec(model: ModelHeader, options: Options) -> FrameCodec:
    """An embedded model with its defaults."""
    from llmzip import inference, models

    name = models.embedded_with_digest(model.digest_start)
    if name is None:
        raise WrongModel(
            f"the archive needs an embedded model with digest {model.digest_start.hex()}…: use a "
            "version of llmzip that has it"
        )
    files = find_model(model, options.model or name)
    context, kind = inference.default_context(files), inference.DEFAULT_ACTIVATIONS
    window, overlap = round_length(context.window), round_length(context.overlap)
    return frame_codec(files, kind, window, overlap, options.device, "full")


def _require_environment(recorded: str, device: str) -> None:
    """Raises WrongEnvironment, which names every difference, or CorruptArchive."""
    from llmzip.inference import float_predictor

    try:
        writer = json.loads(recorded)
    except (ValueError, RecursionError):
        writer = None
    if not isinstance(writer, dict):
        raise CorruptArchive("the header's environment is not a JSON object")
    here = float_predictor.environment(device)
    different = [
        f"{name} was {writer.get(name)!r}, here {here.get(name)!r}"
        for name in sorted({*writer, *here})
        if writer.get(name) != here.get(name)
    ]
    if different:
        raise WrongEnvironment(
            "the archive decodes only in the environment that wrote it: "
            f"{'; '.join(different)} (--force tries anyway)"
        )


def find_model(
    header: ModelHeader,
    name: str | None = None,
    *,
    allow_download: bool = False,
    exact: bool = False,
) -> ModelFiles:
    """The model that an archive needs: the one named, or an embedded or installed one.

    Fetches the hub model that the archive names only with `allow_download`. `exact` as for
    `models.load`. Raises WrongModel.
    """
    from llmzip import models

    digest = header.digest_start.hex()
    start = header.digest_start
    local = models.embedded_with_digest(start) or models.installed_with_digest(start)
    from_hub = models.is_hub_id(header.name)
    if name is not None or local is not None:
        files = models.load(name or local or "", exact=exact)
    elif from_hub and allow_download:
        files = models.fetch(header.name, exact=exact)
    elif (installable := models.installable_with_digest(start)) is not None:
        raise WrongModel(
            f"the archive needs the model {installable}, which is not installed: "
            f"llmzip models install {installable}"
        )
    else:
        needed = f"the model {header.name!r}" if header.name else "a model that is not embedded"
        raise WrongModel(
            f"the archive needs {needed} (digest {digest}…): name it with --model"
            + (", or download it with --allow-download" if from_hub else "")
        )
    if not files.digest.startswith(header.digest_start):
        raise WrongModel(
            f"the archive was written with a model of digest {digest}…, "
            f"but {files.name} has {files.digest.hex()[: len(digest)]}…"
        )
    return files


def frame_codec(
    files: ModelFiles, kind: str, window: int, overlap: int, device: str, mixing: str
) -> FrameCodec:
    """The codec of a model; `kind` is one of PROFILES, `mixing` one of MIXINGS, `window` and
    `overlap` are in tokens."""
    from llmzip import inference
    from llmzip.coding import first_run
    from llmzip.tokenizer import Tokens

    key = (files.digest, kind, window, overlap, device, mixing)
    codec = codec_cache.get(key)
    if codec is None:
        codec_cache.clear()  # first, so that memory holds one model at a time
        context = inference.Context(window, overlap)
        model: Any
        with first_run.second_process():
            if kind == "plain":
                from llmzip.inference import float_predictor

                model = float_predictor.FloatPredictor(files, context, device)
            else:
                model = inference.build(files, activations=kind, context=context, device=device)
            tokens = Tokens(files.tokenizer_json, model.vocabulary)
        codec = codec_cache[key] = FrameCodec(tokens, model, mixing=mixing)
    return codec
