"""Views and policies -> scores of each image: the core of the accuracy pass, whatever the images come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bench.measure.scores import rounded
from bench.predictions import NOT_KEPT, Predictions, check_complete, joined
from models.averaging import LEVELS, Scores, log_probabilities, margins, score
from models.label_sets import nearest_label
from models.predict import Network, Predicted, predict
from pipelines.batch import Backend, CropBatch
from pipelines.crops import Policy, Views, used_views


@dataclass(frozen=True)
class Scoring:
    """What is scored against what.

    ``labels``: int64, of the whole table, -1 = none. ``uncovered``: rows [b] -> int64 [b, 2], for policies that depend
    on the images' sizes (``Planner.uncovered``). ``forwards``: rows [b] -> float [b, v], what each view costs
    (``Planner.forwards``). ``stages``: names of the policies whose margins are kept, for early
    stopping. ``label_sets``: a second set of labels, int64 [rows of the table, m]
    (``pipelines.data.real_labels.RealLabels.sets``). ``score_policies``: names of the policies whose softmax scores are
    kept.
    """

    labels: np.ndarray
    views: Views
    policies: Sequence[Policy]
    uncovered: Callable[[np.ndarray], np.ndarray]
    forwards: Callable[[np.ndarray], np.ndarray]
    stages: frozenset[str] = frozenset()
    label_sets: np.ndarray | None = None
    score_policies: tuple[str, ...] = ()

    @property
    def score_columns(self) -> list[int]:
        """Where these are among ``policies``."""
        names = [policy.name for policy in self.policies]
        return [names.index(name) for name in self.score_policies]


def evaluate(
    backend: Backend,
    network: Network,
    rows: np.ndarray,
    scoring: Scoring,
    progress: Callable[[int], None] = lambda images: None,
) -> Predictions:
    """Score ``rows``; ``progress`` is told the images done.

    Raises RuntimeError when images were lost or came twice: every row is scored or failed, exactly once.
    """
    parts = [no_predictions(network, scoring)]
    for part in scored(backend.batches(rows), network, scoring):
        parts.append(part)
        progress(len(part))
    predictions = joined(parts)
    check_complete(rows, predictions)
    return predictions


def scored(batches: Iterable[CropBatch], network: Network, scoring: Scoring) -> Iterator[Predictions]:
    """The predictions of each batch of images, in order."""
    empty = no_predictions(network, scoring)
    for predicted in predict(batches, network, scoring.views):
        if predicted.outputs is None or not len(predicted.rows):
            yield replace(empty, failed=predicted.failed)
        else:
            yield _scored_batch(predicted, network, scoring, empty)


def _scored_batch(predicted: Predicted, network: Network, scoring: Scoring, empty: Predictions) -> Predictions:
    assert predicted.outputs is not None
    rows, shapes = predicted.rows, scoring.uncovered(predicted.rows)
    own: list[Scores] = []
    nearest: list[np.ndarray] = []
    real: list[Scores] = []
    margin = np.full((len(empty.levels), len(scoring.policies), len(rows)), NOT_KEPT)
    stages = [p for p, policy in enumerate(scoring.policies) if policy.name in scoring.stages]
    kept, scores = scoring.score_columns, None
    for i, level in enumerate(empty.levels):
        log_p = log_probabilities(level, predicted.outputs, scoring.views, scoring.policies, network.head, shapes)
        assert log_p is not None
        own.append(score(log_p, torch.from_numpy(scoring.labels[rows])))
        if stages:
            margin[i, stages] = margins(log_p[stages]).cpu().numpy()
        if kept and level == "softmax":
            scores = rounded(log_p[kept].cpu().numpy(), own[-1].top1[kept].numpy())
        if scoring.label_sets is not None:
            best = nearest_label(log_p, torch.from_numpy(scoring.label_sets[rows])).int().cpu()
            nearest.append(best.numpy())
            real.append(score(log_p, best.long()))
    view_top1 = predicted.outputs.logits.argmax(-1).int().cpu().numpy()
    return replace(
        empty,
        rows=rows,
        labels=scoring.labels[rows],
        top1=np.stack([s.top1.numpy() for s in own]).astype(np.int32),
        in_top5=np.stack([s.in_top5.numpy() for s in own]),
        nll=np.stack([s.nll.numpy() for s in own]).astype(np.float32),
        view_top1=np.where(scoring.views.needed(shapes), view_top1, -1).astype(np.int32),
        failed=predicted.failed,
        real_label=np.stack(nearest) if nearest else None,
        real_in_top5=np.stack([s.in_top5.numpy() for s in real]) if real else None,
        margin=margin,
        forwards=np.repeat(_forwards(scoring, rows, shapes)[None], len(empty.levels), axis=0),
        scores=scores,
    )


def _forwards(scoring: Scoring, rows: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """float32 [p, b]: what each policy costs, in forward passes."""
    each = scoring.forwards(rows)
    used = (used_views(policy, scoring.views, shapes) for policy in scoring.policies)
    return np.stack([(each * mask).sum(axis=1) for mask in used]).astype(np.float32)


def no_predictions(network: Network, scoring: Scoring) -> Predictions:
    """The predictions of no image."""
    levels = [level for level in LEVELS if level != "feature" or network.classifier.has_feature_level]
    shape = (len(levels), len(scoring.policies), 0)
    real = scoring.label_sets is not None
    kept = scoring.score_policies
    return Predictions(
        rows=np.zeros(0, np.int64),
        labels=np.zeros(0, np.int64),
        policies=[policy.name for policy in scoring.policies],
        levels=levels,
        top1=np.zeros(shape, np.int32),
        in_top5=np.zeros(shape, np.bool_),
        nll=np.zeros(shape, np.float32),
        view_top1=np.zeros((0, scoring.views.total), np.int32),
        failed=[],
        real_label=np.zeros(shape, np.int32) if real else None,
        real_in_top5=np.zeros(shape, np.bool_) if real else None,
        margin=np.zeros(shape, np.float64),
        forwards=np.zeros(shape, np.float32),
        score_policies=list(scoring.score_policies),
        scores=np.zeros((len(kept), 0, network.classifier.num_classes), np.float32) if kept else None,
    )
