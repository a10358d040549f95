"""A text file that says which output each class name is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pipelines.data.dataset import DatasetError
from pipelines.data.labels.classes import kind_of
from pipelines.data.labels.text import read_lines


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
    lines = [line.strip() for line in read_lines(path, "`class_map`")]
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
        numbers = [str(number) for number, (other, _) in enumerate(names, 1) if other == name]
        raise DatasetError(
            f"{path} has the class {name!r} {count} times (lines {', '.join(numbers[:5])}): which index it has is "
            "unclear; leave one"
        )
    return dict(names)
