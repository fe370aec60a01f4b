"""Corpus → model: tokenizer, packing, training, quantisation-aware finish, evaluation.

`config` → `data` → `losses` → `model` → `prune`, `teacher` → `optim` → `loop` → `evaluate`, and for
machines without llmzip's dependencies `shards`; each imports only what stands before it. Nobody
imports this but the command line and scripts. The result is a folder in Hugging Face format that
`--model` takes.
"""
