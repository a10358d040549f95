"""The search: what is screened, dropped, measured on all images, continued and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import recommend as from_runs
from analysis.candidates import Candidate, Candidates
from bench import run
from bench.compare import recommend
from bench.compare.recommend import Case, Search, affordable, limited, settled_images, survivors, without
from bench.records import Accuracy, Run, Setting, Throughput, read_run
from models.recipe import read_recipe
from pipelines.data import demo

SETTING = Setting(
    model="a", family=None, variant=None, weights="pretrained", weight_hash="a", param_count=11, published_top1=None,
    published_in=None, S=256, K=224, interpolation="bilinear", crop_mode="center", data="val", data_hash="dd",
    is_demo=False, backend="dali-cpu", batch_size=64, batch_images=8, workers=2, device="cpu", machine_id="m1",
    amp_dtype="float32", channels_last=False, torchcompile=False, seed=0,
)  # fmt: skip
IMAGES = 200


def candidate(weights: str, share: float, rate: float | None, policy: str = "CC", views: int = 1) -> Candidate:
    setting = replace(SETTING, model=weights, weight_hash=weights)
    right = np.random.default_rng(0).random(IMAGES) < share
    record = Accuracy(setting, policy, views, "softmax", IMAGES, 0, int(right.sum()), IMAGES, 1.0, 0, 0, float(views))
    timed = None
    if rate:
        timed = Throughput(setting, "end_to_end", views, 8, [int(rate)], [1.0], [10.0], 10**9, None, 0.02)
    return Candidate(Run(Path(), {}, []), record, right, timed)


def screened(*found: Candidate) -> tuple[Candidates, dict[tuple[str, int, int], Case]]:
    cases = {recommend.key_of(one): Case(one.setting.model, None, None, 0.01) for one in found}
    return Candidates([f"{i}.jpg" for i in range(IMAGES)], list(found)), cases


def kept(*found: Candidate, targets: tuple[str, ...] = ()) -> tuple[list[str], dict[str, str]]:
    alive, dropped = survivors(screened(*found)[0], [from_runs.parse_target(t) for t in targets], screened(*found)[1])
    return [case.model for case in alive], dict(dropped)


def test_what_is_significantly_worse_is_dropped_with_the_reason() -> None:
    alive, dropped = kept(candidate("good", 0.9, 100), candidate("close", 0.88, 50), candidate("bad", 0.5, 300))
    assert alive == ["good", "close"] and dropped == {"bad": "every policy is significantly worse than the best"}


def test_a_network_stays_for_one_policy_that_may_be_the_answer() -> None:
    alive, _ = kept(candidate("a", 0.5, 300), candidate("a", 0.9, 100, "5RC", 5), candidate("b", 0.9, 80))
    assert alive == ["a", "b"]


def test_targets_drop_what_is_far_from_them_and_keep_what_a_short_timing_may_have_got_wrong() -> None:
    found = (candidate("fast", 0.8, 400), candidate("near", 0.9, 90), candidate("far", 0.95, 40))
    alive, dropped = kept(*found, targets=("images_per_sec>=100",))
    assert alive == ["near"] and "worse" in dropped["fast"]
    assert dropped["far"] == "far from images_per_sec>=100"
    with pytest.raises(ValueError, match=r"nothing comes near images_per_sec>=10000"):
        kept(*found, targets=("images_per_sec>=10000",))


def test_a_target_for_accuracy_keeps_what_may_reach_it() -> None:
    found = (candidate("fast", 0.6, 400), candidate("middle", 0.85, 200), candidate("slow", 0.95, 40))
    alive, dropped = kept(*found, targets=("top1>=80",))
    assert alive == ["middle", "slow"] and dropped == {"fast": "no policy reaches top1>=80"}
    with pytest.raises(ValueError, match=r"nothing reaches top1>=99\.9"):
        kept(found[0], targets=("top1>=99.9",))


def test_options_are_taken_apart() -> None:
    options = ["--models", "a,b", "--img-size=64,96", "--data", "images", "--limit=50", "-j", "2"]
    assert without(options, recommend.CASE_FLAGS) == ["--data", "images", "--limit=50", "-j", "2"]
    assert limited(options, 200) == ["--limit", "50"] and limited(options, 20) == ["--limit", "20"]
    assert limited(["--data", "images"], 200) == ["--limit", "200"]
    assert Case("resnet:demo", 64, 0.875, 1.0).flags == [
        "--models", "resnet:demo", "--img-size", "64", "--crop-pct", "0.875",
    ]  # fmt: skip


def test_all_cases_get_as_many_images_as_the_time_allows_also_when_continued(tmp_path: Path) -> None:
    cases = [Case("a", None, None, 0.1), Case("b", None, None, 0.3)]
    free = Search([], [], tmp_path, None, 100)
    assert affordable(free, cases, 50_000) == 50_000
    hour = replace(free, minutes=60)
    assert affordable(hour, cases, 50_000) == pytest.approx((3600 - 2 * recommend.TIMING_S) / 0.4, rel=0.01)
    assert affordable(replace(free, minutes=0.01), cases, 50_000) == 200  # twice the screened ones
    images = settled_images(hour, cases, 50_000)
    assert settled_images(replace(hour, minutes=1), cases, 50_000) == images


@pytest.mark.parametrize("option", ["--resume x", "--dry-run", "--no-accuracy", "--recipe=r.json"])
def test_options_that_the_search_settles_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend.main(["--models", "a", *option.split()]) == 2
    assert f"{option.split()[0].partition('=')[0]} is settled by the search" in capsys.readouterr().err


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    asked = Search(["--models", "a"], [], tmp_path / "s", None, 100)
    recommend.begin(asked)
    recommend.begin(asked)
    with pytest.raises(ValueError, match="holds another search"):
        recommend.begin(replace(asked, options=["--models", "b"]))


def test_without_networks_the_command_takes_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
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
            return run.INTERRUPTED
        return real(arguments)

    monkeypatch.setattr(run, "main", counted)
    assert recommend.main(command) == run.INTERRUPTED
    before = len(calls)
    assert recommend.main(command) == 0
    folders = [
        Path(call[call.index(flag) + 1]).name for call in calls for flag in ("--out", "--resume") if flag in call
    ]
    assert folders[0] == "screen" and "screen" not in folders[before:] and len(folders) > before
    said = capfd.readouterr().out
    lines = (tmp_path / "runs/search/dropped.csv").read_text().splitlines()
    assert lines[0] == "setting,reason" and 2 * (len(lines) - 1) == said.count("dropped: ")  # said twice
    assert "screened on 60 images" in said and "images that did not choose" in said
    stored: dict[str, Any] = json.loads((tmp_path / "recipe.json").read_text())
    assert stored["measured"]["choice"]["targets"] == ["forwards<=2"]
    # Of 160 images the 60 screened ones never report, and half of the others do.
    assert 30 <= stored["measured"]["images"] <= 70
    read_recipe(tmp_path / "recipe.json").require_unedited()
    finals = [read_run(path) for path in sorted((tmp_path / "runs/search").glob("final-*")) if path.is_dir()]
    assert len({record.setting.data_hash for one in finals for record in one.accuracies}) == 1
    assert all(record.images == 160 for one in finals for record in one.accuracies)
