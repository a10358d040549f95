"""compare host-cost on a few batches."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from bench.compare import host_cost


@pytest.mark.dali
def test_the_total_is_the_sum_of_what_a_batch_costs(demo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvidia.dali")
    assert host_cost.main(["--data", str(demo_root), "--crops", "3", "--rounds", "2"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    took = result["us_per_image"]
    assert (result["batch_images"], result["crops"]) == (256, 3)
    assert took["total"] == pytest.approx(took["request"] + took["arguments"] + took["places"], abs=0.01)
    assert min(took.values()) > 0


def test_microseconds_are_the_median_for_one_image(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.256, 1.0, 1.512, 2.0, 9.0])  # batches of 0.256, 0.512 and 7 seconds
    monkeypatch.setattr(host_cost.time, "process_time", lambda: next(clock))
    calls: list[int] = []
    assert host_cost.microseconds(lambda: calls.append(1), rounds=3) == pytest.approx(2000.0)
    assert len(calls) == 4


def test_waiting_is_no_cost() -> None:
    """A step that sleeps, as one does that waits for a core, costs (nearly) no CPU time."""
    assert host_cost.microseconds(lambda: time.sleep(0.02), rounds=2) < 0.02 / host_cost.BATCH_IMAGES * 1e6 / 4


def test_without_dali_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("pipelines.backends.unusable", lambda name: "ImportError: no DALI")
    assert host_cost.main([]) == 2
    assert "no DALI" in capsys.readouterr().err
