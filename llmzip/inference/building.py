"""Model files → their predictor. Torch is imported only for models that need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmzip.exact import ModelSpec
from llmzip.exact.architecture import LLAMA_TYPES, ROTATED_KEY, Architecture
from llmzip.inference.base import Context, Predictor, context_for, require_memory, require_window

if TYPE_CHECKING:
    from llmzip.models import ModelFiles

DEFAULT_ACTIVATIONS = "a8"


def build(
    files: ModelFiles, *, activations: str, context: Context, device: str = "cpu"
) -> Predictor:
    """The predictor of a model. `activations`: "a8" or "a16".

    Raises UnsupportedModel if the model has no exact form, does not fit into memory or has a
    shorter context window; InexactDevice if the device deviates.
    """
    require_window(model_spec(files), context.window, files.name)
    if activations == "a8" and device == "cpu":
        compiled = _compiled(files, context)
        if compiled is not None:
            return compiled
    from llmzip.inference import exact_predictor

    return exact_predictor.build(files, activations=activations, context=context, device=device)


def _compiled(files: ModelFiles, context: Context) -> Predictor | None:
    """The predictor without torch, if the model has one here."""
    arrays = files.arrays
    if arrays is None or files.config.get("model_type") not in LLAMA_TYPES:
        return None
    from llmzip.exact.compiled_llama import CompiledLlama, reads
    from llmzip.inference.compiled_predictor import CompiledPredictor

    architecture = Architecture.from_config(files.config)
    rotated = bool(files.config.get(ROTATED_KEY))
    if not reads(architecture, arrays, rotated):
        return None
    require_memory(sum(array.nbytes for array in arrays.values()), "cpu", files.name)
    model = CompiledLlama(architecture, arrays, rotated=rotated)
    return CompiledPredictor(model, files.bos, context)


def default_context(files: ModelFiles, window: int | None = None) -> Context:
    """`context_for` the model. Raises UnsupportedModel if its config has no exact form."""
    return context_for(model_spec(files), files.name, window)


def model_spec(files: ModelFiles) -> ModelSpec:
    """Sizes of a model. Raises UnsupportedModel if its config has no exact form."""
    if files.config.get("model_type") in LLAMA_TYPES:
        return Architecture.from_config(files.config).spec()
    from llmzip.exact.convert.config import model_spec, parse_config

    return model_spec(parse_config(files.config))
