"""What the tables of FixRes and FixEfficientNet show of their own claims, in one sentence each, from the CSV files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from analysis.published import load, load_all
from analysis.published.checks import indexed, lookup
from analysis.published.resolution_checks import peaks

BATCH_NORM, CLASSIFIER = "classifier+batch_norm", "classifier"


def agree(comparisons: Iterable[bool], scope: str) -> str:
    """``7 of 8 comparisons agree (Table 6)``."""
    found = list(comparisons)
    return f"{sum(found)} of {len(found)} comparisons agree ({scope})"


def _table6() -> dict[Any, float]:
    return indexed(load("fixres_table6"), "train_res", "adaptation", "augmentation", "test_res")


@cache
def best_sizes() -> str:
    found = ", ".join(f"{best} for {train} ({gain:+.1f})" for train, (best, gain) in peaks("fixres_table5").items())
    return f"best test size, and points over the train size: {found} (Table 5, left)"


@cache
def random_resized_crop() -> str:
    with_it, without = peaks("fixres_table5"), peaks("fixres_table9")
    found = ", ".join(f"{train}: {with_it[train][1]:+.1f} and {gain:+.1f}" for train, (_, gain) in without.items())
    return f"points of the best test size over the train size, with and without it: {found} (Tables 5 and 9)"


@cache
def best_size_moves() -> str:
    frame = load("fixres_table5")
    moves = []
    for train_res in sorted(set(frame["train_res"])):
        own = frame[frame["train_res"] == train_res]
        sides = [indexed(own[own["adaptation"] == side], "test_res") for side in ("none", BATCH_NORM)]
        if all(sides):
            before, after = (max(side, key=side.__getitem__) for side in sides)
            moves.append(f"{before} to {after} for {train_res}")
    return f"best test size before and after fine-tuning: {', '.join(moves)} (Table 5)"


@cache
def tuned_helps() -> str:
    cells = _table6()
    pairs = [
        (value, cells[train, "none", "none", test])
        for (train, layers, augmentation, test), value in cells.items()
        if (layers, augmentation) == (BATCH_NORM, "test_da") and test > train
    ]
    return agree(
        (tuned > plain for tuned, plain in pairs), "Table 6, classifier and BatchNorm, test DA, above the train size"
    )


@cache
def tuned_beats_native() -> str:
    cells = _table6()
    parts = []
    for train in (128, 224):
        tuned = {test: v for (k, a, d, test), v in cells.items() if (k, a, d) == (train, BATCH_NORM, "test_da")}
        best = max(tuned, key=tuned.__getitem__)
        parts.append(f"trained at {train}: {cells[train, 'none', 'none', train]}, fine-tuned at {best} {tuned[best]}")
    return f"{'; '.join(parts)} (Table 6)"


@cache
def lower_train_tuned() -> str:
    frame = load("fixres_table5")
    plain = indexed(frame[frame["adaptation"] == "none"], "train_res", "test_res")
    tuned = indexed(frame[frame["adaptation"] == BATCH_NORM], "train_res", "test_res")
    comparisons = []
    for (train, test), value in plain.items():
        lower = [k for k, at in tuned if at == test and k < test]
        if train == test and lower:
            comparisons.append(tuned[max(lower), test] > value)
    return agree(comparisons, "Table 5: the next lower train size, fine-tuned, against the native size as it is")


def _by_recipe(one: tuple[str, str], other: tuple[str, str]) -> list[bool]:
    """Table 6: is (layers, augmentation) ``one`` better than ``other``, at each train and test size?"""
    cells = _table6()
    keys = [(train, test) for train, layers, augmentation, test in cells if (layers, augmentation) == one]
    return [cells[(train, *one, test)] > cells[(train, *other, test)] for train, test in keys]


@cache
def batch_norm_over_classifier() -> str:
    found = [better for da in ("train_da", "test_da") for better in _by_recipe((BATCH_NORM, da), (CLASSIFIER, da))]
    return agree(found, "Table 6, equal counts as not better")


@cache
def batch_norm_by_distance() -> str:
    cells = _table6()
    distances, gains = [], []
    for (train, layers, augmentation, test), value in cells.items():
        if (layers, augmentation) == (BATCH_NORM, "test_da"):
            distances.append(abs(math.log2(test / train)))
            gains.append(value - cells[train, CLASSIFIER, "test_da", test])
    rho = spearmanr(distances, gains)[0]
    scope = f"Table 6, test DA, {len(gains)} sizes"
    return f"rank correlation {rho:.2f} of |log2(test / train size)| and what the BatchNorm adds ({scope})"


@cache
def test_da_over_train_da() -> str:
    found = [
        better
        for layers in (CLASSIFIER, BATCH_NORM)
        for better in _by_recipe((layers, "test_da"), (layers, "train_da"))
    ]
    return agree(found, "Table 6, equal counts as not better")


@cache
def test_da2_over_test_da() -> str:
    cells = indexed(load("fixres_table8"), "model", "method", "test_res", "augmentation")
    keys = dict.fromkeys(key[:3] for key in cells)
    return agree((cells[(*key, "test_da2")] > cells[(*key, "test_da")] for key in keys), "Table 8")


@cache
def frechet_helps() -> str:
    frame = load("fixres_text")
    frechet = indexed(frame[frame["adaptation"] == "frechet"], "test_res")
    plain = indexed(frame[frame["id"].str.startswith("accuracy_") & (frame["place"] == "Section 3.3")], "test_res")
    return agree((value > plain[test] for test, value in frechet.items()), "Appendix A.1 against Section 3.3")


@cache
def gaussian_helps_below() -> str:
    cells = indexed(load("fixres_table4"), "adaptation", "test_res")
    sizes = [test for layers, test in cells if layers == "distribution"]
    below, above = [t for t in sizes if t < 224], [t for t in sizes if t > 224]
    words = [
        agree((cells["distribution", t] > cells["none", t] for t in part), f"Table 4, {where} 224")
        for part, where in ((below, "below"), (above, "above"))
    ]
    return "; ".join(words)


@cache
def batch_norm_over_gaussian() -> str:
    cells = indexed(load("fixres_table4"), "adaptation", "test_res")
    sizes = [test for layers, test in cells if layers == "distribution"]
    return agree((cells[BATCH_NORM, t] > cells["distribution", t] for t in sizes), "Table 4")


@cache
def two_sizes() -> str:
    one, two = (lookup("fixres_text", id=f"{which}_resolution_224") for which in ("single", "multi"))
    return f"{one} at one size, {two} at two (Section 5.1)"


@cache
def ten_crops() -> str:
    one = lookup("fixres_table1", adaptation="classifier+batch_norm+last_three_cells", test_res=480)
    return (
        f"{one} with one crop, {lookup('fixres_text', id='pnasnet_ten_crops')} with ten (PNASNet-5-Large, Section 5.1)"
    )


@cache
def zeros() -> str:
    low, high = (lookup("fixres_text", id=f"zeros_{K}") for K in (64, 224))
    return f"{high} % zeros at 224, {low} % at 64 (Section 3.2)"


@cache
def times_in_tuning() -> str:
    cells = indexed(load("fixres_table7"), "train_res", "test_res", "metric")
    ratios = [
        value / cells[train, test, "fine_tune_backward_ms"]
        for (train, test, metric), value in cells.items()
        if metric == "fine_tune_forward_ms"
    ]
    batch = lookup("fixres_text", id="fine_tune_batch_of_times")
    return f"forward {min(ratios):.1f} to {max(ratios):.1f} times backward (Table 7, batches of {batch:.0f})"


def _fixed_over_original(*tables: str, metric: str = "top1") -> str:
    frame = load_all(*tables)
    cells = indexed(frame[frame["metric"] == metric], "source", "model", "method")
    models = dict.fromkeys(key[:2] for key in cells)
    names = ", ".join(f"FixEfficientNet Table {table[-1]}" for table in tables)
    return agree((cells[(*key, "fixres")] > cells[(*key, "baseline")] for key in models), f"{names}, top-1")


@cache
def on_clean_labels() -> str:
    return _fixed_over_original("fixeff_table3")


@cache
def on_v2() -> str:
    return _fixed_over_original("fixeff_table4", "fixeff_table5")


@cache
def gains_on_both() -> str:
    differences = []
    for old, new in (("fixeff_table1", "fixeff_table4"), ("fixeff_table2", "fixeff_table5")):
        frame = load_all(old, new)
        cells = indexed(frame[frame["metric"] == "top1"], "source", "model", "method")
        for model in dict.fromkeys(key[1] for key in cells):
            gains = [cells[table, model, "fixres"] - cells[table, model, "baseline"] for table in (new, old)]
            differences.append(gains[0] - gains[1])
    span = f"{min(differences):+.1f} to {max(differences):+.1f}, mean {np.mean(differences):+.2f} points"
    return f"gain on ImageNet-V2 less that on ImageNet: {span} (Tables 1, 2, 4, 5; {len(differences)} networks)"
