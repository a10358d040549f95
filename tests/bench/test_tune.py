"""bench/tune.py: what is faster in every round is kept, stored whole, and taken where no flag says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import setup, tune
from bench.options import parse
from pipelines.batch import LoadConfig
from pipelines.crops import parse_policy


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
    best = tune.better(LoadConfig(workers=1), "workers", [1, 2, 3], lambda config: next(left[config.workers]), 3)
    assert best.workers == kept


def test_what_was_stored_is_taken_where_no_flag_says_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    tune.store("torchvision", {"workers": 3, "prefetch": 4, "hw_decoder_load": 0.65})

    def options(*argv: str) -> Any:
        args = parse(["--family", "resnet", "--data-backend", "torchvision", "--device", "cpu", *argv])
        return setup.make_options(args, "demo", [parse_policy("CC")])

    found = options()
    assert (found.workers, found.prefetch) == (3, 4)
    assert "tuned" in capsys.readouterr().err
    assert options("--workers", "1").workers == 1


def test_damaged_and_foreign_values_are_not_taken(own_cache: Path) -> None:
    assert tune.stored("dali-cpu") == {}
    own_cache.mkdir()
    for text in ("{", "3", '{"other": 1}'):
        (own_cache / tune.FILE).write_text(text)
        assert tune.stored("dali-cpu") == {}
    tune.store("dali-cpu", {"workers": -1, "prefetch": "many", "hw_decoder_load": 0.5})
    assert tune.stored("dali-cpu") == {"hw_decoder_load": 0.5}
    tune.store("torchvision", {"workers": 2})
    assert tune.stored("dali-cpu") == {"hw_decoder_load": 0.5}  # the other's are kept


def test_settings_change_no_prediction(small_run: Callable[..., Any]) -> None:
    plain = small_run("--crops", "2", "--no-throughput")
    tune.store("torchvision", {"prefetch": 4})
    tuned = small_run("--crops", "2", "--no-throughput", out="tuned")
    assert tuned.run.info["load"]["prefetch"] == 4
    for name, values in plain.predictions().items():
        assert np.array_equal(values, tuned.predictions()[name]), name


def test_the_command(demo_root: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", str(demo_root), "--data-backend", "dali-cpu", "--img-size", "32", "--crops", "2"]
    pytest.importorskip("nvidia.dali")
    assert tune.main([*argv, "--device", "cpu", "--rounds", "1", "--round-seconds", "0.02"]) == 0
    assert set(tune.stored("dali-cpu")) == set(tune.FIELDS)
    assert "(default)" in capsys.readouterr().out
    assert tune.main(["--data", str(own_cache / "no"), "--device", "cpu"]) == 2
