"""Accuracy: every readable image exactly once, tail included; every policy at every level from one pass.

The views of the union of all policies are evaluated once. The baseline of "fixed" and "broken" is the centre crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from models.averaging import LEVELS, Scores, log_probabilities, score
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

    def save(self, path: Path, names: list[str]) -> None:
        """Compressed .npz, names beside the numbers; written whole or not at all."""
        part = path.with_suffix(".part")
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
) -> Predictions:
    """Score ``rows`` (with ``labels`` of the whole table, int64). ``progress`` is told the images done.

    ``left_out``: rows [b] -> int64 [b, 2], for policies that depend on the images' sizes (``Planner.left_out``).

    Raises RuntimeError when images were lost or came twice: every row is scored or failed, exactly once.
    """
    levels = [level for level in LEVELS if level != "feature" or network.classifier.has_feature_level]
    done: list[np.ndarray] = []
    scores: list[list[Scores]] = []  # [batch][level]
    views_said: list[np.ndarray] = []
    failed: list[Failure] = []
    for predicted in predict(backend.batches(rows), network, views):
        failed += predicted.failed
        if predicted.outputs is not None and len(predicted.rows):
            own = torch.from_numpy(labels[predicted.rows])
            shapes = left_out(predicted.rows)
            scores.append([])
            for level in levels:
                log_p = log_probabilities(level, predicted.outputs, views, policies, network.head, shapes)
                assert log_p is not None
                scores[-1].append(score(log_p, own))
            done.append(predicted.rows)
            said = predicted.outputs.logits.argmax(-1).int().cpu().numpy()
            views_said.append(np.where(views.needed(shapes), said, -1))
        progress(len(predicted.rows) + len(predicted.failed))
    scored = np.concatenate(done) if done else np.zeros(0, np.int64)
    _check_ledger(rows, scored, failed)

    def stack(field: str, dtype: type) -> np.ndarray:
        if not scores:
            return np.zeros((len(levels), len(policies), 0), dtype)
        return np.stack(
            [np.concatenate([getattr(batch[i], field).numpy() for batch in scores], axis=1) for i in range(len(levels))]
        )

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


def counts(predictions: Predictions, level: str, policy: str) -> Counts:
    """Count one policy at one level against the labels and against the centre crop at the same level."""
    i, p = predictions.levels.index(level), predictions.policies.index(policy)
    known = predictions.labels >= 0
    right = (predictions.top1[i] == predictions.labels)[:, known]
    baseline = right[predictions.policies.index(BASELINE.name)]
    nll = predictions.nll[i, p, known]
    return Counts(
        images=int(known.sum()),
        top1_correct=int(right[p].sum()),
        top5_correct=int(predictions.in_top5[i, p, known].sum()),
        nll_mean=float(nll.mean(dtype=np.float64)) if known.any() else None,
        fixed=int((right[p] & ~baseline).sum()),
        broken=int((~right[p] & baseline).sum()),
    )
