"""Labels from a file: text, CSV, or ImageNet's devkit."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.data.dataset import DatasetError, Scan
from pipelines.data.formats import IMAGE_SUFFIXES
from pipelines.data.labels.classes import Classes, kind_of, match, some
from pipelines.data.labels.devkit import DEVKIT_NAME, GROUND_TRUTH, devkit_wnids, read_devkit
from pipelines.data.labels.text import read_lines, read_text

# Taken without being named, from a folder whose images all lie directly in it. In CSVs, columns in order of preference:
# a wnid says more than a number. ImageId and PredictionString are Kaggle's LOC_val_solution.csv.
LABELS_FILES = (GROUND_TRUTH, "LOC_val_solution.csv", "labels.csv", "labels.txt")
IMAGENET_LABELS = ("ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12", GROUND_TRUTH, "LOC_val_solution.csv")
KAGGLE_VAL = ("ILSVRC", "Data", "CLS-LOC", "val")  # the validation images' folder in what Kaggle gives
NAME_COLUMNS = ("name", "filename", "file_name", "path", "file", "image", "imageid", "image_id")
LABEL_COLUMNS = ("wnid", "synset", "label", "class", "class_index", "target", "predictionstring")

TABLES = (".csv", ".tsv")
Labels = tuple[np.ndarray, str]  # int64 [images], and the rule in words


class Line(NamedTuple):
    """Of a labels file."""

    number: int  # from 1
    name: str  # of an image; "" where the line's number says which one it is
    token: str  # what its class is called


def labels_file_in(scan: Scan) -> Path | None:
    """A labels file in the root of a flat folder, or beside ImageNet's validation images, which are known by their
    names. In others, ``labels.txt`` may be anything: class names, say."""
    present = [scan.root / name for name in LABELS_FILES if (scan.root / name).is_file()]
    if not present:
        return _beside_imagenet(scan)
    if scan.table["name"].str.contains("/", regex=False).any():
        return None
    if len(present) > 1:
        names = [path.name for path in present]
        raise DatasetError(f"{scan.root} holds several labels files ({some(names)}): name one with `labels_file`")
    return present[0]


def _beside_imagenet(scan: Scan) -> Path | None:
    """The devkit, or Kaggle's table, beside the folder or tar of ImageNet's validation images."""
    names = scan.table["name"]
    parents = {name.rpartition("/")[0] for name in names}
    if len(parents) > 1 or not all(DEVKIT_NAME.fullmatch(_without_folders(name)) for name in names):
        return None
    folders = [scan.root, scan.root.parent]
    if scan.root.parts[-len(KAGGLE_VAL) :] == KAGGLE_VAL:
        folders.append(scan.root.parents[len(KAGGLE_VAL) - 1])
    places = (folder / name for folder in folders for name in IMAGENET_LABELS)
    return next((place for place in places if place.exists()), None)


def labels_from_file(scan: Scan, path: Path, classes: Classes, synsets_file: Path | None) -> Labels:
    devkit = read_devkit(path, synsets_file)
    is_table = path.suffix.lower() in TABLES
    if devkit:
        lines = [Line(number, "", wnid) for number, wnid in enumerate(devkit, 1)]
    else:
        lines = (_read_table_file if is_table else _read_text_file)(path)
    if lines and not is_table and not lines[0].name:
        tokens, unused, order = _tokens_by_line(scan, path, lines, synsets_file)
    else:
        tokens, unused, order = _tokens_by_name(scan, path, _without_repeats(path, lines))
    distinct = sorted(set(tokens))
    first = {line.token: line.number for line in reversed(lines)}
    labels, rule = match(distinct, classes, f"labels in {path}", lines=first)
    if not devkit:
        order += _column_chosen(path)
    of_token = dict(zip(distinct, labels, strict=True))
    spare = f"; {unused} of its lines name no readable image here" if unused else ""
    return np.array([of_token[token] for token in tokens], dtype=np.int64), f"{path.name} {order} -> {rule}{spare}"


def _read_text_file(path: Path) -> list[Line]:
    """``name label`` lines; or labels alone, where every line is one word."""
    lines = read_lines(path, "`labels_file`")
    pairs = [line.rsplit(None, 1) for line in lines]  # names may hold blanks, labels may not
    widths = {len(pair) for pair in pairs}
    if widths == {1}:
        return [Line(number, "", token) for number, (token,) in enumerate(pairs, 1)]
    if widths != {2}:
        number = next(number for number, pair in enumerate(pairs, 1) if len(pair) < 2)
        raise DatasetError(
            f"{path} mixes 'name label' lines with others (line {number}: {lines[number - 1]!r}): write 'name label' "
            "on each line, or give CSV with a header and the suffix .csv"
        )
    return [Line(number, name.strip(), token) for number, (name, token) in enumerate(pairs, 1)]


def _read_table_file(path: Path) -> list[Line]:
    """CSV (or tab-separated) text, by NAME_COLUMNS and LABEL_COLUMNS in any case."""
    rows = _rows(path)
    header = _header(rows)
    name_column = next((header.index(name) for name in NAME_COLUMNS if name in header), None)
    label_column = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
    if name_column is None or label_column is None:
        raise DatasetError(
            f"{path} has the columns {', '.join(header)}: its first line must name a column of image names "
            f"({', '.join(NAME_COLUMNS)}) and one of labels ({', '.join(LABEL_COLUMNS)})"
        )
    lines = []
    for number, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise DatasetError(f"{path}, line {number}, has {len(row)} fields and not {len(header)}: mend it")
        # Kaggle's PredictionString: the wnid, then boxes.
        words = row[label_column].split() if header[label_column] == "predictionstring" else [row[label_column].strip()]
        lines.append(Line(number, row[name_column].strip(), words[0] if words else ""))
    return lines


def _column_chosen(path: Path) -> str:
    """For the rule: which column the labels are, where a table has several that may be."""
    if path.suffix.lower() not in TABLES:
        return ""
    header = _header(_rows(path))
    there = [name for name in LABEL_COLUMNS if name in header]
    return f", column {there[0]} (not {', '.join(there[1:])})" if len(there) > 1 else ""


def _header(rows: Iterator[tuple[int, list[str]]]) -> list[str]:
    return [column.strip().lower() for column in next(rows, (0, [""]))[1]]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of each row. Raises DatasetError for what is not CSV."""
    text = io.StringIO(read_text(path, "`labels_file`").rstrip(), newline="")  # a name in quotes may hold line ends
    rows = csv.reader(text, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:  # a field of 131,072 signs: a quote without its end, or no table
        raise DatasetError(f"{path}, line {rows.line_num}, is not CSV ({error}): mend it") from error


def _without_repeats(path: Path, lines: Iterable[Line]) -> dict[str, Line]:
    """Image's name -> its line."""
    of_name: dict[str, Line] = {}
    for line in lines:
        if before := of_name.get(line.name):
            raise DatasetError(
                f"{path} names {line.name!r} twice, in lines {before.number} and {line.number}: leave one line for "
                "each image"
            )
        of_name[line.name] = line
    return of_name


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


def _with_slashes(names: Iterable[str], lines: dict[str, Line], path: Path) -> dict[str, Line]:
    """The table's paths as POSIX paths: those of Windows with slashes, without ``./`` before them."""
    posix = not any("\\" in name for name in names)  # a name here may hold a backslash: then it is one
    pairs = ((name.replace("\\", "/") if posix else name, line) for name, line in lines.items())
    return _without_repeats(path, (line._replace(name=name.removeprefix("./")) for name, line in pairs))


def _without_common_folders(names: list[str], lines: dict[str, Line]) -> dict[str, Line]:
    """The table's paths without folders that all of them begin with (``/home/me/val``), as many as must go until one
    names an image here; unchanged where that never comes."""
    known = set(names)
    folders = next(iter(lines)).split("/")[:-1]
    for depth in range(1, len(folders) + 1):
        before = "/".join(folders[:depth]) + "/"
        if not all(name.startswith(before) for name in lines):
            break
        shorter = {name.removeprefix(before): line for name, line in lines.items()}
        if not known.isdisjoint(shorter):
            return shorter
    return lines


def _tokens_by_name(scan: Scan, path: Path, lines: dict[str, Line]) -> tuple[list[str], int, str]:
    """(label word of each image, how many lines were left over, which of NAME_KEYS was used: the first that fits)."""
    if not lines:
        raise DatasetError(f"{path} has a header and no line of an image: give the file that holds the labels")
    names = scan.table["name"].tolist()
    lines = _with_slashes(names, lines, path)
    if lines.keys().isdisjoint(names):
        lines = _without_common_folders(names, lines)
    best: tuple[int, list[str]] = (-1, [])
    for order, key in NAME_KEYS.items():
        images = [key(name) for name in names]
        entries = {key(name): line.token for name, line in lines.items()}
        missing = [name for name, image in zip(names, images, strict=True) if image not in entries]
        if missing:
            best = max(best, (len(names) - len(missing), missing))
            continue
        if len(set(images)) < len(images) or len(entries) < len(lines):
            raise DatasetError(
                f"{path} names images {order}, and one such name stands for several: write paths relative to "
                f"{scan.root}"
            )
        failed = {key(name) for name in scan.unreadable["name"]}
        unused = len(entries.keys() - set(images) - failed)
        return [entries[image] for image in images], unused, order
    found, missing = best
    raise DatasetError(
        f"{path} has {len(lines)} lines ({some(list(lines), 1)}) and names {found} of the {len(names)} images in "
        f"{scan.root}; {len(missing)} have no label ({some(missing)}): add them, or take those images out of the "
        "folder"
    )


def _tokens_by_line(scan: Scan, path: Path, given: list[Line], synsets_file: Path | None) -> tuple[list[str], int, str]:
    """One label a line, as in the devkit's ground truth: line i belongs to the i-th image of the whole set."""
    tokens = [line.token for line in given]
    kinds = {kind_of(token) for token in tokens}
    if kinds == {"number"}:
        tokens, how = devkit_wnids(path, tokens, synsets_file)
    elif kinds == {"wnid"}:
        how = ""
    else:
        raise DatasetError(
            f"{path} has one word a line, which must all be wnids, or all ILSVRC2012_IDs, and {_odd(given)}: write "
            "'name label' lines, or give CSV with a header and the suffix .csv"
        )
    lines, unused = _line_of_each_image(scan, path, len(tokens))
    return [tokens[line] for line in lines], unused, f"by line{how}"


def _odd(lines: list[Line]) -> str:
    """The first line that is neither, or else the first of another kind than line 1."""
    if bad := next((line for line in lines if kind_of(line.token) == "name"), None):
        return f"{bad.token!r} is neither (line {bad.number})"
    other = next(line for line in lines if kind_of(line.token) != kind_of(lines[0].token))
    return f"{other.token!r} (line {other.number}) is of another kind than {lines[0].token!r} (line 1)"


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
