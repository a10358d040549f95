"""multicrop-bench tune: what is faster in every round is kept, stored whole, and taken where no flag says otherwise."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import setup
from bench.compare import tune
from bench.measure import tuned
from bench.options import parse
from pipelines.batch import LoadConfig


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("rates", "kept"),
    [
        ({1: [1, 1, 1], 2: [2, 2, 2], 3: [3, 3, 3]}, 3),
        ({1: [5, 5, 5], 2: [2, 2, 2], 3: [5, 5, 5]}, 1),  # no faster than the default
        ({1: [1, 9, 1], 2: [4, 4, 4], 3: [2, 10, 2]}, 3),  # 2 is slower in one round
    ],
)
def test_only_what_is_faster_in_every_round_is_kept(rates: dict[int, list[float]], kept: int) -> None:
    left = {value: iter(found) for value, found in rates.items()}
    choices = [{"workers": value} for value in (1, 2, 3)]
    best, rows = tune.better(LoadConfig(workers=1), choices, lambda config: next(left[config.workers]), 3)
    assert best.workers == kept
    assert {(row["workers"], row["round"]): row["images_per_sec"] for row in rows} == {
        (value, number): rate for value, found in rates.items() for number, rate in enumerate(found)
    }


def test_a_gpus_threads_and_its_engines_share_are_settled_together() -> None:
    both, then = tune.candidates(16, gpu=True)
    assert {(choice["workers"], choice["hw_load"]) for choice in both} == {
        (threads, load) for threads in (8, 15, 16, 24, 32) for load in tune.HW_LOADS
    }
    assert [set(choice) for choice in then] == [{"prefetch"}] * 4
    assert all(set(choice) == {"workers"} for choice in tune.candidates(16, gpu=False)[0])
    assert tune.candidates(16, gpu=True, operators=["multi_paste"]) == [both, then]  # nothing to choose from
    cuts = [{"crop_operator": "multi_paste"}, {"crop_operator": "warp_affine"}]
    assert tune.candidates(16, gpu=True, operators=["multi_paste", "warp_affine"]) == [both, then, cuts]
    best, _ = tune.better(
        LoadConfig(workers=16), both, lambda c: 1000 - abs(c.workers - 24) - 99 * abs(c.hw_load - 0.25), 2
    )
    assert (best.workers, best.hw_load) == (24, 0.25)


def test_what_was_stored_is_taken_where_no_flag_says_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tuned.store("torchvision", {"workers": 3, "prefetch": 4, "hw_load": 0.65})

    def options(*argv: str) -> Any:
        argv = ("--family", "resnet", "--data-backend", "torchvision", "--device", "cpu", *argv)
        return setup.resolve(parse(argv).config).loading

    found = options()
    assert (found.workers, found.prefetch) == (3, 4)
    assert "found by multicrop-bench tune" in caplog.text
    assert options("--workers", "1").workers == 1


def test_damaged_and_foreign_values_are_not_taken(own_cache: Path) -> None:
    assert tuned.stored("dali-cpu") == {}
    own_cache.mkdir()
    for text in ("{", "3", '{"other": 1}'):
        (own_cache / tuned.FILE).write_text(text)
        assert tuned.stored("dali-cpu") == {}
    tuned.store("dali-cpu", {"workers": -1, "prefetch": "many", "hw_load": 0.5})
    assert tuned.stored("dali-cpu") == {"hw_load": 0.5}
    tuned.store("torchvision", {"workers": 2})
    assert tuned.stored("dali-cpu") == {"hw_load": 0.5}  # the other's are kept


def test_settings_change_no_prediction(small_run: Callable[..., Any]) -> None:
    plain = small_run("--crops", "2", "--no-throughput")
    tuned.store("torchvision", {"prefetch": 4})
    again = small_run("--crops", "2", "--no-throughput", out="tuned")
    assert again.run.info["load"]["prefetch"] == 4
    for name, values in plain.predictions().items():
        assert np.array_equal(values, again.predictions()[name]), name


def test_the_command(demo_root: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", str(demo_root), "--data-backend", "dali-cpu", "--img-size", "32", "--crops", "2"]
    out = own_cache.with_name("tune")
    pytest.importorskip("nvidia.dali")
    assert tune.main([*argv, "--device", "cpu", "--rounds", "1", "--round-seconds", "0.02", "--out", str(out)]) == 0
    kept = tuned.stored("dali-cpu")
    assert {*kept, "crop_operator"} == set(tune.FIELDS)  # on a CPU there is one operator worth trying
    assert "crop_operator" not in kept
    assert "(default)" in capsys.readouterr().out
    with (out / "tune.csv").open() as file:
        assert {row["backend"] for row in csv.DictReader(file)} == {"dali-cpu"}
    (own_cache / tuned.FILE).unlink()
    tuned.store("torchvision", {"workers": 2})
    tuned.restore(out)
    assert (tuned.stored("dali-cpu"), tuned.stored("torchvision")) == (kept, {"workers": 2})
    tuned.store("dali-cpu", {"workers": 7})
    tuned.restore(out)
    assert tuned.stored("dali-cpu") == {"workers": 7}  # found since
    assert tune.main(["--data", str(own_cache / "no"), "--device", "cpu"]) == 2
