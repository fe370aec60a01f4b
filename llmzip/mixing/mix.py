"""Candidates with evidence + their weights in the language model → weights that learned.

Each candidate in its turn is a yes-or-no question, whether it is the one, given that those before
it are not: the language model's odds and what the evidence of each source was worth so far are
mixed in the logistic domain (as in lpaq and cmix, by Mahoney and Knoll), by weights that learn,
and the outcome is refined by another adaptive table. Integers alone.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np

from llmzip.compiled import compiled
from llmzip.mixing.recall import CANDIDATES, MATCH, SOURCES, STATES
from llmzip.mixing.tables import LOG2, LOGIT_LIMIT, SHARES, SQUASH, STRETCH

PRIOR = Path(__file__).with_name("prior.json")

_OWN_INPUTS = 2  # beside the sources: the language model, a constant
_CONSTANT = 80
_RANKS = 3  # places in the order of candidates that are told apart
_ODDS = 24  # classes of the language model's own logit
_BUCKETS = 33  # of logits, in the adaptive table
_BUCKET = (2 * LOGIT_LIMIT + 2) // (_BUCKETS - 1)
_RATE = 4  # of learning
_MOST = 250  # observations that an estimate remembers
_CONFIDENCE = 30  # observations that the prior counts for, at most
_ONE = 1 << 22  # of estimates
_LN2 = 2839  # ln 2 · 2^12: from logarithms in 1/4096 to logits, 16 bits down
_RAREST = 1 << 12  # the share that all else keeps, of 2^32


def _first_estimates() -> np.ndarray:
    """What evidence is worth before anything was learned, int64 [SOURCES, STATES]."""
    estimates = np.full((SOURCES, STATES), _ONE // 50, dtype=np.int64)
    counts, others = (2, 4, 6, 10, 16, 32), (0, 2, 5, 10)  # in halves
    for source in range(SOURCES - 1):
        estimates[source, 0] = _ONE // 20
        estimates[source, 1:8] = _ONE // 100
        for at in range(4):
            for i, n in enumerate(counts):
                for j, m in enumerate(others):
                    trust = (8 if at == 0 else 5) * min(15, 6 + 3 * source)
                    share = 10 * n * trust * _ONE // (200 * (10 * n + 10 * m + 24))
                    estimates[source, 8 + (at * 6 + i) * 4 + j] = share
    estimates[MATCH] = _ONE // 100
    for size in range(16):  # hits since the last of 0, 1, 2 or more misses
        estimates[MATCH, 16 + size : 80 : 16] = _ONE - 10 * _ONE // (16 + 9 * size)
    return estimates


@cache
def prior(path: Path = PRIOR) -> dict[str, np.ndarray]:
    """The state that excerpts of a training corpus left a mixer in (scripts/train.py memory)."""
    state = json.loads(path.read_bytes())
    return {name: np.array(table, dtype=np.int64) for name, table in state.items()}


def blank() -> dict[str, np.ndarray]:
    """The state of a mixer that has seen nothing."""
    inputs = np.full((1, _OWN_INPUTS + SOURCES), 9830, dtype=np.int64)  # 0.15
    inputs[:, SOURCES:] = 65536, 0  # the language model, a constant
    contexts = (SOURCES + 1) * _RANKS  # by the best source that knows the candidate, and the rank
    middles = np.minimum(np.arange(_BUCKETS) * _BUCKET, 2 * LOGIT_LIMIT + 1)
    return {
        "estimates": _first_estimates(),
        "counts": np.full((SOURCES, STATES), 6, dtype=np.int64),
        "by_context": inputs.repeat(contexts, axis=0),
        "by_match": inputs.repeat(STATES, axis=0),
        "by_odds": inputs.repeat(_ODDS * _RANKS, axis=0),
        "refined": np.tile(SQUASH[middles] << 6, (contexts, 1)),
        "refined_counts": np.full((contexts, _BUCKETS), 6, dtype=np.int64),
    }


class Mixer:
    """What was learned of how much each source is worth; for S streams in lockstep."""

    def __init__(
        self, streams: int, state: dict[str, np.ndarray], candidates: int = CANDIDATES
    ) -> None:
        """`state` is that of another mixer, to begin with."""
        self._estimates = state["estimates"].copy()
        self._counts = state["counts"].copy()
        self._by_context = state["by_context"].copy()
        self._by_match = state["by_match"].copy()
        self._by_odds = state["by_odds"].copy()
        self._refined = state["refined"].copy()
        self._refined_counts = state["refined_counts"].copy()
        inputs = self._by_context.shape[1]
        self._inputs = np.zeros((streams, candidates, inputs), dtype=np.int64)
        self._chosen = np.zeros((streams, candidates, 5), dtype=np.int64)

    def state(self) -> dict[str, np.ndarray]:
        """What a prior is made of; no count is above what leaves room to learn."""
        return {
            "estimates": self._estimates,
            "counts": np.minimum(self._counts, _CONFIDENCE),
            "by_context": self._by_context,
            "by_match": self._by_match,
            "by_odds": self._by_odds,
            "refined": self._refined,
            "refined_counts": np.minimum(self._refined_counts, _CONFIDENCE),
        }

    def mix(
        self, candidates: np.ndarray, evidence: np.ndarray, known: np.ndarray, total: np.ndarray
    ) -> np.ndarray:
        """candidates int32 [n, K], evidence uint8 [n, K, SOURCES], their weights in the language
        model float64 [n, K] of a total [n] → weights float64 [n, K], at least 1."""
        weights = np.ones(candidates.shape)
        _mix(
            candidates, evidence, known, total, self._estimates, self._by_context,
            self._by_match, self._by_odds, self._refined, self._inputs, self._chosen, weights,
        )  # fmt: skip
        return weights

    def learn(self, candidates: np.ndarray, evidence: np.ndarray, ids: np.ndarray) -> None:
        """The ids int32 [n] that came after the last `mix`."""
        _learn(
            candidates, evidence, ids, self._estimates, self._counts, self._by_context,
            self._by_match, self._by_odds, self._refined, self._refined_counts, self._inputs,
            self._chosen,
        )  # fmt: skip


@compiled
def _log2(
    value: int,
) -> int:
    """2^12 · log2 of a positive integer, rounded down in its last bits."""
    octave = 12
    while value >= 1 << 28:
        value >>= 16
        octave += 16
    while value >= 1 << 13:
        value >>= 1
        octave += 1
    while value < 1 << 12:
        value <<= 1
        octave -= 1
    return (octave << 12) + int(LOG2[value - 4096])


@compiled
def _clipped(
    logit: int,
) -> int:
    return min(LOGIT_LIMIT, max(-LOGIT_LIMIT, logit))


@compiled
def _mix(
    candidates: np.ndarray,
    evidence: np.ndarray,
    known: np.ndarray,
    total: np.ndarray,
    estimates: np.ndarray,
    by_context: np.ndarray,
    by_match: np.ndarray,
    by_odds: np.ndarray,
    refined: np.ndarray,
    inputs: np.ndarray,
    chosen: np.ndarray,
    weights: np.ndarray,
) -> None:
    sources = evidence.shape[2]
    match = sources - 1
    for s in range(len(candidates)):
        rest = np.int64(total[s])
        left = np.int64(1) << 32  # the probability of what comes after
        count = 0
        for j in range(candidates.shape[1]):
            if candidates[s, j] < 0:
                break
            count += 1
            weight = np.int64(known[s, j])
            rest = max(rest - weight, np.int64(1))
            best = 0
            for source in range(sources):
                state = evidence[s, j, source]
                inputs[s, j, source] = STRETCH[estimates[source, state] >> 10] if state else 0
                if 16 <= state < 80 if source == match else state >= 8:
                    best = source + 1
            logit = (_log2(weight) - _log2(rest)) * _LN2 >> 16
            inputs[s, j, sources] = _clipped(logit)
            inputs[s, j, sources + 1] = _CONSTANT
            context = best * _RANKS + min(j, _RANKS - 1)
            state = evidence[s, j, match]
            odds = (inputs[s, j, sources] + LOGIT_LIMIT + 1) >> 8
            third = odds * _RANKS + min(j, _RANKS - 1)
            chosen[s, j, 4] = third
            product = np.int64(0)
            for i in range(sources + _OWN_INPUTS):
                product += (
                    by_context[context, i] + by_match[state, i] + by_odds[third, i]
                ) * inputs[s, j, i]
            logit = _clipped(product // (3 << 16))
            share = SQUASH[logit + LOGIT_LIMIT + 1]
            bucket = (logit + LOGIT_LIMIT + 1) // _BUCKET
            part = (logit + LOGIT_LIMIT + 1) - bucket * _BUCKET
            between = (
                refined[context, bucket] * (_BUCKET - part) + refined[context, bucket + 1] * part
            ) // _BUCKET
            chosen[s, j, 0], chosen[s, j, 1] = context, state
            chosen[s, j, 2] = share
            chosen[s, j, 3] = bucket + (1 if 2 * part >= _BUCKET else 0)
            final = min(65534, max(2, (share + (between >> 6)) >> 1))
            weights[s, j] = (left * final) >> 16
            left = max(np.int64(1), (left * (65536 - final)) >> 16)
        left = max(left, np.int64(_RAREST))
        for j in range(count):
            weights[s, j] = max(1.0, np.floor(weights[s, j] * np.float64(rest) / np.float64(left)))


@compiled
def _learn(
    candidates: np.ndarray,
    evidence: np.ndarray,
    ids: np.ndarray,
    estimates: np.ndarray,
    counts: np.ndarray,
    by_context: np.ndarray,
    by_match: np.ndarray,
    by_odds: np.ndarray,
    refined: np.ndarray,
    refined_counts: np.ndarray,
    inputs: np.ndarray,
    chosen: np.ndarray,
) -> None:
    sources = evidence.shape[2]
    for s in range(len(ids)):
        for j in range(candidates.shape[1]):
            if candidates[s, j] < 0:
                break
            yes = candidates[s, j] == ids[s]
            context, state = chosen[s, j, 0], chosen[s, j, 1]
            third = chosen[s, j, 4]
            error = ((1 << 16) if yes else 0) - chosen[s, j, 2]
            for i in range(sources + _OWN_INPUTS):
                step = (inputs[s, j, i] * error * _RATE + (1 << 17)) >> 18
                by_context[context, i] += step
                by_match[state, i] += step
                by_odds[third, i] += step
            target = _ONE - 1 if yes else 0
            for source in range(sources):
                state = evidence[s, j, source]
                n = counts[source, state]
                estimates[source, state] += ((target - estimates[source, state]) * SHARES[n]) >> 16
                counts[source, state] = min(n + 1, _MOST)
            bucket = chosen[s, j, 3]
            n = refined_counts[context, bucket]
            refined[context, bucket] += ((target - refined[context, bucket]) * SHARES[n]) >> 16
            refined_counts[context, bucket] = min(n + 1, _MOST)
            if yes:
                break
