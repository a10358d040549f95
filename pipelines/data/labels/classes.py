"""Words -> outputs of a model: what a folder's name, a line's label or a number beside an image stands for.

A number is an output only while nothing speaks against it (``DOUBTS``): a wrong label costs a whole run, a refusal a
minute.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipelines.data.dataset import DatasetError

# classes of the model -> (name of the list, timm's file). The same choice as timm's infer_imagenet_subset.
SYNSET_LISTS: dict[int, tuple[str, str]] = {
    1000: ("ImageNet-1k", "imagenet_synsets.txt"),
    11221: ("ImageNet-21k-MIIL", "imagenet21k_miil_synsets.txt"),
    11821: ("ImageNet-12k", "imagenet12k_synsets.txt"),
    21841: ("ImageNet-22k", "imagenet22k_synsets.txt"),
    21842: ("ImageNet-22k-MS", "imagenet22k_ms_synsets.txt"),
    21843: ("ImageNet-21k-Google", "imagenet21k_goog_synsets.txt"),
}
WITH_BACKGROUND = 1001  # outputs of networks that were trained on ImageNet with TensorFlow's slim: 0 is the background

KINDS = {"wnid": re.compile(r"n\d{8}", re.ASCII), "number": re.compile(r"\d+", re.ASCII)}  # anything else is a "name"

MAP_REMEDY = "give `class_map` FILE, a text file with the model's class names in its order, one a line"
LABEL_ORDERS = {
    "number": "the number in a name is the output, or ranks the names as timm does (2 before 10)",
    "imagefolder": "class folders rank as text, as in torchvision's ImageFolder (10 before 2)",
}


@dataclass(frozen=True, slots=True)
class Classes:
    """What is known of a model's outputs."""

    count: int
    mapping: dict[str, int] | None = None  # class name -> output, of a class map
    order: str | None = None  # one of LABEL_ORDERS, where the user has said it


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


Lines = Mapping[str, int] | None  # word -> number of the line where it stands, for messages; None: of no file


def match(
    tokens: Sequence[str], classes: Classes, what: str, *, are_folders: bool = False, lines: Lines = None
) -> tuple[list[int], str]:
    """Output of each of the distinct ``tokens`` and the rule; ``what`` and ``lines`` name them in messages. Raises
    DatasetError."""
    if classes.mapping is not None:
        return by_map(tokens, classes.mapping, what, lines), "the class map's indices"
    kinds = {kind_of(token): token for token in tokens}
    if len(kinds) > 1:
        examples = ", ".join(f"{kind} {some([token], lines=lines)}" for kind, token in sorted(kinds.items()))
        raise DatasetError(f"{what} are of different kinds ({examples}), so no one rule fits them: {MAP_REMEDY}")
    kind = next(iter(kinds))
    if kind == "number" and classes.order != "number":
        refuse_doubtful_numbers(tokens, classes.count, what, are_folders)
    return MATCHERS[kind](tokens, classes.count, what, lines)


def by_map(tokens: Sequence[str], mapping: dict[str, int], what: str, lines: Lines = None) -> list[int]:
    missing = [token for token in tokens if token not in mapping]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(tokens)} {what} are not in the class map ({some(missing, lines=lines)}; the map "
            f"has {some(list(mapping))}): add them to it, or take their images out of the folder"
        )
    return [mapping[token] for token in tokens]


def _by_wnid(tokens: Sequence[str], num_classes: int, what: str, lines: Lines) -> tuple[list[int], str]:
    try:
        index = synset_index(num_classes)
    except DatasetError as error:
        background = " (the first output may be a background class)" if num_classes == WITH_BACKGROUND else ""
        raise DatasetError(
            f"{what} are wnids, and {error}{background}: {MAP_REMEDY}, or with 'wnid index' lines (if the model was "
            "trained on these very classes in sorted order, the sorted wnids are that file)"
        ) from error
    name = SYNSET_LISTS[num_classes][0]
    missing = [token for token in tokens if token not in index]
    if missing:
        raise DatasetError(
            f"{len(missing)} of {len(tokens)} {what} are wnids that are not among the classes of {name} "
            f"({some(missing, lines=lines)}): take their images out of the folder, or {MAP_REMEDY}"
        )
    return [index[token] for token in tokens], f"{name} indices of their wnids"


def _by_number(tokens: Sequence[str], num_classes: int, what: str, lines: Lines) -> tuple[list[int], str]:
    labels = [int(token) for token in tokens]
    outside = [token for token, number in zip(tokens, labels, strict=True) if number >= num_classes]
    if outside:
        counted_from_1 = min(labels) == 1 and max(labels) == num_classes
        hint = "; they seem to be counted from 1, and must be from 0" if counted_from_1 else ""
        raise DatasetError(
            f"{len(outside)} of {len(tokens)} {what} are numbers beyond a model of {num_classes} classes "
            f"({some(outside, lines=lines)}){hint}: check that model and data belong together, or give `class_map` "
            "FILE with 'name index' lines, or `label_order` imagefolder for class folders that ImageFolder ranked"
        )
    return labels, "their numbers"


def _by_name(tokens: Sequence[str], num_classes: int, what: str, lines: Lines) -> tuple[list[int], str]:
    raise DatasetError(f"{what} are neither wnids nor numbers ({some(tokens, lines=lines)}): {MAP_REMEDY}")


MATCHERS: dict[str, Callable[[Sequence[str], int, str, Lines], tuple[list[int], str]]] = {
    "wnid": _by_wnid,
    "number": _by_number,
    "name": _by_name,
}


def some(items: Collection[str], shown: int = 3, lines: Lines = None) -> str:
    """The first of them; with the numbers of their lines, where they stand in a file."""
    first = ", ".join(
        repr(item) + (f" (line {lines[item]})" if lines and item in lines else "")
        for item, _ in zip(items, range(shown), strict=False)
    )
    return first if len(items) <= shown else f"{first} and {len(items) - shown} more"


# ------------------------------------------------------------------------------------------ what speaks against numbers


@dataclass(frozen=True, slots=True)
class Numbers:
    """Numbers that name classes, and the model that they are to fit."""

    tokens: Sequence[str]
    values: list[int]  # ascending
    outputs: int
    are_folders: bool

    @property
    def is_imagenet(self) -> bool:
        return self.outputs in SYNSET_LISTS

    @property
    def counts_from(self) -> int | None:
        """Where the values start, if none between the first and the last is missing."""
        return self.values[0] if self.values == list(range(self.values[0], self.values[0] + len(self.values))) else None


def _beyond(numbers: Numbers) -> bool:
    return numbers.values[-1] >= numbers.outputs  # has a message of its own, in _by_number


def _from_1(numbers: Numbers) -> bool:
    return len(numbers.values) > 1 and numbers.counts_from == 1 and not _beyond(numbers)


def _background(numbers: Numbers) -> bool:
    """ImageNet with one output more, or a set of its own that has all classes but one."""
    if _beyond(numbers):
        return False
    if numbers.outputs == WITH_BACKGROUND:
        return True
    all_but_one = len(numbers.values) == numbers.outputs - 1 > 1 and numbers.counts_from == 0
    return all_but_one and numbers.are_folders and not numbers.is_imagenet


def _of_imagenet_1k(numbers: Numbers) -> bool:
    """Numbers below 1,000 alone with a network of the larger ImageNet, whose outputs have another order: a set of all
    21,841 classes, or any part of it that was not chosen for this, has larger ones too."""
    return numbers.is_imagenet and numbers.outputs > WITH_BACKGROUND and numbers.values[-1] < 1000


def _ranked_as_text(numbers: Numbers) -> bool:
    """Whether ImageFolder may have given other outputs: it sorts "10" before "2".

    Leading zeros make both orders one. ImageNet's outputs have an order that everyone uses: ImageNet-V2's folders.
    """
    if not numbers.are_folders or numbers.is_imagenet or numbers.outputs <= 10 or _beyond(numbers):
        return False
    padded = len({len(token) for token in numbers.tokens}) == 1 and any(token[0] == "0" for token in numbers.tokens)
    return not (padded and len(numbers.tokens[0]) > 1)


DOUBTS: dict[Callable[[Numbers], bool], str] = {
    _background: "they may count from a background class, output 0, that the data does not have",
    _of_imagenet_1k: "ImageNet-1k's 1000 classes have other numbers among the outputs of this network",
    _from_1: "they seem to be counted from 1, and outputs are counted from 0",
    _ranked_as_text: "torchvision's ImageFolder sorts them as text (10 before 2), so that a model trained with it has "
    "other outputs for them than one trained by their numbers",
}


def refuse_doubtful_numbers(tokens: Sequence[str], outputs: int, what: str, are_folders: bool) -> None:
    """Raises DatasetError where something speaks against taking numbers as outputs."""
    numbers = Numbers(tokens, sorted({int(token) for token in tokens}), outputs, are_folders)
    doubt = next((reason for found, reason in DOUBTS.items() if found(numbers)), None)
    if doubt:
        rank = ", `label_order` imagefolder if the model was trained with ImageFolder" if are_folders else ""
        raise DatasetError(
            f"{what} are numbers ({some(tokens)}), for a model of {outputs} outputs, and {doubt}: give `label_order` "
            f"number if each number is the model's output{rank}; else `class_map` FILE with 'name index' lines"
        )
