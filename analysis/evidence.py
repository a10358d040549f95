"""What runs measured on the same images, read back for paired tests: answers image by image, and rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from analysis.experiments import Experiments
from analysis.names import distinct_names
from analysis.runs import ImagePredictions, MissingData, predictions
from bench.records import Latency, Run, Setting, Throughput, without_speed

NO_EXPERIMENTS = Experiments()


@dataclass(frozen=True, slots=True)
class Answers:
    """One network's answers to the labelled images of a run."""

    names: np.ndarray  # str [b]
    labels: np.ndarray  # int64 [b]
    levels: tuple[str, ...]
    top1: dict[str, np.ndarray]  # policy -> int32 [l, b]: the predicted class
    # Against the second set of labels, where it was scored: policy -> int8 [l, b], 1 right, 0 wrong, -1 no such label.
    real: dict[str, np.ndarray] = field(default_factory=dict)

    def has(self, policy: str, level: str) -> bool:
        return policy in self.top1 and level in self.levels

    def predicted(self, policy: str, level: str) -> np.ndarray:
        """int32 [b]: the predicted class."""
        return self.top1[policy][self.levels.index(level)]

    def right(self, policy: str, level: str) -> np.ndarray:
        """bool [b]."""
        return self.predicted(policy, level) == self.labels


@dataclass(frozen=True, slots=True)
class Scored:
    """One network as it was fed, with its answers."""

    name: str
    setting: Setting
    answers: Answers
    reasons: dict[str, str]  # level -> why the network has none
    mean_views: dict[str, float]  # policy -> views per image, where these depend on the image
    train_res: int | None = None  # at which the network was trained, pixels; None where the run does not say

    @property
    def slack(self) -> float:
        return 1 - self.setting.K / self.setting.S


@dataclass(frozen=True, slots=True)
class Timed:
    """One network as it was run, with its rates, and the latencies of single images."""

    name: str
    setting: Setting
    throughputs: tuple[Throughput, ...]
    latencies: tuple[Latency, ...] = ()


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that was measured on the same images; experiments on the same kind of data; what is known of other data."""

    data: str
    is_demo: bool
    scored: tuple[Scored, ...]
    timed: tuple[Timed, ...]
    why_unscored: tuple[str, ...]  # one sentence for each network without answers
    why_untimed: tuple[str, ...]
    experiments: Experiments = field(default_factory=Experiments)
    others: tuple[Evidence, ...] = ()  # of the same runs, on other images


def answers_of(run: Run, setting: Setting) -> Answers:
    """A network's answers to the images that have a label. Raises MissingData when the run's folder lacks them."""
    found = predictions((run, setting))
    known = found.labels >= 0
    top1 = found.top1[:, :, known]
    return Answers(
        names=np.array(found.names)[known],
        labels=found.labels[known],
        levels=tuple(found.levels),
        top1={policy: top1[:, p] for p, policy in enumerate(found.policies)},
        real=_real(found, known),
    )


def _real(found: ImagePredictions, known: np.ndarray) -> dict[str, np.ndarray]:
    label = found.stored.real_label
    if label is None:
        return {}
    right = np.where(label < 0, -1, found.top1 == label).astype(np.int8)[:, :, known]
    return {policy: right[:, p] for p, policy in enumerate(found.policies)}


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one run has of one network."""

    run: str
    setting: Setting
    answers: Answers | None
    absent: dict[str, str]  # what -> reason
    throughputs: tuple[Throughput, ...]
    mean_views: dict[str, float]
    train_res: int | None
    latencies: tuple[Latency, ...] = ()


def _measured(run: Run) -> list[_Measured]:
    out = []
    for setting in dict.fromkeys(record.setting for record in run.records):
        absent = {r.what: r.reason for r in run.absents if r.setting == setting}
        answers = None
        if any(r.setting == setting for r in run.accuracies):
            try:
                answers = answers_of(run, setting)
            except MissingData:
                absent["accuracy"] = f"{run.folder.name} has no predictions-*.npz that fits its records: run it again"
        throughputs = tuple(r for r in run.throughputs if r.setting == setting)
        views = {r.policy: r.mean_views for r in run.accuracies if r.setting == setting and r.mean_views is not None}
        train_res = train_size(run, setting)
        latencies = tuple(r for r in run.latencies if r.setting == setting)
        out.append(_Measured(run.folder.name, setting, answers, absent, throughputs, views, train_res, latencies))
    return out


def train_size(run: Run, setting: Setting) -> int | None:
    """At which a network was trained, as ``--train-size`` or its weights' own configuration say (run.json)."""
    if given := run.info.get("config", {}).get("network", {}).get("train_size"):
        return int(given)
    same = (m for m in run.info.get("models", []) if (m.get("model"), m.get("K")) == (setting.model, setting.K))
    return next((m["train_K"] for m in same if m.get("train_K")), None)


def _merged(one: Answers, other: Answers) -> Answers | None:
    """The policies of both, or None where they are not of the same images and levels."""
    if one.levels != other.levels or not np.array_equal(one.names, other.names):
        return None
    return replace(one, top1={**other.top1, **one.top1}, real={**other.real, **one.real})


def _accuracy_key(setting: Setting) -> Setting:
    """Without what the answers do not depend on, so that two runs of one network are known as such."""
    return without_speed(setting)


def _scored(networks: Sequence[_Measured]) -> tuple[Scored, ...]:
    """One for each network, its runs put together: counted twice, it would weigh twice."""
    found: list[tuple[_Measured, Answers]] = []
    for network in networks:
        if network.answers is None:
            continue
        for i, (earlier, answers) in enumerate(found):
            if _accuracy_key(earlier.setting) == _accuracy_key(network.setting):
                both = _merged(answers, network.answers)
                if both is not None:
                    views = {**network.mean_views, **earlier.mean_views}
                    found[i] = (replace(earlier, mean_views=views), both)
                    break
        else:
            found.append((network, network.answers))
    names = distinct_names([(network.run, network.setting) for network, _ in found])
    return tuple(
        Scored(name, network.setting, answers, _level_reasons(network), network.mean_views, network.train_res)
        for name, (network, answers) in zip(names, found, strict=True)
    )


def _level_reasons(network: _Measured) -> dict[str, str]:
    prefix = "accuracy at level "
    return {what.removeprefix(prefix): why for what, why in network.absent.items() if what.startswith(prefix)}


def _timed(networks: Sequence[_Measured]) -> tuple[Timed, ...]:
    found = [network for network in networks if network.throughputs]
    names = distinct_names([(network.run, network.setting) for network in found])
    return tuple(
        Timed(name, network.setting, network.throughputs, network.latencies)
        for name, network in zip(names, found, strict=True)
    )


def _why_not(networks: Sequence[_Measured], what: str, is_there: Callable[[_Measured], bool]) -> tuple[str, ...]:
    reasons = [
        network.absent.get(what, f"the {what} pass of {network.run} did not finish")
        for network in networks
        if not is_there(network)
    ]
    return tuple(dict.fromkeys(reasons))


def evidence(runs: Sequence[Run], experiments: Experiments = NO_EXPERIMENTS) -> list[Evidence]:
    """The networks of all runs, those that saw the same images together.

    Experiments are judged with the first images of their kind: the demo's, or others. What fits no run is judged alone.
    """
    by_data: dict[tuple[str, bool], list[_Measured]] = {}
    for run in runs:
        for network in _measured(run):
            by_data.setdefault((network.setting.data_hash, network.setting.is_demo), []).append(network)
    found = [
        Evidence(
            networks[0].setting.data,
            is_demo,
            _scored(networks),
            _timed(networks),
            _why_not(networks, "accuracy", lambda network: network.answers is not None),
            _why_not(networks, "throughput", lambda network: bool(network.throughputs)),
            Experiments(experiments.tunings),
        )
        for (_, is_demo), networks in by_data.items()
    ]
    for is_demo in (True, False):
        _add_experiments(found, experiments, is_demo)
    return [replace(one, others=tuple(other for other in found if other is not one)) for one in found]


def _add_experiments(found: list[Evidence], experiments: Experiments, is_demo: bool) -> None:
    """To the first evidence of this kind, or as evidence of their own."""
    own = experiments.of(is_demo=is_demo)
    at = next((i for i, one in enumerate(found) if one.is_demo == is_demo), None)
    if at is not None:
        found[at] = replace(found[at], experiments=own)
    elif own.trained or own.activations:
        why = ("no run was given, only experiments",)
        found.append(Evidence("experiments", is_demo, (), (), why, why, own))


def common(columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Values [k, b] of the images that all columns (names [b], values [b]) have, in the order of the first's names."""
    first = columns[0][0]
    shared = np.ones(len(first), dtype=bool)
    for names, _ in columns[1:]:
        if not np.array_equal(names, first):
            shared &= np.isin(first, names)
    out = []
    for names, values in columns:
        if np.array_equal(names, first):
            out.append(values[shared])
        else:
            order = np.argsort(names, kind="stable")
            out.append(values[order[np.searchsorted(names, first[shared], sorter=order)]])
    return np.array(out)
