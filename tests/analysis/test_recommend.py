"""multicrop-bench recommend on made runs, and from a real one to a recipe that is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from analysis import recommend
from analysis.candidates import METRICS, candidates
from analysis.choice_figure import CHOSEN, DROPPED, MISSED, TIE, data_of, draw
from analysis.choosing import parts
from analysis.recommend import choose, parse_target
from bench.records import Incomparable, Latency
from models.recipe import read_recipe

IMAGES = 600  # of the made runs (conftest)
NAMES = [f"{i:04}.jpg" for i in range(IMAGES)]
LABELS = np.zeros(IMAGES, np.int64)


def targets(*texts: str) -> list[recommend.Target]:
    return [parse_target(text) for text in texts]


def test_the_most_accurate_is_chosen_and_reported_on_the_other_half(made_run) -> None:
    found = candidates([made_run()])
    choice = choose(found, [])
    assert choice.chosen.record.policy == "5RC"
    other_half = ~parts(NAMES)
    assert choice.images_reporting == other_half.sum()
    assert choice.top1 == pytest.approx(100 * choice.chosen.right[other_half].mean())
    assert choice.low < choice.top1 < choice.high
    assert choice.dropped == 3 and not choice.rivals and choice.expected_loss == 0


def test_a_target_leaves_out_what_does_not_meet_it(made_run) -> None:
    found = candidates([made_run()])
    choice = choose(found, targets("images_per_sec>=100"))
    assert choice.chosen.record.policy in ("2RC", "CC+1RC")
    assert choice.left_out == {"not images_per_sec>=100": 1}
    outcome = dict(zip([one.record.policy for one in found.found], choice.outcomes, strict=True))
    assert outcome["5RC"] == MISSED and outcome["CC"] == DROPPED
    assert {outcome["2RC"], outcome["CC+1RC"]} == {CHOSEN, TIE}
    ((rival, difference),) = choice.rivals
    assert {choice.chosen.record.policy, rival.record.policy} == {"2RC", "CC+1RC"} and difference.is_tie
    assert choose(found, targets("forwards<=1")).chosen.record.policy == "CC"
    text = "\n".join(recommend.text(choice))
    assert "1 other cannot be told apart" in text and "150.0 images/s" in text


TWO_CROPS = {"2RC", "CC+1RC"}
OF_EACH = {  # a target of each kind -> what may be chosen
    "images_per_sec>=150": TWO_CROPS, "images_per_sec>=151": {"CC"}, "forwards<=2": TWO_CROPS, "forwards<=1.5": {"CC"},
    "peak_mem_gb<=2": TWO_CROPS, "latency_p50_ms<=6.7": TWO_CROPS, "latency_p50_ms<=6.6": {"CC"},
    "latency_p99_ms<=20": TWO_CROPS, "latency_p99_ms<=19.9": {"CC"}, "latency_p99_ms<=50": {"5RC"},
    "top1>=88": {"5RC"},
}  # fmt: skip


def test_every_kind_of_target_is_tried() -> None:
    assert {parse_target(text).metric for text in OF_EACH} == {recommend.TOP1, *METRICS}


@pytest.mark.parametrize("text", OF_EACH)
def test_a_target_of_each_kind_is_met(made_run, text: str) -> None:
    choice = choose(candidates([made_run()]), targets(text))
    assert choice.chosen.record.policy in OF_EACH[text]


def test_a_tail_is_not_named_from_fewer_images_than_it_needs(made_run) -> None:
    run = made_run()
    short = [
        replace(one, latency_ms=one.latency_ms[:99], rows=one.rows[:99]) if isinstance(one, Latency) else one
        for one in run.records
    ]
    found = candidates([replace(run, records=short)])
    with pytest.raises(ValueError, match=r"latency_p99_ms was not measured of this policy .*100 or more"):
        choose(found, targets("latency_p99_ms<=20"))
    assert choose(found, targets("latency_p50_ms<=20")).chosen.record.policy == "5RC"


def test_a_target_for_accuracy_asks_for_the_fastest(made_run) -> None:
    found = candidates([made_run()])
    assert choose(found, targets("top1>=50")).chosen.record.policy == "CC"
    assert choose(found, targets("top1>=70")).chosen.images_per_sec == 150
    assert choose(found, targets("top1>=88")).chosen.record.policy == "5RC"
    with pytest.raises(ValueError, match=r"no setting has top1>=94 for sure with \d+ images and 4 settings"):
        choose(found, targets("top1>=94"))


def test_what_was_not_timed_is_left_out_with_the_reason(made_run) -> None:
    found = candidates([made_run(rates={1: 300.0})])
    choice = choose(found, targets("images_per_sec>=100"))
    assert choice.chosen.record.policy == "CC"
    assert choice.left_out == {"images_per_sec was not measured of this policy (what measures it: --crops)": 3}


def test_targets_that_nothing_meets_name_the_nearest(made_run) -> None:
    with pytest.raises(ValueError, match=r"none of 4 settings meets the targets: .*the nearest has 300"):
        choose(candidates([made_run()]), targets("images_per_sec>=1000"))


@pytest.mark.parametrize(
    "text",
    [
        "latency_ms<=3",
        "images_per_sec>500",
        "top1<=80",
        "forwards",
        "top1>=high",
        "images_per_sec<=3",
        "forwards>=2",
        "latency_p99_ms>=20",
        "peak_mem_gb>=1",
        "top1>=1.2.3",
        "top1>=-1",
    ],
)
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="`target`"):
        parse_target(text)


def test_runs_are_chosen_between_only_on_the_same_images_and_machine(made_run) -> None:
    first = made_run()
    with pytest.raises(Incomparable, match="data_hash differs"):
        candidates([first, made_run("images", data_hash="other", weight_hash="b")])
    with pytest.raises(Incomparable, match="machine_id differs"):
        candidates([first, made_run("machine", machine_id="other", weight_hash="b")])
    both = candidates([first, made_run("second", weight_hash="b", K=112, S=128)])
    assert len(both.found) == 8
    assert len(candidates([first, made_run("again")]).found) == 4  # the same measurements twice


def test_one_view_is_one_choice_at_whatever_level(maker) -> None:
    setting = maker.setting()
    top1 = {policy: np.zeros((2, IMAGES), np.int64) for policy in ("CC", "2RC")}
    run = maker.run("levels", maker.records_of(setting, LABELS, top1))
    maker.predictions(run, "a", NAMES, LABELS.tolist(), top1, np.zeros((IMAGES, 1)))
    found = candidates([run]).found
    assert [(one.record.policy, one.record.level) for one in found] == [
        ("CC", "softmax"), ("2RC", "feature"), ("2RC", "softmax"),
    ]  # fmt: skip
    assert [one.forwards for one in found] == [1, 2, 2]
    assert len(candidates([run], levels=["feature"]).found) == 2


def test_the_figure_shows_every_timed_setting_and_the_front(made_run) -> None:
    found = candidates([made_run(rates={1: 300.0, 2: 150.0})])
    outcomes = [CHOSEN if one.record.policy == "CC+1RC" else DROPPED for one in found.found]
    data = data_of(found, outcomes)
    assert sorted(data.cost.tolist()) == [150, 150, 300]  # five crops were not timed
    best = max(data.top1[data.cost == 150])
    assert data.front.tolist() == [cost == 300 or top1 == best for cost, top1 in zip(data.cost, data.top1, strict=True)]
    (axes,) = draw(data).axes
    drawn = [line for line in axes.lines if line.get_marker() == "*"]
    assert [line.get_xdata().tolist() for line in drawn] == [[150]]
    untimed = data_of(candidates([made_run("untimed", rates={})]), [CHOSEN] * 4)
    assert untimed.cost_label == "forward passes per image" and sorted(untimed.cost.tolist()) == [1, 2, 2, 5]


def test_few_images_are_refused(maker) -> None:
    setting = maker.setting()
    top1 = {"CC": np.zeros(30, np.int64)}
    run = maker.run("few", maker.records_of(setting, LABELS[:30], top1))
    maker.predictions(run, "a", NAMES[:30], LABELS[:30].tolist(), top1, np.zeros((30, 1)))
    with pytest.raises(ValueError, match="30 images are too few"):
        choose(candidates([run]), [])


def test_the_command_writes_a_recipe_with_the_honest_figures(
    made_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = made_run(), tmp_path / "recipe.json"
    command = [str(run.folder), "--target", "images_per_sec>=100", "--out", str(out)]
    assert recommend.main(command) == 0
    said = capsys.readouterr().out
    recipe = read_recipe(out)
    choice = choose(candidates([run]), targets("images_per_sec>=100"))
    assert recipe.use.policy == choice.chosen.record.policy and f"chosen: {choice.chosen.name}" in said
    assert matplotlib.image.imread(out.with_suffix(".png")).shape[1] > 700
    assert recipe.measured["top1"] == round(choice.top1, 3)
    assert recipe.measured["images"] == choice.images_reporting
    assert recipe.measured["images_per_sec"] == 150
    assert recipe.measured["choice"]["targets"] == ["images_per_sec>=100"]
    assert recipe.measured["choice"]["tied_with"] == [one.name for one, _ in choice.ties]
    recipe.require_unedited()
    assert recommend.main(command) == 2 and "exists" in capsys.readouterr().err


def test_a_recipe_is_checked_against_a_run_of_it(
    made_run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "recipe.json"
    run = made_run()
    assert recommend.main([str(run.folder), "--target", "forwards<=1", "--out", str(out)]) == 0
    monkeypatch.setattr("models.recipe.Recipe.changed_package", lambda self: None)
    assert recommend.main([str(run.folder), "--check", str(out)]) == 0
    assert "the recipe holds" in capsys.readouterr().out
    slow = made_run("slow", rates={1: 200.0})
    worse = made_run("worse", shares={"CC": 0.4})
    for other, line in ((slow, "NOT  images/s 200.0"), (worse, "NOT  top-1 ")):
        assert recommend.main([str(other.folder), "--check", str(out)]) == 1
        assert line in capsys.readouterr().out
    monkeypatch.setattr("models.recipe.Recipe.changed_package", lambda self: ("torch", "1", "2"))
    assert recommend.main([str(run.folder), "--check", str(out)]) == 1
    assert "NOT  packages: torch was 1, and is 2" in capsys.readouterr().out
    assert recommend.main([str(made_run("other", weight_hash="b").folder), "--check", str(out)]) == 2
    assert "no run measured" in capsys.readouterr().err
