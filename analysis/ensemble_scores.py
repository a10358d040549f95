"""Every ensemble that runs allow: the softmax scores that they kept, averaged over networks, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np

from analysis.candidates import SAME_MACHINE, Candidate, candidates, require_same
from analysis.names import distinct_names
from analysis.runs import MissingData, NetworkRun, predictions
from bench.measure.scores import AT_ONCE, UNKNOWN, SavedScores, answers, path_beside
from bench.records import Incomparable, Run, Setting

LEVEL = "softmax"
MOST_NETWORKS = 4  # of an ensemble: FixRes averages as many
MOST_ENSEMBLES = 2000
GMACS, SPEED = COSTS = ("GMACs", "images/s")
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


def of_runs(runs: Sequence[Run], most: int | None = None) -> Field:
    """Every ensemble of 2 to ``most`` networks; None: to MOST_NETWORKS, or fewer where there are over MOST_ENSEMBLES.

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
    groups = _groups(members, most)
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


def _groups(members: dict[Place, Member], most: int | None) -> list[tuple[Place, ...]]:
    """Every 2 to ``most`` networks with each policy that all of them have. Raises MissingData for none."""
    policies = list(dict.fromkeys(policy for _, policy in members))
    own = {policy: [place for place in members if place[1] == policy] for policy in policies}
    if all(len(places) < 2 for places in own.values()):
        lacking = ", ".join(f"{policy}: {members[places[0]].single.network}" for policy, places in own.items())
        raise MissingData(
            f"needs scores of the same policy from two networks, and has {lacking}: run another network with the same "
            "--save-scores, or give its run too"
        )
    allowed = [size for size in range(2, MOST_NETWORKS + 1) if _count(own, size) <= MOST_ENSEMBLES]
    most = most or max(allowed, default=2)
    if (count := _count(own, most)) > MOST_ENSEMBLES:
        raise ValueError(
            f"{count:,} ensembles of up to {most} networks, and at most {MOST_ENSEMBLES:,} are compared: ask for fewer "
            "networks in each (`most`), or give fewer runs"
        )
    sizes = range(2, most + 1)
    return [group for size in sizes for policy in policies for group in combinations(own[policy], size)]


def _count(own: dict[str, list[Place]], most: int) -> int:
    """How many ensembles of up to ``most`` networks there are."""
    return sum(comb(len(places), size) for places in own.values() for size in range(2, most + 1))


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
