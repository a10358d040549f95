"""Reading the time honestly: synchronise, then read; one thing per clock; raw values kept.

A stream of work is cut into segments of about ``seconds`` each. Warm-up comes first and is not recorded. Inside a
segment nothing is printed or counted but the items themselves, and a GPU always has work queued.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

MAX_QUEUED = 2  # items that may wait on a GPU: unbounded, "one second" of forward passes may queue many


def synchronize(device: str) -> None:
    """Wait until the network's stream on that device has done what it was given: all that a timed item is made of comes
    through it. Other streams are not waited for: there DALI makes later batches, which nobody has counted."""
    if device.startswith("cuda"):
        torch.cuda.current_stream(device).synchronize()


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a stream between two synchronised readings of the clock."""

    count: float  # images or crops that came out, or forward passes that were run
    duration_s: float
    interval_ms: list[float]  # between successive items (batches): on the GPU by events, without waiting


class _Marks:
    """Times of items, read without making a GPU wait. The host waits for the item MAX_QUEUED back."""

    def __init__(self, device: str) -> None:
        self.device, self.cuda = device, device.startswith("cuda")
        self.marks: list[Any] = []

    def mark(self) -> None:
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.marks.append(event)
            if len(self.marks) > MAX_QUEUED:
                self.marks[-1 - MAX_QUEUED].synchronize()
        else:
            self.marks.append(time.perf_counter())

    def intervals_ms(self) -> list[float]:
        """Call after synchronising."""
        pairs = zip(self.marks, self.marks[1:], strict=False)
        return [a.elapsed_time(b) if self.cuda else (b - a) * 1e3 for a, b in pairs]


class StreamEnded(RuntimeError):
    """The stream gave out before one segment was measured."""


def segment(
    stream: Iterator[int | float],
    *,
    seconds: float,
    warmup_items: int,
    device: str,
    ready: Callable[[], object] = lambda: None,
) -> Segment:
    """Take ``warmup_items`` from the stream untimed, then items until ``seconds`` have passed (at least two).

    ``ready`` is called between the two.

    Each item is the number of images, crops or forward passes that it stands for.
    """
    before = _Marks(device)
    for taken in range(warmup_items):
        if next(stream, None) is None:
            raise StreamEnded(f"only {taken} items came, {warmup_items} were wanted as warm-up")
        before.mark()
    marks = _Marks(device)
    synchronize(device)
    ready()
    start = time.perf_counter()
    marks.mark()
    count: float = 0
    items = 0
    while items < 2 or time.perf_counter() - start < seconds:
        done = next(stream, None)
        if done is None:
            break
        marks.mark()
        count, items = count + done, items + 1
    synchronize(device)
    duration_s = time.perf_counter() - start
    if not items:
        raise StreamEnded("the stream ended with the warm-up")
    return Segment(count, duration_s, marks.intervals_ms())
