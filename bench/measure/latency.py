"""Latency: one image in, its answer out, at each number of crops and for each dense or stopped policy.

One image at a time (MLPerf's SingleStream scenario): the file is read, decoded and resized, all crops go through the
network in one batch, the average is taken, and the class arrives on the host before the next image is asked for.
Nothing is read ahead. A stopped policy takes its crops in batches of STOPPED_BATCH at most: all in one batch would
leave nothing to save.

The policies alternate in rounds, and all see the same images, so that latencies can be compared image by image. Rounds
that something disturbed (bench.measure.disturbance) are repeated, and left out where others are left.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bench import records
from bench.job import Job
from bench.measure.cheap import LEVEL, ScoredAnswers, Timing, cheap_timings, scored_answers
from bench.measure.disturbance import REPEAT_SHARE, Meter, Reading, disturbances
from bench.measure.throughput import readable_rows
from models.early_stopping import answers
from models.predict import Network
from pipelines.backends import BACKENDS
from pipelines.crops import parse_policy, union

STOPPED_BATCH = 4  # crops
WARM_UP = 3  # queries before each round, not recorded
FEWEST = 2  # queries of a round, however long they take
LONGEST_ROUND = 4  # times the length of a round of the throughput pass


@dataclass(slots=True)
class Queries:
    """What came of one policy in one round, and what passed on the system's counters meanwhile."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)  # -1: an answer with NaN in it
    forwards: list[float] = field(default_factory=list)
    used: Reading | None = None


class SingleStream:
    """The pipeline and the network of one policy, for one image at a time."""

    def __init__(self, job: Job, timing: Timing) -> None:
        self.timing, self.sizes = timing, job.data.sizes
        policy = timing.policy
        self.planner = job.planner(policy)
        views = union([policy])
        crops = max(1, views.total - len(views.dense))
        self.batch_size = min(crops, STOPPED_BATCH) if policy.suffix else crops
        self.network: Network = job.make_network(self.batch_size, compiled=job.config.network.torchcompile)
        self.network.one_frame_at_once = True
        self.network.get_ready(views.sizes)  # before any pipeline starts
        loading = job.load_config(1)
        workers = 0 if BACKENDS[job.config.loading.data_backend].uses_processes else loading.workers
        alone = replace(loading, batch_images=1, prefetch=1, read_ahead=False, workers=workers)
        self.backend = job.make_backend(self.planner, alone)
        self.rounds: list[Queries] = []

    @property
    def disturbed(self) -> list[str]:
        """For each round what disturbed it, in words, or "". A single slow answer is what is measured, and no sign of
        a disturbance: the system's counters alone decide."""
        return disturbances([one.used for one in self.rounds if one.used], [[] for _ in self.rounds])

    def answer(self, rows: np.ndarray) -> Iterator[tuple[int, float, int, float]]:
        """For each image: its row, the seconds from asking for it to its class, the class, the forward passes."""
        batches = self.backend.batches(rows)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            timing = self.timing
            (one,) = answers([batch], self.network, self.planner, timing.policy, LEVEL, self.sizes, timing.threshold)
            if one.log_p is None:  # no longer readable
                continue
            said = torch.where(one.log_p[0].isnan().any(), -1, one.log_p[0].argmax()).item()  # waits for a GPU
            yield int(one.rows[0]), time.perf_counter() - start, int(said), float(one.forwards[0])

    def round(self, warm_up: np.ndarray, rows: np.ndarray, seconds: float, meter: Meter) -> None:
        """Answer ``rows``, as many as fit into the seconds."""
        stream = self.answer(np.concatenate([warm_up, rows]))
        for _ in zip(range(len(warm_up)), stream, strict=False):
            pass
        done = Queries()
        self.rounds.append(done)
        before, start = meter.read(), time.perf_counter()
        for count, (row, took, said, forwards) in enumerate(stream, 1):
            done.rows.append(row)
            done.seconds.append(took)
            done.classes.append(said)
            done.forwards.append(forwards)
            if count >= FEWEST and time.perf_counter() - start >= seconds:
                break
        done.used = meter.read().since(before)

    def record(self, setting: records.Setting, crops: int | None, scored: ScoredAnswers) -> records.Latency:
        own, disturbed = scored.get(self.timing.policy.name), self.disturbed
        kept = [self.rounds[i] for i in records.kept_rounds(disturbed)]
        rows = [row for one in kept for row in one.rows]
        classes = [said for one in kept for said in one.classes]
        pairs = [
            (own.classes[row], said) for row, said in zip(rows, classes, strict=True) if own and row in own.classes
        ]
        return records.Latency(
            setting,
            policy=self.timing.policy.name,
            crops=crops,
            crops_per_forward=self.batch_size,
            latency_ms=[round(1e3 * seconds, 3) for one in kept for seconds in one.seconds],
            rows=rows,
            forwards=float(np.mean([forwards for one in kept for forwards in one.forwards])),
            agreement=float(np.mean([a == b for a, b in pairs])) if pairs else None,
            disturbed=disturbed if any(disturbed) else [],
        )

    def close(self) -> None:
        self.backend.close()


def latency_phase(job: Job, setting: records.Setting, out: Path) -> Iterator[records.Record]:
    """Time single images. All processes call it."""
    measure = job.config.measure
    why_not = None
    if not measure.throughput:
        why_not = "not asked for (`throughput`)"
    elif not measure.latency_queries:
        why_not = "not asked for (`latency_queries` 0)"
    elif job.processes.world > 1:
        why_not = "one image at a time is the work of one process: run without torchrun"
    if why_not:
        yield records.Absent(setting, "latency", why_not)
        return
    rows = readable_rows(job, out)
    if not len(rows):
        yield records.Absent(setting, "latency", "no image could be read; see unreadable.csv")
        return
    cheap, absent = cheap_timings(job, out)
    for name, reason in absent.items():
        yield records.Absent(setting, f"latency of {name}", reason)
    timings = [Timing(parse_policy(f"{n}RC")) for n in job.crops] + cheap
    crops = [*job.crops, *[None] * len(cheap)]
    streams = _timed(job, timings, spread_out(rows, measure.latency_queries))
    scored = scored_answers(job, out)
    yield from (one.record(setting, n, scored) for one, n in zip(streams, crops, strict=True))


def spread_out(rows: np.ndarray, n: int) -> np.ndarray:
    """``n`` of the rows, evenly over all of them; some twice where there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, n).round().astype(np.int64)]


def _timed(job: Job, timings: list[Timing], rows: np.ndarray) -> list[SingleStream]:
    measure = job.config.measure
    # Each round has images of its own, so that no file is still in a cache from the round before.
    rounds = [rows[start :: measure.rounds] for start in range(min(measure.rounds, len(rows)))]
    streams: list[SingleStream] = []
    try:
        for timing in timings:
            streams.append(SingleStream(job, timing))
        _in_rounds(job, streams, rounds, rows[:WARM_UP])
    finally:
        for stream in streams:
            stream.close()
    return streams


def _in_rounds(job: Job, streams: list[SingleStream], rounds: list[np.ndarray], warm_up: np.ndarray) -> None:
    """All policies in each round, then the disturbed rounds again, once, within REPEAT_SHARE of the time so far."""
    seconds, meter = LONGEST_ROUND * job.config.measure.round_seconds, Meter()
    meter.find_children()
    started = time.perf_counter()
    label = f"latency {job.case.label}"
    with tqdm(total=len(rounds) * len(streams), desc=label, unit="round") as bar:
        for own in rounds:
            for stream in streams:
                bar.set_postfix_str(stream.timing.policy.name, refresh=False)
                stream.round(warm_up, own, seconds, meter)
                bar.update()
    now = time.perf_counter()
    end = now + REPEAT_SHARE * (now - started)
    for stream in streams:
        for i, reason in enumerate(stream.disturbed):
            if reason and time.perf_counter() < end:
                stream.round(warm_up, rounds[i], seconds, meter)
