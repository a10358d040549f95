"""Ceilings and crossover against exact fractions and ideal machines."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest

from analysis import ceilings
from bench.records import Setting, Throughput

SETTING = Setting(
    model="resnet18.tv_in1k", family="resnet", variant="18", weights="pretrained", weight_hash="aa", param_count=11,
    published_top1=69.76, published_in="MID Table I", S=256, K=224, interpolation="bilinear", crop_mode="center",
    data="val", data_hash="dd", is_demo=False, backend="dali-cpu", batch_size=64, batch_images=8, workers=2,
    device="cpu", machine_id="m1", amp_dtype="float32", channels_last=False, torchcompile=False, seed=0,
)  # fmt: skip


def rates(stage: str, crops: int | None, *per_second: float, setting: Setting = SETTING) -> Throughput:
    """Rounds of 8 seconds each."""
    counts = [int(8 * rate) for rate in per_second]
    return Throughput(setting, stage, crops, 8, counts, [8.0] * len(counts), [1.0], 10**9, None, 0.0)


def test_rates_beside_their_ceilings_and_the_crossover() -> None:
    """On shared cores with P = 400 images/s and M = 1000 crops/s, an ideal machine turns at N = M / P = 2.5."""
    counts = (1, 2, 5, 10)
    ideal = [rates("end_to_end", n, *[1 / (1 / 400 + n / 1000)] * 3) for n in counts]
    run = [rates("model", None, *[1000.0] * 3), *(rates("load", n, *[400.0] * 3) for n in counts), *ideal]
    rows = ceilings.rate_rows(run)
    assert [row["crops"] for row in rows] == list(counts)
    assert all(row["efficiency"] == pytest.approx(1, abs=0.01) for row in rows)
    assert [row["binds"] for row in rows] == ["pipeline", "pipeline", "network", "network"]
    assert all(a["images_per_sec"] > b["images_per_sec"] for a, b in pairwise(rows))
    turn = ceilings.crossover(run)
    assert turn is not None
    assert turn.predicted == pytest.approx(2.5, rel=0.01)
    assert turn.observed == pytest.approx(2.5, rel=0.03)


@pytest.mark.parametrize("crops", [1, 2, 5, 20])
@pytest.mark.parametrize(("P", "M"), [(400, 1000), (50, 6000), (3000, 90)])
def test_ceilings_are_those_of_the_design(P: int, M: int, crops: int) -> None:
    shared = ceilings.ceiling_images_per_sec(P, M, crops, shared=True)
    apart = ceilings.ceiling_images_per_sec(P, M, crops, shared=False)
    assert shared == pytest.approx(float(1 / (Fraction(1, P) + Fraction(crops, M))))
    assert apart == pytest.approx(float(min(Fraction(P), Fraction(M, crops))))
    assert apart / 2 <= shared < apart  # sharing cores costs something, at most half


@pytest.mark.parametrize(("device", "shared"), [("cpu", True), ("cuda:0", False)])
def test_each_crop_count_stands_beside_its_own_ceiling(device: str, shared: bool) -> None:
    setting = replace(SETTING, device=device)
    measured = [
        rates("decode", None, 900.0, setting=setting),
        rates("model", None, 1200.0, 1000.0, 800.0, setting=setting),
        rates("load", 10, 250.0, setting=setting),
        rates("end_to_end", 10, 80.0, 60.0, 70.0, setting=setting),
        rates("load", 1, 400.0, 500.0, 300.0, setting=setting),
        rates("end_to_end", 1, 200.0, setting=setting),
        rates("end_to_end", 7, 100.0, setting=setting),  # its pipeline was not timed: no ceiling, no row
    ]
    rows = {row["crops"]: row for row in ceilings.rate_rows(measured)}
    assert set(rows) == {1, 10}
    for crops, P, reached in ((1, 400.0, 200.0), (10, 250.0, 70.0)):
        row, ceiling = rows[crops], ceilings.ceiling_images_per_sec(P, 1000.0, crops, shared=shared)
        assert (row["pipeline_images_per_sec"], row["network_crops_per_sec"]) == (P, 1000.0)
        assert (row["images_per_sec"], row["crops_per_sec"]) == (reached, reached * crops)
        assert row["ceiling_images_per_sec"] == pytest.approx(ceiling)
        assert row["efficiency"] == pytest.approx(reached / ceiling)
        assert row["binds"] == ("pipeline" if crops == 1 else "network")
    assert rows[10]["rates"] == [80.0, 60.0, 70.0]


def test_without_the_network_alone_there_is_no_ceiling() -> None:
    measured = [rates("load", 1, 400.0), rates("end_to_end", 1, 200.0)]
    assert ceilings.rate_rows(measured) == []
    assert ceilings.crossover(measured) is None


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_an_ideal_machine_crosses_over_where_its_ceilings_say(device: str) -> None:
    setting, P, M = replace(SETTING, device=device), 4000.0, 16000.0
    measured = [rates("model", None, M, setting=setting)]
    for crops in (1, 2, 8, 16):
        ceiling = ceilings.ceiling_images_per_sec(P, M, crops, shared=device == "cpu")
        measured += [
            rates("load", crops, P, setting=setting),
            rates("end_to_end", crops, ceiling, setting=setting),
        ]
    found = ceilings.crossover(measured)
    assert found is not None and found.observed is not None
    assert (found.predicted, found.observed) == pytest.approx((4.0, 4.0), rel=0.01)
    one = ceilings.crossover(measured[:3])
    assert one is not None and (one.predicted, one.observed) == (4.0, None) and "only one" in one.text
