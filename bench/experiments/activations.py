"""What the last layers see at each test resolution, and whether mapping it back helps (FixRes Sections 3.2, 4.2, A).

    multicrop-bench activations --family resnet --img-size 48:160:16          # the demo network, on the demo data
    multicrop-bench activations --models resnet:50 --img-size 64,224,448 --data imagenet/val --fit-data imagenet/train

Statistics are of the centre crops of ``--fit-data`` (the paper: training images; the demo: its training set), accuracy
is of ``--data``: as it is, and with both parametric adaptations to the resolution of training. Writes
``activations.csv`` (a row for each size: shares, fits, accuracies and their paired differences), ``activations.json``
(distributions, environment) and a figure. The other options are those of ``run``.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bench import cases, logs, values
from bench.config import DataConfig, RunConfig, option
from bench.errors import UserError, exit_status
from bench.files import new_folder
from bench.options import add_options, build_parser, flag_names, group_flags, parse
from bench.setup import find_images, make_job, resolve

if TYPE_CHECKING:
    from bench.job import Job
    from models.fixres.activations import Statistics

log = logging.getLogger(__name__)
NOT_HERE = (
    "adapt",
    "accuracy",
    "throughput",
    "dry_run",
    "resume",
    "yes",
    "crops",
    "policies",
    "rounds",
    "round_seconds",
)
ADAPTATIONS = ("frechet", "gaussian")
CURVE_POINTS = 200  # of each distribution
HIGHEST = 0.999  # the curves end where this share of the values of training lies below


@dataclass(frozen=True, slots=True)
class Scored:
    """The centre crop's answers at one size: right bool [b]; NaN-free and in the table's order."""

    right: np.ndarray
    nll: np.ndarray


@dataclass(frozen=True, slots=True)
class ActivationsConfig:
    """The options of this experiment beside those of a run."""

    title: ClassVar[str] = "statistics"
    fit_data: Path | None = option(
        "--fit-data", metavar="DIR", parse=values.path, help="images of the statistics (default: see above)"
    )
    fit_images: int = option(
        "--fit-images", default=2000, metavar="N", parse=values.positive, help="at most so many (default: 2000)"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    parser = build_parser("multicrop-bench activations", __doc__, epilog=None, leave_out=NOT_HERE)
    add_options(parser, ActivationsConfig)
    line = parse(argv, parser, ActivationsConfig)
    logs.set_up(line.config.output.verbose, line.config.output.quiet)
    command = ["multicrop-bench", "activations", *(sys.argv[1:] if argv is None else argv)]
    flags = {**flag_names(), **group_flags(ActivationsConfig)}
    interrupted = "interrupted; nothing was written"
    return exit_status(lambda: run(line.config, ActivationsConfig(**line.own), command), flags, interrupted)


def run(asked: RunConfig, own: ActivationsConfig, command: Sequence[str] = ()) -> int:
    """Statistics at every size, the fits, the accuracies; then the files, the table and the figure.

    Raises UserError for a folder that exists, several networks, or no sizes.
    """
    if not asked.network.img_size:
        raise UserError("`img_size` is needed: the test resolutions, such as 48:160:16")
    with new_folder(asked.output.out, "activations") as out:
        return run_into(out, asked, own, command)


def run_into(out: Path, asked: RunConfig, own: ActivationsConfig, command: Sequence[str]) -> int:
    """``run``, with results in ``out``."""
    started = time.monotonic()
    assert asked.network.img_size
    log.info("loading torch, timm and the data backend ...")
    network = replace(asked.network, img_size=None)
    config = resolve(replace(asked, network=network, measure=replace(asked.measure, crops=None, policies="CC")))
    found = cases.model_cases(config.network, demo=config.network.weights == "demo")
    if len(found) != 1:
        raise UserError(f"one network at a time, not {len(found)}: {', '.join(case.label for case in found)}")
    scan = find_images(config)
    job = make_job(found[0], scan, config)
    train_K = trained_at(job)
    sizes = sorted({*asked.network.img_size, train_K})
    jobs = {K: make_job(replace(found[0], img_size=K), scan, config) for K in sizes}
    measured = {K: statistics_of(job, own) for K, job in jobs.items()}
    rows = [row(job, measured[K], measured[train_K], fitted_on(job, own)) for K, job in jobs.items()]
    write(out, command, job, train_K, measured, rows)
    print(table(rows, train_K))
    figures = draw(out) if asked.output.figures else []
    written = [path for path in sorted(out.iterdir()) if not path.name.startswith(".")]
    print("\nwritten:", *(f"  {path.resolve()}" for path in [*written, *figures]), sep="\n")
    print(json.dumps({"out": str(out.resolve()), "elapsed_s": round(time.monotonic() - started, 1), "rows": rows}))
    return 0


def trained_at(job: Job) -> int:
    """The reference size. Raises UserError where neither the weights nor `train_size` say it."""
    from bench.job import sizes

    K = job.config.network.train_size or sizes(job.classifier)["train_K"]
    if K is None:
        raise UserError(f"nothing says at which size {job.classifier.name} was trained: add `train_size`")
    return K


def fitted_on(job: Job, own: ActivationsConfig) -> str:
    """The images of the statistics, for a person."""
    named = own.fit_data or job.config.data.data
    return "the demo's training set" if named is None else str(named)


def statistics_of(job: Job, own: ActivationsConfig) -> Statistics:
    """Of the images of `fit_data`; of the demo's training set; else of `data` itself (no labels are used)."""
    from bench.job import Job
    from bench.measure.adapt import statistics
    from pipelines.data import demo, scanning

    log.info("activations at %d pixels ...", job.classifier.spec.K)
    fit_data, images = own.fit_data, own.fit_images
    if fit_data is None and job.config.data.data is not None:
        return statistics(job, images)
    root = fit_data or demo.ensure("train")
    config: RunConfig = job.config
    data = DataConfig(data=root, limit=images, seed=config.data.seed)
    fitted = replace(config, data=data, measure=replace(config.measure, accuracy=False, throughput=True))
    scan = scanning.scan(root, workers=config.loading.workers or 1)
    return statistics(Job(job.case, scan, fitted), images)


def row(job: Job, here: Statistics, train: Statistics, fitted_on: str) -> dict[str, Any]:
    """One size: statistics, and the accuracy as it is and adapted, with paired differences to as it is."""
    from analysis.stats import paired_difference, wilson
    from models.fixres.adaptation import ADAPTATIONS as FITS
    from models.fixres.adaptation import attach
    from models.fixres.last_activation import NotAdaptable

    log.info("accuracy at %d pixels ...", here.K)
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
        figures: dict[str, Any] = {"top1": None, "gain": None, "gain_low": None, "gain_high": None, "reason": None}
        try:
            if here.K == train.K:
                raise NotAdaptable("nothing to do at the training size")
            found = FITS[name].fit(train, here)
            detach = attach(job.classifier, found)
        except ValueError as absent:
            figures["reason"] = str(absent)
        else:
            adapted = score(job)
            detach()
            newly_correct, newly_wrong = (
                int((adapted.right & ~plain.right).sum()),
                int((plain.right & ~adapted.right).sum()),
            )
            ends = paired_difference(newly_correct, newly_wrong, int(adapted.right.sum()), images)
            figures |= {
                "top1": 100 * float(adapted.right.mean()),
                "gain": 100 * (newly_correct - newly_wrong) / images,
                "gain_low": ends[0],
                "gain_high": ends[1],
            }
        out |= {f"{name}_{key}": value for key, value in figures.items()}
    return out


def score(job: Job) -> Scored:
    """The centre crop of every labelled image."""
    from bench.measure.scoring import evaluate

    if reason := job.why_no_accuracy:
        raise UserError(f"accuracy cannot be scored: {reason}")
    network = job.make_network(job.batch_size)
    source = job.make_backend(job.planner(*job.policies), job.load_config(1))
    try:
        found = evaluate(source, network, job.rows, job.scoring())
    finally:
        source.close()
    level = found.levels.index("logit")
    known = found.labels >= 0
    return Scored((found.top1[level, 0] == found.labels)[known], found.nll[level, 0][known])


def write(
    out: Path,
    command: Sequence[str],
    job: Job,
    train_K: int,
    measured: dict[int, Statistics],
    rows: Sequence[dict[str, Any]],
) -> None:
    """activations.csv and activations.json."""
    import pandas as pd

    from bench import machine
    from pipelines.files import write_whole
    from pipelines.text import csv_text

    write_whole(out / "activations.csv", csv_text(pd.DataFrame(list(rows))))
    top = highest(measured[train_K])
    points = np.linspace(0, top, CURVE_POINTS)
    info = {
        "command": list(command),
        "model": job.classifier.name,
        "weights": job.classifier.weights,
        "weight_hash": job.classifier.weight_hash,
        "tuned": tuned_from(job),
        "is_demo": job.data.is_demo,
        "data": job.data.root.name,
        "train_K": train_K,
        "points": points.round(5).tolist(),
        "cdf": {str(K): one.pooled.cdf(points).round(5).tolist() for K, one in measured.items()},
        "frechet": {str(K): fitted for K, one in measured.items() if (fitted := frechet(one)) is not None},
        "environment": machine.environment(),
    }
    write_whole(out / "activations.json", json.dumps(info, indent=1) + "\n")


def tuned_from(job: Job) -> dict[str, Any] | None:
    """Size, layers and base weights of the fine-tuning that wrote the checkpoint; None for other weights."""
    from pipelines.schemas import read_json_object

    checkpoint = job.config.network.checkpoint
    note_path = None if checkpoint is None else Path(checkpoint).parent / "finetune.json"
    if note_path is None or not note_path.is_file():
        return None
    note = read_json_object(note_path)
    if note.get("result", {}).get("weight_hash") != job.classifier.weight_hash:
        return None
    return {"K": note["input"]["K"], "layers": note["recipe"]["tune"], "base_hash": note["base"]["weight_hash"]}


def frechet(here: Statistics) -> dict[str, float] | None:
    """The fit of FixRes Figure 6: of the positive values alone. None where there is none to fit."""
    from models.fixres.distributions import Frechet

    try:
        fit = Frechet.fit(here.pooled)
    except ValueError:
        return None  # the row of the table says why
    found = {"mu": fit.mu, "sigma": fit.sigma, "xi": fit.xi, "zero_share": here.pooled.zero_share}
    return found | {"distance": fit.distance(here.pooled)}


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


def draw(out: Path) -> list[Path]:
    """The figure. If it cannot be drawn the numbers are safe: a warning is logged."""
    from analysis.make_figures import make_figures

    try:
        return make_figures([out], only=["activations"]).paths
    except Exception as error:
        log.warning("the figure could not be drawn: %s; the numbers are complete", error)
        return []
