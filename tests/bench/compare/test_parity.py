"""compare parity and compare one-pass on a few images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.compare import one_pass, parity
from bench.measure import scoring
from pipelines.backends import BACKENDS, unusable

HERE = [name for name in BACKENDS if unusable(name) is None]
Said = Callable[..., tuple[int, list[str], str]]


@pytest.fixture
def said(demo_root: Path, fast_backend: object, capsys: pytest.CaptureFixture[str]) -> Said:
    """``said(main, ...)``: status, lines of standard output, standard error; with the demo network of a family."""

    def call(main: Callable[[list[str]], int], *argv: str) -> tuple[int, list[str], str]:
        capsys.readouterr()
        status = main(["--family", "resnet", "--data", str(demo_root), "-j", "1", "-b", "8", *argv])
        found = capsys.readouterr()
        return status, found.out.splitlines(), found.err

    return call


def test_backends_agree_on_windows_frames_and_answers(said: Said) -> None:
    status, lines, _ = said(parity.main, "--policies", "5FC+5MFC,2RC+2MRC", "--limit", "9")
    found = json.loads(lines[-1])
    assert status == 0
    assert (found["model"], found["images"]) == ("resnet:demo", 9)
    assert [line.split(":")[0] for line in lines if "bit for bit" in line] == HERE
    assert all("all 9 images x 14 windows" in line for line in lines if "bit for bit" in line)
    pairs = {f"{a} - {b}" for a, b in combinations(HERE, 2)}
    assert set(found["top1_agreement"]) == pairs
    assert all(set(shares) == {"CC", "5FC+5MFC", "2RC+2MRC"} for shares in found["top1_agreement"].values())
    assert set(found["frames"]) == pairs | {f"{name} - float32 reference" for name in HERE}
    for pair, difference in found["frames"].items():
        assert 0 < difference["mean"] <= difference["worst"] < max(map(tolerance, pair.split(" - ")))
    for pair in found["frames"]:
        assert any(f"frames {pair}:" in line for line in lines)


def tolerance(name: str) -> float:
    return BACKENDS[name].tolerance_levels if name in BACKENDS else 0.0


def test_backends_that_are_not_here_are_named(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {"dali-gpu": "no GPU", "dali-cpu": "ImportError: no DALI", "torchvision": None}
    monkeypatch.setattr("pipelines.backends.unusable", lambda name, device: missing[name])
    status, lines, error = said(parity.main, "--policies", "CC", "--limit", "2", "--data-backend", "torchvision")
    assert status == 0
    assert "not compared: dali-cpu: ImportError: no DALI" in error and "not compared: dali-gpu: no GPU" in error
    assert json.loads(lines[-1])["top1_agreement"] == {}


@pytest.mark.dali
def test_answers_that_differ_fail_the_command(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    real = scoring.evaluate

    def evaluate(source: Any, *args: Any) -> Any:
        found = real(source, *args)
        if source.name == "dali-cpu":
            found.top1[:, 0, 4] += 1
        return found

    monkeypatch.setattr(scoring, "evaluate", evaluate)
    status, lines, _ = said(parity.main, "--policies", "1RC", "--limit", "5")
    shares = json.loads(lines[-1])["top1_agreement"]["dali-cpu - torchvision"]
    assert status == 1
    assert shares == {"CC": 0.8, "1RC": 1.0}
    assert any("80.00 % at CC" in line for line in lines)


def test_windows_that_differ_fail_the_command(said: Said, fast_backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fast_backend.batches

    def batches(self: Any, rows: np.ndarray) -> Iterator[Any]:
        for batch in real(self, rows):
            batch.groups[0].crops[-1] = batch.groups[0].crops[-1].flip(1)  # one crop of a batch
            yield batch

    monkeypatch.setattr(fast_backend, "batches", batches)
    status, lines, _ = said(parity.main, "--policies", "CC", "--limit", "2")
    wrong = json.loads(lines[-1])["wrong_pixels"]
    assert status == 1 and list(wrong) == ["torchvision"]
    assert re.search(r"torchvision: the crops of .* are not the planned windows", wrong["torchvision"])


@pytest.mark.parametrize("main", [parity.main, one_pass.main])
def test_mistakes_are_explained(main: Callable[[list[str]], int], said: Said) -> None:
    status, lines, error = said(main, "--variants", "18")
    assert (status, lines) == (2, [])
    assert error.splitlines()[-1].startswith("error: --variants")


def test_the_whole_curve_is_timed_against_its_largest_point_and_one_policy(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[tuple[int, list[str]]] = []
    took = {7: 6.0, 2: 3.0}  # seconds by number of policies

    def seconds(job: Any, policies: list[Any], rows: np.ndarray) -> float:
        passes.append((len(rows), [policy.name for policy in policies]))
        return took.get(len(policies), 1.0) * (1 + len(passes) % 2)

    monkeypatch.setattr(one_pass, "seconds", seconds)
    status, lines, _ = said(one_pass.main, "--crops", "1,4", "--rounds", "2", "--limit", "6")
    curve = ["CC", "1RC", "2RC", "CC+1RC", "3RC", "CC+2RC", "4RC", "CC+3RC"]
    sides = {"curve": curve, "largest": curve, "one policy": ["CC", "4RC"]}
    assert status == 0
    assert passes[:3] == [(6, policies) for policies in sides.values()]  # warm-up
    assert sorted(map(str, passes[3:6])) == sorted(map(str, passes[6:])) == sorted(str((6, p)) for p in sides.values())
    found = json.loads(lines[-1])
    assert (found["model"], found["images"]) == ("resnet:demo", 6)
    assert {side: len(times) for side, times in found["seconds"].items()} == dict.fromkeys(sides, 2)
    for other in ("largest", "one policy"):
        ratios = [a / b for a, b in zip(found["seconds"]["curve"], found["seconds"][other], strict=True)]
        assert found[f"curve / {other}"] == pytest.approx(np.median(ratios))


def test_one_pass_times_real_passes(said: Said) -> None:
    status, lines, _ = said(
        one_pass.main, "--crops", "2", "--rounds", "1", "--limit", "5", "--data-backend", "torchvision"
    )
    found = json.loads(lines[-1])
    assert status == 0
    assert all(0 < seconds < 60 for times in found["seconds"].values() for seconds in times)
