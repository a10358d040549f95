"""What do the small crop counts cost beside the largest? The accuracy pass at 1,2,5,10,20 against the pass at 20 alone.

    python bench/compare/one_pass.py --family nfnet --crops 1,2,5,10,20

One pass evaluates the union of all views and every policy is a mean of the same outputs, so the whole curve should cost
what its largest point costs. Two comparisons, sides alternating, time of a whole accuracy pass each:

    curve       --crops 1,2,5,10,20 against --crops 20: both score every n up to 20
    one policy  --crops 1,2,5,10,20 against --policies 20RC: one pass for that policy and the centre crop alone

Flags are those of bench/run.py; ``--rounds`` is the number of pairs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a script: search the repo root, not bench/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from bench import cases
from bench.options import parse
from bench.setup import UserError, default_weights, find_images, make_job, make_options

if TYPE_CHECKING:
    from bench.job import Job
    from pipelines.crops import Policy


def main(argv: list[str] | None = None) -> int:
    """Prints the paired ratios and, as the last line, JSON."""
    args = parse(argv)
    try:
        return compare(args)
    except (UserError, ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def compare(args: argparse.Namespace) -> int:
    """Time the three passes in turn, ``--rounds`` times."""
    crops = args.crops or [1, 2, 5, 10, 20]
    largest = max(crops)
    sides = {
        "curve": cases.policies(crops=crops, named=None),
        "largest": cases.policies(crops=[largest], named=None),
        "one policy": cases.policies(crops=None, named=f"{largest}RC"),
    }
    weights = default_weights(args)
    case = cases.model_cases(args, demo=weights == "demo")[0]
    options = make_options(args, weights, sides["curve"])
    job = make_job(case, find_images(args, options.workers), options)
    for policies in sides.values():
        seconds(job, policies, rows=job.rows[:64])  # warm-up
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(args.rounds):
        order = list(sides)[number % 3 :] + list(sides)[: number % 3]
        for name in order:
            took[name].append(seconds(job, sides[name], rows=job.rows))
        print("  ".join(f"{name} {took[name][-1]:.2f} s" for name in sides), flush=True)
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
    from bench import accuracy
    from pipelines.crops import union

    views = union(policies)
    source = job.make_backend(job.options.backend, job.planner(*policies), job.config(views.total))
    for _ in source.batches(rows[:2]):
        pass
    labels = job.data.table["label"].to_numpy(np.int64)
    start = time.perf_counter()
    accuracy.evaluate(source, job.network, rows, labels, views, policies, job.left_out)
    took = time.perf_counter() - start
    source.close()
    return took


if __name__ == "__main__":
    sys.exit(main())
