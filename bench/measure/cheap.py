"""Timing dense and stopped policies: the same stages, and whether the timed answers are those that were scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from bench.job import Job
from bench.predictions import Predictions
from bench.records import LOAD, MODEL
from models import thresholds
from models.averaging import log_probabilities
from models.early_stopping import EarlyStopping, Stopping
from models.predict import Network, predict
from models.stopping import rule_of
from pipelines.batch import CropBatch
from pipelines.crops import Policy, union

LEVEL = "softmax"  # at which the answers of timed passes are averaged
RESIDENT_BATCHES = 4  # of images, whose views the network alone is timed on
COMPARED_IMAGES = 20_000  # of the first timed answers


@dataclass(frozen=True, slots=True)
class Timing:
    """A policy to time; ``threshold``: of its margin, where it is stopped with a risk."""

    policy: Policy
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Answers:
    """``forwards``: passes per image; ``agreement``: the share of answers that are the scored ones."""

    forwards: float
    agreement: float | None


ScoredAnswers = dict[str, dict[int, int]]  # policy -> row -> class


def cheap_timings(job: Job, out: Path) -> tuple[list[Timing], dict[str, str]]:
    """What can be timed, and why other policies cannot."""
    found: list[Timing] = []
    absent = {policy.name: reason for policy, reason in job.absent_policies.items()}
    for policy in job.policies:
        if policy.sizes or not (policy.dense or policy.suffix):
            continue
        try:
            risk = policy.suffix and rule_of(policy).tolerance is not None
            found.append(Timing(policy, thresholds.find(out, job.classifier, policy, LEVEL) if risk else None))
        except ValueError as error:
            absent[policy.name] = str(error)
    return found, absent


def scored_answers(job: Job, out: Path) -> ScoredAnswers:
    """The accuracy pass's answers at the softmax level; none where nothing was scored, or in another process."""
    path = out / job.predictions_name
    if not job.processes.is_main or job.why_no_accuracy is not None or not path.exists():
        return {}
    scored = Predictions.load(path)
    top1 = scored.top1[scored.levels.index(LEVEL)]
    rows = scored.rows.tolist()
    return {
        name: dict(zip(rows, top1[p].tolist(), strict=True))
        for p, name in enumerate(scored.policies)
        if any(name == policy.name and (policy.dense or policy.suffix) for policy in job.policies)
    }


class CheapBench:
    """The pipeline of one policy, and its work with the network."""

    def __init__(self, job: Job, timing: Timing, rows: np.ndarray) -> None:
        self.network: Network = job.network
        self.timing, self.rows, self.sizes = timing, rows, job.data.sizes
        self.views = union([timing.policy])
        self.planner = job.planner(timing.policy)
        self.backend = job.make_backend(self.planner, job.load_config(max(1, self.views.cost(job.classifier.spec.K))))
        self.resident: list[CropBatch] = []
        self.images, self.forwards = 0, 0.0
        self.answers: list[tuple[np.ndarray, torch.Tensor]] = []  # rows, classes: of the first images

    def stream(self, stage: str) -> Iterator[int]:
        """An endless run of a stage's work; each item says how many images it was."""
        if stage == LOAD:
            return (len(batch.rows) for batch in self.backend.batches(self.rows))
        return self._answered(cycle(self._resident()) if stage == MODEL else self.backend.batches(self.rows))

    def _resident(self) -> list[CropBatch]:
        if not self.resident:
            source = self.backend.batches(self.rows)
            self.resident = [batch for batch, _ in zip(source, range(RESIDENT_BATCHES), strict=False)]
        return self.resident

    def _answered(self, batches: Iterator[CropBatch]) -> Iterator[int]:
        if self.timing.policy.suffix:
            stopping = Stopping(self.timing.policy, LEVEL, self.timing.threshold)
            for one in EarlyStopping(self.network, self.planner, stopping).run(batches, self.sizes):
                if one.log_p is not None:
                    self._keep(one.rows, one.log_p, one.forwards)
                yield len(one.rows)
            return
        for predicted in predict(batches, self.network, self.views):
            if predicted.outputs is not None:
                shapes = self.planner.uncovered(self.sizes(predicted.rows))
                log_p = log_probabilities(
                    LEVEL, predicted.outputs, self.views, [self.timing.policy], self.network.head, shapes
                )
                assert log_p is not None
                forwards = self.planner.forwards(self.sizes(predicted.rows)).sum(axis=1)
                self._keep(predicted.rows, log_p[0], forwards)
            yield len(predicted.rows)

    def _keep(self, rows: np.ndarray, log_p: torch.Tensor, forwards: np.ndarray) -> None:
        self.images, self.forwards = self.images + len(rows), self.forwards + float(forwards.sum())
        if sum(len(kept) for kept, _ in self.answers) < COMPARED_IMAGES:
            broken = log_p.isnan().any(-1)
            self.answers.append((rows, log_p.argmax(-1).masked_fill(broken, -1).to("cpu", non_blocking=True)))

    def summary(self, scored: ScoredAnswers) -> Answers | None:
        """Call when the clock has stopped."""
        if not self.images:
            return None
        known = scored.get(self.timing.policy.name, {})
        pairs = [
            (known[row], said)
            for rows, classes in self.answers
            for row, said in zip(rows.tolist(), classes.tolist(), strict=True)
            if row in known
        ]
        agreement = float(np.mean([one == other for one, other in pairs])) if pairs else None
        return Answers(self.forwards / self.images, agreement)

    def close(self) -> None:
        self.backend.close()
