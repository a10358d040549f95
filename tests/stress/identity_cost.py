"""What does it cost to know the images again? CPU time of hashing each image in the accuracy pass, and at a resume.

    python tests/stress/identity_cost.py                 # the demo set; about a minute on two cores
    python tests/stress/identity_cost.py --images 500 --model resnet:demo

CPU times (process and workers), which other programs on the machine hardly change: the accuracy pass without and with
the identification of its images, alternating; and, per resume, the look at size and times of every scored file, beside
the start of a run. The bound: at most 5 % more.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from bench import cases
from bench.config import LoadingConfig, MeasureConfig, NetworkConfig, RunConfig
from bench.job import Job
from bench.measure.scoring import scored
from bench.setup import make_job, resolve
from pipelines.data import demo, scanning
from pipelines.data.identity import FACTS, Identifier, changed, facts_of

BOUND = 0.05


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when it costs more than the bound."""
    parser = argparse.ArgumentParser(
        prog="tests/stress/identity_cost.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400, metavar="N", help="of the demo set (default: 400)")
    parser.add_argument(
        "--model", default="mobilenet:demo", metavar="NAME", help="default: a small one, the worst case"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    args = parser.parse_args(argv)
    began = time.process_time()
    job = job_of(args.model)
    start_s = time.process_time() - began
    rows = job.rows[: args.images]
    cpu: dict[bool, list[float]] = {False: [], True: []}
    score_all(job, rows, identify=False)  # files are in memory from now on, and threads run
    for _ in range(args.rounds):
        for identify in cpu:
            cpu[identify].append(cpu_s(lambda known=identify: score_all(job, rows, identify=known)))
    without_s, with_s = (float(np.median(cpu[known])) for known in (False, True))
    facts = np.array([facts_of(span) for span in job.data.spans(rows)], dtype=FACTS)
    resume_s = cpu_s(lambda: list(changed(job.data.spans(rows), facts)))
    more, at_resume = with_s / without_s - 1, resume_s / start_s
    print(f"{len(rows)} images, {args.model}, one centre crop each; CPU seconds, medians of {args.rounds}")
    print(f"accuracy pass: {without_s:.2f} without, {with_s:.2f} with identification: {more:+.1%}")
    looked = f"{resume_s:.3f} for the look at {len(rows)} scored files"
    print(f"resume: {looked}, beside {start_s:.2f} of a start: {at_resume:+.1%}")
    good = more <= BOUND and at_resume <= BOUND
    print(f"the bound is {BOUND:.0%} more: {'kept' if good else 'BROKEN'}")
    return 0 if good else 1


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def score_all(job: Job, rows: np.ndarray, *, identify: bool) -> None:
    """One pass over the rows, as bench.measure.accuracy makes it."""
    source = job.make_backend(job.planner(*job.policies), job.load_config(1))
    identifier = Identifier(job.load_config(1).workers)
    try:
        for part in scored(source.batches(rows), job.network, job.scoring()):
            if identify:
                identifier.begin(part.rows.tolist(), job.data.spans(part.rows))
                identifier.take(part.rows)
    finally:
        source.close()
        identifier.close()


def job_of(model: str) -> Job:
    """That network on the demo set, with one centre crop; DALI, which decodes in this process."""
    asked = RunConfig(
        network=NetworkConfig(models=[model]),
        measure=MeasureConfig(policies="CC"),
        loading=LoadingConfig(data_backend="dali-cpu", workers=2),
    )
    config = resolve(asked)
    found = scanning.scan(demo.ensure("val"), workers=2, progress=False)
    job = make_job(cases.model_cases(config.network, demo=True)[0], found, config)
    job.network.get_ready(job.views.sizes)
    return job


if __name__ == "__main__":
    sys.exit(main())
