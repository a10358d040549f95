"""Which class each image belongs to, matched by meaning and never by luck.

    layout                                   label
    class folders by wnid  n01440764/...     the wnid's index in the model's own list (timm ships the synsets)
    numbered class folders 0/ ... 999/       the number (ImageNet-V2: as text, "10" sorts before "2")
    other class folders                      the rank, only if the model has exactly as many classes
    a labels file                            by the image's name (or by line number, as in ImageNet's devkit)
    tar shards with .cls or .json members    the number in them, as in WebDataset
    images only                              none: throughput can be measured, accuracy cannot
    any of these with a class map            as the map says

What is ambiguous, or does not fit the model's classes, is refused: a wrong label costs a whole run, a refusal a minute.
Two traps that decide the rules: a set with ten of ImageNet's folders scored by rank against a model of 1000 classes is
wrong in every image; and a model of 200 classes may know Tiny ImageNet's wnids, ImageNet-A's or ImageNet-R's.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from pipelines.data.dataset import DEMO_TABLE, IMAGE_SUFFIXES, Dataset, DatasetError, Scan

# classes of the model -> (name of the list, timm's file). The same choice as timm's infer_imagenet_subset.
SYNSET_LISTS: dict[int, tuple[str, str]] = {
    1000: ("ImageNet-1k", "imagenet_synsets.txt"),
    11221: ("ImageNet-21k-MIIL", "imagenet21k_miil_synsets.txt"),
    11821: ("ImageNet-12k", "imagenet12k_synsets.txt"),
    21841: ("ImageNet-22k", "imagenet22k_synsets.txt"),
    21842: ("ImageNet-22k-MS", "imagenet22k_ms_synsets.txt"),
    21843: ("ImageNet-21k-Google", "imagenet21k_goog_synsets.txt"),
}
DEVKIT_CLASSES = 1000  # ILSVRC2012_ID 1 to 1000; higher IDs in meta.mat are inner nodes of the hierarchy

# Taken without being named, from a folder whose images all lie directly in it. In CSVs, columns in order of preference:
# a wnid says more than a number. ImageId and PredictionString are Kaggle's LOC_val_solution.csv.
LABELS_FILES = ("ILSVRC2012_validation_ground_truth.txt", "LOC_val_solution.csv", "labels.csv", "labels.txt")
NAME_COLUMNS = ("name", "filename", "file_name", "path", "file", "image", "imageid", "image_id")
LABEL_COLUMNS = ("wnid", "synset", "label", "class", "class_index", "target", "predictionstring")
DEVKIT_LISTS = ("meta.mat", "meta.txt", "synsets.txt", "synset_words.txt")  # looked for beside the ground truth

KINDS = {"wnid": re.compile(r"n\d{8}", re.ASCII), "number": re.compile(r"\d+", re.ASCII)}  # anything else is a "name"
DEVKIT_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+", re.ASCII)

MAP_REMEDY = "give `class_map` FILE, a text file with the model's class names in its order, one a line"
MOST_FILE_BYTES = 1_000_000_000  # of labels: those of 14 million images take half of it
SPEED_ONLY = "to measure speed only, leave accuracy out (`accuracy`)"

Labels = tuple[np.ndarray, str]  # int64 [images], and the rule in words


def label(
    scan: Scan,
    *,
    num_classes: int,
    labels_file: Path | None = None,
    class_map: Path | None = None,
    synsets_file: Path | None = None,
) -> Dataset:
    """Match the scanned images with the classes of a model that has ``num_classes`` outputs.

    ``labels_file``: text (``name label`` lines; or one label a line, in the order of the sorted file names) or CSV with
    a header. ``class_map``: as timm's ``--class-map`` (``read_class_map``). ``synsets_file``: the devkit's wnids in
    its own order, when they do not lie beside its ground truth (``read_devkit_synsets``).

    Raises DatasetError, with the reason and the remedy, for all that is ambiguous or does not fit.
    """
    if num_classes < 1:
        raise DatasetError(f"num_classes={num_classes}: a model without classes gives no labels; see `num_classes`")
    mapping = read_class_map(class_map, num_classes, scan.root) if class_map else None
    source = labels_file or _labels_file_in(scan)
    if source:
        labels, rule = _labels_from_file(scan, source, num_classes, mapping, synsets_file)
    elif "tar_label" in scan.table:
        labels, rule = _labels_in_tars(scan, num_classes, mapping)
    else:
        labels, rule = _labels_from_folders(scan, num_classes, mapping)
    if class_map:
        rule += f" (class map {class_map})"
    return _dataset(scan, labels, rule)


def unlabelled(scan: Scan, reason: str) -> Dataset:
    """The images without labels, for runs that measure speed only; ``reason`` goes into the record."""
    return _dataset(scan, _no_labels(len(scan.table)), f"no labels: {reason}")


def _dataset(scan: Scan, labels: np.ndarray, rule: str) -> Dataset:
    table = scan.table.drop(columns=["demo_label", "tar_label"], errors="ignore")
    table.insert(1, "label", labels)
    return Dataset(scan.root, table, scan.unreadable, rule, bool((labels >= 0).all()), scan.is_demo)


def _no_labels(images: int) -> np.ndarray:
    return np.full(images, -1, dtype=np.int64)


# --------------------------------------------------------------------------------------------- words -> class indices


def kind_of(token: str) -> str:
    """``wnid``, ``number`` or ``name``."""
    return next((kind for kind, pattern in KINDS.items() if pattern.fullmatch(token)), "name")


@lru_cache(maxsize=2)
def synset_index(num_classes: int) -> dict[str, int]:
    """wnid -> output of a model with this many classes, from the lists that timm ships.

    The files are read where timm is installed, without importing it: that would take seconds and load torch.
    Raises DatasetError when no list has this many entries.
    """
    if num_classes not in SYNSET_LISTS:
        known = ", ".join(f"{count} ({name})" for count, (name, _) in SYNSET_LISTS.items())
        raise DatasetError(f"which wnids a model of {num_classes} classes knows is not known (only: {known})")
    name, file = SYNSET_LISTS[num_classes]
    package = importlib.util.find_spec("timm")
    folders = (package.submodule_search_locations if package else None) or []
    path = next((p for p in (Path(folder, "data", "_info", file) for folder in folders) if p.is_file()), None)
    if path is None:
        raise DatasetError(f"timm's list of {name} synsets ({file}) is not installed: pip install 'timm>=1.0.20'")
    return {wnid: index for index, wnid in enumerate(path.read_text(encoding="utf-8").split())}


def _match(tokens: Sequence[str], num_classes: int, mapping: dict[str, int] | None, what: str) -> tuple[list[int], str]:
    """Class index of each of the distinct ``tokens`` and the rule; ``what`` names them in messages."""
    if mapping is not None:
        return _by_map(tokens, mapping, what), "the class map's indices"
    kinds = {kind_of(token): token for token in tokens}
    if len(kinds) > 1:
        examples = ", ".join(f"{kind} {token!r}" for kind, token in sorted(kinds.items()))
        raise DatasetError(f"{what} are of different kinds ({examples}), so no one rule fits them: {MAP_REMEDY}")
    return MATCHERS[next(iter(kinds))](tokens, num_classes, what)


def _by_map(tokens: Sequence[str], mapping: dict[str, int], what: str) -> list[int]:
    missing = [token for token in tokens if token not in mapping]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(tokens)} {what} are not in the class map ({_some(missing)}; the map has "
            f"{_some(list(mapping))}): add them to it, or take their images out of the folder"
        )
    return [mapping[token] for token in tokens]


def _by_wnid(tokens: Sequence[str], num_classes: int, what: str) -> tuple[list[int], str]:
    try:
        index = synset_index(num_classes)
    except DatasetError as error:
        raise DatasetError(
            f"{what} are wnids, and {error}: {MAP_REMEDY} (if the model was trained on these very classes in sorted "
            "order, the sorted wnids are that file)"
        ) from error
    name = SYNSET_LISTS[num_classes][0]
    missing = [token for token in tokens if token not in index]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(tokens)} {what} are wnids that are not among the classes of {name} "
            f"({_some(missing)}): take their images out of the folder, or {MAP_REMEDY}"
        )
    return [index[token] for token in tokens], f"{name} indices of their wnids"


def _by_number(tokens: Sequence[str], num_classes: int, what: str) -> tuple[list[int], str]:
    labels = [int(token) for token in tokens]
    outside = [token for token, number in zip(tokens, labels, strict=True) if number >= num_classes]
    if outside:
        counted_from_1 = min(labels) == 1 and max(labels) == num_classes
        hint = "; they seem to be counted from 1, and must be from 0" if counted_from_1 else ""
        raise DatasetError(
            f"{len(outside)} of {len(tokens)} {what} are numbers beyond a model of {num_classes} classes "
            f"({_some(outside)}){hint}: check that model and data belong together, or give `class_map` FILE with "
            "'name index' lines"
        )
    return labels, "their numbers"


def _by_name(tokens: Sequence[str], num_classes: int, what: str) -> tuple[list[int], str]:
    raise DatasetError(f"{what} are neither wnids nor numbers ({_some(tokens)}): {MAP_REMEDY}")


MATCHERS: dict[str, Callable[[Sequence[str], int, str], tuple[list[int], str]]] = {
    "wnid": _by_wnid,
    "number": _by_number,
    "name": _by_name,
}


def _some(items: Collection[str], shown: int = 3) -> str:
    first = ", ".join(repr(item) for item, _ in zip(items, range(shown), strict=False))
    return first if len(items) <= shown else f"{first} and {len(items) - shown} more"


# ------------------------------------------------------------------------------------------------------------- folders


def _labels_from_folders(scan: Scan, num_classes: int, mapping: dict[str, int] | None) -> Labels:
    parents, code = _parents(scan.table["name"])
    if parents == [""]:
        if mapping is not None:
            raise DatasetError(
                f"{scan.root} has no class folders for the class map to name: give `labels_file` too, or leave out "
                "`class_map`"
            )
        return _no_labels(len(code)), "no labels: the images lie in one folder and no labels file was given"
    if "" in parents:
        loose = int((code == parents.index("")).sum())
        raise DatasetError(
            f"{scan.root} has {loose} images of its own and {len(code) - loose} in folders below it: move the loose "
            f"ones into class folders or away, or give `labels_file`; {SPEED_ONLY}"
        )
    if scan.is_demo and mapping is None:
        return _demo_labels(scan, num_classes)
    if mapping is not None:
        labels, rule = _mapped_folders(scan, parents, mapping)
    else:
        labels, rule = _matched_folders(scan, parents, num_classes)
    return np.array(labels, dtype=np.int64)[code], rule


def _parents(names: pd.Series) -> tuple[list[str], np.ndarray]:
    """The distinct folders that hold images ("" is the root), and the place of each image's folder among them."""
    code, parents = pd.factorize(names.str.replace(r"/?[^/]*$", "", regex=True))
    return parents.tolist(), code


def _matched_folders(scan: Scan, parents: list[str], num_classes: int) -> tuple[list[int], str]:
    """The class is the folder directly below the root; deeper ones are allowed only where that name has a meaning."""
    top = [parent.split("/")[0] for parent in parents]
    classes = sorted(set(top))
    what = f"class folders in {scan.root}"
    kinds = {kind_of(name) for name in classes}
    deeper = [parent for parent in parents if "/" in parent]
    if deeper and (kinds == {"name"} or any(kind_of(part) == "wnid" for p in deeper for part in p.split("/")[1:])):
        raise DatasetError(
            f"images lie more than one folder below {scan.root} ({_some(deeper)}), so which folder is the class is "
            f"unclear: give the folder that holds the class folders as `data` (perhaps {scan.root / top[0]}), or "
            f"`class_map` FILE; {SPEED_ONLY}"
        )
    if kinds == {"name"}:
        labels, rule = _by_rank(scan, classes, num_classes, what)
    else:
        labels, rule = _match(classes, num_classes, None, what)
    _refuse_two_folders_of_one_number(classes, labels, kinds, what)
    of_class = dict(zip(classes, labels, strict=True))
    kind = {"wnid": "wnid", "number": "numbered", "name": "class"}[kinds.pop()]
    return [of_class[name] for name in top], f"{len(classes)} {kind} folders -> {rule}"


def _refuse_two_folders_of_one_number(classes: list[str], labels: list[int], kinds: set[str], what: str) -> None:
    if kinds == {"number"} and len(set(labels)) < len(labels):
        same = sorted((name for name in classes if labels.count(int(name)) > 1), key=int)
        raise DatasetError(f"{what} give one number twice ({_some(same)}): rename or merge them")


def _by_rank(scan: Scan, classes: list[str], num_classes: int, what: str) -> tuple[list[int], str]:
    """Rank among all folders, empty ones too (a class without an image is still a class), hidden ones left out.

    Only where that is not the model's number of classes, folders without any image file may be something else.
    """
    folders = sorted({*classes, *(name for name in scan.folders if not name.startswith("."))})
    if len(folders) != num_classes:
        unreadable = {name.split("/")[0] for name in scan.unreadable["name"]}
        folders = sorted({*classes, *(unreadable & set(scan.folders))})
    if len(folders) != num_classes:
        one_level_up = f"; if {classes[0]!r} is not a class, give {scan.root / classes[0]} as `data`"
        raise DatasetError(
            f"{len(folders)} {what} ({_some(folders)}) cannot be matched by rank with a model of {num_classes} "
            f"classes: {MAP_REMEDY}{one_level_up if len(folders) == 1 else ''}; {SPEED_ONLY}"
        )
    # torchvision's ImageFolder ranks by code points, timm by the numbers in names: "a10" is before "a2" in one only.
    natural = sorted(folders, key=_natural_key)
    if folders != natural:
        raise DatasetError(
            f"{what} rank differently in torchvision ({_some(folders)}) and in timm ({_some(natural)}), and which one "
            f"the model was trained with is unknown: {MAP_REMEDY}"
        )
    rank = {name: index for index, name in enumerate(folders)}
    return [rank[name] for name in classes], f"their ranks, as the model has {num_classes} classes too"


def _natural_key(name: str) -> list[int | str]:
    """timm's ``natural_key``: text and numbers alternate, so that like is compared with like."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name.lower()))]


def _mapped_folders(scan: Scan, parents: list[str], mapping: dict[str, int]) -> tuple[list[int], str]:
    """The class is the folder below the root, as in torchvision, else the innermost (timm), else the whole path."""
    for candidate in CLASS_OF_FOLDER.values():
        names = [candidate(parent) for parent in parents]
        if all(name in mapping for name in names):
            break
    else:
        names = [CLASS_OF_FOLDER["below the root"](parent) for parent in parents]
    distinct = sorted(set(names))
    of_class = dict(zip(distinct, _by_map(distinct, mapping, f"class folders in {scan.root}"), strict=True))
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


# ----------------------------------------------------------------------------------------------------------------- tars


def _labels_in_tars(scan: Scan, num_classes: int, mapping: dict[str, int] | None) -> Labels:
    numbers = scan.table["tar_label"].to_numpy(np.int64)
    if (numbers < 0).any():
        without = scan.table["name"][numbers < 0].tolist()
        raise DatasetError(
            f"{len(without)} of the {len(numbers)} images in {scan.root} have no label beside them ({_some(without)}), "
            f"and the others have: pack a .cls or a .json with each, or give `labels_file`; {SPEED_ONLY}"
        )
    distinct, code = np.unique(numbers, return_inverse=True)
    tokens = [str(number) for number in distinct.tolist()]
    labels, rule = _match(tokens, num_classes, mapping, f"labels in {scan.root}")
    return np.array(labels, dtype=np.int64)[code], f"the .cls or .json beside each image -> {rule}"


# --------------------------------------------------------------------------------------------------------- labels file


def _labels_file_in(scan: Scan) -> Path | None:
    """A labels file in the root of a flat folder. In others, ``labels.txt`` may be anything: class names, say."""
    present = [scan.root / name for name in LABELS_FILES if (scan.root / name).is_file()]
    if not present or scan.table["name"].str.contains("/", regex=False).any():
        return None
    if len(present) > 1:
        names = [path.name for path in present]
        raise DatasetError(f"{scan.root} holds several labels files ({_some(names)}): name one with `labels_file`")
    return present[0]


def _labels_from_file(
    scan: Scan, path: Path, num_classes: int, mapping: dict[str, int] | None, synsets_file: Path | None
) -> Labels:
    entries = _read_table_file(path) if path.suffix.lower() in (".csv", ".tsv") else _read_text_file(path)
    if isinstance(entries, list):
        tokens, unused, order = _tokens_by_line(scan, path, entries, synsets_file)
    else:
        tokens, unused, order = _tokens_by_name(scan, path, entries)
    distinct = sorted(set(tokens))
    labels, rule = _match(distinct, num_classes, mapping, f"labels in {path}")
    of_token = dict(zip(distinct, labels, strict=True))
    spare = f"; {unused} of its lines name no readable image here" if unused else ""
    return np.array([of_token[token] for token in tokens], dtype=np.int64), f"{path.name} {order} -> {rule}{spare}"


def refuse_absurd(path: Path, flag: str) -> None:
    """Raises DatasetError for a file of labels that is too large to be one, before it fills the memory."""
    if path.is_file() and (size_bytes := path.stat().st_size) > MOST_FILE_BYTES:
        raise DatasetError(
            f"{path} has {size_bytes / 1e9:.1f} GB, and a file of labels at most {MOST_FILE_BYTES / 1e9:.0f}: check "
            f"the path given as {flag}"
        )


def _read_lines(path: Path, flag: str) -> list[str]:
    """Lines without the blank ones at the end. A byte-order mark, as of Windows editors, does not count."""
    refuse_absurd(path, flag)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is no UTF-8 text ({error.reason}): give a text file as {flag}") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): check the path given as {flag}") from error
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise DatasetError(f"{path} is empty: give a file with lines as {flag}")
    return lines


def _read_text_file(path: Path) -> dict[str, str] | list[str]:
    """name -> label for ``name label`` lines; a list of labels where every line is one word."""
    lines = _read_lines(path, "`labels_file`")
    pairs = [line.rsplit(None, 1) for line in lines]  # names may hold blanks, labels may not
    widths = {len(pair) for pair in pairs}
    if widths == {1}:
        return [pair[0] for pair in pairs]
    if widths != {2}:
        odd = next(line for line, pair in zip(lines, pairs, strict=True) if len(pair) < 2)
        raise DatasetError(
            f"{path} mixes 'name label' lines with others ({odd!r}): write 'name label' on each line, or give CSV with "
            "a header and the suffix .csv"
        )
    return _without_repeats(path, ((name.strip(), token) for name, token in pairs))


def _read_table_file(path: Path) -> dict[str, str]:
    """name -> label from CSV (or tab-separated) text, by NAME_COLUMNS and LABEL_COLUMNS in any case."""
    lines = _read_lines(path, "`labels_file`")
    rows = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    header = [column.strip().lower() for column in next(rows)]
    name_column = next((header.index(name) for name in NAME_COLUMNS if name in header), None)
    label_column = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    if name_column is None or label_column is None:
        raise DatasetError(
            f"{path} has the columns {', '.join(header)}: its first line must name a column of image names "
            f"({', '.join(NAME_COLUMNS)}) and one of labels ({', '.join(LABEL_COLUMNS)})"
        )
    pairs = []
    for number, row in enumerate(rows, start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise DatasetError(f"{path}, line {number}, has {len(row)} fields and not {len(header)}: mend it")
        # Kaggle's PredictionString: the wnid, then boxes.
        words = row[label_column].split() if header[label_column] == "predictionstring" else [row[label_column].strip()]
        pairs.append((row[name_column].strip(), words[0] if words else ""))
    return _without_repeats(path, pairs)


def _without_repeats(path: Path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for name, token in pairs:
        if name in tokens:
            raise DatasetError(f"{path} names {name!r} twice: leave one line for each image")
        tokens[name] = token
    return tokens


def _without_folders(name: str) -> str:
    return name.rpartition("/")[2]


def _without_suffix(name: str) -> str:
    stem, dot, suffix = _without_folders(name).rpartition(".")
    return stem if dot + suffix.lower() in IMAGE_SUFFIXES else _without_folders(name)


NAME_KEYS: dict[str, Callable[[str], str]] = {
    "by path": str,
    "by file name": _without_folders,
    "by file name without suffix": _without_suffix,
}


def _tokens_by_name(scan: Scan, path: Path, tokens: dict[str, str]) -> tuple[list[str], int, str]:
    """(label word of each image, how many lines were left over, which of NAME_KEYS was used: the first that fits)."""
    names = scan.table["name"].tolist()
    best: tuple[int, list[str]] = (-1, [])
    for order, key in NAME_KEYS.items():
        images = [key(name) for name in names]
        entries = {key(name): token for name, token in tokens.items()}
        missing = [name for name, image in zip(names, images, strict=True) if image not in entries]
        if missing:
            best = max(best, (len(names) - len(missing), missing))
            continue
        if len(set(images)) < len(images) or len(entries) < len(tokens):
            raise DatasetError(
                f"{path} names images {order}, and one such name stands for several: write paths relative to "
                f"{scan.root}"
            )
        failed = {key(name) for name in scan.unreadable["name"]}
        unused = len(entries.keys() - set(images) - failed)
        return [entries[image] for image in images], unused, order
    found, missing = best
    raise DatasetError(
        f"{path} has {len(tokens)} lines ({_some(list(tokens), 1)}) and names {found} of the {len(names)} images in "
        f"{scan.root}; {len(missing)} have no label ({_some(missing)}): add them, or take those images out of the "
        "folder"
    )


def _tokens_by_line(scan: Scan, path: Path, tokens: list[str], synsets_file: Path | None) -> tuple[list[str], int, str]:
    """One label a line, as in the devkit's ground truth: line i belongs to the i-th image of the whole set."""
    kinds = {kind_of(token) for token in tokens}
    if kinds == {"number"}:
        tokens, how = _devkit_wnids(path, tokens, synsets_file)
    elif kinds == {"wnid"}:
        how = ""
    else:
        bad = next(token for token in tokens if kind_of(token) == "name")
        raise DatasetError(
            f"{path} has one word a line, which must be a wnid or an ILSVRC2012_ID, and {bad!r} is neither: write "
            "'name label' lines, or give CSV with a header and the suffix .csv"
        )
    lines, unused = _line_of_each_image(scan, path, len(tokens))
    return [tokens[line] for line in lines], unused, f"by line{how}"


def _line_of_each_image(scan: Scan, path: Path, count: int) -> tuple[list[int], int]:
    """ImageNet's validation names carry their line number, so that any subset can be scored. All other names must be
    complete and count in sorted order, the unreadable ones too: leaving one out would shift all labels behind it."""
    names = scan.table["name"].tolist()
    failed = scan.unreadable["name"].tolist()
    numbers = [DEVKIT_NAME.fullmatch(_without_folders(name)) for name in names]
    if all(numbers):
        lines = [int(number[1]) - 1 for number in numbers if number]
        if min(lines) < 0 or max(lines) >= count or len(set(lines)) < len(lines):
            raise DatasetError(
                f"{path} has {count} lines, and the image names in {scan.root} go up to number {max(lines) + 1} or "
                "repeat one: give the ground truth that belongs to these images"
            )
        return lines, count - len(lines)
    everything = sorted([*names, *failed])
    if len(everything) != count:
        raise DatasetError(
            f"{path} has {count} lines, one for each file in sorted order, and {scan.root} has {len(everything)} "
            f"image files ({len(failed)} unreadable): complete the folder, or give a file with 'name label' lines"
        )
    position = {name: line for line, name in enumerate(everything)}
    return [position[name] for name in names], count - len(names)


# ------------------------------------------------------------------------------------------------- ImageNet's devkit


def _devkit_wnids(path: Path, ids: list[str], synsets_file: Path | None) -> tuple[list[str], str]:
    beside = [path.with_name(name) for name in DEVKIT_LISTS if path.with_name(name).is_file()]
    source = synsets_file or next(iter(beside), None)
    if source is None:
        raise DatasetError(
            f"{path} has one number a line: an ILSVRC2012_ID, which follows the devkit's own order of the classes and "
            "not that of the wnids. Put the devkit's meta.mat beside it (or a text list of the wnids in that order, as "
            f"one of {', '.join(DEVKIT_LISTS[1:])}), or name it with `synsets_file`"
        )
    wnids = read_devkit_synsets(source)
    outside = [number for number in ids if not 1 <= int(number) <= DEVKIT_CLASSES]
    if outside:
        raise DatasetError(
            f"{path} has {len(outside)} numbers that are no ILSVRC2012_ID, 1 to {DEVKIT_CLASSES} ({_some(outside)}): "
            "for class indices counted from 0, write 'name label' lines"
        )
    return [wnids[int(number) - 1] for number in ids], f" through the ILSVRC2012_IDs of {source.name}"


def read_devkit_synsets(path: Path) -> list[str]:
    """The wnids of ILSVRC2012_ID 1 to 1000, in that order.

    From the devkit's ``meta.mat``, or from text whose lines begin with a wnid (the line number is the ID) or with
    ``ID wnid``. Raises DatasetError when they are not ImageNet-1k's wnids, or when they are sorted: then the list is
    of Caffe's kind, whose line numbers are class indices and not the devkit's IDs.
    """
    by_id = _read_meta_mat(path) if path.suffix.lower() == ".mat" else _read_id_lines(path)
    wnids = [by_id.get(number, "") for number in range(1, DEVKIT_CLASSES + 1)]
    known = sorted(synset_index(DEVKIT_CLASSES))
    remedy = "give the devkit's own meta.mat, or a list in its order, as `synsets_file`"
    if sorted(wnids) != known:
        strange = sorted(set(wnids) - set(known) - {""})
        raise DatasetError(
            f"{path} does not give the {DEVKIT_CLASSES} wnids of ImageNet-1k for ILSVRC2012_ID 1 to {DEVKIT_CLASSES} "
            f"({len(set(wnids) & set(known))} of them are there; others: {_some(strange) or 'none'}): {remedy}"
        )
    if wnids == known:
        raise DatasetError(
            f"{path} lists the wnids in sorted order, as Caffe's synset_words.txt does, and the devkit's IDs follow "
            f"another one: {remedy}"
        )
    return wnids


def _read_meta_mat(path: Path) -> dict[int, str]:
    """ILSVRC2012_ID and WNID are the first two fields of the devkit's ``synsets`` (its readme.txt)."""
    from scipy.io import loadmat  # here because only this layout needs it

    try:
        synsets = loadmat(path, squeeze_me=True)["synsets"]
        ids, wnids = (synsets[field] for field in synsets.dtype.names[:2])
        return {int(number): str(wnid) for number, wnid in zip(ids, wnids, strict=True)}
    except Exception as error:  # on files of another kind loadmat raises nearly anything
        raise DatasetError(f"{path} is not the devkit's meta.mat ({error!r}): give that as `synsets_file`") from error


def _read_id_lines(path: Path) -> dict[int, str]:
    wnids = {}
    for line, text in enumerate(_read_lines(path, "`synsets_file`"), start=1):
        words = text.split()
        if len(words) > 1 and kind_of(words[0]) == "number" and kind_of(words[1]) == "wnid":
            wnids[int(words[0])] = words[1]
        elif words and kind_of(words[0]) == "wnid":
            wnids[line] = words[0]
        else:
            raise DatasetError(
                f"{path}, line {line}, begins with no wnid ({text!r}): give one a line, in the devkit's order"
            )
    return wnids


# ----------------------------------------------------------------------------------------------------------- class map


def read_class_map(path: Path, num_classes: int, root: Path | None = None) -> dict[str, int]:
    """Class name -> output, from a text file of timm's form (one name a line, the line number is the index from 0) or
    with ``name index`` lines. As in timm, a path that does not exist is looked up in ``root``.

    Lines count as ``name index`` only when all of them end in an index that the model has: car models end in years.
    timm's other form, pickle, is refused, because reading a pickle can run code. Stricter than timm: a name that comes
    twice, a blank line between names, or more classes than the model has raise DatasetError.
    """
    path = path if path.exists() or root is None else root / path
    if path.suffix.lower() in (".pkl", ".pickle"):
        raise DatasetError(f"{path} is a pickle, which can run code when read: write its names as text, one a line")
    lines = [line.strip() for line in _read_lines(path, "`class_map`")]
    if "" in lines:
        raise DatasetError(f"{path}, line {lines.index('') + 1}, is blank, and its number would be a class: remove it")
    pairs = [line.rsplit(None, 1) for line in lines]
    with_index = all(len(p) == 2 and kind_of(p[1]) == "number" and int(p[1]) < num_classes for p in pairs)
    if with_index:
        names = [(name, int(index)) for name, index in pairs]
    else:
        names = [(line, index) for index, line in enumerate(lines)]
        if len(names) > num_classes:
            raise DatasetError(
                f"{path} has {len(names)} lines, for a model of {num_classes} classes: give the map of this model"
            )
    name, count = Counter(name for name, _ in names).most_common(1)[0]
    if count > 1:
        raise DatasetError(f"{path} has the class {name!r} {count} times: which index it has is unclear; leave one")
    return dict(names)
