"""Segments of a stream whose every item takes a known time, on a clock that only the stream moves."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.measure import clocks
from bench.measure.clocks import StreamEnded, segment


class Clock:
    """Seconds in powers of two, so that sums are exact."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.taken = 0

    def perf_counter(self) -> float:
        return self.now

    def stream(self, *items: tuple[int, float]) -> Iterator[int]:
        """Each item: what it counts, seconds that it takes."""
        for count, seconds in items:
            self.now += seconds
            self.taken += 1
            yield count


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(clocks, "time", clock)
    return clock


def test_a_segment_counts_and_times_its_own_items_and_no_warm_up(clock: Clock) -> None:
    warm_up, work = [(1000, 64.0)] * 3, [(5, 0.25)] * 100
    found = segment(clock.stream(*warm_up, *work), seconds=1.0, warmup_items=3, device="cpu")
    assert (found.count, found.duration_s) == (20, 1.0)
    assert found.interval_ms == [250.0] * 4
    assert clock.taken == 7  # nothing is taken that is not counted


def test_the_item_in_work_when_the_time_is_up_is_finished_and_counted(clock: Clock) -> None:
    found = segment(clock.stream((4, 0.75), (4, 0.5), (3, 2.0), (4, 1.0)), seconds=1.5, warmup_items=0, device="cpu")
    assert (found.count, found.duration_s) == (11, 3.25)
    assert found.interval_ms == [750.0, 500.0, 2000.0]


def test_at_least_two_items_are_timed_however_long_they_take(clock: Clock) -> None:
    found = segment(clock.stream(*[(8, 512.0)] * 5), seconds=0.0, warmup_items=1, device="cpu")
    assert (found.count, found.duration_s, len(found.interval_ms)) == (16, 1024.0, 2)


def test_successive_segments_of_one_stream_share_no_item(clock: Clock) -> None:
    stream = clock.stream(*[(1, 0.5)] * 12)
    both = [segment(stream, seconds=1.0, warmup_items=2, device="cpu") for _ in range(2)]
    assert [one.count for one in both] == [2, 2]
    assert clock.taken == 8


def test_a_stream_that_ends_in_the_segment_is_timed_as_far_as_it_came(clock: Clock) -> None:
    found = segment(clock.stream((8, 1.0), (8, 1.0), (3, 0.5)), seconds=60.0, warmup_items=1, device="cpu")
    assert (found.count, found.duration_s, found.interval_ms) == (11, 1.5, [1000.0, 500.0])


def test_items_that_count_nothing_take_time_all_the_same(clock: Clock) -> None:
    found = segment(clock.stream(*[(0, 0.5)] * 9), seconds=1.0, warmup_items=0, device="cpu")
    assert (found.count, found.duration_s) == (0, 1.0)


@pytest.mark.parametrize(
    ("items", "warmup_items", "says"),
    [(0, 1, "only 0 items came, 1 were wanted"), (2, 3, "only 2 items came, 3 were wanted"), (3, 3, "ended with the")],
)
def test_a_stream_that_ends_before_the_segment_is_an_error(
    items: int, warmup_items: int, says: str, clock: Clock
) -> None:
    with pytest.raises(StreamEnded, match=says):
        segment(clock.stream(*[(1, 1.0)] * items), seconds=1.0, warmup_items=warmup_items, device="cpu")


@pytest.fixture
def happened(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done with a GPU that has two streams: the network's, and one in which DALI makes later batches."""
    happened: list[str] = []

    class Stream:
        def __init__(self, device: str) -> None:
            self.device = device

        def synchronize(self) -> None:
            happened.append(f"wait for the stream of {self.device}")
            clock.now += 4.0  # the work that was queued

    class Event:
        made = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.number, Event.made = Event.made, Event.made + 1

        def record(self, stream: Stream) -> None:
            assert stream.device == "cuda:1"
            self.at = clock.now
            happened.append("mark")

        def synchronize(self) -> None:
            happened.append(f"wait for mark {self.number}")

        def elapsed_time(self, later: Any) -> float:
            assert happened[-1].startswith("wait for the stream")  # reading an event before would fail
            return 1e3 * (later.at - self.at)

    # Without `synchronize`: nothing may wait for the whole device.
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(current_stream=Stream, Event=Event))
    return happened


def noted(stream: Iterator[int], happened: list[str]) -> Iterator[int]:
    for count in stream:
        happened.append("item")
        yield count


def test_a_gpus_stream_is_waited_for_at_both_ends_of_a_segment_and_never_inside(
    clock: Clock, happened: list[str]
) -> None:
    stream = noted(clock.stream(*[(8, 0.5)] * 9), happened)
    found = segment(stream, seconds=1.0, warmup_items=1, device="cuda:1")
    item, whole = ["item", "mark"], "wait for the stream of cuda:1"
    # Marks: 0 the warm-up's, 1 the start, 2 and 3 the items'. After the last, the one two back is waited for.
    assert happened == [*item, whole, "mark", *item, *item, "wait for mark 1", whole]
    assert (found.count, found.duration_s, found.interval_ms) == (16, 5.0, [500.0, 500.0])


def test_at_most_two_items_wait_on_a_gpu_also_in_the_warm_up(clock: Clock, happened: list[str]) -> None:
    """Else a second of calls, which return at once, may queue many seconds of work."""
    segment(noted(clock.stream(*[(1, 0.25)] * 20), happened), seconds=1.5, warmup_items=5, device="cuda:1")
    item = ["item", "mark"]
    warm_up = [*item * 2, *(x for n in range(3) for x in (*item, f"wait for mark {n}"))]
    timed = ["mark", *item, *(x for n in range(5, 10) for x in (*item, f"wait for mark {n}"))]
    whole = "wait for the stream of cuda:1"
    assert happened == [*warm_up, whole, *timed, whole]
