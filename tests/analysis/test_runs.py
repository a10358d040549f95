"""Runs as plain data: compared with the literal numbers that the hand-made runs were written from."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import runs
from analysis.runs import MissingData
from bench.records import Incomparable


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a run: it has no run\.json"):
        runs.read([tmp_path])


def test_a_run_without_results_is_refused(maker):
    run = maker.run("empty", [])
    with pytest.raises(ValueError, match=r"empty holds no results.*Run it again"):
        runs.read([run.folder])


def test_a_damaged_line_is_named(maker):
    run = maker.run("damaged", maker.curve(maker.setting()))
    with (run.folder / "results.jsonl").open("a") as file:
        file.write('{"schema": 2, "kind"')
    with pytest.raises(ValueError, match=r"results\.jsonl, line 8"):
        runs.read([run.folder])


def test_accuracies_are_the_records(maker):
    setting = maker.setting()
    frame = runs.accuracies([maker.run("one", maker.curve(setting))])
    assert len(frame) == 7
    row = frame.set_index("policy").loc["20RC"]
    assert (row["top1"], row["gain"], row["curve"], row["n_views"], row["views"]) == (72.0, 2.0, "RC", 20, 20)
    # Wilson's interval of 720 of 1,000, by the formula: (p + z²/2n ± z sqrt(p q / n + z²/4n²)) / (1 + z²/n)
    z, n, p = 1.959964, 1000, 0.72
    centre, half = p + z * z / 2 / n, z * (p * (1 - p) / n + z * z / 4 / n / n) ** 0.5
    assert row["top1_low"] == pytest.approx(100 * (centre - half) / (1 + z * z / n), abs=1e-4)
    assert row["top1_high"] == pytest.approx(100 * (centre + half) / (1 + z * z / n), abs=1e-4)
    assert row["gain_low"] < 2.0 < row["gain_high"]


@pytest.mark.parametrize(
    ("policy", "curve"),
    [("CC", "CC"), ("7RC", "RC"), ("CC+6RC", "CC+RC"), ("20ARC", "ARC"), ("5RC+5MRC", "other"), ("5FC", "other")],
)
def test_curves(policy, curve):
    assert runs.curve(policy) == curve


def test_the_longest_curve_up_to_twenty(maker):
    setting = maker.setting()
    records = [*maker.curve(setting), maker.accuracy(setting, "40RC", 722, 45, 23)]
    frame = runs.accuracies([maker.run("one", records)])
    assert runs.best_curve_policy(frame) == "20RC"
    assert runs.best_curve_policy(frame, most=5) == "2RC"
    with pytest.raises(MissingData, match="run with --crops"):
        runs.best_curve_policy(frame[frame["curve"] == "CC"])


def test_the_run_says_why_there_is_no_accuracy(maker):
    run = maker.run("fast", [maker.absent(maker.setting(), "accuracy", "the weights are random")])
    with pytest.raises(MissingData, match="accuracy pass; the run says: the weights are random"):
        runs.scored_networks([run])
    with pytest.raises(MissingData, match="give a folder"):
        runs.scored_networks([])


def test_only_a_centre_crop_is_no_curve(maker):
    run = maker.run("centre", maker.curve(maker.setting())[:1])
    assert len(runs.scored_networks([run])) == 1
    with pytest.raises(MissingData, match="run with --crops"):
        runs.scored_networks([run], beyond_centre=True)


def test_other_images_are_not_comparable_and_other_networks_are(maker):
    one, network = maker.setting(), maker.setting(model="resnet34.tv_in1k", variant="34", S=288, weight_hash="bb")
    other = maker.setting(data_hash="ee")
    run = maker.run("all", [maker.curve(s)[0] for s in (one, network, other)])
    runs.require_all_comparable([(run, one), (run, network)])
    with pytest.raises(Incomparable, match="data_hash is 'dd' in one"):
        runs.require_all_comparable([(run, one), (run, network), (run, other)])


def test_names_grow_until_they_differ(maker):
    one, two, three = maker.setting(), maker.setting(S=300), maker.setting(model="a:b", variant=None)
    first, second = maker.run("first", [maker.curve(one)[0]]), maker.run("second", [maker.curve(one)[0]])
    assert runs.endings([(first, one)]) == [""]
    assert runs.endings([(first, one), (first, three)]) == ["resnet18.tv_in1k", "a-b"]
    assert runs.endings([(first, one), (first, two)]) == ["resnet18.tv_in1k-S256", "resnet18.tv_in1k-S300"]
    assert runs.endings([(first, one), (second, one)]) == [
        "resnet18.tv_in1k-S256-first",
        "resnet18.tv_in1k-S256-second",
    ]
    assert runs.line_names([(first, one), (first, three)]) == ["resnet 18", "a:b"]
    assert runs.line_names([(first, one), (first, two)]) == ["resnet 18, 224/256", "resnet 18, 224/300"]
    gpu = maker.setting(backend="dali-gpu", device="cuda:0")
    assert runs.line_names([(first, one), (first, gpu)]) == [
        "resnet 18, Some CPU, 2 cores, dali-cpu, float32",
        "resnet 18, Some CPU, 2 cores, dali-gpu, float32",
    ]
    assert runs.line_names([(first, one), (second, one)])[1] == "resnet 18, 224/256, second"
    assert runs.line_names([(first, one), (first, one)])[1] == "resnet 18, 224/256, first 2"


def test_the_small_print_says_where_numbers_come_from(maker):
    demo = maker.setting(is_demo=True, weights="demo")
    run = maker.run("one", maker.curve(demo))
    what, how = runs.provenance([(run, demo)], 1000)
    assert what == (
        "1,000 images of the generated DEMO DATA (says nothing about ImageNet); demo weights; crops of 224 from 256 "
        "pixels, bilinear; seed 0"
    )
    assert how == (
        "Some CPU, 2 cores; dali-cpu, network on cpu, float32, batch size 64; torch 2.15.0, timm 1.0.31, DALI 2.4.0"
    )
    two = maker.setting(S=300)
    assert "crops of 224 from 256 pixels, bilinear / 224 from 300" in runs.provenance([(run, demo), (run, two)])[0]


def test_attempts_keep_what_can_be_drawn():
    def fails() -> int:
        raise MissingData("no images")

    found = runs.attempts({"a": lambda: 1, "b": fails})
    assert found["a"] == 1 and str(found["b"]) == "no images"
    with pytest.raises(MissingData, match=r"^no images$"):
        runs.attempts({"a": fails, "b": fails})


def answers_run(maker, setting, name="one", file="anything"):
    """Four images, labels 0 0 1 and none; CC right on the first, 2RC on the first and second."""
    records = [
        maker.accuracy(setting, "CC", 1, 0, 0, images=3),
        maker.accuracy(setting, "2RC", 2, 1, 0, images=3),
    ]
    run = maker.run(name, records)
    top1 = {"CC": np.array([0, 1, 0, 5]), "2RC": np.array([0, 0, 0, 5])}
    maker.predictions(run, file, ["a", "b", "c", "d"], [0, 0, 1, -1], top1, np.zeros((4, 3)))
    return run


def test_predictions_are_found_by_their_counts_not_their_name(maker):
    setting = maker.setting()
    run = answers_run(maker, setting)
    wrong = {"CC": np.array([0, 0, 1, 5]), "2RC": np.array([0, 0, 0, 5])}
    maker.predictions(run, "aaa", ["a", "b", "c", "d"], [0, 0, 1, -1], wrong, np.zeros((4, 3)))
    found = runs.predictions((run, setting))
    assert found.of("CC").tolist() == [True, False, False, False]
    assert found.of("2RC").tolist() == [True, True, False, False]


def test_predictions_of_two_settings_with_equal_counts_are_not_mixed_up(maker):
    one, two = maker.setting(), maker.setting(S=300)
    records = [maker.accuracy(s, "CC", 1, 0, 0, images=3) for s in (one, two)]
    run = maker.run("both", records)
    for file, said in (("a", [0, 1, 0]), ("b", [1, 0, 0])):
        maker.predictions(run, file, ["a", "b", "c"], [0, 0, 1], {"CC": np.array(said)}, np.zeros((3, 1)))
    assert runs.predictions((run, one)).top1[0, 0].tolist() == [0, 1, 0]
    assert runs.predictions((run, two)).top1[0, 0].tolist() == [1, 0, 0]


def test_missing_predictions_are_named(maker):
    setting = maker.setting()
    run = maker.run("one", maker.curve(setting))
    with pytest.raises(MissingData, match=r"resnet18\.tv_in1k: .*one has no predictions.*run it again"):
        runs.predictions((run, setting))


def test_images_that_have_moved(maker, labelled_images, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    run = maker.run("one", maker.curve(maker.setting()))
    with pytest.raises(MissingData, match=r"name their folder: --data DIR"):
        runs.images(runs.Inputs((run,)), run)
    found = runs.images(runs.Inputs((run,), labelled_images), run)
    assert len(found.table) == 24
    rows = runs.rows_of(["dogs/12.jpg", "cats/01.jpg"], found)
    assert rows[["name", "width", "height"]].to_numpy().tolist() == [["dogs/12.jpg", 90, 60], ["cats/01.jpg", 60, 60]]
    with pytest.raises(MissingData, match=r"1 images of the run are not in .*such as birds/1\.jpg"):
        runs.rows_of(["cats/01.jpg", "birds/1.jpg"], found)


def test_a_resized_picture_has_the_planned_size(maker, labelled_images):
    setting = maker.setting(S=40, K=32)
    assert runs.resized_picture(labelled_images / "cats/00.jpg", setting).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("model", "table", "S", "K", "top1"),
    [
        ("resnet18.tv_in1k", "I", 256, 224, 69.76),
        ("torchvision:mobilenet_v2.IMAGENET1K_V1", "II", 256, 224, 71.88),
        ("tf_efficientnet_b0.ap_in1k", "III", 256, 224, 77.09),
        ("tf_efficientnet_b0.ns_jft_in1k", "V", 256, 224, 78.66),
        ("dm_nfnet_f3.dm_in1k", "IV", 443, 416, 85.56),
    ],
)
def test_published_rows_of_a_network(maker, model, table, S, K, top1):
    setting = maker.setting(model=model, published_in=f"MID Table {table}", S=S, K=K)
    rows = runs.published_rows(setting)
    assert rows.loc[rows["policy"] == "CC", "value"].tolist() == [top1]
    assert (rows["policy"] == "20RC").sum() == 2  # features and softmax


@pytest.mark.parametrize(
    "change", [{"is_demo": True}, {"weights": "random"}, {"crop_mode": "squash"}, {"S": 300}, {"published_in": None}]
)
def test_published_rows_only_for_the_same_thing(maker, change):
    assert runs.published_rows(maker.setting(**change)).empty


def test_every_table_of_single_networks_is_known():
    assert list(runs.PAPER_TABLES.values()) == [f"mid_table{n}" for n in range(1, 8)]
