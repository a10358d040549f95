"""Margins above which a stopped policy such as ``CC+3DC~1%`` answers: thresholds.json of a run.

A run calibrates them on its images (``models.stopping.calibrate``); they hold for the same weights, sizes, policy and
level, and for images like those.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from models.classifier import Classifier
from pipelines.crops import Policy
from pipelines.data.labels import valid
from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, as_type, read_json, typed

FILE_NAME = "thresholds.json"


@dataclass(frozen=True, slots=True)
class Threshold:
    """Stop where the margin is above ``threshold``; None: the risk could not be certified, ``note`` says why.

    ``images``: how many it was calibrated on.
    """

    model: str
    weight_hash: str
    S: int
    K: int
    interpolation: str
    crop_mode: str
    policy: str
    level: str
    threshold: float | None
    images: int
    data: str
    note: str | None = None
    valid_labels: str | None = None  # outputs among which answers are (pipelines.data.labels.valid.words); None: all


MUST_MATCH = ("weight_hash", "valid_labels", "S", "K", "interpolation", "crop_mode")


def add(path: Path, found: Sequence[Threshold]) -> None:
    """Add to the file; of an earlier one for the same network, policy and level, the new one takes the place."""
    if not found:
        return
    kept = {_key(one): one for one in [*(read(path) if path.exists() else []), *found]}
    write_whole(path, json.dumps([asdict(one) for one in kept.values()], indent=2) + "\n")


def _key(one: Threshold) -> tuple[object, ...]:
    return one.model, one.policy, one.level, *(getattr(one, name) for name in MUST_MATCH)


def read(path: Path) -> list[Threshold]:
    """Those of a file, or of a run's folder. Raises ValueError where there are none."""
    file = path / FILE_NAME if path.is_dir() else path
    try:
        entries = as_type(read_json(file), list[Any], str(file))
        least = {"S": 1, "K": 1, "images": 0}
        return [typed(Threshold, one, f"{file}, entry {n}", least) for n, one in enumerate(entries, 1)]
    except DamagedFile as error:
        raise DamagedFile(
            f"`thresholds` {path} holds no thresholds that can be read ({error}): name a run's folder, of a run that "
            "scored the policy"
        ) from error


def find(path: Path | None, classifier: Classifier, policy: Policy, level: str) -> float:
    """The threshold of a policy with a risk (``~1%``). Raises ValueError, with the remedy, where there is none that
    matches the weights, sizes, policy and level, or where the risk could not be certified."""
    remedy = f"score it on images like yours (multicrop-bench run --policies '{policy}'), and give its folder"
    if path is None:
        raise ValueError(f"policy {policy} needs a calibrated threshold: {remedy} as `thresholds`")
    same = [one for one in read(path) if (one.policy, one.level) == (policy.name, level)]
    own = {
        "weight_hash": classifier.weight_hash,
        "valid_labels": valid.words(classifier.valid_labels, classifier.num_classes),
    }
    own |= {name: getattr(classifier.spec, name) for name in MUST_MATCH if name not in own}
    for one in same:
        if all(getattr(one, name) == value for name, value in own.items()):
            if one.threshold is None:
                raise ValueError(
                    f"policy {policy} at level {level}: {one.note}; use ~exact, or calibrate on more images"
                )
            return one.threshold
    if same:
        name = next(name for name, value in own.items() if getattr(same[0], name) != value)
        raise ValueError(
            f"`thresholds` {path}: the threshold of {policy} was calibrated with {name} {getattr(same[0], name)}, and "
            f"this network has {own[name]}: {remedy}"
        )
    raise ValueError(f"`thresholds` {path} has none for {policy} at level {level}: {remedy}")
