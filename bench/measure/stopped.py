"""Early stopping scored from the accuracy pass: all views' outputs are known, so every rule costs nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.job import Job
from bench.predictions import BY_POLICY, NOT_KEPT, Predictions, of_policies
from models import thresholds
from models.stopping import (
    Certificate,
    Running,
    Stopped,
    calibrate,
    can_stop_exactly,
    exact,
    rule_of,
    second_half,
    square_root,
    stage_columns,
    stage_weights,
    stages_of,
    stop,
)
from models.thresholds import Threshold
from pipelines.crops import Policy
from pipelines.data.labels import valid

ONLY_SOFTMAX = "~exact needs scores between 0 and 1 that bound what other views can add: logits and features are not"
NEVER = "~exact can never stop here: at no stage do the views seen outweigh those to come"
# What stands in the file for a policy at a level that it does not have: no class, and numbers that cannot occur.
NOTHING: dict[str, Any] = {"top1": -1, "in_top5": False, "nll": -1.0, "margin": NOT_KEPT, "forwards": -1.0}


@dataclass(frozen=True)
class Outcome:
    """One stopped policy at one level; ``stopped`` None where it is absent, and ``note`` says why."""

    policy: Policy
    level: str
    stopped: Stopped | None
    halves: tuple[Certificate, ...] = ()
    threshold: float | None = None
    note: str | None = None

    @property
    def mean_views(self) -> float:
        """Views evaluated per image."""
        assert self.stopped is not None
        return float((self.stopped.stage + 1).mean())

    def fields(self) -> dict[str, Any]:
        """Those of bench.records.Accuracy that only stopped policies have."""
        assert self.stopped is not None
        lacking = [half.images_needed for half in self.halves if half.threshold is None]
        return {
            "agreement": float(self.stopped.agrees.mean()),
            "first_threshold": self.halves[0].threshold if self.halves else None,
            "second_threshold": self.halves[1].threshold if self.halves else None,
            "images_needed": None if not lacking or None in lacking else max(n for n in lacking if n is not None),
            "note": self.note,
        }


Rule = Callable[[Running], np.ndarray]
SIMPLE_RULES: dict[str, Rule] = {"exact": exact, "sqrt": square_root}


def stop_all(predictions: Predictions, job: Job) -> tuple[Predictions, list[Outcome]]:
    """The predictions of the job's policies, the stopped ones last, and what became of those at each level."""
    visible = of_policies(predictions, [policy.name for policy in job.plain])
    if not job.stopped or not len(predictions.rows):
        return visible, []
    second = second_half(job.data.names(predictions.rows), job.config.data.seed)
    shapes, costs = job.uncovered(predictions.rows), job.forwards(predictions.rows)
    outcomes: list[Outcome] = []
    columns: dict[str, list[np.ndarray]] = {name: [] for name in BY_POLICY if getattr(predictions, name) is not None}
    for policy in job.stopped:
        weight, cost = stage_weights(policy, shapes), costs[:, stage_columns(policy, job.views)]
        found = [_column(predictions, policy, level, weight, cost, second) for level in predictions.levels]
        outcomes += [outcome for outcome, _ in found]
        for name, parts in columns.items():
            parts.append(np.stack([column[name] for _, column in found]))
    together: dict[str, Any] = {
        name: np.concatenate([getattr(visible, name), np.stack(c, axis=1)], 1) for name, c in columns.items()
    }
    policies = [*visible.policies, *(policy.name for policy in job.stopped)]
    return replace(visible, policies=policies, **together), outcomes


def _column(
    predictions: Predictions, policy: Policy, level: str, weight: np.ndarray, cost: np.ndarray, second: np.ndarray
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """The outcome, and for each of BY_POLICY the stopped answers [b]."""
    i, names = predictions.levels.index(level), predictions.policies
    stages = [names.index(stage.prefix.name) for stage in stages_of(policy)]
    whole = names.index(policy.whole.name)
    assert predictions.margin is not None
    running = Running(
        predictions.top1[i, stages].T,
        predictions.margin[i, stages].T,
        weight,
        np.where(weight > 0, cost, 0.0),
        predictions.top1[i, whole],
    )
    outcome = _outcome(policy, level, running, second)
    images = np.arange(len(running))
    stored = {name: values for name in BY_POLICY if (values := getattr(predictions, name)) is not None}
    if outcome.stopped is None:
        empty = {name: np.full(len(images), NOTHING.get(name, -1), values.dtype) for name, values in stored.items()}
        return outcome, empty
    stage = outcome.stopped.stage
    # An image's last view of its own (adaptive policies) completes the whole policy.
    complete = np.cumsum(weight, axis=1)[images, stage] == weight.sum(axis=1)
    chosen = np.where(complete, whole, np.array(stages)[stage])
    column = {name: values[i, chosen, images] for name, values in stored.items()}
    return outcome, column | {"forwards": outcome.stopped.forwards.astype(np.float32)}


def _outcome(policy: Policy, level: str, running: Running, second: np.ndarray) -> Outcome:
    rule = rule_of(policy)
    if rule.kind == "exact" and level != "softmax":
        return Outcome(policy, level, None, note=ONLY_SOFTMAX)
    if rule.tolerance is not None:
        done = calibrate(running, second, rule.tolerance, level)
        return Outcome(policy, level, done.stopped, done.halves, done.threshold, done.fallback)
    never = rule.kind == "exact" and not can_stop_exactly(running.weight).any()
    stopped = stop(running, SIMPLE_RULES[rule.kind](running))
    return Outcome(policy, level, stopped, note=NEVER if never else None)


def write_thresholds(out: Path, job: Job, outcomes: list[Outcome], images: int) -> None:
    """Add the calibrated thresholds to the run's thresholds.json, for MultiCrop and predict."""
    spec, network = job.classifier.spec, job.classifier
    thresholds.add(
        out / thresholds.FILE_NAME,
        [
            Threshold(
                model=network.name,
                weight_hash=network.weight_hash,
                S=spec.S,
                K=spec.K,
                interpolation=spec.interpolation,
                crop_mode=spec.crop_mode,
                policy=one.policy.name,
                level=one.level,
                threshold=one.threshold,
                images=images,
                data=job.data.root.name,
                note=one.note,
                valid_labels=valid.words(network.valid_labels, network.num_classes),
            )
            for one in outcomes
            if one.halves
        ],
    )
