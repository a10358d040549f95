"""Figures: the data drawn is compared with literal numbers of hand-made runs, with the papers' printed numbers, and
with the same statistics computed another way; pixels are looked at by people."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy.stats import genextreme

from analysis import drawing, make_figures, style
from analysis.figures import FIGURES, NOT_PRINTED, _gains, count_parameters, gain_by_image, gallery, longer_side
from analysis.figures import accuracy_vs_crops as crops_figure
from analysis.figures import accuracy_vs_parameters as parameters_figure
from analysis.figures import accuracy_vs_speed as speed_figure
from analysis.figures import activations as activations_figure
from analysis.figures import crop_ratio as ratio_figure
from analysis.figures import family_curves as family_figure
from analysis.figures import imagenet_v2 as v2_figure
from analysis.figures import levels as levels_figure
from analysis.figures import throughput_vs_crops as throughput_figure
from analysis.figures import training_time as time_figure
from analysis.figures import tuned_activations as tuned_figure
from analysis.published import load
from analysis.runs import ImagePredictions, Inputs, MissingData
from bench.predictions import Predictions
from bench.records import Incomparable, append
from pipelines.crops import Planner, parse_policy, union
from pipelines.inputspec import InputSpec

ROOT = Path(make_figures.__file__).parents[1]


def lines_of(axes):
    """gid -> (x, y) of every line that says what it is. The caps of error bars have their line's gid too."""
    bars = [container.lines[0] for container in axes.containers if hasattr(container, "has_yerr")]
    found = {}
    for line in [*bars, *axes.lines]:
        if line.get_gid():
            found.setdefault(
                line.get_gid(), ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()])
            )
    return found


def words_of(figure):
    """All text that a figure shows."""
    return "\n".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


# ---- the table of figures


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_has_data_and_a_drawing(name):
    module = importlib.import_module(FIGURES[name].module)
    assert module.__name__.rpartition(".")[2] == name
    assert module.__doc__ and callable(module.pictures) and callable(module.draw)
    assert set(FIGURES[name].sources) <= {"run", "published", "experiment"} and FIGURES[name].sources


def test_every_figure_file_is_in_the_table():
    others = {"__init__", "_gains", "count_parameters"}
    assert {path.stem for path in (ROOT / "analysis/figures").glob("*.py")} - others == set(FIGURES)


def test_every_figure_of_the_papers_is_drawn_or_has_its_reason():
    readme = (ROOT / "analysis/published/README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ((?:MID|FixRes|FixEfficientNet) [\d, ]+) \| (.*) \|$", readme, flags=re.M))
    assert len(rows) == 15
    whole = {name for name, words in rows.items() if words.startswith("drawn from")}
    assert whole == {"MID 5", "MID 6", "MID 8", "FixRes 5", "FixRes 8"}
    assert set(NOT_PRINTED) == set(rows) - whole
    titles = words_of_all_published()
    for name in whole | {"FixEfficientNet 1", "FixEfficientNet 2"}:
        paper, _, number = name.rpartition(" ")
        assert f"({paper} Figure {number})" in titles


def words_of_all_published():
    pictures = []
    for name, entry in FIGURES.items():
        if "published" in entry.sources:
            module = importlib.import_module(FIGURES[name].module)
            pictures += [module.draw(data) for data in module.pictures(Inputs()).values()]
    return "\n".join(map(words_of, pictures))


def test_unknown_metrics_are_named():
    with pytest.raises(KeyError, match="no axis text for 'speed'; known: top1"):
        style.label("speed")


def test_log_ticks_are_round_and_enough():
    assert style.nice_ticks(0.09, 200) == [0.1, 1, 10, 100]
    assert style.nice_ticks(0.9, 31) == [1, 3, 10, 30]
    assert style.nice_ticks(4, 60) == [5, 10, 20, 50]
    assert style.nice_ticks(11, 61) == [15, 20, 30, 40, 50]


# ---- accuracy and throughput against crops


def test_accuracy_curves(maker):
    setting = maker.setting()
    records = [*maker.curve(setting), maker.accuracy(setting, "5FC+5MFC", 714, 30, 16)]
    data = crops_figure.pictures(Inputs((maker.run("one", records),)))[""]
    figure = crops_figure.draw(data)
    lines = lines_of(figure.axes[0])
    assert lines["RC softmax"] == ([1, 2, 10, 20], [68.0, 70.5, 71.5, 72.0])
    assert lines["CC+RC softmax"] == ([2, 20], [70.8, 72.1])
    assert lines["CC"][1] == [70.0, 70.0]
    assert lines["5FC+5MFC"] == ([10], [71.4])
    assert figure.axes[0].child_axes[0].get_ylabel() == "gain over the centre crop, points"
    text = words_of(figure)
    assert "Centre crop 70.00 %, Wilson 95 % interval 67.1 to 72.8" in text
    assert "1,000 images of val" in text and "DEMO" not in text


def test_the_band_is_the_paired_interval_around_the_curve(maker):
    data = crops_figure.pictures(Inputs((maker.run("one", maker.curve(maker.setting())),)))[""]
    row = crops_figure.with_band(data.frame, 70.0).set_index("policy").loc["20RC"]
    assert row["low"] == pytest.approx(70.0 + row["gain_low"]) and row["high"] == pytest.approx(70.0 + row["gain_high"])
    assert row["low"] < row["top1"] < row["high"]
    assert row["high"] - row["low"] < row["top1_high"] - row["top1_low"]  # paired: narrower than Wilson's
    band = crops_figure.draw(data).axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(68.0 + (data.frame.set_index("policy").loc["1RC", "gain_low"] + 2.0))


def test_adaptive_policies_stand_at_their_mean_number_of_crops(maker):
    from dataclasses import replace

    setting = maker.setting()
    adaptive = [
        replace(maker.accuracy(setting, "10ARC", 712, 30, 18), mean_views=4.5),
        replace(maker.accuracy(setting, "20ARC", 718, 36, 18), mean_views=8.25),
    ]
    data = crops_figure.pictures(Inputs((maker.run("one", [*maker.curve(setting), *adaptive]),)))[""]
    assert lines_of(crops_figure.draw(data).axes[0])["ARC softmax"] == ([4.5, 8.25], [71.2, 71.8])


def test_levels_that_coincide_are_one_line(maker):
    setting = maker.setting()
    records = [*maker.curve(setting), *maker.curve(setting, level="logit"), *maker.curve(setting, level="feature")]
    figure = crops_figure.draw(crops_figure.pictures(Inputs((maker.run("linear", records),)))[""])
    assert "RC logit" in lines_of(figure.axes[0]) and "RC feature" not in lines_of(figure.axes[0])
    assert "averaged logit, feature (equal)" in words_of(figure)
    records[-1] = maker.accuracy(setting, "CC+19RC", 722, 46, 24, level="feature")
    figure = crops_figure.draw(crops_figure.pictures(Inputs((maker.run("other", records),)))[""])
    assert "RC feature" in lines_of(figure.axes[0])


def test_demo_accuracy_says_so(maker):
    setting = maker.setting(is_demo=True, weights="demo", variant="demo")
    figure = crops_figure.draw(crops_figure.pictures(Inputs((maker.run("demo", maker.curve(setting)),)))[""])
    assert figure.axes[0].get_ylabel() == "top-1 accuracy on demo data, %"
    assert "DEMO DATA" in words_of(figure)


@pytest.mark.parametrize(
    ("device", "ceilings"), [("cpu", [1 / (1 / 400 + 1 / 1000), 80.0]), ("cuda:0", [400.0, 100.0])]
)
def test_throughput_and_its_ceilings(maker, device, ceilings):
    setting = maker.setting(device=device)
    data = throughput_figure.pictures(Inputs((maker.run("one", maker.speed(setting)),)))[""]
    images, crops = throughput_figure.draw(data).axes
    lines = lines_of(images)
    assert lines["end_to_end"] == ([1, 10], [200, 75])
    assert lines["pipeline"] == ([1, 10], [400, 400])
    assert lines["network"] == ([1, 10], [1000, 100])
    assert lines["ceiling"] == ([1, 10], [pytest.approx(rate) for rate in ceilings])
    assert lines["decode"][1] == [600, 600]
    assert lines_of(crops)["end_to_end"][1] == [200, 750]
    assert lines_of(crops)["network"][1] == [1000, 1000]
    assert images.get_xscale() == images.get_yscale() == "log"
    low_high = data.frame[["end_to_end_low", "end_to_end_high"]].to_numpy().tolist()
    assert low_high == [[190, 230], [70, 76]]
    assert "n = M/P = 2.5" in " ".join(data.notes)


def test_an_unfinished_throughput_pass_is_not_drawn(maker):
    run = maker.run("one", maker.speed(maker.setting())[:3])
    with pytest.raises(MissingData, match="did not finish"):
        throughput_figure.pictures(Inputs((run,)))


# ---- accuracy against speed


def test_speed_and_accuracy_meet_at_the_same_crops(maker):
    setting = maker.setting()
    run = maker.run("one", [*maker.curve(setting), *maker.speed(setting)])
    frame = speed_figure.pictures(Inputs((run,)))[""].frame
    assert frame[["crops", "images_per_sec", "top1", "rate_low", "rate_high"]].to_numpy().tolist() == [
        [1, 200, 70.0, 190, 230],
        [10, 75, 71.5, 70, 76],
    ]


def test_the_front_holds_what_nothing_beats():
    frame = pd.DataFrame({"images_per_sec": [100, 50, 20, 10, 100, 20], "top1": [70.0, 69.0, 75.0, 75.0, 70.0, 74.0]})
    assert speed_figure.on_front(frame) == [True, False, True, False, True, False]


def test_speed_may_be_compared_over_machines_but_not_over_images(maker):
    one, gpu = maker.setting(), maker.setting(device="cuda:0", backend="dali-gpu", machine_id="m2", amp_dtype="float16")
    first = maker.run("first", [*maker.curve(one), *maker.speed(one)])
    second = maker.run("second", [*maker.curve(gpu), *maker.speed(gpu)])
    frame = speed_figure.pictures(Inputs((first, second)))[""].frame
    assert frame["line"].nunique() == 2
    other = maker.setting(data_hash="ee")
    third = maker.run("third", [*maker.curve(other), *maker.speed(other)])
    with pytest.raises(Incomparable, match="data_hash"):
        speed_figure.pictures(Inputs((first, third)))


# ---- several networks


def test_family_curves_with_the_papers_points(maker):
    one = maker.setting()
    two = maker.setting(model="resnet34.tv_in1k", variant="34", weight_hash="bb", published_top1=73.31)
    data = family_figure.pictures(Inputs((maker.run("one", [*maker.curve(one), *maker.curve(two)]),)))
    assert list(data) == ["resnet"]
    left, right = family_figure.draw(data["resnet"]).axes
    assert lines_of(left)["resnet 18 RC top1"] == ([1, 2, 10, 20], [68.0, 70.5, 71.5, 72.0])
    assert lines_of(right)["resnet 34 CC+RC gain"][1] == pytest.approx([0.8, 2.1])
    assert lines_of(left)["resnet 34 published top1"] == ([1, 10, 20], [73.31, 74.88, 75.14])  # MID Table I
    assert lines_of(right)["resnet 18 published gain"][1] == pytest.approx([0, 1.88, 2.07])


def test_networks_of_several_families_stand_together(maker):
    first = maker.run("first", maker.curve(maker.setting()))
    second = maker.run("second", maker.curve(maker.setting(family="nfnet", model="dm_nfnet_f0.dm_in1k", variant="f0")))
    assert list(family_figure.pictures(Inputs((first, second)))) == ["networks"]
    with pytest.raises(MissingData, match="several networks"):
        family_figure.pictures(Inputs((first,)))


def test_a_family_on_different_images_is_refused(maker):
    runs = [maker.run(name, maker.curve(maker.setting(data_hash=name, variant=name))) for name in ("ab", "cd")]
    with pytest.raises(MissingData, match="data_hash is 'ab' in one"):
        family_figure.pictures(Inputs(tuple(runs)))


# ---- published gains


def test_published_gains_are_the_printed_ones_but_for_nfnet_f0():
    frame = _gains.published_gains()
    printed = pd.concat(load(f"mid_table{n}") for n in range(1, 8))
    printed = printed[(printed["policy"] == "20RC") & (printed["level"] == "softmax")].reset_index(drop=True)
    assert len(frame) == len(printed) == 47
    differs = (frame["gain"] - printed["printed_gain"]).abs() > 0.005
    assert differs.sum() <= 6  # as many as the papers' tables contradict themselves in all
    off = (frame["slack"] - printed["slack"]).abs() > 0.0011
    assert frame.loc[off, "model"].tolist() == ["tf_efficientnet_l2_ns"]  # prints 0.038 for 1 - 800/833
    assert frame.set_index("model").loc["resnet18", ["slack", "base", "gain", "params"]].tolist() == [
        0.125, 69.76, 2.07, 11689512,
    ]  # fmt: skip


def ranks(values):
    """Mean ranks, ties shared, by counting."""
    values = np.asarray(values)
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def test_the_trend_is_least_squares_and_rank_correlation():
    frame = _gains.published_gains()
    x, y = frame["slack"].to_numpy(), frame["gain"].to_numpy()
    found = _gains.trend(x.tolist(), y.tolist())
    assert (found.slope, found.intercept) == pytest.approx(tuple(np.polyfit(x, y, 1)))
    assert found.rho == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1])
    assert found.n == 47 and found.p_value < 1e-10
    assert _gains.trend([1, 2, 3, 4, 5], [2, 4, 5, 7, 9]).p_value == pytest.approx(2 / 120)  # of 5! pairings, two
    assert _gains.trend([1, 2, 3], [1, 2, 3]) is None and _gains.trend([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_gains_of_a_run_stand_beside_the_published_ones(maker):
    from analysis.figures import gain_vs_baseline, gain_vs_slack

    run = maker.run("one", maker.curve(maker.setting(S=280)))
    figure = gain_vs_slack.draw(gain_vs_slack.pictures(Inputs((run,)))[""])
    lines = lines_of(figure.axes[0])
    assert lines["measured resnet18.tv_in1k"] == ([pytest.approx(0.2)], [pytest.approx(2.0)])
    assert len(lines["published ResNet"][0]) == 5 and len(lines["published EfficientNet AdvProp"][0]) == 9
    assert sum(len(xs) for name, (xs, _) in lines.items() if name.startswith("published")) == 47
    left, right = gain_vs_baseline.draw(gain_vs_baseline.pictures(Inputs((run,)))[""]).axes
    assert lines_of(left)["measured resnet18.tv_in1k"][0] == [pytest.approx(70.0)]
    assert lines_of(right)["measured resnet18.tv_in1k"][0] == [pytest.approx(11.689512)]


def test_parameter_counts_are_those_of_the_networks():
    counts = count_parameters.param_counts()
    assert list(counts) == count_parameters.models()
    for model in ("resnet18", "mobilenet_v3_small", "tf_efficientnet_b0", "dm_nfnet_f0"):
        assert counts[model] == count_parameters.count(model)


def test_published_accuracy_against_parameters():
    found = parameters_figure.pictures(Inputs())
    assert list(found) == ["efficientnet-advprop", "efficientnet-noisystudent", "nfnet", "resnet", "fixefficientnet"]
    series = {one.label: one.frame for one in found["efficientnet-advprop"].series}
    assert series["centre crop, published"]["top1"].tolist() == [
        77.09, 79.28, 80.30, 81.82, 83.25, 84.25, 84.79, 85.12, 85.37,
    ]  # fmt: skip
    assert series["FixEfficientNet (fine-tuned), published"]["top1"].iloc[[0, -1]].tolist() == [79.3, 85.7]
    assert series["MID: softmax of 20RC, published"]["params"].iloc[0] == 5288548
    baselines = {one.label for one in found["resnet"].series if not one.line}
    methods = set(load("mid_table1")["method"]) - {"baseline"}
    assert set(parameters_figure.BASELINES) == methods
    assert baselines == {words for words, _ in parameters_figure.BASELINES.values()}
    tops = {one.label: one.frame["top1"].tolist() for one in found["resnet"].series}
    assert tops["FixRes, billion-scale data, at 320"] == [82.5]  # the strongest baseline of Table I
    assert tops["Base FixRes"] == [77.0] and tops["FixRes"] == [77.1, 79.1]
    drawn = lines_of(parameters_figure.draw(found["resnet"]).axes[0])
    assert max(max(y) for _, y in drawn.values()) == 82.5


def test_measured_accuracy_stands_in_the_papers_figure(maker):
    own = maker.setting()
    other = maker.setting(model="a", variant=None, family=None, published_in=None, weight_hash="bb", param_count=10**6)
    another = maker.setting(
        model="b", variant=None, family=None, published_in=None, weight_hash="cc", param_count=10**7
    )
    records = [record for setting in (own, other, another) for record in maker.curve(setting)]
    found = parameters_figure.pictures(Inputs((maker.run("all", records),)))
    assert list(found) == ["resnet", "measured"]
    measured = {one.label: one.frame for one in found["resnet"].series if one.measured}
    assert measured["softmax of 20RC, measured"]["top1"].tolist() == [72.0]
    assert measured["centre crop, measured"]["params"].tolist() == [11689512]
    assert found["measured"].series[0].frame["params"].tolist() == [10**6, 10**7]
    with pytest.raises(MissingData, match="several networks"):
        parameters_figure.pictures(Inputs((maker.run("alone", maker.curve(other)),)))


# ---- levels


def test_published_pairs_of_levels():
    frame = levels_figure.published_pairs()
    assert len(frame) == 2 * 47 and not frame[["feature", "softmax"]].isna().any().any()
    row = frame[(frame["model"] == "resnet18") & (frame["policy"] == "20RC")].iloc[0]
    assert (row["feature"], row["softmax"]) == (1.80, 2.07)


def test_level_differences_are_paired(maker):
    labels = np.zeros(10, dtype=int)
    said = np.ones((2, 10), dtype=int)  # all wrong
    said[0, :4] = 0  # features: right on 4
    said[1, 2:7] = 0  # softmax: right on 5, on two of those as well
    top1 = {"CC": np.ones((2, 10), dtype=int), "5RC": said}
    setting = maker.setting()
    run = maker.run("one", maker.records_of(setting, labels, top1))
    maker.predictions(run, "x", [str(i) for i in range(10)], labels.tolist(), top1, np.ones((10, 6)))
    data = levels_figure.pictures(Inputs((run,)))[""]
    row = data.differences.iloc[0]
    assert (row["n_views"], row["against"], row["difference"]) == (5, "feature", pytest.approx(10.0))
    assert row["low"] < 10 < row["high"]
    assert data.measured[["feature", "softmax"]].to_numpy().tolist() == [[40.0, 50.0]]
    right = levels_figure.draw(data).axes[1]
    assert lines_of(right)["resnet 18 feature"] == ([5], [pytest.approx(10.0)])


def test_levels_need_a_curve(maker):
    """A run of --crops 1: one random crop has no average."""
    labels = np.zeros(10, dtype=int)
    top1 = {"CC": np.ones((2, 10), dtype=int), "1RC": np.ones((2, 10), dtype=int)}
    run = maker.run("one", maker.records_of(maker.setting(), labels, top1))
    maker.predictions(run, "x", [str(i) for i in range(10)], labels.tolist(), top1, np.ones((10, 2)))
    with pytest.raises(MissingData, match="--crops"):
        levels_figure.pictures(Inputs((run,)))


# ---- crop ratio


def test_crop_ratio_of_one_network_at_several_sizes(maker):
    settings = [maker.setting(S=S) for S in (280, 224, 256)]
    run = maker.run("sweep", [record for setting in settings for record in maker.curve(setting)])
    data = ratio_figure.pictures(Inputs((run,)))
    left, right = ratio_figure.draw(data[""]).axes
    x, y = lines_of(right)["20RC gain"]
    assert x == pytest.approx([0.8, 0.875, 1.0], abs=0.004) and y == pytest.approx([2.0] * 3)
    assert lines_of(left)["CC top1"][1] == pytest.approx([70.0] * 3)
    with pytest.raises(MissingData, match="--crop-pct"):
        ratio_figure.pictures(Inputs((maker.run("one", maker.curve(settings[0])),)))


def test_a_sweep_over_two_seeds_is_refused(maker):
    settings = [maker.setting(S=280), maker.setting(S=256, seed=1)]
    run = maker.run("sweep", [record for setting in settings for record in maker.curve(setting)])
    with pytest.raises(Incomparable, match="seed is 0"):
        ratio_figure.pictures(Inputs((run,)))


# ---- images


def test_bins_of_a_variable():
    values = np.array([1.0] * 20 + [2.0] * 20 + [3.0] * 5)
    change = np.array([1] * 6 + [-1] * 2 + [0] * 12 + [0] * 20 + [1] * 5)
    right = change >= 0
    panel = gain_by_image.panel("aspect", values, change, right, np.array([1, 1.5, 2.5, np.inf]))
    bins = panel.bins  # the third holds five images only, and is left out
    assert bins[["images", "gain"]].to_numpy().tolist() == [[20, pytest.approx(20.0)], [20, 0.0]]
    assert bins["gain_low"].iloc[0] < 20 < bins["gain_high"].iloc[0]
    assert panel.rho == pytest.approx(np.corrcoef(ranks(values), ranks(change))[0, 1])
    assert gain_by_image.panel("aspect", values[:5], change[:5], right[:5], np.array([1, np.inf])) is None
    flat = gain_by_image.panel("aspect", np.ones(20), np.zeros(20, int), np.ones(20, bool), np.array([1, np.inf]))
    assert np.isnan(flat.rho)  # nothing varies: no correlation, and no warning


def test_variables_of_a_table():
    table = pd.DataFrame({"width": [100, 50], "height": [50, 100]})
    assert list(gain_by_image.variables(table)) == ["aspect"]
    assert gain_by_image.variables(table)["aspect"][0].tolist() == [2.0, 2.0]
    demo = table.assign(offset=[0.1, 0.4], object_size=[0.5, 0.7])
    found = gain_by_image.variables(demo)
    assert list(found) == ["aspect", "offset", "size"]
    values, edges = found["offset"]
    assert values.tolist() == [0.1, 0.4] and edges[0] == 0.1 and edges[-1] == np.inf


def test_longer_sides_by_torchvisions_rule():
    sizes = np.array([[375, 500], [500, 333], [64, 64], [100, 1000]])
    expected = [int(256 * max(h, w) / min(h, w)) for h, w in sizes.tolist()]
    assert longer_side.longer_sides(sizes, 256).tolist() == expected
    assert longer_side.words(np.array([256, 256, 300, 500]), 256) == (
        "Median 278; nearly square (up to 269): 50 %; above 384: 25 %."
    )


def test_longer_side_from_a_folder(labelled_images, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    assert make_figures.main(["--data", str(labelled_images), "--only", "longer_side", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "longer_side.png")
    data = longer_side.pictures(Inputs((), labelled_images))[""]
    assert sorted(data.sides.tolist()) == [256] * 12 + [384] * 12


def scored_images(maker, root, setting, seed=0, models=()):
    """A run on ``labelled_images`` whose every view says what a random number says."""
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    labels = np.array([int(name.startswith("dogs")) for name in names])
    policies = ["CC", *(f"{n}RC" for n in range(1, 6)), *(f"CC+{n}RC" for n in range(1, 5))]
    views = union([parse_policy(policy) for policy in policies])
    rng = np.random.default_rng(seed)
    view_top1 = np.where(rng.random((len(names), views.total)) < 0.7, labels[:, None], 1 - labels[:, None])
    top1 = {}
    for policy in policies:
        votes = view_top1[:, views.take(parse_policy(policy))].mean(axis=1)
        top1[policy] = np.stack([votes > 0.5, votes >= 0.5]).astype(int)
    records = [*maker.records_of(setting, labels, top1), *maker.speed(setting)]
    run = maker.run(f"run{seed}", records, data=root, models=models)
    maker.predictions(run, "net", names, labels.tolist(), top1, view_top1)
    return run


def test_the_gallery_shows_what_changed_and_the_runs_own_windows(maker, labelled_images, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    setting = maker.setting(S=40, K=32, seed=3)
    run = scored_images(maker, labelled_images, setting)
    data = gallery.pictures(Inputs((run,)))[""]
    assert data.policy == "5RC" and data.newly_correct and data.newly_wrong
    for picture in data.newly_correct:
        assert picture.averaged_predicted == picture.label != picture.centre_predicted
        assert picture.label in ("cats", "dogs") and picture.right.mean() > 0.5
    for picture in data.newly_wrong:
        assert picture.centre_predicted == picture.label != picture.averaged_predicted
    shares = [picture.right.mean() for picture in data.newly_correct]
    assert shares == sorted(shares, reverse=True)
    # The windows are those of the whole run, whose plan held every policy's views.
    every = union([parse_policy("5RC"), parse_policy("CC"), parse_policy("CC+4RC")])
    planner = Planner(InputSpec(40, 32), every, seed=3)
    first = data.newly_correct[0]
    names = sorted(path.relative_to(labelled_images).as_posix() for path in labelled_images.rglob("*.jpg"))
    sizes = [(40, 40) if int(name[-6:-4]) % 2 else (40, 60) for name in names]
    plans = [planner.windows([name], np.array([size]))[0] for name, size in zip(names, sizes, strict=True)]
    columns = list(every.columns["RC"])
    with np.load(run.folder / "predictions-net.npz") as stored:
        view_right = stored["view_top1"] == stored["labels"][:, None]
    for picture in data.newly_correct + data.newly_wrong:
        rows = [i for i, plan in enumerate(plans) if np.array_equal(picture.windows, plan[columns, :2])]
        assert [view_right[row, columns].tolist() for row in rows] == [picture.right.tolist()]
    boxes = [patch.get_xy() for patch in gallery.draw(data).axes[0].patches]
    assert [tuple(xy) for xy in boxes[:5]] == [(x, y) for y, x in first.windows.tolist()]


def test_the_gallery_reads_tars_too(maker, labelled_images, monkeypatch, tmp_path):
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    run = scored_images(maker, labelled_images, maker.setting(S=40, K=32, seed=3))
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        tar.add(labelled_images, ".")
    folder, packed = (
        gallery.pictures(Inputs((run,), data))[""].newly_correct for data in (None, tmp_path / "images.tar")
    )
    assert len(folder) == len(packed) > 0
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(folder, packed, strict=True))


def test_the_gallery_chooses_by_agreement():
    top1 = np.array([[[1, 1, 0, 1], [0, 0, 1, 0]]])
    stored = Predictions(
        rows=np.arange(4),
        labels=np.array([0, 0, 0, -1]),
        policies=["CC", "2RC"],
        levels=["softmax"],
        top1=top1,
        in_top5=top1 == 0,
        nll=np.ones(top1.shape),
        view_top1=np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1], [1, 0, 0]]),
        failed=[],
    )
    answers = ImagePredictions(["a", "b", "c", "d"], stored)
    assert gallery.choose(answers, "2RC") == ([1, 0], [2])  # the image without a label is not among them
    assert gallery.changed_count(answers, "2RC") == 2 and gallery.changed_count(answers, "2RC", newly_wrong=True) == 1


def test_class_names_come_from_folders_that_hold_one_class():
    table = pd.DataFrame({"name": ["cats/1.jpg", "cats/2.jpg", "x/3.jpg", "y/4.jpg", "5.jpg"]})
    assert gallery.class_names(table, np.array([0, 0, 1, 1, 2])) == {0: "cats"}
    demo = table.assign(**{"class": ["star", "star", "disc", "disc", "gear"]})
    assert gallery.class_names(demo, np.array([0, 0, 1, 1, 2])) == {0: "star", 1: "disc", 2: "gear"}


# ---- published only


def test_resolutions_are_the_printed_ones():
    from analysis.figures import accuracy_vs_resolution as figure

    found = figure.pictures(Inputs())
    lines = lines_of(figure.draw(found["fixres5"]).axes[0])
    assert lines["not adapted 224"] == (
        [64, 128, 224, 288, 384, 448, 480],
        [29.4, 65.4, 77.0, 78.4, 77.7, 76.6, 75.9],
    )
    assert len(found["fixres8"].panels) == 1


def test_imagenet_v2_pairs():
    frame = v2_figure.pairs()
    assert len(frame) == 36
    row = frame[(frame["variant"] == "L2") & (frame["method"] == "fixres")].iloc[0]
    assert (row["imagenet"], row["imagenet_v2"], row["kind"]) == (88.5, 80.8, "NoisyStudent")
    adv_prop, noisy_student = v2_figure.draw(v2_figure.pictures(Inputs())[""]).axes
    assert lines_of(adv_prop)["AdvProp baseline"][1][0] == 65.5
    assert (lines_of(noisy_student)["NoisyStudent fixres"][0][-1], len(noisy_student.texts)) == (88.5, 18 + 2)
    # FixRes Table 2 prints the ImageNet half of two more networks of FixEfficientNet Table 6.
    assert lines_of(noisy_student)["others"] == ([81.2, 86.4], [71.7, 77.8])
    assert "others" not in lines_of(adv_prop)


def test_names_in_the_imagenet_v2_figure_do_not_overlap():
    """As B5 to B8 of AdvProp did."""
    figure = v2_figure.draw(v2_figure.pictures(Inputs())[""])
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in axes.texts]
        assert len(boxes) >= 18
        for i, (name, box) in enumerate(boxes):
            assert axes.bbox.x0 - 5 < box.x0 and box.x1 < axes.bbox.x1 + 5, name
            assert not [other for other, there in boxes[i + 1 :] if box.overlaps(there)], name


# ---- the program


# imagenet_v2 needs runs on two data sets; the others dense or stopped policies, which tests/bench/test_cheap.py has.
NOT_FROM_THESE = ["latency", "accuracy_vs_forwards", "stopping", "many_crops", "ensembles", "imagenet_v2"]


def test_every_figure_of_a_run_is_drawn_from_full_runs(maker, labelled_images, monkeypatch, tmp_path, capsys):
    """Walks the table: a figure that is added must be drawable from these runs, or from published numbers."""
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    nfnet = maker.setting(S=40, K=32, model="dm_nfnet_f0.dm_in1k", family="nfnet", variant="f0", weight_hash="bb")
    settings = [maker.setting(S=40, K=32), maker.setting(S=36, K=32), nfnet, replace(nfnet, S=60, K=48)]
    models = [{"model": nfnet.model, "own_K": 32, "train_K": 24}]
    runs = [scored_images(maker, labelled_images, one, seed, models) for seed, one in enumerate(settings)]
    for record in runs[0].accuracies:
        append(runs[0].folder, replace(record, labels="real"))
    folders = [run.folder for run in runs]
    out = tmp_path / "out"
    assert make_figures.main([*map(str, folders), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    undrawn = printed.partition("not drawn:")[2].strip().splitlines()
    assert [line.partition(":")[0].strip() for line in undrawn] == NOT_FROM_THESE
    for name, entry in FIGURES.items():
        if "run" in entry.sources and name not in NOT_FROM_THESE:
            pictures = list(out.glob(f"{name}*.png"))
            assert pictures, name
            for path in pictures:
                assert str(path) in printed
                pixels = matplotlib.image.imread(path)
                assert 700 <= pixels.shape[1] <= 1250 and pixels[..., :3].std() > 0.02
    assert len(list(out.iterdir())) == printed.count(".png")


def test_pictures_lie_in_the_runs_folder_and_are_reproducible(maker):
    run = maker.run("one", [*maker.curve(maker.setting()), *maker.speed(maker.setting())])
    arguments = [str(run.folder), "--only", "accuracy_vs_crops, throughput_vs_crops"]
    assert make_figures.main(arguments) == 0
    first = (run.folder / "accuracy_vs_crops.png").read_bytes()
    assert (run.folder / "throughput_vs_crops.png").is_file()
    assert make_figures.main(arguments) == 0
    assert (run.folder / "accuracy_vs_crops.png").read_bytes() == first
    assert b"Software" not in first and b"tIME" not in first


def test_what_is_not_drawn_is_listed_with_its_reason(maker, tmp_path, capsys):
    setting = maker.setting()
    reason = "not asked for (--no-throughput)"
    run = maker.run("one", [*maker.curve(setting), maker.absent(setting, "throughput", reason)])
    assert make_figures.main([str(run.folder)]) == 0
    drawn, _, undrawn = capsys.readouterr().out.partition("not drawn:")
    assert "accuracy_vs_crops.png" in drawn
    assert f"throughput_vs_crops: needs a run with a throughput pass; the run says: {reason}" in undrawn
    assert "crop_ratio: needs one network at several S: run with --crop-pct" in undrawn
    assert "gallery: needs the per-image predictions of resnet18.tv_in1k" in undrawn


def test_runs_that_cannot_be_compared_are_listed_by_the_field_that_differs(maker, tmp_path, capsys):
    runs = [maker.run(name, maker.curve(maker.setting(data_hash=name))) for name in ("ab", "cd")]
    assert make_figures.main([*(str(run.folder) for run in runs), "--out", str(tmp_path / "out")]) == 0
    drawn, _, undrawn = capsys.readouterr().out.partition("not drawn:")
    assert drawn.count("accuracy_vs_crops") == 2  # each network alone is drawn
    assert "gain_vs_slack: results cannot be compared: data_hash is 'ab' in one" in undrawn


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{root}/nowhere"], r"nowhere is not a run: it has no run\.json"),
        (["{root}/empty"], "empty holds no results"),
        (["{root}/one", "--only", "accuracy"], "no figure accuracy; known: accuracy_vs_crops"),
    ],
)
def test_what_the_user_can_mend_is_said(maker, capsys, arguments, message):
    maker.run("empty", [])
    maker.run("one", maker.curve(maker.setting()))
    assert make_figures.main([text.format(root=maker.root) for text in arguments]) == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["somewhere", "--published"]])
def test_a_bad_command_line_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        make_figures.main(arguments)
    assert stop.value.code == 2 and "--published" in capsys.readouterr().err


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The papers' figures, drawn once: their folder, and what the command printed."""
    out = tmp_path_factory.mktemp("published")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert make_figures.main(["--published", "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_the_published_figures_are_drawn_and_the_others_listed(published):
    out, printed = published
    drawn = {path.stem for path in out.glob("*.png")}
    assert len(drawn) == 13
    for name, entry in FIGURES.items():
        if "published" in entry.sources:
            assert any(stem.startswith(name) for stem in drawn), name
    for number in NOT_PRINTED:
        assert f"the papers' figure {number}: " in printed


def test_the_script_runs_by_its_path_from_another_folder(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "analysis/make_figures.py"),
        "--published",
        "--only",
        "accuracy_vs_resolution",
    ]
    done = subprocess.run([*command, "--out", "out"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == [
        "accuracy_vs_resolution-fixres5", "accuracy_vs_resolution-fixres8",
    ]  # fmt: skip


def test_drawing_in_process_leaves_matplotlibs_settings_and_no_open_figure(maker):
    run = maker.run("one", maker.curve(maker.setting()))
    before = dict(matplotlib.rcParams)
    drawn = make_figures.make_figures([run.folder])
    assert run.folder / "accuracy_vs_crops.png" in drawn.paths and "throughput_vs_crops" in drawn.not_drawn
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_folder_of_an_experiment_has_its_own_figure(tmp_path):
    (tmp_path / "activations.json").write_text("{}")
    with pytest.raises(ValueError, match="activations"):
        make_figures.make_figures([tmp_path])
    inputs = drawing.inputs_of([tmp_path])
    assert inputs.experiments == (tmp_path,)
    assert drawing.names(inputs) == ["train_low_test_high", "activations", "tuned_activations"]


POINTS = np.linspace(0, 3, 61)
FIT = {"mu": 0.4, "sigma": 0.25, "xi": 0.3, "zero_share": 0.2, "distance": 0.0123}


def activations_folder(folder, weight_hash, shares, *, tuned=None, points=POINTS):
    """As multicrop-bench activations writes it: ``shares`` {K: share at each point}."""
    folder.mkdir()
    rows = [
        {"K": K, "crops": 50, "zero_percent": 100 * cdf[0], "above_2_percent": 1.0, "fitted_on": "photos",
         "images": 50, "top1": 80.0, **{f"{name}_{key}": None for name in ("frechet", "gaussian")
                                        for key in ("top1", "gain", "gain_low", "gain_high", "reason")}}
        for K, cdf in shares.items()
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "activations.csv", index=False)
    info = {
        "model": "net", "weight_hash": weight_hash, "tuned": tuned, "is_demo": False, "data": "photos", "train_K": 96,
        "points": points.tolist(), "cdf": {str(K): list(cdf) for K, cdf in shares.items()},
        "frechet": {str(K): FIT for K in shares},
    }  # fmt: skip
    (folder / "activations.json").write_text(json.dumps(info))
    return folder


def test_activations_with_the_fitted_model(tmp_path):
    """FixRes Figure 6: SciPy's distribution, of the values that are not zero."""
    shares = {96: np.minimum(0.2 + POINTS, 1), 128: np.minimum(0.1 + POINTS, 1)}
    folder = activations_folder(tmp_path / "as-it-is", "aa", shares)
    figure = activations_figure.draw(activations_figure.pictures(Inputs((), None, (folder,)))[""])
    lines = lines_of(figure.axes[0])
    for K, cdf in shares.items():
        np.testing.assert_allclose(lines[f"K {K}"][1], 100 * cdf)
        model = 0.2 + 0.8 * genextreme(-0.3, 0.4, 0.25).cdf(POINTS)
        np.testing.assert_allclose(lines[f"fit {K}"][1], 100 * model, atol=1e-9)
    assert "largest distance, points: 1.2 at 96, 1.2 at 128." in words_of(figure).replace("\n", " ")


def test_activations_before_and_after_fine_tuning(tmp_path):
    """FixRes Figure 4: a network as it is, and two that were tuned from it, each at its own size."""
    before = {K: np.minimum(start + POINTS / 3, 1) for K, start in ((64, 0.5), (96, 0.3), (128, 0.1))}
    folders = [activations_folder(tmp_path / "as-it-is", "aa", before)]
    points = np.linspace(0, 2.5, 51)  # a shorter range than the base's: no curve beyond it
    after = {K: np.minimum(start + points / 3, 1) for K, start in ((64, 0.35), (128, 0.28))}
    for K, cdf in after.items():
        tuned = {"K": K, "layers": "classifier+bn", "base_hash": "aa"}
        shares = {96: np.full(51, 0.9), K: cdf}
        folders.append(activations_folder(tmp_path / f"at-{K}", f"t{K}", shares, tuned=tuned, points=points))
    other = {"K": 64, "layers": "classifier", "base_hash": "another network"}
    folders.append(activations_folder(tmp_path / "other", "oo", {64: np.full(61, 0.7)}, tuned=other))
    (data,) = tuned_figure.pictures(Inputs((), None, tuple(folders))).values()
    for damaged in ({"frechet": {"96": {"mu": 1.0}}}, {"frechet": {"32": FIT}}, {"tuned": {"K": 64}}):
        path = folders[-1] / "activations.json"
        text = path.read_text()
        path.write_text(json.dumps(json.loads(text) | damaged))
        with pytest.raises(ValueError, match=r"activations\.json: `(frechet|tuned)`"):
            tuned_figure.pictures(Inputs((), None, tuple(folders)))
        path.write_text(text)
    figure = tuned_figure.draw(data)
    left, right = (lines_of(axes) for axes in figure.axes)
    assert set(left) == {"as trained", "before 64", "before 128"}
    assert set(right) == {"as trained", "after 64", "after 128"}
    for K in (64, 128):
        np.testing.assert_allclose(left[f"before {K}"][1], 100 * before[K])
        there = np.minimum(after[K][0] + POINTS / 3, 1) * 100
        np.testing.assert_allclose(right[f"after {K}"][1], np.where(POINTS <= 2.5, there, np.nan))
    for panel in (left, right):
        np.testing.assert_allclose(panel["as trained"][1], 100 * before[96])
    assert "64: 20.0 before, 5.0 after; 128: 20.0 before, 2.0 after" in words_of(figure).replace("\n", " ")
    with pytest.raises(MissingData, match="what was fine-tuned from it"):
        tuned_figure.pictures(Inputs((), None, tuple(folders[:1])))


def test_what_training_low_saves():
    """FixRes Table 7: 124.1, 131.9, 151.5 h less 133.9, 133.9, 348.5; 77.1, 77.6, 79.0 less 77.0, 77.0, 78.2."""
    data = time_figure.pictures(Inputs())[""]
    assert len(data.rows) == 9 and int(data.rows["is_tuned"].sum()) == 3
    text = words_of(time_figure.draw(data)).replace("\n", " ")
    for said in ("128 for 224: -9.8 h, +0.1 points", "160 for 224: -2.0 h, +0.6", "224 for 384: -197.0 h, +0.8"):
        assert said in text


# ---- names from data

EVIL_NAMES = ("US$ or A$", "a_b^c", "\x1b[31mred", "_hidden", "\u202eltr", "m" * 200)


@pytest.mark.parametrize("name", EVIL_NAMES, ids=["dollars", "script", "escape", "underscore", "direction", "long"])
def test_a_networks_name_is_shown_as_it_is_and_never_as_mathematics(maker, name):
    one = maker.setting(model=name, family=None, variant=None)
    other = maker.setting(model="plain", family=None, variant=None, weight_hash="bb")
    run = maker.run("names", [*maker.curve(one), *maker.curve(other), *maker.speed(one), *maker.speed(other)])
    shown = {"\x1b[31mred": "\\x1b[31mred", "\u202eltr": "\\u202eltr", "m" * 200: "m" * 29 + "…" + "m" * 30}
    for module in (speed_figure, throughput_figure, crops_figure, family_figure):
        figures = [module.draw(data) for data in module.pictures(Inputs((run,))).values()]
        texts = [text for figure in figures for text in figure.findobj(matplotlib.text.Text)]
        named = [text for text in texts if shown.get(name, name) in text.get_text()]
        assert named and not any(text.get_parse_math() for text in named)
    legend = speed_figure.draw(speed_figure.pictures(Inputs((run,)))[""]).legends[0]
    assert len(legend.get_texts()) == 3  # two networks and the Pareto front
    assert len(make_figures.make_figures([run.folder], only=["accuracy_vs_crops"]).paths) == 2


def test_class_names_are_shown_as_they_are(maker, tmp_path, picture, monkeypatch):
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "images"
    for i in range(24):
        folder = root / ("US$ or A$" if i < 12 else "dogs_a_b^c\x1b[2J")
        folder.mkdir(parents=True, exist_ok=True)
        picture(60, 60 if i % 2 else 90, i).save(folder / f"{i:02}.jpg")
    run = scored_images(maker, root, maker.setting(S=40, K=32, seed=3))
    figure = gallery.draw(gallery.pictures(Inputs((run,)))[""])
    style.save(figure, tmp_path / "gallery.png")
    text = words_of(figure)
    assert "US$ or A$" in text and "dogs_a_b^c\\x1b[2J" in text and "\x1b" not in text
