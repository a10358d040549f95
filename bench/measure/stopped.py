"""Early stopping scored from the accuracy pass: all views' outputs are known, so every rule costs nothing more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.job import Job
from bench.predictions import BY_POLICY, DEPLOYED, NOT_KEPT, Predictions, of_policies
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
    stop_at,
)
from models.thresholds import Threshold
from pipelines.crops import Policy
from pipelines.data.labels import valid

ONLY_SOFTMAX = "~exact needs scores between 0 and 1 that bound what other views can add: logits and features are not"
NEVER = "~exact can never stop here: at no stage do the views seen outweigh those to come"
# What stands in the file for a policy at a level that it does not have: no class, and numbers that cannot occur.
NOTHING: dict[str, Any] = {"top1": -1, "in_top5": False, "nll": -1.0, "margin": NOT_KEPT, "forwards": -1.0}
OF_RECIPE = "all images are stopped at the recipe's threshold; it is not calibrated again"


@dataclass(frozen=True)
class Outcome:
    """One stopped policy at one level; ``stopped`` None where it is absent, and ``note`` says why."""

    policy: Policy
    level: str
    stopped: Stopped | None
    halves: tuple[Certificate, ...] = ()
    threshold: float | None = None  # for other images
    note: str | None = None
    deployed: Stopped | None = None  # these images at that threshold

    @property
    def mean_views(self) -> float:
        """Views evaluated per image."""
        assert self.stopped is not None
        return float((self.stopped.stage + 1).mean())

    def fields(self) -> dict[str, Any]:
        """Those of bench.records.Accuracy that only stopped policies have, but for ``deployed_correct``."""
        assert self.stopped is not None
        lacking = [half.images_needed for half in self.halves if half.threshold is None]
        return {
            "agreement": float(self.stopped.agrees.mean()),
            "first_threshold": self.halves[0].threshold if self.halves else None,
            "second_threshold": self.halves[1].threshold if self.halves else None,
            "deployed_threshold": self.threshold,
            "deployed_agreement": float(self.deployed.agrees.mean()) if self.deployed else None,
            "deployed_forwards": float(self.deployed.forwards.mean()) if self.deployed else None,
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
    kept = [name for name in BY_POLICY if getattr(predictions, name) is not None]
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*kept, *DEPLOYED)}
    for policy in job.stopped:
        weight, cost = stage_weights(policy, shapes), costs[:, stage_columns(policy, job.views)]
        own = [_Views(predictions, policy, level, weight, cost) for level in predictions.levels]
        found = [_outcome(views, second, job.recipe_thresholds.get((policy.name, views.level))) for views in own]
        outcomes += found
        taken = [_columns(views, outcome, kept) for views, outcome in zip(own, found, strict=True)]
        for name, parts in columns.items():
            parts.append(np.stack([one[name] for one in taken]))
    together: dict[str, Any] = {
        name: np.concatenate([_of_plain(visible, name), np.stack(c, axis=1)], 1) for name, c in columns.items()
    }
    policies = [*visible.policies, *(policy.name for policy in job.stopped)]
    return replace(visible, policies=policies, **together), outcomes


def _of_plain(visible: Predictions, name: str) -> np.ndarray:
    """An array [l, p, b] of the policies that are not stopped."""
    if name in DEPLOYED:
        return np.full(visible.top1.shape, -1, np.int32 if name == "deployed_top1" else np.float32)
    values: np.ndarray = getattr(visible, name)
    return values


@dataclass(frozen=True, eq=False)
class _Views:
    """The stages of one stopped policy at one level. ``weight`` and ``cost`` float64 [b, t]."""

    predictions: Predictions
    policy: Policy
    level: str
    weight: np.ndarray
    cost: np.ndarray

    @property
    def stages(self) -> list[int]:
        """The stages' columns among the predictions' policies."""
        return [self.predictions.policies.index(stage.prefix.name) for stage in stages_of(self.policy)]

    @property
    def whole(self) -> int:
        return self.predictions.policies.index(self.policy.whole.name)

    def running(self) -> Running:
        i, stages, stored = self.predictions.levels.index(self.level), self.stages, self.predictions
        assert stored.margin is not None
        cost = np.where(self.weight > 0, self.cost, 0.0)
        return Running(
            stored.top1[i, stages].T, stored.margin[i, stages].T, self.weight, cost, stored.top1[i, self.whole]
        )

    def at(self, stage: np.ndarray, name: str) -> np.ndarray:
        """Of one of BY_POLICY's arrays the value of each image at its stage, [b] -> [b]."""
        images = np.arange(len(stage))
        # An image's last view of its own (adaptive policies) completes the whole policy.
        complete = np.cumsum(self.weight, axis=1)[images, stage] == self.weight.sum(axis=1)
        chosen = np.where(complete, self.whole, np.array(self.stages)[stage])
        values: np.ndarray = getattr(self.predictions, name)
        return values[self.predictions.levels.index(self.level), chosen, images]


def _columns(views: _Views, outcome: Outcome, kept: list[str]) -> dict[str, np.ndarray]:
    """For each of BY_POLICY that is ``kept`` and each of DEPLOYED the stopped answers [b]."""
    images = len(views.weight)
    column: dict[str, np.ndarray] = {}
    for name in kept:
        if outcome.stopped is None:
            column[name] = np.full(images, NOTHING.get(name, -1), getattr(views.predictions, name).dtype)
        else:
            column[name] = views.at(outcome.stopped.stage, name)
    if outcome.stopped is not None:
        column["forwards"] = outcome.stopped.forwards.astype(np.float32)
    if outcome.deployed is None:
        nothing = np.full(images, -1, np.float32)
        return column | {"deployed_top1": nothing.astype(np.int32)} | dict.fromkeys(DEPLOYED[1:], nothing)
    stage = outcome.deployed.stage
    return column | {
        "deployed_top1": views.at(stage, "top1"),
        "deployed_nll": views.at(stage, "nll"),
        "deployed_forwards": outcome.deployed.forwards.astype(np.float32),
    }


def _outcome(views: _Views, second: np.ndarray, given: float | None) -> Outcome:
    """``second`` bool [b]: the halves that calibrate each other; ``given``: a recipe's threshold, which is used as it
    is."""
    policy, level, running = views.policy, views.level, views.running()
    rule = rule_of(policy)
    if given is not None:
        stopped = stop_at(running, given)
        return Outcome(policy, level, stopped, threshold=given, note=OF_RECIPE, deployed=stopped)
    if rule.kind == "exact" and level != "softmax":
        return Outcome(policy, level, None, note=ONLY_SOFTMAX)
    if rule.tolerance is not None:
        done = calibrate(running, second, rule.tolerance, level)
        deployed = None if done.threshold is None else stop_at(running, done.threshold)
        return Outcome(policy, level, done.stopped, done.halves, done.threshold, done.fallback, deployed)
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
            if one.halves or one.threshold is not None
        ],
    )
