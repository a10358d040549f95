"""What do the small crop counts cost beside the largest? The accuracy pass at 1,2,5,10,20 against the pass at 20 alone.

    multicrop-bench compare one-pass --family nfnet --crops 1,2,5,10,20

One pass evaluates the union of all views and every policy is a mean of the same outputs, so the whole curve should cost
what its largest point costs. Two comparisons, alternating, time of a whole accuracy pass each:

    curve       --crops 1,2,5,10,20 against --crops 20: both score every n up to 20
    one policy  --crops 1,2,5,10,20 against --policies 20RC: one pass for that policy and the centre crop alone

The options are those of ``run``; ``--rounds`` is the number of pairs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from bench import cases, logs
from bench.config import DEFAULT_CROPS, MeasureConfig, RunConfig
from bench.errors import exit_status
from bench.options import build_parser, flag_names, parse
from bench.setup import find_images, make_job, resolve

if TYPE_CHECKING:
    from bench.job import Job
    from pipelines.crops import Policy


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the paired ratios and, as the last line, JSON. Returns the exit status."""
    line = parse(argv, build_parser("multicrop-bench compare one-pass", __doc__, epilog=None))
    logs.set_up(line.config.output.verbose, line.config.output.quiet)
    return exit_status(lambda: compare(line.config), flag_names())


def compare(config: RunConfig) -> int:
    """Time the three passes in turn, `rounds` times."""
    config = resolve(config)
    crops = config.measure.crops or DEFAULT_CROPS
    largest = max(crops)
    passes = {
        "curve": cases.policies(MeasureConfig(crops=crops, cheap=False)),
        "largest": cases.policies(MeasureConfig(crops=[largest], cheap=False)),
        "one policy": cases.policies(MeasureConfig(policies=f"{largest}RC")),
    }
    case = cases.model_cases(config.network, demo=config.network.weights == "demo")[0]
    job = make_job(
        case, find_images(config), replace(config, measure=replace(config.measure, crops=crops, policies=None))
    )
    for policies in passes.values():
        seconds(job, policies, rows=job.rows[:64])  # warm-up
    took: dict[str, list[float]] = {name: [] for name in passes}
    for number in range(config.measure.rounds):
        order = list(passes)[number % 3 :] + list(passes)[: number % 3]
        for name in order:
            took[name].append(seconds(job, passes[name], rows=job.rows))
        print("  ".join(f"{name} {took[name][-1]:.2f} s" for name in passes), flush=True)
    result: dict[str, object] = {"model": case.label, "images": len(job.rows), "seconds": took}
    for other in ("largest", "one policy"):
        ratios = np.divide(took["curve"], took[other])
        text = f"curve / {other}: median {np.median(ratios):.3f}, from {ratios.min():.3f} to {ratios.max():.3f}"
        print(f"{text} over {len(ratios)} pairs")
        result[f"curve / {other}"] = float(np.median(ratios))
    print(json.dumps(result))
    return 0


def seconds(job: Job, policies: list[Policy], rows: np.ndarray) -> float:
    """Wall time of one accuracy pass over ``rows``, the pipeline built beforehand."""
    from bench.measure.scoring import Scoring, evaluate
    from pipelines.crops import union

    views = union(policies)
    planner = job.planner(*policies)
    source = job.make_backend(planner, job.load_config(views.total))
    for _ in source.batches(rows[:2]):
        pass
    labels = job.data.table["label"].to_numpy(np.int64)
    scoring = Scoring(
        labels, views, policies, job.uncovered, forwards=lambda wanted: planner.forwards(job.data.sizes(wanted))
    )
    start = time.perf_counter()
    evaluate(source, job.network, rows, scoring)
    took = time.perf_counter() - start
    source.close()
    return took
