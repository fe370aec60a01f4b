"""Exact inference: weights + token ids → logits, the same bits on every machine.

`tables` → `ops` → `attention` → `llama` → `check`; each imports only what stands before it.
Knows nothing of tokenizers and of coding. The rules are in docs/exactness.md.
"""
