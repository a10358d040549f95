"""A second set of labels, scored beside the original ones: several classes an image, or none.

    [[], [970, 795], ...]          ImageNet-ReaL's real.json, as in timm: item i is of ILSVRC2012_val_{i+1:08d}.JPEG
    {"cats/00.jpg": [3, 7], ...}   any other set: by the image's name, [] where it has no label

Classes are outputs of the model, from 0. An answer is right if it is among its image's labels; an image without any is
left out of this score, as in timm and in "Are we done with ImageNet?" (arXiv 2006.07159), whose labels they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.dataset import Dataset, DatasetError
from pipelines.data.labels.classes import SYNSET_LISTS
from pipelines.data.labels.devkit import DEVKIT_CLASSES, DEVKIT_NAME
from pipelines.data.labels.text import refuse_absurd
from pipelines.schemas import DamagedFile, parse_json

FORMS = "a list of lists of classes, as ImageNet's real.json, or an object {image name: [classes]}"


@dataclass(frozen=True, slots=True, eq=False)
class RealLabels:
    """The label sets of a data set's images."""

    sets: np.ndarray  # int64 [b, m], a row an image: its classes, ascending, then -1
    rule: str  # one sentence for the record
    file_hash: str  # of the file: equal means the same labels


def read(path: Path, data: Dataset, num_classes: int) -> RealLabels:
    """The label sets of ``data``'s images, for a model of ``num_classes`` outputs.

    Raises DatasetError, naming file, place and remedy, for a file of another form, a class that the model does not
    have, and an image that the file does not know.
    """
    refuse_absurd(path, "`real_labels`")
    try:
        stored = path.read_bytes()
        entries = parse_json(stored, str(path))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): check `real_labels`") from error
    except DamagedFile as error:
        reason = str(error.__cause__)
        raise DatasetError(f"{path} is not what `real_labels` takes ({reason}): give JSON, {FORMS}") from error
    names = data.table["name"].tolist()
    if isinstance(entries, list):
        chosen, spare = _by_number(path, entries, names, num_classes)
    elif isinstance(entries, dict):
        chosen, spare = _by_name(path, entries, data, names)
    else:
        raise DatasetError(f"{path} holds {entries!r:.40}: `real_labels` takes {FORMS}")
    sets = [_classes(path, name, labels, num_classes) for name, labels in zip(names, chosen, strict=True)]
    known = sum(map(bool, sets))
    if not known:
        raise DatasetError(f"{path} has no label for any of the {len(names)} images: leave `real_labels` out")
    unused = f"; {spare} of its entries are of no readable image here" if spare else ""
    each = sum(map(len, sets)) / known
    rule = f"{path.name}: {known} of {len(names)} images have labels, {each:.2f} each on average{unused}"
    return RealLabels(_padded(sets), rule, hashlib.sha256(stored).hexdigest()[:16])


def _by_number(path: Path, entries: list, names: Sequence[str], num_classes: int) -> tuple[list[Any], int]:
    """The entries of these images, and how many are left over."""
    if num_classes in SYNSET_LISTS and num_classes != DEVKIT_CLASSES:
        raise DatasetError(
            f"{path} is a list, as ImageNet-1k's real.json, and the model has the {num_classes} classes of "
            f"{SYNSET_LISTS[num_classes][0]}, whose numbers mean others: give a model of {DEVKIT_CLASSES} classes"
        )
    matches = [DEVKIT_NAME.fullmatch(name.rpartition("/")[2]) for name in names]
    strange = next((name for name, match in zip(names, matches, strict=True) if match is None), None)
    if strange is not None:
        raise DatasetError(
            f"{path} is a list, whose places are the numbers in ImageNet's names, and {strange!r} is not an "
            "ILSVRC2012_val_00000001.JPEG: give an object {image name: [classes]}"
        )
    numbers = [int(match[1]) for match in matches if match]
    if min(numbers) < 1 or max(numbers) > len(entries):
        raise DatasetError(
            f"{path} has {len(entries)} entries, and the images' names go from number {min(numbers)} to "
            f"{max(numbers)}: give the file that belongs to these images"
        )
    return [entries[number - 1] for number in numbers], len(entries) - len(set(numbers))


def _by_name(path: Path, entries: dict[str, Any], data: Dataset, names: Sequence[str]) -> tuple[list[Any], int]:
    missing = [name for name in names if name not in entries]
    if missing:
        raise DatasetError(
            f"{path} does not name {len(missing)} of {len(names)} images, such as {missing[0]!r} (it names "
            f"{next(iter(entries), 'none')!r}): add them by their path in {data.root}, with [] where there is no label"
        )
    return [entries[name] for name in names], len(entries.keys() - set(names) - set(data.unreadable["name"]))


def _classes(path: Path, name: str, labels: Any, num_classes: int) -> list[int]:
    """Ascending, each once. bool is an int to Python, and no class."""
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DatasetError(f"{path} has {labels!r:.40} for {name!r}: give a list of class numbers, [] for none")
    outside = [label for label in labels if not 0 <= label < num_classes]
    if outside:
        raise DatasetError(
            f"{path} has class {outside[0]} for {name!r}, and the model has the classes 0 to {num_classes - 1}: check "
            "that model and labels belong together"
        )
    return sorted(set(labels))


def _padded(sets: list[list[int]]) -> np.ndarray:
    out = np.full((len(sets), max(map(len, sets))), -1, dtype=np.int64)
    for row, labels in zip(out, sets, strict=True):
        row[: len(labels)] = labels
    return out
