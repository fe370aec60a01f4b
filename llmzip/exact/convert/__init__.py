"""Models of the transformers library → the same models in exact arithmetic.

`config` builds the network, `match` finds an exact module (`modules`) for each of its modules,
`attention` exchanges attention and KV cache, `model` puts them together and `verify` tests that
nothing inexact is left. A new norm, activation or rotary embedding only changes `match`.
"""
