"""Do the data backends agree? Windows, pixels and answers, image by image.

    multicrop-bench compare parity --family nfnet                # all demo images, every backend that works here
    multicrop-bench compare parity --models resnet50.a1_in1k --data imagenet/val --limit 1000

For each backend: every crop against the NumPy slice of the backend's own resized frame (must be equal), every frame
against PIL's decoding and a float32 torchvision resize, and, for each pair, frames and per-image top-1. The options are
those of ``run``; ``--out`` is a new folder for parity.json, which is also the output's last line. Exits with 1 when
windows differ or top-1 agrees for fewer than 99 % of the images.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench import cases, logs
from bench.config import RunConfig
from bench.errors import exit_status
from bench.files import new_folder_if
from bench.options import build_parser, flag_names, parse
from bench.setup import find_images, make_job, resolve
from pipelines import backends
from pipelines.backends import BACKENDS

if TYPE_CHECKING:
    from bench.job import Job
    from pipelines.batch import Backend
    from pipelines.crops import Planner

log = logging.getLogger(__name__)
NOT_HERE = (
    "accuracy", "throughput", "dry_run", "resume", "rounds", "round_seconds", "num_warm_iter", "latency_queries", "yes",
    "figures",
)  # fmt: skip
MIN_AGREEMENT = 0.99
FRAME_BATCH = 64  # images whose frames are held at a time


@dataclass(frozen=True, slots=True)
class Frames:
    """Mean absolute difference of resized frames, grey levels, over images."""

    mean: float
    worst: float
    images: int


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a report and, as the last line, JSON. Returns the exit status."""
    line = parse(argv, build_parser("multicrop-bench compare parity", __doc__, epilog=None, leave_out=NOT_HERE))
    logs.set_up(line.config.output.verbose, line.config.output.quiet)
    return exit_status(lambda: compare(line.config), flag_names())


def compare(config: RunConfig) -> int:
    """Compare the backends on the first of the named networks. Returns 1 when they disagree."""
    with new_folder_if(config.output.out) as out:
        return compare_into(out, config)


def compare_into(out: Path | None, config: RunConfig) -> int:
    """``compare``; the result is also written to ``out`` if that is given."""
    from pipelines.files import write_whole

    config = resolve(config)
    case = cases.model_cases(config.network, demo=config.network.weights == "demo")[0]
    job = make_job(case, find_images(config), config)
    planner = job.planner(*job.policies)
    job.network.get_ready(job.views.sizes)  # before any pipeline starts
    sources = {
        name: job.make_backend(planner, job.load_config(job.views.total), name) for name in usable_backends(job.device)
    }
    try:
        wrong = check_windows(job, sources, planner)
        frames = compare_frames(job, sources, planner)
        agreement = compare_top1(job, sources)
    finally:
        for source in sources.values():
            source.close()
    for text in report(frames, agreement):
        print(text)
    result = {
        "model": case.label,
        "images": len(job.rows),
        "wrong_pixels": wrong,
        "frames": {pair: {"mean": found.mean, "worst": found.worst} for pair, found in frames.items()},
        "top1_agreement": agreement,
    }
    if out:
        write_whole(out / "parity.json", json.dumps({**result, "hw_load": config.loading.hw_load}) + "\n")
    print(json.dumps(result))
    low = any(share < MIN_AGREEMENT for shares in agreement.values() for share in shares.values())
    return int(low or bool(wrong))


def usable_backends(device: str) -> list[str]:
    """Those that work here, a GPU's on the network's own; the others are logged with the reason."""
    why_not = {name: backends.unusable(name, device) for name in BACKENDS}
    for name, reason in why_not.items():
        if reason:
            log.info("not compared: %s: %s", name, reason)
    return [name for name, reason in why_not.items() if reason is None]


def check_windows(job: Job, sources: dict[str, Backend], planner: Planner) -> dict[str, str]:
    """Every crop against the reference. Backend -> what is wrong; empty where all is right."""
    from pipelines.backends import reference

    wrong = {}
    for name, source in sources.items():
        log.info("%s: every window against NumPy slices of its frames ...", name)
        try:
            reference.check(source, job.data, planner, job.rows)
        except reference.WrongPixels as error:
            wrong[name] = str(error)
            print(f"{name}: WRONG PIXELS: {error}")
        else:
            print(f"{name}: all {len(job.rows)} images x {job.views.total} windows are the planned ones, bit for bit")
    return wrong


def report(frames: dict[str, Frames], agreement: dict[str, dict[str, float]]) -> Iterator[str]:
    """Lines for a person."""
    for pair, found in frames.items():
        yield f"frames {pair}: {found.mean:.4f} grey levels in the mean, worst image {found.worst:.4f}"
    for pair, shares in agreement.items():
        low = min(shares, key=lambda policy: shares[policy])
        yield f"top-1 {pair}: the same for {100 * shares['CC']:.2f} % at CC; least {100 * shares[low]:.2f} % at {low}"


def compare_frames(job: Job, sources: dict[str, Backend], planner: Planner) -> dict[str, Frames]:
    """Each backend with the float32 reference, and each pair of backends."""
    from pipelines.backends import reference
    from pipelines.batch import split

    differences: dict[str, list[float]] = {}
    for rows in split(job.rows, FRAME_BATCH):
        found = {name: dict(source.frames(rows)) for name, source in sources.items()}
        for row in rows.tolist():
            if not all(row in frames for frames in found.values()):
                continue
            own = {name: frames[row] for name, frames in found.items()}
            own["float32 reference"] = reference.frame(job.data, planner, row)
            for a, b in combinations(own, 2):
                difference = np.abs(own[a].astype(np.int16) - own[b].astype(np.int16)).mean()
                differences.setdefault(f"{a} - {b}", []).append(float(difference))
    return {pair: Frames(float(np.mean(d)), float(np.max(d)), len(d)) for pair, d in differences.items()}


def compare_top1(job: Job, sources: dict[str, Backend]) -> dict[str, dict[str, float]]:
    """For each pair of backends and each policy (softmax level), the share of images with the same top-1."""
    from bench.measure.scoring import evaluate

    top1 = {}
    for name, source in sources.items():
        log.info("%s: predictions ...", name)
        predictions = evaluate(source, job.network, job.rows, job.scoring())
        softmax = predictions.top1[predictions.levels.index("softmax")]
        top1[name] = {row: softmax[:, i] for i, row in enumerate(predictions.rows.tolist())}
    shares: dict[str, dict[str, float]] = {}
    for a, b in combinations(top1, 2):
        both = [row for row in top1[a] if row in top1[b]]
        same = np.mean([top1[a][row] == top1[b][row] for row in both], axis=0)
        shares[f"{a} - {b}"] = {policy.name: float(share) for policy, share in zip(job.policies, same, strict=True)}
    return shares
