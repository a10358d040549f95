"""The paper's tables beside runs made by hand: what is compared, what is not and why, and the files' shape.

The references are typed here: rows of the print, Wilson's formula written out, and one changed field at a time.
"""

import csv
import math
from dataclasses import replace

import pytest

from analysis import tables, tables_fixres
from analysis.published import TABLES, load
from analysis.summary import top1_interval
from analysis.text import markdown_table
from bench.records import Accuracy

Z = 1.959963984540054  # the normal distribution's 97.5 % point
# Typed from the print, in its order; multicrop-bench run has the same lists under --policies table1 and table8.
ROWS_OF_TABLE_1 = ["CC", "10RC", "20RC", "5RC+5MRC", "10RC+10MRC", "15RC+15MRC", "20RC+20MRC", "5FC", "5FC+5MFC"]
ROWS_OF_TABLE_8 = [
    "CC", "5FC", "5FC+5MFC", "5FC+5RC", "5FC+10RC", "5FC+15RC", "5FC+20RC", "5FC+5MFC+5RC+5MRC",
    "5FC+5MFC+10RC+10MRC", "5FC+5MFC+15RC+15MRC", "5FC+5MFC+20RC+20MRC",
]  # fmt: skip


class Made:
    """The shared maker, with accuracies in one line."""

    def __init__(self, maker):
        self.setting, self.run, self.absent = maker.setting, maker.run, maker.absent
        self.maker, self.RESNET18 = maker, maker.setting()

    def accuracy(self, setting, policy, level, correct, images, *, newly_correct=0, newly_wrong=0, **more) -> Accuracy:
        record = self.maker.accuracy(setting, policy, correct, newly_correct, newly_wrong, level=level, images=images)
        return replace(record, **more)


@pytest.fixture
def make(maker):
    return Made(maker)


def wilson_by_hand(correct, n):
    p = correct / n
    middle, half = p + Z * Z / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    return tuple(100 * (middle + sign * half) / (1 + Z * Z / n) for sign in (-1, 1))


def cell(one, variant, policy, level):
    line = next(line for line in one.lines if line.own and (line.policy, line.level) == (policy, level))
    return line.comparisons[[column.variant for column in one.columns].index(variant)]


# ---- policies and shape


@pytest.mark.parametrize(("number", "policies"), [(1, ROWS_OF_TABLE_1), (8, ROWS_OF_TABLE_8)])
def test_policies_of_the_tables_with_many(number, policies):
    assert tables.table_policies(number) == policies


@pytest.mark.parametrize("number", range(2, 8))
def test_policies_of_the_other_tables(number):
    assert tables.table_policies(number) == ["CC", "10RC", "20RC"]


def test_no_such_table():
    with pytest.raises(ValueError, match="1 to 8"):
        tables.table_policies(9)


@pytest.mark.parametrize("number", range(1, 9))
def test_every_published_value_is_in_the_table_once(number):
    one = tables.table(number, ())
    values = sorted(cell.value for line in one.lines for cell in line.comparisons if cell.value is not None)
    assert values == sorted(load(tables.MID[number])["value"])
    assert len({line.approach for line in one.lines}) == len(one.lines)


def test_rows_and_columns_stand_as_in_the_print():
    shown = tables.grid(tables.table(4, ()))
    assert shown.headings == ("Approach", "", "F0", "F1", "F2", "F3", "F4", "F5", "F6")
    assert [row[0] for row in shown.rows] == [
        "Feature Dimension", "Image Resized To", "Input Crop Size", "1.0 - (Crop to Image Ratio)", "Center Crop †",
        "MID (Average of FV of 10 RCs)", "MID (Average of FV of 20 RCs)", "MID (Average of SM of 10 RCs)",
        "MID (Average of SM of 20 RCs)",
    ]  # fmt: skip
    assert shown.rows[2][2:4] == ("256 × 256", "320 × 320")
    assert shown.rows[3][2] == "0.099"


def test_rivals_say_at_what_resolution_they_were_tested():
    shown = tables.grid(tables.table(3, ()))
    (fixed,) = [row for row in shown.rows if "FixEfficientNet AdvProp" in row[0]]
    assert fixed[2] == "79.3 (at 320)"


# ---- what is compared


def test_a_measured_accuracy_stands_beside_the_print(make):
    record = make.accuracy(make.RESNET18, "20RC", "softmax", 35_900, 50_000)
    found = cell(tables.table(1, [make.run("a", [record])]), "ResNet-18", "20RC", "softmax")
    assert found.published == "71.83"
    assert found.measured == (tables.Found("a", record),)
    assert found.difference == pytest.approx(71.80 - 71.83)
    assert found.inside is True
    assert top1_interval(record) == pytest.approx(wilson_by_hand(35_900, 50_000))


@pytest.mark.parametrize(
    ("correct", "inside"),
    # Table I prints 71.83 for 20RC, softmax. Wilson's interval is about 0.39 wide to either side.
    [(35_500, False), (35_700, False), (35_750, True), (36_080, True), (36_150, False)],
)
def test_inside_means_in_wilsons_interval(make, correct, inside):
    record = make.accuracy(make.RESNET18, "20RC", "softmax", correct, 50_000)
    found = cell(tables.table(1, [make.run("a", [record])]), "ResNet-18", "20RC", "softmax")
    low, high = wilson_by_hand(correct, 50_000)
    assert found.inside is (low <= 71.83 <= high) is inside


def test_the_centre_crop_is_compared_though_the_print_names_no_level(make):
    record = make.accuracy(make.RESNET18, "CC", "softmax", 34_880, 50_000)
    found = cell(tables.table(1, [make.run("a", [record])]), "ResNet-18", "CC", "none")
    assert found.published == "69.76"
    assert found.difference == pytest.approx(0.0)


def test_table_8_takes_the_networks_of_table_1(make):
    record = make.accuracy(make.RESNET18, "5FC+5RC", "feature", 35_745, 50_000)
    run = make.run("a", [record])
    assert cell(tables.table(8, [run]), "ResNet-18", "5FC+5RC", "feature").measured
    assert not tables.table(1, [run]).is_measured


@pytest.mark.parametrize(
    ("model", "home", "number", "variant", "sizes"),
    [
        ("torchvision:mobilenet_v3_large.IMAGENET1K_V1", "MID Table II", 2, "V3-Large", (256, 224)),
        ("tf_efficientnet_b3.ap_in1k", "MID Table III", 3, "B3", (332, 300)),
        ("dm_nfnet_f3.dm_in1k", "MID Table IV", 4, "F3", (443, 416)),
        ("tf_efficientnet_l2.ns_jft_in1k", "MID Table V", 5, "L2", (833, 800)),
        ("efficientnet_b1.ft_in1k", "MID Table VI", 6, "B1", (256, 256)),
        ("tf_efficientnet_b8.ra_in1k", "MID Table VII", 7, "B8", (704, 672)),
    ],
)
def test_a_network_belongs_into_one_table(make, model, home, number, variant, sizes):
    interpolation = "bilinear" if number == 2 else "bicubic"
    family = ["", "", "mobilenet", "efficientnet", "nfnet", "efficientnet", "efficientnet", "efficientnet"][number]
    setting = make.setting(
        model=model, family=family, published_in=home, S=sizes[0], K=sizes[1], interpolation=interpolation
    )
    run = make.run("a", [make.accuracy(setting, "20RC", "softmax", 40_000, 50_000)])
    assert cell(tables.table(number, [run]), variant, "20RC", "softmax").measured
    assert [n for n in range(1, 9) if tables.table(n, [run]).is_measured] == [number]


# ---- what is not compared, and why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"weights": "random", "published_in": None}, "weights random"),
        ({"weights": "/some/file.pt", "published_in": None}, "weights /some/file.pt"),
        ({"model": "resnet18.a1_in1k", "published_in": None}, "resnet18.a1_in1k is not the paper's choice"),
        ({"is_demo": True}, "demo data"),
        ({"S": 320}, "crops of 224 from 320 pixels, the paper's are of 224 from 256"),
        ({"K": 192}, "crops of 192 from 256 pixels"),
        ({"crop_mode": "squash"}, "squash"),
        ({"interpolation": "bicubic"}, "resized bicubic, the paper bilinear"),
    ],
)
def test_one_difference_is_enough(make, changes, why):
    run = make.run("a", [make.accuracy(make.setting(**changes), "20RC", "softmax", 35_900, 50_000)])
    one = tables.table(1, [run])
    assert not one.is_measured
    assert why in cell(one, "ResNet-18", "20RC", "softmax").why_not


def test_reasons_for_an_empty_cell(make):
    absent = make.absent(make.RESNET18, "accuracy at level feature", "it classifies before it pools")
    run = make.run("a", [make.accuracy(make.RESNET18, "20RC", "softmax", 35_900, 50_000), absent])
    one = tables.table(1, [run])
    assert cell(one, "ResNet-34", "20RC", "softmax").why_not == "no run of resnet34"
    assert "--policies table1" in cell(one, "ResNet-18", "5FC", "softmax").why_not
    assert "classifies before it pools" in cell(one, "ResNet-18", "20RC", "feature").why_not
    assert cell(tables.table(1, ()), "ResNet-34", "20RC", "softmax").why_not == "no run was given"
    unscored = make.run("b", [make.absent(make.RESNET18, "accuracy", "not asked for (--no-accuracy)")])
    assert "--no-accuracy" in cell(tables.table(1, [unscored]), "ResNet-18", "20RC", "softmax").why_not


def test_another_tables_weights_are_no_run_of_a_network(make):
    noisy = make.setting(model="tf_efficientnet_b0.ns_jft_in1k", family="efficientnet", published_in="MID Table V")
    run = make.run("a", [make.accuracy(noisy, "20RC", "softmax", 40_000, 50_000)])
    assert cell(tables.table(3, [run]), "B0", "20RC", "softmax").why_not == "no run of tf_efficientnet_b0_ap"


def test_more_images_than_the_validation_set_has_are_another_set(make):
    run = make.run("a", [make.accuracy(make.RESNET18, "20RC", "softmax", 35_900, 50_001)])
    assert "50,001 images" in cell(tables.table(1, [run]), "ResNet-18", "20RC", "softmax").why_not


def test_a_part_of_the_images_is_compared_and_says_how_many(make):
    run = make.run("a", [make.accuracy(make.RESNET18, "20RC", "softmax", 700, 998, unreadable=2)])
    one = tables.table(1, [run])
    assert cell(one, "ResNet-18", "20RC", "softmax").measured
    (note,) = [note for note in tables.grid(one).notes if "998" in note]
    assert "2 unreadable" in note and "folder val" in note
    whole = make.run("b", [make.accuracy(make.RESNET18, "20RC", "softmax", 35_000, 50_000)])
    assert not any("unreadable" in note for note in tables.grid(tables.table(1, [whole])).notes)


def test_of_two_runs_the_first_is_shown_and_the_second_named(make):
    runs = [
        make.run(name, [make.accuracy(make.RESNET18, "20RC", "softmax", correct, 50_000)])
        for name, correct in (("one", 35_900), ("two", 35_800))
    ]
    one = tables.table(1, runs)
    assert cell(one, "ResNet-18", "20RC", "softmax").difference == pytest.approx(-0.03)
    assert any("71.60 (two)" in note for note in tables.grid(one).notes)


def test_what_stands_in_no_table_is_said(make):
    runs = [
        make.run("a", [make.accuracy(make.setting(model="vit_tiny", published_in=None), "CC", "softmax", 1, 2)]),
        make.run("b", [make.accuracy(make.setting(S=300), "CC", "softmax", 1, 2)]),
        make.run("c", [make.accuracy(make.RESNET18, "CC", "softmax", 1, 2)]),
        make.run("d", [make.accuracy(make.setting(is_demo=True, model="resnet:demo"), "CC", "softmax", 1, 2)]),
    ]
    found = tables.unmatched(runs)
    assert len(found) == 2
    assert "vit_tiny" in found[0] and "300 pixels" in found[1]


# ---- for people


def test_measured_rows_have_three_lines_and_marked_gaps(make):
    run = make.run("a", [make.accuracy(make.RESNET18, "20RC", "softmax", 35_900, 50_000)])
    shown = tables.grid(tables.table(1, [run]))
    start = next(i for i, row in enumerate(shown.rows) if "SM of 20 RCs)" in row[0])
    published, measured, difference = shown.rows[start : start + 3]
    low, high = wilson_by_hand(35_900, 50_000)
    assert published[1:4] == ("published", "71.83", "75.14")
    assert measured[1:3] == ("measured", f"71.80 ({low:.2f} to {high:.2f})")
    assert difference[1:4] == ("difference", "-0.03 inside", "")
    mark = measured[3]
    (note,) = [note for note in shown.notes if note.startswith(mark)]
    assert note.endswith("no run of resnet34.")


def test_csv_holds_what_the_table_holds(make):
    run = make.run("a", [make.accuracy(make.RESNET18, "20RC", "softmax", 35_900, 50_000)])
    rows = list(csv.DictReader(tables.frame(tables.table(1, [run])).to_csv(index=False).splitlines()))
    assert len(rows) == 17 + 12
    row = next(row for row in rows if (row["policy"], row["level"]) == ("20RC", "softmax"))
    assert row["ResNet-18 published"] == "71.83"
    assert float(row["ResNet-18 measured"]) == pytest.approx(71.8)
    assert float(row["ResNet-18 difference"]) == pytest.approx(-0.03)
    assert row["ResNet-18 inside"] == "yes" and row["ResNet-18 images"] == "50000"
    assert row["ResNet-34 measured"] == "" and row["ResNet-34 why_not"] == "no run of resnet34"


def test_markdown_cannot_be_made_to_hold_tags_or_columns():
    lines = markdown_table(["a|b"], [["<script>x</script>"], ["two\nlines"]])
    assert lines == ["| a\\|b |", "| --- |", "| &lt;script>x&lt;/script> |", "| two lines |"]


@pytest.mark.parametrize(("index", "letter"), [(0, "a"), (25, "z"), (26, "aa"), (27, "ab"), (52, "ba")])
def test_letters(index, letter):
    assert tables.letters(index) == letter


def test_names_say_only_what_tells_them_apart(make):
    plain, wide = make.setting(), make.setting(S=320)
    assert tables.distinct_names([("a", plain)]) == ["resnet18.tv_in1k"]
    assert tables.distinct_names([("a", plain), ("a", wide), ("b", make.setting(model="x"))]) == [
        "resnet18.tv_in1k, 224 of 256 px", "resnet18.tv_in1k, 224 of 320 px", "x",
    ]  # fmt: skip
    assert tables.distinct_names([("a", plain), ("b", plain)]) == ["resnet18.tv_in1k, a", "resnet18.tv_in1k, b"]
    assert tables.distinct_names([("a", plain), ("a", make.setting(workers=1))]) == [
        "resnet18.tv_in1k (1)", "resnet18.tv_in1k (2)",
    ]  # fmt: skip


# ---- the demo


def demo_run(make, name="d"):
    setting = make.setting(model="resnet:demo", weights="demo", published_in=None, is_demo=True, S=110, K=96)
    records: list[Accuracy] = [make.accuracy(setting, "CC", "softmax", 70, 100)]
    for n in range(1, 9):
        records.append(make.accuracy(setting, f"{n}RC", "softmax", 72, 100, n_views=n, newly_correct=5, newly_wrong=3))
    return make.run(name, records)


def test_demo_accuracies_stand_in_their_own_labelled_table(make, tmp_path):
    run = demo_run(make)
    assert not any(tables.table(number, [run]).is_measured for number in tables.MID)
    shown = tables.demo_grid([run])
    assert "DEMO DATA" in shown.title
    assert shown.headings == ("Policy", "Level", "resnet:demo")
    assert ("CC", "softmax", "70.00") in shown.rows and ("2RC", "softmax", "72.00 (+2.00)") in shown.rows
    assert not any(row[0] == "7RC" for row in shown.rows)  # thinned out for people, not in the CSV
    rows = list(csv.DictReader(tables.demo_frame([run]).to_csv(index=False).splitlines()))
    assert {row["data"] for row in rows} == {"demo"} and any(row["policy"] == "7RC" for row in rows)
    assert float(rows[2]["resnet:demo gain"]) == pytest.approx(2.0)


# ---- the program


def test_the_program_writes_every_table(make, capsys):
    run = demo_run(make)
    assert tables.main([str(run.folder)]) == 0
    written = {path.name for path in (run.folder / "tables").iterdir()}
    assert written == {
        f"{name}.{end}" for name in [*tables.MID.values(), *tables_fixres.LAYOUTS, "demo"] for end in ("md", "csv")
    }
    assert "no table of the papers" in capsys.readouterr().out


def test_the_program_names_what_is_no_run(tmp_path, capsys):
    assert tables.main([str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err


def test_the_program_names_a_run_without_results(maker, capsys):
    assert tables.main([str(maker.run("empty", []).folder)]) == 2
    assert "empty holds no results" in capsys.readouterr().err


def test_titles_are_the_published_ones():
    assert tables.table(6, ()).title == f"MID Table VI: {TABLES['mid_table6'].title}"
