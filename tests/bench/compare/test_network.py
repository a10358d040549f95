"""bench/compare/network.py: every way gives the plain network's answers, and is measured against it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from bench.compare import network


def test_the_command(
    demo_root: Path, weights_file: Path, tmp_path: Path, fast_backend: object, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    argv = ["--models", "test_resnet", "--checkpoint", str(weights_file), "--data", str(demo_root), "--img-size", "64"]
    argv += ["--data-backend", "torchvision", "-j", "1", "--chunks", "1,3", "--rounds", "2", "--round-seconds", "0.02"]
    assert network.main([*argv, "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "network.csv").open()))
    assert [(int(row["chunk"]), row["way"]) for row in rows] == [
        (n, way) for n in (1, 3) for way in network.ways("cpu", False)
    ]
    for row in rows:
        assert float(row["crops_per_sec"]) > 0 and int(row["rounds"]) == 2
        limit = 0.05 if "bfloat16" in row["way"] else 1e-4
        assert float(row["logit_difference"]) <= limit
        if row["way"] == network.PLAIN:
            assert float(row["ratio"]) == 1 and float(row["logit_difference"]) == 0
        if row["way"] == "fold":
            assert float(row["logit_difference"]) > 0  # something was folded
    folded = tmp_path / "folded"  # a way is what its name says, whatever bench/run.py's own flags say
    assert network.main([*argv, "--fold", "--chunks", "1", "--out", str(folded)]) == 0
    again = {row["way"]: float(row["logit_difference"]) for row in csv.DictReader((folded / "network.csv").open())}
    assert again["fold"] > 0 == again[network.PLAIN]
    assert "ratios are to plain" in capfd.readouterr().out
    with pytest.raises(SystemExit):
        network.main([*argv, "--out", str(out)])  # never over results that are there


def test_a_gpu_is_compared_with_timm_in_the_same_type_layout_and_compile_mode() -> None:
    for device, dtype in (("cuda:0", "float16"), ("cpu", "float32")):
        for compiled in (False, True):
            theirs = network.ways(device, compiled)[network.TIMM]
            assert (theirs.amp_dtype, theirs.channels_last, theirs.compiled) == (dtype, True, compiled)
            ours = [way for way in network.ways(device, compiled).values() if way.fold and not way.as_timm]
            assert (dtype, True, compiled) in [(way.amp_dtype, way.channels_last, way.compiled) for way in ours]


def test_slower_is_said() -> None:
    row = {"chunk": 1, "way": "x", "crops_per_sec": 1.0, "ratio": 0.9, "ratio_low": 0.8, "ratio_high": 0.95}
    row |= {"logit_difference": 0.0, "top1_agreement": 1.0}
    assert network.line(row).endswith("slower")
    assert not network.line({**row, "ratio_high": 1.05}).endswith("slower")
