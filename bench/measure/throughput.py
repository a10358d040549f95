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

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from bench import records
from bench.job import Job
from bench.machine import PeakMemory
from bench.measure.accuracy import checked_rows, image_accounting, while_data_is_there
from bench.measure.cheap import Answers, CheapBench, ScoredAnswers, Timing, cheap_timings, scored_answers
from bench.measure.clocks import Segment, segment
from bench.measure.disturbance import REPEAT_PASSES, REPEAT_SHARE, Meter, Reading, disturbances
from bench.predictions import Predictions
from bench.records import END_TO_END, LOAD, MODEL, kept_rounds
from models.averaging import log_probabilities
from models.predict import predict
from pipelines.backends import reference
from pipelines.batch import STAGES
from pipelines.crops import parse_policy, union

MAX_IMAGES = 1_000_000  # of one stream; a segment ends long before
POLICY_ROUNDS = 3  # in which dense and stopped policies are timed, at most
MAX_UNSCORED = 2000  # images that are timed where no accuracy pass has read them: they are read once before the clock


@dataclass(frozen=True, slots=True)
class Measurement:
    """One thing to time. ``crops`` is None where it does not matter."""

    stage: str
    crops: int | None
    policy: str | None = None  # a dense or stopped one


@dataclass(slots=True)
class Timed:
    """All rounds of one measurement. Rates and intervals are computed on reading."""

    measurement: Measurement
    segments: list[Segment]
    peak_mem_bytes: int = 0
    gpu_used_bytes: int = 0
    answers: Answers | None = None
    used: list[Reading] = field(default_factory=list)  # what passed on the system's counters in each segment

    @property
    def disturbed(self) -> list[str]:
        """For each segment what disturbed it, in words, or ""."""
        return disturbances(self.used, [one.interval_ms for one in self.segments])


class Bench:
    """Holds the pipelines and the network of one model while their measurements are timed in turn."""

    def __init__(self, job: Job, rows: np.ndarray, cheap: Sequence[Timing] = ()) -> None:
        """``cheap``: the dense and stopped policies to time."""
        self.network, self.is_timed = job.network, job.is_timed
        self.network.get_ready()  # before any pipeline starts
        self.rows = np.resize(rows, max(len(rows), MAX_IMAGES))
        self.policies = {n: parse_policy(f"{n}RC") for n in job.crops}
        self.planners = {n: job.planner(policy) for n, policy in self.policies.items()}
        self.backends = {n: job.make_backend(self.planners[n], job.load_config(n)) for n in job.crops}
        self.cheap = {one.policy.name: CheapBench(job, one, self.rows) for one in cheap}

    def measurements(self) -> list[Measurement]:
        """In the order of a round."""
        loads = [Measurement(stage, n) for n in self.policies for stage in (LOAD, END_TO_END)]
        found = [*(Measurement(stage, None) for stage in STAGES), Measurement(MODEL, None), *loads, *self._of_cheap()]
        return [one for one in found if self.is_timed(one.stage)]

    def _of_cheap(self) -> list[Measurement]:
        """A stopped policy shares the loading of the whole one, where that is timed too, and all but those of dense
        views the timing of the network."""
        found = []
        for name, one in self.cheap.items():
            stages = (LOAD, MODEL, END_TO_END) if not one.timing.policy.suffix else (END_TO_END,)
            found += [Measurement(stage, None, name) for stage in stages]
        return found

    def stream(self, measurement: Measurement) -> Iterator[int | float]:
        """An endless run of the measurement's work; each item says how many images (of MODEL: crops) it was."""
        if measurement.policy is not None:
            return self.cheap[measurement.policy].stream(measurement.stage)
        if measurement.stage == MODEL:
            return self._forwards()
        if measurement.stage in STAGES:
            return self.backends[min(self.backends)].stage(measurement.stage, self.rows)
        assert measurement.crops is not None
        return self._loads(measurement.crops) if measurement.stage == LOAD else self._answers(measurement.crops)

    def _forwards(self) -> Iterator[int]:
        while True:
            self.network.forward()
            yield self.network.batch_size

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
        """Put real crops into the network's input batch, so that the network alone is timed on what it will see."""
        n = max(self.backends)
        used = 0
        for batch in self.backends[n].batches(self.rows):
            for group in batch.groups:
                take = min(len(group.crops), self.network.batch_size - used)
                self.network.buffer[used : used + take].copy_(group.crops[:take])
                used += take
            if used == self.network.batch_size:
                return

    def close(self) -> None:
        for backend in self.backends.values():
            backend.close()
        for one in self.cheap.values():
            one.close()


@dataclass(frozen=True, slots=True)
class Rounds:
    """How every measurement is timed.

    ``ready`` is called after each warm-up, before the clock is read: several processes wait there for each other.
    ``share`` gives the value of every process; ``alone``: there is only one.
    """

    number: int
    seconds: float
    warmup_items: int
    progress: Callable[[Measurement], None] = lambda measurement: None
    ready: Callable[[], object] = lambda: None
    share: Callable[[Any], list[Any]] = lambda value: [value]
    alone: bool = True


def measure(bench: Bench, rounds: Rounds) -> list[Timed]:
    """Time every measurement in each round, alternating, then disturbed ones again. The first round's warm-up is twice
    as long."""
    measured = [Timed(measurement, []) for measurement in bench.measurements()]
    memory, meter = PeakMemory(str(bench.network.device)), Meter(rounds.alone)
    bench.fill()
    started = time.perf_counter()
    for round_number in range(rounds.number):
        for one in measured:
            if one.measurement.policy is not None and round_number >= POLICY_ROUNDS:
                continue
            _time_once(bench, one, rounds, meter, memory, first=round_number == 0)
            rounds.progress(one.measurement)
    _repeat_disturbed(bench, measured, rounds, meter, memory, time.perf_counter() - started)
    return measured


def _time_once(
    bench: Bench, one: Timed, rounds: Rounds, meter: Meter, memory: PeakMemory, *, first: bool = False
) -> None:
    memory.start()
    stream = bench.stream(one.measurement)
    if first:
        for _ in range(rounds.warmup_items):
            next(stream)
        meter.find_children()  # the workers run now, and the second half of the warm-up is still to come
    before: list[Reading] = []

    def begin() -> None:
        rounds.ready()
        before.append(meter.read())

    device = str(bench.network.device)
    one.segments.append(
        segment(stream, seconds=rounds.seconds, warmup_items=rounds.warmup_items, device=device, ready=begin)
    )
    one.used.append(meter.read().since(before[0]))
    memory.sample()  # before the stream is dropped: its buffers still stand
    del stream
    one.peak_mem_bytes = max(one.peak_mem_bytes, memory.sampled_bytes)
    one.gpu_used_bytes = max(one.gpu_used_bytes, memory.gpu_used_bytes)


def _repeat_disturbed(
    bench: Bench, measured: list[Timed], rounds: Rounds, meter: Meter, memory: PeakMemory, took_s: float
) -> None:
    """Time what was disturbed again: REPEAT_PASSES times at most, and for REPEAT_SHARE of the time taken so far."""
    segment_s = took_s / sum(len(one.segments) for one in measured)
    end = time.perf_counter() + REPEAT_SHARE * took_s
    asked = [len(one.segments) for one in measured]
    for _ in range(REPEAT_PASSES):
        good = [one.disturbed.count("") for one in measured]
        lacking = [(n, i) for i, n in enumerate(good) if n < asked[i]]
        everyone = rounds.share((lacking, int((end - time.perf_counter()) / segment_s)))
        wanted = dict.fromkeys(i for _, i in sorted(pair for theirs, _ in everyone for pair in theirs))
        fit = max(0, min(fits for _, fits in everyone))
        for i in list(wanted)[:fit]:  # first what has the fewest undisturbed rounds
            _time_once(bench, measured[i], rounds, meter, memory)


def throughput_phase(job: Job, setting: records.Setting, out: Path) -> Iterator[records.Record]:
    """Time the job. All processes call it; the records of the main process are the run's."""
    if not job.config.measure.throughput:
        yield records.Absent(setting, "throughput", "not asked for (`throughput`)")
        return
    if job.why_no_accuracy is not None:
        _find_unreadable(job, job.rows[:MAX_UNSCORED])
        yield image_accounting(job, setting, 0)
    readable = readable_rows(job, out)
    if len(readable) == 0:
        yield records.Absent(setting, "throughput", "no image could be read; see unreadable.csv")
        return
    # By the main process: all must time the same, and on another machine thresholds.json may not be visible yet.
    cheap, absent = job.processes.broadcast(lambda: cheap_timings(job, out))
    yield from _timed(job, setting, readable, cheap, scored_answers(job, out))
    for name, reason in absent.items():
        yield records.Absent(setting, f"throughput of {name}", reason)
    if sized := [policy.name for policy in job.policies if policy.sizes]:
        why = "only random crops of the network's own size are timed"
        yield records.Absent(setting, f"throughput of {', '.join(sized)}", why)


def readable_rows(job: Job, out: Path) -> np.ndarray:
    """The rows of readable images; where none were scored, of the first MAX_UNSCORED. All processes call it."""
    rows = job.rows[:MAX_UNSCORED]
    if job.why_no_accuracy is None:
        rows, stored = job.rows, out / job.predictions_name  # of the process that scored, before an interruption
        # Read by the main process: on another machine the file may not be visible yet.
        job.failed = job.processes.broadcast(lambda: job.failed or Predictions.load(stored).failed)
    return np.setdiff1d(rows, [failure.row for failure in job.failed])


def _find_unreadable(job: Job, rows: np.ndarray) -> None:
    """Where nothing was scored: an unreadable image inside a timed segment would cost its whole batch."""
    job.network.get_ready()  # before any pipeline starts
    source = job.make_backend(job.planner(job.policies[0]), job.load_config(1))
    try:
        batches = while_data_is_there(job, source.batches(rows))
        job.failed = [failure for batch in batches for failure in batch.failed]
    finally:
        source.close()


def _timed(
    job: Job, setting: records.Setting, readable: np.ndarray, cheap: Sequence[Timing], scored: ScoredAnswers
) -> Iterator[records.Record]:
    asked, processes = job.config.measure, job.processes
    checked = checked_rows(job, readable)
    bench = Bench(job, readable, cheap)
    try:
        errors = [reference.check(source, job.data, bench.planners[n], checked) for n, source in bench.backends.items()]
        counts = (
            asked.rounds if one.policy is None else min(asked.rounds, POLICY_ROUNDS) for one in bench.measurements()
        )
        rounds = sum(counts)
        label = f"throughput {job.case.label}"
        with tqdm(total=rounds, desc=label, unit="round", disable=not processes.is_main) as bar:
            measured = measure(
                bench,
                Rounds(
                    asked.rounds,
                    asked.round_seconds,
                    asked.num_warm_iter,
                    progress=partial(_tick, bar),
                    ready=lambda: processes.all_gather(None),
                    share=processes.all_gather,
                    alone=processes.world == 1,
                ),
            )
        for one in measured:
            if one.measurement.policy is not None:
                one.answers = bench.cheap[one.measurement.policy].summary(scored)
    finally:
        bench.close()
    fitting = min(processes.all_gather(job.network.fitting_batch_size))
    for everyone in zip(*processes.all_gather(measured), strict=True):  # the same measurement of each process
        yield _record(job, setting, list(everyone), max(errors), fitting)


def _record(
    job: Job, setting: records.Setting, everyone: list[Timed], frame_error_levels: float, fitting: int
) -> records.Throughput:
    """One measurement of all processes together."""
    one, n = everyone[0], everyone[0].measurement.crops
    rounds = list(zip(*(each.segments for each in everyone), strict=True))
    disturbed = [_first_reason(reasons) for reasons in zip(*(each.disturbed for each in everyone), strict=True)]
    kept = kept_rounds(disturbed)
    # A stopped policy's segments count forward passes (bench.measure.cheap).
    per_image = one.answers.forwards if one.answers and "~" in (one.measurement.policy or "") else 1
    return records.Throughput(
        setting,
        stage=one.measurement.stage,
        crops=n,
        batch_images=job.load_config(n).batch_images if n else None,
        counts=[sum(s.count for s in segments) / per_image for segments in rounds],
        durations_s=[max(s.duration_s for s in segments) for segments in rounds],
        cpu_s=[round(sum(used.cpu_s for used in each), 3) for each in zip(*(e.used for e in everyone), strict=True)],
        disturbed=disturbed if any(disturbed) else [],
        interval_ms=[round(ms, 3) for i in kept for s in rounds[i] for ms in s.interval_ms],
        peak_mem_bytes=sum(each.peak_mem_bytes for each in everyone),
        gpu_used_bytes=max(each.gpu_used_bytes for each in everyone) or None,
        frame_error_levels=frame_error_levels,
        fitting_batch_size=fitting if fitting < job.batch_size else None,
        policy=one.measurement.policy,
        forwards=one.answers.forwards if one.answers else None,
        agreement=one.answers.agreement if one.answers else None,
        rank_rates=[[s.count / per_image / s.duration_s for s in segments] for segments in rounds]
        if len(everyone) > 1
        else [],
    )


def _first_reason(reasons: Sequence[str]) -> str:
    """Of one round in several processes."""
    if len(reasons) == 1:
        return reasons[0]
    return next((f"process {rank}: {reason}" for rank, reason in enumerate(reasons) if reason), "")


def _tick(bar: tqdm, measurement: Measurement) -> None:
    bar.set_postfix_str(f"{measurement.stage} {measurement.policy or measurement.crops or ''}", refresh=False)
    bar.update()
