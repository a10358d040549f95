"""compare network: every variant gives the plain network's answers, and is measured against it."""

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
    argv += [
        "--data-backend",
        "torchvision",
        "-j",
        "1",
        "--batch-sizes",
        "1,3",
        "--rounds",
        "2",
        "--round-seconds",
        "0.02",
    ]
    assert network.main([*argv, "--out", str(out)]) == 0
    rows = list(csv.DictReader((out / "network.csv").open()))
    assert [(int(row["batch_size"]), row["variant"]) for row in rows] == [
        (n, variant) for n in (1, 3) for variant in network.variants("cpu", False)
    ]
    for row in rows:
        assert float(row["crops_per_sec"]) > 0 and int(row["rounds"]) == 2
        limit = 0.05 if "bfloat16" in row["variant"] else 1e-4
        assert float(row["logit_difference"]) <= limit
        if row["variant"] == network.PLAIN:
            assert float(row["ratio"]) == 1 and float(row["logit_difference"]) == 0
        if row["variant"] == "fold":
            assert float(row["logit_difference"]) > 0  # something was folded
    assert network.main([*argv, "--fastest-only", "--batch-sizes", "1", "--out", str(tmp_path / "fastest")]) == 0
    fastest = [row["variant"] for row in csv.DictReader((tmp_path / "fastest" / "network.csv").open())]
    assert fastest == [network.PLAIN, network.TIMM, "channels-last, fold"]
    assert "ratios are to plain" in capfd.readouterr().out
    assert network.main([*argv, "--out", str(out)]) == 2  # never over results that are there


def test_a_gpu_is_compared_with_timm_in_the_same_type_layout_and_compile_mode() -> None:
    for device, dtype in (("cuda:0", "float16"), ("cpu", "float32")):
        for compiled in (False, True):
            theirs = network.variants(device, compiled)[network.TIMM]
            assert (theirs.amp_dtype, theirs.channels_last, theirs.compiled) == (dtype, True, compiled)
            ours = [one for one in network.variants(device, compiled).values() if one.fold and not one.as_timm]
            assert (dtype, True, compiled) in [(one.amp_dtype, one.channels_last, one.compiled) for one in ours]


def test_slower_is_said() -> None:
    row = {"batch_size": 1, "variant": "x", "crops_per_sec": 1.0, "ratio": 0.9, "ratio_low": 0.8, "ratio_high": 0.95}
    row |= {"logit_difference": 0.0, "top1_agreement": 1.0}
    assert network.row_text(row).endswith("slower")
    assert not network.row_text({**row, "ratio_high": 1.05}).endswith("slower")
