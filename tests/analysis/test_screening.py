"""Which networks a search drops after a few images, on made answers: with the reason, and how often wrongly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from analysis import choosing
from analysis.candidates import Candidate, Candidates
from analysis.choice_figure import CHOSEN, TIE
from analysis.recommend import choose, parse_target
from analysis.screening import Verdict, joined, key_of, promising_first, verdicts
from analysis.screening_figure import Data, draw, write_screening
from bench.records import Accuracy, Latency, Run, Setting, Throughput

SETTING = Setting(
    model="a", family=None, variant=None, weights="pretrained", weight_hash="a", param_count=11, published_top1=None,
    published_in=None, S=256, K=224, interpolation="bilinear", crop_mode="center", data="val", data_hash="dd",
    is_demo=False, backend="dali-cpu", batch_size=64, batch_images=8, workers=2, device="cpu", machine_id="m1",
    amp_dtype="float32", channels_last=False, torchcompile=False, seed=0,
)  # fmt: skip
IMAGES = 200
DIFFICULTY = np.random.default_rng(0).random(IMAGES)


def made(
    model: str,
    share: float,
    rate: float | None = None,
    policy: str = "CC",
    views: int = 1,
    latency_ms: float | None = None,
    memory_gb: float = 1.0,
) -> Candidate:
    """A setting that gets the easiest images right, so that a less accurate one is never right where it is wrong."""
    setting = replace(SETTING, model=model, weight_hash=model)
    right = np.less(DIFFICULTY, share)
    record = Accuracy(setting, policy, views, "softmax", IMAGES, 0, int(right.sum()), IMAGES, 1.0, 0, 0, float(views))
    timed = alone = None
    if rate:
        timed = Throughput(
            setting, "end_to_end", views, 8, [int(rate)], [1.0], [10.0], int(memory_gb * 1e9), None, 0.02
        )
    if latency_ms:
        alone = Latency(setting, policy, views, views, [latency_ms] * 19 + [2 * latency_ms], list(range(20)), views)
    return Candidate(Run(Path(), {}, []), record, right, timed, alone)


def judged(*found: Candidate, targets: tuple[str, ...] = ()) -> dict[str, Verdict]:
    names = {key_of(one): one.setting.model for one in found}
    every = Candidates([f"{i}.jpg" for i in range(IMAGES)], list(found))
    done = verdicts(every, names, [parse_target(t) for t in targets], lambda one: one.images_per_sec, "screening 1")
    return {verdict.name: verdict for verdict in done.values()}


def kept(*found: Candidate, targets: tuple[str, ...] = ()) -> list[str]:
    return [name for name, verdict in judged(*found, targets=targets).items() if verdict.kept]


def test_what_is_significantly_worse_is_dropped_with_the_reason() -> None:
    done = judged(made("good", 0.9), made("close", 0.87), made("bad", 0.5))
    assert [name for name, verdict in done.items() if verdict.kept] == ["good", "close"]
    assert done["bad"].reason.endswith("points worse than good at 224 px") and done["bad"].images == IMAGES


def test_one_that_is_13_points_worse_does_not_survive_300_images_of_16_networks() -> None:
    """81.0 % against 94.5 %, with answers that disagree as those of networks do."""
    rng = np.random.default_rng(1)
    survived = 0
    for _ in range(20):
        shares = {f"n{i}": share for i, share in enumerate(np.linspace(0.6, 0.92, 14))} | {"best": 0.945, "bad": 0.81}
        difficulty = rng.random(300)
        found = []
        for model, share in shares.items():
            own = rng.random(300)
            right = np.where(rng.random(300) < 0.7, difficulty, own) < share
            one = made(model, share)
            found.append(replace(one, right=right))
        names = {key_of(one): one.setting.model for one in found}
        done = verdicts(
            Candidates([str(i) for i in range(300)], found),
            names,
            [],
            lambda one: None,
            "",
            choosing.SCREENING_LEVEL / 2,
        )
        survived += done["bad", 256, 224].kept
        assert done["best", 256, 224].kept
    assert survived <= 6  # of 20


def test_a_network_stays_while_more_crops_may_make_up_for_it() -> None:
    steady = [made("best", 0.90), made("best", 0.91, policy="5RC", views=5)]
    rising = [made("rising", 0.60), made("rising", 0.78, policy="5RC", views=5)]
    assert kept(*steady, *rising) == ["best", "rising"]
    assert kept(*steady, made("flat", 0.78), made("flat", 0.78, policy="5RC", views=5)) == ["best"]
    # Where more crops cost too much there is no hope.
    assert kept(*steady, *rising, targets=("forwards<=1",)) == ["best"]


def test_what_may_miss_a_target_drops_nothing_and_what_is_far_from_it_is_dropped() -> None:
    found = (made("fast", 0.7, 400), made("near", 0.9, 90), made("far", 0.95, 40))
    done = judged(*found, targets=("images_per_sec>=100",))
    assert [name for name, one in done.items() if one.kept] == ["fast", "near"]  # near may turn out too slow
    assert done["far"].reason == "far from images_per_sec>=100, however few crops"
    assert kept(*found, targets=("images_per_sec>=55",)) == ["near", "far"]  # near has it for sure; far may have it
    with pytest.raises(ValueError, match=r"nothing comes near images_per_sec>=10000"):
        judged(*found, targets=("images_per_sec>=10000",))


@pytest.mark.parametrize(
    ("target", "left"),
    [
        ("latency_p50_ms<=20", ["small", "middle"]), ("latency_p99_ms<=20", ["small", "middle"]),
        ("latency_p99_ms<=60", ["small", "middle"]), ("peak_mem_gb<=2", ["small", "middle"]),
        ("forwards<=1", ["large"]), ("latency_p99_ms<=1000", ["large"]),
    ],
)  # fmt: skip
def test_targets_of_every_other_kind(target: str, left: list[str]) -> None:
    found = (
        made("small", 0.6, 400, latency_ms=5, memory_gb=1), made("middle", 0.8, 200, latency_ms=25, memory_gb=2.5),
        made("large", 0.95, 40, latency_ms=100, memory_gb=9),
    )  # fmt: skip
    assert kept(*found, targets=(target,)) == left


def test_the_most_promising_is_measured_first() -> None:
    found = (made("fast", 0.85, 400), made("near", 0.9, 90), made("middle", 0.88, 200))
    for texts, order in (
        ((), ["near", "middle", "fast"]),
        (("images_per_sec>=100",), ["middle", "fast", "near"]),  # near may turn out too slow
        (("top1>=80",), ["fast", "middle", "near"]),  # the fastest is asked for
    ):
        asked = [parse_target(text) for text in texts]
        done = [verdict for verdict in judged(*found, targets=texts).values() if verdict.name in order]
        assert [one.name for one in sorted(done, key=lambda one: promising_first(one, asked))] == order


def test_what_was_neither_timed_nor_estimated_is_kept() -> None:
    assert kept(made("good", 0.9), made("bad", 0.5), targets=("images_per_sec>=100",)) == ["good", "bad"]


def test_a_target_for_accuracy_keeps_what_may_reach_it_and_is_not_much_slower() -> None:
    found = (made("fast", 0.6, 400), made("middle", 0.85, 200), made("slow", 0.95, 150), made("slowest", 0.96, 40))
    done = judged(*found, targets=("top1>=80",))
    assert [name for name, one in done.items() if one.kept] == ["middle", "slow"]
    assert "top1>=80 is out of reach" in done["fast"].reason
    assert "40 images/s at most; slow 224 of 256 px, CC reaches top1>=80 at 150" in done["slowest"].reason
    with pytest.raises(ValueError, match=r"nothing reaches top1>=99\.9"):
        judged(found[0], targets=("top1>=99.9",))


def test_looks_are_joined_setting_by_setting() -> None:
    first = Candidates(["a", "b"], [made("x", 0.5), made("y", 0.5), made("x", 0.5, policy="2RC", views=2)])
    second = Candidates(["c"], [made("y", 0.9), made("x", 0.9)])
    both = joined([first, second])
    assert [(one.setting.model, one.record.policy) for one in both.found] == [("x", "CC"), ("y", "CC")]
    assert both.names == ["a", "b", "c"] and all(len(one.right) == 2 * IMAGES for one in both.found)


def test_the_table_and_the_figure_show_every_network(tmp_path: Path) -> None:
    done = list(judged(made("good", 0.9), made("close", 0.87), made("bad", 0.5)).values())
    late = replace(done[1], kept=False, step="final", reason="no time was left to measure it (--minutes)")
    picture = write_screening(tmp_path, [done[0], late, done[2]], demo=True)
    table = pd.read_csv(tmp_path / "screening.csv")
    assert table["setting"].tolist() == ["good", "close", "bad"]
    assert table["outcome"].tolist() == ["measured to the end", "left out", "dropped"]
    assert table["when"].tolist()[1:] == ["final", "screening 1"]
    assert matplotlib.image.imread(picture).shape[1] > 700
    axes = draw(Data(done, False)).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["good", "close", "bad"]


def made_network(model: str, right: np.ndarray) -> Candidate:
    return replace(made(model, 0.8), right=right)


def said_to_differ(rng: np.random.Generator) -> bool:
    """A whole search: two networks are equal, four are worse. Is a difference of the two best claimed anywhere?"""
    shares = np.array([0.9, 0.9, 0.8, 0.75, 0.6, 0.5])
    models = [f"n{i}" for i in range(len(shares))]
    difficulty, own = rng.random(1000), rng.random((len(shares), 1000))
    alike = rng.random((len(shares), 1000)) < 0.7
    right = np.where(alike, difficulty, own) < shares[:, None]
    alive = dict(zip(models, right, strict=True))
    for images in (100, 300):
        found = [made_network(model, answers[:images]) for model, answers in alive.items()]
        names = {key_of(one): one.setting.model for one in found}
        every = Candidates([str(i) for i in range(images)], found)
        done = verdicts(every, names, [], lambda one: None, "", choosing.SCREENING_LEVEL / 2)
        alive = {one.name: alive[one.name] for one in done.values() if one.kept}
    if not {"n0", "n1"} <= alive.keys():
        return True
    last = [made_network(model, answers[300:]) for model, answers in alive.items()]
    outcomes = choose(Candidates([f"{i}.jpg" for i in range(300, 1000)], last), []).outcomes
    by_name = dict(zip(alive, outcomes, strict=True))
    return {by_name["n0"], by_name["n1"]} != {CHOSEN, TIE}


@pytest.mark.slow
def test_two_equal_networks_tie_in_a_thousand_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "DRAWS", 2000)
    rng = np.random.default_rng(12)
    assert sum(not said_to_differ(rng) for _ in range(1000)) >= 933


@pytest.mark.slow
def test_an_equal_network_is_dropped_in_at_most_the_level_of_all_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight equal networks and two looks: how often one of them is dropped."""
    monkeypatch.setattr(choosing, "DRAWS", 2000)
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(400):
        difficulty = rng.random(300)
        right = np.where(rng.random((8, 300)) < 0.7, difficulty, rng.random((8, 300))) < 0.8
        for images in (100, 300):
            found = [replace(made(f"n{i}", 0.8), right=right[i, :images]) for i in range(8)]
            names = {key_of(one): one.setting.model for one in found}
            every = Candidates([str(i) for i in range(images)], found)
            done = verdicts(every, names, [], lambda one: None, "", choosing.SCREENING_LEVEL / 2)
            if not all(one.kept for one in done.values()):
                wrong += 1
                break
    assert wrong <= 12  # 4 expected at 1 %; more would come once in 1,000 tries
