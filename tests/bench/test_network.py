"""bench/network.py: every way gives the plain network's answers, and is measured against it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench import network


def test_the_command(
    demo_root: Path, weights_file: Path, tmp_path: Path, fast_backend: object, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["--models", "test_resnet", "--checkpoint", str(weights_file), "--data", str(demo_root), "--img-size", "64"]
    argv += ["--data-backend", "torchvision", "-j", "1", "--chunks", "1,3", "--rounds", "2", "--round-seconds", "0.02"]
    assert network.main([*argv, "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "network.csv").open()))
    assert [(int(row["chunk"]), row["way"]) for row in rows] == [(n, way) for n in (1, 3) for way in network.WAYS]
    for row in rows:
        assert float(row["crops_per_sec"]) > 0 and int(row["rounds"]) == 2
        limit = 0.05 if "bfloat16" in row["way"] else 1e-4
        assert float(row["logit_difference"]) <= limit
        if row["way"] == network.PLAIN:
            assert float(row["ratio"]) == 1 and float(row["logit_difference"]) == 0
        if row["way"] == "fold":
            assert float(row["logit_difference"]) > 0  # something was folded
    assert "ratios are to plain" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        network.main([*argv, "--out", str(out)])  # never over results that are there


def test_slower_is_said() -> None:
    row = {"chunk": 1, "way": "x", "crops_per_sec": 1.0, "ratio": 0.9, "ratio_low": 0.8, "ratio_high": 0.95}
    row |= {"logit_difference": 0.0, "top1_agreement": 1.0}
    assert network.line(row).endswith("slower")
    assert not network.line({**row, "ratio_high": 1.05}).endswith("slower")
