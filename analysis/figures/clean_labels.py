"""Accuracy on cleaner labels (ImageNet-ReaL, or a made set's) against the original ones: does the gain of crops stay?

From the centre crop to the most random crops, one arrow a network. Published: FixEfficientNet Table 3 beside 1 and 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.figures.imagenet_v2 import KINDS, pairs_of
from analysis.figures.imagenet_v2 import LOOKS as METHODS
from analysis.runs import (
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    best_curve_policy,
    line_names,
    provenance,
    require_all_comparable,
    rows_of_network,
)
from bench.records import ORIGINAL, REAL

LEVEL = "softmax"
GAINS = {"gain": ORIGINAL, "real_gain": REAL}  # column prefix -> labels
LOOKS = {"original": ("black", "o"), "real": (style.BLUE, "s")}


@dataclass(frozen=True, slots=True)
class Data:
    """``measured``: name, policy, top1 and gain with their intervals, once for each set of labels (``real_`` before the
    second's); ``published``: kind, method, variant, original, real. Either may be empty."""

    demo: bool
    measured: pd.DataFrame
    published: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """The published figure without runs; the networks of the runs that were scored against both sets of labels."""
    published = pairs_of({kind: (old, "fixeff_table3") for kind, (old, _) in KINDS.items()}, ("original", "real"))
    notes = [
        "Published: FixEfficientNet Table 3 with Tables 1 and 2 (ImageNet-ReaL: images without such a label left out)."
    ]
    if not inputs.runs:
        return {"": Data(False, pd.DataFrame(), published, notes)}
    found = both_scored(inputs)
    require_all_comparable(found)
    measured, demo = measured_rows(inputs, found), found[0][1].is_demo
    if demo:
        published, notes = published.iloc[:0], []
    counts = measured[["images", "real_images"]].iloc[0]
    notes += [
        f"Wilson's 95 % intervals, and of the gains the paired ones (Newcombe). {counts['real_images']:,} of "
        f"{counts['images']:,} images have a label of the second set; the others are left out of its score.",
        *provenance(found, int(counts["images"])),
    ]
    return {"": Data(demo, measured, published, notes)}


def both_scored(inputs: Inputs) -> list[NetworkRun]:
    """Networks that were scored against both sets. Raises MissingData when there is none."""
    found = {(run.folder, r.setting): (run, r.setting) for run in inputs.runs for r in run.accuracies_of(REAL)}
    if not found:
        raise MissingData("needs a run with a second set of labels: run with --real-labels real.json")
    return list(found.values())


def measured_rows(inputs: Inputs, found: list[NetworkRun]) -> pd.DataFrame:
    """One row for each network: the columns of Data.measured, at softmax."""
    frames = [accuracies(inputs.runs, labels) for labels in (ORIGINAL, REAL)]
    rows = []
    for network, name in zip(found, line_names(found), strict=True):
        own = [rows_of_network(frame, network) for frame in frames]
        policy = best_curve_policy(own[0])
        row: dict[str, Any] = {"name": name, "policy": policy}
        for prefix, frame in zip(("", "real_"), own, strict=True):
            by_policy = frame[frame["level"] == LEVEL].set_index("policy")
            row |= {f"{prefix}base": by_policy.loc["CC", "top1"], f"{prefix}images": by_policy.loc[policy, "images"]}
            columns = ("top1", "top1_low", "top1_high", "gain", "gain_low", "gain_high")
            row |= {f"{prefix}{column}": by_policy.loc[policy, column] for column in columns}
        rows.append(row)
    return pd.DataFrame(rows)


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(1, 2 if len(data.measured) else 1, height=4.8)
    handles = _published(panels[0], data.published)
    for i, row in enumerate(data.measured.to_dict("records")):
        handles.append(_arrow(panels[0], row, i))
    panels[0].set_xlabel("top-1, original labels, %")
    panels[0].set_ylabel(f"top-1, cleaner labels{' (demo data)' if data.demo else ''}, %")
    for axes in panels[1:]:
        handles += _gains(axes, data.measured)
    return style.finish(figure, title="Original and cleaner labels", notes=data.notes, handles=handles)


def _published(axes: Axes, rows: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = []
    for (kind, method), frame in rows.groupby(["kind", "method"]) if len(rows) else ():
        words, line, marker, _ = METHODS[str(method)]
        colour = style.colour(list(KINDS).index(str(kind)))
        handles += axes.plot(
            frame["original"], frame["real"], color=colour, marker=marker, linestyle=line, linewidth=1,
            markerfacecolor="white", markersize=5, label=f"{words}, {kind}", gid=f"published {kind} {method}",
        )  # fmt: skip
    return handles


def _arrow(axes: Axes, row: dict, i: int) -> Artist:
    colour = style.colour(len(KINDS) + i)
    across = [[row["top1"] - row["top1_low"]], [row["top1_high"] - row["top1"]]]
    up = [[row["real_top1"] - row["real_top1_low"]], [row["real_top1_high"] - row["real_top1"]]]
    axes.errorbar(
        [row["top1"]], [row["real_top1"]], xerr=across, yerr=up, color=colour, marker="o", markersize=5, linewidth=0.8,
        gid=f"measured {row['name']}",
    )  # fmt: skip
    look = {"arrowstyle": "->", "color": colour, "linewidth": 1.6}
    axes.annotate("", (row["top1"], row["real_top1"]), xytext=(row["base"], row["real_base"]), arrowprops=look)
    return Line2D([], [], color=colour, marker="o", markersize=5, label=f"{row['name']}: CC → {row['policy']}")


def _gains(axes: Axes, rows: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = []
    for shift, (column, labels) in zip((-0.12, 0.12), GAINS.items(), strict=True):
        colour, marker = LOOKS[labels]
        bars = [rows[column] - rows[f"{column}_low"], rows[f"{column}_high"] - rows[column]]
        places = [i + shift for i in range(len(rows))]
        axes.errorbar(
            rows[column], places, xerr=bars, color=colour, marker=marker, markersize=5, linestyle="", capsize=2.5,
            gid=f"{labels} gain",
        )  # fmt: skip
        words = "gain, original labels" if labels == ORIGINAL else "gain, cleaner labels"
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=words))
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), rows["name"])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(style.label("gain"))
    return handles
