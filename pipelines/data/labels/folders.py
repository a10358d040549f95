"""Labels from the folders that images lie in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd

from pipelines.data.dataset import DEMO_TABLE, DatasetError, Scan, is_of_another_program
from pipelines.data.labels.classes import MAP_REMEDY, Classes, by_map, kind_of, match, some

SPEED_ONLY = "to measure speed only, leave accuracy out (`accuracy`)"

Labels = tuple[np.ndarray, str]  # int64 [images], and the rule in words


def labels_from_folders(scan: Scan, classes: Classes) -> Labels:
    """Raises DatasetError where the folders do not say which output each image belongs to."""
    parents, code = _parents(scan.table["name"])
    if parents == [""]:
        if given := next((name for name in ("mapping", "order") if getattr(classes, name)), None):
            option = {"mapping": "`class_map`", "order": "`label_order`"}[given]
            raise DatasetError(
                f"{scan.root} has no class folders for {option}: give `labels_file` too, or leave {option} out"
            )
        return np.full(len(code), -1, dtype=np.int64), (
            "no labels: the images lie in one folder and no labels file was given"
        )
    if "" in parents:
        loose = int((code == parents.index("")).sum())
        raise DatasetError(
            f"{scan.root} has {loose} images of its own and {len(code) - loose} in folders below it: move the loose "
            f"ones into class folders or away, or give `labels_file`; {SPEED_ONLY}"
        )
    if scan.is_demo and classes.mapping is None and classes.order is None:
        return _demo_labels(scan, classes.count)
    if classes.mapping is not None:
        labels, rule = _mapped_folders(scan, parents, classes.mapping)
    else:
        labels, rule = _matched_folders(scan, parents, classes)
    return np.array(labels, dtype=np.int64)[code], rule


def _parents(names: pd.Series) -> tuple[list[str], np.ndarray]:
    """The distinct folders that hold images ("" is the root), and the place of each image's folder among them."""
    code, parents = pd.factorize(names.str.replace(r"/?[^/]*$", "", regex=True))
    return parents.tolist(), code


def _matched_folders(scan: Scan, parents: list[str], classes: Classes) -> tuple[list[int], str]:
    """The class is the folder directly below the root; deeper ones are allowed only where that name has a meaning."""
    top = [parent.split("/")[0] for parent in parents]
    names = sorted(set(top))
    kinds = {kind_of(name) for name in names}
    deeper = [parent for parent in parents if "/" in parent]
    if deeper and (kinds == {"name"} or any(kind_of(part) == "wnid" for p in deeper for part in p.split("/")[1:])):
        raise DatasetError(
            f"images lie more than one folder below {scan.root} ({some(deeper)}), so which folder is the class is "
            f"unclear: give the folder that holds the class folders as `data` (perhaps {scan.root / top[0]}), or "
            f"`class_map` FILE; {SPEED_ONLY}"
        )
    labels, rule = _outputs_of(scan, names, kinds, classes)
    of_class = dict(zip(names, labels, strict=True))
    kind = {"wnid": "wnid", "number": "numbered", "name": "class"}.get("".join(kinds), "class")
    return [of_class[name] for name in top], f"{len(names)} {kind} folders -> {rule}"


def _outputs_of(scan: Scan, names: list[str], kinds: set[str], classes: Classes) -> tuple[list[int], str]:
    """The output of each class folder, by what its name is or by its rank."""
    what = f"class folders in {scan.root}"
    if kinds == {"name"} or classes.order == "imagefolder":
        return _by_rank(scan, names, classes, what)
    if kinds == {"wnid"} and classes.order:
        raise DatasetError(
            f"{what} are wnids, which say their class themselves: leave `label_order` {classes.order} out"
        )
    labels, rule = match(names, classes, what, are_folders=True)
    if kinds == {"number"} and len(set(labels)) < len(labels):
        same = sorted((name for name in names if labels.count(int(name)) > 1), key=int)
        raise DatasetError(f"{what} give one number twice ({some(same)}): rename or merge them")
    return labels, rule


def _by_rank(scan: Scan, names: list[str], classes: Classes, what: str) -> tuple[list[int], str]:
    """Rank among all folders, empty ones too (a class without an image is still a class), hidden ones left out.

    Only where that is not the model's number of classes, folders without any image file may be something else.
    """
    folders = sorted({*names, *(name for name in scan.folders if not is_of_another_program(name))})
    if len(folders) != classes.count:
        unreadable = {name.split("/")[0] for name in scan.unreadable["name"]}
        folders = sorted({*names, *(unreadable & set(folders))})
    if len(folders) != classes.count:
        one_level_up = f"; if {names[0]!r} is not a class, give {scan.root / names[0]} as `data`"
        raise DatasetError(
            f"{len(folders)} {what} ({some(folders)}) cannot be matched by rank with a model of {classes.count} "
            f"classes: {MAP_REMEDY}{one_level_up if len(folders) == 1 else ''}; {SPEED_ONLY}"
        )
    # torchvision's ImageFolder ranks by code points, timm by the numbers in names: "a10" is before "a2" in one only.
    natural = sorted(folders, key=natural_key)
    if folders != natural and classes.order is None:
        raise DatasetError(
            f"{what} rank differently in torchvision ({some(folders)}) and in timm ({some(natural)}), and which one "
            f"the model was trained with is unknown: give `label_order` imagefolder (torchvision) or number (timm), or "
            f"{MAP_REMEDY}"
        )
    rank = {name: index for index, name in enumerate(natural if classes.order == "number" else folders)}
    said = f" (label order {classes.order})" if classes.order else ""
    return [rank[name] for name in names], f"their ranks, as the model has {classes.count} classes too{said}"


def natural_key(name: str) -> list[int | str]:
    """timm's ``natural_key``: text and numbers alternate, so that like is compared with like."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name.lower()))]


def only_mapped(scan: Scan, mapping: dict[str, int]) -> tuple[Scan, str]:
    """The scan without the images whose class folder has no output in the class map, and what was left out, in words
    ("" for nothing): ObjectNet has 313 classes, of which 113 are ImageNet's."""
    parents, code = _parents(scan.table["name"])
    # The reading of folder names that fits most of them.
    named = max(
        ([candidate(parent) in mapping for parent in parents] for candidate in CLASS_OF_FOLDER.values()), key=sum
    )
    if all(named) or not any(named):
        return scan, ""
    kept = np.array(named)[code]
    others = sorted(parent for parent, has_output in zip(parents, named, strict=True) if not has_output)
    folders = "1 folder" if len(others) == 1 else f"{len(others)} folders"
    said = f"{int((~kept).sum()):,} images of {folders} that the class map does not name ({some(others)})"
    return replace(scan, table=scan.table[kept].reset_index(drop=True)), said


def _mapped_folders(scan: Scan, parents: list[str], mapping: dict[str, int]) -> tuple[list[int], str]:
    """The class is the folder below the root, as in torchvision, else the innermost (timm), else the whole path."""
    for candidate in CLASS_OF_FOLDER.values():
        names = [candidate(parent) for parent in parents]
        if all(name in mapping for name in names):
            break
    else:
        names = [CLASS_OF_FOLDER["below the root"](parent) for parent in parents]
    distinct = sorted(set(names))
    of_class = dict(zip(distinct, by_map(distinct, mapping, f"class folders in {scan.root}"), strict=True))
    return [of_class[name] for name in names], f"{len(distinct)} class folders -> the class map's indices"


CLASS_OF_FOLDER: dict[str, Callable[[str], str]] = {
    "below the root": lambda folder: folder.split("/")[0],
    "innermost": lambda folder: folder.rsplit("/", 1)[-1],
    "whole path": lambda folder: folder,
}


def _demo_labels(scan: Scan, num_classes: int) -> Labels:
    """The demo set knows its own labels; its folders, of which all classes have one, say how many classes there are."""
    if num_classes != len(scan.folders):
        raise DatasetError(
            f"the demo data in {scan.root} has {len(scan.folders)} classes and the model {num_classes}: use a demo "
            f"checkpoint (`weights` demo) or `num_classes` {len(scan.folders)}; {SPEED_ONLY}"
        )
    labels = scan.table["demo_label"].to_numpy(np.int64)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DatasetError(
            f"{scan.root / DEMO_TABLE} has labels from {labels.min()} to {labels.max()}, for a model of {num_classes} "
            "classes: write the demo data anew"
        )
    return labels, f"demo data: {num_classes} class folders -> the labels in {DEMO_TABLE}"
