"""Images per second: the pipeline alone, the network alone, and both together, at each number of crops.

    read        files -> bytes                          images/s
    decode      files -> pixels                         images/s
    resize      files -> resized frames                 images/s
    load        files -> uint8 crops, no network        images/s  (P, for each crop count)
    model       resident crops -> outputs, no pipeline  crops/s   (M)
    end_to_end  files -> each image's averaged answer   images/s

Timed apart, in rounds that alternate them: a machine that slows down slows all of them. Nothing but the work
is inside a timed segment; data is read again and again in the order of the table, and the tail of a pass that does not
fill a segment is dropped (accuracy is another pass, over every image once). Warm-up is outside the clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from bench.clocks import Segment, segment
from bench.machine import PeakMemory
from bench.records import END_TO_END, LOAD, MODEL
from models.averaging import log_probabilities
from models.predict import Network, predict
from pipelines.batch import STAGES, Backend, LoadConfig, Source
from pipelines.crops import Planner, Policy, parse_policy, union

MAX_IMAGES = 1_000_000  # of one stream; a segment ends long before


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to time. ``crops`` is None for what does not depend on it."""

    stage: str
    crops: int | None


@dataclass(slots=True)
class Measured:
    """All rounds of one cell. Rates and intervals are computed on reading."""

    cell: Cell
    segments: list[Segment]
    peak_mem_bytes: int = 0
    gpu_used_bytes: int = 0


class Bench:
    """Holds the pipelines and the network of one model while their cells are timed in turn."""

    def __init__(
        self,
        backend_class: type[Backend],
        source: Source,
        rows: np.ndarray,
        make_planner: Callable[[Policy], Planner],
        make_config: Callable[[int], LoadConfig],
        network: Network,
        crops: list[int],
    ) -> None:
        self.network = network
        self.rows = np.resize(rows, max(len(rows), MAX_IMAGES))
        self.policies = {n: parse_policy(f"{n}RC") for n in crops}
        self.planners = {n: make_planner(policy) for n, policy in self.policies.items()}
        self.backends = {n: backend_class(source, self.planners[n], make_config(n)) for n in crops}

    def cells(self) -> list[Cell]:
        """In the order of a round."""
        loads = [Cell(stage, n) for n in self.policies for stage in (LOAD, END_TO_END)]
        return [*(Cell(stage, None) for stage in STAGES), Cell(MODEL, None), *loads]

    def stream(self, cell: Cell) -> Iterator[int]:
        """An endless run of the cell's work; each item says how many images (of MODEL: crops) it was."""
        if cell.stage == MODEL:
            return self._forwards()
        if cell.stage in STAGES:
            return self.backends[min(self.backends)].stage(cell.stage, self.rows)
        assert cell.crops is not None
        return self._loads(cell.crops) if cell.stage == LOAD else self._answers(cell.crops)

    def _forwards(self) -> Iterator[int]:
        while True:
            self.network.forward()
            yield self.network.chunk

    def _loads(self, n: int) -> Iterator[int]:
        for batch in self.backends[n].batches(self.rows):
            yield len(batch.rows)

    def _answers(self, n: int) -> Iterator[int]:
        views = union([self.policies[n]])
        kept: list[torch.Tensor] = []  # answers stay on the device, as a server's would until it sends them
        for predicted in predict(self.backends[n].batches(self.rows), self.network, views):
            if predicted.outputs is not None:
                log_p = log_probabilities("softmax", predicted.outputs, views, [self.policies[n]], self.network.head)
                assert log_p is not None
                kept = [log_p.argmax(-1).to("cpu", non_blocking=True), *kept[:1]]
            yield len(predicted.rows)

    def fill(self) -> None:
        """Put real crops into the network's chunk, so that the network alone is timed on what it will see."""
        n = max(self.backends)
        used = 0
        for batch in self.backends[n].batches(self.rows):
            for group in batch.groups:
                take = min(len(group.crops), self.network.chunk - used)
                self.network.buffer[used : used + take].copy_(group.crops[:take])
                used += take
            if used == self.network.chunk:
                return

    def close(self) -> None:
        for backend in self.backends.values():
            backend.close()


def measure(
    bench: Bench,
    *,
    rounds: int,
    seconds: float,
    warmup_items: int,
    progress: Callable[[Cell], None] = lambda cell: None,
    ready: Callable[[], object] = lambda: None,
) -> list[Measured]:
    """Time every cell ``rounds`` times, alternating. The first round's warm-up is twice as long.

    ``ready`` is called after each warm-up, before the clock is read: several processes wait there for each other.
    """
    device = str(bench.network.device)
    measured = [Measured(cell, []) for cell in bench.cells()]
    memory = PeakMemory(device)
    bench.fill()
    for round_number in range(rounds):
        for one in measured:
            memory.start()
            warm = warmup_items * (2 if round_number == 0 else 1)
            stream = bench.stream(one.cell)
            one.segments.append(segment(stream, seconds=seconds, warmup_items=warm, device=device, ready=ready))
            memory.sample()  # before the stream is dropped: its buffers still stand
            del stream
            one.peak_mem_bytes = max(one.peak_mem_bytes, memory.sampled_bytes)
            one.gpu_used_bytes = max(one.gpu_used_bytes, memory.gpu_used_bytes)
            progress(one.cell)
    return measured
