"""How many threads work is decided by measurement, and put back afterwards."""

from __future__ import annotations

import pytest
import torch

from llmzip.exact import threads


@pytest.mark.parametrize(("one", "many", "chosen"), [(1.0, 0.6, 2), (1.0, 1.2, 2), (1.0, 50.0, 1)])
def test_threads_that_only_wait_for_each_other_are_sent_away(
    one: float, many: float, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(
        threads, "_seconds", lambda *_: many if torch.get_num_threads() > 1 else one
    )
    torch.set_num_threads(2)
    try:
        with threads.threads_that_pay(100, 64):
            assert torch.get_num_threads() == chosen
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
