"""ImageNet as it is downloaded: the validation tar beside the devkit's archive, and Kaggle's folders.

Made small: the devkit's own order of classes is a shuffled one; labels are known from how they were made.
pytest tests/pipelines/data/test_imagenet_downloads.py
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.labels import label
from pipelines.data.labels.classes import synset_index
from pipelines.data.scanning import refuse_several_sets, scan
from tests.devkit import DEVKIT, name_of, write_devkit

NUMBERS = (1, 2, 3, 50_000)


@pytest.fixture
def look(tmp_path: Path) -> Callable[..., Scan]:
    return lambda root: scan(root, workers=1, cache=tmp_path / "cache", progress=False)


def encoded(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number % 7, 6)).save(buffer, "JPEG")
    return buffer.getvalue()


def packed_devkit(folder: Path, tmp_path: Path) -> dict[str, int]:
    expected = write_devkit(tmp_path / "unpacked", NUMBERS)
    with tarfile.open(folder / f"{DEVKIT}.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "unpacked" / DEVKIT, DEVKIT)
    return expected


def write_tar(path: Path, folder: str = "") -> None:
    with tarfile.open(path, "w") as tar:
        for number in NUMBERS:
            data = encoded(number)
            member = tarfile.TarInfo(folder + name_of(number))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def labels(data: Dataset) -> dict[str, int]:
    return {
        name.rpartition("/")[2]: label
        for name, label in zip(data.table["name"], data.table["label"].tolist(), strict=True)
    }


@pytest.mark.parametrize("inside", ["", "val/"])
def test_the_validation_tar_finds_the_devkit_beside_it(inside: str, tmp_path: Path, look: Callable[..., Scan]) -> None:
    folder = tmp_path / "downloads"
    folder.mkdir()
    write_tar(folder / "ILSVRC2012_img_val.tar", inside)
    expected = packed_devkit(folder, tmp_path)
    data = label(look(folder / "ILSVRC2012_img_val.tar"), num_classes=1000)
    assert labels(data) == expected
    assert "ILSVRC2012_devkit_t12.tar.gz" in data.label_rule


def test_the_devkit_can_be_named(tmp_path: Path, look: Callable[..., Scan]) -> None:
    write_tar(tmp_path / "val.tar")
    (tmp_path / "kits").mkdir()
    expected = packed_devkit(tmp_path / "kits", tmp_path)
    found = look(tmp_path / "val.tar")
    assert not label(found, num_classes=1000).has_labels
    for devkit in (tmp_path / "kits" / f"{DEVKIT}.tar.gz", tmp_path / "unpacked" / DEVKIT):
        assert labels(label(found, num_classes=1000, labels_file=devkit)) == expected


def test_a_flat_folder_finds_the_unpacked_devkit_beside_it(tmp_path: Path, look: Callable[..., Scan]) -> None:
    (tmp_path / "imagenet" / "val").mkdir(parents=True)
    for number in NUMBERS:
        (tmp_path / "imagenet" / "val" / name_of(number)).write_bytes(encoded(number))
    expected = write_devkit(tmp_path / "imagenet", NUMBERS)
    assert labels(label(look(tmp_path / "imagenet" / "val"), num_classes=1000)) == expected


def test_other_images_do_not_take_a_devkit_that_lies_near(tmp_path: Path, look: Callable[..., Scan]) -> None:
    packed_devkit(tmp_path, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.jpg").write_bytes(encoded(1))
    assert not label(look(tmp_path / "mine"), num_classes=1000).has_labels


@pytest.fixture
def kaggle(tmp_path: Path) -> tuple[Path, dict[str, int]]:
    root = tmp_path / "kaggle"
    sets = root / "ILSVRC" / "Data" / "CLS-LOC"
    wnids = sorted(synset_index(1000))
    for number in NUMBERS:
        for name in ("val", "test"):
            (sets / name).mkdir(parents=True, exist_ok=True)
            (sets / name / name_of(number).replace("val", name)).write_bytes(encoded(number))
    (sets / "train" / wnids[7]).mkdir(parents=True)
    (sets / "train" / wnids[7] / f"{wnids[7]}_1.JPEG").write_bytes(encoded(1))
    lines = [
        f"{name_of(number)[:-5]},{wnids[number % 999]} 1 2 3 4 {wnids[number % 999]} 5 6 7 8 " for number in NUMBERS
    ]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]) + "\n")
    (root / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} words\n" for wnid in wnids))
    return root, {name_of(number): number % 999 for number in NUMBERS}


def test_kaggles_validation_folder_finds_its_table(
    kaggle: tuple[Path, dict[str, int]], look: Callable[..., Scan]
) -> None:
    root, expected = kaggle
    assert labels(label(look(root / "ILSVRC" / "Data" / "CLS-LOC" / "val"), num_classes=1000)) == expected
    train = label(look(root / "ILSVRC" / "Data" / "CLS-LOC" / "train"), num_classes=1000)
    assert train.table["label"].tolist() == [7]


@pytest.mark.parametrize("depth", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_a_folder_of_several_sets_is_refused_with_the_one_to_give(
    depth: str, kaggle: tuple[Path, dict[str, int]], look: Callable[..., Scan]
) -> None:
    root, _ = kaggle
    with pytest.raises(DatasetError, match=r"several sets of images: .* such as .*ILSVRC/Data/CLS-LOC/val$"):
        refuse_several_sets(root / depth)
    assert len(look(root / depth).table) == 9  # to predict, or to measure speed, all of them are there


def test_classes_called_train_and_test_are_classes(tmp_path: Path, look: Callable[..., Scan]) -> None:
    for name in ("bus", "test", "train"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "x.jpg").write_bytes(encoded(1))
    refuse_several_sets(tmp_path / "mine")
    assert label(look(tmp_path / "mine"), num_classes=3).table["label"].tolist() == [0, 1, 2]
