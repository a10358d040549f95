"""More crops of a small network, or what else the same time buys: a larger crop, dense crops, early stopping, a
fine-tuned network, a larger network?

    multicrop-bench alternatives RUN...      # from records alone; table: alternatives.csv, figure: alternatives.png

Each alternative is set beside the most accurate number of crops that is at least as fast (end to end, measured), and
beside the most accurate that takes no more forward passes. Which number of crops that is, one half of the images
decides; the differences are those of the other half, with intervals that hold for all lines together. The question is
that of MID, Figure 8.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis import choosing
from analysis.candidates import Candidate, Candidates, candidates, costs_no_more
from analysis.commands import command, halves_parser
from analysis.drawing import make_figures
from analysis.runs import MissingData, read
from analysis.stats import CONFIDENCE, paired, wilson
from analysis.text import visible, write_csv
from bench.records import Run
from pipelines.crops import TERMS, parted

LEVEL = "softmax"
CROPS = "more crops"
# In the order of the table. The first word that fits a choice is its kind (``kind_of``).
KINDS = (CROPS, "larger crop", "dense crops", "early stopping", "fine-tuned", "larger network")
SPEED, PASSES = COSTS = ("images/s", "forward passes")
FEWEST_IMAGES = 20  # in each half


@dataclass(frozen=True, slots=True)
class Field:
    """One small network at its own size, and everything that can take the place of its centre crop."""

    base: Candidate  # its centre crop
    kinds: dict[str, list[Candidate]]
    names: list[str]  # of the images

    def passes(self, one: Candidate) -> float | None:
        """Forward passes per image, in pixels of one crop of the base; None for another architecture, whose passes
        are not the base's."""
        if one.setting.param_count != self.base.setting.param_count:
            return None
        return one.forwards * (one.setting.K / self.base.setting.K) ** 2


def field_of(found: Candidates) -> Field:
    """The network with the fewest parameters is the base, at its own size where the run records it, else at its
    smallest. Raises MissingData where there is nothing to compare it with."""
    smallest = min(one.setting.param_count for one in found.found)
    own = [one for one in found.found if one.setting.param_count == smallest and one.record.policy == "CC"]
    if not own:
        raise MissingData("needs the centre crop of the smallest network")
    base = min(own, key=lambda one: (own_size(one) != one.setting.K, one.setting.K, one.setting.weight_hash))
    kinds: dict[str, list[Candidate]] = {kind: [] for kind in KINDS}
    for one in found.found:
        if kind := kind_of(one, base):
            kinds[kind].append(one)
    if not any(kinds[kind] for kind in KINDS[1:]):
        raise MissingData(
            f"needs something beside crops of {base.setting.model}: run with a larger --img-size, or larger --models"
        )
    return Field(base, {kind: own for kind, own in kinds.items() if own}, found.names)


def own_size(one: Candidate) -> int | None:
    """The size that the weights are meant for, as run.json has it."""
    models = one.run.info.get("models", [])
    return next((m.get("own_K") for m in models if m.get("model") == one.setting.model and m.get("own_K")), None)


def kind_of(one: Candidate, base: Candidate) -> str | None:
    """Which of KINDS a choice is; None where it is none of them, such as a larger network with several crops."""
    mine, theirs = one.setting, base.setting
    centre = one.record.policy == "CC"
    if mine.param_count != theirs.param_count:
        return "larger network" if centre else None
    if mine.weight_hash != theirs.weight_hash:
        return "fine-tuned" if centre else None
    if (mine.S, mine.K) != (theirs.S, theirs.K):
        return "larger crop" if centre and mine.K > theirs.K else None
    if "~" in one.record.policy:
        return "early stopping"
    return CROPS if centre or only_crops(one.record.policy) else "dense crops"


def only_crops(policy: str) -> bool:
    """Whether every view is a crop of its own forward pass: the terms of pipelines.crops without the dense ones."""
    terms = {parted(term.lstrip("0123456789"))[0] for term in policy.split("+")}
    return terms <= set(TERMS) - {"DC", "MDC", "WI"}


def table(field: Field, seed: int = 0) -> pd.DataFrame:
    """One line for each alternative and each cost that both sides have.

    Columns: kind, alternative, cost, alternative_cost, crops (the policy that is set beside it), crops_cost, the top-1
    of both (percent, on the images that did not choose), difference (crops less alternative, points), low, high
    (intervals of all lines together), p_value (of the line alone), better, images.
    """
    part = choosing.parts(field.names, seed)
    if min(part.sum(), (~part).sum()) < FEWEST_IMAGES:
        raise MissingData(f"{len(field.names)} images are too few to choose on one half and to report on the other")
    pairs = [
        (kind, one, cost, beside)
        for kind, own in field.kinds.items()
        if kind != CROPS
        for one in own
        for cost in COSTS
        if (beside := crops_beside(field, one, cost, part)) is not None
    ]
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(pairs))
    rows = [_row(field, pair, ~part, confidence) for pair in pairs]
    if not rows:
        raise MissingData("no number of crops is as fast as any alternative, or nothing was timed")
    return pd.DataFrame(rows)


def cost_of(field: Field, one: Candidate, cost: str) -> float | None:
    measured: dict[str, Callable[[Candidate], float | None]] = {
        SPEED: lambda it: it.images_per_sec,
        PASSES: field.passes,
    }
    return measured[cost](one)


def crops_beside(field: Field, one: Candidate, cost: str, part: np.ndarray) -> Candidate | None:
    """Of the crops that cost no more than an alternative, the most accurate on the images that choose; None where there
    are none, or the cost was not measured."""
    price = cost_of(field, one, cost)
    if price is None:
        return None
    affordable = []
    for crops in field.kinds.get(CROPS, []):
        own = cost_of(field, crops, cost)
        if own is not None and costs_no_more(own, price, is_rate=cost == SPEED):
            affordable.append(crops)
    return max(affordable, key=lambda crops: crops.top1(part), default=None)


def _row(field: Field, pair: tuple[str, Candidate, str, Candidate], part: np.ndarray, confidence: float) -> dict:
    kind, one, cost, crops = pair
    mine, theirs = crops.right[part], one.right[part]
    found = paired(mine, theirs, confidence)
    return {
        "kind": kind,
        "alternative": one.name,
        "cost": cost,
        "alternative_cost": cost_of(field, one, cost),
        "crops": crops.record.policy,
        "crops_cost": cost_of(field, crops, cost),
        "alternative_top1": one.top1(part),
        "crops_top1": crops.top1(part),
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "p_value": found.p_value,
        "better": "crops" if found.low > 0 else kind if found.high < 0 else "neither is shown to be",
        "images": len(mine),
    }


def points(field: Field) -> pd.DataFrame:
    """Every choice for the figure, on all images: kind, name, images_per_sec with rate_low and rate_high, passes (NaN
    where there is none), top1 with its 95 % interval."""
    rows = []
    for kind, own in field.kinds.items():
        for one in own:
            low, high = wilson(int(one.right.sum()), len(one.right))
            rates = one.timed.rates if one.timed else [float("nan")]
            rows.append(
                {
                    "kind": kind,
                    "name": one.name,
                    "images_per_sec": one.images_per_sec,
                    "rate_low": min(rates),
                    "rate_high": max(rates),
                    "passes": field.passes(one),
                    "top1": 100 * float(one.right.mean()),
                    "top1_low": low,
                    "top1_high": high,
                }
            )
    numeric = ("images_per_sec", "passes")
    return pd.DataFrame(rows).astype(dict.fromkeys(numeric, "float64"))


def of_runs(runs: Sequence[Run]) -> Field:
    """From records alone. Raises MissingData or Incomparable, as ``candidates`` and ``field_of``."""
    return field_of(candidates(runs, [LEVEL]))


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    parser = halves_parser("alternatives", __doc__)
    args = parser.parse_args(argv)
    out = args.out or args.runs[0]
    field = of_runs(read(args.runs))
    found = table(field, args.seed)
    out.mkdir(parents=True, exist_ok=True)
    drawn = make_figures(args.runs, out, only=["alternatives"])
    demo = " (DEMO DATA)" if field.base.setting.is_demo else ""
    print(f"crops of {visible(field.base.name)}{demo}, beside what costs as much; difference: crops less alternative")
    columns = [name for name in found.columns if name != "p_value"]
    print(found[columns].round(2).to_string(index=False))
    print(write_csv(out / "alternatives.csv", found))
    for path in drawn.paths:
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
