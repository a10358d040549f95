"""What the last layers see at each test resolution, and whether mapping it back helps (FixRes Sections 3.2, 4.2, A).

    python bench/experiments/activations.py --family resnet --img-size 48:160:16          # the demo network, on the demo data
    python bench/experiments/activations.py --models resnet:50 --img-size 64,224,448 --data imagenet/val --fit-data imagenet/train

Statistics are of the centre crops of ``--fit-data`` (the paper: training images; the demo: its training set), accuracy
is of ``--data``: as it is, and with both parametric adaptations to the resolution of training. Writes
``activations.csv`` (a row for each size: shares, fits, accuracies and their paired differences), ``activations.json``
(distributions, environment) and a figure. Flags beside those below are bench/run.py's.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a script: search the repo root, not bench/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from bench import cases, options
from bench.setup import UserError, default_weights, find_images, make_job, make_options, say
from pipelines.crops import parse_policy

if TYPE_CHECKING:
    from bench.job import Job
    from models.fixres.activations import Statistics

ROOT = Path(__file__).resolve().parents[2]
ADAPTATIONS = ("frechet", "gaussian")
CURVE_POINTS = 200  # of each distribution
HIGHEST = 0.999  # the curves end where this share of the values of training lies below


@dataclass(frozen=True, slots=True)
class Scored:
    """The centre crop's answers at one size: right bool [b]; NaN-free and in the table's order."""

    right: np.ndarray
    nll: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    args = parse(list(sys.argv[1:] if argv is None else argv))
    try:
        return run(args)
    except (UserError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130


def parse(argv: list[str]) -> argparse.Namespace:
    """This program's options and bench/run.py's in one."""
    parser = argparse.ArgumentParser(
        prog="bench/experiments/activations.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--fit-data", type=Path, metavar="DIR", help="images of the statistics (default: see above)")
    parser.add_argument("--fit-images", type=int, default=2000, metavar="N", help="at most so many (default: 2000)")
    own, rest = parser.parse_known_args(argv)
    shared = options.parse(rest)
    if not shared.img_size:
        parser.error("--img-size LIST is needed: the test resolutions, such as 48:160:16")
    if own.fit_images < 1:
        parser.error(f"--fit-images {own.fit_images} must be 1 or more")
    if shared.adapt:
        parser.error("--adapt is a flag of bench/run.py: here both adaptations are tried")
    return argparse.Namespace(**{**vars(shared), **vars(own), "argv": argv})


def run(args: argparse.Namespace) -> int:
    """Statistics at every size, the fits, the accuracies; then the files, the table and the figure."""
    started = time.monotonic()
    weights = default_weights(args)
    out = args.out or Path("runs") / time.strftime("activations-%Y%m%d-%H%M%S")
    if out.exists():
        raise UserError(f"--out {out} exists; results are never written over others: name a new folder")
    sizes = args.img_size
    args.img_size = None
    found = cases.model_cases(args, demo=weights == "demo")
    if len(found) != 1:
        raise UserError(f"one network at a time, not {len(found)}: {', '.join(case.label for case in found)}")
    say("loading torch, timm and the data backend ...")
    setting = make_options(args, weights, [parse_policy("CC")])
    scan = find_images(args, setting.workers)
    own = make_job(found[0], scan, setting)
    train_K = trained_at(own, args.train_size)
    jobs = {K: make_job(replace(found[0], img_size=K), scan, setting) for K in sorted({*sizes, train_K})}
    measured = {K: statistics_of(job, args) for K, job in jobs.items()}
    rows = [row(job, measured[K], measured[train_K], scan_name(args)) for K, job in jobs.items()]
    out.mkdir(parents=True)
    write(out, args, own, train_K, measured, rows)
    print(table(rows, train_K))
    print("\nwritten:", *(f"  {path.resolve()}" for path in [*sorted(out.iterdir()), *draw(out, args)]), sep="\n")
    print(json.dumps({"out": str(out.resolve()), "elapsed_s": round(time.monotonic() - started, 1), "rows": rows}))
    return 0


def trained_at(job: Job, given: int | None) -> int:
    """The reference size. Raises UserError where neither the weights nor ``--train-size`` say it."""
    from bench.job import sizes

    K = given or sizes(job.classifier)["train_K"]
    if K is None:
        raise UserError(f"nothing says at which size {job.classifier.name} was trained: add --train-size K")
    return K


def scan_name(args: argparse.Namespace) -> str:
    return "the demo's training set" if args.fit_data is None and args.data is None else str(args.fit_data or args.data)


def statistics_of(job: Job, args: argparse.Namespace) -> Statistics:
    """Of the images of ``--fit-data``; of the demo's training set; else of ``--data`` itself (no labels are used)."""
    from bench.adapt import statistics
    from bench.job import Job
    from pipelines.data import dataset, demo

    say(f"activations at {job.classifier.spec.K} pixels ...")
    root = demo.ensure("train") if args.fit_data is None and args.data is None else args.fit_data
    if root is None:
        return statistics(job, args.fit_images)
    fitted = replace(job.options, score=False, limit=args.fit_images, labels_file=None, class_map=None)
    scan = dataset.scan(root, workers=job.options.workers)
    return statistics(Job(job.case, scan, fitted), args.fit_images)


def row(job: Job, here: Statistics, train: Statistics, fitted_on: str) -> dict[str, Any]:
    """One size: statistics, and the accuracy as it is and adapted, with paired differences to as it is."""
    from analysis.stats import paired_difference, wilson
    from models.fixres.activations import ADAPTATIONS as FITS
    from models.fixres.activations import NotAdaptable, attach

    say(f"accuracy at {here.K} pixels ...")
    plain = score(job)
    images, right = len(plain.right), int(plain.right.sum())
    low, high = wilson(right, images)
    out: dict[str, Any] = {
        **here.summary(),
        "fitted_on": fitted_on,
        "images": images,
        "top1": 100 * right / images,
        "top1_low": low,
        "top1_high": high,
        "nll": float(plain.nll.mean()),
    }
    for name in ADAPTATIONS:
        values: dict[str, Any] = {"top1": None, "gain": None, "gain_low": None, "gain_high": None, "reason": None}
        try:
            if here.K == train.K:
                raise NotAdaptable("nothing to do at the training size")
            found = FITS[name].fit(train, here)
            detach = attach(job.classifier, found)
        except ValueError as absent:
            values["reason"] = str(absent)
        else:
            adapted = score(job)
            detach()
            fixed, broken = int((adapted.right & ~plain.right).sum()), int((plain.right & ~adapted.right).sum())
            ends = paired_difference(fixed, broken, int(adapted.right.sum()), images)
            values |= {
                "top1": 100 * float(adapted.right.mean()),
                "gain": 100 * (fixed - broken) / images,
                "gain_low": ends[0],
                "gain_high": ends[1],
            }
        out |= {f"{name}_{key}": value for key, value in values.items()}
    return out


def score(job: Job) -> Scored:
    """The centre crop of every labelled image."""
    from bench import accuracy
    from models.predict import Network

    if reason := job.why_no_accuracy:
        raise UserError(f"accuracy cannot be scored: {reason}")
    options = job.options
    network = Network(
        job.classifier,
        chunk=job.batch_size,
        device=options.device,
        amp_dtype=options.amp_dtype,
        channels_last=options.channels_last,
    )
    source = job.make_backend(options.backend, job.planner(*options.policies), job.config(1))
    labels = job.data.table["label"].to_numpy(np.int64)
    try:
        found = accuracy.evaluate(source, network, job.rows, labels, job.views, options.policies, job.left_out)
    finally:
        source.close()
    level = found.levels.index("logit")
    known = found.labels >= 0
    return Scored((found.top1[level, 0] == found.labels)[known], found.nll[level, 0][known])


def write(
    out: Path,
    args: argparse.Namespace,
    job: Job,
    train_K: int,
    measured: dict[int, Statistics],
    rows: Sequence[dict[str, Any]],
) -> None:
    """activations.csv and activations.json."""
    from bench import machine
    from bench.records import write_whole

    with (out / "activations.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    top = highest(measured[train_K])
    points = np.linspace(0, top, CURVE_POINTS)
    info = {
        "command": ["python", "bench/experiments/activations.py", *args.argv],
        "model": job.classifier.name,
        "weights": job.classifier.weights,
        "weight_hash": job.classifier.weight_hash,
        "is_demo": job.data.is_demo,
        "data": job.data.root.name,
        "train_K": train_K,
        "points": points.round(5).tolist(),
        "cdf": {str(K): one.pooled.cdf(points).round(5).tolist() for K, one in measured.items()},
        "environment": machine.environment(),
    }
    write_whole(out / "activations.json", json.dumps(info, indent=1) + "\n")


def highest(train: Statistics) -> float:
    """Below it lies HIGHEST of the values at the training size."""
    points = np.geomspace(1e-3, 1e4, 4000)
    return float(points[np.searchsorted(train.pooled.cdf(points), HIGHEST)])


def table(rows: Sequence[dict[str, Any]], train_K: int) -> str:
    """For a person."""
    lines = [
        f"trained at {train_K}; fitted on {rows[0]['fitted_on']}; centre crops of {rows[0]['images']:,} images scored",
        "   K   zeros %  above 2 %   top-1 %   frechet: gain (95 %)      gaussian: gain (95 %)",
    ]
    for one in rows:
        gains = (
            f"{one[f'{name}_gain']:+.2f} ({one[f'{name}_gain_low']:+.2f} .. {one[f'{name}_gain_high']:+.2f})"
            if one[f"{name}_gain"] is not None
            else "-"
            for name in ADAPTATIONS
        )
        shares = f"{one['zero_percent']:9.2f}  {one['above_2_percent']:9.2f} {one['top1']:9.2f}"
        lines.append(f"{one['K']:4d} {shares}   " + "".join(gain.ljust(26) for gain in gains))
    reasons = {one[f"{name}_reason"]: name for one in rows for name in ADAPTATIONS if one[f"{name}_reason"]}
    return "\n".join(
        [*lines, *(f"{name}: {reason}" for reason, name in reasons.items() if "nothing to do" not in reason)]
    )


def draw(out: Path, args: argparse.Namespace) -> list[Path]:
    """The figure, by a program of its own."""
    if args.no_figures:
        return []
    script = ROOT / "analysis" / "figures" / "activations.py"
    done = subprocess.run([sys.executable, str(script), str(out)], capture_output=True, text=True, check=False)
    if done.returncode:
        say(f"the figure could not be drawn: {done.stderr.strip().splitlines()[-1:]}; the numbers are safe")
        return []
    return [out / "activations.png"]


if __name__ == "__main__":
    sys.exit(main())
