"""Models: name, folder, GGUF file or hub id → weights, config, tokenizer, digest.

Only safetensors, GGUF and JSON are read; neither code nor pickles of a model are ever run. The
network is used only by `load` and `fetch` for a hub id that the caller names.
"""

from llmzip.models.model_folder import ModelFiles, load_config_only
from llmzip.models.registry import (
    installable,
    installable_with_digest,
    installed,
    installed_with_digest,
)
from llmzip.models.store import (
    DEFAULT,
    EMBEDDED,
    embedded_record,
    embedded_with_digest,
    fetch,
    folder,
    is_hub_id,
    load,
    model_paths,
)

__all__ = [
    "DEFAULT",
    "EMBEDDED",
    "ModelFiles",
    "embedded_record",
    "embedded_with_digest",
    "fetch",
    "folder",
    "installable",
    "installable_with_digest",
    "installed",
    "installed_with_digest",
    "is_hub_id",
    "load",
    "load_config_only",
    "model_paths",
]
