"""tests/stress/scan_scale.py in miniature, with targets that are missed, and with a scan that is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.stress import scan_scale


def in_this_process(function: Any, *args: object) -> dict[str, float]:
    return function(*args)


@pytest.mark.dali
def test_the_command_measures_keeps_its_targets_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = scan_scale.main(["--headers", "70", "--entries", "90", "--folder", str(tmp_path), "-j", "1"])
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(lines[-1])
    assert status == 0 and found["missed"] == []
    assert (found["headers"], found["entries"]) == (70, 90)
    assert all(value > 0 for key, value in found.items() if key.endswith(("_s", "_bytes")) and "above" not in key)
    parts = sum(found[f"start_{part}_s"] for part in ("scan", "labels", "data_hash", "first_batch"))
    assert parts == pytest.approx(found["start_s"])
    assert found["start_total_bytes"] == found["imports_bytes"] + found["start_above_imports_bytes"]
    assert sum("kept: at most" in line for line in lines) == len(scan_scale.TARGETS)
    assert list(tmp_path.iterdir()) == []


def test_a_missed_target_is_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in scan_scale.TARGETS:
        most = {**scan_scale.TARGETS, key: (5.0, scan_scale.TARGETS[key][1])}
        measured = dict.fromkeys(most, 4.0) | {key: 6.0}
        with monkeypatch.context() as patch:
            patch.setattr(scan_scale, "TARGETS", most)
            patch.setattr(scan_scale, "measure_headers", lambda *args: {})
            patch.setattr(scan_scale, "measure_start", lambda *args, measured=measured: measured)
            assert scan_scale.main(["--folder", str(tmp_path)]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert json.loads(lines[-1])["missed"] == [key]
        assert ["MISSED" in line for line in lines[:-1]] == [line.startswith(key) for line in lines[:-1]]


def test_entries_are_links_and_new_files_where_links_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, most = os.link, 3

    def link(source: Path, target: Path) -> None:
        if os.stat(source).st_nlink >= most:  # noqa: PTH116
            raise OSError(31, "Too many links")
        real(source, target)

    monkeypatch.setattr(os, "link", link)
    entries = 10 * len(scan_scale.SIZES)
    scan_scale.write_entries(tmp_path, entries)
    files = sorted(tmp_path.glob("*/*.jpg"))
    assert len(files) == entries
    assert len({path.stat().st_ino for path in files}) == 4 * len(scan_scale.SIZES)  # 3 + 3 + 3 + 1 names
    for path in files[:: len(files) // 50]:
        with Image.open(path) as image:
            assert image.size == scan_scale.SIZES[int(path.stem[-8:]) % len(scan_scale.SIZES)]


def test_a_wrong_scan_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_scale, "alone", in_this_process)
    assert scan_scale.measure_headers(tmp_path, 20, 1)["headers"] == 20
    root, cache = str(tmp_path / "images"), str(tmp_path / "cache")
    with pytest.raises(RuntimeError, match="found 20 of 21 files"):
        scan_scale.scan_alone(root, cache, 21, 1)
    path = next(Path(root).glob("*/*_00000003.jpg"))
    path.write_bytes(scan_scale.pictures()[4])
    with pytest.raises(RuntimeError, match="sizes that are not theirs"):
        scan_scale.scan_alone(root, cache, 20, 1)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(SystemExit):
        scan_scale.parse(["--entries", "0"])
