"""The claims of FixRes and FixEfficientNet on runs and experiments made by hand, whose answers are planned by image.

``said(right, start)`` plans a network's answers: which images are right. A claim is tested twice or more: on
answers for which it holds and on answers that must deny it.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis import adapted, claims, published_fixres
from analysis.adapted import AtSize, Pair
from analysis.adapted_tests import compared
from analysis.claim_tests import ABSENT, DENIED, HOLDS, UNDECIDED
from analysis.claims_fixres import CLAIMS_FIXRES
from analysis.evidence import evidence
from analysis.experiments import Experiments, TrainedAnswers, TrainedSizes, Tuning, split
from analysis.published import load
from bench.predictions import Predictions

B = 200
NAMES = [f"{i:05d}.jpg" for i in range(B)]


def said(right, start=0):
    """int [b]: 1, which is right, for ``right`` images from ``start`` on; else 0."""
    out = np.zeros(B, dtype=np.int64)
    out[start : start + right] = 1
    return out


@pytest.fixture
def network(maker):
    """network(folder, {K: {policy: said}}, ...): a run of one network at some sizes."""

    def made(name, by_size, *, train_res=None, real=None, images=None, **changes):
        changes = {"model": "resnet50.tv_in1k", "weight_hash": "base", **changes}
        records, models = [], []
        settings = {K: maker.setting(S=K + 32, K=K, **changes) for K in by_size}
        for K, policies in by_size.items():
            records += maker.records_of(settings[K], np.ones(B, int), policies)
            file = f"predictions-{K}.npz"
            model = {"model": settings[K].model, "S": K + 32, "K": K, "train_K": train_res, "predictions": file}
            models.append(model)
        run = maker.run(name, records, models=models)
        for K, policies in by_size.items():
            top1 = np.stack([values[None] for values in policies.values()], axis=1).astype(np.int32)
            real_label = None
            if real is not None:
                real_label = np.broadcast_to(np.asarray(real, np.int32), top1.shape).copy()
            found = Predictions(
                rows=np.arange(B), labels=np.ones(B, np.int64), policies=list(policies), levels=["softmax"], top1=top1,
                in_top5=np.ones(top1.shape, bool), nll=np.ones(top1.shape, np.float32),
                view_top1=np.ones((B, 1), np.int32), failed=[], real_label=real_label,
                real_in_top5=None if real_label is None else np.ones(top1.shape, bool),
            )  # fmt: skip
            found.save(run.folder / f"predictions-{K}.npz", images or NAMES)
        return run

    return made


def tuning(weight_hash, K, **changes):
    given = Tuning(
        folder=f"tuned-{weight_hash}", base="resnet50.tv_in1k", base_weights="pretrained", base_hash="base",
        train_res=224, weight_hash=weight_hash, K=K, layers="classifier+bn", augmentation="test", label_smoothing=0.0,
        batch_size=64, device="cpu", is_demo=False, step_ms={},
    )  # fmt: skip
    return replace(given, **changes)


def verdict(name, runs, experiments=None):
    """The claim's own finding; of several data sets the last that is not absent."""
    found = [claims.judge(one).findings[name] for one in evidence(runs, experiments or Experiments())]
    measured = [one for one in found if one.together.verdict != ABSENT]
    return (measured or found)[-1]


# ---- the table


def test_there_are_at_least_15_claims_beside_mids():
    assert len(CLAIMS_FIXRES) >= 15
    assert {claim.paper for claim in CLAIMS_FIXRES.values()} == {"FixRes", "FixEfficientNet"}
    assert list(claims.CLAIMS) == [*claims.CLAIMS_MID, *CLAIMS_FIXRES, *claims.CLAIMS_CHEAP]
    assert all(claim.where.startswith(claim.paper) for claim in claims.CLAIMS.values())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("larger_test_size", "5 of 5"),
        ("best_size_above_train", "128 for 64 (+5.0), 224 for 128 (+2.4), 288 for 224 (+1.4), 448 for 384 (+0.6)"),
        ("best_size_moves_up", "128 to 128 for 64, 224 to 224 for 128, 288 to 384 for 224, 448 to 480 for 384"),
        ("tuning_helps", "7 of 7"),
        ("tuned_beats_native", "trained at 224: 77.0, fine-tuned at 384 79.0"),
        ("lower_train_size", "3 of 6"),
        ("lower_train_size_tuned", "2 of 3"),  # 71.3 for 73.3, 77.1 for 77.0, 79.0 for 78.2
        ("because_of_random_resized_crop", "64: +5.0 and +1.6, 128: +2.4 and +1.6, 224: +1.4 and +0.6, 384: +0.6"),
        ("batch_norm_over_classifier", "13 of 24"),
        ("test_da_over_train_da", "17 of 24"),
        ("test_da2_over_test_da", "4 of 4"),
        ("frechet_helps", "0 of 6"),
        ("gaussian_helps_below", "1 of 1 comparisons agree (Table 4, below 224); 0 of 3"),  # 29.8 for 29.4
        ("tuning_over_parametric", "5 of 5"),
        ("several_sizes_averaged", "79.0 at one size, 79.5 at two"),
        ("ten_crops_on_tuned", "83.7 with one crop, 83.9 with ten"),
        ("sparser_when_smaller", "0.5 % zeros at 224, 29.8 % at 64"),
        ("backward_cheaper_in_tuning", "forward 2.2 to 3.3 times backward"),  # 18.0 / 8.2, 14.4 / 4.4
        ("fixefficientnet_over_efficientnet", "35 of 36"),
        ("remains_on_clean_labels", "18 of 18"),
        ("remains_on_v2", "15 of 18"),
        ("neutral_to_overfitting", "18 networks"),
        ("noisy_student_overfits", "2 of 2"),
    ],
)
def test_what_the_papers_own_tables_say(name, says):
    assert says in CLAIMS_FIXRES[name].published()


def test_batch_norm_over_classifier_by_a_plain_loop():
    rows: dict = {}
    for line in load("fixres_table6").to_dict("records"):
        rows.setdefault((line["train_res"], line["augmentation"], line["test_res"]), {})[line["adaptation"]] = line
    better = [
        float(row["classifier+batch_norm"]["printed"]) > float(row["classifier"]["printed"])
        for row in rows.values()
        if "classifier" in row
    ]
    assert f"{sum(better)} of {len(better)} " in published_fixres.batch_norm_over_classifier()


# ---- pairs, by hand


def at(test_res, right, **changes):
    given = AtSize("base", "", "resnet", 224, test_res, "none", "", 0.0, np.array(NAMES), said(right) == 1)
    return replace(given, **changes)


def test_the_larger_size_is_fixed_before_any_accuracy_is_seen():
    found = [at(224, 100), at(256, 199), at(288, 120), at(320, 199)]
    (pair,) = adapted.larger_than_train(found)
    assert (pair.one.test_res, pair.other.test_res) == (288, 224)  # not 256 or 320, which are best
    assert adapted.larger_than_train(found[:1]) == [] == adapted.larger_than_train(found[1:])


def test_a_pair_is_mcnemar_and_several_are_summed_by_image():
    one, other = at(288, 120), at(224, 100)
    (alone,) = [compared([Pair(one, other)], "").together]
    assert (alone.effect, alone.images) == (10.0, B)
    assert alone.p_value == pytest.approx(2 * 0.5**20)  # 20 images against none
    both = compared([Pair(one, other), Pair(other, one)], "")
    assert both.together.effect == 0 and len(both.apart) == 2 and both.together.p_value == 1.0
    assert compared([], "needs this").together.note == "needs this"


def test_pairs_match_images_by_name():
    shuffled = np.random.default_rng(0).permutation(B)
    one = at(288, 120)
    turned = replace(one, names=one.names[shuffled], right=one.right[shuffled])
    assert compared([Pair(turned, at(224, 100))], "").together.effect == 10.0


# ---- each claim, held and denied

SIZES = {224: 100, 256: 110, 288: 130, 320: 115}


@pytest.mark.parametrize(("flip", "expected"), [(False, HOLDS), (True, DENIED)])
def test_larger_test_size(network, flip, expected):
    sizes = {224: 130, 288: 100} if flip else {224: 100, 288: 130}
    run = network("a", {K: {"CC": said(n)} for K, n in sizes.items()}, train_res=224)
    found = verdict("larger_test_size", [run]).together
    assert (found.verdict, found.effect) == (expected, -15.0 if flip else 15.0)


def test_without_a_train_size_the_claim_says_what_it_needs(network):
    run = network("a", {K: {"CC": said(n)} for K, n in SIZES.items()})
    found = verdict("larger_test_size", [run]).together
    assert found.verdict == ABSENT and "--img-size" in found.note


def test_the_best_size_is_chosen_on_other_images(network):
    run = network("a", {K: {"CC": said(n)} for K, n in SIZES.items()}, train_res=224)
    found = verdict("best_size_above_train", [run]).together
    assert found.verdict == HOLDS and "best at 288 and 288" in found.note and found.effect == 15.0


def test_choosing_and_reporting_on_the_same_images_would_find_a_gain_in_noise(network):
    """Sizes that differ by chance only: the honest estimate is about 0, the largest of seven is not."""
    rng = np.random.default_rng(5)
    answers = {K: (rng.random(B) < 0.5).astype(int) for K in range(224, 224 + 7 * 32, 32)}
    run = network("a", {K: {"CC": right} for K, right in answers.items()}, train_res=224)
    honest = verdict("best_size_above_train", [run]).together.effect
    dishonest = 100 * (max(right.mean() for right in answers.values()) - answers[224].mean())
    assert honest < dishonest - 2


def tuned_set(network, plain, tuned, *, policies=("CC",), **changes):
    """A run of the base at some sizes and runs of its fine-tunings, with their notes."""
    runs = [network("plain", {K: {"CC": said(n)} for K, n in plain.items()}, train_res=224, **changes)]
    notes = []
    for i, (K, n, recipe) in enumerate(tuned):
        own = {**changes, "weight_hash": f"t{i}", "weights": f"t{i}.safetensors"}
        runs.append(network(f"tuned{i}", {K: {p: said(n + 20 * (p != "CC")) for p in policies}}, **own))
        notes.append(tuning(f"t{i}", K, **recipe))
    return runs, Experiments(tuple(notes))


@pytest.mark.parametrize(("right", "expected"), [(150, HOLDS), (90, DENIED), (121, UNDECIDED)])
def test_tuning_helps_at_the_same_size(network, right, expected):
    runs, notes = tuned_set(network, {224: 100, 288: 120}, [(288, right, {})])
    found = verdict("tuning_helps", runs, notes).together
    assert (found.verdict, found.effect) == (expected, (right - 120) / 2)


@pytest.mark.parametrize(("right", "expected"), [(150, HOLDS), (60, DENIED)])
def test_tuned_beats_native(network, right, expected):
    runs, notes = tuned_set(network, {224: 100}, [(288, right, {})])
    assert verdict("tuned_beats_native", runs, notes).together.verdict == expected
    assert verdict("tuned_beats_native", runs).together.verdict == ABSENT  # without the note nothing says it was tuned


def test_a_network_tested_at_another_size_than_it_was_tuned_for_does_not_count(network):
    runs, notes = tuned_set(network, {224: 100}, [(288, 150, {})])
    notes = Experiments((replace(notes.tunings[0], K=256),))
    assert verdict("tuned_beats_native", runs, notes).together.verdict == ABSENT


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("batch_norm_over_classifier", {}, {"layers": "classifier"}),
        ("test_da_over_train_da", {}, {"augmentation": "train"}),
        ("test_da2_over_test_da", {"augmentation": "test2"}, {}),
        ("label_smoothing_helps", {"label_smoothing": 0.1}, {}),
    ],
)
@pytest.mark.parametrize(("better", "expected"), [(150, HOLDS), (60, DENIED)])
def test_recipes_that_differ_in_one_thing(network, name, one, other, better, expected):
    runs, notes = tuned_set(network, {224: 100}, [(288, better, one), (288, 110, other)])
    found = verdict(name, runs, notes).together
    assert (found.verdict, found.effect) == (expected, (better - 110) / 2)
    # Networks that differ in two things are not compared.
    second = replace(notes.tunings[1], layers="classifier", augmentation="train", label_smoothing=0.3)
    assert verdict(name, runs, Experiments((notes.tunings[0], second))).together.verdict == ABSENT


@pytest.mark.parametrize(("far", "expected"), [(150, HOLDS), (90, DENIED)])
def test_batch_norm_matters_more_further_away(network, far, expected):
    """Near (256): both alike. Far (448): the BatchNorm adds 25 points, or takes 5."""
    recipes = [
        (256, 100, {}),
        (256, 100, {"layers": "classifier"}),
        (448, far, {}),
        (448, 100, {"layers": "classifier"}),
    ]
    found = verdict("batch_norm_matters_more", *tuned_set(network, {224: 100}, recipes)).together
    slope = ((far - 100) / 2) / (math.log2(448 / 224) - math.log2(256 / 224))
    assert (found.verdict, found.effect) == (expected, pytest.approx(slope))


@pytest.mark.parametrize(
    ("kind", "name", "K"), [("frechet", "frechet_helps", 288), ("gaussian", "gaussian_helps_below", 160)]
)
@pytest.mark.parametrize(("right", "expected"), [(150, HOLDS), (60, DENIED)])
def test_parametric_adaptation(network, kind, name, K, right, expected):
    plain = network("plain", {224: {"CC": said(100)}, K: {"CC": said(110)}}, train_res=224)
    fitted = network("fitted", {K: {"CC": said(right)}}, train_res=224, adapt=kind)
    assert verdict(name, [plain, fitted]).together.verdict == expected
    notes = Experiments((tuning("t", K),))
    tuned = network("tuned", {K: {"CC": said(210 - right)}}, weight_hash="t", weights="t.safetensors")
    other = verdict("tuning_over_parametric", [plain, fitted, tuned], notes).together
    assert other.verdict == (DENIED if expected == HOLDS else HOLDS)


def test_gaussian_above_the_train_size_is_not_what_the_sentence_speaks_of(network):
    plain = network("plain", {224: {"CC": said(100)}, 288: {"CC": said(110)}}, train_res=224)
    fitted = network("fitted", {288: {"CC": said(150)}}, train_res=224, adapt="gaussian")
    assert verdict("gaussian_helps_below", [plain, fitted]).together.verdict == ABSENT


@pytest.mark.parametrize(("right", "expected"), [(150, HOLDS), (60, DENIED)])
def test_several_sizes_averaged(network, right, expected):
    run = network("a", {224: {"CC": said(100), "CC+CC@192": said(right), "CC+2RC": said(199)}})
    assert verdict("several_sizes_averaged", [run]).together.verdict == expected


def test_ten_crops_of_tuned_networks_only(network):
    runs, notes = tuned_set(network, {224: 100}, [(288, 120, {})], policies=("CC", "5FC+5MFC"))
    found = verdict("ten_crops_on_tuned", runs, notes).together
    assert (found.verdict, found.effect) == (HOLDS, 10.0)
    assert verdict("ten_crops_on_tuned", runs).together.verdict == ABSENT


def trained(answers):
    """A folder of train-low-test-high: {(crop, train, test, layers): right}."""
    found = tuple(TrainedAnswers(*key, said(right) == 1) for key, right in answers.items())
    return Experiments(trained=(TrainedSizes("low-high", "resnet", np.array(NAMES), found),))


@pytest.mark.parametrize(("low", "expected"), [(150, HOLDS), (60, DENIED)])
def test_lower_train_sizes(low, expected):
    done = trained(
        {
            ("train", 64, 64, "none"): 100,
            ("train", 48, 64, "none"): low,
            ("train", 32, 64, "none"): 199,  # the next lower size is compared, not the best
            ("train", 48, 64, "classifier+bn"): 210 - low,
            ("fixed", 48, 64, "none"): 199,
        }
    )
    assert verdict("lower_train_size", [], done).together.verdict == expected
    assert verdict("lower_train_size_tuned", [], done).together.verdict == (DENIED if expected == HOLDS else HOLDS)


@pytest.mark.parametrize(("fixed", "expected"), [(100, HOLDS), (160, DENIED)])
def test_because_of_random_resized_crop(fixed, expected):
    """With it 100 -> 130; without 100 -> ``fixed``."""
    done = trained(
        {
            ("train", 64, 64, "none"): 100, ("train", 64, 80, "none"): 130,
            ("fixed", 64, 64, "none"): 100, ("fixed", 64, 80, "none"): fixed,
        }
    )  # fmt: skip
    found = verdict("because_of_random_resized_crop", [], done).together
    assert (found.verdict, found.effect) == (expected, (130 - fixed) / 2)


@pytest.mark.parametrize(
    ("tuned", "expected"), [({64: 90, 80: 110, 96: 160}, HOLDS), ({64: 160, 80: 110, 96: 90}, UNDECIDED)]
)
def test_the_best_size_moves_up(tuned, expected):
    plain = {64: 130, 80: 100, 96: 60}
    answers = {("train", 64, K, "none"): n for K, n in plain.items()}
    answers |= {("train", 64, K, "classifier+bn"): n for K, n in tuned.items()}
    found = verdict("best_size_moves_up", [], trained(answers)).together
    assert found.verdict == expected
    assert found.effect == (96 / 64 if expected == HOLDS else 1.0)


def test_the_best_size_moves_down():
    answers = {("train", 64, K, "none"): n for K, n in {64: 60, 80: 100, 96: 160}.items()}
    answers |= {("train", 64, K, "classifier+bn"): n for K, n in {64: 160, 80: 100, 96: 60}.items()}
    assert verdict("best_size_moves_up", [], trained(answers)).together.verdict == DENIED


@pytest.mark.parametrize(("tuned", "expected"), [(150, HOLDS), (60, DENIED)])
def test_efficientnets_only(network, tuned, expected):
    changes = {"family": "efficientnet", "model": "tf_efficientnet_b0.ap_in1k"}
    runs, notes = tuned_set(network, {224: 100}, [(288, tuned, {})], **changes)
    assert verdict("fixefficientnet_over_efficientnet", runs, notes).together.verdict == expected


def test_other_families_are_no_efficientnets(network):
    runs, notes = tuned_set(network, {224: 100}, [(288, 150, {})])
    assert verdict("fixefficientnet_over_efficientnet", runs, notes).together.verdict == ABSENT


def test_clean_labels_leave_out_images_without_one(network):
    """The second set has no label for images 100 on, where the tuned network's whole gain lies."""
    real = np.where(np.arange(B) < 100, 1, -1)
    runs, notes = tuned_set(network, {224: 90}, [(288, 150, {})], real=real)
    found = verdict("remains_on_clean_labels", runs, notes).together
    assert (found.effect, found.images) == (10.0, 100)  # 100 against 90 of 100; on the original labels +30
    assert verdict("tuned_beats_native", runs, notes).together.effect == 30.0


def test_clean_labels_are_needed(network):
    runs, notes = tuned_set(network, {224: 90}, [(288, 150, {})])
    assert "--real-labels" in verdict("remains_on_clean_labels", runs, notes).together.note


def on_two_sets(network, new_gain):
    """Base and tuned on ImageNet (100 -> 150 of 200) and on V2 (100 -> 100 + new_gain)."""
    runs = []
    for data, gain in (("val", 50), ("imagenetv2-matched-frequency-format-val", new_gain)):
        changes = {"data": data, "data_hash": data}
        runs.append(network(f"p-{data}", {224: {"CC": said(100)}}, train_res=224, **changes))
        own = {**changes, "weight_hash": "t0", "weights": "t"}
        runs.append(network(f"t-{data}", {288: {"CC": said(100 + gain)}}, **own))
    return runs, Experiments((tuning("t0", 288),))


@pytest.mark.parametrize(("gain", "remains", "neutral"), [(50, HOLDS, HOLDS), (-40, DENIED, DENIED)])
def test_imagenet_v2(network, monkeypatch, gain, remains, neutral):
    monkeypatch.setattr("analysis.adapted_tests.NEUTRAL_MARGIN", 10.0)  # 200 images cannot show 1 point
    runs, notes = on_two_sets(network, gain)
    assert verdict("remains_on_v2", runs, notes).together.verdict == remains
    assert verdict("neutral_to_overfitting", runs, notes).together.verdict == neutral
    assert verdict("remains_on_v2", runs[:2], notes).together.verdict == ABSENT
    assert verdict("neutral_to_overfitting", runs[2:], notes).together.verdict == ABSENT


@pytest.mark.parametrize(("other", "expected"), [(150, HOLDS), (60, DENIED)])
def test_noisy_student(network, other, expected):
    runs = []
    for data, ns, bs in (("val", 120, 120), ("imagenetv2-x", 100, other)):
        changes = {"data": data, "data_hash": data}
        student = {**changes, "model": "tf_efficientnet_b1.ns_jft_in1k", "weight_hash": "ns"}
        runs.append(network(f"ns-{data}", {240: {"CC": said(ns)}}, **student))
        billion = {**changes, "model": "resnet50.fb_swsl_ig1b_ft_in1k", "weight_hash": "bs"}
        runs.append(network(f"bs-{data}", {224: {"CC": said(bs)}}, **billion))
    assert verdict("noisy_student_overfits", runs).together.verdict == expected


def test_networks_that_differ_on_imagenet_are_not_compared_on_v2(network):
    runs = []
    for data, ns, bs in (("val", 120, 140), ("imagenetv2-x", 100, 150)):
        changes = {"data": data, "data_hash": data}
        runs.append(network(f"ns-{data}", {240: {"CC": said(ns)}}, model="b1.ns_jft", weight_hash="ns", **changes))
        runs.append(network(f"bs-{data}", {224: {"CC": said(bs)}}, model="resnet50.x", weight_hash="bs", **changes))
    assert verdict("noisy_student_overfits", runs).together.verdict == ABSENT


# ---- MID's claims that are new


@pytest.mark.parametrize(
    ("crops", "expected"),
    [(150, HOLDS), (120, UNDECIDED), (60, DENIED)],  # the larger network: 120
)
def test_a_smaller_network_with_crops_equals_a_larger_one(network, crops, expected):
    small = network(
        "f1", {320: {"CC": said(100), "20RC": said(crops)}}, family="nfnet", model="f1", weight_hash="1", param_count=10
    )
    large = network(
        "f2", {352: {"CC": said(120, start=10)}}, family="nfnet", model="f2", weight_hash="2", param_count=20
    )
    found = verdict("smaller_with_crops_equals_larger", [large, small]).together
    assert (found.verdict, found.effect) == (expected, (crops - 120) / 2)
    assert found.subject == "20RC of f1 against CC of f2"
    alone = verdict("smaller_with_crops_equals_larger", [small]).together
    assert alone.verdict == ABSENT and "--variants all" in alone.note


@pytest.mark.parametrize(("mix", "expected"), [(150, HOLDS), (60, DENIED)])
def test_the_mix_is_best(network, mix, expected):
    others = {policy: said(100) for policy in ("CC", "20RC", "5FC+20RC", "5FC+5MFC", "20RC+20MRC")}
    run = network("a", {224: {**others, "5FC+5MFC+20RC+20MRC": said(mix)}})
    assert verdict("mix_is_best", [run]).together.verdict == expected


# ---- folders of experiments


def note(**changes):
    given = {
        "status": "finished", "base": {"model": "m", "weights": "pretrained", "weight_hash": "base", "train_K": 224},
        "result": {"weight_hash": "t0"}, "input": {"K": 288}, "data": {"is_demo": False}, "device": "cpu",
        "recipe": {"tune": "classifier+bn", "augmentation": "test", "label_smoothing": 0.0, "batch_size": 64},
        "step_ms": {stage: {"median": ms, "min": ms, "max": ms} for stage, ms in
                    (("trunk", 20.0), ("forward", 4.0), ("backward", 8.0))},
    }  # fmt: skip
    return {**given, **changes}


def folder(root: Path, file: str, info: dict) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(info), encoding="utf-8")
    return root


@pytest.mark.parametrize(("backward", "expected"), [(8.0, HOLDS), (30.0, DENIED)])
def test_backward_and_forward_times_of_a_fine_tuning(tmp_path, network, backward, expected):
    steps = {**note()["step_ms"], "backward": {"median": backward, "min": backward, "max": backward}}
    path = folder(tmp_path / "tuned", "finetune.json", note(step_ms=steps))
    runs, experiments = split([path])
    assert runs == []
    found = verdict("backward_cheaper_in_tuning", [network("a", {224: {"CC": said(9)}})], experiments).together
    assert (found.verdict, found.effect) == (expected, pytest.approx(24.0 / backward))


def test_a_fine_tuning_that_has_not_finished_is_refused(tmp_path):
    path = folder(tmp_path / "tuned", "finetune.json", note(status="running"))
    with pytest.raises(ValueError, match="has not finished"):
        split([path])


@pytest.mark.parametrize(("zeros", "expected"), [([40, 30, 20, 10, 5], HOLDS), ([5, 10, 20, 30, 40], DENIED)])
def test_sparsity(tmp_path, zeros, expected):
    path = folder(tmp_path / "act", "activations.json", {"model": "m", "is_demo": True, "train_K": 96})
    lines = [f"{K},{zero}" for K, zero in zip((64, 80, 96, 112, 128), zeros, strict=True)]
    (path / "activations.csv").write_text("\n".join(["K,zero_percent", *lines]) + "\n")
    _, experiments = split([path])
    found = verdict("sparser_when_smaller", [], experiments).together
    assert found.verdict == expected and found.p_value == pytest.approx(2 / 120)  # of 5! orders


def test_answers_of_train_low_test_high_are_read(tmp_path):
    path = folder(tmp_path / "low", "results.json", {"settings": {"family": "resnet"}})
    with pytest.raises(ValueError, match="answers"):
        split([path])
    (path / "answers").mkdir()
    arrays = {"none": said(100) == 1, "classifier+bn": said(120) == 1}
    np.savez(path / "answers" / "train-48-64.npz", names=np.array(NAMES), **arrays)
    _, experiments = split([path])
    (one,) = experiments.trained
    assert [(a.crop, a.train_res, a.test_res, a.layers, int(a.right.sum())) for a in one.answers] == [
        ("train", 48, 64, "none", 100), ("train", 48, 64, "classifier+bn", 120),
    ]  # fmt: skip
    np.savez(path / "answers" / "train-64-64.npz", names=np.array(NAMES[::-1]), **arrays)
    with pytest.raises(ValueError, match="other images"):
        split([path])


def test_the_program_takes_folders_of_experiments(tmp_path, network, capsys):
    plain = network("plain", {224: {"CC": said(100)}, 288: {"CC": said(110)}}, train_res=224)
    tuned = network("scored", {288: {"CC": said(150)}}, weight_hash="t0", weights="t")
    path = folder(tmp_path / "tuned", "finetune.json", note())
    assert claims.main([str(plain.folder), str(tuned.folder), str(path)]) == 0
    out = capsys.readouterr().out
    assert "holds         above the train size, fine-tuning beats the network as it is at the same size: +20.00" in out
    text = (plain.folder / "claims.md").read_text(encoding="utf-8")
    assert "FixRes Section 5.1" in text and "MID Abstract" in text
