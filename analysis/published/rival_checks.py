"""Sentences that hold averaged crops, or one paper's networks, against networks trained in other ways: counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd

from analysis.published.cells import table_name, unless
from analysis.published.checks import indexed, lookup, with_gains
from analysis.published.tables import load

# Section V.A: "outperforming (MEAL, Cutout, Mixup, FixRes, FixRes (adaptation + augmentation))".
OUTPERFORMED = ("meal", "cutout", "mixup", "repeated_augmentation", "fixres")
NAMED_IN_SECTION_VI = {"F1": ("F2",), "F3": ("F4", "F5")}  # of MID: smaller NFNet -> larger ones that it equals
# (model, method) in FixRes Table 2 -> method in FixEfficientNet Table 6: the same network on ImageNet and ImageNet-V2.
IN_BOTH_PAPERS = {
    ("resnet50", "billion_scale"): "billion_scale",
    ("resnext101_32x48d", "wsl+fixres"): "fixres",
}


def trained_rivals() -> pd.DataFrame:
    """MID Table I's networks that took training: ResNet-50's, in the order of the print."""
    frame = load("mid_table1")
    return frame[(frame["training_required"] == True) & (frame["model"] == "resnet50")]  # noqa: E712 - may be missing


def best_average(table: str, model: str, *more: str) -> float:
    """The highest accuracy of a network's averages in these tables."""
    rows = with_gains(table, *more)
    return float(rows.loc[rows["model"] == model, "value"].max())


def _better_than_trained_resnet50() -> Iterator[str]:
    best = best_average("mid_table1", "resnet50", "mid_table8")
    for line in trained_rivals().to_dict("records"):
        yield unless(best > line["value"], f"{line['row']} {line['printed']}, best average {best:.2f}")


def _better_than_fixefficientnet(table: str) -> Callable[[], Iterator[str]]:
    def cells() -> Iterator[str]:
        frame = load(table)
        for model, value in indexed(frame[frame["method"] == "fixres"], "model").items():
            best = best_average(table, model)
            text = f"{table_name(table)} {model}: FixEfficientNet {value:.1f}, best average {best:.2f}"
            yield unless(best > value, text)

    return cells


def _random_crops_outperform() -> Iterator[str]:
    own = with_gains("mid_table1")
    own = own[(own["model"] == "resnet50") & own["policy"].isin(("10RC", "20RC"))]
    for line in own.to_dict("records"):
        for method in OUTPERFORMED:
            rival = lookup("mid_table1", model="resnet50", method=method, test_res=224)
            text = f"{line['policy']} {line['level']} {line['printed']}, {method.replace('_', ' ')} {rival:.2f}"
            yield unless(line["value"] > rival, text)


def accuracies_on_both() -> pd.DataFrame:
    """name, model, method, imagenet, imagenet_v2 (top-1) of networks other than EfficientNet that two papers print."""
    table6 = load("fixeff_table6")
    rows = []
    for (model, method), method_v2 in IN_BOTH_PAPERS.items():
        same = (table6["model"] == model) & (table6["method"] == method_v2) & (table6["metric"] == "top1")
        (line,) = table6[same].to_dict("records")
        old = lookup("fixres_table2", model=model, method=method, metric="top1")
        name = line["row"].partition(" [")[0]
        rows.append({"name": name, "model": model, "method": method, "imagenet": old, "imagenet_v2": line["value"]})
    return pd.DataFrame(rows)


def _better_on_v2_at_equal_accuracy() -> Iterator[str]:
    for line in accuracies_on_both().to_dict("records"):
        student, old = nearest_noisy_student(line["imagenet"])
        new = lookup("fixeff_table6", model=student, method="baseline", metric="top1")
        text = f"{line['name']} {line['imagenet']} and {line['imagenet_v2']}, {student} {old} and {new}"
        yield unless(line["imagenet_v2"] > new, text)


def _smaller_with_crops_equals_larger() -> Iterator[str]:
    for small, larger in NAMED_IN_SECTION_VI.items():
        crops = lookup("mid_table4", variant=small, policy="20RC", level="softmax")
        for large in larger:
            centre = lookup("mid_table4", variant=large, policy="CC")
            yield unless(crops >= centre, f"{small} with 20 RCs {crops:.2f}, {large} {centre:.2f}")


def nearest_noisy_student(top1: float) -> tuple[str, float]:
    """The EfficientNet from Noisy Student whose ImageNet accuracy is nearest, and that accuracy."""
    frame = load("fixeff_table1").query("method == 'baseline' and metric == 'top1'")
    accuracies = indexed(frame, "model")
    return min(accuracies.items(), key=lambda item: abs(item[1] - top1))


CELLS: dict[str, Callable[[], Iterator[str]]] = {
    "better_than_trained_resnet50": _better_than_trained_resnet50,
    "better_than_fixefficientnet_advprop": _better_than_fixefficientnet("mid_table3"),
    "better_than_fixefficientnet_noisystudent": _better_than_fixefficientnet("mid_table5"),
    "random_crops_outperform": _random_crops_outperform,
    "smaller_with_crops_equals_larger": _smaller_with_crops_equals_larger,
    "better_on_v2_at_equal_accuracy": _better_on_v2_at_equal_accuracy,
}
