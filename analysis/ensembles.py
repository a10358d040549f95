"""Several networks, or one with more crops, or a larger one? Softmax scores averaged over networks, at equal cost.

    multicrop-bench run --models A,B,C --policies CC,5FC+5MFC,20RC --save-scores CC,5FC+5MFC --data DIR
    multicrop-bench ensembles RUN...     # ensembles.csv, ensembles_equal_cost.csv, ensembles.png

An ensemble is two or more networks with the same policy; its answer is the class of the highest mean of their softmax
scores, all with the same weight (FixRes, Appendix E.2, averages four networks with ten crops each).

ensembles.csv: every ensemble beside its best member. None is chosen: p values are corrected by Holm's method over all
of them, and intervals of gains hold for all together. The best member is found on the images that report, so that gains
look smaller, and losses larger, than they are, if anything.

ensembles_equal_cost.csv: every ensemble beside the most accurate single network (any network, size and policy of these
runs) that costs no more. Which one that is, one half of the images decides; the differences are those of the other
half, with intervals that hold for all lines together.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import choosing, style
from analysis.candidates import costs_no_more
from analysis.claim_tests import holm
from analysis.commands import command, halves_parser
from analysis.ensemble_scores import COSTS, MOST_NETWORKS, SPEED, Ensemble, Field, Single, of_runs
from analysis.figures.ensembles import data_of, draw
from analysis.grids import letters
from analysis.runs import MissingData, read
from analysis.stats import CONFIDENCE, paired, wilson
from analysis.text import aligned, visible, write_csv
from bench import values

FEWEST_IMAGES = 20  # in each half
ENSEMBLE, SINGLE, NEITHER = "ensemble", "one network", "neither is shown to be"
EQUAL_COST = "ensembles_equal_cost"  # the second table's file
MOST_PRINTED = 60  # lines of a table


# ---- tables


def table(field: Field) -> pd.DataFrame:
    """One line for each ensemble.

    Columns: networks, policy, members (how many), top1 with its Wilson interval (percent), best_member and its top1,
    gain over it (points) with an interval of all lines together, newly_correct, newly_wrong, p_value (exact McNemar
    test), p_holm (corrected over all lines), forwards, gmacs, images_per_sec (computed from the members'), images.
    """
    confidence = 1 - (1 - CONFIDENCE) / len(field.ensembles)
    frame = pd.DataFrame([_line(one, confidence) for one in field.ensembles])
    frame.insert(list(frame).index("p_value") + 1, "p_holm", holm(frame["p_value"].tolist()))
    return frame


def _line(one: Ensemble, confidence: float) -> dict[str, Any]:
    best = max(one.members, key=lambda member: int(member.right.sum()))
    low, high = wilson(int(one.right.sum()), len(one.right))
    return {
        "networks": one.networks,
        "policy": one.policy,
        "members": len(one.members),
        "top1": 100 * float(one.right.mean()),
        "top1_low": low,
        "top1_high": high,
        "best_member": best.network,
        "best_member_top1": 100 * float(best.right.mean()),
        **_paired("gain", one.right, best.right, confidence),
        "forwards": one.costs.forwards,
        "gmacs": one.costs.gmacs,
        "images_per_sec": one.costs.images_per_sec,
        "images": len(one.right),
    }


def _paired(name: str, mine: np.ndarray, theirs: np.ndarray, confidence: float) -> dict[str, Any]:
    """The difference of two shares of right answers, points, with its interval and test."""
    found = paired(mine, theirs, confidence)
    return {
        name: found.difference,
        f"{name}_low": found.low,
        f"{name}_high": found.high,
        "newly_correct": found.newly_correct,
        "newly_wrong": found.newly_wrong,
        "p_value": found.p_value,
    }


def equal_cost(field: Field, seed: int = 0) -> pd.DataFrame:
    """One line for each ensemble and each cost that it has, where a single network costs no more.

    Columns: networks, policy, cost (of COSTS), ensemble_cost, single (network and policy), single_cost, the top-1 of
    both (percent, on the images that did not choose the single one), difference (ensemble less single, points) with an
    interval of all lines together, newly_correct, newly_wrong, p_value (of the line alone), better, images.
    Raises MissingData for too few images. No line at all: no cost is known.
    """
    part = choosing.parts(field.names, seed)
    if min(part.sum(), (~part).sum()) < FEWEST_IMAGES:
        raise MissingData(f"{len(field.names)} images are too few to choose on one half and to report on the other")
    pairs = [
        (one, cost, beside)
        for one in field.ensembles
        for cost in COSTS
        if (beside := single_beside(field, one, cost, part)) is not None
    ]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    return pd.DataFrame([_beside(pair, ~part, confidence) for pair in pairs])


def single_beside(field: Field, one: Ensemble, cost: str, part: np.ndarray) -> Single | None:
    """Of the single networks that cost no more than an ensemble, the most accurate on the images that choose."""
    price = one.costs.of(cost)
    if price is None:
        return None
    affordable = []
    for single in field.singles:
        own = single.costs.of(cost)
        if own is not None and costs_no_more(own, price, is_rate=cost == SPEED):
            affordable.append(single)
    return max(affordable, key=lambda single: int(single.right[part].sum()), default=None)


def _beside(pair: tuple[Ensemble, str, Single], part: np.ndarray, confidence: float) -> dict[str, Any]:
    one, cost, single = pair
    mine, theirs = one.right[part], single.right[part]
    paired = _paired("difference", mine, theirs, confidence)
    better = ENSEMBLE if paired["difference_low"] > 0 else SINGLE if paired["difference_high"] < 0 else NEITHER
    return {
        "networks": one.networks,
        "policy": one.policy,
        "cost": cost,
        "ensemble_cost": one.costs.of(cost),
        "single": single.name,
        "single_cost": single.costs.of(cost),
        "ensemble_top1": 100 * float(mine.mean()),
        "single_top1": 100 * float(theirs.mean()),
        **paired,
        "better": better,
        "images": len(mine),
    }


# ---- the command


def printed(frame: pd.DataFrame, beside: pd.DataFrame, field: Field) -> list[str]:
    """Both tables for a terminal, with a letter for each network."""
    letter = {name: letters(i).upper() for i, name in enumerate(dict.fromkeys(one.network for one in field.singles))}
    short = {one.networks: "+".join(letter[member.network] for member in one.members) for one in field.ensembles}
    short |= letter | {one.name: f"{letter[one.network]} {one.policy}" for one in field.singles}
    lines = [f"{one}  {name}" for name, one in letter.items()]
    lines += ["", "mean of the networks' softmax scores; gain: over the best of them, on the same images"]
    lines += _shortened([ENSEMBLE_HEADS, *(_ensemble_cells(row, short) for row in frame.to_dict("records"))])
    lines += [
        "all together: 95 % interval of all lines together; p: exact McNemar test, corrected by Holm's method",
        "images/s: 1 / (1/A + 1/B + ...) of the networks' own, computed and not measured; forwards: passes per image;",
        "GMACs: multiply-adds of a crop times forward passes, billions",
    ]
    lines += [f"{cost}: not known: {why}" for cost, why in field.why_no_cost.items()]
    if beside.empty:
        return [*lines, "", "beside one network at equal cost: nothing, for no cost is known of both"]
    lines += [
        "",
        "beside the best single network that costs no more; one half of the images chose it, the other reports",
    ]
    lines += _shortened([BESIDE_HEADS, *(_beside_cells(row, short) for row in beside.to_dict("records"))])
    return [*lines, *_tally(beside)]


ENSEMBLE_HEADS = (
    "networks", "policy", "top-1", "95 % interval", "best", "gain", "all together", "p", "forwards", *COSTS,
)  # fmt: skip
BESIDE_HEADS = (
    "networks", "policy", "cost", "costs", "top-1", "one network", "costs", "top-1", "difference", "all together",
    "better",
)  # fmt: skip


def _ensemble_cells(row: Mapping[Any, Any], short: Mapping[str, str]) -> tuple[str, ...]:
    return (
        short[row["networks"]], row["policy"], f"{row['top1']:.2f}", f"{row['top1_low']:.2f}..{row['top1_high']:.2f}",
        short[row["best_member"]], f"{row['gain']:+.2f}", f"{row['gain_low']:+.2f}..{row['gain_high']:+.2f}",
        f"{row['p_holm']:.2g}", f"{row['forwards']:.2f}", _number(row["gmacs"]), _number(row["images_per_sec"]),
    )  # fmt: skip


def _beside_cells(row: Mapping[Any, Any], short: Mapping[str, str]) -> tuple[str, ...]:
    return (
        short[row["networks"]], row["policy"], row["cost"], _number(row["ensemble_cost"]),
        f"{row['ensemble_top1']:.2f}", short[row["single"]], _number(row["single_cost"]), f"{row['single_top1']:.2f}",
        f"{row['difference']:+.2f}", f"{row['difference_low']:+.2f}..{row['difference_high']:+.2f}", row["better"],
    )  # fmt: skip


def _tally(beside: pd.DataFrame) -> list[str]:
    """For each cost, how often which side is shown to be better."""
    lines = []
    for cost, own in beside.groupby("cost", sort=False):
        counts = ", ".join(f"{what}: {int((own['better'] == what).sum())}" for what in (ENSEMBLE, SINGLE, NEITHER))
        lines.append(f"better at equal {cost}, of {len(own)} comparisons: {counts}")
    return lines


def _number(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{value:.3g}"


def _shortened(rows: Sequence[Sequence[str]]) -> list[str]:
    left = len(rows) - 1 - MOST_PRINTED
    lines = aligned(rows[: MOST_PRINTED + 1])
    return [*lines, f"... and {left} more in the file"] if left > 0 else lines


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 2 for what the user can correct, 130 after Ctrl-C."""
    parser = halves_parser("ensembles", __doc__)
    parser.add_argument(
        "--most",
        type=values.for_argparse(values.whole(2, 20)),
        metavar="N",
        help=f"networks in an ensemble, at most (default: {MOST_NETWORKS}, or fewer where there are very many)",
    )
    args = parser.parse_args(argv)
    return compare(args.runs, args.out or args.runs[0], args.most, args.seed)


def compare(folders: Sequence[Path], out: Path, most: int | None, seed: int) -> int:
    """Write and print the tables, and draw the figure. Returns 0. Raises ValueError and OSError, as ``of_runs``."""
    field = of_runs(read(folders), most)
    frame, beside = table(field), equal_cost(field, seed)
    out.mkdir(parents=True, exist_ok=True)
    written = [str(write_csv(out / f"{name}.csv", one)) for name, one in (("ensembles", frame), (EQUAL_COST, beside))]
    try:
        written.append(str(style.save(draw(data_of(field)), out / "ensembles.png").resolve()))
    except MissingData as reason:
        written.append(f"not drawn: {reason}")
    if field.networks[0][1].is_demo:
        print("DEMO DATA: says nothing about ImageNet")
    for line in [*printed(frame, beside, field), *written]:
        print(visible(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
