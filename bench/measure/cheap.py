"""Timing dense and stopped policies: the same stages, and whether the timed answers are those that were scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import torch

from bench.job import Job
from bench.predictions import Predictions, deployed_forwards
from bench.records import LOAD, MODEL
from models import thresholds
from models.early_stopping import answers
from models.predict import Network
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


@dataclass(frozen=True, slots=True)
class Scored:
    """A policy in the accuracy pass. ``classes``: of each row; ``forwards``: passes per image."""

    classes: dict[int, int]
    forwards: float


ScoredAnswers = dict[str, Scored]  # by policy


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
    """The accuracy pass's answers at the softmax level, at the thresholds that the timed passes use; none where nothing
    was scored, or in another process."""
    path = out / job.predictions_name
    if not job.processes.is_main or job.why_no_accuracy is not None or not path.exists():
        return {}
    scored = Predictions.load(path)
    rows = scored.rows.tolist()
    return {
        name: Scored(
            dict(zip(rows, scored.deployed(name, LEVEL).tolist(), strict=True)), deployed_forwards(scored, LEVEL, name)
        )
        for name in scored.policies
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
        self.kept: Iterator[int | float] | None = None  # the stream of a stopped policy

    def stream(self, stage: str) -> Iterator[int | float]:
        """An endless run of a stage's work; each item says how many images it was, of a stopped policy how many forward
        passes: answers come in order, and while the first image waits for its last crops, others are worked on.

        A stopped policy goes on in each round where it was in the round before: until its batches are full of images
        at every stage takes as long as a round."""
        if stage == LOAD:
            return (len(batch.rows) for batch in self.backend.batches(self.rows))
        if not self.timing.policy.suffix:
            return self._stream(stage)
        self.kept = self.kept or self._stream(stage)
        return self.kept

    def _stream(self, stage: str) -> Iterator[int | float]:
        return self._answered(cycle(self._resident()) if stage == MODEL else self.backend.batches(self.rows))

    def _resident(self) -> list[CropBatch]:
        if not self.resident:
            source = self.backend.batches(self.rows)
            self.resident = [batch for batch, _ in zip(source, range(RESIDENT_BATCHES), strict=False)]
        return self.resident

    def _answered(self, batches: Iterator[CropBatch]) -> Iterator[int | float]:
        policy, threshold = self.timing.policy, self.timing.threshold
        for one in answers(batches, self.network, self.planner, policy, LEVEL, self.sizes, threshold):
            if one.log_p is not None:
                self._keep(one.rows, one.log_p, one.forwards)
            yield one.work if policy.suffix else len(one.rows)

    def _keep(self, rows: np.ndarray, log_p: torch.Tensor, forwards: np.ndarray) -> None:
        self.images, self.forwards = self.images + len(rows), self.forwards + float(forwards.sum())
        if sum(len(kept) for kept, _ in self.answers) < COMPARED_IMAGES:
            broken = log_p.isnan().any(-1)
            self.answers.append((rows, log_p.argmax(-1).masked_fill(broken, -1).to("cpu", non_blocking=True)))

    def summary(self, scored: ScoredAnswers) -> Answers | None:
        """Call when the clock has stopped."""
        if not self.images:
            return None
        own = scored.get(self.timing.policy.name)
        known = own.classes if own else {}
        pairs = [
            (known[row], said)
            for rows, classes in self.answers
            for row, said in zip(rows.tolist(), classes.tolist(), strict=True)
            if row in known
        ]
        agreement = float(np.mean([one == other for one, other in pairs])) if pairs else None
        # Of a stopped policy the images that were answered in time are the easy ones: the scored mean is that of all.
        return Answers(own.forwards if own and self.timing.policy.suffix else self.forwards / self.images, agreement)

    def close(self) -> None:
        self.kept = None
        self.backend.close()
