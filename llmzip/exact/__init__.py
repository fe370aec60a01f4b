"""Exact inference: weights and token ids → logits, bit-identical on every machine.

The rules are in docs/exactness.md. Bottom up: `tables` → `activations`, `rotary`, `hadamard` →
`ops` → `attention` → `llama`, `quantise` → `convert` (other architectures). Llama models on CPUs:
`tiles` → `byte_products`, `word_products` → `matmul` → `rows`, `kv_cache`, `softmax` →
`attention_rows` → `step` → `compiled_llama`, without torch, and `fused`; on GPUs: `gpu`. `selftest`
checks a device. Tokenizers and coding are not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

ARITHMETIC = 2  # the version of docs/exactness.md

# Lower bounds of a row's max |x| and of a weight scale. Every product of scales stays a normal
# float32, so it does not matter whether a processor flushes subnormals to zero.
ACTIVATION_FLOOR = 2.0**-64
SCALE_FLOOR = 2.0**-40

A8_LEVELS = 127.0  # activations in one limb
MAX_CONTEXT = 65536  # keys whose integer sums stay exact in float32, see `attention.attend`

SCALE_SUFFIX = "_scale"  # `NAME_scale` float32 [N, 1] holds the scales of `NAME` int8 [N, K]


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of a model that a predictor needs."""

    vocabulary: int
    hidden_size: int
    activation_size: int  # activations of a token that are alive at the same time, about
    context: int  # context window in training, tokens
    sliding_windows: tuple[int | None, ...]  # per layer: keys that a token sees, itself included
    kv_size: int  # elements of a token's keys in one layer, and again of its values

    @property
    def weights(self) -> int:
        """Of layers and head, about: 12 times the square of the hidden size in a layer."""
        per_layer = 12 * self.hidden_size * self.hidden_size
        return len(self.sliding_windows) * per_layer + self.vocabulary * self.hidden_size
