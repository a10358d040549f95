"""What a person reads on the screen, and the headline figures, of records made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from analysis import console
from analysis.summary import p_value, top1_interval
from bench.records import Absent, Accuracy, Record, Setting, Throughput

SETTING = Setting(
    model="resnet18.tv_in1k", family="resnet", variant="18", weights="pretrained", weight_hash="aa", param_count=11,
    published_top1=69.76, published_in="MID Table I", S=256, K=224, interpolation="bilinear", crop_mode="center",
    data="val", data_hash="dd", is_demo=False, backend="dali-cpu", batch_size=64, batch_images=8, workers=2,
    device="cpu", machine_id="m1", amp_dtype="float32", channels_last=False, torchcompile=False, seed=0,
)  # fmt: skip


def accuracy(
    policy: str, n_views: int, correct: int, *, level: str = "softmax", setting: Setting = SETTING
) -> Accuracy:
    newly_correct, newly_wrong = (0, 0) if policy == "CC" else (correct - 700 + 30, 30)
    return Accuracy(
        setting, policy, n_views, level, 1000, 2, correct, 900, 1.25, newly_correct, newly_wrong, float(n_views)
    )


def rates(stage: str, crops: int | None, *per_second: float, setting: Setting = SETTING) -> Throughput:
    counts = [int(4 * rate) for rate in per_second]
    return Throughput(setting, stage, crops, 8, counts, [4.0] * len(counts), [10.0, 12.0], 1_500_000_000, None, 0.02)


def speed(setting: Setting = SETTING, factor: float = 1.0) -> list[Record]:
    """Network 1,000 crops/s, pipeline 400 images/s; end to end 200 at 1 crop, 60 at 10."""
    found = {("decode", None): 800, ("model", None): 1000, ("load", 1): 400, ("end_to_end", 1): 200}
    found |= {("load", 10): 400, ("end_to_end", 10): 60}
    return [rates(stage, n, factor * rate, setting=setting) for (stage, n), rate in found.items()]


def cells(text: str, first: str) -> list[str]:
    """The words of the only line whose first word is this."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [first]]
    return line.split()


def test_the_heading_says_what_was_run() -> None:
    heading = console.text([accuracy("CC", 1, 700)]).splitlines()[0]
    for word in ("resnet18.tv_in1k", "pretrained", "224 from 256", "dali-cpu", "cpu", "float32", "batch size 64"):
        assert word in heading
    assert "demo" not in heading.lower()


def test_demo_accuracy_is_labelled_as_demo_wherever_it_stands() -> None:
    lines = console.text([accuracy("CC", 1, 700, setting=replace(SETTING, is_demo=True))]).splitlines()
    assert "DEMO DATA: says nothing about ImageNet" in lines[0]
    assert [line for line in lines if "top-1 %, demo" in line]
    (one,) = console.headline([accuracy("CC", 1, 700, setting=replace(SETTING, is_demo=True))])
    assert one["demo"] is True


def test_a_line_of_accuracy_is_its_record() -> None:
    record = accuracy("5FC+5MFC", 10, 715)
    text = console.text([accuracy("CC", 1, 700), record])
    low, high = top1_interval(record)
    assert "1000 images, 2 unreadable" in text
    assert cells(text, "CC") == [
        "CC",
        "softmax",
        "70.00",
        *f"{67.09:.2f}..{72.76:.2f}".split(),
        "0",
        "0",
        "90.00",
        "1.250",
    ]
    assert cells(text, "5FC+5MFC") == [
        "5FC+5MFC", "softmax", "71.50", f"{low:.2f}..{high:.2f}", "+1.50", "45", "30", f"{p_value(record):.2g}",
        "90.00",
        "1.250",
    ]  # fmt: skip


def test_the_table_shows_a_few_points_of_the_curves_and_every_other_policy() -> None:
    curve = [accuracy(f"{n}RC", n, 700) for n in range(1, 21)]
    mixed = [accuracy(f"CC+{n - 1}RC", n, 700) for n in range(2, 21)]
    others = [accuracy("4RC+4MRC", 8, 700), accuracy("12ARC", 12, 700), accuracy("5FC+4RC", 9, 700)]
    lines = console.text([accuracy("CC", 1, 700), *curve, *mixed, *others]).splitlines()
    shown = [line.split()[0] for line in lines if " softmax " in line]
    plain = [f"{n}RC" for n in (1, 2, 3, 5, 10, 20)]
    assert shown == ["CC", *plain, *(f"CC+{n - 1}RC" for n in (2, 3, 5, 10, 20)), "4RC+4MRC", "12ARC", "5FC+4RC"]


def test_a_missing_nll_is_an_empty_cell() -> None:
    text = console.text([replace(accuracy("CC", 1, 700), nll_mean=None)])
    assert cells(text, "CC")[-1] == "90.00"


def test_rates_stand_beside_their_ceilings_and_what_binds() -> None:
    text = console.text(speed())
    one, ten = cells(text, "1"), cells(text, "10")
    # Ceilings: 1 / (1/400 + 1/1000) = 285.7 and 1 / (1/400 + 10/1000) = 80.
    assert " ".join(one) == "1 200.0 200 0 % 400.0 im/s 1000 crops/s 285.7 70 % pipeline 11 12 1.5"
    assert " ".join(ten) == "10 60.0 600 0 % 400.0 im/s 1000 crops/s 80.0 75 % network 11 12 1.5"
    assert "decode 800" in text
    assert "equal time at 2.5 crops (from the ceilings)" in text


def test_rounds_that_differ_much_are_named_with_a_remedy() -> None:
    steady, shaky = speed(), speed()
    shaky[5] = rates("end_to_end", 10, 50, 60, 70)
    assert "differ by more than 20%" not in console.text(steady)
    (line,) = [line for line in console.text(shaky).splitlines() if "differ by more than 20%" in line]
    assert "at 10 crops" in line and "--rounds 15" in line


def test_what_was_not_measured_is_said_with_its_reason() -> None:
    absent = Absent(SETTING, "accuracy", "the images have no labels")
    text = console.text([absent, *speed()])
    assert "not measured: accuracy: the images have no labels" in text.splitlines()
    (one,) = console.headline([absent, *speed()])
    assert one["not_measured"] == {"accuracy": "the images have no labels"}
    assert (one["top1_centre_crop"], one["best_policy"]) == (None, None)


def test_the_headline_is_the_centre_crop_and_the_best_policy() -> None:
    found = [
        accuracy("CC", 1, 700, level="feature"),
        accuracy("CC", 1, 701),
        accuracy("20RC", 20, 720, level="logit"),
        accuracy("10RC", 10, 720),
        accuracy("5FC", 5, 710),
    ]
    (one,) = console.headline([*found, *speed()])
    assert one["model"] == "resnet18.tv_in1k"
    assert one["top1_centre_crop"] == 70.1
    assert one["best_policy"] == {"policy": "10RC", "level": "softmax", "top1": 72.0}  # of equals, that of fewer crops
    assert one["images_per_sec"] == {"1": 200.0, "10": 60.0}
    (one,) = console.headline(found)
    assert one["images_per_sec"] is None


OTHER = {
    "another network": replace(SETTING, model="resnet50.tv_in1k"),
    "another size": replace(SETTING, S=320, K=280),
}


@pytest.mark.parametrize("other", OTHER.values(), ids=OTHER)
def test_each_case_has_a_section_and_a_headline_of_its_own(other: Setting) -> None:
    mine = [accuracy("CC", 1, 700), *speed()]
    theirs = [accuracy("CC", 1, 750, setting=other), *speed(other, factor=0.5)]
    text = console.text([*mine, *theirs])
    assert text == f"{console.text(mine)}\n\n{console.text(theirs)}"
    assert console.headline([*mine, *theirs]) == [*console.headline(mine), *console.headline(theirs)]


def test_nothing_measured_is_said() -> None:
    assert console.text([]).startswith("Nothing was measured")
    absent = [Absent(SETTING, "accuracy", "no labels"), Absent(SETTING, "throughput", "not asked for")]
    lines = console.text(absent).splitlines()
    assert lines[1] == "Nothing was measured." and "not measured: throughput: not asked for" in lines
    assert "Nothing was measured" not in console.text([accuracy("CC", 1, 700), absent[1]])


def test_an_unfinished_throughput_pass_is_said_in_place_of_an_empty_table() -> None:
    text = console.text(speed()[:3])
    assert "end to end was not timed" in text and "slower part" not in text and "decode 800" in text


def test_rates_that_show_no_crossover_print_words_and_no_negative_number() -> None:
    """Twenty times the crops take thirty times the time: the line through the two meets 0 at a negative number."""
    found = {("model", None): 1000, ("load", 1): 400, ("end_to_end", 1): 300, ("load", 20): 400, ("end_to_end", 20): 10}
    text = console.text([rates(stage, n, rate) for (stage, n), rate in found.items()])
    (line,) = [line for line in text.splitlines() if "equal time" in line]
    assert line.endswith("not observed end to end: the time of an image grew at least in proportion to its crops")


def test_names_from_data_cannot_steer_the_terminal() -> None:
    evil = replace(SETTING, model="net\x1b[2J\u202e", weights="w\n.pt")
    text = console.text([accuracy("CC", 1, 700, setting=evil), Absent(evil, "throughput", "a\x07b")])
    assert "net\\x1b[2J\\u202e  (w\\x0a.pt weights" in text and "a\\x07b" in text
    assert not {c for c in text if ord(c) < 32} - {"\n"}


def test_what_few_forward_passes_keep_is_said() -> None:
    """20RC gains 20 points and keeps its answers; beside it, one policy at a time."""

    def said(*others: Accuracy, gain: tuple[int, int] = (200, 0)) -> list[str]:
        whole = replace(accuracy("20RC", 20, 800), newly_correct=gain[0], newly_wrong=gain[1], forwards=20.0)
        centre = replace(accuracy("CC", 1, 600), newly_correct=0, newly_wrong=0, forwards=1.0)
        lines = console.text([centre, whole, *others]).splitlines()
        words = ("of the gain of", "of the answers of 20RC take", "no stopped")
        return [line for line in lines if any(word in line for word in words)]

    dense = replace(accuracy("DC", 1, 780), newly_correct=200, newly_wrong=20, forwards=1.4)
    assert said(dense) == ["for 2 forward passes or fewer the best is DC (1.40): 90% of the gain of 20RC, at least 90%"]
    (line,) = said(replace(dense, newly_wrong=30))
    assert line.endswith("85% of the gain of 20RC, less than 90%")
    assert said(replace(dense, forwards=2.1)) == []
    assert said(dense, gain=(30, 25)) == [], "20RC gains nothing that could be kept"
    stopped = replace(accuracy("20RC~1%", 20, 800), forwards=6.0, agreement=0.995)
    assert said(stopped) == [
        "99% of the answers of 20RC take 6.00 forward passes (20RC~1%): within a third of its cost"
    ]
    (line,) = said(replace(stopped, forwards=7.0))
    assert line.endswith("7.00 forward passes (20RC~1%): more than a third of its cost")
    assert said(replace(stopped, agreement=0.98)) == ["no stopped 20RC gives 99% of its answers"]


@pytest.mark.parametrize(
    ("cheaper", "said"),
    [(760, "5RC has 76.00 for 5.00"), (740, "no cheaper policy has as much")],
)
def test_what_has_as_much_as_most_crops_is_said(cheaper: int, said: str) -> None:
    given = [("CC", 1, 700), ("5RC", 5, cheaper), ("10RC", 10, 750)]
    made = [replace(accuracy(policy, n, correct), forwards=float(n)) for policy, n, correct in given]
    assert f"10RC has 75.00 for 10.00 forward passes per image; {said}" in console.text(made)
