"""How long a run will take, from a few seconds of measuring the pipeline and the network."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from bench.job import Job
from bench.measure.latency import LONGEST_ROUND, WARM_UP
from bench.records import END_TO_END, LOAD, MODEL
from bench.resume import NetworkPlan


def plan_of(job: Job) -> NetworkPlan:
    """Measure the pipeline and the network, and settle what depends on it."""
    expected = expected_s(job)
    return NetworkPlan(
        label=job.case.label,
        batch_size=job.batch_size,
        crops_per_sec=job.crops_per_sec if math.isfinite(job.crops_per_sec) else None,
        pipeline_images_per_sec=job.pipeline_images_per_sec,
        setting=asdict(job.setting()),
        expected_s=round(expected, 1),
        description=job.describe(),
        preset=job.preset,
    )


def expected_s(job: Job) -> float:
    """Seconds that the job will take; sets ``job.crops_per_sec`` and ``job.pipeline_images_per_sec``."""
    network, measure = job.network, job.config.measure
    network.get_ready(job.views.sizes)  # before any pipeline starts
    network.forward()
    start, n, seconds = time.perf_counter(), 0, 0.5 * _share_of_second(job)
    while n < 2 or (time.perf_counter() - start < seconds and n < 20):
        n += len(network.forward()[1]) // job.batch_size
    float(network.forward()[1][0, 0])  # waits for a GPU
    job.crops_per_sec = (n + 1) * job.batch_size / (time.perf_counter() - start)
    pipeline = job.pipeline_images_per_sec = _pipeline_rate(job)
    total = 0.0
    if job.why_no_accuracy is None:
        share = len(job.rows) / job.processes.world
        total += share * (1 / pipeline + job.view_cost / job.crops_per_sec)
    if measure.throughput:
        batches_s = [_batch_s(job, n, pipeline) for n in job.crops]
        warm, seconds = measure.num_warm_iter, measure.round_seconds
        forward_s = job.batch_size / job.crops_per_sec
        loads_s = (job.load_config(n).batch_images / pipeline for n in job.crops)
        segments = _segments(job, forward_s, batches_s, loads_s)
        for batch_s in segments:
            total += measure.rounds * max(seconds, 2 * batch_s) + (measure.rounds + 1) * warm * batch_s
        queries = measure.latency_queries + WARM_UP * measure.rounds if measure.latency_queries else 0
        single_s = (queries * (1 / pipeline + n / job.crops_per_sec) for n in job.crops)
        total += sum(min(one, LONGEST_ROUND * measure.rounds * seconds) for one in single_s)
    return total


def _segments(job: Job, forward_s: float, batches_s: list[float], loads_s: Iterable[float]) -> list[float]:
    """Seconds of a batch of each thing that is timed in a round."""
    of_stage = {MODEL: [forward_s], END_TO_END: batches_s, LOAD: list(loads_s)}
    return [one for stage, found in of_stage.items() if job.is_timed(stage) for one in found]


def _share_of_second(job: Job) -> float:
    """How long to measure, so that the estimate for a few images takes no longer than their scoring."""
    return min(1.0, 0.2 + len(job.rows) / 500) if job.why_no_accuracy is None else 1.0


def _batch_s(job: Job, n: int, pipeline: float) -> float:
    return job.load_config(n).batch_images * (1 / pipeline + n / job.crops_per_sec)


def _pipeline_rate(job: Job) -> float:
    """Images per second of the pipeline, roughly: a second (or less) or three batches, whichever is longer."""
    config = job.load_config(job.view_cost)
    source = job.make_backend(job.planner(*job.policies), config)
    rows = np.resize(job.rows, config.batch_images * 40)
    start, images, last = None, 0, 0.0
    for i, batch in enumerate(source.batches(rows)):
        if start is None:
            start = time.perf_counter()  # the first batch pays for starting threads
            continue
        images += len(batch.rows)
        last = time.perf_counter()
        if i >= 3 and last - start > _share_of_second(job):
            break
    source.close()
    assert start is not None
    return max(images, 1) / max(last - start, 1e-6)
