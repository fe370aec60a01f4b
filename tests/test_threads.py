"""Parts of the streams in threads of their own: the same results, errors and an end in any case."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch

from llmzip.coding.threads import StreamThreads, in_threads


def pieces(first: int, count: int = 100) -> Iterator[list[int]]:
    """first … first + count - 1, three at a time."""
    for i in range(first, first + count, 3):
        yield list(range(i, min(i + 3, first + count)))


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2  # put back, whatever happened
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("streams", "cores", "sizes"), [(1, 4, [1]), (7, 2, [3, 4]), (2, 8, [1, 1]), (9, 1, [9])]
)
def test_parts_cover_the_streams(streams: int, cores: int, sizes: list[int]) -> None:
    parts = StreamThreads(streams, cores).parts
    assert [part.stop - part.start for part in parts] == sizes
    assert [i for part in parts for i in range(streams)[part]] == list(range(streams))


def test_cores_are_divided_among_the_parts() -> None:
    found: list[int] = []
    for streams in (2, 1):
        with StreamThreads(streams, 2) as threads:
            threads.take_turns(
                lambda part, given: torch.get_num_threads(), lambda part, cores: found.append(cores)
            )
    assert found == [1, 1, 2]


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_turns_are_taken_in_order_whoever_is_slow(cores: int) -> None:
    taken: list[tuple[int, int]] = []

    def compute(part: int, given: int | None) -> int:
        time.sleep(0.002 * ((part + (given or 0)) % 3))
        return (given or 0) + 1

    def take(part: int, result: int) -> int | None:
        taken.append((result, part))
        return result if result < 5 else None

    with StreamThreads(3, cores) as threads:
        threads.take_turns(compute, take)
    assert taken == [(step, part) for step in range(1, 6) for part in range(cores)]


def test_all_is_there_however_slow_the_reader() -> None:
    with StreamThreads(2, 2) as threads:
        found = []
        for pair in zip(*(threads.ahead(pieces(first)) for first in (0, 100)), strict=True):
            if pair[0] == 0:
                time.sleep(0.3)  # longer than a full queue is patient
            found.append(pair)
    assert found == list(zip(range(100), range(100, 200), strict=True))


def test_errors_come_out_and_threads_end() -> None:
    def fails() -> Iterator[list[int]]:
        yield [1]
        raise KeyError("a reason")

    with pytest.raises(KeyError, match="a reason"), StreamThreads(2, 2) as threads:
        list(zip(threads.ahead(pieces(0, 10_000)), threads.ahead(fails()), strict=True))
    for part in (0, 1):  # an error of one part ends the other
        with pytest.raises(ZeroDivisionError), StreamThreads(2, 2) as threads:
            threads.take_turns(lambda i, given: 1 // (i - part), lambda i, result: 1)  # noqa: B023
        with pytest.raises(ZeroDivisionError), StreamThreads(2, 2) as threads:
            threads.take_turns(lambda i, given: i, lambda i, result: 1 // (i - part))  # noqa: B023


def test_whoever_stops_listening_is_not_waited_for() -> None:
    start = time.perf_counter()
    with StreamThreads(2, 2) as threads:
        assert [next(threads.ahead(pieces(i, 10**9))) for i in range(2)] == [0, 1]
    assert time.perf_counter() - start < 5


def test_items_in_threads_give_results_in_order() -> None:
    def work(item: int, check: Callable[[], None]) -> int:
        time.sleep(0.001 * (item % 3))
        check()
        return item * item

    assert in_threads(work, range(20), 3) == [i * i for i in range(20)]
    assert in_threads(work, [], 2) == []


def test_an_item_that_fails_ends_the_others() -> None:
    def work(item: int, check: Callable[[], None]) -> None:
        if item == 1:
            raise KeyError("a reason")
        while True:
            time.sleep(0.001)
            check()

    start = time.perf_counter()
    with pytest.raises(KeyError, match="a reason"):
        in_threads(work, range(4), 2)
    assert time.perf_counter() - start < 5
