"""What timm publishes of a network's centre crop, beside what a run measured.

A set-up with a mistake (mixed-up labels, another interpolation) shows in the centre crop before any crop is counted:
the measured top-1 then differs from the published one by more than chance.

The published figures are in ``published/timm``, in timm's own format; its files (``results-imagenet.csv`` of its
repository's folder ``results``, and ``-real`` and ``v2-matched-frequency``) can take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from analysis.runs import is_v2
from analysis.text import visible
from bench.records import LABELS, MODEL, ORIGINAL, REAL, Accuracy, Run, Setting
from pipelines.schemas import read_csv, read_npz

FOLDER = Path(__file__).parent / "published" / "timm"
COLUMNS = {  # of timm's, those that are used
    "model": str,
    "top1": float,
    "top5": float,
    "img_size": int,
    "crop_pct": float,
    "interpolation": str,
}
IMAGENET, IMAGENET_REAL, IMAGENET_V2 = FILES = (
    "results-imagenet.csv",
    "results-imagenet-real.csv",
    "results-imagenetv2-matched-frequency.csv",
)
SIGNIFICANT = 0.01  # p value below which measured and published top-1 disagree
RATIO_TOLERANCE = 0.006  # S is a whole number of pixels: K/S is not exactly the published ratio
# Of the classes that so many images of all 1,000 would show on average. A folder of ten classes shows far fewer.
EXPECTED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """A published centre crop: top-1 and top-5 in percent, and how the images were prepared."""

    model: str
    top1: float
    top5: float
    img_size: int
    crop_pct: float
    interpolation: str
    file: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A measured centre crop beside the published one. ``why_not``: why the two cannot be compared, if so."""

    record: Accuracy
    known: KnownAnswer
    why_not: str | None

    @property
    def p_value(self) -> float | None:
        """Of the exact two-sided binomial test of the measured count against the published share.

        The published images are the same ones or include them, so that the two vary together and the test finds a
        difference less often than its level says: small differences between decoders do not make it cry wolf.
        """
        if self.why_not:
            return None
        return float(binomtest(self.record.top1_correct, self.record.images, self.known.top1 / 100).pvalue)

    @property
    def disagrees(self) -> bool:
        return self.p_value is not None and self.p_value < SIGNIFICANT


def comparisons(run: Run) -> list[Comparison]:
    """Of each network and each set of labels of a run, its centre crop beside the published one, where there is one."""
    found = []
    classes: dict[Setting, tuple[int, int] | None] = {}
    for labels in LABELS:
        for record in run.accuracies_of(labels):
            known = known_answer(record.setting, labels) if is_centre_crop(record) else None
            if known is None:
                continue
            setting = record.setting
            if setting not in classes:
                classes[setting] = classes_seen(run.predictions_path(setting))
            found.append(Comparison(record, known, why_not_comparable(record, known, classes[setting])))
    return found


def is_centre_crop(record: Accuracy) -> bool:
    return record.policy == "CC" and record.level == "softmax"


def known_answer(setting: Setting, labels: str = ORIGINAL) -> KnownAnswer | None:
    """What is published of these weights on these images; None where nothing is.

    ImageNet-V2 is known by its folder's name (``analysis.runs.is_v2``).
    """
    if setting.is_demo or setting.weights != "pretrained":
        return None
    if is_v2(setting) and labels == REAL:
        return None
    file = IMAGENET_REAL if labels == REAL else IMAGENET_V2 if is_v2(setting) else IMAGENET
    return read_results(FOLDER / file).get(setting.model)


@cache
def read_results(path: Path) -> dict[str, KnownAnswer]:
    """Published figures by the network's name, of a CSV file with timm's columns; none where there is no file.

    Raises DamagedFile, naming the line and the column.
    """
    if not path.is_file():
        return {}
    frame = read_csv(path, COLUMNS)
    rows: list[dict[str, Any]] = frame[list(COLUMNS)].to_dict("records")  # type: ignore[assignment]
    return {row["model"]: KnownAnswer(**row, file=path.name) for row in rows}


def classes_seen(predictions: Path | None) -> tuple[int, int] | None:
    """How many classes the scored images have, and how many so many images of 1,000 equally frequent classes would
    have on average. None where the predictions are not there."""
    if predictions is None or not predictions.is_file():
        return None
    labels = read_npz(predictions, only=("labels",))[
        "labels"
    ]  # alone: the answers of many policies to all images are large
    labels = labels[labels >= 0]
    return len(np.unique(labels)), round(1000 * (1 - 0.999 ** len(labels)))


def why_not_comparable(record: Accuracy, known: KnownAnswer, classes: tuple[int, int] | None) -> str | None:
    """Why a difference would say nothing about the set-up, or None."""
    setting = record.setting
    ratio = setting.K / setting.S
    measured_and_published = {
        "crop size": (setting.K, known.img_size),
        "interpolation": (setting.interpolation, known.interpolation),
        "crop mode": (setting.crop_mode, "center"),
        "adaptation": (setting.adapt or "none", "none"),
        "choice of classes": (setting.valid_labels or "all", "all"),
    }
    for what, (mine, theirs) in measured_and_published.items():
        if mine != theirs:
            return f"the {what} is {mine}, and the published one {theirs}"
    if abs(ratio - known.crop_pct) > RATIO_TOLERANCE:
        return f"the crop ratio is {ratio:.3f}, and the published one {known.crop_pct:.3f}"
    if classes and classes[0] < EXPECTED_SHARE * classes[1]:
        return f"the images have {classes[0]} classes, and so many images of all 1,000 would have about {classes[1]}"
    return None


def lines(found: Sequence[Comparison]) -> list[str]:
    """For a person: each comparison, and what to check where the two disagree."""
    return [line for one in found for line in _lines(one)]


def _lines(one: Comparison) -> list[str]:
    from analysis.summary import top1_interval

    record, known = one.record, one.known
    low, high = top1_interval(record)
    size = f"{known.img_size} pixels, crop ratio {known.crop_pct:g}, {known.interpolation}"
    text = f"published centre crop: {known.top1:.2f} ({size}; timm's {known.file})"
    if one.why_not:
        return [f"{text}; not compared: {one.why_not}"]
    measured = f"measured {record.top1:.2f} ({low:.2f}..{high:.2f}), p = {one.p_value:.2g}"
    if not one.disagrees:
        return [f"{text}; {measured}: they agree"]
    return [
        f"{text}; {measured}",
        f"WARNING: {visible(record.setting.model)} differs from its published centre crop by more than chance. Check "
        "that the images are the published ones, that labels belong to them, and interpolation and weights, "
        "before any crop is counted",
    ]


def headline(found: Sequence[Comparison], setting: Setting) -> dict[str, Any]:
    """For the JSON line: the published top-1 of original labels, and whether the measured one agrees (None: not
    compared, or nothing is published)."""
    own = next((one for one in found if one.record.setting == setting and one.record.labels == ORIGINAL), None)
    if own is None:
        return {"published_top1": None, "agrees_with_published": None}
    return {"published_top1": own.known.top1, "agrees_with_published": None if own.why_not else not own.disagrees}


def timm_rows(run: Run) -> pd.DataFrame:
    """One row for each network and size, as timm's ``validate.py --results-file`` writes it, the best first: the centre
    crop's top-1 and top-5 (percent), parameters in millions, crop side, crop ratio and interpolation. Where the network
    was timed also, as timm's ``benchmark.py`` does, its crops per second alone, the milliseconds of a batch, batch
    size, crop side, and a crop's multiply-adds (billions) and activations (millions) by ``models.costs``, empty where
    they could not be counted."""
    rows = [_timm_row(record) | _timm_speed(run, record.setting) for record in run.accuracies if is_centre_crop(record)]
    timed = any(SPEED_COLUMNS[0] in row for row in rows)
    return pd.DataFrame(rows, columns=[*TIMM_COLUMNS, *(SPEED_COLUMNS if timed else [])]).sort_values(
        "top1", ascending=False, kind="stable", ignore_index=True
    )


TIMM_COLUMNS = [
    "model", "top1", "top1_err", "top5", "top5_err", "param_count", "img_size", "crop_pct", "interpolation",
]  # fmt: skip


SPEED_COLUMNS = [
    "infer_samples_per_sec", "infer_step_time", "infer_batch_size", "infer_img_size", "infer_gmacs", "infer_macts",
]  # fmt: skip


COUNTED = {"multiply_adds": 1e9, "activations": 1e6}  # of a crop, in run.json -> the unit of timm's column


def _timm_speed(run: Run, setting: Setting) -> dict[str, Any]:
    """SPEED_COLUMNS, or nothing where the network alone was not timed."""
    timed = [one for one in run.throughputs if (one.setting, one.stage, one.policy) == (setting, MODEL, None)]
    if not timed:
        return {}
    batch = timed[0].fitting_batch_size or setting.batch_size
    stored: dict[str, Any] = next((m for m in run.info.get("models", []) if m.get("setting") == asdict(setting)), {})
    counted = [None if (n := stored.get(name)) is None else round(n / unit, 2) for name, unit in COUNTED.items()]
    values = (round(timed[0].rate, 2), round(1000 * batch / timed[0].rate, 3), batch, setting.K, *counted)
    return dict(zip(SPEED_COLUMNS, values, strict=True))


def _timm_row(record: Accuracy) -> dict[str, Any]:
    setting = record.setting
    values = {"top1": record.top1, "top1_err": 100 - record.top1, "top5": record.top5, "top5_err": 100 - record.top5}
    return {
        "model": setting.model,
        **{name: round(value, 4) for name, value in values.items()},
        "param_count": round(setting.param_count / 1e6, 2),
        "img_size": setting.K,
        "crop_pct": round(setting.K / setting.S, 4),
        "interpolation": setting.interpolation,
    }
