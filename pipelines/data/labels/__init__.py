"""Which class each image belongs to, matched by meaning and never by luck.

    layout                                   label
    class folders by wnid  n01440764/...     the wnid's index in the model's own list (timm ships the synsets)
    numbered class folders 0/ ... 999/       the number (ImageNet-V2), unless something speaks against it
    other class folders                      the rank, only if the model has exactly as many classes
    a labels file                            by the image's name or line number; ImageNet's devkit as downloaded
    tar shards with .cls or .json members    the number in them, as in WebDataset
    images only                              none: throughput can be measured, accuracy cannot
    any of these with a class map            as the map says

What is ambiguous, or does not fit the model's classes, is refused: a wrong label costs a whole run, a refusal a minute.
Two traps that decide the rules: a set with ten of ImageNet's folders scored by rank against a model of 1000 classes is
wrong in every image; and a model of 200 classes may know Tiny ImageNet's wnids, ImageNet-A's or ImageNet-R's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.labels.class_map import read_class_map
from pipelines.data.labels.classes import LABEL_ORDERS, MAP_REMEDY, Classes, kind_of, match, some
from pipelines.data.labels.files import Labels, labels_file_in, labels_from_file
from pipelines.data.labels.folders import SPEED_ONLY, labels_from_folders


def label(
    scan: Scan,
    *,
    num_classes: int,
    labels_file: Path | None = None,
    class_map: Path | None = None,
    synsets_file: Path | None = None,
    label_order: str | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Match the scanned images with the classes of a model that has ``num_classes`` outputs.

    ``labels_file``: text (``name label`` lines; or one label a line, in the order of the sorted file names), CSV with
    a header, or ImageNet's devkit, unpacked or as downloaded. ``class_map``: as timm's ``--class-map``
    (``read_class_map``). ``synsets_file``: the devkit's wnids in its own order, when they do not lie beside its ground
    truth (``read_devkit_synsets``). ``label_order``: one of LABEL_ORDERS, where numbers in folder names are ambiguous.
    ``class_names``: what the model itself calls its outputs; class folders are matched with them, unless one of the
    others says otherwise.

    Raises DatasetError, with the reason and the remedy, for all that is ambiguous or does not fit.
    """
    if num_classes < 1:
        raise DatasetError(f"num_classes={num_classes}: a model without classes gives no labels; see `num_classes`")
    if label_order not in (None, *LABEL_ORDERS):
        raise DatasetError(f"`label_order` {label_order!r} is not one of {', '.join(LABEL_ORDERS)}")
    if label_order and class_map:
        raise DatasetError("`label_order` and `class_map` both say which output a folder is: give one of them")
    mapping = read_class_map(class_map, num_classes, scan.root) if class_map else None
    source = labels_file or labels_file_in(scan)
    is_in_tars = not {"tar_label", "label_word"}.isdisjoint(scan.table.columns)
    by_own_names = bool(class_names and scan.folders and not (class_map or label_order or source or is_in_tars))
    if class_names and by_own_names:
        mapping = {name: output for output, name in enumerate(class_names)}
    classes = Classes(num_classes, mapping, label_order)
    if label_order == "imagefolder" and (source or is_in_tars):
        raise DatasetError(
            f"`label_order` imagefolder ranks class folders, and the labels of {scan.root} come from "
            f"{source or scan.label_source}: leave it out, or give `class_map` FILE"
        )
    if source:
        labels, rule = labels_from_file(scan, source, classes, synsets_file)
    elif is_in_tars:
        labels, rule = _labels_in_tars(scan, classes)
    else:
        labels, rule = labels_from_folders(scan, classes)
    if by_own_names:
        rule = rule.replace("the class map's indices", "the outputs that the model calls so")
    if class_map:
        rule += f" (class map {class_map})"
    return _dataset(scan, labels, rule)


def unlabelled(scan: Scan, reason: str) -> Dataset:
    """The images without labels, for runs that measure speed only; ``reason`` goes into the record."""
    return _dataset(scan, np.full(len(scan.table), -1, dtype=np.int64), f"no labels: {reason}")


def _dataset(scan: Scan, labels: np.ndarray, rule: str) -> Dataset:
    table = scan.table.drop(columns=["demo_label", "tar_label", "label_word"], errors="ignore")
    table.insert(1, "label", labels)
    return Dataset(scan.root, table, scan.unreadable, rule, bool((labels >= 0).all()), scan.is_demo)


def _labels_in_tars(scan: Scan, classes: Classes) -> Labels:
    """Labels that came with the images: a number, or a word, in each tar's members or in a column."""
    column = _label_column(scan, classes)
    found = scan.table[column]
    is_missing = (found == "" if column == "label_word" else found < 0).to_numpy(bool)
    if is_missing.any():
        without = scan.table["name"][is_missing].tolist()
        raise DatasetError(
            f"{len(without)} of the {len(found)} images in {scan.root} have no label beside them ({some(without)}), "
            f"and the others have: pack a .cls or a .json with each, or give `labels_file`; {SPEED_ONLY}"
        )
    code, distinct = pd.factorize(found, sort=True)
    tokens = [str(token) for token in distinct]
    labels, rule = match(tokens, classes, f"labels in {scan.root}")
    return np.array(labels, dtype=np.int64)[code], f"{scan.label_source} -> {rule}"


def _label_column(scan: Scan, classes: Classes) -> str:
    """Words where they say more than the numbers: for a class map, or as wnids.

    Raises DatasetError where the data set's own classes are not as many as the model's: then its numbers mean
    something else.
    """
    table, names = scan.table, scan.class_names
    if "tar_label" not in table:
        return "label_word"
    if names and "label_word" in table and (classes.mapping is not None or all(kind_of(n) == "wnid" for n in names)):
        return "label_word"
    if names and len(names) != classes.count and classes.order != "number":
        raise DatasetError(
            f"{scan.root} has {len(names)} classes ({some(names)}) and the model {classes.count} outputs, so that the "
            f"numbers of its label column are not the outputs: {MAP_REMEDY}; or `label_order` number if they are"
        )
    return "tar_label"
