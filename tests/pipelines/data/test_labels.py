"""Labels of made folders against timm's ImageNetInfo and class maps, torchvision's ranks, and indices known by heart.

pytest tests/pipelines/test_labels.py
"""

from __future__ import annotations

import csv
import io
import random
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.labels import label, unlabelled
from pipelines.data.labels import text as text_files
from pipelines.data.labels.class_map import read_class_map
from pipelines.data.labels.classes import LABEL_ORDERS, SYNSET_LISTS, kind_of, synset_index
from pipelines.data.labels.devkit import read_devkit_synsets
from pipelines.data.labels.folders import natural_key as labels_natural_key
from pipelines.data.scanning import scan

_buffer = io.BytesIO()
Image.new("RGB", (6, 4)).save(_buffer, "JPEG")
JPEG = _buffer.getvalue()

# Known to every user of ImageNet: tench, goldfish, tabby, golden retriever, toilet tissue.
GOLDEN = {"n01440764": 0, "n01443537": 1, "n02123045": 281, "n02099601": 207, "n15075141": 999}


Fill = Callable[..., Scan]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


@pytest.fixture
def fill(root: Path, tmp_path: Path) -> Fill:
    """Write these images and scan the folder."""

    def write_and_scan(*names: str) -> Scan:
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"" if "bad" in path.name else JPEG)
        return scan(root, workers=1, cache=tmp_path / "cache", progress=False)

    return write_and_scan


def by_name(data: Dataset) -> dict[str, int]:
    assert data.table["label"].dtype == np.int64
    return dict(zip(data.table["name"], data.table["label"].tolist(), strict=True))


def text(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------- wnids


def test_wnid_folders_of_a_subset_keep_their_imagenet_indices(fill: Fill) -> None:
    data = label(fill(*(f"{wnid}/x.JPEG" for wnid in GOLDEN)), num_classes=1000)
    assert by_name(data) == {f"{wnid}/x.JPEG": index for wnid, index in GOLDEN.items()}
    assert data.has_labels
    assert data.label_rule == "5 wnid folders -> ImageNet-1k indices of their wnids"


@pytest.mark.parametrize("num_classes", SYNSET_LISTS)
def test_each_list_is_the_one_that_timm_takes_for_the_number_of_classes(num_classes: int) -> None:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    names = ImageNetInfo(infer_imagenet_subset({"num_classes": num_classes}) or "none").label_names()
    assert len(names) == num_classes
    assert synset_index(num_classes) == {name: index for index, name in enumerate(names)}


def test_timm_knows_no_further_list() -> None:
    from timm.data.imagenet_info import _NUM_CLASSES_TO_SUBSET

    assert set(SYNSET_LISTS) == set(_NUM_CLASSES_TO_SUBSET)


def test_a_model_of_21843_classes_has_its_own_indices(fill: Fill) -> None:
    from timm.data import ImageNetInfo

    data = label(fill("n02123045/x.jpg"), num_classes=21843)
    info = ImageNetInfo("imagenet-21k-goog")
    assert info.index_to_label_name(by_name(data)["n02123045/x.jpg"]) == "n02123045"
    assert by_name(data)["n02123045/x.jpg"] != 281


@pytest.mark.parametrize("num_classes", [2, 10, 200])
def test_wnids_are_never_matched_by_rank(num_classes: int, fill: Fill) -> None:
    found = fill("n01440764/x.jpg", "n02123045/x.jpg")
    with pytest.raises(DatasetError, match=rf"model of {num_classes} classes .*`class_map` FILE.* sorted wnids"):
        label(found, num_classes=num_classes)


def test_a_class_map_of_wnids_serves_a_model_with_other_classes(fill: Fill, tmp_path: Path) -> None:
    found = fill("n01440764/x.jpg", "n02123045/x.jpg")
    data = label(found, num_classes=3, class_map=text(tmp_path / "m.txt", "n02123045", "n15075141", "n01440764"))
    assert by_name(data) == {"n01440764/x.jpg": 2, "n02123045/x.jpg": 0}
    assert "m.txt" in data.label_rule


def test_wnids_that_the_model_does_not_have_are_refused(fill: Fill) -> None:
    with pytest.raises(DatasetError, match=r"1 of 2 class folders .* not among .*ImageNet-1k \('n00007846'\)"):
        label(fill("n00007846/x.jpg", "n01440764/x.jpg"), num_classes=1000)


def test_images_may_lie_deeper_in_a_wnid_folder_but_not_in_another_wnid(fill: Fill) -> None:
    data = label(fill("n01440764/images/x.jpg", "n02123045/y.jpg"), num_classes=1000)
    assert by_name(data) == {"n01440764/images/x.jpg": 0, "n02123045/y.jpg": 281}
    with pytest.raises(DatasetError, match="more than one folder below"):
        label(fill("n02123045/n02123159/z.jpg"), num_classes=1000)


def test_the_list_is_read_without_importing_timm(fill: Fill) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pipelines.data.labels.classes import synset_index; "
        "print(synset_index(1000)['n02123045'], {'timm', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(text_files.__file__).parents[3])
    assert result.stdout.strip() == "281 set()", result.stderr


# -------------------------------------------------------------------------------------------------------------- numbers


def test_numbered_folders_go_by_number_the_imagenet_v2_trap(fill: Fill) -> None:
    names = [f"{number}/{number}.jpeg" for number in (0, 1, 2, 9, 10, 11, 100, 999)]
    data = label(fill(*names), num_classes=1000)
    assert by_name(data) == {name: int(name.split("/")[0]) for name in names}
    in_text_order = sorted(name.split("/")[0] for name in names)
    assert in_text_order.index("10") != 10  # what a rank would have given
    assert data.label_rule == "8 numbered folders -> their numbers"


def test_numbers_may_have_leading_zeros_but_not_twice(fill: Fill) -> None:
    data = label(fill("007/x.jpg", "010/y.jpg"), num_classes=1000)
    assert by_name(data) == {"007/x.jpg": 7, "010/y.jpg": 10}
    with pytest.raises(DatasetError, match=r"one number twice .*'007', '7'"):
        label(fill("7/z.jpg"), num_classes=1000)


def test_numbers_beyond_the_model_are_refused(fill: Fill) -> None:
    found = fill("1/x.jpg", "2/x.jpg", "3/x.jpg")
    with pytest.raises(
        DatasetError, match=r"1 of 3 .* beyond a model of 3 classes \('3'\); they seem to be counted from 1"
    ):
        label(found, num_classes=3)
    with pytest.raises(DatasetError, match=r"2 of 3 .* beyond a model of 2 classes \('2', '3'\): check"):
        label(found, num_classes=2)
    of_1_to_3 = {"1/x.jpg": 0, "2/x.jpg": 1, "3/x.jpg": 2}
    assert by_name(label(found, num_classes=3, label_order="imagefolder")) == of_1_to_3
    assert by_name(label(found, num_classes=4, label_order="number")) == {name: n + 1 for name, n in of_1_to_3.items()}


DOUBTFUL = {
    "as many folders as classes": (range(16), 16, "sorts them as text"),
    "some of the classes": ((3, 10, 12), 16, "sorts them as text"),
    "zeros that are not in front": ((10, 20, 30), 40, "sorts them as text"),
    "counted from 1, one class absent": (range(1, 8), 9, "counted from 1"),
    "counted from 1, ImageNet": (range(1, 11), 1000, "counted from 1"),
    "ImageNet and a background class": (range(1000), 1001, "background class"),
    "some of ImageNet and a background class": ((5, 207), 1001, "background class"),
    "some of ImageNet-1k and the larger ImageNet": ((5, 207), 21841, "other numbers among the outputs"),
    "ImageNet-1k and the larger ImageNet": (range(1000), 11821, "other numbers among the outputs"),
    "own classes and a background class": (range(5), 6, "background class"),
}


@pytest.mark.parametrize(("numbers", "num_classes", "doubt"), DOUBTFUL.values(), ids=DOUBTFUL)
def test_numbers_that_something_speaks_against_are_refused(
    numbers: Sequence[int], num_classes: int, doubt: str, fill: Fill
) -> None:
    found = fill(*(f"{number}/x.jpg" for number in numbers))
    with pytest.raises(DatasetError, match=rf"{doubt}.*`label_order` number.*imagefolder.*`class_map`"):
        label(found, num_classes=num_classes)
    by_number = by_name(label(found, num_classes=num_classes, label_order="number"))
    assert by_number == {f"{number}/x.jpg": number for number in numbers}


PLAIN = {
    "below ten, text and number agree": (("0", "1", "4"), 6),
    "all of ten": ([str(number) for number in range(10)], 10),
    "leading zeros": ([f"{number:02}" for number in range(16)], 16),
    "some, with leading zeros": (("003", "010"), 200),
    "all of ImageNet": ([str(number) for number in range(1000)], 1000),
}


@pytest.mark.parametrize(("folders", "num_classes"), PLAIN.values(), ids=PLAIN)
def test_numbers_that_nothing_speaks_against_are_the_outputs(
    folders: Sequence[str], num_classes: int, fill: Fill
) -> None:
    found = label(fill(*(f"{folder}/x.jpg" for folder in folders)), num_classes=num_classes)
    assert by_name(found) == {f"{folder}/x.jpg": int(folder) for folder in folders}


@pytest.mark.parametrize("names", [[str(number) for number in range(12)], [f"a{number}" for number in range(12)]])
def test_the_label_order_of_imagefolder_is_torchvisions(names: list[str], fill: Fill, root: Path) -> None:
    from torchvision.datasets import ImageFolder

    found = fill(*(f"{name}/x.jpg" for name in names))
    data = label(found, num_classes=12, label_order="imagefolder")
    theirs = {Path(path).relative_to(root).as_posix(): target for path, target in ImageFolder(str(root)).samples}
    assert by_name(data) == theirs
    assert "label order imagefolder" in data.label_rule
    by_number = by_name(label(found, num_classes=12, label_order="number"))
    assert by_number == {f"{name}/x.jpg": number for number, name in enumerate(names)}


def test_a_label_order_without_class_folders_or_beside_another_rule_is_refused(fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="wnids, which say their class themselves"):
        label(fill("n01440764/x.jpg"), num_classes=1000, label_order="number")
    lines = text(tmp_path / "lines.txt", "x.jpg 3")
    with pytest.raises(DatasetError, match=r"ranks class folders, .*lines\.txt"):
        label(fill("n01440764/x.jpg"), num_classes=1000, label_order="imagefolder", labels_file=lines)
    with pytest.raises(DatasetError, match="give one of them"):
        label(fill("n01440764/x.jpg"), num_classes=1000, label_order="number", class_map=lines)


def test_the_command_line_offers_the_label_orders() -> None:
    from bench.config import RunConfig
    from bench.options import options_of

    how = next(how for _, name, how in options_of(RunConfig) if name == "label_order")
    assert how.argparse["choices"] == tuple(LABEL_ORDERS)


# -------------------------------------------------------------------------------------------------------- other folders


def test_other_folders_go_by_rank_as_in_torchvision_and_timm(fill: Fill, root: Path) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets
    from torchvision.datasets.folder import find_classes

    found = fill("dog/a.jpg", "cat/b.jpg", "emu/c.jpg", "cat/d.jpg")
    data = label(found, num_classes=3)
    of_class = find_classes(str(root))[1]
    assert by_name(data) == {name: of_class[name.split("/")[0]] for name in found.table["name"]}
    assert by_name(data) == {str(Path(p).relative_to(root)): n for p, n in find_images_and_targets(str(root))[0]}
    assert "3 class folders -> their ranks" in data.label_rule


@pytest.mark.parametrize("num_classes", [2, 4, 1000])
def test_a_rank_needs_as_many_classes_as_folders(num_classes: int, fill: Fill) -> None:
    found = fill("dog/a.jpg", "cat/b.jpg", "emu/c.jpg")
    with pytest.raises(
        DatasetError, match=rf"3 class folders .*'cat', 'dog', 'emu'.* {num_classes} classes: give `class_map`"
    ):
        label(found, num_classes=num_classes)


def test_an_empty_class_folder_keeps_its_rank(fill: Fill, root: Path) -> None:
    (root / "bee").mkdir()
    (root / ".hidden").mkdir()
    data = label(fill("ant/a.jpg", "cat/b.jpg", "dog/bad.jpg", "dog/c.jpg"), num_classes=4)
    assert by_name(data) == {"ant/a.jpg": 0, "cat/b.jpg": 2, "dog/c.jpg": 3}


def test_a_class_whose_images_are_all_unreadable_keeps_its_rank(fill: Fill) -> None:
    data = label(fill("ant/a.jpg", "bee/bad.jpg", "cat/b.jpg"), num_classes=3)
    assert by_name(data) == {"ant/a.jpg": 0, "cat/b.jpg": 2}
    assert data.unreadable["name"].tolist() == ["bee/bad.jpg"]
    with pytest.raises(DatasetError, match=r"3 class folders .*model of 2 classes"):  # bee is one all the same
        label(fill(), num_classes=2)


def test_a_folder_without_images_beside_all_classes_is_no_class(fill: Fill, root: Path) -> None:
    (root / "annotations").mkdir()
    assert by_name(label(fill("bee/a.jpg", "cat/b.jpg"), num_classes=2)) == {"bee/a.jpg": 0, "cat/b.jpg": 1}


@pytest.mark.parametrize("folders", [("a10", "a2"), ("Zebra", "ape")])
def test_names_that_torchvision_and_timm_rank_differently_are_refused(folders: tuple[str, str], fill: Fill) -> None:
    with pytest.raises(DatasetError, match=r"rank differently in torchvision .* and in timm .*`class_map`"):
        label(fill(*(f"{folder}/x.jpg" for folder in folders)), num_classes=2)


def test_our_order_of_folders_is_timms() -> None:
    from timm.utils.misc import natural_key

    names = ["a10", "a2", "B1", "b", "7up", "x-3.5", "x-3.10", "ß2", "A"]
    assert sorted(names, key=labels_natural_key) == sorted(names, key=natural_key)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("n01440764/x.jpg", "cat/x.jpg"), r"different kinds \(name 'cat', wnid 'n01440764'\)"),
        (("3/x.jpg", "cat/x.jpg"), r"different kinds \(name 'cat', number '3'\)"),
        (("n01440764/x.jpg", "3/x.jpg"), "different kinds"),
        (("cat/x.jpg", "loose.jpg"), "1 images of its own and 1 in folders below it: move"),
        (("val/cat/x.jpg", "val/dog/x.jpg"), r"more than one folder below .*perhaps .*val\)"),
        (("val/n01440764/x.jpg", "train/n01440764/x.jpg"), r"more than one folder below .*perhaps .*train\)"),
        (("all/x.jpg", "all/y.jpg"), r"if 'all' is not a class, give .*images/all as `data`"),
    ],
)
def test_ambiguous_folders_are_refused_with_a_remedy(names: tuple[str, ...], message: str, fill: Fill) -> None:
    with pytest.raises(DatasetError, match=message) as refusal:
        label(fill(*names), num_classes=1000)
    assert "give " in str(refusal.value)


# ------------------------------------------------------------------------------------------------------------ class map


def test_a_class_map_of_lines_is_read_as_timm_reads_it(fill: Fill, root: Path, tmp_path: Path) -> None:
    from timm.data.readers.class_map import load_class_map
    from timm.data.readers.reader_image_folder import find_images_and_targets

    path = text(tmp_path / "names.txt", "emu", "polar bear", "cat")
    assert read_class_map(path, 3) == load_class_map(str(path))
    data = label(fill("cat/a.jpg", "polar bear/b.jpg"), num_classes=1000, class_map=path)
    pairs, _ = find_images_and_targets(str(root), class_to_idx=load_class_map(str(path)))
    assert by_name(data) == {str(Path(p).relative_to(root)): n for p, n in pairs}


def test_a_class_map_may_give_indices(tmp_path: Path) -> None:
    path = text(tmp_path / "map.txt", "polar bear 296", "brown bear\t294", "bear 294")
    assert read_class_map(path, 1000) == {"polar bear": 296, "brown bear": 294, "bear": 294}


def test_names_that_end_in_a_year_are_no_indices(tmp_path: Path) -> None:
    path = text(tmp_path / "cars.txt", "Audi TT 2011", "Audi TT 2012")
    assert read_class_map(path, 196) == {"Audi TT 2011": 0, "Audi TT 2012": 1}


def test_a_class_map_is_looked_up_in_the_root_too(fill: Fill, root: Path) -> None:
    text(root / "classes.txt", "dog", "cat")
    assert by_name(label(fill("cat/a.jpg"), num_classes=2, class_map=Path("classes.txt"))) == {"cat/a.jpg": 1}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("a/airfield/1.jpg", "b/beach/1.jpg"), [1, 0]),  # innermost folder
        (("beach/x/1.jpg", "airfield/y/2.jpg"), [1, 0]),  # folder below the root; sorted: airfield first
        (("p/q/1.jpg",), [2]),  # whole path
    ],
)
def test_a_class_map_settles_which_folder_is_the_class(
    folders: tuple[str, ...], expected: list[int], fill: Fill, tmp_path: Path
) -> None:
    path = text(tmp_path / "map.txt", "beach", "airfield", "p/q")
    assert list(by_name(label(fill(*folders), num_classes=3, class_map=path)).values()) == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat", "dog", "cat"], "class 'cat' 2 times"),
        (["cat", "", "dog"], "line 2, is blank"),
        (["a", "b", "c", "d"], "4 lines, for a model of 3 classes"),
        ([], "is empty"),
        (["dog", "emu"], r"1 of 1 class folders .* not in the class map \('cat'; the map has 'dog', 'emu'\)"),
    ],
)
def test_bad_class_maps_are_refused(lines: list[str], message: str, fill: Fill, tmp_path: Path) -> None:
    path = text(tmp_path / "map.txt", *lines)
    with pytest.raises(DatasetError, match=message):
        label(fill("cat/a.jpg"), num_classes=3, class_map=path)


def test_a_pickled_or_missing_or_binary_class_map_is_refused(fill: Fill, tmp_path: Path) -> None:
    found = fill("cat/a.jpg")
    with pytest.raises(DatasetError, match="pickle, which can run code"):
        label(found, num_classes=3, class_map=tmp_path / "map.pkl")
    with pytest.raises(DatasetError, match=r"cannot be read .*`class_map`"):
        label(found, num_classes=3, class_map=tmp_path / "missing.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00c")
    with pytest.raises(DatasetError, match=r"not UTF-8 text .*`class_map`"):
        label(found, num_classes=3, class_map=tmp_path / "binary.txt")
    with pytest.raises(DatasetError, match="no class folders for `class_map`"):
        label(flat_scan(tmp_path), num_classes=1, class_map=text(tmp_path / "m.txt", "cat"))


def flat_scan(tmp_path: Path) -> Scan:
    folder = tmp_path / "flat"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(JPEG)
    return scan(folder, workers=1, cache=tmp_path / "cache", progress=False)


# ---------------------------------------------------------------------------------------------------------- labels file


def test_a_flat_folder_has_no_labels(fill: Fill) -> None:
    data = label(fill("a.jpg", "b.jpg"), num_classes=1000)
    assert by_name(data) == {"a.jpg": -1, "b.jpg": -1}
    assert not data.has_labels and "no labels" in data.label_rule


def test_unlabelled_ignores_folders(fill: Fill) -> None:
    data = unlabelled(fill("cat/a.jpg", "loose.jpg"), "`accuracy`")
    assert set(by_name(data).values()) == {-1}
    assert not data.has_labels and data.label_rule == "no labels: `accuracy`"


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("l.txt", "b.jpg 281\na.jpg 0\nc d.jpg 999\n"),
        ("l.txt", "b.jpg\tn02123045\na.jpg n01440764\nc d.jpg n15075141"),
        ("l.txt", "\ufeffval/b.jpg 281\r\nval/a.jpg 0\r\nval/c d.jpg 999\r\n\r\n"),
        ("l.txt", "b 281\na 0\nc d 999\n"),
        ("l.csv", "filename,label\nb.jpg,281\na.jpg,0\nc d.jpg,999\n"),
        ("l.csv", "Image,Class,comment\nb,n02123045,x\na,n01440764,\nc d,n15075141,z\n"),
        ("l.csv", 'wnid,label,NAME\nn02123045,1,b.jpg\nn01440764,1,a.jpg\nn15075141,1,"c d.jpg"\n'),
        ("l.tsv", "name\tlabel\nb.jpg\t281\na.jpg\t0\nc d.jpg\t999\n"),
        (
            "l.csv",
            "ImageId,PredictionString\nb,n02123045 1 2 3 4\na,n01440764 5 6 7 8 n01440764 1 1 2 2\nc d,n15075141 \n",
        ),
        ("l.txt", "n01440764\nn02123045\nn15075141\n"),
    ],
)
def test_labels_files_of_all_forms_agree(file: str, content: str, fill: Fill, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content.encode())
    data = label(fill("a.jpg", "b.jpg", "c d.jpg"), num_classes=1000, labels_file=tmp_path / file)
    assert by_name(data) == {"a.jpg": 0, "b.jpg": 281, "c d.jpg": 999}
    assert data.has_labels and file in data.label_rule


def test_a_table_without_lines_is_refused(fill: Fill, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("name,label\n")
    with pytest.raises(DatasetError, match="has a header and no line of an image"):
        label(fill("a.jpg"), num_classes=1000, labels_file=tmp_path / "l.csv")


def test_of_two_columns_of_labels_the_rule_names_the_one_taken(fill: Fill, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("name,label,wnid\na.jpg,7,n01440764\n")
    data = label(fill("a.jpg"), num_classes=1000, labels_file=tmp_path / "l.csv")
    assert by_name(data) == {"a.jpg": 0}
    assert ", column wnid (not label) ->" in data.label_rule


@pytest.mark.parametrize("name", ["labels.txt", "labels.csv", "LOC_val_solution.csv"])
def test_a_labels_file_in_a_flat_folder_is_found(name: str, fill: Fill, root: Path) -> None:
    text(root / name, *(["name,label", "a.jpg,5"] if name.endswith("csv") else ["a.jpg 5"]))
    assert by_name(label(fill("a.jpg"), num_classes=10)) == {"a.jpg": 5}
    (root / ("labels.csv" if name == "labels.txt" else "labels.txt")).write_text("a.jpg 5\n")
    with pytest.raises(DatasetError, match=r"several labels files .*`labels_file`"):
        label(fill("a.jpg"), num_classes=10)


def test_class_folders_are_not_overruled_by_a_text_that_happens_to_lie_there(fill: Fill, root: Path) -> None:
    text(root / "labels.txt", "cat", "dog")
    assert by_name(label(fill("cat/a.jpg", "dog/b.jpg"), num_classes=2)) == {"cat/a.jpg": 0, "dog/b.jpg": 1}


def test_a_named_labels_file_overrules_class_folders(fill: Fill, tmp_path: Path) -> None:
    path = text(tmp_path / "l.txt", "cat/a.jpg 7", "dog/a.jpg 8")
    assert by_name(label(fill("cat/a.jpg", "dog/a.jpg"), num_classes=9, labels_file=path)) == {
        "cat/a.jpg": 7,
        "dog/a.jpg": 8,
    }


def test_labels_may_be_names_with_a_class_map(fill: Fill, tmp_path: Path) -> None:
    path, names = text(tmp_path / "l.txt", "a.jpg cat", "b.jpg emu"), text(tmp_path / "m.txt", "emu", "cat")
    found = fill("a.jpg", "b.jpg")
    assert by_name(label(found, num_classes=2, labels_file=path, class_map=names)) == {"a.jpg": 1, "b.jpg": 0}
    with pytest.raises(DatasetError, match=r"neither wnids nor numbers \('cat' \(line 1\), .*\): give `class_map`"):
        label(found, num_classes=2, labels_file=path)


def test_lines_for_unreadable_images_are_expected_and_others_counted(fill: Fill, tmp_path: Path) -> None:
    found = fill("a.jpg", "bad.jpg")
    data = label(found, num_classes=2, labels_file=text(tmp_path / "l.txt", "a.jpg 0", "bad.jpg 1"))
    assert "of its lines" not in data.label_rule
    data = label(found, num_classes=2, labels_file=text(tmp_path / "l.txt", "a.jpg 0", "x.jpg 1", "y.jpg 0"))
    assert "2 of its lines name no readable image here" in data.label_rule


@pytest.mark.parametrize(
    ("file", "lines", "message"),
    [
        ("l.txt", ["a.jpg 0"], r"1 lines \('a.jpg'\) and names 1 of the 2 images .*; 1 have no label \('b.jpg'\): add"),
        ("l.txt", ["x.jpg 0", "y.jpg 1"], r"names 0 of the 2 images .*2 have no label"),
        ("l.txt", ["a.jpg 0", "b.jpg 1", "a.jpg 1"], "names 'a.jpg' twice, in lines 1 and 3"),
        ("l.txt", ["p/a.jpg 0", "b.jpg 1", "q/a.jpg 1"], "one such name stands for several"),
        ("l.txt", ["a.jpg 0", "b.jpg n01440764"], "different kinds"),
        ("l.txt", ["a.jpg 0", "b.jpg 10"], "beyond a model of 10 classes"),
        ("l.txt", ["a.jpg 0", "b.jpg -1"], "different kinds"),
        ("l.txt", ["a.jpg 0", "b.jpg"], r"mixes .*\(line 2: 'b.jpg'\)"),
        ("l.txt", ["a.jpg,0", "b.jpg,1"], r"'a.jpg,0' is neither \(line 1\): write .*csv"),
        ("l.txt", ["n01440764", "n01440764"], "model of 10 classes"),
        ("l.txt", ["n01440764"], "1 lines, one for each file in sorted order, and .* has 2 image files"),
        ("l.txt", [], "is empty"),
        ("l.csv", ["a.jpg,0", "b.jpg,1"], "has the columns a.jpg, 0: its first line must name"),
        ("l.csv", ["name,label", "a.jpg,0,1"], "line 2, has 3 fields and not 2"),
        ("l.csv", ["name,label", "a.jpg,0", "b.jpg,"], "different kinds"),
        ("none.txt", None, "cannot be read .*`labels_file`"),
    ],
)
def test_bad_labels_files_are_refused(
    file: str, lines: list[str] | None, message: str, fill: Fill, tmp_path: Path
) -> None:
    path = tmp_path / file if lines is None else text(tmp_path / file, *lines)
    with pytest.raises(DatasetError, match=message):
        label(fill("a.jpg", "b.jpg"), num_classes=10, labels_file=path)


@pytest.mark.parametrize("before", [".\\", "C:\\data\\val\\", "/home/me/val/", "val/", "./val/", "\\\\server\\share\\"])
def test_paths_of_another_machine_are_matched_by_what_they_share(before: str, fill: Fill, tmp_path: Path) -> None:
    found = fill("cat/1.jpg", "dog/1.jpg")  # by file name alone they could not be told apart
    sign = "\\" if "\\" in before else "/"
    table = text(
        tmp_path / "t.csv", "path,label", *(f"{before}{kind}{sign}1.jpg,{n}" for n, kind in enumerate(("cat", "dog")))
    )
    assert by_name(label(found, num_classes=10, labels_file=table)) == {"cat/1.jpg": 0, "dog/1.jpg": 1}


def test_a_backslash_in_a_name_is_no_separator(fill: Fill, tmp_path: Path) -> None:
    table = text(tmp_path / "t.csv", "path,label", "cat\\1.jpg,3")
    assert by_name(label(fill("cat\\1.jpg"), num_classes=10, labels_file=table)) == {"cat\\1.jpg": 3}


def test_a_file_name_that_two_images_share_is_refused(fill: Fill, tmp_path: Path) -> None:
    path = text(tmp_path / "l.txt", "a.jpg 0")
    with pytest.raises(DatasetError, match="one such name stands for several"):
        label(fill("p/a.jpg", "q/a.jpg"), num_classes=10, labels_file=path)


# ---------------------------------------------------------------------------------------------------- ImageNet's devkit


@pytest.fixture(scope="module")
def devkit_order() -> list[str]:
    """Some order of ImageNet-1k's wnids that is not the sorted one."""
    wnids = sorted(synset_index(1000))
    random.Random(0).shuffle(wnids)
    return wnids


def ground_truth(folder: Path, *ids: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return text(folder / "ILSVRC2012_validation_ground_truth.txt", *(str(number) for number in ids))


def write_meta_mat(path: Path, wnids: list[str]) -> Path:
    """As the devkit's: 1 x n structure array, inner nodes behind the thousand classes."""
    from scipy.io import savemat

    inner = ["n00001740", "n00001930"]
    rows = [(index + 1, wnid, "words", "gloss", 0) for index, wnid in enumerate([*wnids, *inner])]
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children"]
    savemat(path, {"synsets": np.array(rows, dtype=[(name, object) for name in fields]).reshape(-1, 1)})
    return path


WRITERS = {
    "meta.mat": write_meta_mat,
    "synsets.txt": lambda path, wnids: text(path, *wnids),
    "synset_words.txt": lambda path, wnids: text(path, *(f"{wnid} some words, 3" for wnid in wnids)),
    "meta.txt": lambda path, wnids: text(
        path, *(f"{i}\t{wnid}\twords" for i, wnid in reversed([*enumerate(wnids, 1)]))
    ),
}


@pytest.mark.parametrize("companion", WRITERS)
def test_the_devkits_ground_truth_goes_through_its_own_order(
    companion: str, fill: Fill, tmp_path: Path, devkit_order: list[str]
) -> None:
    ids = {1: 490, 2: 1, 3: 1000}  # file number -> ILSVRC2012_ID
    path = ground_truth(tmp_path / "devkit", *ids.values())
    WRITERS[companion](path.with_name(companion), devkit_order)
    found = fill(*(f"ILSVRC2012_val_{number:08}.JPEG" for number in ids))
    data = label(found, num_classes=1000, labels_file=path)
    info = sorted(devkit_order)
    assert data.table["label"].tolist() == [info.index(devkit_order[id_ - 1]) for id_ in ids.values()]
    assert f"ILSVRC2012_IDs of {companion}" in data.label_rule


@pytest.mark.parametrize(
    "given", ["ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12/data"]
)
def test_the_devkit_is_read_as_downloaded_and_unpacked(
    given: str, fill: Fill, tmp_path: Path, devkit_order: list[str]
) -> None:
    folder = tmp_path / "ILSVRC2012_devkit_t12"
    truth = ground_truth(folder / "data", 490, 1, 1000)
    write_meta_mat(truth.with_name("meta.mat"), devkit_order)
    text(folder / "readme.txt", "words")
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    found = fill(*(f"ILSVRC2012_val_{number:08}.JPEG" for number in (1, 3)))
    data = label(found, num_classes=1000, labels_file=tmp_path / given)
    wnids = sorted(devkit_order)
    assert data.table["label"].tolist() == [wnids.index(devkit_order[489]), wnids.index(devkit_order[999])]


def test_an_archive_or_folder_that_is_no_devkit_is_refused(fill: Fill, tmp_path: Path) -> None:
    found = fill("x.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="folder without ILSVRC2012_validation_ground_truth"):
        label(found, num_classes=1000, labels_file=tmp_path / "empty")
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "empty", "empty")
    with pytest.raises(DatasetError, match="holds no ILSVRC2012_validation_ground_truth"):
        label(found, num_classes=1000, labels_file=tmp_path / "other.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes((tmp_path / "other.tar.gz").read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"cut\.tar\.gz cannot be read as an archive .*download it again"):
        label(found, num_classes=1000, labels_file=tmp_path / "cut.tar.gz")


def test_the_synsets_file_may_lie_elsewhere(fill: Fill, tmp_path: Path, devkit_order: list[str]) -> None:
    path, synsets = ground_truth(tmp_path / "d", 5), text(tmp_path / "order.txt", *devkit_order)
    data = label(fill("x.jpg"), num_classes=1000, labels_file=path, synsets_file=synsets)
    assert data.table["label"].tolist() == [sorted(devkit_order).index(devkit_order[4])]


def test_devkit_ids_without_their_order_are_refused(fill: Fill, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"ILSVRC2012_ID, which follows the devkit's own order.*meta.mat beside it"):
        label(fill("x.jpg"), num_classes=1000, labels_file=ground_truth(tmp_path / "d", 5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sorted, "sorted order, as Caffe's synset_words.txt"),
        (lambda wnids: wnids[:999], "999 of them are there; others: none"),
        (lambda wnids: [*wnids[:999], "n00001740"], "others: 'n00001740'"),
        (lambda wnids: [*wnids[:999], wnids[0]], "999 of them"),
        (lambda wnids: ["kit fox", *wnids], r"line 1, begins with no wnid \('kit fox'\)"),
    ],
)
def test_a_list_that_cannot_be_the_devkits_is_refused(
    change: Callable, message: str, tmp_path: Path, devkit_order: list[str]
) -> None:
    with pytest.raises(DatasetError, match=message):
        read_devkit_synsets(text(tmp_path / "synsets.txt", *change(devkit_order)))


def test_a_mat_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "meta.mat").write_bytes(b"no matrix")
    with pytest.raises(DatasetError, match=r"is not the devkit's meta.mat"):
        read_devkit_synsets(tmp_path / "meta.mat")


def test_numbers_that_are_no_devkit_ids_are_refused(fill: Fill, tmp_path: Path, devkit_order: list[str]) -> None:
    path = ground_truth(tmp_path / "d", 0, 1001)
    text(path.with_name("synsets.txt"), *devkit_order)
    with pytest.raises(
        DatasetError, match=r"2 numbers that are not ILSVRC2012_ID, .* \('0' \(line 1\), '1001' \(line 2\)\)"
    ):
        label(fill("x.jpg", "y.jpg"), num_classes=1000, labels_file=path)


def test_an_unreadable_image_does_not_shift_the_labels_behind_it(fill: Fill, tmp_path: Path) -> None:
    path = text(tmp_path / "l.txt", "n01440764", "n01443537", "n15075141")
    data = label(fill("a.jpg", "b_bad.jpg", "c.jpg"), num_classes=1000, labels_file=path)
    assert by_name(data) == {"a.jpg": 0, "c.jpg": 999}


def test_a_part_of_imagenets_validation_set_goes_by_the_number_in_the_name(fill: Fill, tmp_path: Path) -> None:
    path = text(tmp_path / "l.txt", "n01440764", "n01443537", "n15075141")
    found = fill("ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000001.JPEG")
    data = label(found, num_classes=1000, labels_file=path)
    assert by_name(data) == {"ILSVRC2012_val_00000001.JPEG": 0, "ILSVRC2012_val_00000003.JPEG": 999}
    with pytest.raises(DatasetError, match="go up to number 4"):
        label(fill("ILSVRC2012_val_00000004.JPEG"), num_classes=1000, labels_file=path)


# ----------------------------------------------------------------------------------------------------------------- demo


@pytest.fixture
def demo(fill: Fill, root: Path) -> Scan:
    """Three classes whose labels in demo.csv are not their ranks; ``star`` has no image."""
    (root / "star").mkdir()
    text(
        root / "demo.csv",
        "name,label,class,width,height,box_x",
        "disc/0.jpg,2,disc,6,4,1",
        "gear/1.jpg,0,gear,6,4,2",
    )
    return fill("disc/0.jpg", "gear/1.jpg")


def test_the_demo_set_has_its_own_labels(demo: Scan) -> None:
    data = label(demo, num_classes=3)
    assert data.is_demo and data.has_labels and data.label_rule.startswith("demo data")
    assert by_name(data) == {"disc/0.jpg": 2, "gear/1.jpg": 0}
    assert data.table["box_x"].tolist() == [1, 2]
    assert "demo_label" not in data.table


def test_the_demo_set_needs_a_demo_model(demo: Scan) -> None:
    with pytest.raises(DatasetError, match="3 classes and the model 1000: use a demo checkpoint"):
        label(demo, num_classes=1000)
    assert unlabelled(demo, "speed only").is_demo


# -------------------------------------------------------------------------------------------------------------- general


def test_the_table_and_the_unreadable_go_through(fill: Fill) -> None:
    found = fill("n01440764/a.jpg", "n01440764/bad.jpg")
    data = label(found, num_classes=1000)
    assert list(data.table)[:2] == ["name", "label"]
    pd.testing.assert_frame_equal(data.table.drop(columns="label"), found.table)
    assert data.unreadable is found.unreadable and data.root == found.root
    with pytest.raises(DatasetError, match="num_classes=0"):
        label(found, num_classes=0)


@pytest.mark.parametrize(
    ("token", "kind"),
    [("n01440764", "wnid"), ("n0144076", "name"), ("007", "number"), ("-1", "name"), ("1.0", "name"), ("٣", "name")],
)
def test_kinds_of_words(token: str, kind: str) -> None:
    assert kind_of(token) == kind


@pytest.mark.parametrize("flag", ["labels_file", "class_map"])
def test_a_file_that_is_far_too_large_for_labels_is_refused_unread(flag: str, fill: Fill, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    with path.open("wb") as file:
        file.truncate(3 << 40)  # with holes: it takes no room
    scan = fill("a/1.jpg", "b/2.jpg")
    with pytest.raises(DatasetError, match=r"labels.txt has 3298.5 GB.*`"):
        label(scan, num_classes=2, **{flag: path})


def test_names_with_line_ends_of_any_kind_are_found_in_a_table(fill: Fill, tmp_path: Path) -> None:
    names = ["new\nline.jpg", "carriage\rreturn.jpg", "line\u2028sep.jpg", "nel\u0085.jpg", "a,b.jpg", 'say "x".jpg']
    table = tmp_path / "table.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name", "label"], *([name, i] for i, name in enumerate(names))])
    data = label(fill(*names), num_classes=6, labels_file=table)
    assert by_name(data) == {name: i for i, name in enumerate(names)}
    lines = text(
        tmp_path / "labels.txt",
        *(f"{name} {i}" for i, name in enumerate(names) if "\n" not in name and "\r" not in name),
    )
    table.write_text("name,label\n" + "x" * 200_000 + ",1\n")
    with pytest.raises(DatasetError, match=r"line 2, is not CSV \(field larger"):
        label(fill(), num_classes=5, labels_file=table)
    without = fill()
    with pytest.raises(DatasetError, match="2 have no label"):
        label(without, num_classes=6, labels_file=lines)
