"""Second label sets against literal answers; what cannot be meant is refused with file, place and remedy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipelines.data.dataset import UNREADABLE_COLUMNS, Dataset, DatasetError
from pipelines.data.real_labels import read


def data_of(*names: str, unreadable: tuple[str, ...] = ()) -> Dataset:
    table = pd.DataFrame({"name": list(names), "label": 0})
    failed = pd.DataFrame({column: list(unreadable) for column in UNREADABLE_COLUMNS})
    return Dataset(Path("/images"), table, failed, "", True)


def file_of(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "real.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def imagenet(number: int, folder: str = "") -> str:
    return f"{folder}ILSVRC2012_val_{number:08d}.JPEG"


def test_a_list_goes_by_the_number_in_the_name_wherever_the_image_lies(tmp_path: Path) -> None:
    data = data_of(imagenet(3, "n01440764/"), imagenet(1, "n02099601/"), imagenet(2))
    found = read(file_of(tmp_path, [[7], [], [970, 795, 795], [3]]), data, 1000)
    assert found.sets.tolist() == [[795, 970], [7, -1], [-1, -1]]
    assert found.sets.dtype == np.int64
    assert found.rule == (
        "real.json: 2 of 3 images have labels, 1.50 each on average; 1 of its entries are of no readable image here"
    )


def test_an_object_goes_by_the_images_name(tmp_path: Path) -> None:
    data = data_of("b/x.png", "a/größe 1.jpg", unreadable=("a/bad.jpg",))
    found = read(file_of(tmp_path, {"a/größe 1.jpg": [2], "b/x.png": [], "a/bad.jpg": [0]}), data, 3)
    assert found.sets.tolist() == [[-1], [2]]
    assert found.rule == "real.json: 1 of 2 images have labels, 1.00 each on average"


def test_the_hash_tells_files_apart(tmp_path: Path) -> None:
    data = data_of("x.jpg")
    one = read(file_of(tmp_path, {"x.jpg": [1]}), data, 3).file_hash
    assert one == read(file_of(tmp_path, {"x.jpg": [1]}), data, 3).file_hash
    assert one != read(file_of(tmp_path, {"x.jpg": [2]}), data, 3).file_hash


@pytest.mark.parametrize(
    ("content", "names", "num_classes", "says"),
    [
        ("{", ["x.jpg"], 3, "is not what `real_labels` takes .*give JSON, a list of lists"),
        ('{"x.jpg": [1], "x.jpg": [2]}', ["x.jpg"], 3, "'x.jpg' comes twice"),
        (5, ["x.jpg"], 3, "holds 5: `real_labels` takes"),
        ({"x.jpg": [1]}, ["x.jpg", "y.jpg"], 3, r"does not name 1 of 2 images, such as 'y.jpg' .* with \[\]"),
        ({}, ["x.jpg"], 3, "does not name 1 of 1 images"),
        ({"x.jpg": 1}, ["x.jpg"], 3, "has 1 for 'x.jpg': give a list"),
        ({"x.jpg": [1.0]}, ["x.jpg"], 3, r"has \[1.0\] for 'x.jpg': give a list"),
        ({"x.jpg": [True]}, ["x.jpg"], 3, r"has \[True\] for 'x.jpg': give a list"),
        ({"x.jpg": [3]}, ["x.jpg"], 3, "has class 3 for 'x.jpg', and the model has the classes 0 to 2"),
        ({"x.jpg": [-1]}, ["x.jpg"], 3, "has class -1"),
        ({"x.jpg": []}, ["x.jpg"], 3, "no label for any of the 1 images"),
        ([[1]], ["x.jpg"], 3, "'x.jpg' is not an ILSVRC2012_val_00000001.JPEG"),
        ([[1]], [imagenet(2)], 3, "has 1 entries, and the images' names go from number 2 to 2"),
        ([[1]], [imagenet(0)], 3, "go from number 0 to 0"),
        ([[1]], [imagenet(1)], 21841, "the 21841 classes of ImageNet-22k, whose numbers mean others"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    content: Any, names: list[str], num_classes: int, says: str, tmp_path: Path
) -> None:
    path = file_of(tmp_path, content)
    with pytest.raises(DatasetError, match=says) as refusal:
        read(path, data_of(*names), num_classes)
    assert str(path) in str(refusal.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.json cannot be read .*`real_labels`"):
        read(tmp_path / "nowhere.json", data_of("x.jpg"), 3)
