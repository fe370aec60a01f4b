"""The language model's distribution + the bytes so far → probabilities of binary decisions.

A token is a walk through the trie of the vocabulary's byte strings. At a node where one token ends
and longer ones go on, a decision says whether it ends there; then come the eight bits of the next
byte. The probability of each decision is mixed from the language model and from contexts over the
bytes of the frame so far, as lpaq, paq8 and cmix do (Mahoney, Knoll), in integers alone.

`vocabulary`: the trie. `distribution`: what the language model says of a decision. `history`: the
bytes so far, and the longest match. `contexts`: what the contexts have seen. `mixer`: inputs →
probability, and learning. `walk`: tokens ↔ decisions. `state`: all that is learned.
"""
