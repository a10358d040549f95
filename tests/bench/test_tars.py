"""bench/run.py on tar shards against the same command on the unpacked folder: every answer must be the same."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import records
from pipelines.data import demo
from pipelines.data.labels import label
from pipelines.data.scanning import scan

SHARDS = 3
BAD = "disc-bad/bad.jpg"


@pytest.fixture
def shards(demo_root: Path, tmp_path: Path) -> str:
    """The demo images in WebDataset's layout: each with a .cls of its own; and one that no decoder takes."""
    data = label(scan(demo_root, workers=1, progress=False), num_classes=len(demo.CLASSES)).table
    for part in range(SHARDS):
        with tarfile.open(tmp_path / f"val-{part:03}.tar", "w") as tar:
            for row in data.iloc[part::SHARDS].itertuples():
                text = tmp_path / "cls"
                text.write_text(str(row.label))
                tar.add(demo_root / str(row.name), str(row.name))
                tar.add(text, Path(str(row.name)).with_suffix(".cls").as_posix())
            if part == 0:
                tar.add(text, BAD)
    return str(tmp_path / f"val-{{000..{SHARDS - 1:03}}}.tar")


@pytest.mark.parametrize("name", [pytest.param("dali-cpu", marks=pytest.mark.dali), "torchvision"])
def test_answers_are_those_of_the_unpacked_folder(name: str, small_run: Callable, shards: str) -> None:
    argv = ["--crops", "1,3", "--no-throughput", "--data-backend", name]
    folder, packed = small_run(*argv, out="folder"), small_run(*argv, "--data", shards, "--no-mmap", out="packed")
    assert (folder.status, packed.status) == (0, 0), packed.stderr
    expected, found = folder.predictions(), packed.predictions()
    assert expected.keys() == found.keys() and len(expected["names"]) > 10
    for key, values in expected.items():
        if key == "facts":  # a tar's times are not the files'
            np.testing.assert_array_equal(found[key]["content_crc32"], values["content_crc32"])
        else:
            np.testing.assert_array_equal(found[key], values, err_msg=key)
    for one, other in zip(folder.run.records, packed.run.records, strict=True):
        if isinstance(one, records.Accuracy) and isinstance(other, records.Accuracy):
            assert replace(other, setting=one.setting, unreadable=0) == one
            assert other.unreadable == 1
            assert other.setting.data_hash == one.setting.data_hash
    info = json.loads((packed.out / "run.json").read_text())
    assert info["models"][0]["label_rule"] == "the .cls or .json beside each image -> their numbers"
    assert (info["data"], info["load"]["mmap"]) == (shards, False)
    assert BAD in (packed.out / "unreadable.csv").read_text()
    assert packed.last["images"][0]["unreadable"] == {"scan": 1, "decode": 0}


def test_a_missing_shard_is_an_error_that_names_it(small_run: Callable, shards: str) -> None:
    finished = small_run("--crops", "1", "--data", shards.replace("002", "004"))
    assert finished.status == 2
    assert "val-003.tar; 2 of the 5 tars of" in finished.stderr
