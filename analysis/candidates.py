"""What can be chosen: a network at one size with one policy at one level, its answers and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from analysis.evidence import common
from analysis.runs import MissingData, NetworkRun, predictions, scored_networks
from bench.records import END_TO_END, Accuracy, Incomparable, Latency, Run, Setting, Throughput
from pipelines.crops import parse_policy

T = TypeVar("T", Throughput, Latency)
# Settings of runs that may be chosen between: all but the images, their seed of crops, and the machine.
LEVELS = ("softmax", "logit", "feature")  # the one that stands for all where there is one view first
SAME_IMAGES = ("data_hash",)
SAME_MACHINE = ("machine_id", "processes")
AS_FAST = 0.95  # so much of another's images/s counts as fast as it: rates vary by as much


def costs_no_more(own: float, price: float, *, is_rate: bool) -> bool:
    """Whether one choice costs no more than another, whose cost is ``price``; ``is_rate``: both are images/s, of which
    more is better."""
    return own >= AS_FAST * price if is_rate else own <= price * (1 + 1e-9)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One choice. ``right`` bool [b]: which of the images that all candidates share it gets right."""

    run: Run
    record: Accuracy
    right: np.ndarray
    timed: Throughput | None  # end to end at this number of crops; None where it was not timed
    alone: Latency | None = None  # one image at a time with this number of crops; None where it was not timed

    @property
    def setting(self) -> Setting:
        return self.record.setting

    @property
    def name(self) -> str:
        """Network, crop size, policy, and the level unless it is softmax."""
        level = "" if self.record.level == "softmax" else f" ({self.record.level})"
        return f"{self.setting.model} {self.setting.K} of {self.setting.S} px, {self.record.policy}{level}"

    @property
    def forwards(self) -> float:
        """Forward passes per image, in pixels of one crop of the run's own size; their mean where views depend on the
        image."""
        if self.record.forwards is not None:
            return self.record.forwards
        return self.record.n_views if self.record.mean_views is None else self.record.mean_views

    @property
    def images_per_sec(self) -> float | None:
        """End to end, median of the rounds."""
        return None if self.timed is None else self.timed.rate

    @property
    def peak_mem_gb(self) -> float | None:
        return None if self.timed is None else self.timed.peak_mem_bytes / 1e9

    def latency_ms(self, percent: float) -> float | None:
        """That so many percent of the images do not exceed; None where it was not measured, or on too few images."""
        return None if self.alone is None else self.alone.percentile(percent)

    def top1(self, part: np.ndarray) -> float:
        """Percent of the images of a part, bool [b]."""
        return 100 * float(self.right[part].mean())


@dataclass(frozen=True)
class Candidates:
    """All that the runs allow, on the images that they share."""

    names: list[str]  # [b]: the images
    found: list[Candidate]

    @cached_property
    def right(self) -> np.ndarray:
        """bool [k, b]."""
        return np.array([one.right for one in self.found])


def candidates(runs: Sequence[Run], levels: Iterable[str] | None = None, *, one_machine: bool = True) -> Candidates:
    """Every network, size, policy and level that the runs scored; each once, the first where several runs have it.

    Raises MissingData where nothing was scored or predictions are missing, Incomparable, naming what differs, for runs
    on other images or, where they were timed and ``one_machine``, on other machines.
    """
    networks = scored_networks(runs)
    require_same([setting for _, setting in networks], SAME_IMAGES)
    if one_machine:
        require_same([setting for run, setting in networks if run.throughputs or run.latencies], SAME_MACHINE)
    columns: list[tuple[np.ndarray, np.ndarray]] = []
    made = []
    seen = set()
    for network in networks:
        stored = predictions(network)
        known = stored.labels >= 0
        own_names = np.array(stored.names)[known]
        for record in _records_of(network, levels):
            key = (record.setting.weight_hash, record.setting.S, record.setting.K, record.policy, record.level)
            if (key, record.setting.amp_dtype) not in seen:
                seen.add((key, record.setting.amp_dtype))
                made.append((network[0], record))
                columns.append((own_names, stored.of(record.policy, record.level)[known]))
    if not made:
        raise MissingData("needs a run that scored its images: run without --no-accuracy")
    shared = common(columns)
    shared_names = set.intersection(*_name_sets(columns))
    kept = [name for name in columns[0][0].tolist() if name in shared_names]
    found = [
        Candidate(run, record, right, timed_end_to_end(run, record), timed_alone(run, record))
        for (run, record), right in zip(made, shared, strict=True)
    ]
    return Candidates(kept, found)


def _name_sets(columns: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[set[str]]:
    distinct = {id(names): names for names, _ in columns}
    return [set(names.tolist()) for names in distinct.values()]


def _records_of(network: NetworkRun, levels: Iterable[str] | None) -> list[Accuracy]:
    run, setting = network
    wanted = None if levels is None else set(levels)
    own = [r for r in run.accuracies if r.setting == setting and (wanted is None or r.level in wanted)]
    # One view has nothing to average: its levels are one choice.
    levels_of_one = [level for level in LEVELS if any(r.level == level for r in own)]
    return [r for r in own if r.n_views > 1 or r.level == levels_of_one[0]]


def timed_end_to_end(run: Run, record: Accuracy) -> Throughput | None:
    """End to end at the policy's number of crops, or of a dense or stopped policy itself; crops of other sizes are not
    timed."""
    return _of_policy([t for t in run.throughputs if t.stage == END_TO_END], record, lambda t: t.policy is None)


def timed_alone(run: Run, record: Accuracy) -> Latency | None:
    """One image at a time, as ``timed_end_to_end``."""
    return _of_policy(run.latencies, record, lambda one: one.crops is not None)


def _of_policy(timings: Sequence[T], record: Accuracy, of_crops: Callable[[T], bool]) -> T | None:
    """The one of this policy; ``of_crops``: whether a timing stands for all policies of its number of crops."""
    policy = parse_policy(record.policy)
    own = [] if policy.sizes else [one for one in timings if one.setting == record.setting]
    if policy.dense or policy.suffix:
        return next((one for one in own if one.policy == record.policy), None)
    return next((one for one in own if of_crops(one) and one.crops == record.n_views), None)


def require_same(settings: Sequence[Setting], fields: Iterable[str]) -> None:
    """Raise Incomparable, naming the first field in which two settings differ."""
    for field in fields:
        values = {getattr(setting, field): setting for setting in settings}
        if len(values) > 1:
            one, other = list(values.values())[:2]
            raise Incomparable(
                f"no choice between runs whose {field} differs: {getattr(one, field)!r} ({one.model}) and "
                f"{getattr(other, field)!r} ({other.model}); measure both on the same images and machine"
            )


@dataclass(frozen=True, slots=True)
class Metric:
    """What a target may speak of. ``of``: its value, None where it was not measured; ``needs``: the options of a run
    that measure it."""

    of: Callable[[Candidate], float | None]
    high: bool  # whether more of it is wanted
    needs: str


METRICS: dict[str, Metric] = {
    "images_per_sec": Metric(lambda one: one.images_per_sec, True, "--crops"),
    "latency_p50_ms": Metric(lambda one: one.latency_ms(50), False, "--crops, --latency-queries 2 or more"),
    "latency_p99_ms": Metric(lambda one: one.latency_ms(99), False, "--crops, --latency-queries 100 or more"),
    "forwards": Metric(lambda one: one.forwards, False, "--policies"),
    "peak_mem_gb": Metric(lambda one: one.peak_mem_gb, False, "--crops"),
}
