"""FixRes's and FixEfficientNet's tables beside runs made by hand: what is compared, what is not and why.

One field is changed at a time: each must empty the cell and give its own reason.
"""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import tables, tables_fixres
from analysis.claim_tests import ABSENT
from analysis.claims_fixres import CLAIMS_FIXRES
from analysis.demo_fixres import demo_fixres_frame, demo_fixres_grid
from analysis.evidence import NO_EXPERIMENTS, evidence
from analysis.experiments import Experiments, Tuning
from analysis.published import TABLES, load
from analysis.stats import wilson
from bench.records import REAL
from tests.analysis.test_claims_fixres import network, said, trained  # noqa: F401 - network is a fixture

B0 = {"model": "tf_efficientnet_b0.ap_in1k", "family": "efficientnet", "published_in": "MID Table III"}
STEPS = {stage: {"median": ms, "min": ms - 1, "max": ms + 1} for stage, ms in
         (("trunk", 12.0), ("forward", 3.0), ("backward", 5.0))}  # fmt: skip


def tuning(**changes):
    given = Tuning(
        folder="tuned", base=B0["model"], base_weights="pretrained", base_hash="bb", train_res=224, weight_hash="tt",
        K=320, layers="classifier+bn", augmentation="test", label_smoothing=0.1, batch_size=64, device="cuda:0",
        is_demo=False, step_ms=STEPS,
    )  # fmt: skip
    return replace(given, **changes)


@pytest.fixture
def scored(maker):
    """scored(run name, correct, **setting): a run of the centre crop of 50,000 images."""

    def made(name, correct, *, images=50_000, labels=None, **changes):
        setting = maker.setting(**{"S": changes.get("K", 224) + 32, **changes})
        record = replace(
            maker.accuracy(setting, "CC", correct, 0, 0, images=images), top5_correct=min(images, correct + 5000)
        )
        return maker.run(name, [record if labels is None else replace(record, labels=labels)])

    return made


def cell(filled, **where):
    (found,) = [one for one in filled.cells if all(one.line[key] == value for key, value in where.items())]
    return found


def fill(name, *runs, tunings=(), known=()):
    return tables_fixres.fill(name, runs, Experiments(tuple(tunings)), dict(known))


# ---- shape


def test_the_tables_are_those_of_the_papers():
    fixres = [f"fixres_table{n}" for n in (1, 2, 4, 5, 6, 7, 8, 9, 10)]
    assert list(tables_fixres.LAYOUTS) == fixres + [f"fixeff_table{n}" for n in range(1, 7)]


@pytest.mark.parametrize("name", tables_fixres.LAYOUTS)
def test_every_printed_number_has_a_place_of_its_own_and_a_reason(name):
    filled = fill(name)
    lines = load(name)
    assert [one.line["printed"] for one in filled.cells] == list(lines["printed"])
    assert all(one.why_not and one.measured is None for one in filled.cells)
    shown = tables_fixres.grid(filled)
    texts = [text for row in shown.rows for text in row[len(tables_fixres.LAYOUTS[name][0]) + 1 :] if text]
    assert sorted(texts) == sorted(lines["printed"])
    assert sum(int(note.split(" of ")[0]) for note in shown.notes) == len(lines)
    assert shown.title.endswith(TABLES[name].title)


@pytest.mark.parametrize(
    ("name", "headings", "row"),
    [
        ("fixres_table5", ("64", "128", "160", "224", "384"),
         ("none", "384", "published", "23.8", "69.6", "73.8", "77.7", "78.2")),
        ("fixres_table8", ("test_da", "test_da2"), ("resnet50", "fixres", "320", "published", "79.0", "79.1")),
        ("fixeff_table1", ("baseline top1", "baseline top5", "fixres top1", "fixres top5"),
         ("L2", "published", "88.4", "98.7", "88.5", "98.7")),
        ("fixeff_table3", ("baseline top1", "baseline top5", "fixres top1", "fixres top5"),
         ("B8", "no extra data", "published", "89.6", "98.3", "90.0", "98.6")),
    ],
)  # fmt: skip
def test_rows_and_columns_stand_as_in_the_print(name, headings, row):
    shown = tables_fixres.grid(fill(name))
    assert shown.headings[-len(headings) :] == headings
    assert row in shown.rows


def test_the_competitions_of_table_10_are_absent_with_their_reasons(scored):
    """Even beside a run of a member's architecture."""
    filled = fill("fixres_table10", scored("a", 38_500, model="senet154.gluon_in1k", family=None))
    assert len(filled.cells) == 12 and not filled.is_measured
    assert "no accuracy of its own" in cell(filled, row="SENet-154", dataset="herbarium2019").why_not
    assert "test labels are not public" in cell(filled, dataset="inaturalist2019", metric="final_score").why_not
    with pytest.raises(ValueError, match="NETWORK/METHOD"):
        tables_fixres.known_weights(["senet154/unknown@448=aa"])


@pytest.mark.parametrize("name", [name for name in tables_fixres.LAYOUTS if name != "fixres_table10"])
def test_all_weights_are_named_or_said_to_be_missing(name):
    for line in load(name).to_dict("records"):
        weights = tables_fixres.wanted(line).weights
        assert weights in tables_fixres.WEIGHTS or weights[1] in tables_fixres.NOT_SHIPPED


def test_the_names_of_weights_are_timms():
    timm = pytest.importorskip("timm")
    assert set(tables_fixres.WEIGHTS.values()) <= set(timm.list_pretrained())


# ---- measured beside published


def test_a_network_as_it_is(scored):
    filled = fill("fixeff_table2", scored("a", 38_500, weight_hash="bb", **B0))
    one = cell(filled, variant="B0", method="baseline", metric="top1")
    assert one.measured.value == 77.0 and one.difference == pytest.approx(-0.6) and one.inside is False
    assert (one.measured.low, one.measured.high) == wilson(38_500, 50_000)
    assert cell(filled, variant="B0", method="baseline", metric="top5").measured.value == 87.0
    assert cell(filled, variant="B0", method="fixres", metric="top1").why_not.endswith("add --img-size 320")
    assert (
        cell(filled, variant="B1", method="baseline", metric="top1").why_not == "no run of tf_efficientnet_b1.ap_in1k"
    )
    shown = tables_fixres.grid(filled)
    assert shown.rows[1][:4] == ("", "measured", "77.00 (76.63 to 77.37)", "87.00 (86.70 to 87.29)")
    assert shown.rows[2][2] == "-0.60 outside"


def test_a_fine_tuned_network_needs_its_note(scored):
    run = scored("a", 39_650, weight_hash="tt", weights="tuned/model.safetensors", K=320, **B0)
    one = cell(fill("fixeff_table2", run, tunings=[tuning()]), variant="B0", method="fixres", metric="top1")
    assert (one.measured.value, one.inside) == (79.3, True)
    assert cell(fill("fixeff_table2", run), variant="B0", method="fixres", metric="top1").why_not.startswith(
        "no run of"
    )


@pytest.mark.parametrize(
    ("changes", "note", "why"),
    [
        ({"K": 288}, {}, "not scored at 320 pixels; add --img-size 320"),
        ({"is_demo": True}, {}, "demo data, which says nothing about ImageNet"),
        ({"data": "imagenetv2-x"}, {}, "not scored on ImageNet's validation images"),
        ({"crop_mode": "squash"}, {}, "the aspect ratio was not kept"),
        ({}, {"label_smoothing": 0.0}, "not fine-tuned so"),
        ({}, {"layers": "classifier"}, "not fine-tuned so"),
        ({}, {"K": 288}, "not fine-tuned so"),
        ({}, {"base_weights": "random"}, "no run of tf_efficientnet_b0.ap_in1k"),
        ({}, {"base": "tf_efficientnet_b0.ns_jft_in1k"}, "no run of tf_efficientnet_b0.ap_in1k"),
        ({"adapt": "gaussian"}, {}, "not fine-tuned so"),
    ],
)
def test_one_difference_is_enough(scored, changes, note, why):
    run = scored("a", 39_650, **{"weight_hash": "tt", "weights": "t", "K": 320, **B0, **changes})
    one = cell(fill("fixeff_table2", run, tunings=[tuning(**note)]), variant="B0", method="fixres", metric="top1")
    assert one.measured is None and one.why_not.startswith(why)


def test_more_images_than_the_set_has(scored):
    run = scored("a", 38_500, images=50_001, weight_hash="bb", **B0)
    assert "more images" in cell(fill("fixeff_table2", run), variant="B0", method="baseline", metric="top1").why_not


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("fixeff_table5", {"data": "imagenetv2-matched-frequency", "images": 10_000}),
        ("fixeff_table3", {"labels": REAL}),
    ],
)
def test_other_sets_have_their_own_tables(scored, name, changes):
    run = scored("a", 6_500, weight_hash="bb", **{**B0, **changes})
    one = cell(fill(name, run), model="tf_efficientnet_b0_ap", method="baseline", metric="top1")
    assert one.measured is not None
    other = {"fixeff_table5": "fixeff_table3", "fixeff_table3": "fixeff_table5"}[name]
    assert not fill(other, run).is_measured and not fill("fixeff_table2", run).is_measured


def test_table_6_takes_test_sizes_from_table_1(scored):
    swsl = scored("a", 7_170, images=10_000, data="imagenetv2", model="resnet50.fb_swsl_ig1b_ft_in1k", weight_hash="s")
    filled = fill("fixeff_table6", swsl)
    assert cell(filled, row="ResNet50 BS [2]", metric="top1").inside is True
    assert "which pre-training" in cell(filled, row="FixResNeXt-101 32x4d [1]", metric="top1").why_not
    assert tables_fixres.wanted(cell(filled, row="FixEfficientNet-B5", metric="top1").line).test_res == 576


# ---- weights that no library ships


def test_fixress_own_network_is_compared_only_when_the_user_names_its_weights(scored):
    plain = scored("plain", 38_500, model="resnet50", weight_hash="ff", weights="fixres.pth")
    tuned = scored("tuned", 39_500, model="resnet50", weight_hash="tt", weights="t", K=384)
    notes = [tuning(base="resnet50", base_weights="fixres.pth", base_hash="ff", K=384, label_smoothing=0.0)]
    assert "--weights resnet50/repeated_augmentation@64=HASH" in fill("fixres_table5", plain).cells[0].why_not
    known = tables_fixres.known_weights(["resnet50/repeated_augmentation@224=ff"])
    filled = fill("fixres_table5", plain, tuned, tunings=notes, known=known)
    assert cell(filled, train_res=224, test_res=224, adaptation="none").inside is True  # 77.0
    assert cell(filled, train_res=224, test_res=384, adaptation="classifier+batch_norm").inside is True  # 79.0
    assert cell(filled, train_res=224, test_res=384, adaptation="none").why_not == "scored only adapted or fine-tuned"
    table4 = fill("fixres_table4", plain, tuned, tunings=notes, known=known)
    assert "--tune classifier " in cell(table4, test_res=384, adaptation="classifier").why_not
    both = {"test_res": 384, "adaptation": "distribution+classifier"}
    assert "finetune --adapt gaussian --tune classifier" in cell(table4, **both).why_not
    made = replace(notes[0], layers="classifier", adapt="gaussian")
    together = scored("both", 39_000, model="resnet50", weight_hash="tt", weights="t", K=384, adapt="gaussian")
    filled = fill("fixres_table4", together, tunings=[made], known=known)
    assert cell(filled, **both).measured.value == 78.0
    without = fill("fixres_table4", together, tunings=[replace(made, adapt=None)], known=known)
    assert cell(without, **both).measured is None  # it was not adapted while it was tuned
    table8 = fill("fixres_table8", tuned, tunings=[replace(notes[0], augmentation="test2")], known=known)
    assert "--img-size 320" in cell(table8, model="resnet50", test_res=320, augmentation="test_da").why_not


def test_networks_trained_at_another_size_are_others(scored):
    """Table 5 has five ResNet-50s, one for each train size: weights named for one do not fill the others."""
    plain = scored("plain", 38_500, model="resnet50", weight_hash="ff", weights="fixres.pth")
    known = tables_fixres.known_weights(["resnet50/repeated_augmentation@224=ff"])
    filled = fill("fixres_table5", plain, known=known)
    assert cell(filled, train_res=224, test_res=224, adaptation="none").measured is not None
    assert cell(filled, train_res=128, test_res=224, adaptation="none").measured is None


@pytest.mark.parametrize(
    "text", ["resnet50=aa", "resnet50/baseline@224=aa", "resnet50/mixup@224", "resnet50/mixup@224="]
)
def test_what_is_no_name_of_weights_is_refused(text):
    with pytest.raises(ValueError, match="NETWORK/METHOD@TRAIN_SIZE=HASH"):
        tables_fixres.known_weights([text])


# ---- times


def test_times_of_fine_tuning(scored):
    known = tables_fixres.known_weights(["resnet50/repeated_augmentation@224=ff"])
    own = {"base": "resnet50", "base_hash": "ff", "K": 384, "label_smoothing": 0.0}
    filled = fill("fixres_table7", tunings=[tuning(**own)], known=known)
    forward = cell(filled, test_res=384, metric="fine_tune_forward_ms")
    assert (forward.measured.value, forward.difference) == (15.0, pytest.approx(-3.0))  # trunk and tuned layers; 18.0
    assert cell(filled, test_res=384, metric="fine_tune_backward_ms").measured.value == 5.0
    assert "from scratch" in cell(filled, train_res=384, metric="total_time_hours").why_not
    for changes in ({"batch_size": 32}, {"device": "cpu"}):
        filled = fill("fixres_table7", tunings=[tuning(**own, **changes)], known=known)
        assert "batches of 64 on a GPU" in cell(filled, test_res=384, metric="fine_tune_forward_ms").why_not
    for changes in ({"is_demo": True}, {"layers": "classifier"}, {"K": 320}):
        filled = fill("fixres_table7", tunings=[tuning(**{**own, **changes})], known=known)
        assert "was fine-tuned at 384" in cell(filled, test_res=384, metric="fine_tune_forward_ms").why_not


# ---- the demo's own table


def demo(network):  # noqa: F811 - the fixture
    changes = {"is_demo": True, "weights": "demo", "model": "resnet:demo", "published_in": None}
    plain = network("plain", {96: {"CC": said(100)}, 128: {"CC": said(110)}}, train_res=96, **changes)
    own = {**changes, "weights": "t", "weight_hash": "tt"}
    tuned = network("tuned", {128: {"CC": said(130)}}, **own)
    note = tuning(base="resnet:demo", base_weights="demo", base_hash="base", train_res=96, K=128, is_demo=True,
                  device="cpu", label_smoothing=0.0)  # fmt: skip
    return [plain, tuned], Experiments((note,))


def test_demo_networks_at_test_sizes(network):  # noqa: F811
    runs, notes = demo(network)
    found = demo_fixres_frame(evidence(runs, notes), runs)
    rows = {(row["test_res"], row["adaptation"]): row for row in found.to_dict("records")}
    assert set(rows) == {(96, "none"), (128, "none"), (128, "classifier+bn")}
    tuned = rows[128, "classifier+bn"]
    assert (tuned["top1"], tuned["gain"], tuned["train_res"]) == ("65.0000", "10.0000", 96)
    assert tuned["as_in"] == "FixRes Tables 4, 6, 8" and rows[128, "none"]["gain"] == ""
    shown = demo_fixres_grid(found, notes)
    assert shown.title.startswith("DEMO DATA")
    assert any("tuned: backward 5 ms, forward 3 ms, trunk 12 ms for a batch of 64 on cpu" in n for n in shown.notes)
    assert any("FixEfficientNet Tables 4 to 6 has no counterpart" in note for note in shown.notes)


def test_experiments_stand_in_the_demos_table():
    done = trained(
        {("train", 48, 64, "none"): 100, ("train", 48, 64, "classifier+bn"): 120, ("fixed", 48, 64, "none"): 90,
         ("fixed", 48, 48, "none"): 95}
    )  # fmt: skip
    found = demo_fixres_frame(evidence([], done), [])
    assert list(found["as_in"]) == ["FixRes Tables 5, 7, left", "FixRes Tables 5, 7, right", *["FixRes Table 9"] * 2]
    assert set(found["why_no_top5"]) == {"train-low-test-high keeps top-1 only"}
    assert found["gain"].iloc[1] == "10.0000"


def test_runs_on_real_images_are_not_in_the_demos_table(network):  # noqa: F811
    run = network("a", {224: {"CC": said(100)}, 288: {"CC": said(110)}}, train_res=224)
    assert len(demo_fixres_frame(evidence([run]), [run])) == 0


# ---- the program


def test_the_program_writes_every_table(network, capsys):  # noqa: F811
    runs, _ = demo(network)
    assert tables.main([str(run.folder) for run in runs]) == 0
    out = runs[0].folder / "tables"
    names = [*tables.MID.values(), *tables_fixres.LAYOUTS, "demo", "demo_fixres"]
    assert {path.name for path in out.iterdir()} == {f"{name}.{end}" for name in names for end in ("md", "csv")}
    with (out / "fixres_table6.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60 and all(row["published"] and row["why_not"] for row in rows)
    assert "no table of the papers" in capsys.readouterr().out


def test_the_program_names_a_bad_name_of_weights(network, capsys):  # noqa: F811
    run = network("a", {224: {"CC": said(100)}})
    assert tables.main([str(run.folder), "--weights", "resnet50=aa"]) == 2
    assert "NETWORK/METHOD@TRAIN_SIZE=HASH" in capsys.readouterr().err
    assert np.array_equal(said(3)[:4], [1, 1, 1, 0])


DEMO_TABLES = Path(tables.__file__).parent / "demo" / "tables"


@pytest.mark.parametrize("name", tables_fixres.LAYOUTS)
def test_committed_tables_of_the_demos_runs_have_a_number_or_its_reason(name):
    """Made by `make demo-fixres`: published numbers are the CSVs', none was measured on demo images, each says why."""
    found = pd.read_csv(DEMO_TABLES / f"{name}.csv")
    again = tables_fixres.frame(tables_fixres.fill(name, [], NO_EXPERIMENTS, {}))
    assert list(found["published"]) == again["published"].astype(float).tolist() and found["published"].notna().all()
    assert (found["measured"].notna() | found["why_not"].notna()).all()


def test_the_committed_demo_table_is_of_all_images_and_complete():
    found = pd.read_csv(DEMO_TABLES / "demo_fixres.csv")
    columns = ["network", "test_res", "adaptation", "augmentation", "label_smoothing"]
    cases = set(found[columns].fillna("").itertuples(index=False, name=None))
    resnet = {(K, how, "test" if how.startswith("c") else "") for K in (64, 128)
              for how in ("none", "frechet", "gaussian", "classifier", "classifier+bn")}  # fmt: skip
    resnet |= {(96, "none", ""), (160, "none", ""), (160, "classifier", "test"), (160, "classifier+bn", "test")}
    resnet |= {(128, "classifier", "train"), (128, "classifier+bn", "train"), (128, "classifier+bn", "test2")}
    resnet |= {(128, "gaussian+classifier", "test"), (128, "from:layer4", "test")}
    efficientnet = {(96, "none", ""), (128, "none", ""), (128, "classifier+bn", "test")}
    plain = {("resnet", *one, 0.0) for one in resnet} | {("efficientnet", *one, 0.0) for one in efficientnet}
    smoothed = {(name, 128, "classifier+bn", "test", 0.1) for name in ("resnet", "efficientnet")}
    assert cases == plain | smoothed and len(cases) == len(found) == 24 and (found["images"] == 1000).all()
    assert (found["top5"].notna() | found["why_no_top5"].notna()).all()
    assert found[found["adaptation"] != "none"]["gain"].notna().all()
    for row in found.to_dict("records"):
        assert row["top1_low"] < row["top1"] < row["top1_high"]


def test_the_committed_demo_claims_have_a_verdict_or_what_they_need():
    """Every claim of FixRes and FixEfficientNet, from `make demo-fixres`."""
    found = pd.read_csv(DEMO_TABLES / "demo_claims.csv", keep_default_na=False)
    assert set(CLAIMS_FIXRES) <= set(found["claim"]) and set(found["demo"]) == {"yes"}
    own = found[found["claim"].isin(CLAIMS_FIXRES) & (found["scope"] == "claim")]
    assert len(own) == len(CLAIMS_FIXRES)
    measured = own[own["verdict"] != ABSENT]
    assert len(measured) >= 15 and ((measured["effect"] != "") | (measured["note"] != "")).all()
    assert (own.loc[own["verdict"] == ABSENT, "note"] != "").all()


def test_the_last_three_cells_of_pnasnet(scored):
    """FixRes Table 1, third line: only a network whose cells 9 to 11 were trained stands beside it."""
    where = {"adaptation": "classifier+batch_norm+last_three_cells", "test_res": 480}
    pnasnet = {"model": "pnasnet5large.tf_in1k", "family": None, "variant": None}
    run = scored("cells", 41_850, weight_hash="tt", K=480, **pnasnet)
    own = tuning(base="pnasnet5large.tf_in1k", train_res=331, K=480, layers="from:cell_9", label_smoothing=0.0)
    one = cell(fill("fixres_table1", run, tunings=[own]), **where)
    assert one.measured.value == 83.7 and one.difference == pytest.approx(0)
    for layers in ("classifier+bn", "from:cell_10"):
        one = cell(fill("fixres_table1", run, tunings=[replace(own, layers=layers)]), **where)
        assert one.measured is None and "finetune --img-size 480 --tune from:cell_9" in one.why_not
