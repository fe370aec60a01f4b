"""Small models of many families of the transformers library, made and briefly trained here.

python tests/families.py DIR --text FILE --seconds 60   # folders for measure.py exactness
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from conftest import TINY
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmzip.tokenizer import Tokens

VOCABULARY = 512  # that of TINY, whose tokenizer they all take

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
_SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    **_COMMON,
}
_WIDE = {**_SHAPE, "intermediate_size": 160}
_GROUPED = {**_WIDE, "num_key_value_heads": 2}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, **_COMMON}

# name → (config class, what it is given)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", _GPT2),
    "gpt2-scaled": ("GPT2Config", {**_GPT2, "scale_attn_by_inverse_layer_idx": True}),
    "gpt-bigcode": ("GPTBigCodeConfig", _GPT2),
    "llama": ("LlamaConfig", _GROUPED),
    "llama3": ("LlamaConfig", {**_GROUPED, "rope_parameters": _LLAMA3}),
    "smollm2": ("LlamaConfig", {**_GROUPED, "tie_word_embeddings": True}),
    "smollm3": ("SmolLM3Config", _GROUPED),
    "mistral": ("MistralConfig", {**_GROUPED, "sliding_window": 9}),
    "qwen2": ("Qwen2Config", _GROUPED),
    "qwen2-sliding": (
        "Qwen2Config",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**_GROUPED, "head_dim": 24}),
    "gpt-neox": ("GPTNeoXConfig", {**_WIDE, "rotary_pct": 0.25}),
    "gpt-neox-serial": ("GPTNeoXConfig", {**_WIDE, "use_parallel_residual": False}),
    "phi": ("PhiConfig", {**_WIDE, "partial_rotary_factor": 0.5}),
    "phi3": ("Phi3Config", _GROUPED),
    "gemma": ("GemmaConfig", {**_GROUPED, "head_dim": 16}),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_GROUPED,
            "head_dim": 16,
            "sliding_window": 9,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "opt": ("OPTConfig", {**_SHAPE, "ffn_dim": 160, "word_embed_proj_dim": 64}),
    "opt-projected": (
        "OPTConfig",
        {**_SHAPE, "ffn_dim": 160, "word_embed_proj_dim": 48, "do_layer_norm_before": False},
    ),
    "olmo2": ("Olmo2Config", _GROUPED),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "stablelm": ("StableLmConfig", {**_GROUPED, "partial_rotary_factor": 0.5}),
    "cohere": ("CohereConfig", {**_GROUPED, "logit_scale": 0.3}),
    "granite": ("GraniteConfig", {**_GROUPED, "logits_scaling": 2.0}),
    "nemotron": ("NemotronConfig", _GROUPED),
    "glm4": ("Glm4Config", {**_GROUPED, "head_dim": 16}),
}

# name → (config class, what it is given, the name that the refusal must give)
UNKNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma2": ("Gemma2Config", {**_GROUPED, "head_dim": 16}, "Gemma2Attention"),
    "mixtral": ("MixtralConfig", {**_GROUPED, "num_local_experts": 2}, "MixtralTopKRouter"),
    "qwen3-next": (
        "Qwen3NextConfig",
        {
            **_GROUPED,
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
        "GatedDeltaNet",
    ),
    "gpt-j": ("GPTJConfig", {**_GPT2, "rotary_dim": 8}, "GPTJ"),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4, **_COMMON}, "Bloom"),
    "mamba": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, **_COMMON}, "mamba"),
    "granite-by-3": ("GraniteConfig", {**_GROUPED, "logits_scaling": 3.0}, "GraniteForCausalLM"),
}


def build(kind: str, given: dict[str, Any]) -> PreTrainedModel:
    """A model with random weights, the same every time; norms and biases are not 1 and 0."""
    torch.manual_seed(7)
    network = AutoModelForCausalLM.from_config(getattr(transformers, kind)(**given))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return network.eval()


def tokenise(text: bytes) -> Tensor:
    """int64 [n] ids of TINY's tokenizer."""
    tokens = Tokens((TINY / "tokenizer.json").read_bytes(), VOCABULARY)
    return torch.from_numpy(tokens.encode(text)).long()


def train(network: PreTrainedModel, ids: Tensor, *, steps: int, seconds: float = 1e9) -> None:
    """Next-token prediction on random excerpts of 64 ids, by AdamW."""
    chance = torch.Generator().manual_seed(1)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    start = time.time()
    for step in range(steps):
        spent = max(step / steps, (time.time() - start) / seconds)
        if spent >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 10, 2 * (1 - spent))
        starts = torch.randint(0, len(ids) - 64, (8,), generator=chance)
        batch = torch.stack([ids[s : s + 64] for s in starts])
        network(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    network.eval()


def save(network: PreTrainedModel, folder: Path) -> None:
    network.save_pretrained(folder)
    shutil.copy(TINY / "tokenizer.json", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    ids = tokenise(arguments.text.read_bytes()[:2_000_000])
    for name, (kind, given) in FAMILIES.items():
        network = build(kind, given)
        train(network, ids, steps=1_000_000, seconds=arguments.seconds)
        save(network, arguments.folder / name)
        print(name)


if __name__ == "__main__":
    main()
