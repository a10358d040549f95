"""Top-1 against the number of parameters: averaging crops beside training-based baselines (MID Figures 5, 6 and 8).

A step to the right buys accuracy with a larger network; a step up buys it with more crops of the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.figures.count_parameters import architecture, param_counts
from analysis.published import load
from analysis.runs import (
    PAPER_TABLES,
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    best_curve_policy,
    line_names,
    provenance,
    require_all_comparable,
    rows_of_network,
    scored_networks,
)


@dataclass(frozen=True, slots=True)
class Series:
    """One line or cloud. ``frame``: params, top1, text (a label or ""), and low, high for measured points."""

    label: str
    frame: pd.DataFrame
    colour: str
    marker: str
    measured: bool = False
    line: bool = True


@dataclass(frozen=True, slots=True)
class Data:
    """A picture's series and words."""

    title: str
    demo: bool
    series: list[Series]
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Group:
    """A published figure: MID's table, and the FixEfficientNet table with the baseline."""

    table: str
    title: str
    baseline: str = ""


GROUPS = {
    "efficientnet-advprop": Group("mid_table3", "EfficientNet AdvProp (MID Figure 5)", "fixeff_table2"),
    "efficientnet-noisystudent": Group("mid_table5", "EfficientNet NoisyStudent (MID Figure 6)", "fixeff_table1"),
    "nfnet": Group("mid_table4", "NFNet (MID Figure 8)"),
    "resnet": Group("mid_table1", "ResNet and training-based baselines (MID Table I)"),
}
BASELINES = {  # method -> words, marker: every network of MID Table I that took training
    "meal": ("MEAL", "s"), "meal_plus": ("MEAL Plus", "^"), "meal_v2": ("MEAL V2", "v"), "cutout": ("Cutout", "P"),
    "mixup": ("Mixup", "X"), "manifold_mixup": ("Manifold Mixup", "*"), "cutmix": ("CutMix", "<"),
    "repeated_augmentation": ("Base FixRes", "p"), "fixres": ("FixRes", "h"),
    "billion_scale+fixres": ("FixRes, billion-scale data, at 320", "H"),
}  # fmt: skip


def pictures(inputs: Inputs) -> dict[str, Data]:
    """Without runs the published figures; with runs those with a measured network, and the other networks together."""
    if not inputs.runs:
        return {name: _published(name) for name in GROUPS} | {"fixefficientnet": _fixefficientnet()}
    found = scored_networks(inputs.runs)
    frame = accuracies(inputs.runs)
    out = {}
    for name, group in GROUPS.items():
        own = [network for network in found if _is_in(network, group)]
        if own:
            data = _published(name)
            out[name] = Data(data.title, False, data.series + measured(frame, own), data.notes + _notes(frame, own))
    rest = [network for network in found if not any(_is_in(network, group) for group in GROUPS.values())]
    if len({setting.weight_hash for _, setting in rest}) > 1:
        demo = any(setting.is_demo for _, setting in rest)
        out["measured"] = Data("Accuracy against parameters", demo, measured(frame, rest), _notes(frame, rest))
    if not out:
        raise MissingData("needs several networks, or one of MID Tables I, III, IV, V: give several runs")
    return out


def _is_in(network: NetworkRun, group: Group) -> bool:
    setting = network[1]
    return (
        PAPER_TABLES.get(setting.published_in or "") == group.table
        and setting.weights == "pretrained"
        and not setting.is_demo
    )


def _notes(frame: pd.DataFrame, own: Sequence[NetworkRun]) -> list[str]:
    images = int(rows_of_network(frame, own[0])["images"].iloc[0])
    return ["Filled: measured, with Wilson's 95 % interval.", *provenance(own, images)]


def measured(frame: pd.DataFrame, own: Sequence[NetworkRun]) -> list[Series]:
    """Centre crop, and the most random crops (20 at most), of each network. Raises Incomparable, MissingData."""
    require_all_comparable(own)
    rows: dict[str, list[dict]] = {"CC": [], "RC": []}
    policies = []
    for network, name in zip(own, line_names(own), strict=True):
        mine = rows_of_network(frame, network)
        mine = mine[mine["level"] == "softmax"]
        most = best_curve_policy(mine)
        policies.append(most)
        for key, policy in (("CC", "CC"), ("RC", most)):
            row = mine[mine["policy"] == policy].iloc[0]
            rows[key].append(
                {
                    "params": network[1].param_count,
                    "top1": row["top1"],
                    "low": row["top1_low"],
                    "high": row["top1_high"],
                    "text": name if key == "CC" else "",
                }
            )
    averaged = " / ".join(dict.fromkeys(policies))
    return [
        Series("centre crop, measured", pd.DataFrame(rows["CC"]), style.BLUE, "o", measured=True, line=False),
        Series(f"softmax of {averaged}, measured", pd.DataFrame(rows["RC"]), style.RED, "D", measured=True, line=False),
    ]


def _published(name: str) -> Data:
    group = GROUPS[name]
    frame = load(group.table)
    own = frame[frame["K"].notna()]
    twenty = own[(own["policy"] == "20RC") & (own["level"] == "softmax")]
    series = [
        Series("centre crop, published", _points(own[own["policy"] == "CC"], texts=True), style.BLUE, "o"),
        Series("MID: softmax of 20RC, published", _points(twenty), style.RED, "D"),
    ]
    notes = [f"Hollow: published, MID Table {frame['table'].iloc[0]}; parameters as timm and torchvision count them."]
    if group.baseline:
        baseline = load(group.baseline)
        baseline = baseline[(baseline["method"] == "fixres") & (baseline["metric"] == "top1")]
        series.append(Series("FixEfficientNet (fine-tuned), published", _points(baseline), style.GREEN, "^"))
        notes[0] += f" FixEfficientNet: its Table {baseline['table'].iloc[0]}."
    if name == "resnet":
        series += _baselines(frame)
    return Data(group.title, False, series, notes)


def _baselines(frame: pd.DataFrame) -> list[Series]:
    """MID Table I's baselines, a marker each; a network tested at several resolutions has several points."""
    colours = [colour for colour in style.COLOURS if colour not in (style.BLUE, style.RED)]
    return [
        Series(text, _points(frame[frame["method"] == method]), colours[i % len(colours)], marker, line=False)
        for i, (method, (text, marker)) in enumerate(BASELINES.items())
    ]


def _fixefficientnet() -> Data:
    """FixEfficientNet Figure 1, as far as its tables print it."""
    series = []
    kinds = (("fixeff_table2", "AdvProp", style.BLUE), ("fixeff_table1", "NoisyStudent", style.ORANGE))
    for table, kind, colour in kinds:
        frame = load(table)
        frame = frame[frame["metric"] == "top1"]
        fixed = frame[frame["method"] == "fixres"]
        plain = frame[frame["method"] == "baseline"]
        series.append(Series(f"EfficientNet {kind}", _points(plain, texts=True, printed=True), colour, "o"))
        series.append(Series(f"FixEfficientNet {kind}", _points(fixed, printed=True), colour, "^"))
    notes = ["Published: FixEfficientNet Tables 1 and 2, parameters as printed there."]
    return Data("EfficientNet and FixEfficientNet (FixEfficientNet Figure 1)", False, series, notes)


def _points(frame: pd.DataFrame, *, texts: bool = False, printed: bool = False) -> pd.DataFrame:
    """params, top1, text. ``printed``: the paper's own parameter counts."""
    counts = param_counts()
    params = [
        millions * 1e6 if printed else counts[architecture(model)]
        for model, millions in zip(frame["model"], frame["parameters_millions"], strict=True)
    ]
    text = frame["variant"].tolist() if texts else ""
    return pd.DataFrame({"params": params, "top1": frame["value"].tolist(), "text": text}).sort_values("params")


@style.styled
def draw(data: Data) -> Figure:
    figure, (axes,) = style.canvas(height=5.2)
    handles: list[Any] = []
    for series in data.series:
        frame = series.frame
        x = frame["params"] / 1e6
        face = series.colour if series.measured else "white"
        line = "-" if series.line and len(frame) > 1 else ""
        look: dict[str, Any] = {
            "color": series.colour,
            "marker": series.marker,
            "markerfacecolor": face,
            "label": series.label,
        }
        if series.measured:
            bars = [frame["top1"] - frame["low"], frame["high"] - frame["top1"]]
            drawn: Any = axes.errorbar(
                x,
                frame["top1"],
                yerr=bars,
                linestyle=line,
                capsize=3,
                markersize=6.5,
                zorder=4,
                gid=series.label,
                **look,
            )  # type: ignore[assignment]
        else:
            (drawn,) = axes.plot(
                x, frame["top1"], linestyle=line, markersize=6, markeredgewidth=1.4, gid=series.label, **look
            )
        handles.append(drawn)
        for px, py, text in zip(x, frame["top1"], frame["text"], strict=True):
            if text:
                axes.annotate(text, (px, py), xytext=(5, -12), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.12, y=0.1)
    style.plain_log_axis(axes.xaxis, style.nice_ticks(*axes.get_xlim()))
    axes.set_xlabel(style.label("params"))
    axes.set_ylabel(style.label("top1", demo=data.demo))
    return style.finish(figure, title=data.title, notes=data.notes, handles=handles, columns=3)
