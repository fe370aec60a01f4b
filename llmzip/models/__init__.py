"""Name, folder, GGUF file or hub id → weights, config, tokenizer, digest. Knows nothing of coding.

Only safetensors, GGUF and JSON are read; no code and no pickle of a model is ever run. The network
is used by `load` for a hub id that the caller names, and never otherwise.
"""

from llmzip.models.home import (
    installable,
    installable_with_digest,
    installed,
    installed_with_digest,
)
from llmzip.models.store import (
    DEFAULT,
    EMBEDDED,
    ModelFiles,
    embedded_with_digest,
    expected,
    fetch,
    folder,
    glance,
    is_hub_id,
    load,
    shipped,
)

__all__ = [
    "DEFAULT",
    "EMBEDDED",
    "ModelFiles",
    "embedded_with_digest",
    "expected",
    "fetch",
    "folder",
    "glance",
    "installable",
    "installable_with_digest",
    "installed",
    "installed_with_digest",
    "is_hub_id",
    "load",
    "shipped",
]
