"""Numbers of the running text against the tables: ranges of gains, differences, ratios, best resolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd

from analysis.published.checks import MID_GAIN_TABLES, decimals, indexed, lookup, row_of, with_gains
from analysis.published.tables import load

WSL = "resnext101_32x48d"
B0 = "tf_efficientnet_b0_ap"
ADAPTED = "classifier+batch_norm"
LAST_CELLS = "classifier+batch_norm+last_three_cells"


FOLDS, VALIDATION_IMAGES = 10, 50_000  # FixRes Section 5; MID Section IV.A
TRAIN_IMAGES = 1_281_167  # ImageNet's training set: Russakovsky et al. 2015, Table 2; the papers print 1.2 million


@dataclass(frozen=True, slots=True)
class Statement:
    """A number of the text, by its file and id, and what the tables give for it.

    It holds where the computed number, rounded to the digits of the print, is the printed one. ``more_digits``: shown
    of a computed number beyond those of the print.
    """

    table: str
    id: str
    of: str
    computed: Callable[[], float]
    more_digits: int = 0


# ---- MID


def _extreme_gain(table: str, pick: Callable[[pd.Series], float]) -> Callable[[], float]:
    def compute() -> float:
        rows = with_gains(table)
        return float(pick(rows.loc[rows["policy"].isin(("10RC", "20RC")), "gain"]))  # what Section V.A speaks of

    return compute


def _mid_gain(model: str) -> Callable[[], float]:
    def compute() -> float:
        gains = indexed(with_gains("mid_table2"), "model", "policy", "level", value="gain")
        return gains[model, "20RC", "softmax"]

    return compute


def _meal_v2_gain(model: str) -> Callable[[], float]:
    def compute() -> float:
        its_baseline = lookup("mid_table2", model=model, row="Baseline‡")
        return lookup("mid_table2", model=model, method="meal_v2") - its_baseline

    return compute


# Section I gives its "up to 2.0%" for ResNet, EfficientNet and NFNet; Table II is MobileNet's.
THREE_FAMILIES = tuple(table for table in MID_GAIN_TABLES if table != "mid_table2")


def _largest_gain(*tables: str, policies: tuple[str, ...] = ()) -> Callable[[], float]:
    def compute() -> float:
        rows = with_gains(*tables)
        return float(rows.loc[rows["policy"].isin(policies or set(rows["policy"])), "gain"].max())

    return compute


MID_STATEMENTS = (
    Statement(
        "mid_text",
        "boost_max",
        "largest gain of 10 or 20 RCs of ResNet, EfficientNet and NFNet, Tables I and III to VII",
        _largest_gain(*THREE_FAMILIES, policies=("10RC", "20RC")),
        more_digits=1,
    ),
    Statement(
        "mid_text",
        "boost_max",
        "largest gain of any average in Tables I and III to VII",
        _largest_gain(*THREE_FAMILIES),
        more_digits=1,
    ),
    Statement("mid_text", "boost_max", "largest gain in Table VIII", _largest_gain("mid_table8"), more_digits=1),
    Statement("mid_text", "resnet_gain_min", "smallest gain of RCs in Table I", _extreme_gain("mid_table1", min)),
    Statement("mid_text", "resnet_gain_max", "largest gain of RCs in Table I", _extreme_gain("mid_table1", max)),
    Statement("mid_text", "mobilenet_gain_min", "smallest gain in Table II", _extreme_gain("mid_table2", min)),
    Statement("mid_text", "mobilenet_gain_max", "largest gain in Table II", _extreme_gain("mid_table2", max)),
    Statement("mid_text", "advprop_gain_min", "smallest gain in Table III", _extreme_gain("mid_table3", min)),
    Statement("mid_text", "advprop_gain_max", "largest gain in Table III", _extreme_gain("mid_table3", max)),
    Statement("mid_text", "nfnet_gain_min", "smallest difference in Table IV", _extreme_gain("mid_table4", min)),
    Statement("mid_text", "nfnet_gain_max", "largest difference in Table IV", _extreme_gain("mid_table4", max)),
    Statement("mid_text", "meal_v2_gain_v3_small", "less its baseline, Table II", _meal_v2_gain("mobilenet_v3_small")),
    Statement("mid_text", "meal_v2_gain_v3_large", "less its baseline, Table II", _meal_v2_gain("mobilenet_v3_large")),
    Statement("mid_text", "mid_gain_v3_small", "SM of 20 RCs, Table II", _mid_gain("mobilenet_v3_small")),
    Statement("mid_text", "mid_gain_v3_large", "SM of 20 RCs, Table II", _mid_gain("mobilenet_v3_large")),
    Statement("mid_text", "crop_ratio_b0", "K/S in Table III", lambda: 224 / 256),
    Statement("mid_text", "crop_ratio_f0", "K/S in Table IV", lambda: 256 / 284),
)


# ---- FixRes


def _apparent_size_ratio() -> float:
    """FixRes equation (5): 2/3 (s1^3 - s0^3) / (s1^2 - s0^2) times the resize ratio, all as printed beside it."""
    low, high = lookup("fixres_text", id="sigma_min"), lookup("fixres_text", id="sigma_max")
    return 2 / 3 * (high**3 - low**3) / (high**2 - low**2) * lookup("fixres_text", id="resize_over_train")


def _smallest_apparent_size() -> float:
    """How many times larger an object may appear in training, equation (4): 1 / (smallest sigma, resize ratio)."""
    return 1 / (lookup("fixres_text", id="sigma_min") * lookup("fixres_text", id="resize_over_train"))


def _inverse_focal_factor() -> float:
    """2 tan(angle / 2) at the middle of the printed fields of view, which are in degrees."""
    middle = (lookup("fixres_text", id="field_of_view_min") + lookup("fixres_text", id="field_of_view_max")) / 2
    return 2 * math.tan(math.radians(middle) / 2)


def _fold_deviation(top1: Callable[[], float]) -> Callable[[], float]:
    """Expected standard deviation over random folds, percent: of the accuracies with one of the folds left out.

    A fold of n images deviates by sqrt(p (1 - p) / n); leaving it out of F folds, by 1 / (F - 1) of that.
    """

    def compute() -> float:
        p = top1() / 100
        return 100 * math.sqrt(p * (1 - p) / (VALIDATION_IMAGES / FOLDS)) / (FOLDS - 1)

    return compute


def _highest_top1() -> float:
    frame = load("fixres_table2")
    return float(frame.loc[frame["metric"] == "top1", "value"].max())


def _epoch_share_percent() -> float:
    crops = lookup("fixres_text", id="epoch_batches") * lookup("fixres_text", id="batch")
    return 100 * crops / lookup("fixres_text", id="repeated_augmentation") / TRAIN_IMAGES


def _resnet50_at(test_res: int) -> float:
    return lookup("fixres_table5", train_res=224, test_res=test_res, adaptation="none")


def _best_test_resolution(adaptation: str) -> Callable[[], float]:
    def compute() -> float:
        frame = load("fixres_table5")
        values = indexed(frame[(frame["train_res"] == 224) & (frame["adaptation"] == adaptation)], "test_res")
        return float(max(values, key=lambda test_res: values[test_res]))

    return compute


def _pnasnet_gain() -> float:
    fixed = lookup("fixres_table1", adaptation=LAST_CELLS, test_res=480)
    return fixed - lookup("fixres_table1", method="baseline", test_res=331)


def _resnext_gain() -> float:
    return lookup("fixres_table1", model=WSL, test_res=320) - lookup("fixres_table1", model=WSL, test_res=224)


def _time(metric: str, train_res: int, test_res: int) -> float:
    return lookup("fixres_table7", metric=metric, train_res=train_res, test_res=test_res)


def _backward_over_forward(pick: Callable[[list[float]], float]) -> Callable[[], float]:
    def compute() -> float:
        sizes = (128, 160, 224, 384)
        return pick([_time("train_backward_ms", k, k) / _time("train_forward_ms", k, k) for k in sizes])

    return compute


def _time_increase_percent() -> float:
    return 100 * (_time("total_time_hours", 128, 224) / _time("total_time_hours", 128, 128) - 1)


def _speedup() -> float:
    return _time("total_time_hours", 384, 384) / _time("total_time_hours", 224, 384)


def _over_previous(metric: str) -> Callable[[], float]:
    def compute() -> float:
        ours = lookup("fixres_table2", model=WSL, method="wsl+fixres", metric=metric)
        return ours - lookup("fixres_table2", model=WSL, method="wsl", metric=metric)

    return compute


FIXRES_STATEMENTS = (
    Statement("fixres_text", "size_ratio", "equation (5) with the printed 0.28, 1 and 1.15", _apparent_size_ratio),
    Statement("fixres_text", "inverse_focal_factor", "2 tan of half of 50 degrees", _inverse_focal_factor),
    Statement("fixres_text", "smallest_apparent_size", "1 / (0.28 x 1.15), equation (4)", _smallest_apparent_size),
    Statement(
        "fixres_text",
        "pooled_min",
        "side of the map at 64 pixels, Section 3.2",
        lambda: lookup("fixres_text", id="map_64"),
    ),
    Statement(
        "fixres_text",
        "pooled_max",
        "side of the map at 448 pixels, Section 3.2",
        lambda: lookup("fixres_text", id="map_448"),
    ),
    Statement(
        "fixres_text",
        "fold_deviation",
        "expected for random folds at the 77.0 % of ResNet-50",
        _fold_deviation(lambda: lookup("fixres_text", id="repeated_augmentation_resnet50")),
        more_digits=1,
    ),
    Statement(
        "fixres_text",
        "fold_deviation",
        "expected for random folds at 86.4 %, the highest of Table 2",
        _fold_deviation(_highest_top1),
        more_digits=1,
    ),
    Statement(
        "fixres_text",
        "epoch_share",
        f"5005 batches of 512, each image 3 times, of {TRAIN_IMAGES:,} images (arguable: the sentence does not say how "
        "images are drawn)",
        _epoch_share_percent,
    ),
    Statement("fixres_text", "alpha", "1 / 0.80", lambda: 1 / lookup("fixres_text", id="size_ratio")),
    Statement("fixres_text", "resolution_gain", "288 less 224, Table 5", lambda: _resnet50_at(288) - _resnet50_at(224)),
    Statement("fixres_text", "best_test_res_before", "best row of Table 5, left", _best_test_resolution("none")),
    Statement(
        "fixres_text",
        "best_test_res_after",
        "best row of Table 5, right",
        _best_test_resolution("classifier+batch_norm"),
    ),
    Statement("fixres_text", "pnasnet_gain", "480 less 331 in Table 1", _pnasnet_gain),
    Statement("fixres_text", "resnext_gain", "320 less 224 in Table 1", _resnext_gain),
    Statement(
        "fixres_text", "backward_over_forward_min", "smallest ratio in training, Table 7", _backward_over_forward(min)
    ),
    Statement(
        "fixres_text", "backward_over_forward_max", "largest ratio in training, Table 7", _backward_over_forward(max)
    ),
    Statement("fixres_text", "time_increase", "124.1 h over 111.8 h in Table 7", _time_increase_percent),
    Statement("fixres_text", "speedup_384", "348.5 h over 151.5 h in Table 7", _speedup),
    Statement("fixres_text", "sota_top1_gain", "ours less [25] in Table 2", _over_previous("top1")),
    Statement("fixres_text", "sota_top5_gain", "ours less [25] in Table 2", _over_previous("top5")),
)


# ---- FixEfficientNet


def _top1(table: str, model: str, method: str) -> float:
    return lookup(table, model=model, method=method, metric="top1")


def _over_noisy_student() -> float:
    return _top1("fixeff_table2", B0, "fixres") - _top1("fixeff_table1", "tf_efficientnet_b0_ns", "baseline")


def _over_advprop() -> float:
    return _top1("fixeff_table2", B0, "fixres") - _top1("fixeff_table2", B0, "baseline")


def _fixresnext_over_b3() -> float:
    rival = _top1("fixeff_table6", "tf_efficientnet_b3_ns", "baseline")
    return _top1("fixeff_table6", "resnext101_32x4d", "fixres") - rival


FIXEFF_STATEMENTS = (
    Statement("fixeff_text", "b0_over_noisy_student", "Table 2 less Table 1", _over_noisy_student),
    Statement("fixeff_text", "b0_over_advprop", "FixEfficientNet less EfficientNet in Table 2", _over_advprop),
    Statement("fixeff_text", "fixresnext_over_b3_v2", "difference in Table 6", _fixresnext_over_b3),
)

STATEMENTS = MID_STATEMENTS + FIXRES_STATEMENTS + FIXEFF_STATEMENTS


def statements() -> pd.DataFrame:
    """Every number of the text that the tables can check: paper, place, quote, printed, of, computed, holds."""
    lines = []
    for statement in STATEMENTS:
        frame = load(statement.table)
        line = frame[frame["id"] == statement.id].to_dict("records")[0]
        digits = decimals(line["printed"])
        computed = statement.computed()
        lines.append(
            {
                "paper": line["paper"],
                "place": line["place"],
                "quote": line["row"],
                "printed": line["printed"],
                "of": statement.of,
                "computed": f"{computed:.{digits + statement.more_digits}f}",
                "holds": abs(round(computed, digits) - line["value"]) < 1e-6,
            }
        )
    return pd.DataFrame(lines)


def wrong_statements() -> Iterator[dict[str, str]]:
    frame = statements()
    for line in frame[~frame["holds"]].to_dict("records"):
        against = f"{line['of']}: {line['computed']}"
        yield row_of("statement", line["paper"], line["place"], line["quote"], line["printed"], against)
