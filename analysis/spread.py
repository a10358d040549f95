"""How certain is an accuracy? The papers' spread over folds, the suite's interval, and the spread over crop seeds.

    multicrop-bench spread RUN                     # ten leave-one-out folds, for every policy
    multicrop-bench spread RUN RUN1 RUN2 ...       # also: how the accuracy varies with --seed, in which the runs differ

FixRes, Section 5: "we classify the validation images, split the set into 10 folds and measure the accuracy on 9 of
them, leaving one out in turn. The standard deviation of accuracy over these folds is ~ 0.03 % for all settings." An
image's fold here is a hash of its name, so that every run has the same folds.

What that number is: with k folds of n images that are right with probability p it is sqrt(k p (1 - p) / n) / (k - 1),
for ten folds about a third (0.35) of the standard error of the accuracy; the jackknife multiplies by (k - 1) / sqrt(k)
and gives the standard error again. For 50,000 images and 77 % it is 0.066 points, not the printed 0.03, which would
belong to 96 %. The spread over seeds comes from the random windows alone: the images, the network and the centre
crop are the same. Both describe one accuracy; whether two policies differ, the paired interval of the gain tells
(summary.csv).

Prints a table; writes spread.csv (every policy and level) into the first run's folder, and seeds.csv likewise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.commands import command, command_parser
from analysis.runs import is_shown
from analysis.stats import wilson
from analysis.text import aligned, write_csv
from bench import values
from bench.predictions import read_named
from bench.records import (
    LABELS,
    ORIGINAL,
    REAL,
    SPEED_FIELDS,
    Run,
    Setting,
    read_run,
    require_comparable,
    without_speed,
)
from pipelines.crops import parse_policy

FOLDS = 10  # the papers'
# Fields in which runs of several seeds may differ.
VARYING = ("seed", *SPEED_FIELDS)


def folds_of(names: Sequence[str], folds: int = FOLDS) -> np.ndarray:
    """int64 [b]: each image's fold, 0 to ``folds`` - 1, by a hash of its name."""
    digests = (hashlib.blake2b(f"fold/{name}".encode("utf-8", "surrogateescape"), digest_size=8) for name in names)
    return np.array([int.from_bytes(digest.digest(), "little") % folds for digest in digests], dtype=np.int64)


def leave_one_out(right: np.ndarray, fold: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """Accuracy without each fold in turn, percent, float64 [..., folds], of ``right`` bool [..., b].

    Raises ValueError when a fold has no image, or all of them: too few images.
    """
    sizes = np.bincount(fold, minlength=folds)
    if sizes.min() == 0 or sizes.max() == len(fold):
        raise ValueError(f"{len(fold)} images do not fill {folds} folds: score more images, or lower --folds")
    member = np.eye(folds)[fold]  # [b, folds]
    return 100 * (right.sum(-1, keepdims=True) - right @ member) / (len(fold) - sizes)


def fold_spread(right: np.ndarray, fold: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """The papers' number: sample standard deviation of ``leave_one_out``, points, float64 [...]."""
    return leave_one_out(right, fold, folds).std(-1, ddof=1)


def expected_fold_spread(top1: float, images: int, folds: int = FOLDS) -> float:
    """What ``fold_spread`` is (root mean square) for equal folds drawn at random, points; ``top1`` in percent."""
    share = top1 / 100
    return 100 * float(np.sqrt(folds * share * (1 - share) / images)) / (folds - 1)


def standard_error(spread: float, folds: int = FOLDS) -> float:
    """The jackknife's standard error of the accuracy from ``fold_spread``, points (Efron and Stein 1981)."""
    return spread * (folds - 1) / float(np.sqrt(folds))


def fold_rows(run: Run, folds: int = FOLDS) -> list[dict[str, Any]]:
    """One row for each network, size, set of labels, level and policy."""
    rows: list[dict[str, Any]] = []
    for setting in _scored(run):
        names, stored = read_named(_answers(run, setting))
        fold = folds_of(names, folds)
        truths = {ORIGINAL: np.broadcast_to(stored.labels, stored.top1.shape), REAL: stored.real_label}
        for labels in LABELS:
            if (truth := truths[labels]) is not None:
                known = (truth >= 0).all((0, 1))
                right = (stored.top1 == truth)[:, :, known]
                spreads = fold_spread(right, fold[known], folds)
                found = zip(np.ndindex(spreads.shape), spreads.flat, strict=True)
                rows_of_text = [(*place, float(spread), right[place]) for place, spread in found]
                levels, policies = stored.levels, stored.policies
                rows += [_row(setting, labels, levels[i], policies[p], s, own, folds) for i, p, s, own in rows_of_text]
    return rows


def _row(
    setting: Setting, labels: str, level: str, policy: str, spread: float, right: np.ndarray, folds: int
) -> dict[str, Any]:
    correct, images = int(right.sum()), len(right)
    low, high = wilson(correct, images)
    return {
        **_network(setting), "labels": labels, "policy": policy, "level": level, "images": images,
        "top1": 100 * correct / images, "top1_low": low, "top1_high": high, "fold_std": spread,
        "fold_std_expected": expected_fold_spread(100 * correct / images, images, folds),
        "standard_error": standard_error(spread, folds),
    }  # fmt: skip


def _network(setting: Setting) -> dict[str, Any]:
    return {"model": setting.model, "S": setting.S, "K": setting.K, "is_demo": setting.is_demo}


def _scored(run: Run) -> list[Setting]:
    settings = list(dict.fromkeys(record.setting for record in run.accuracies))
    if not settings:
        raise ValueError(f"{run.folder} scored no network: give a run with an accuracy pass")
    return settings


def _answers(run: Run, setting: Setting) -> Path:
    path = run.predictions_path(setting)
    if path is None or not path.is_file():
        raise ValueError(f"{run.folder} has no predictions of {setting.model} at K={setting.K}: run it again")
    return path


def seed_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One row for each network, size, set of labels, level and policy of the first run: its accuracy over the seeds.

    Raises Incomparable where the runs differ in more than the seed, ValueError where two have one seed or one of them
    lacks a network or policy of the first.
    """
    seeds = [_scored(run)[0].seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {', '.join(map(str, seeds))}: give runs that differ in --seed")
    first, *others = runs
    tables = [{_key(r.setting, r.labels, r.policy, r.level): r for r in _all(run)} for run in runs]
    for setting in _scored(first):
        for run in others:
            for theirs in _scored(run):
                if (theirs.model, theirs.K, theirs.S) == (setting.model, setting.K, setting.S):
                    require_comparable(setting, theirs, varying=VARYING)
    rows = []
    for key, record in tables[0].items():
        if missing := next((run for run, table in zip(runs, tables, strict=True) if key not in table), None):
            raise ValueError(
                f"{missing.folder} lacks {record.policy} of {record.setting.model} at K={record.setting.K}, "
                f"{record.labels} labels: give runs of one command that differ in --seed only"
            )
        top1, gain = (np.array([getattr(table[key], name) for table in tables]) for name in ("top1", "gain"))
        rows.append(
            {
                **_network(record.setting), "labels": record.labels, "policy": record.policy, "level": record.level,
                "images": record.images, "seeds": len(runs), "top1_mean": float(top1.mean()),
                "top1_seed_std": float(top1.std(ddof=1)), "gain_mean": float(gain.mean()),
                "gain_seed_std": float(gain.std(ddof=1)),
            }
        )  # fmt: skip
    return rows


def _all(run: Run) -> list[Any]:
    return [record for labels in LABELS for record in run.accuracies_of(labels)]


def _key(setting: Setting, *others: str) -> tuple[Any, ...]:
    return (replace(without_speed(setting), seed=0), *others)


FOLD_HEADINGS = ("network", "labels", "policy", "top-1", "95 % interval", "fold std", "expected", "standard error")
SEED_HEADINGS = ("network", "labels", "policy", "seeds", "mean top-1", "std", "mean gain", "std")


def fold_table(rows: Sequence[dict[str, Any]], level: str) -> list[str]:
    """For the terminal; of the curves only some crop counts (analysis.runs.is_shown)."""
    rows_of_text = []
    for row in _shown(rows, level):
        interval = f"{row['top1_low']:.2f}..{row['top1_high']:.2f}"
        deviations = [f"{row[name]:.3f}" for name in ("fold_std", "fold_std_expected", "standard_error")]
        rows_of_text.append([_name(row), row["labels"], row["policy"], f"{row['top1']:.2f}", interval, *deviations])
    return aligned([list(FOLD_HEADINGS), *rows_of_text])


def seed_table(rows: Sequence[dict[str, Any]], level: str) -> list[str]:
    rows_of_text = []
    for row in _shown(rows, level):
        top1 = [f"{row['top1_mean']:.2f}", f"{row['top1_seed_std']:.3f}"]
        gain = [f"{row['gain_mean']:+.2f}", f"{row['gain_seed_std']:.3f}"]
        rows_of_text.append([_name(row), row["labels"], row["policy"], str(row["seeds"]), *top1, *gain])
    return aligned([list(SEED_HEADINGS), *rows_of_text])


def _name(row: dict[str, Any]) -> str:
    return f"{row['model']} {row['K']}/{row['S']}{' DEMO DATA' if row['is_demo'] else ''}"


def _shown(rows: Sequence[dict[str, Any]], level: str) -> list[dict[str, Any]]:
    return [
        row for row in rows if row["level"] == level and is_shown(row["policy"], parse_policy(row["policy"]).n_views)
    ]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    parser = command_parser("spread", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument(
        "--folds", type=values.for_argparse(values.folds), default=FOLDS, metavar="K", help=f"default: {FOLDS}"
    )
    parser.add_argument("--level", default="softmax", metavar="NAME", help="that the table shows (default: softmax)")
    args = parser.parse_args(argv)
    if args.folds < 2:
        parser.error(f"--folds {args.folds}: at least 2")
    runs = [read_run(folder) for folder in args.runs]
    folds = fold_rows(runs[0], args.folds)
    seeds = seed_rows(runs) if len(runs) > 1 else []
    print(f"standard deviation over {args.folds} leave-one-out folds, points; {args.level}; run {runs[0].folder.name}")
    print("\n".join(fold_table(folds, args.level)))
    print(f"written: {write_csv(runs[0].folder / 'spread.csv', pd.DataFrame(folds))}")
    if seeds:
        print(f"\nstandard deviation over {len(runs)} crop seeds, points; {args.level}")
        print("\n".join(seed_table(seeds, args.level)))
        print(f"written: {write_csv(runs[0].folder / 'seeds.csv', pd.DataFrame(seeds))}")
    return 0
