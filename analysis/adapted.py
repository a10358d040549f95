"""Networks at test sizes: as they are, adapted or fine-tuned there, from runs and from experiments (FixRes).

``at_sizes`` lists what evidence holds as ``AtSize``: which images one network gets right with the centre crop at one
size. The functions below it pick the pairs that a claim is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence import Evidence, Scored
from analysis.experiments import TrainedSizes

LEVEL = "softmax"
PARAMETRIC = ("frechet", "gaussian")
TUNED = ("classifier", "classifier+bn")
BEST_OVER_TRAIN = 288 / 224  # FixRes Section 3.3: a ResNet-50 trained at 224 is best at 288


@dataclass(frozen=True, slots=True)
class AtSize:
    """One network at one test size. The first four fields say which network it was before it was adapted."""

    base: str  # the hash of its weights, or the experiment's name
    training: str  # train or fixed: the crops of train-low-test-high; "" for networks of runs
    family: str | None
    train_res: int | None
    test_res: int
    adaptation: str  # none, frechet, gaussian, classifier, classifier+bn
    augmentation: str  # of the fine-tuning: test, test2, train; "" without
    label_smoothing: float
    names: np.ndarray  # str [b]
    right: np.ndarray  # bool [b]
    scored: Scored | None = None  # the network of a run

    @property
    def words(self) -> str:
        """``trained at 224, tested at 288, classifier+bn (test)``."""
        trained = f"trained at {self.train_res}{' on fixed crops' if self.training == 'fixed' else ''}, "
        how = "" if self.adaptation == "none" else f", {self.adaptation}"
        how += f" ({self.augmentation})" if self.augmentation else ""
        how += f", label smoothing {self.label_smoothing:g}" if self.label_smoothing else ""
        who = f"{self.family} " if self.family else ""
        return f"{who}{trained if self.train_res else ''}tested at {self.test_res}{how}"

    @property
    def is_native(self) -> bool:
        """As it is, at the size at which it was trained."""
        return self.adaptation == "none" and self.test_res == self.train_res

    @property
    def is_above(self) -> bool:
        """Tested above its train size."""
        return self.train_res is not None and self.test_res > self.train_res


@dataclass(frozen=True, slots=True)
class Pair:
    """The claim says that ``one`` gets more images right than ``other``."""

    one: AtSize
    other: AtSize

    @property
    def words(self) -> str:
        return f"{self.one.words} against {self.other.words}"


def at_sizes(evidence: Evidence) -> list[AtSize]:
    """Every network and size, each once: of several crop ratios at one size the first."""
    found = [*_of_runs(evidence), *(one for trained in evidence.experiments.trained for one in _of_experiment(trained))]
    first: dict[tuple[object, ...], AtSize] = {}
    for one in found:
        key = (one.base, one.training, one.train_res, one.test_res, one.adaptation, one.augmentation)
        first.setdefault((*key, one.label_smoothing), one)
    return list(first.values())


def _of_runs(evidence: Evidence) -> Iterator[AtSize]:
    trained_at = {network.setting.weight_hash: network.train_res for network in evidence.scored if network.train_res}
    for network in evidence.scored:
        if not network.answers.has("CC", LEVEL):
            continue
        setting = network.setting
        tuning = evidence.experiments.tuning_of(setting.weight_hash)
        base = tuning.base_hash if tuning else setting.weight_hash
        train_res = (tuning.train_res if tuning else None) or trained_at.get(base)
        if tuning and (tuning.K, tuning.adapt) != (setting.K, setting.adapt):
            continue  # FixRes tests at the size of the fine-tuning, and adapted as it was
        yield AtSize(
            base=base, training="", family=setting.family, train_res=train_res, test_res=setting.K,
            adaptation="+".join(filter(None, (setting.adapt, tuning.layers if tuning else None))) or "none",
            augmentation=tuning.augmentation if tuning else "",
            label_smoothing=tuning.label_smoothing if tuning else 0.0, names=network.answers.names,
            right=network.answers.right("CC", LEVEL), scored=network,
        )  # fmt: skip


def _of_experiment(trained: TrainedSizes) -> Iterator[AtSize]:
    for one in trained.answers:
        yield AtSize(
            base=trained.folder, training=one.crop, family=trained.family, train_res=one.train_res,
            test_res=one.test_res, adaptation=one.layers, augmentation="" if one.layers == "none" else "test",
            label_smoothing=0.0, names=trained.names, right=one.right,
        )  # fmt: skip


# ---- groups and pairs


def networks(found: Iterable[AtSize]) -> list[list[AtSize]]:
    """The sizes of each network together: equal before adaptation."""
    groups: dict[tuple[object, ...], list[AtSize]] = {}
    for one in found:
        groups.setdefault((one.base, one.training, one.train_res), []).append(one)
    return list(groups.values())


def untuned(group: Sequence[AtSize]) -> list[AtSize]:
    return [one for one in group if one.adaptation == "none"]


def native(group: Sequence[AtSize]) -> AtSize | None:
    return next((one for one in group if one.is_native), None)


def best_recipe(group: Sequence[AtSize]) -> dict[int, AtSize]:
    """Test size -> the fine-tuned network nearest to the paper's recipe: BatchNorm too, test DA, no label smoothing."""
    tuned = [one for one in group if one.adaptation in TUNED]
    order = ("test", "test2", "train")
    tuned.sort(key=lambda one: (one.adaptation != "classifier+bn", order.index(one.augmentation), one.label_smoothing))
    found: dict[int, AtSize] = {}
    for one in tuned:
        found.setdefault(one.test_res, one)
    return found


def larger_than_train(found: Sequence[AtSize]) -> list[Pair]:
    """Each network at the size above its train size that is nearest to FixRes's 288 for 224, against its train size.

    The size is fixed before any accuracy is looked at (DESIGN rule 14).
    """
    pairs = []
    for group in networks(found):
        at_train = native(group)
        above = [one for one in untuned(group) if one.is_above]
        if at_train is not None and above:
            target = at_train.test_res * BEST_OVER_TRAIN
            pairs.append(Pair(min(above, key=lambda one: abs(math.log(one.test_res / target))), at_train))
    return pairs


def tuned_against_untuned(found: Sequence[AtSize]) -> list[Pair]:
    """At each size above the train size: fine-tuned against as it is."""
    pairs = []
    for group in networks(found):
        plain = {one.test_res: one for one in untuned(group)}
        tuned = best_recipe(group)
        pairs += [Pair(one, plain[K]) for K, one in sorted(tuned.items()) if one.is_above and K in plain]
    return pairs


def tuned_against_native(found: Sequence[AtSize], keep: Callable[[AtSize], bool] = lambda one: True) -> list[Pair]:
    """Fine-tuned at the size above the train size that is nearest to FixRes's 288 for 224, against the train size."""
    pairs = []
    for group in networks(one for one in found if keep(one)):
        at_train = native(group)
        above = [one for one in best_recipe(group).values() if one.is_above]
        if at_train is not None and above:
            target = at_train.test_res * BEST_OVER_TRAIN
            pairs.append(Pair(min(above, key=lambda one: abs(math.log(one.test_res / target))), at_train))
    return pairs


def lower_train_size(found: Sequence[AtSize], *, adapted: bool) -> list[Pair]:
    """For each size at which a network was trained: the next lower train size tested there, against it."""
    pairs = []
    plain = [one for one in found if one.training == "train"]
    for at_train in [one for one in plain if one.is_native]:
        wanted = "none" if not adapted else "tuned"
        lower = [
            one
            for one in plain
            if one.test_res == at_train.test_res
            and one.base == at_train.base
            and one.is_above
            and ("none" if one.adaptation == "none" else "tuned") == wanted
        ]
        if lower:
            pairs.append(Pair(max(lower, key=lambda one: one.train_res or 0), at_train))
    return pairs


def alike_but(found: Sequence[AtSize], field: str, one: object, other: object) -> list[Pair]:
    """Pairs of one network at one size that differ in this field alone, where they have these two values."""
    fields = ("test_res", "adaptation", "augmentation", "label_smoothing")
    pairs = []
    for group in networks(found):
        rest = {
            tuple(getattr(b, name) for name in fields if name != field): b for b in group if getattr(b, field) == other
        }
        for a in group:
            key = tuple(getattr(a, name) for name in fields if name != field)
            if getattr(a, field) == one and key in rest:
                pairs.append(Pair(a, rest[key]))
    return pairs


def adapted_against_plain(found: Sequence[AtSize], names: Sequence[str], *, below: bool | None = None) -> list[Pair]:
    """Parametric adaptation against as it is, at one size. ``below``: only below, or only above, the train size."""
    pairs = []
    for group in networks(found):
        plain = {one.test_res: one for one in untuned(group)}
        for one in group:
            away = one.test_res in plain and one.train_res not in (None, one.test_res)
            if one.adaptation in names and away and (below is None or below != one.is_above):
                pairs.append(Pair(one, plain[one.test_res]))
    return pairs


def tuned_against_parametric(found: Sequence[AtSize]) -> list[Pair]:
    """BatchNorm and classifier fine-tuned, against the parametric adaptations at the same size."""
    pairs = []
    for group in networks(found):
        tuned = {K: one for K, one in best_recipe(group).items() if one.adaptation == "classifier+bn"}
        pairs += [
            Pair(tuned[one.test_res], one) for one in group if one.adaptation in PARAMETRIC and one.test_res in tuned
        ]
    return pairs
