"""``--valid-labels`` as in timm's validate.py: the outputs of a network among which its answer is looked for.

ImageNet-A, ImageNet-R and ObjectNet have images of some of ImageNet's classes only, and are scored among these. A file
holds one output a line, or one wnid.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.labels import label
from pipelines.data.labels.class_map import read_class_map
from pipelines.data.labels.classes import kind_of, some, synset_index
from pipelines.data.labels.files import labels_file_in
from pipelines.data.labels.folders import only_mapped
from pipelines.data.labels.text import read_lines

log = logging.getLogger(__name__)
OPTION = "`valid_labels`"


def read_valid_labels(path: Path, num_classes: int) -> tuple[int, ...]:
    """The outputs in the order of the file. One of timm's own files is found by its name: imagenet_a_indices.txt,
    imagenet_r_indices.txt.

    Raises DatasetError for a file of another form, an output that the network does not have, or one that comes twice.
    """
    lines = [line.strip() for line in read_lines(_found(path), OPTION)]
    kinds = {kind_of(line) for line in lines}
    if kinds not in ({"number"}, {"wnid"}):
        names = [n for n, line in enumerate(lines) if kind_of(line) == "name"]
        odd = names[0] if names else next(n for n, line in enumerate(lines) if kind_of(line) != kind_of(lines[0]))
        raise DatasetError(
            f"{path}, line {odd + 1}: {OPTION} takes one output a line, or one wnid a line, and not {lines[odd]!r}"
        )
    first = {line: number for number, line in reversed(list(enumerate(lines, 1)))}
    index = synset_index(num_classes) if kinds == {"wnid"} else {}
    if unknown := [line for line in lines if kinds == {"wnid"} and line not in index]:
        raise DatasetError(
            f"{path}: {some(unknown, lines=first)} are not wnids of a network of {num_classes} classes: check {OPTION}"
        )
    if beyond := [line for line in lines if not index and len(line) > 18]:
        raise DatasetError(f"{path}: {some(beyond, lines=first)} are not outputs: check {OPTION}")
    outputs = [index[line] if index else int(line) for line in lines]
    return checked_valid_labels(outputs, num_classes, str(path), are_lines=True)


def checked_valid_labels(
    outputs: Sequence[int], num_classes: int, shown: str = OPTION, *, are_lines: bool = False
) -> tuple[int, ...]:
    """The outputs, which are distinct and below ``num_classes``. ``are_lines``: each is a line of the file ``shown``.
    Raises DatasetError."""
    if not outputs:
        raise DatasetError(f"{shown} names no output: give at least one")
    first = {str(output): number for number, output in reversed(list(enumerate(outputs, 1)))} if are_lines else None
    if beyond := [str(output) for output in outputs if not 0 <= output < num_classes]:
        raise DatasetError(
            f"{shown} has {some(beyond, lines=first)}, and the network has the outputs 0 to {num_classes - 1}: give "
            f"the list that belongs to this network as {OPTION}"
        )
    if len(set(outputs)) < len(outputs):
        output, count = Counter(outputs).most_common(1)[0]
        places = [str(number) for number, other in enumerate(outputs, 1) if other == output]
        where = f"lines {' and '.join(places[:2])}" if are_lines else f"{count} times"
        raise DatasetError(
            f"{shown} names an output twice ({output}, {where}): leave one, for the place in the list may be a class's "
            "rank"
        )
    return tuple(int(output) for output in outputs)


def _found(path: Path) -> Path:
    """The file, or timm's of that name."""
    package = importlib.util.find_spec("timm")
    folders = (package.submodule_search_locations if package else None) or []
    places = [path, *(Path(folder, "data", "_info", path.name) for folder in folders if path.parent == Path())]
    return next((place for place in places if place.is_file()), path)


def words(valid: Sequence[int] | None, num_classes: int) -> str | None:
    """For the record: equal where the outputs are."""
    if valid is None:
        return None
    digest = hashlib.sha256(" ".join(map(str, sorted(valid))).encode()).hexdigest()[:8]
    return f"{len(valid)} of {num_classes} outputs ({digest})"


def label_among(scan: Scan, valid: Sequence[int], *, num_classes: int, **given: Any) -> Dataset:
    """``label`` for a network whose answers are among the outputs ``valid``; ``given``: its other arguments.

    Class folders that only have a rank (names; or numbers with ``label_order`` imagefolder) rank among ``valid``, as in
    timm. Images whose folder a class map does not name are left out, as in timm, and the rule says how many. Raises
    DatasetError as ``label`` does, and for images of other outputs.
    """
    class_map, left_out = given.get("class_map"), ""
    if class_map and not given.get("labels_file") and scan.folders:
        scan, left_out = only_mapped(scan, read_class_map(class_map, num_classes, scan.root))
    data = _labelled_among(scan, valid, num_classes, given)
    if not left_out:
        return data
    log.warning("%s: %s are left out", scan.root, left_out)
    return replace(data, label_rule=f"{data.label_rule}; left out: {left_out}")


def _labelled_among(scan: Scan, valid: Sequence[int], num_classes: int, given: dict[str, Any]) -> Dataset:
    if not _are_ranked(scan, given):
        data = label(scan, num_classes=num_classes, **given)
        outside = ~np.isin(data.table["label"], [-1, *valid])
        if outside.any():
            example = data.table["name"][outside].iloc[0]
            raise DatasetError(
                f"{int(outside.sum())} of {len(data)} images in {scan.root} ({example}, for one) belong to outputs "
                f"that are not among the {len(valid)} of {OPTION}: take them out, or give the list that belongs to "
                "these images; numbers that count the listed outputs from 0 need `label_order` imagefolder or "
                "`class_map` FILE"
            )
        return data
    data = label(scan, num_classes=len(valid), **given)
    data.table["label"] = np.array([*valid, -1], dtype=np.int64)[data.table["label"].to_numpy()]
    return data


def _are_ranked(scan: Scan, given: dict[str, Any]) -> bool:
    """Whether only the rank of a class folder says which class it is."""
    is_said = any(given.get(name) for name in ("labels_file", "class_map", "class_names")) or scan.is_demo
    if is_said or not scan.folders or labels_file_in(scan) or {"tar_label", "label_word"} & set(scan.table.columns):
        return False
    tops = {name.partition("/")[0] for name in scan.table["name"]}
    return given.get("label_order") == "imagefolder" or {kind_of(top) for top in tops} == {"name"}
