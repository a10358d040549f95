"""Accuracy: every readable image exactly once, tail included; every policy at every level from one pass.

The views of the union of all policies are evaluated once. The baseline of "fixed" and "broken" is the centre crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.records import ORIGINAL
from models.averaging import LEVELS, Scores, log_probabilities, score
from models.label_sets import nearest_label
from models.predict import Network, predict
from pipelines.batch import Backend, Failure
from pipelines.crops import Policy, Views, parse_policy

BASELINE = parse_policy("CC")


@dataclass(slots=True)
class Predictions:
    """What is kept of a pass, for each scored image; [l, p, b] = level, policy, image."""

    rows: np.ndarray  # int64 [b]: the data set's rows, in order
    labels: np.ndarray  # int64 [b], -1 = none
    policies: list[str]
    levels: list[str]
    top1: np.ndarray  # int32 [l, p, b]: the predicted class, -1 where the network gave NaN
    in_top5: np.ndarray  # bool [l, p, b]
    nll: np.ndarray  # float32 [l, p, b], nats
    view_top1: np.ndarray  # int32 [b, v]: what each view alone says; -1 where it was not evaluated
    failed: list[Failure]
    # With a second set of labels (pipelines.real_labels), against the one that the prediction holds for most probable:
    real_label: np.ndarray | None = None  # int32 [l, p, b], -1 = none
    real_in_top5: np.ndarray | None = None  # bool [l, p, b]

    def save(self, path: Path, names: list[str]) -> None:
        """Compressed .npz, names beside the numbers; written whole or not at all."""
        part = path.with_suffix(".part")
        real: dict[str, Any] = {"real_label": self.real_label, "real_in_top5": self.real_in_top5}
        with part.open("wb") as file:
            np.savez_compressed(
                file,
                names=np.array(names),
                labels=self.labels,
                policies=np.array(self.policies),
                levels=np.array(self.levels),
                top1=self.top1,
                in_top5=self.in_top5,
                nll=self.nll,
                view_top1=self.view_top1,
                failed_rows=np.array([f.row for f in self.failed], dtype=np.int64),
                **{name: values for name, values in real.items() if values is not None},
            )
        part.replace(path)


def evaluate(
    backend: Backend,
    network: Network,
    rows: np.ndarray,
    labels: np.ndarray,
    views: Views,
    policies: Sequence[Policy],
    left_out: Callable[[np.ndarray], np.ndarray],
    progress: Callable[[int], None] = lambda images: None,
    label_sets: np.ndarray | None = None,
) -> Predictions:
    """Score ``rows`` (with ``labels`` of the whole table, int64). ``progress`` is told the images done.

    ``label_sets``: a second set of labels, int64 [rows of the table, m] (``pipelines.real_labels.RealLabels.sets``).

    ``left_out``: rows [b] -> int64 [b, 2], for policies that depend on the images' sizes (``Planner.left_out``).

    Raises RuntimeError when images were lost or came twice: every row is scored or failed, exactly once.
    """
    levels = [level for level in LEVELS if level != "feature" or network.classifier.has_feature_level]
    done: list[np.ndarray] = []
    scores: list[list[Scores]] = []  # [batch][level]
    nearest: list[list[torch.Tensor]] = []  # [batch][level]: real_label; empty without label_sets
    real_scores: list[list[Scores]] = []
    views_said: list[np.ndarray] = []
    failed: list[Failure] = []
    for predicted in predict(backend.batches(rows), network, views):
        failed += predicted.failed
        if predicted.outputs is not None and len(predicted.rows):
            own = torch.from_numpy(labels[predicted.rows])
            shapes = left_out(predicted.rows)
            scores.append([])
            nearest.append([])
            real_scores.append([])
            for level in levels:
                log_p = log_probabilities(level, predicted.outputs, views, policies, network.head, shapes)
                assert log_p is not None
                scores[-1].append(score(log_p, own))
                if label_sets is not None:
                    nearest[-1].append(nearest_label(log_p, torch.from_numpy(label_sets[predicted.rows])).int().cpu())
                    real_scores[-1].append(score(log_p, nearest[-1][-1].long()))
            done.append(predicted.rows)
            said = predicted.outputs.logits.argmax(-1).int().cpu().numpy()
            views_said.append(np.where(views.needed(shapes), said, -1))
        progress(len(predicted.rows) + len(predicted.failed))
    scored = np.concatenate(done) if done else np.zeros(0, np.int64)
    _check_ledger(rows, scored, failed)

    def joined(batches: list[list[torch.Tensor]], dtype: type) -> np.ndarray:
        if not batches:
            return np.zeros((len(levels), len(policies), 0), dtype)
        return np.stack([np.concatenate([batch[i].numpy() for batch in batches], axis=1) for i in range(len(levels))])

    def stack(field: str, dtype: type, batches: list[list[Scores]] = scores) -> np.ndarray:
        return joined([[getattr(one, field) for one in batch] for batch in batches], dtype)

    return Predictions(
        rows=scored,
        labels=labels[scored],
        policies=[policy.name for policy in policies],
        levels=levels,
        top1=stack("top1", np.int32),
        in_top5=stack("in_top5", np.bool_),
        nll=stack("nll", np.float32),
        view_top1=np.concatenate(views_said) if views_said else np.zeros((0, views.total), np.int32),
        failed=failed,
        real_label=None if label_sets is None else joined(nearest, np.int32),
        real_in_top5=None if label_sets is None else stack("in_top5", np.bool_, real_scores),
    )


def _check_ledger(rows: np.ndarray, scored: np.ndarray, failed: list[Failure]) -> None:
    seen = np.sort(np.concatenate([scored, np.array([f.row for f in failed], dtype=np.int64)]))
    if not np.array_equal(seen, np.sort(rows)):
        raise RuntimeError(
            f"of {len(rows)} images, {len(scored)} were scored and {len(failed)} failed, and these are not the same "
            "images once each: the backend lost or repeated some. This is a bug, and no result is written"
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """One policy at one level. Shares and intervals are computed on reading."""

    images: int
    top1_correct: int
    top5_correct: int
    nll_mean: float | None  # nats per image; None without images
    fixed: int  # images that the centre crop got wrong and the policy right
    broken: int  # the other way round


def counts(predictions: Predictions, level: str, policy: str, labels: str = ORIGINAL) -> Counts:
    """Count one policy at one level against one of the sets of labels, and against the centre crop at the same level.

    ``labels``: one of bench.records.LABELS. Several labels an image have no one likelihood: ``nll_mean`` is None.
    """
    i, p = predictions.levels.index(level), predictions.policies.index(policy)
    if labels == ORIGINAL:
        truth, in_top5 = predictions.labels, predictions.in_top5
    else:
        assert predictions.real_label is not None and predictions.real_in_top5 is not None
        truth, in_top5 = predictions.real_label[i], predictions.real_in_top5
    known = (np.atleast_2d(truth) >= 0).all(0)  # whether an image has a label is the same for all policies
    right = (predictions.top1[i] == truth)[:, known]
    baseline = right[predictions.policies.index(BASELINE.name)]
    nll = predictions.nll[i, p, known]
    mean = float(nll.mean(dtype=np.float64)) if labels == ORIGINAL and known.any() else None
    return Counts(
        images=int(known.sum()),
        top1_correct=int(right[p].sum()),
        top5_correct=int(in_top5[i, p, known].sum()),
        nll_mean=mean if mean is not None and np.isfinite(mean) else None,
        fixed=int((right[p] & ~baseline).sum()),
        broken=int((~right[p] & baseline).sum()),
    )
