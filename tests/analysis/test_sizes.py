"""Sweeps of test resolutions, second labels and ImageNet-V2: tables and figures against counts made by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from analysis import sizes
from analysis.figures import clean_labels, equal_cost, imagenet_v2, resolution_sweep
from analysis.published import load
from analysis.runs import Inputs, MissingData, accuracies, predictions, scored_networks
from analysis.stats import mcnemar, paired_difference
from analysis.tables import main as tables_main
from bench.records import REAL, Incomparable

IMAGES = 40
NAMES = [f"{i:02}.jpg" for i in range(IMAGES)]
LABELS = np.arange(IMAGES) % 3
# Of 40 images the first so many are right, or those in a range: so that two choices differ in known images.
RIGHT = {
    (64, "CC"): range(0, 20),
    (96, "CC"): range(0, 28),
    (96, "1RC"): range(2, 28),
    (96, "2RC"): range(0, 30),
    (96, "CC+1RC"): range(1, 29),
    (96, "4RC"): range(0, 33),
    (96, "CC+3RC"): range(3, 33),
    (136, "CC"): range(4, 30),
    (192, "CC"): range(10, 30),
}
SIDES = {64: 73, 96: 110, 136: 155, 192: 220}  # K -> S


def said(right: range) -> np.ndarray:
    return np.where(np.isin(np.arange(IMAGES), list(right)), LABELS, 9)


@pytest.fixture
def sweep_run(maker):
    """``sweep_run(...)``: one run with all of SIDES, the files named so that their order is not that of K."""

    def make(own_K=96, train_K=96, *, sides=SIDES, drop=(), name="sweep", records=(), **changes):
        settings = {K: maker.setting(K=K, S=S, batch_size=8 + K, **changes) for K, S in sides.items()}
        lines, models = list(records), []
        for K, setting in settings.items():
            top1 = {p: said(right) for (side, p), right in RIGHT.items() if side == K and p not in drop}
            lines += maker.records_of(setting, LABELS, top1)
            named = f"predictions-{999 - K}.npz"
            models.append(
                {
                    "model": setting.model,
                    "S": setting.S,
                    "K": K,
                    "own_K": own_K,
                    "train_K": train_K,
                    "predictions": named,
                }
            )
        run = maker.run(name, lines, models=models)
        for K in settings:
            top1 = {p: said(right) for (side, p), right in RIGHT.items() if side == K and p not in drop}
            maker.predictions(run, f"{999 - K}", NAMES, LABELS.tolist(), top1, np.zeros((IMAGES, 1)))
        return run

    return make


def only(found):
    (one,) = found
    return one


# ---- tables


def test_a_sweep_is_one_network_at_its_sizes_in_order(sweep_run):
    sweep = only(sizes.sweeps([sweep_run()]))
    assert (sweep.resolutions, sweep.own_K, sweep.train_K) == ([64, 96, 136, 192], 96, 96)
    rows = sweep.frame[sweep.frame["policy"] == "CC"]
    assert rows[["K", "S", "top1"]].to_numpy().tolist() == [[64, 73, 50], [96, 110, 70], [136, 155, 65], [192, 220, 50]]


def test_differences_to_the_own_size_are_paired_image_by_image(sweep_run):
    table = sizes.against_own_size(only(sizes.sweeps([sweep_run()]))).set_index("K")
    # At 136 images 4 to 29 are right, at 96 images 0 to 27: two newly correct, four newly wrong, of 40.
    row = table.loc[136]
    assert row["difference"] == pytest.approx(-5)
    assert (row["low"], row["high"]) == pytest.approx(paired_difference(2, 4, 26, 40))
    assert row["p_value"] == pytest.approx(mcnemar(2, 4))
    assert table.loc[96, "difference"] == 0 and table.loc[64, "difference"] == pytest.approx(-20)


def test_sizes_with_the_same_counts_are_told_apart_by_the_files_that_run_json_names(sweep_run):
    run = sweep_run()
    for part in scored_networks([run]):  # K = 64 and K = 192 both have 20 right, of other images
        assert predictions(part).of("CC").nonzero()[0].tolist() == list(RIGHT[part[1].K, "CC"])


def test_several_crops_stand_against_the_large_crop_of_about_their_cost(sweep_run):
    table = sizes.equal_cost(only(sizes.sweeps([sweep_run()])))
    pairs = table[["K", "N", "policy", "nearest"]].to_numpy().tolist()
    assert pairs == [
        [136, 2, "2RC", True], [136, 2, "CC+1RC", True], [136, 4, "4RC", False], [136, 4, "CC+3RC", False],
        [192, 2, "2RC", False], [192, 2, "CC+1RC", False], [192, 4, "4RC", True], [192, 4, "CC+3RC", True],
    ]  # fmt: skip
    assert table["cost_ratio"].round(3).tolist() == [1.003, 1.003, 0.502, 0.502, 2, 2, 1, 1]
    assert table["time_ratio"].isna().all()
    by_pair = table.set_index(["K", "policy"])
    # 192: images 10 to 29; 4RC: 0 to 32; so 0 newly correct, 13 newly wrong.
    assert by_pair.loc[(192, "4RC"), "difference"] == pytest.approx(-32.5)
    assert tuple(by_pair.loc[(192, "4RC"), ["low", "high"]]) == pytest.approx(paired_difference(0, 13, 20, 40))
    # 136: 4 to 29; CC+1RC: 1 to 28; so 1 newly correct, 3 newly wrong.
    assert by_pair.loc[(136, "CC+1RC"), "difference"] == pytest.approx(-5)
    assert tuple(by_pair.loc[(136, "CC+1RC"), ["low", "high"]]) == pytest.approx(paired_difference(1, 3, 26, 40))


def test_three_crops_at_224_cost_nearly_twice_one_at_288(maker):
    settings = [maker.setting(K=K, S=S) for K, S in ((224, 256), (288, 329))]
    names = ["2RC", "CC+1RC", "3RC", "CC+2RC"]
    lines = maker.records_of(settings[0], LABELS, {"CC": LABELS, **dict.fromkeys(names, LABELS)})
    lines += maker.records_of(settings[1], LABELS, {"CC": LABELS})
    run = maker.run("one", lines, models=[{"model": settings[0].model, "own_K": 224}])
    for K, own in ((224, ["CC", *names]), (288, ["CC"])):
        maker.predictions(run, str(K), NAMES, LABELS.tolist(), dict.fromkeys(own, LABELS), np.zeros((IMAGES, 1)))
    table = sizes.equal_cost(only(sizes.sweeps([run]))).set_index("policy")
    assert table["cost_ratio"].round(3).to_dict() == {"2RC": 0.827, "CC+1RC": 0.827, "3RC": 0.551, "CC+2RC": 0.551}
    assert table["nearest"].to_dict() == {"2RC": True, "CC+1RC": True, "3RC": False, "CC+2RC": False}


def test_measured_times_stand_beside_the_pixels(sweep_run, maker):
    timed = []
    for K, rates in {96: {1: 100, 2: 60, 4: 40}, 192: {1: 20}}.items():
        setting = maker.setting(K=K, S=SIDES[K], batch_size=8 + K)
        timed += [maker.rates(setting, "end_to_end", n, [rate, rate, rate]) for n, rate in rates.items()]
    table = sizes.equal_cost(only(sizes.sweeps([sweep_run(records=timed)]))).set_index(["K", "policy"])
    assert table.loc[(192, "4RC"), "time_ratio"] == pytest.approx(40 / 20)
    assert table.loc[(192, "2RC"), "time_ratio"] == pytest.approx(60 / 20)
    assert np.isnan(table.loc[(136, "2RC"), "time_ratio"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sides": {96: 110}}, "needs one network at several K: run with --img-size"),
        ({"sides": {64: 73, 96: 110}}, r"needs K above the network's own 96 .* --img-size 96,136,192 --crops 1,2,5"),
        ({"drop": ("2RC", "CC+1RC", "4RC", "CC+3RC")}, "several crops there"),
        ({"own_K": 224}, r"add it to --img-size \(224\)"),
        ({"own_K": None}, "which the run does not record"),
    ],
)
def test_what_cannot_be_compared_says_what_is_missing(sweep_run, changes, says):
    with pytest.raises(MissingData, match=says):
        sizes.equal_cost(only(sizes.sweeps([sweep_run(**changes)])))


def test_two_crop_ratios_at_one_size_are_refused_and_other_seeds_too(sweep_run):
    one = sweep_run()
    with pytest.raises(MissingData, match=r"at K=96 has the crop ratios of S=110 and S=96: .* --crop-pct"):
        sizes.sweeps([one, sweep_run(name="other", sides={96: 96})])
    with pytest.raises(Incomparable, match="seed"):
        sizes.sweeps([one, sweep_run(name="seeded", sides={96: 110}, seed=1)])


def test_the_command_prints_and_writes_both_tables(sweep_run, capsys):
    run = sweep_run()
    assert sizes.main([str(run.folder)]) == 0
    assert "difference" in capsys.readouterr().out
    costs = pd.read_csv(run.folder / "equal_cost.csv")
    assert (len(costs), set(costs["model"]), set(costs["own_K"])) == (8, {run.accuracies[0].setting.model}, {96})
    table = pd.read_csv(run.folder / "sizes.csv").set_index(["K", "policy"])
    assert table.loc[(136, "CC"), "difference"] == pytest.approx(-5) and np.isnan(table.loc[(96, "4RC"), "difference"])
    lonely = sweep_run(name="lonely", sides={96: 110})
    assert sizes.main([str(lonely.folder)]) == 2 and "--img-size" in capsys.readouterr().err


# ---- figures


def lines_of(axes):
    return {line.get_gid(): line.get_xydata().tolist() for line in axes.lines if line.get_gid()}


def words_of(figure):
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_the_sweep_is_drawn_with_its_training_resolution(sweep_run):
    data = resolution_sweep.pictures(Inputs((sweep_run(train_K=64),)))[""]
    figure = resolution_sweep.draw(data)
    left, right = figure.axes
    assert lines_of(left)["CC"] == [[64, 50], [96, 70], [136, 65], [192, 50]]
    assert "4RC" not in lines_of(left)  # not scored at every size
    assert lines_of(left)["train_K"][0][0] == 64 and lines_of(right)["own_K"][0][0] == 96
    assert lines_of(right)["difference"][2] == pytest.approx([136, -5])
    assert "trained at 64" in words_of(figure) and "its own test size, 96" in words_of(figure)
    assert "published" not in lines_of(left)


def test_a_run_that_says_less_shows_less_and_says_so(sweep_run):
    figure = resolution_sweep.draw(resolution_sweep.pictures(Inputs((sweep_run(own_K=None, train_K=None),)))[""])
    assert len(figure.axes) == 1
    assert "No paired differences" in words_of(figure) and "is not recorded" in words_of(figure)


def test_forty_sizes_in_steps_of_one_pixel_are_drawn_without_marks(maker):
    sides = range(90, 131)
    lines = [
        r for K in sides for r in maker.records_of(maker.setting(K=K, S=K + 12), LABELS, {"CC": said(range(K % 32))})
    ]
    models = [
        {"model": lines[0].setting.model, "K": K, "S": K + 12, "own_K": 96, "predictions": f"{K}.npz"} for K in sides
    ]
    run = maker.run("steps", lines, models=models)
    for K in sides:
        maker.predictions(run, str(K), NAMES, LABELS.tolist(), {"CC": said(range(K % 32))}, np.zeros((IMAGES, 1)))
        (run.folder / f"predictions-{K}.npz").rename(run.folder / f"{K}.npz")
    figure = resolution_sweep.draw(resolution_sweep.pictures(Inputs((run,)))[""])
    left, right = figure.axes
    assert len(lines_of(left)["CC"]) == len(lines_of(right)["difference"]) == 41
    assert left.get_xticks().tolist() == [96, 128]  # where the last map grows


def test_published_points_stand_beside_the_same_network_only(maker):
    resnet50 = maker.setting(model="resnet50.tv_in1k", K=224)
    part = (None, resnet50)
    points = resolution_sweep.published_points(part, 224, 50_000)
    table = load("fixres_table5")
    expected = table[(table["adaptation"] == "none") & (table["train_res"] == 224)]
    assert dict(zip(points["K"], points["top1"], strict=True)) == dict(
        zip(expected["test_res"].astype(int), expected["value"], strict=True)
    )
    assert points.set_index("K")["top1"][288] == 78.4
    for setting in (
        replace(resnet50, model="resnet101.tv_in1k"),
        replace(resnet50, is_demo=True),
        replace(resnet50, weights="mine.safetensors"),
        replace(resnet50, crop_mode="squash"),
    ):
        assert resolution_sweep.published_points((None, setting), 224, 50_000).empty
    assert resolution_sweep.published_points(part, 224, 1000).empty
    assert resolution_sweep.published_points(part, None, 50_000).empty


def test_the_equal_cost_figure_shows_the_nearest_pairs(sweep_run):
    data = equal_cost.pictures(Inputs((sweep_run(),)))[""]
    assert not data.timed and data.own_K == 96
    assert data.compared[["K", "N", "policy"]].to_numpy().tolist() == [
        [136, 2, "2RC"], [136, 2, "CC+1RC"], [192, 4, "4RC"], [192, 4, "CC+3RC"],
    ]  # fmt: skip
    figure = equal_cost.draw(data)
    left, right = figure.axes
    assert lines_of(left)["RC"] == [[1, 70], [2, 75], [4, 82.5]]
    assert [round(x, 3) for x, _ in lines_of(left)["CC"]] == [0.444, 1, 2.007, 4]
    labels = [text.get_text() for text in right.get_yticklabels()]
    assert labels == ["1 of 136 − 2 of 96 (1.00)", "1 of 192 − 4 of 96 (1.00)"]
    bars = [bar.lines[0].get_xydata()[0].tolist() for bar in right.containers]
    assert bars[0] == pytest.approx([-10, -0.14]) and bars[3][0] == pytest.approx(-32.5 + 7.5)


def test_second_labels_are_drawn_beside_and_never_with_the_original_ones(maker, tmp_path):
    setting = maker.setting()
    original = maker.curve(setting)
    real = [replace(r, labels=REAL, images=900, top1_correct=r.top1_correct + 50) for r in original]
    mixed, plain = maker.run("mixed", [*original, *real]), maker.run("plain", original)
    assert accuracies([mixed]).drop(columns="run").equals(accuracies([plain]).drop(columns="run"))
    assert set(accuracies([mixed], REAL)["images"]) == {900}
    for run in (mixed, plain):
        assert tables_main([str(run.folder), "--out", str(tmp_path / f"tables {run.folder.name}")]) == 0
    one, other = ((tmp_path / f"tables {name}") for name in ("mixed", "plain"))
    for path in one.glob("*.csv"):
        assert path.read_text().replace("mixed", "plain") == (other / path.name).read_text()

    data = clean_labels.pictures(Inputs((mixed,)))[""]
    row = only(data.measured.to_dict("records"))
    assert (row["policy"], row["base"], row["top1"], row["real_images"]) == ("20RC", 70.0, 72.0, 900)
    assert (row["real_base"], row["real_top1"]) == pytest.approx((100 * 750 / 900, 100 * 770 / 900))
    assert row["real_gain"] == pytest.approx(100 * 20 / 900)
    figure = clean_labels.draw(data)
    assert "900 of 1,000 images have a label" in words_of(figure) and len(figure.axes) == 2
    with pytest.raises(MissingData, match=r"--real-labels real\.json"):
        clean_labels.pictures(Inputs((plain,)))


def test_the_published_clean_labels_are_those_of_the_tables():
    frame = clean_labels.pictures(Inputs())[""].published
    row = frame[(frame["variant"] == "B0") & (frame["kind"] == "AdvProp")].set_index("method")
    assert (row.loc["baseline", "real"], row.loc["fixres", "real"]) == (83.7, 85.8)
    assert row.loc["baseline", "original"] == 77.6
    row = frame[(frame["variant"] == "B0") & (frame["kind"] == "NoisyStudent")].set_index("method")
    assert (row.loc["baseline", "original"], row.loc["baseline", "real"]) == (78.8, 84.5)
    assert not clean_labels.draw(clean_labels.pictures(Inputs())[""]).axes[0].containers


def test_imagenet_v2_is_measured_where_one_network_has_runs_on_both(maker):
    old = maker.setting(data="val")
    new = maker.setting(data="imagenetv2-matched-frequency-format-val", data_hash="v2")
    runs = (
        maker.run("old", maker.curve(old)),
        maker.run("new", [maker.accuracy(new, "CC", 580, 0, 0), maker.accuracy(new, "10RC", 600, 40, 20)]),
    )
    data = imagenet_v2.pictures(Inputs(runs))[""]
    rows = data.measured.set_index("policy")
    assert list(rows.index) == ["CC", "10RC"]  # 20RC is on one of the two only
    assert (rows.loc["CC", "imagenet"], rows.loc["CC", "imagenet_v2"]) == (70.0, 58.0)
    assert (rows.loc["10RC", "imagenet"], rows.loc["10RC", "imagenet_v2"]) == (71.5, 60.0)
    figure = imagenet_v2.draw(data)
    assert all(len(axes.containers) == 2 for axes in figure.axes)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [
        "EfficientNet", "FixEfficientNet (fine-tuned)", "other networks with extra data", "resnet 18: measured",
    ]  # fmt: skip
    with pytest.raises(MissingData, match="needs one network's runs on ImageNet and on ImageNet-V2"):
        imagenet_v2.pictures(Inputs(runs[:1]))
    with pytest.raises(Incomparable, match="seed"):
        other = replace(new, seed=4)
        imagenet_v2.pictures(Inputs((runs[0], maker.run("seed", [maker.accuracy(other, "CC", 580, 0, 0)]))))
    demo = maker.setting(data="demo-v2-seed0-val-1000", is_demo=True, data_hash="demo")
    assert not imagenet_v2.is_v2(demo)
