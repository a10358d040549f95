"""Each image's predictions: the file predictions-*.npz, and what is counted from it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.records import ORIGINAL
from pipelines.batch import Failure
from pipelines.data.identity import FACTS, UNKNOWN
from pipelines.files import whole_file
from pipelines.schemas import DamagedFile, read_npz

NOT_KEPT = -1.0  # a margin that no stopping rule asks for
BASELINE = "CC"  # what "newly correct" and "newly wrong" compare with

# How the arrays of ``Predictions`` lie: the axis of the images.
BY_IMAGE = {
    "rows": 0,
    "labels": 0,
    "top1": 2,
    "in_top5": 2,
    "nll": 2,
    "view_top1": 0,
    "real_label": 2,
    "real_in_top5": 2,
    "facts": 0,
    "margin": 2,
    "forwards": 2,
    "deployed_top1": 2,
    "deployed_nll": 2,
    "deployed_forwards": 2,
    "scores": 1,
}


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
    # With a second set of labels (pipelines.data.real_labels), against the one that the prediction holds for most
    # probable:
    real_label: np.ndarray | None = None  # int32 [l, p, b], -1 = none
    real_in_top5: np.ndarray | None = None  # bool [l, p, b]
    facts: np.ndarray | None = None  # pipelines.data.identity.FACTS [b]: which bytes were scored; None where unknown

    # Between the two most probable classes, of policies that are stages of a stopped one; else NOT_KEPT.
    margin: np.ndarray | None = None  # float64 [l, p, b]
    forwards: np.ndarray | None = None  # float32 [l, p, b]: forward passes (network pixels / K^2)
    # Of policies with a risk, such as 20RC~1%, whose ``top1`` is that of each half of the images at the threshold of
    # the other half: the same at the one threshold that thresholds.json and recipes hold. -1 for other policies.
    deployed_top1: np.ndarray | None = None  # int32 [l, p, b]
    deployed_nll: np.ndarray | None = None  # float32 [l, p, b]
    deployed_forwards: np.ndarray | None = None  # float32 [l, p, b]
    # While a network is scored: its softmax scores of these policies, which bench.measure.scores keeps in a file.
    score_policies: list[str] = field(default_factory=list)
    scores: np.ndarray | None = None  # float32 [s, b, n]

    def deployed(self, policy: str, level: str) -> np.ndarray:
        """int32 [b]: the classes that ``MultiCrop`` answers with this policy. They are ``top1`` unless each half of the
        images was scored at the threshold of the other half."""
        i, p = self.levels.index(level), self.policies.index(policy)
        answers = None if self.deployed_top1 is None else self.deployed_top1[i, p]
        return self.top1[i, p] if answers is None or (answers < 0).all() else answers

    def __len__(self) -> int:
        """Images scored or failed."""
        return len(self.rows) + len(self.failed)

    def seen(self) -> np.ndarray:
        """Their rows, int64, in no order."""
        return np.concatenate([self.rows, np.array([f.row for f in self.failed], dtype=np.int64)])

    def save(self, path: Path, names: list[str], *, compress: bool = True) -> None:
        """An .npz file, names beside the numbers; written whole or not at all."""
        arrays = {field: values for field in BY_IMAGE if (values := getattr(self, field)) is not None}
        if self.score_policies:
            arrays["score_policies"] = np.array(self.score_policies)
        savez = np.savez_compressed if compress else np.savez
        with whole_file(path) as file:
            savez(
                file,
                names=np.array(names),
                policies=np.array(self.policies),
                levels=np.array(self.levels),
                failed_rows=np.array([f.row for f in self.failed], dtype=np.int64),
                failed_reasons=np.array([f.reason for f in self.failed], dtype=np.str_),
                failed_stages=np.array([f.stage for f in self.failed], dtype=np.str_),
                failed_facts=np.array([f.facts or UNKNOWN for f in self.failed], dtype=FACTS),
                **arrays,
            )

    @classmethod
    def load(cls, path: Path) -> Predictions:
        """Read ``save``'s file. Raises DamagedFile when it is damaged, and FileNotFoundError."""
        return _read(path)[1]

    def only(self, rows: np.ndarray) -> Predictions:
        """Those of these rows."""
        chosen = np.flatnonzero(np.isin(self.rows, rows))
        taken: dict[str, Any] = {
            field: np.take(values, chosen, axis)
            for field, axis in BY_IMAGE.items()
            if (values := getattr(self, field)) is not None
        }
        wanted = set(rows.tolist())
        return replace(self, **taken, failed=[failure for failure in self.failed if failure.row in wanted])


BY_POLICY = ("top1", "in_top5", "nll", "real_label", "real_in_top5", "margin", "forwards")  # [l, p, b] each


def of_policies(predictions: Predictions, names: Sequence[str]) -> Predictions:
    """Those of these policies, in this order. Raises ValueError for one that is not there."""
    columns = [predictions.policies.index(name) for name in names]
    taken: dict[str, Any] = {
        field: values[:, columns] for field in BY_POLICY if (values := getattr(predictions, field)) is not None
    }
    return replace(predictions, policies=list(names), **taken)


# Array -> kind of its type (numpy.dtype.kind), and its axes: l, p and b as many as levels, policies and images, f as
# failed images, s as policies with scores; v and c any number.
ARRAYS = {
    "policies": ("U", "p"), "levels": ("U", "l"), "rows": ("i", "b"), "labels": ("i", "b"), "top1": ("i", "lpb"),
    "in_top5": ("b", "lpb"), "nll": ("f", "lpb"), "view_top1": ("i", "bv"), "failed_rows": ("i", "f"),
    "failed_reasons": ("U", "f"), "failed_stages": ("U", "f"), "names": ("U", "n"), "real_label": ("i", "lpb"),
    "real_in_top5": ("b", "lpb"), "facts": ("V", "b"), "margin": ("f", "lpb"), "forwards": ("f", "lpb"),
    "failed_facts": ("V", "f"), "deployed_top1": ("i", "lpb"), "deployed_nll": ("f", "lpb"),
    "deployed_forwards": ("f", "lpb"), "score_policies": ("U", "s"), "scores": ("f", "sbc"),
}  # fmt: skip
DEPLOYED = ("deployed_top1", "deployed_nll", "deployed_forwards")
OPTIONAL = (
    "failed_facts", "real_label", "real_in_top5", "facts", "margin", "forwards", *DEPLOYED, "score_policies", "scores",
)  # fmt: skip


OLD_FACT = "content_hash"  # a field of FACTS before it was a CRC-32


def _read(path: Path) -> tuple[list[str], Predictions]:
    """Names and predictions. Raises DamagedFile, naming the file and the array, and FileNotFoundError."""
    stored = read_npz(path)
    sides: dict[str, int] = {}
    for name, (kind, axes) in ARRAYS.items():
        if name in stored:
            check_array(path, name, stored[name], kind, axes, sides)
        elif name not in OPTIONAL:
            raise DamagedFile(f"{path} is not a file of predictions: it holds no array `{name}`")
    if sides["n"] not in (0, sides["b"]):  # a run's partial results are kept without names
        raise DamagedFile(f"{path} has {sides['n']} `names` for {sides['b']} images")
    if ("scores" in stored) != ("score_policies" in stored):
        raise DamagedFile(f"{path} is damaged: of `scores` and `score_policies` it holds only one")
    for name in ("facts", "failed_facts"):
        if name in stored and OLD_FACT in (stored[name].dtype.names or ()):
            del stored[name]  # by which a resumed run of that version would have known its images; no result needs them
        elif name in stored and stored[name].dtype != FACTS:
            raise DamagedFile(f"{path}: `{name}` is of type {stored[name].dtype}, and should be of {FACTS}")
    failed = zip(*(stored[f"failed_{what}"].tolist() for what in ("rows", "reasons", "stages")), strict=True)
    failed_facts = stored["failed_facts"].tolist() if "failed_facts" in stored else [()] * sides["f"]
    return stored["names"].tolist(), Predictions(
        **{field: stored.get(field) for field in BY_IMAGE},  # type: ignore[arg-type]
        policies=stored["policies"].tolist(),
        levels=stored["levels"].tolist(),
        score_policies=stored["score_policies"].tolist() if "score_policies" in stored else [],
        failed=[
            Failure(row, reason, stage, facts) for (row, reason, stage), facts in zip(failed, failed_facts, strict=True)
        ],
    )


def check_array(path: Path, name: str, array: np.ndarray, kind: str, axes: str, sides: dict[str, int]) -> None:
    """Raises DamagedFile for another type, or for other sides than the arrays before it have."""
    is_right = array.ndim == len(axes) and (array.dtype.kind == kind or array.size == 0)
    if is_right:
        is_right = all(sides.setdefault(axis, side) == side for axis, side in zip(axes, array.shape, strict=True))
    if not is_right:
        raise DamagedFile(f"{path}: the array `{name}` has type {array.dtype} and shape {array.shape}: it is damaged")


def read_facts(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows int64 [b] and FACTS [b] of the images that were scored or could not be decoded; None where the file does not
    hold them, or is damaged."""
    try:
        file = read_npz(path, only=("rows", "facts"), perhaps=("failed_rows", "failed_facts"))
    except (OSError, DamagedFile):
        return None
    rows, facts = file["rows"], file["facts"]
    if "failed_facts" in file and facts.dtype == file["failed_facts"].dtype:
        rows = np.concatenate([rows, file.get("failed_rows", rows[:0])])
        facts = np.concatenate([facts, file["failed_facts"]])
    return (rows, facts) if facts.dtype == FACTS and rows.shape == facts.shape else None


def read_named(path: Path) -> tuple[list[str], Predictions]:
    """The scored images' names [b] beside their predictions. Raises as ``Predictions.load``."""
    return _read(path)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """One after the other. Raises ValueError where there is none, or where they are not of the same policies."""
    kinds = [(part.policies, part.levels, part.score_policies) for part in parts]
    if not parts or any(kind != kinds[0] for kind in kinds):
        raise ValueError("predictions of different policies cannot be joined, nor none at all")
    together: dict[str, Any] = {
        field: np.concatenate([getattr(part, field) for part in parts], axis)
        for field, axis in BY_IMAGE.items()
        if getattr(parts[0], field) is not None
    }
    return replace(parts[0], **together, failed=[failure for part in parts for failure in part.failed])


def check_complete(rows: np.ndarray, predictions: Predictions) -> None:
    """Raises RuntimeError unless every row was scored or failed, exactly once."""
    if not np.array_equal(np.sort(predictions.seen()), np.sort(rows)):
        scored_rows, failed = predictions.rows, predictions.failed
        raise RuntimeError(
            f"of {len(rows)} images, {len(scored_rows)} were scored and {len(failed)} failed, and these are not the "
            "same images once each: the backend lost or repeated some. This is a bug, and no result is written"
        )


def counts(predictions: Predictions, level: str, policy: str, labels: str = ORIGINAL) -> dict[str, Any]:
    """Count one policy at one level against one of the sets of labels, and against the centre crop at the same level:
    the fields of bench.records.Accuracy that are counts of images, and ``nll_mean`` (nats).

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
    baseline = right[predictions.policies.index(BASELINE)]
    nll = predictions.nll[i, p, known]
    mean = float(nll.mean(dtype=np.float64)) if labels == ORIGINAL and known.any() else None
    return {
        "images": int(known.sum()),
        "top1_correct": int(right[p].sum()),
        "top5_correct": int(in_top5[i, p, known].sum()),
        "nll_mean": mean if mean is not None and np.isfinite(mean) else None,
        "newly_correct": int((right[p] & ~baseline).sum()),
        "newly_wrong": int((~right[p] & baseline).sum()),
    }


def deployed_correct(predictions: Predictions, level: str, policy: str) -> int:
    """How many images ``Predictions.deployed`` gets right."""
    known = predictions.labels >= 0
    return int((predictions.deployed(policy, level) == predictions.labels)[known].sum())


FEWEST_FOR_CONSTANT = 10  # images: fewer may well be of one class


def nan_note(predictions: Predictions, level: str, policy: str) -> str | None:
    """Of a network that gives NaN: on how many images."""
    i, p = predictions.levels.index(level), predictions.policies.index(policy)
    if broken := int((predictions.top1[i, p] == -1).sum()):
        return f"the network gave NaN on {broken} of {len(predictions.rows)} images, which count as wrong"
    return None


def odd_answers(predictions: Predictions) -> list[str]:
    """A line each for a network that gives NaN, and for one that gives the same class for every image."""
    if BASELINE not in predictions.policies or not len(predictions.rows):
        return []
    level = predictions.levels[-1]
    lines = []
    if note := nan_note(predictions, level, BASELINE):
        lines.append(f"{note}: half precision may overflow, or the weights hold NaN")
    answers = predictions.top1[-1, predictions.policies.index(BASELINE)]
    labels = predictions.labels[predictions.labels >= 0]
    is_constant = len(answers) >= FEWEST_FOR_CONSTANT and answers[0] >= 0 and (answers == answers[0]).all()
    if is_constant and len(np.unique(labels)) != 1:
        lines.append(
            f"the network answers class {answers[0]} for all {len(answers)} images: check weights, mean and std "
            "(of equal scores, the class with the lowest number is the answer)"
        )
    return lines


def mean_forwards(predictions: Predictions, level: str, policy: str) -> float:
    """Forward passes per image."""
    assert predictions.forwards is not None
    chosen = predictions.forwards[predictions.levels.index(level), predictions.policies.index(policy)]
    return float(chosen.mean(dtype=np.float64))


def deployed_forwards(predictions: Predictions, level: str, policy: str) -> float:
    """Forward passes per image with the answers of ``Predictions.deployed``."""
    if predictions.deployed_forwards is not None:
        chosen = predictions.deployed_forwards[predictions.levels.index(level), predictions.policies.index(policy)]
        if (chosen >= 0).all():
            return float(chosen.mean(dtype=np.float64))
    return mean_forwards(predictions, level, policy)
