"""Which network, size and crops to use: chosen on one half of the images, reported on the other.

    multicrop-bench recommend RUN... --target 'images_per_sec>=500'     # the most accurate that is fast enough
    multicrop-bench recommend RUN... --target 'top1>=80'                # the fastest that is accurate enough
    multicrop-bench recommend RUN... --target 'forwards<=2' --target 'peak_mem_gb<=4' --out recipe.json
    multicrop-bench recommend RUN --check recipe.json                   # does a recipe still hold?
    multicrop-bench recommend --data DIR --models LIST --target ...     # measures first; --models LIST --help says how

RUN: folders of multicrop-bench run, on the same images; networks, sizes and policies that are to be chosen between.
`--check` takes the run of `multicrop-bench run --recipe recipe.json`.

Settings that are significantly worse than the best on the choosing half are dropped; the chosen one is compared with
the others on the reporting half. What cannot be told apart is called a tie, with the number of images that would do.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis import choosing
from analysis.candidates import METRICS, Candidate, Candidates, candidates
from analysis.checking import check_lines
from analysis.choice_figure import BETTER, CHOSEN, DROPPED, MISSED, TIE, draw_choice
from analysis.choosing import Difference
from analysis.commands import command, command_parser
from analysis.recipes import is_certified, recipe_of
from analysis.runs import read
from analysis.stats import wilson
from analysis.text import aligned, visible
from bench import values
from bench.records import Accuracy, Run
from models.recipe import read_recipe

TOP1 = "top1"
SHOWN_TIES = 10
FEWEST_IMAGES = 20  # in each half
UNCERTIFIED = "the risk of stopping early could not be certified: more images would be needed"


@dataclass(frozen=True, slots=True)
class Target:
    """``images_per_sec>=500``"""

    metric: str
    at_least: bool
    value: float

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.value:g}"

    def is_met(self, value: float) -> bool:
        return value >= self.value if self.at_least else value <= self.value


def parse_target(text: str) -> Target:
    """Raises ValueError, listing what there is, for a target that is none."""
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*(\d+\.?\d*|\.\d+)\s*", text)
    wanted_high = {TOP1: True} | {name: metric.high for name, metric in METRICS.items()}
    if not match or match[1] not in wanted_high:
        raise ValueError(
            f"`target` {text!r} is not one: write NAME>=NUMBER or NAME<=NUMBER with a NAME of "
            f"{', '.join(sorted(wanted_high))}"
        )
    target = Target(match[1], match[2] == ">=", float(match[3]))
    if target.at_least != wanted_high[target.metric]:
        level, sign = ("high", ">=") if wanted_high[target.metric] else ("low", "<=")
        raise ValueError(f"`target` {text!r}: {target.metric} is wanted {level}; write {target.metric}{sign}NUMBER")
    return target


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen, from what, and how it did on the images that did not choose."""

    chosen: Candidate
    considered: int
    left_out: dict[str, int]  # reason -> settings
    dropped: int  # on the choosing half
    why_dropped: str
    rivals: list[tuple[Candidate, Difference]]  # those that were not, on the reporting half
    images_choosing: int
    images_reporting: int
    top1: float  # on the reporting half, percent
    low: float
    high: float
    expected_loss: float  # points
    outcomes: list[str]  # of each setting that was considered, of analysis.choice_figure

    @property
    def ties(self) -> list[tuple[Candidate, Difference]]:
        return [(one, difference) for one, difference in self.rivals if difference.is_tie]


def choose(found: Candidates, targets: Sequence[Target], seed: int = 0, screened: Collection[str] = ()) -> Choice:
    """The most accurate setting that meets the targets; with a target for top-1 the fastest that is sure to meet it.

    ``screened``: names of images on which settings have been dropped already: they choose too, and never report.

    Raises ValueError, with what is nearest, where nothing meets them or there are too few images.
    """
    choosing_part = choosing.parts(found.names, seed) | np.isin(found.names, sorted(screened))
    if min(choosing_part.sum(), (~choosing_part).sum()) < FEWEST_IMAGES:
        raise ValueError(f"{len(found.names)} images are too few to choose on one half and to report on the other")
    wanted, left_out = meeting(found, targets)
    right = found.right[wanted]
    accurate = next((target for target in targets if target.metric == TOP1), None)
    best, kept = choosing.not_worse(right[:, choosing_part])
    if accurate is not None:
        best, kept = fastest(found, wanted, accurate, choosing_part)
    finalists = np.flatnonzero(kept)
    reporting = right[finalists][:, ~choosing_part]
    chosen = int(np.flatnonzero(finalists == best)[0])
    others = [found.found[wanted[i]] for i in finalists if i != best]
    n, correct = reporting.shape[1], int(reporting[chosen].sum())
    low, high = wilson(correct, n)
    compared = choosing.differences(reporting, chosen) if others else []
    outcomes = [MISSED if i not in wanted else DROPPED for i in range(len(found.found))]
    outcomes[wanted[best]] = CHOSEN
    rest = [wanted[i] for i in finalists if i != best]
    for i, difference in zip(rest, compared, strict=True):
        outcomes[i] = TIE if difference.is_tie else DROPPED if difference.difference > 0 else BETTER
    return Choice(
        chosen=found.found[wanted[best]],
        considered=len(found.found),
        left_out=left_out,
        dropped=len(wanted) - len(finalists),
        why_dropped="significantly worse" if accurate is None else f"slower, or not sure to have {accurate},",
        rivals=list(zip(others, compared, strict=True)),
        images_choosing=int(choosing_part.sum()),
        images_reporting=n,
        top1=100 * correct / n,
        low=low,
        high=high,
        expected_loss=choosing.expected_loss(reporting, chosen) if others else 0.0,
        outcomes=outcomes,
    )


def meeting(found: Candidates, targets: Sequence[Target]) -> tuple[list[int], dict[str, int]]:
    """Indices of the settings that meet the targets for cost, and how many were left out for which reason."""
    wanted: list[int] = []
    left_out: dict[str, int] = {}
    nearest: dict[str, float] = {}
    for i, one in enumerate(found.found):
        reason = None if is_certified(one.record) else UNCERTIFIED
        for target in targets:
            if target.metric == TOP1 or reason:
                continue
            metric = METRICS[target.metric]
            value = metric.of(one)
            if value is None:
                reason = f"{target.metric} was not measured of this policy (what measures it: {metric.needs})"
            elif not target.is_met(value):
                reason = f"not {target}"
                keep = max if target.at_least else min
                nearest[reason] = keep(value, nearest.get(reason, value))
        if reason is None:
            wanted.append(i)
        else:
            left_out[reason] = left_out.get(reason, 0) + 1
    if not wanted:
        near = "; ".join(f"{reason}, the nearest has {value:.4g}" for reason, value in nearest.items())
        raise ValueError(f"none of {len(found.found)} settings meets the targets: {near or '; '.join(left_out)}")
    return wanted, left_out


def fastest(found: Candidates, wanted: Sequence[int], target: Target, part: np.ndarray) -> tuple[int, np.ndarray]:
    """The fastest setting whose top-1 is at least the target's for sure: the lower ends of all settings' intervals hold
    together (Bonferroni). Those that are as fast or faster and not sure are not rivals."""
    confidence = 1 - 2 * choosing.LEVEL / len(wanted)
    n = int(part.sum())
    sure = [wilson(int(found.found[i].right[part].sum()), n, confidence)[0] >= target.value for i in wanted]
    rates = [found.found[i].images_per_sec or 0.0 for i in wanted]
    if not any(sure):
        top = max(found.found[i].top1(part) for i in wanted)
        raise ValueError(
            f"no setting has {target} for sure with {n} images and {len(wanted)} settings; the best has {top:.2f} on "
            "them: use more images or fewer settings"
        )
    if not any(rates):
        raise ValueError(
            f"`target` {target} asks for the fastest, and no setting was timed: run without --no-throughput"
        )
    best = max((i for i in range(len(wanted)) if sure[i]), key=lambda i: rates[i])
    kept = np.zeros(len(wanted), dtype=bool)
    kept[best] = True
    return best, kept


def text(choice: Choice) -> list[str]:
    """For a person."""
    one = choice.chosen
    demo = "  (DEMO DATA: says nothing about other images)" if one.setting.is_demo else ""
    rate = "not timed" if one.images_per_sec is None else f"{one.images_per_sec:.1f} images/s"
    top1 = f"{choice.top1:.2f} ({choice.low:.2f}..{choice.high:.2f}, 95 %)"
    lines = [
        f"chosen: {visible(one.name)}{demo}",
        f"  top-1 {top1} on {choice.images_reporting} images that did not choose; {rate}; {one.forwards:g} forward "
        "passes per image",
        f"  chosen on {choice.images_choosing} other images from {choice.considered} settings; {choice.dropped} "
        f"{'was' if choice.dropped == 1 else 'were'} "
        f"{choice.why_dropped} there",
        *[f"  left out: {count} settings: {reason}" for reason, count in choice.left_out.items()],
        f"  expected loss against the best of those not dropped, whichever that is: {choice.expected_loss:.2f} points",
        *_threshold_lines(one.record),
    ]
    return [*lines, *_tie_lines(choice), *_better_lines(choice)]


def _threshold_lines(record: Accuracy) -> list[str]:
    """What the recipe's one threshold does, of a policy with a risk."""
    if record.deployed_threshold is None or record.deployed_correct is None:
        return []
    return [
        f"  images stop where the margin is above {record.deployed_threshold:.3g}: on all {record.images} images so "
        f"used, top-1 {100 * record.deployed_correct / record.images:.2f} for {record.deployed_forwards:.2f} forward "
        "passes; the top-1",
        "  above is that of each half at the threshold that the other half gives",
    ]


def _tie_lines(choice: Choice) -> list[str]:
    ties = choice.ties
    if not ties:
        return ["no other setting ties with it"]
    needed = [difference.images_needed for _, difference in ties]
    finite = [n for n in needed if n is not None]
    enough = f"; for all but {needed.count(None)} of them {max(finite):,} would do" if finite else ""
    if finite and None not in needed:
        enough = f"; {max(finite):,} would do"
    others = "1 other" if len(ties) == 1 else f"{len(ties)} others"
    head = f"{others} cannot be told apart from it with {choice.images_reporting:,} images{enough}:"
    shown = sorted(ties, key=lambda tie: -(tie[0].images_per_sec or 0))[:SHOWN_TIES]
    lines = aligned([HEADING, *map(_row, shown)])
    slower = len(ties) - SHOWN_TIES
    more = [f"and {slower} slower one{'s' if slower > 1 else ''}"] if slower > 0 else []
    return [head, *lines, *more]


HEADING = ["setting", "chosen less this", "interval", "images/s", "images that would do"]


def _row(pair: tuple[Candidate, Difference]) -> list[str]:
    one, difference = pair
    return [
        one.name,
        f"{difference.difference:+.2f}",
        f"{difference.low:+.2f}..{difference.high:+.2f}",
        "" if one.images_per_sec is None else f"{one.images_per_sec:.1f}",
        "" if difference.images_needed is None else f"{difference.images_needed:,}",
    ]


def _better_lines(choice: Choice) -> list[str]:
    better = [(one, d) for one, d in choice.rivals if not d.is_tie and d.difference < 0]
    if not better:
        return []
    return [
        "significantly better on the reporting half:",
        *aligned([HEADING, *map(_row, better)]),
    ]


def report_of(choice: Choice, targets: Sequence[Target]) -> dict[str, Any]:
    """What a recipe says of the choice. Its accuracy is that of the images that did not choose."""
    return {
        "images": choice.images_reporting,
        "top1": round(choice.top1, 3),
        "top1_low": round(choice.low, 3),
        "top1_high": round(choice.high, 3),
        "choice": {
            "targets": [str(target) for target in targets],
            "settings": choice.considered,
            "images_choosing": choice.images_choosing,
            "expected_loss_points": round(choice.expected_loss, 3),
            "tied_with": [one.name for one, _ in choice.ties],
        },
    }


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 1 where a checked recipe no longer holds, 2 for what the user can correct."""
    args = parse(argv)
    runs = read(args.runs)
    return check(runs, args.check) if args.check else recommend(runs, args)


def recommend(runs: Sequence[Run], args: argparse.Namespace) -> int:
    """Choose, say so, and write the recipe."""
    targets = [parse_target(target) for target in args.target]
    if args.out.exists():
        raise ValueError(f"--out {args.out} exists; recipes are never written over others: name a new file")
    return conclude(runs, targets, args.out, seed=args.seed, levels=args.levels)


def conclude(
    runs: Sequence[Run],
    targets: Sequence[Target],
    out: Path,
    screened: Collection[str] = (),
    *,
    seed: int = 0,
    levels: Sequence[str] | None = None,
) -> int:
    """Choose from runs, say so, and write the recipe to ``out``. ``screened``: as of ``choose``. Returns 0."""
    found = candidates(runs, levels)
    choice = choose(found, targets, seed, screened)
    recipe = recipe_of(choice.chosen.run, choice.chosen.record, report_of(choice, targets))
    written = recipe.write(out)  # before anything is printed: a pager that is closed early loses no recipe
    print("\n".join(text(choice)))
    print(f"\nwritten: {written}")
    if (picture := out.with_suffix(".png")) and not picture.exists():
        print(f"written: {draw_choice(found, choice.outcomes, picture)}")
    print(f"use it:  multicrop-bench predict --recipe {out} IMAGES")
    return 0


def check(runs: Sequence[Run], path: Path) -> int:
    """Whether a recipe still holds in a run of it. Returns 0, or 1 where it does not."""
    holds, lines = check_lines(read_recipe(path), runs)
    print("\n".join(lines))
    return 0 if holds else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("recommend", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs on the same images")
    parser.add_argument(
        "--target", action="append", default=[], metavar="NAME>=X", help=f"of {', '.join((TOP1, *METRICS))}; repeatable"
    )
    parser.add_argument("--out", type=Path, default=Path("recipe.json"), metavar="FILE", help="default: recipe.json")
    parser.add_argument(
        "--levels", type=lambda text: text.split(","), metavar="LIST", help="feature, logit, softmax (default: all)"
    )
    parser.add_argument(
        "--seed", type=values.for_argparse(values.seed_from_zero), default=0, help="of the halves (default: 0)"
    )
    parser.add_argument("--check", type=Path, metavar="RECIPE", help="compare a run of this recipe with what it says")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
