"""Softmax scores of every image, kept for ensembles (``save_scores``): the files scores-*.npz. No torch.

A file holds float32 numbers: 50,000 images x 1,000 classes x 4 bytes are 200 MB for each policy.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.cases import score_policies
from bench.config import MeasureConfig
from bench.errors import UserError
from bench.predictions import Predictions, check_array
from bench.records import PARTIAL_RESULTS
from bench.resume import NetworkPlan
from pipelines.files import whole_file
from pipelines.schemas import DamagedFile, read_npz

log = logging.getLogger(__name__)
UNKNOWN = 0  # for a CRC-32: the image's bytes were not identified
SUM_TOLERANCE = 1e-3  # float32 scores of 20,000 classes sum to 1 within less
AT_ONCE = 4096  # images whose scores are looked at together
# Array -> kind of its type, and its axes: s, b and n as many as policies, images and classes.
ARRAYS = {
    "names": ("U", "b"),
    "labels": ("i", "b"),
    "content_crc32": ("u", "b"),
    "policies": ("U", "s"),
    "scores": ("f", "sbn"),
}


@dataclass(frozen=True, slots=True, eq=False)
class SavedScores:
    """One network's softmax scores of some policies; of no policy, there is no file."""

    names: np.ndarray  # str [b]: the scored images
    labels: np.ndarray  # int64 [b], -1 = none
    content_crc32: np.ndarray  # uint64 [b]: of the images' bytes, UNKNOWN where these were not identified
    policies: list[str]
    scores: np.ndarray  # float32 [s, b, n]; NaN where the network gave NaN

    @classmethod
    def of(cls, predictions: Predictions, names: Sequence[str]) -> SavedScores:
        """Those of a pass that is complete."""
        count = len(predictions.rows)
        unknown = np.full(count, UNKNOWN, np.uint64)
        crc32 = unknown if predictions.facts is None else predictions.facts["content_crc32"]
        scores = np.zeros((0, count, 0)) if predictions.scores is None else predictions.scores
        return cls(np.array(names), predictions.labels, crc32, predictions.score_policies, scores)

    def save(self, predictions_path: Path) -> None:
        """As the file beside these predictions, whole or not at all; uncompressed, for such numbers hardly shrink."""
        if not self.policies:
            return
        with whole_file(path_beside(predictions_path)) as file:
            np.savez(
                file,
                names=self.names,
                labels=self.labels,
                content_crc32=self.content_crc32,
                policies=np.array(self.policies),
                scores=self.scores,
            )

    @classmethod
    def load(cls, path: Path) -> SavedScores:
        """Read ``save``'s file. Raises DamagedFile, naming the file and what is wrong, and FileNotFoundError."""
        stored = read_npz(path, only=tuple(ARRAYS))
        sides: dict[str, int] = {}
        for name, (kind, axes) in ARRAYS.items():
            check_array(path, name, stored[name], kind, axes, sides)
        kept = cls(**stored | {"policies": stored["policies"].tolist()})  # type: ignore[arg-type]
        if len(set(kept.names.tolist())) < len(kept.names):
            raise DamagedFile(f"{path}: an image comes twice in `names`")
        if (place := _no_scores(kept.scores)) is not None:
            policy, image = kept.policies[place[0]], kept.names[place[1]]
            raise DamagedFile(f"{path}: the `scores` of {image} with {policy} are not shares that sum to 1")
        return kept

    def of_policy(self, policy: str) -> np.ndarray:
        """float32 [b, n]."""
        chosen: np.ndarray = self.scores[self.policies.index(policy)]
        return chosen


def path_beside(predictions_path: Path) -> Path:
    """``predictions-resnet18.npz`` -> ``scores-resnet18.npz``."""
    return predictions_path.with_name(f"scores-{predictions_path.name.removeprefix('predictions-')}")


def rounded(log_p: np.ndarray, top1: np.ndarray) -> np.ndarray:
    """Scores float32 [s, b, n] of log-probabilities float64 [s, b, n], of which ``answers`` are ``top1`` (int [s, b]).

    Rounding can make two scores equal that were not: then the answer's own is moved up by one float32 step.
    """
    scores = np.exp(log_p).astype(np.float32)
    moved = np.nonzero((answers(scores) != top1) & (top1 >= 0))
    scores[(*moved, top1[moved])] = np.nextafter(scores[moved].max(-1), np.float32(2))
    return scores


def answers(scores: np.ndarray) -> np.ndarray:
    """int64 [...]: the class of the highest score [..., n], the lowest class of equal ones; -1 where there is NaN."""
    return np.where(np.isnan(scores).any(-1), -1, scores.argmax(-1))


def _no_scores(scores: np.ndarray) -> tuple[int, int] | None:
    """(policy, image) of the first that are not softmax scores, nor NaN."""
    for begin in range(0, scores.shape[1], AT_ONCE):
        part = scores[:, begin : begin + AT_ONCE]
        sums = part.sum(-1, dtype=np.float64)
        wrong = (np.abs(sums - 1) > SUM_TOLERANCE) | (part < 0).any(-1)
        if (found := np.argwhere(wrong & ~np.isnan(part).any(-1))).size:
            policy, image = found[0].tolist()
            return policy, begin + image
    return None


def require_space(out: Path, plans: Sequence[NetworkPlan], measure: MeasureConfig) -> None:
    """Say how large the files will be. Raises UserError where the disk has less room: while a network is scored, its
    scores are there twice."""
    policies = len(score_policies(measure))
    sizes = [4 * policies * one.description["images"] * one.description["num_classes"] for one in plans]
    if not policies or not sizes:
        return
    written = [*out.glob("scores-*.npz"), *out.glob(f"{PARTIAL_RESULTS}/*/*.npz")]  # by the run that is continued
    free = shutil.disk_usage(out).free + sum(path.stat().st_size for path in written)
    needed = sum(sizes) + max(sizes)
    log.info(
        "softmax scores of %s for %s: %s in %s/scores-*.npz",
        f"{policies} {'policy' if policies == 1 else 'policies'}",
        f"{len(plans)} {'network' if len(plans) == 1 else 'networks'}",
        _size(sum(sizes)),
        out,
    )
    if needed > free:
        raise UserError(
            f"`save_scores`: the scores take up to {_size(needed)} while they are written, and the disk of {out} has "
            f"{_size(free)} left: name fewer policies, or another folder as `out`"
        )


def _size(size_bytes: int) -> str:
    """``1.2 MB``, ``200 MB``, ``5 GB``."""
    unit, name = (1e9, "GB") if size_bytes >= 1e9 else (1e6, "MB")
    return f"{size_bytes / unit:.3g} {name}"
