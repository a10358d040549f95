"""The search: what is screened, dropped, measured on all images, continued and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.recommend import parse_target
from bench import run
from bench.compare import recommend
from bench.compare.recommend import Search, affordable, second_look_images, settled
from bench.compare.search_options import LOADED_S, Case
from bench.records import read_run
from models.recipe import read_recipe
from pipelines.data import demo

CASES = [Case("a", None, None, 100.0, None), Case("b", None, None, 50.0, None)]
OPTIONS = ["--models", "a", "--policies", "10RC", "--no-cheap", "--no-throughput"]  # CC is scored too: 11 views


def asked(folder: Path, minutes: float = 60.0) -> Search:
    return Search(OPTIONS, [], folder, minutes, 300)


def test_all_cases_get_as_many_images_as_the_time_allows_also_when_continued(tmp_path: Path) -> None:
    hour = asked(tmp_path)
    assert affordable(hour, CASES, OPTIONS, 500, 100) == 400
    each = 1.3 * 11 * (1 / 100 + 1 / 50)
    assert affordable(hour, CASES, OPTIONS, 10_000, 300) == pytest.approx((3600 - 2 * LOADED_S) / each - 300, rel=0.01)
    # Most of the images, for as many networks as get them; else fewer for the first.
    one = [(minutes * 60 - LOADED_S) / (1.3 * 0.11) - 300 for minutes in (20, 5)]
    assert affordable(asked(tmp_path, 20), CASES, OPTIONS, 10_000, 300) == pytest.approx(one[0], rel=0.01)
    assert affordable(asked(tmp_path, 5), CASES, OPTIONS, 10_000, 300) == pytest.approx(one[1], rel=0.01)
    assert affordable(asked(tmp_path, 0.01), CASES, OPTIONS, 10_000, 300) == recommend.FEWEST
    images = settled(hour, "final", lambda: 70)
    assert settled(asked(tmp_path, 1), "final", lambda: 9) == images == 70
    assert settled(hour, "screen-2", lambda: 3) == 3 and settled(hour, "final", lambda: 1) == 70


def test_the_second_look_leaves_half_of_the_images_and_most_of_the_time(tmp_path: Path) -> None:
    for name, minutes, total, images in (("a", 60, 10_000, 200), ("b", 60, 300, 100), ("c", 0.01, 10_000, 0)):
        (tmp_path / name).mkdir()
        assert second_look_images(asked(tmp_path / name, minutes), CASES, total) == images


def test_what_no_time_is_left_for_is_left_out_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(recommend, "measure", lambda search, name, options: done.append(name))
    alive = {("a", 1, 1): CASES[0], ("b", 1, 1): CASES[1]}
    runs, left_out = recommend.finals(asked(tmp_path, 0.02), alive, 300, 1000)
    assert done == ["final-a"] and len(runs) == 1
    assert left_out == {("b", 1, 1): "no time was left to measure it (--minutes)"}
    assert f"{300 + recommend.FEWEST} of 1,000 images" in capsys.readouterr().out
    with pytest.raises(ValueError, match="leave too few to choose and to report on"):
        recommend.finals(asked(tmp_path), alive, 300, 320)


@pytest.mark.parametrize(
    "option", ["--resume x", "--dry-run", "--no-accuracy", "--recipe=r.json", "--skip 5", "--stages load"]
)
def test_options_that_the_search_settles_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.main(["--models", "a", *option.split()]) == 2
    assert f"{option.split()[0].partition('=')[0]} is settled by the search" in capsys.readouterr().err


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    search = asked(tmp_path / "s")
    recommend.begin(search)
    recommend.begin(replace(search, options=["--models", "typo"]))  # nothing was measured of it: no search to lose
    (search.out / "screen-1").mkdir()
    (search.out / "screen-1" / "run.json").touch()
    with pytest.raises(ValueError, match="holds another search"):
        recommend.begin(search)
    recommend.begin(replace(search, options=["--models", "typo"]))
    (search.out / "screen-1" / "run.json").unlink()
    recommend.begin(search)
    (search.out / "screen-1" / "run.json").touch()
    recommend.begin(search)
    for other in ({"options": ["--models", "b"]}, {"screen_images": 7}, {"targets": [parse_target("forwards<=2")]}):
        with pytest.raises(ValueError, match="holds another search"):
            recommend.begin(replace(search, **other))
    recommend.begin(replace(search, minutes=1))  # more time or less is the same search


def test_without_networks_the_command_takes_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert recommend.main(["--data", str(tmp_path), "--target", "forwards<=2"]) == 2
    assert "add --models NAMES" in capsys.readouterr().err
    assert recommend.main([str(tmp_path)]) == 2
    assert "is not a run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_screens_measures_chooses_and_goes_on_where_it_stopped(
    fast_backend: object,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = demo.ensure("val", images=160, cache=tmp_path / "demo", workers=1)
    monkeypatch.chdir(tmp_path)
    command = [
        "--models", "resnet:demo,mobilenet:demo", "--img-size", "48,64", "--data", str(root), "--crops", "1,2",
        "--data-backend", "torchvision", "--rounds", "1", "--round-seconds", "0.1", "-q", "--screen-images", "60",
        "--target", "forwards<=2",
    ]  # fmt: skip
    real: Callable[..., int] = run.main
    calls: list[list[str]] = []

    def counted(arguments: list[str]) -> int:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt  # outside of what a run catches
        if len(calls) == 5:
            return run.INTERRUPTED
        return real(arguments)

    monkeypatch.setattr(run, "main", counted)
    assert recommend.main(command) == run.INTERRUPTED
    assert recommend.main(command) == run.INTERRUPTED
    assert capfd.readouterr().err.count("goes on when the same command is given again") == 2
    before = len(calls)
    assert recommend.main(command) == 0
    folders = [
        Path(call[call.index(flag) + 1]).name for call in calls for flag in ("--out", "--resume") if flag in call
    ]
    assert folders[0] == "screen-1" and "screen-1" not in folders[1:] and len(folders) > before
    assert len(folders) == len(set(folders)) + 2  # the interrupted ones twice
    said = capfd.readouterr().out
    table = pd.read_csv(tmp_path / "runs/search/screening.csv")
    assert len(table) == 4 and (tmp_path / "runs/search/screening.png").is_file()
    assert (table["outcome"] == "dropped").sum() == said.count("  dropped: ")
    assert "4 are left after 20 images" in said or "of 4 are left after 20 images" in said
    assert "images that did not choose" in said and "measuring 1 of" in said
    stored: dict[str, Any] = json.loads((tmp_path / "recipe.json").read_text())
    assert stored["measured"]["choice"]["targets"] == ["forwards<=2"]
    # Of 160 images the 60 screened ones choose only, and half of the others report.
    assert 30 <= stored["measured"]["images"] <= 70
    assert stored["measured"]["images"] + stored["measured"]["choice"]["images_choosing"] == 160
    read_recipe(tmp_path / "recipe.json").require_unedited()
    finals = [read_run(path) for path in sorted((tmp_path / "runs/search").glob("final-*")) if path.is_dir()]
    screens = [read_run(path) for path in sorted((tmp_path / "runs/search").glob("screen-*")) if path.is_dir()]
    assert len({record.setting.data_hash for one in finals for record in one.accuracies}) == 1
    assert all(record.images == 160 for one in finals for record in one.accuracies)
    assert {record.images for one in screens for record in one.accuracies} == {20, 40}
    assert not any(one.throughputs for one in screens) and all(one.throughputs for one in finals)
    assert {t.stage for one in finals for t in one.throughputs} == {"end_to_end"}
    assert {one.info["config"]["network"]["preset"] for one in finals} == {"eager"}
    screened, final = (
        {name for one in runs for path in one.folder.glob("predictions-*.npz") for name in stored_names(path)}
        for runs in (screens, finals)
    )
    assert len(screened) == 60 and len(final) == 160 and screened < final


def stored_names(path: Path) -> list[str]:
    with np.load(path, allow_pickle=False) as stored:
        return [str(name) for name in stored["names"]]
