"""Several networks, or one with more crops, or a larger one? Softmax scores averaged over networks, at equal cost.

    multicrop-bench run --models A,B,C --policies CC,5FC+5MFC,20RC --save-scores CC,5FC+5MFC --data DIR
    multicrop-bench ensembles RUN...     # ensembles.csv, ensembles_equal_cost.csv, ensembles.png

An ensemble is two or more networks with the same policy; its answer is the class of the highest mean of their softmax
scores, all with the same weight (FixRes, Appendix E.2, averages four networks with ten crops each).

ensembles.csv: every ensemble beside its best member. None is chosen: p values are corrected by Holm's method over all
of them, and intervals of gains hold for all together. The best member is found on the images that report, which makes
gains look smaller than they are, if anything.

ensembles_equal_cost.csv: every ensemble beside the most accurate single network (any network, size and policy of these
runs) that costs no more. Which one that is, one half of the images decides; the differences are those of the other
half, with intervals that hold for all lines together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis import choosing
from analysis.candidates import SAME_MACHINE, Candidate, candidates, require_same
from analysis.claim_tests import holm
from analysis.commands import command_parser, failed
from analysis.drawing import make_figures
from analysis.names import distinct_names
from analysis.runs import MissingData, NetworkRun, predictions, read
from analysis.stats import CONFIDENCE, mcnemar, paired_difference, wilson
from analysis.text import aligned, visible, write_csv
from bench import values
from bench.measure.scores import AT_ONCE, UNKNOWN, SavedScores, answers, path_beside
from bench.records import Incomparable, Run, Setting

LEVEL = "softmax"
MOST_NETWORKS = 4  # of an ensemble: FixRes averages as many
MOST_ENSEMBLES = 2000
FEWEST_IMAGES = 20  # in each half
EQUAL = 0.95  # one network at so much of an ensemble's images/s counts as fast as it: rates vary by as much
GMACS, SPEED = COSTS = ("GMACs", "images/s")
ENSEMBLE, SINGLE, NEITHER = "ensemble", "one network", "neither is shown to be"
MOST_PRINTED = 60  # lines of a table
NEEDED = "needs the softmax scores of two networks: run them with --save-scores CC"


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What an answer costs; None where it is not known."""

    forwards: float | None  # forward passes per image, each in pixels of its network's own crop
    gmacs: float | None  # billions of multiply-adds per image
    images_per_sec: float | None  # end to end

    def of(self, cost: str) -> float | None:
        return self.gmacs if cost == GMACS else self.images_per_sec


@dataclass(frozen=True, slots=True, eq=False)
class Single:
    """One network with one policy. ``right`` bool [b]: which of the common images it gets right."""

    network: str
    policy: str
    right: np.ndarray
    costs: Costs

    @property
    def name(self) -> str:
        return f"{self.network}, {self.policy}"


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One network with a policy of which scores were kept."""

    single: Single
    scores: np.ndarray  # float32 [b, n]


@dataclass(frozen=True, slots=True, eq=False)
class Ensemble:
    """Networks with the same policy. ``right`` bool [b]: which images the mean of their scores gets right."""

    members: tuple[Single, ...]
    right: np.ndarray
    costs: Costs  # the sum of the members', each of which reads the images anew

    @property
    def networks(self) -> str:
        return " + ".join(one.network for one in self.members)

    @property
    def policy(self) -> str:
        return self.members[0].policy

    @property
    def name(self) -> str:
        return f"{self.networks}, {self.policy}"


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """All ensembles that the kept scores allow, and all single networks, on the images that they share."""

    names: list[str]  # [b]
    singles: list[Single]
    ensembles: list[Ensemble]
    networks: list[NetworkRun]  # where the members come from
    why_no_cost: dict[str, str]  # of COSTS that no ensemble has: the reason


# ---- reading


def of_runs(runs: Sequence[Run], most: int = MOST_NETWORKS) -> Field:
    """Every ensemble of 2 to ``most`` networks.

    Raises MissingData where fewer than two networks have scores of the same policy, Incomparable, naming what differs,
    for other images or classes, and ValueError for damaged files and for more than MOST_ENSEMBLES.
    """
    if not any(any(run.folder.glob("scores-*.npz")) for run in runs):
        raise MissingData(NEEDED)
    found = candidates(runs, [LEVEL], one_machine=False)
    named = _names([(one.run, one.setting) for one in found.found])
    counted, same_machine = _multiply_adds(runs), _same_machine(found.found)
    singles = {
        (_key(one.setting), one.record.policy): Single(
            named[_key(one.setting)], one.record.policy, one.right, _costs(one, counted, same_machine)
        )
        for one in found.found
    }
    kept = {place: found for place, found in _kept(runs).items() if place in singles}
    if not kept:
        raise MissingData(NEEDED)
    labels = _agreed_labels(kept, found.names)
    members = {
        place: Member(singles[place], _of_images(scores.of_policy(place[1]), scores.names, found.names))
        for place, (_, scores) in kept.items()
    }
    groups = list(_groups(members, most))
    right = _right([[members[place].scores for place in group] for group in groups], labels)
    ensembles = [
        Ensemble(of := tuple(members[place].single for place in group), row, _sum([one.costs for one in of]))
        for group, row in zip(groups, right, strict=True)
    ]
    networks = list({network[1]: network for network, _ in kept.values()}.values())
    return Field(found.names, list(singles.values()), ensembles, networks, _why_no_cost(ensembles, same_machine))


Key = tuple[str, int, int, str]
Place = tuple[Key, str]  # a network and a policy


def _key(setting: Setting) -> Key:
    """Which network at which size, as ``candidates`` tells them apart."""
    return setting.weight_hash, setting.S, setting.K, setting.amp_dtype


def _names(networks: Sequence[NetworkRun]) -> dict[Key, str]:
    first: dict[Key, NetworkRun] = {}
    for network in networks:
        first.setdefault(_key(network[1]), network)
    told = distinct_names([(run.folder.name, setting) for run, setting in first.values()])
    return dict(zip(first, told, strict=True))


def _kept(runs: Sequence[Run]) -> dict[Place, tuple[NetworkRun, SavedScores]]:
    """Where scores were kept, the first of several; each file belongs to its run's predictions."""
    found: dict[Place, tuple[NetworkRun, SavedScores]] = {}
    for run in runs:
        for setting in dict.fromkeys(record.setting for record in run.accuracies):
            path = run.predictions_path(setting)
            if path is None or not (beside := path_beside(path)).is_file():
                continue
            kept = SavedScores.load(beside)
            _require_own(beside, kept, (run, setting))
            for policy in kept.policies:
                found.setdefault((_key(setting), policy), ((run, setting), kept))
    return found


def _require_own(path: Path, kept: SavedScores, network: NetworkRun) -> None:
    """Raises ValueError where the scores are not those of the run's predictions."""
    stored = predictions(network)
    if stored.names == kept.names.tolist() and np.array_equal(stored.labels, kept.labels):
        top1 = stored.top1[stored.levels.index(LEVEL)]
        own = (np.array_equal(answers(kept.of_policy(p)), top1[stored.policies.index(p)]) for p in kept.policies)
        if set(kept.policies) <= set(stored.policies) and all(own):
            return
    raise ValueError(f"{path} does not belong to the predictions beside it: run it again with --save-scores")


def _agreed_labels(kept: dict[Place, tuple[NetworkRun, SavedScores]], names: Sequence[str]) -> np.ndarray:
    """int64 [b]. Raises Incomparable where members were scored on other bytes, or answer among other classes."""
    (first, scored), *others = {setting: scored for (_, setting), scored in kept.values()}.items()
    classes, crc32 = scored.scores.shape[-1], _of_images(scored.content_crc32, scored.names, names)
    for setting, other in others:
        require_same([first, setting], ["valid_labels"])
        if (theirs := other.scores.shape[-1]) != classes:
            raise Incomparable(
                f"no ensemble of networks whose number of classes differs: {first.model} has {classes}, "
                f"{setting.model} has {theirs}"
            )
        other_crc32 = _of_images(other.content_crc32, other.names, names)
        differ = (crc32 != other_crc32) & (crc32 != UNKNOWN) & (other_crc32 != UNKNOWN)
        if differ.any():
            raise Incomparable(
                f"no ensemble over different images: {int(differ.sum())} files held other bytes when {setting.model} "
                f"was scored than for {first.model}, {names[int(differ.argmax())]} for one; score both again"
            )
    return _of_images(scored.labels, scored.names, names)


def _of_images(stored: np.ndarray, own: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """The rows of ``stored`` [b, ...], of images ``own``, that belong to ``names``, in their order."""
    wanted = np.array(names)
    if np.array_equal(own, wanted):
        return stored
    order = np.argsort(own, kind="stable")
    return stored[order[np.searchsorted(own, wanted, sorter=order)]]


# ---- what they cost


def _multiply_adds(runs: Sequence[Run]) -> dict[Key, float]:
    """Of one crop, as run.json holds them."""
    found = {}
    for run in runs:
        for setting in dict.fromkeys(record.setting for record in run.accuracies):
            for model in run.info.get("models", []):
                if model.get("setting") == asdict(setting) and model.get("multiply_adds"):
                    found[_key(setting)] = float(model["multiply_adds"])
    return found


def _same_machine(found: Sequence[Candidate]) -> bool:
    try:
        require_same([one.setting for one in found if one.timed is not None], SAME_MACHINE)
    except Incomparable:
        return False
    return True


def _costs(one: Candidate, counted: dict[Key, float], same_machine: bool) -> Costs:
    of_crop = counted.get(_key(one.setting))
    return Costs(
        one.forwards,
        None if of_crop is None else of_crop * one.forwards / 1e9,
        one.images_per_sec if same_machine else None,
    )


def _sum(costs: Sequence[Costs]) -> Costs:
    """Of networks that run one after the other."""
    gmacs = [one.gmacs for one in costs if one.gmacs is not None]
    rates = [one.images_per_sec for one in costs if one.images_per_sec]
    return Costs(
        sum(one.forwards or 0.0 for one in costs),
        sum(gmacs) if len(gmacs) == len(costs) else None,
        1 / sum(1 / rate for rate in rates) if len(rates) == len(costs) else None,
    )


def _why_no_cost(ensembles: Sequence[Ensemble], same_machine: bool) -> dict[str, str]:
    why = {
        GMACS: "the multiply-adds of a member are not in its run.json",
        SPEED: "no ensemble has members that were all timed with its policy (run without --no-throughput)"
        if same_machine
        else "the runs were timed on different machines",
    }
    return {cost: why[cost] for cost in COSTS if all(one.costs.of(cost) is None for one in ensembles)}


# ---- averaging


def _groups(members: dict[Place, Member], most: int) -> Iterator[tuple[Place, ...]]:
    """Every 2 to ``most`` networks with each policy that all of them have. Raises MissingData for none."""
    policies = list(dict.fromkeys(policy for _, policy in members))
    own = {policy: [place for place in members if place[1] == policy] for policy in policies}
    sizes = range(2, most + 1)
    groups = [group for size in sizes for policy in policies for group in combinations(own[policy], size)]
    if not groups:
        lacking = ", ".join(f"{policy}: {members[places[0]].single.network}" for policy, places in own.items())
        raise MissingData(
            f"needs scores of the same policy from two networks, and has {lacking}: run another network with the same "
            "--save-scores, or give its run too"
        )
    if len(groups) > MOST_ENSEMBLES:
        raise ValueError(
            f"{len(groups):,} ensembles, and at most {MOST_ENSEMBLES:,} are compared: ask for fewer networks in each "
            "(`most`), or give fewer runs"
        )
    yield from groups


def _right(groups: Sequence[Sequence[np.ndarray]], labels: np.ndarray) -> np.ndarray:
    """bool [g, b]: which images the mean of each group's scores gets right. Sums are in float64; of equal scores the
    lowest class is the answer, and an image on which a member gave NaN is wrong."""
    right = np.zeros((len(groups), len(labels)), dtype=bool)
    for begin in range(0, len(labels), AT_ONCE):
        part = slice(begin, begin + AT_ONCE)
        for row, group in zip(right, groups, strict=True):
            total = np.zeros(group[0][part].shape)
            for scores in group:
                total += scores[part]
            row[part] = answers(total) == labels[part]
    return right


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
    newly_correct, newly_wrong = int((mine & ~theirs).sum()), int((theirs & ~mine).sum())
    low, high = paired_difference(newly_correct, newly_wrong, int(mine.sum()), len(mine), confidence)
    return {
        name: 100 * (newly_correct - newly_wrong) / len(mine),
        f"{name}_low": low,
        f"{name}_high": high,
        "newly_correct": newly_correct,
        "newly_wrong": newly_wrong,
        "p_value": mcnemar(newly_correct, newly_wrong),
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
        if own is not None and (own >= EQUAL * price if cost == SPEED else own <= price * (1 + 1e-9)):
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
    """Both tables for a terminal."""
    lines = ["mean of the networks' softmax scores; gain: over the best of them, on the same images"]
    rows = [
        (
            row["networks"], row["policy"], f"{row['top1']:.2f}", f"{row['top1_low']:.2f}..{row['top1_high']:.2f}",
            row["best_member"], f"{row['gain']:+.2f}", f"{row['gain_low']:+.2f}..{row['gain_high']:+.2f}",
            f"{row['p_holm']:.2g}", f"{row['forwards']:.2f}", _number(row["gmacs"]), _number(row["images_per_sec"]),
        )
        for row in frame.to_dict("records")
    ]  # fmt: skip
    heads = ("networks", "policy", "top-1", "95 %", "best", "gain", "all together", "p", "forwards", *COSTS)
    lines += _shortened([heads, *rows])
    lines.append(
        "p: exact McNemar test, corrected by Holm's method; images/s: computed from the networks' own rates as"
    )
    lines.append("1 / (1/A + 1/B + ...), not measured; GMACs: multiply-adds of a crop times forward passes")
    lines += [f"{cost}: not known: {why}" for cost, why in field.why_no_cost.items()]
    if beside.empty:
        return [*lines, "", "beside single networks at equal cost: nothing, for no cost is known of both"]
    lines += ["", "beside the best single network that costs no more, chosen on the other half of the images"]
    rows = [
        (
            row["networks"], row["policy"], row["cost"], _number(row["ensemble_cost"]), f"{row['ensemble_top1']:.2f}",
            row["single"], _number(row["single_cost"]), f"{row['single_top1']:.2f}", f"{row['difference']:+.2f}",
            f"{row['difference_low']:+.2f}..{row['difference_high']:+.2f}", row["better"],
        )
        for row in beside.to_dict("records")
    ]  # fmt: skip
    heads = (
        "networks", "policy", "cost", "", "top-1", "one network", "", "top-1", "difference", "all together", "better",
    )  # fmt: skip
    return [*lines, *_shortened([heads, *rows]), *_tally(beside)]


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


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    parser = command_parser("ensembles", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs on the same images")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the first run's folder")
    parser.add_argument(
        "--most",
        type=values.for_argparse(values.whole(2, 20)),
        default=MOST_NETWORKS,
        metavar="N",
        help=f"networks in an ensemble, at most (default: {MOST_NETWORKS})",
    )
    parser.add_argument(
        "--seed", type=values.for_argparse(values.seed_from_zero), default=0, help="of the halves (default: 0)"
    )
    args = parser.parse_args(argv)
    out = args.out or args.runs[0]
    try:
        field = of_runs(read(args.runs), args.most)
        frame, beside = table(field), equal_cost(field, args.seed)
        out.mkdir(parents=True, exist_ok=True)
        paths = [write_csv(out / "ensembles.csv", frame), write_csv(out / "ensembles_equal_cost.csv", beside)]
        drawn = make_figures(args.runs, out, only=["ensembles"])
    except (ValueError, OSError) as error:
        return failed(error)
    if field.networks[0][1].is_demo:
        print("DEMO DATA: says nothing about ImageNet")
    for line in printed(frame, beside, field):
        print(visible(line))
    for path in [*paths, *drawn.paths]:
        print(path)
    for name, reason in drawn.not_drawn.items():
        print(f"{name} not drawn: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
