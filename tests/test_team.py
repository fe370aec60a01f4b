"""Threads that divide a step give the bits of one, and end when anything goes wrong."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from conftest import PROSE

import llmzip
from llmzip.archive.codecs import codec_cache
from llmzip.exact import compiled_llama, matmul
from llmzip.exact.compiled_llama import CompiledLlama
from llmzip.exact.team import ALONE, Member, Team, available, meet
from llmzip.inference import base, compiled_predictor

pytestmark = pytest.mark.skipif(
    not (matmul.available() and available()), reason="no instruction, or threads cannot wait"
)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_divided_steps_give_the_bits_of_one_thread(count: int, rotated: bool) -> None:
    """Many tokens at once, as of a text that is compressed, and single steps; more threads than
    streams."""
    architecture, arrays = compiled_llama.small_model()
    model = CompiledLlama(architecture, arrays, rotated=rotated)
    ids = compiled_llama.small_ids(architecture)
    results = []
    for team in (None, Team(count)):
        if team:
            team.__enter__()
        cache = model.new_cache(len(ids), 512)
        parts = [model.forward(ids[:, :70], cache, 0, team)]
        parts += [model.forward(ids[:, t : t + 1], cache, t, team) for t in range(70, 80)]
        hidden = np.concatenate(parts, 1)
        results.append((hidden, model.logits(hidden.reshape(-1, hidden.shape[-1]), team)))
        if team:
            team.__exit__(None, None, None)
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(("streams", "count"), [(1, 2), (2, 4), (1, 3), (5, 3)])
def test_few_streams_are_coded_by_teams(
    streams: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into the same archive. Compressing wants one if half of the cores had no stream."""
    content, teams = PROSE.encode() * 3, []
    archives = [llmzip.compress(content, model="nano", streams=streams, prime=prime)
                for prime in (None, b"Mr. Bennet")]  # fmt: skip
    monkeypatch.setattr(base, "_CACHE_WEIGHTS", 0)
    monkeypatch.setattr(compiled_predictor, "cores", lambda: count)

    def made(size: int) -> Team:
        teams.append(size)
        return Team(size)

    monkeypatch.setattr(compiled_predictor, "Team", made)
    codec_cache.clear()
    try:
        assert llmzip.compress(content, model="nano", streams=streams) == archives[0]
        assert teams == [count] * (2 * streams <= count)
        assert llmzip.decompress(archives[0]) == content
        assert teams == [count] * (1 + (2 * streams <= count))
        assert llmzip.decompress(archives[1], prime=b"Mr. Bennet") == content
    finally:
        codec_cache.clear()


def test_what_a_thread_raises_ends_the_team() -> None:
    def work(member: Member) -> None:
        if member[0] == 1:
            raise ZeroDivisionError
        meet(member)

    with pytest.raises(ZeroDivisionError), Team(3) as team:
        team.run(work)
    assert not any(thread.name.endswith("(_work)") for thread in threading.enumerate())


def test_no_thread_is_left() -> None:
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt), Team(4) as team:
        for _ in range(50):
            team.run(meet_twice)
        assert threading.active_count() == before + 3
        raise KeyboardInterrupt
    assert threading.active_count() == before


def meet_twice(member: Member) -> None:
    """What threads do between is seen by all after they met."""
    meet(member)
    meet(member)


def test_alone_nobody_is_waited_for() -> None:
    meet(ALONE)
