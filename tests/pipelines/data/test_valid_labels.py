"""Lists of outputs among which answers are looked for, against timm's own files and ``validate.py``'s ranks.

pytest tests/pipelines/data/test_valid_labels.py
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.labels.valid import checked_valid_labels, label_among, read_valid_labels, words
from pipelines.data.scanning import scan


@pytest.fixture
def fill(tmp_path: Path) -> Callable[..., Scan]:
    def write_and_scan(*folders: str) -> Scan:
        for folder in folders:
            (tmp_path / "images" / folder).mkdir(parents=True)
            Image.new("RGB", (6, 4)).save(tmp_path / "images" / folder / "x.jpg")
        return scan(tmp_path / "images", workers=1, cache=tmp_path / "cache", progress=False)

    return write_and_scan


def text(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def labels(data: Dataset) -> dict[str, int]:
    return {name.split("/")[0]: label for name, label in zip(data.table["name"], data.table["label"], strict=True)}


def timm_file(name: str) -> Path:
    (folder,) = importlib.util.find_spec("timm").submodule_search_locations  # type: ignore[union-attr, misc]
    return Path(folder, "data", "_info", name)


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r", "mini_imagenet"])
def test_timms_indices_are_found_by_name_and_are_its_wnids(name: str) -> None:
    found = read_valid_labels(Path(f"{name}_indices.txt"), 1000)
    assert [str(label) for label in found] == timm_file(f"{name}_indices.txt").read_text().split()
    assert set(read_valid_labels(Path(f"{name}_synsets.txt"), 1000)) == set(found)


def test_wnid_folders_of_imagenet_a_keep_their_indices(fill: Callable[..., Scan]) -> None:
    wnids = timm_file("imagenet_a_synsets.txt").read_text().split()
    valid = read_valid_labels(Path("imagenet_a_indices.txt"), 1000)
    data = label_among(fill(*wnids), valid, num_classes=1000)
    by_rank = dict(zip(sorted(wnids), sorted(valid), strict=True))  # what timm's folder order and output[:, valid] give
    assert labels(data) == by_rank
    assert len(by_rank) == 200


def test_folders_that_only_have_a_rank_rank_among_the_valid_ones_as_in_timm(fill: Callable[..., Scan]) -> None:
    found = fill("backpack", "banana", "lamp")
    assert labels(label_among(found, (414, 954, 846), num_classes=1000)) == {
        "backpack": 414,
        "banana": 954,
        "lamp": 846,
    }
    with pytest.raises(DatasetError, match=r"3 class folders .* model of 2 classes"):
        label_among(found, (414, 954), num_classes=1000)


def test_numbers_are_outputs_and_are_ranks_only_where_that_is_said(fill: Callable[..., Scan]) -> None:
    found = fill("0", "2", "10")
    assert labels(label_among(found, (10, 2, 0, 5), num_classes=1000)) == {"0": 0, "2": 2, "10": 10}
    with pytest.raises(DatasetError, match=r"3 of 3 images .* not among the 3 of `valid_labels`.*imagefolder"):
        label_among(found, (7, 8, 9), num_classes=1000)
    ranked = label_among(found, (7, 8, 9), num_classes=1000, label_order="imagefolder")
    assert labels(ranked) == {"0": 7, "10": 8, "2": 9}  # as text


def test_images_of_other_classes_are_refused(fill: Callable[..., Scan]) -> None:
    found = fill("n01440764", "n01443537", "n15075141")
    with pytest.raises(DatasetError, match=r"1 of 3 images .*n15075141/x.jpg.* not among the 2"):
        label_among(found, (0, 1), num_classes=1000)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([5, 1000], "the outputs 0 to 999"),
        ([5, 7, 5], r"names an output twice \(5, lines 1 and 3\)"),
        (["tench", "goldfish"], "line 1: .* one output a line, or one wnid a line, and not 'tench'"),
        ([5, "n01440764"], "line 2: .* one output a line, or one wnid a line"),
        (["n00000001"], "are not wnids of a network of 1000 classes"),
        ([""], "empty"),
    ],
)
def test_a_list_that_does_not_fit_is_refused(lines: list[object], said: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=said):
        read_valid_labels(text(tmp_path / "valid.txt", *lines), 1000)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="`valid_labels`"):
        read_valid_labels(tmp_path / "imagenet_a_indices.txt", 1000)  # timm's are found by the bare name only


def test_the_record_tells_lists_apart_and_not_their_order() -> None:
    assert words(None, 1000) is None
    assert words((3, 1), 1000) == words((1, 3), 1000) != words((1, 4), 1000)
    assert checked_valid_labels([2, 0], 3) == (2, 0)
    with pytest.raises(DatasetError, match="at least one"):
        checked_valid_labels([], 3)
