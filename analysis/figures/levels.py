"""Averaging features, logits or softmax: does the level matter?

Left: the gain with softmax against the gain with features, a point for each network and crop count. Right, with runs:
the paired difference between levels at each number of crops, from the per-image answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import style
from analysis.figures._gains import GROUP_STYLES, GROUPS
from analysis.published.checks import MID_GAIN_TABLES, with_gains
from analysis.runs import (
    ImagePredictions,
    Inputs,
    MissingData,
    accuracies,
    curve,
    line_names,
    predictions,
    provenance,
    require_all_comparable,
    rows_of_network,
    scored_networks,
)
from analysis.stats import paired
from pipelines.crops import parse_policy

PUBLISHED_POLICIES = ("10RC", "20RC")


@dataclass(frozen=True, slots=True)
class Data:
    """``published`` and ``measured``: group or name, policy, feature, softmax (gains). ``differences``: see there."""

    published: pd.DataFrame
    measured: pd.DataFrame
    differences: pd.DataFrame
    notes: list[str] = field(default_factory=list)


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture of all networks; without runs of the published ones."""
    notes = ["Hollow: published, MID Tables I to VII, 10 and 20 random crops, ImageNet validation (50,000 images)."]
    if not inputs.runs:
        return {"": Data(published_pairs(), pd.DataFrame(), pd.DataFrame(), notes)}
    found = scored_networks(inputs.runs, beyond_centre=True)
    require_all_comparable(found)
    frame = accuracies(inputs.runs)
    names = line_names(found)
    measured = [
        measured_pairs(rows_of_network(frame, network)).assign(name=name)
        for network, name in zip(found, names, strict=True)
    ]
    tables = [
        level_differences(predictions(network)).assign(name=name) for network, name in zip(found, names, strict=True)
    ]
    tables = [table for table in tables if len(table)]
    if not tables:
        raise MissingData("needs the curve of random crops at several levels: run with --crops 1,2,5,10,20")
    differences = pd.concat(tables, ignore_index=True)
    notes.append("Filled: measured, every nRC with n > 1. Right: 95 % interval of the paired difference (Newcombe).")
    notes += provenance(found, int(frame["images"].iloc[0]))
    pairs = [table for table in measured if len(table)]
    return {"": Data(published_pairs(), pd.concat(pairs) if pairs else pd.DataFrame(), differences, notes)}


def published_pairs() -> pd.DataFrame:
    """group, model, policy, feature, softmax: gains in points of MID's networks at 10 and 20 random crops."""
    frame = with_gains(*MID_GAIN_TABLES)
    frame = frame[frame["policy"].isin(PUBLISHED_POLICIES)]
    wide = frame.pivot(index=["source", "model", "policy"], columns="level", values="gain").reset_index()
    wide["group"] = pd.Categorical(wide["source"].map(GROUPS), categories=list(GROUPS.values()), ordered=True)
    return wide[["group", "model", "policy", "feature", "softmax"]]


def measured_pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """policy, n_views, feature, softmax: gains of one network; empty where it has no feature level."""
    curves = frame[(frame["curve"] == "RC") & (frame["n_views"] > 1)]
    wide = curves.pivot(index=["policy", "n_views"], columns="level", values="gain").reset_index()
    if "feature" not in wide:
        return pd.DataFrame()
    return wide.sort_values("n_views").reset_index(drop=True)


def level_differences(found: ImagePredictions) -> pd.DataFrame:
    """n_views, against (logit, feature), difference: points by which softmax is better at nRC; low, high (95 %)."""
    known = found.labels >= 0
    counts = [p for p in found.policies if curve(p) == "RC" and parse_policy(p).n_views > 1]
    rows = []
    for against in ("logit", "feature"):
        if against not in found.levels:
            continue
        for policy in counts:
            gain = paired(found.of(policy)[known], found.of(policy, against)[known])
            rows.append(
                {
                    "n_views": parse_policy(policy).n_views,
                    "against": against,
                    "difference": gain.difference,
                    "low": gain.low,
                    "high": gain.high,
                }
            )
    return pd.DataFrame(rows)


AGAINST: dict[str, Any] = {"logit": "--", "feature": "-"}


@style.styled
def draw(data: Data) -> Figure:
    if data.differences.empty:
        figure, (left,) = style.canvas(height=5.4, width=6.4)
        handles = _pairs(left, data)
    else:
        figure, (left, right) = style.canvas(1, 2, height=5.4)
        handles = _pairs(left, data) + _differences(right, data.differences)
    title = "Averaging softmax against averaging features"
    return style.finish(figure, title=title, notes=data.notes, handles=handles, columns=3)


def _pairs(axes: Axes, data: Data) -> list[Artist]:
    handles: list[Artist] = []
    for group, frame in data.published.groupby("group", observed=True):
        colour, marker = GROUP_STYLES[str(group)]
        look: dict[str, Any] = {"linestyle": "", "marker": marker, "markerfacecolor": "none", "markeredgecolor": colour}
        axes.plot(frame["feature"], frame["softmax"], markersize=5, gid=f"published {group}", **look)
        handles.append(Line2D([], [], label=str(group), **look))
    for i, frame in enumerate(_by_name(data.measured)):
        axes.plot(
            frame["feature"], frame["softmax"], linestyle="", marker="o", markersize=4, color=style.colour(i),
            gid=f"measured {frame['name'].iloc[0]}",
        )  # fmt: skip
    limits = [*axes.get_xlim(), *axes.get_ylim()]
    span = [min(limits), max(limits)]
    handles += axes.plot(span, span, color="black", linewidth=0.9, label="equal gains", gid="equal")
    axes.set_xlabel("gain, features averaged, points")
    axes.set_ylabel("gain, softmax averaged, points")
    return handles


def _by_name(frame: pd.DataFrame) -> Sequence[pd.DataFrame]:
    return [rows for _, rows in frame.groupby("name", sort=False)] if len(frame) else []


def _differences(axes: Axes, differences: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = []
    groups = _by_name(differences)
    for i, frame in enumerate(groups):
        name, colour = str(frame["name"].iloc[0]), style.colour(i)
        shift = 0.12 * (i - (len(groups) - 1) / 2)  # so that bars of several networks stand side by side
        for against, line in AGAINST.items():
            rows = frame[frame["against"] == against]
            if rows.empty:
                continue
            x = rows["n_views"].to_numpy(np.float64) + shift
            axes.plot(
                x, rows["difference"], color=colour, linestyle=line, marker="o", markersize=3, gid=f"{name} {against}"
            )
            if against == "feature" or "feature" not in set(frame["against"]):
                axes.vlines(x, rows["low"], rows["high"], color=colour, linewidth=0.9, alpha=0.6)
        handles.append(Line2D([], [], color=colour, marker="o", markersize=4, label=f"{name}: measured"))
    axes.axhline(0, color="black", linewidth=0.9)
    axes.set_xlabel(style.label("crops"))
    axes.set_ylabel("softmax better by, points of top-1")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    words = {"feature": "softmax less feature", "logit": "softmax less logit (where it is not the same)"}
    handles += [Line2D([], [], color="#444444", linestyle=AGAINST[k], label=words[k]) for k in words]
    return handles
