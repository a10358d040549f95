"""tests/stress/faults.py on a few damaged files, and with backends that are sabotaged: can it fail?"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from pipelines.backends import jpeg
from pipelines.backends import torchvision as backend_torchvision
from pipelines.batch import CropBatch
from pipelines.data.decode import READS, decode_error
from tests.stress import faults, packed

GOOD, EACH = 40, 5
Examine = Callable[..., faults.Outcome]


@pytest.fixture
def examine(tmp_path: Path, fast_backend: object) -> Examine:
    """``examine(kind, ...)``: torchvision, in this process, on a few files of each of these kinds."""

    def call(*kinds: str, good: int = 20, each: int = 3, forms: tuple[str, ...] = ()) -> faults.Outcome:
        root = tmp_path / "images"
        names = faults.write_good(root, good, seed=0)
        chosen = {name: faults.KINDS[name] for name in kinds}
        return faults.examine("torchvision", root, names, chosen, each, 0, 1, forms)

    return call


@pytest.mark.dali
@pytest.mark.slow
def test_damaged_files_cost_themselves_only_on_every_backend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, with batches as large as those in which DALI 2.4.0's decoder crashes (pipelines.backends.dali)."""
    table = tmp_path / "accounting.csv"
    backends = ["--data-backend", "dali-cpu", "--data-backend", "torchvision"]
    status = faults.main(["--good", str(GOOD), "--each", str(EACH), *backends, "--csv", str(table)])
    printed = capsys.readouterr().out
    assert status == 0, printed
    found = json.loads(printed.splitlines()[-1])
    kinds = faults.usable_kinds()
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for backend in ("dali-cpu", "torchvision"):
        own = [row for row in rows if row["backend"] == backend]
        assert len(own) == len({row["name"] for row in own}) == EACH * len(kinds) == found[backend]["damaged"]
        assert found[backend]["off"] == []
        assert all(row["outcome"] in kinds[row["kind"]].may_be for row in own)
        assert all(bool(row["reason"]) == (row["outcome"] != faults.SCORED) for row in own)
        late = sum(row["outcome"] == faults.AT_DECODING for row in own)
        assert late == found[backend][faults.AT_DECODING] >= faults.LEAST_LATE_SHARE * len(own)


def test_the_kinds_are_many_and_many_are_noticed_late() -> None:
    late = [k for k in faults.KINDS.values() if faults.AT_DECODING in k.may_be and faults.SCORED not in k.may_be]
    assert len(faults.KINDS) >= 30 and faults.EACH >= 100
    assert len(late) >= faults.LEAST_LATE_SHARE * len(faults.KINDS)


@pytest.mark.parametrize("name", [name for name, kind in faults.KINDS.items() if not kind.needs_a_user])
def test_a_kind_is_the_same_from_the_same_seed_and_is_damage(name: str, tmp_path: Path) -> None:
    kinds = {name: faults.KINDS[name]}
    listed = []
    for folder in ("a", "b"):
        good = faults.write_good(tmp_path / folder, 16, seed=1)
        kind_of = faults.write_damaged(tmp_path / folder, good, kinds, 2, seed=1)
        faults.damage_after_scan(tmp_path / folder, kind_of, kinds, seed=1)
        files = sorted(tmp_path.joinpath(folder).glob("*/kind*.jpg"))
        listed.append([(path.name, path.read_bytes() if path.is_file() else path.lstat().st_mode) for path in files])
        originals = {(tmp_path / folder / one).read_bytes() for one in good}
        assert all(decode_error(tmp_path / folder / one) == READS for one in good)
        assert not originals & {content for _, content in listed[-1]}
    assert listed[0] == listed[1]
    assert len(listed[0]) == (0 if name == "deleted after the scan" else 2)


FEW = ("cut in the pixels", "PNG", "empty", "deleted after the scan")


def test_a_sound_backend_passes(examine: Examine) -> None:
    found = examine(*FEW, forms=tuple(packed.FORMS))
    assert found.off == []
    counts = [" ".join(line.split()[-6:-1]) for line in faults.table(found.endings)[1:]]
    assert counts == ["3 0 3 0 0", "3 3 0 0 0", "3 0 0 3 0", "3 0 3 0 0"]  # in the order of KINDS
    assert [e.pil == READS for e in found.endings if e.kind == "PNG"] == [True] * 3


def sabotage(fast_backend: Any, monkeypatch: pytest.MonkeyPatch, change: Callable[[CropBatch], CropBatch]) -> None:
    real = fast_backend.batches

    def batches(self: Any, rows: np.ndarray) -> Iterator[CropBatch]:
        for batch in real(self, rows):
            yield change(batch)

    monkeypatch.setattr(fast_backend, "batches", batches)


def test_a_lost_image_is_noticed(examine: Examine, fast_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(fast_backend, monkeypatch, lambda batch: CropBatch(batch.groups, batch.rows, []))
    (off,) = examine(*FEW).off
    assert "RuntimeError" in off and "lost or repeated" in off


def test_a_neighbour_that_changes_is_noticed(
    examine: Examine, fast_backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(batch: CropBatch) -> CropBatch:
        if batch.failed:
            batch.groups[0].crops[0] = 255 - batch.groups[0].crops[0]
        return batch

    sabotage(fast_backend, monkeypatch, change)
    off = examine(*FEW, forms=("Parquet",)).off
    assert len(off) == 2 and off[0].startswith("Parquet: ")
    assert all("good images have other predictions beside damaged ones" in sentence for sentence in off)


def test_a_truncated_image_that_is_scored_is_noticed(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    def grey_filler(data: bytes) -> torch.Tensor:
        with Image.open(io.BytesIO(data)) as image:
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
            pixels = np.asarray(image.convert("RGB"))
            monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)

    monkeypatch.setattr(backend_torchvision, "decode_rgb", grey_filler)
    off = examine(*FEW).off
    assert [sentence.split(";")[0] for sentence in off if sentence.startswith("cut")] == [
        "cut in the pixels: 3 ended otherwise than they may",
        "cut in the pixels: 3 ended otherwise than PIL says",
    ]


def test_other_pixels_are_noticed(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    real = jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda source: 255 - real(source))
    (off,) = examine(*FEW).off
    assert off.startswith("PNG: 3 were scored with other pixels than PIL's")


def test_a_hang_and_a_crash_are_outcomes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = faults.parse(["--good", "16", "--each", "1", "--timeout", "0.01", "--data-backend", "torchvision"])
    good = faults.write_good(tmp_path / "images", 16, seed=0)
    found = faults.examine_apart("torchvision", tmp_path, good, ["empty"], args)
    assert "did not end within 0.01 s" in found.off[0]
    monkeypatch.setattr(faults, "_examine_there", sys.exit)
    args.timeout = 60
    found = faults.examine_apart("torchvision", tmp_path, good, ["empty"], args)
    assert "ended with exit status" in found.off[0]


def test_too_few_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        faults.parse(["--good", "3"])
    assert "--good 3" in capsys.readouterr().err
