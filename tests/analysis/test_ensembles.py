"""Ensembles of networks on made runs, against loops over images and SciPy's tests; what is refused, in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from analysis import choosing, ensemble_scores, ensembles
from analysis.ensemble_scores import GMACS, SPEED, of_runs
from analysis.ensembles import equal_cost, table
from analysis.figures import ensembles as figure_module
from analysis.runs import Inputs, MissingData
from bench.measure.scores import SavedScores, path_beside
from bench.records import Incomparable, Run, read_run

ROOT = Path(__file__).resolve().parents[2]
IMAGES, CLASSES = 300, 5
NAMES = [f"{i:04}.jpg" for i in range(IMAGES)]
LABELS = np.random.default_rng(9).integers(CLASSES, size=IMAGES)
NETWORKS = {"a": 100.0, "b": 50.0, "c": 25.0}  # with images/s at one crop
MULTIPLY_ADDS = {"a": 10**9, "b": 2 * 10**9, "c": 4 * 10**9}


@cache
def scores_of(seed: int, classes: int = CLASSES) -> np.ndarray:
    """float32 [2, b, n] that favour the label; the second policy's favour it more."""
    logits = np.random.default_rng(seed).normal(size=(2, IMAGES, classes))
    logits[:, np.arange(IMAGES), LABELS] += np.array([[0.8], [1.2]])
    shares = np.exp(logits)
    return (shares / shares.sum(-1, keepdims=True)).astype(np.float32)


@pytest.fixture
def scored(maker) -> Callable[..., Run]:
    """``scored("a", seed)``: a run of a network with CC and 5RC, whose scores were kept."""

    def make(
        name: str, seed: int, *, classes: int = CLASSES, crc32: int = 0, kept: tuple[str, ...] = ("CC", "5RC"),
        rate: float | None = None, multiply_adds: int | None = None, **changes,
    ) -> Run:  # fmt: skip
        setting = maker.setting(model=name, weight_hash=name, family=None, variant=None, **changes)
        scores = scores_of(seed, classes)
        top1 = {policy: scores[p].argmax(-1) for p, policy in enumerate(("CC", "5RC"))}
        records = maker.records_of(setting, LABELS, top1)
        if rate:
            records += [maker.rates(setting, "end_to_end", crops, [rate / crops] * 3) for crops in (1, 5)]
        model = {"model": name, "S": 256, "K": 224, "predictions": "predictions-a.npz", "setting": asdict(setting)}
        model |= {"multiply_adds": multiply_adds} if multiply_adds else {}
        run = maker.run(name, records, models=[model])
        maker.predictions(run, "a", NAMES, LABELS.tolist(), top1, np.zeros((IMAGES, 1)))
        crc = np.full(IMAGES, crc32, np.uint64)
        columns = [("CC", "5RC").index(policy) for policy in kept]
        SavedScores(np.array(NAMES), LABELS, crc, list(kept), scores[columns]).save(run.folder / "predictions-a.npz")
        return run

    return make


@pytest.fixture
def runs(scored) -> list[Run]:
    return [
        scored(name, seed, rate=NETWORKS[name], multiply_adds=MULTIPLY_ADDS[name]) for seed, name in enumerate(NETWORKS)
    ]


# ------------------------------------------------------------------------ against a reference


def reference(group: tuple[int, ...], policy: int) -> np.ndarray:
    """bool [b], image by image: whether the mean of the networks' scores is right."""
    right = []
    for image in range(IMAGES):
        mean = [sum(float(scores_of(seed)[policy, image, c]) for seed in group) / len(group) for c in range(CLASSES)]
        right.append(mean.index(max(mean)) == LABELS[image])
    return np.array(right)


def test_every_set_of_networks_against_a_loop_over_images(runs) -> None:
    found = table(of_runs(runs)).set_index(["networks", "policy"])
    names = list(NETWORKS)
    groups = [group for size in (2, 3) for group in combinations(range(3), size)]
    assert len(found) == 2 * len(groups)
    p_values = {}
    for group in groups[1::2]:  # a + c, and all
        for p, policy in enumerate(("CC", "5RC")):
            row = found.loc[(" + ".join(names[i] for i in group), policy)]
            right = reference(group, p)
            alone = {names[i]: scores_of(i)[p].argmax(-1) == LABELS for i in group}
            best = max(alone.values(), key=np.sum)
            assert row["top1"] == pytest.approx(100 * right.mean())
            assert row["best_member_top1"] == pytest.approx(100 * best.mean())
            assert row["gain"] == pytest.approx(row["top1"] - row["best_member_top1"])
            ahead, behind = int((right & ~best).sum()), int((best & ~right).sum())
            assert (row["newly_correct"], row["newly_wrong"]) == (ahead, behind)
            assert row["p_value"] == pytest.approx(binomtest(ahead, ahead + behind).pvalue)
            # Sum of binomial probabilities, written out.
            tail = sum(comb(ahead + behind, k) for k in range(min(ahead, behind) + 1)) / 2 ** (ahead + behind)
            assert row["p_value"] == pytest.approx(min(1.0, 2 * tail))
            interval = binomtest(int(right.sum()), IMAGES).proportion_ci(method="wilson")
            assert (row["top1_low"], row["top1_high"]) == pytest.approx((100 * interval.low, 100 * interval.high))
            assert row["gain_low"] <= row["gain"] <= row["gain_high"]
    ordered = found.sort_values("p_value")
    p_values = ordered["p_value"].to_numpy()
    holm = np.minimum(1, np.maximum.accumulate(p_values * np.arange(len(p_values), 0, -1)))
    assert ordered["p_holm"].to_numpy() == pytest.approx(holm)
    assert (found["gain"] > 0).all() and (found["p_holm"] < 0.05).any()


def test_costs_are_sums_over_the_networks(runs) -> None:
    found = table(of_runs(runs)).set_index(["networks", "policy"])
    row = found.loc[("a + b + c", "5RC")]
    assert row["forwards"] == 15 and row["gmacs"] == 5 * (1 + 2 + 4)
    assert row["images_per_sec"] == pytest.approx(1 / (1 / 20 + 1 / 10 + 1 / 5))
    assert found.loc[("a + b", "CC"), "images_per_sec"] == pytest.approx(1 / (1 / 100 + 1 / 50))


def test_the_single_network_is_chosen_on_one_half_and_compared_on_the_other(runs) -> None:
    field = of_runs(runs)
    found = equal_cost(field)
    part = choosing.parts(NAMES)
    answers = {(name, policy): scores_of(seed)[p].argmax(-1) == LABELS
               for seed, name in enumerate(NETWORKS) for p, policy in enumerate(("CC", "5RC"))}  # fmt: skip
    crops = {"CC": 1, "5RC": 5}
    gmacs = {key: MULTIPLY_ADDS[key[0]] / 1e9 * crops[key[1]] for key in answers}
    (row,) = found[(found["networks"] == "a + b + c") & (found["policy"] == "CC") & (found["cost"] == GMACS)].to_dict(
        "records"
    )
    affordable = [key for key in answers if gmacs[key] <= 7]  # of a 5RC, all CC
    best = max(affordable, key=lambda key: answers[key][part].sum())
    mine, theirs = reference((0, 1, 2), 0)[~part], answers[best][~part]
    assert row["single"] == ", ".join(best) and row["single_cost"] == gmacs[best] and row["ensemble_cost"] == 7
    assert row["difference"] == pytest.approx(100 * (mine.mean() - theirs.mean()))
    assert row["images"] == (~part).sum()
    assert (row["newly_correct"], row["newly_wrong"]) == ((mine & ~theirs).sum(), (theirs & ~mine).sum())
    fast = found[(found["networks"] == "a + b") & (found["cost"] == SPEED) & (found["policy"] == "CC")]
    assert set(fast["single"]) <= {"a, CC", "b, CC"}  # 33 images/s: a at five crops has 20, c 25
    assert set(found["better"]) <= {"ensemble", "one network", "neither is shown to be"}


def test_of_equal_means_the_lowest_class_is_the_answer_and_nan_is_wrong() -> None:
    first = np.array([[0.5, 0.3, 0.2], [0.25, 0.5, 0.25], [np.nan, 0.5, 0.5]], np.float32)
    second = np.array([[0.3, 0.5, 0.2], [0.25, 0.25, 0.5], [0.2, 0.6, 0.2]], np.float32)
    got = ensemble_scores._right([[first, second]], np.array([0, 1, 0]))
    assert got.tolist() == [[True, True, False]]


# ------------------------------------------------------------------------ what is missing or refused


def test_one_network_alone_is_told_what_is_needed(scored) -> None:
    with pytest.raises(MissingData, match=r"from two networks, and has CC: a, 5RC: a"):
        of_runs([scored("a", 0)])


def test_networks_without_a_policy_in_common_have_no_ensemble(scored) -> None:
    with pytest.raises(MissingData, match="CC: a, 5RC: b"):
        of_runs([scored("a", 0, kept=("CC",)), scored("b", 1, kept=("5RC",))])


def test_runs_without_scores_are_told_the_option(made_run) -> None:
    with pytest.raises(MissingData, match="--save-scores"):
        of_runs([made_run()])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_hash": "other"}, "data_hash differs"),
        ({"crc32": 8}, r"300 files held other bytes when b was scored than for a, 0000.jpg"),
        ({"classes": 6}, "number of classes differs: a has 5, b has 6"),
        ({"valid_labels": "1, 2"}, "valid_labels differs"),
    ],
)
def test_other_images_and_classes_are_refused(scored, changes, said) -> None:
    with pytest.raises(Incomparable, match=said):
        of_runs([scored("a", 0, crc32=7), scored("b", 1, **{"crc32": 7, **changes})])


def test_scores_of_another_run_are_refused(scored) -> None:
    one, other = scored("a", 0), scored("b", 1)
    (other.folder / "scores-a.npz").write_bytes((one.folder / "scores-a.npz").read_bytes())
    with pytest.raises(ValueError, match=r"scores-a.npz does not belong to the predictions beside it"):
        of_runs([one, other])


def test_more_ensembles_than_anyone_reads_are_refused_or_not_made(runs, monkeypatch, capsys) -> None:
    monkeypatch.setattr(ensemble_scores, "MOST_ENSEMBLES", 7)
    with pytest.raises(ValueError, match="8 ensembles of up to 3 networks, and at most 7"):
        of_runs(runs, 3)
    assert {len(one.members) for one in of_runs(runs).ensembles} == {2}
    assert ensembles.main([*(str(run.folder) for run in runs), "--most", "3"]) == 2
    assert "ask for fewer networks in each (--most)" in capsys.readouterr().err


def test_rates_of_other_machines_are_not_added(scored) -> None:
    field = of_runs([scored("a", 0, rate=10.0), scored("b", 1, rate=10.0, machine_id="m2")])
    assert field.why_no_cost[SPEED] == "the runs were timed on different machines"
    assert table(field)["images_per_sec"].isna().all() and equal_cost(field).empty
    with pytest.raises(MissingData, match=r"needs what ensembles cost: GMACs: .*images/s: .*different machines"):
        figure_module.pictures(Inputs((read_run(field.networks[0][0].folder), read_run(field.networks[1][0].folder))))


# ------------------------------------------------------------------------ command and figure


def test_the_command_prints_and_writes_both_tables(runs, tmp_path: Path, capsys) -> None:
    folders, out = [str(run.folder) for run in runs], tmp_path / "out"
    assert ensembles.main([*folders, "--out", str(out), "--most", "2"]) == 0
    said = capsys.readouterr().out
    assert "A  a" in said and "A+B" in said and "A+B+C" not in said
    assert "not measured" in said and "better at equal GMACs, of 6 comparisons" in said
    assert {path.name for path in out.iterdir()} == {"ensembles.csv", "ensembles_equal_cost.csv", "ensembles.png"}
    path = path_beside(runs[0].folder / "predictions-a.npz")
    path.write_bytes(path.read_bytes()[:-500])
    assert ensembles.main(folders) == 2
    assert "scores-a.npz is damaged" in capsys.readouterr().err


def test_ctrl_c_ends_the_command_in_words(runs, monkeypatch, capsys) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ensembles, "of_runs", stop)
    assert ensembles.main([str(runs[0].folder)]) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize("value", ["many", -5])
def test_a_damaged_count_of_multiply_adds_is_named(value: object, runs, capsys) -> None:
    path = runs[0].folder / "run.json"
    info = json.loads(path.read_text())
    info["models"][0]["multiply_adds"] = value
    path.write_text(json.dumps(info))
    assert ensembles.main([str(run.folder) for run in runs]) == 2
    assert f"`multiply_adds` is {value!r}" in capsys.readouterr().err


def test_the_figure_shows_every_ensemble_and_every_network(runs) -> None:
    data = figure_module.pictures(Inputs(tuple(runs)))[""]
    assert data.panels == ("gmacs", "images_per_sec") and len(data.frame) == 6 + 8
    figure = figure_module.draw(data)
    frame = table(of_runs(runs))
    for axes in figure.axes:
        drawn = {(float(x), float(y)) for line in axes.lines for x, y in zip(*line.get_data(), strict=True)}
        for row in frame.to_dict("records"):
            assert (row[axes.get_gid()], row["top1"]) in drawn
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {
        *NETWORKS, "2 networks averaged", "3 networks averaged",
    }  # fmt: skip
    assert "No ensemble was chosen" in "".join(text.get_text() for text in figure.texts)
    only_gmacs = replace(data, panels=("gmacs",))
    assert len(figure_module.draw(only_gmacs).axes) == 1


def test_the_committed_demo_table_holds_what_the_readme_says() -> None:
    """Four networks with ten crops, as FixRes averages them, beside the best of them."""
    found = pd.read_csv(ROOT / "analysis/demo/ensembles.csv").set_index(["members", "policy"])
    row = found.loc[(4, "5FC+5MFC")]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert row["images"] == 1000 and row["best_member"] == "resnet:demo"
    assert f"{row['top1']:.1f} %" in readme and f"{row['best_member_top1']:.1f} %" in readme
    beside = pd.read_csv(ROOT / "analysis/demo/ensembles_equal_cost.csv")
    assert (beside["single_cost"] <= beside["ensemble_cost"] + 1e-9).all()
    assert found.isna().all()["images_per_sec"]  # nothing was timed
