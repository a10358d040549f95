"""Gain over the centre crop of many networks, published and measured, for the figures that set it against something."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.stats import linregress, pearsonr, permutation_test, rankdata, spearmanr

from analysis import style
from analysis.figures.count_parameters import architecture, param_counts
from analysis.published.checks import MID_GAIN_TABLES, with_gains
from analysis.runs import (
    NetworkRun,
    accuracies,
    best_curve_policy,
    line_names,
    provenance,
    require_all_comparable,
    rows_of_network,
    scored_networks,
)
from bench.records import Run

# MID's table -> what its networks are called in a legend
GROUPS = {
    "mid_table1": "ResNet",
    "mid_table2": "MobileNet",
    "mid_table3": "EfficientNet AdvProp",
    "mid_table4": "NFNet",
    "mid_table5": "EfficientNet NoisyStudent",
    "mid_table6": "EfficientNet (timm)",
    "mid_table7": "EfficientNet (TensorFlow)",
}
POLICY, LEVEL = "20RC", "softmax"  # the papers' best; a run with fewer random crops shows its most
FEWEST_FOR_TREND, MOST_FOR_EXACT = 4, 7


@dataclass(frozen=True, slots=True)
class Trend:
    """Straight line and rank correlation of one quantity on another."""

    slope: float
    intercept: float
    rho: float
    p_value: float  # of rho, two-sided
    n: int

    @property
    def text(self) -> str:
        return f"Spearman ρ = {self.rho:+.2f}, p = {self.p_value:.2g}, n = {self.n}"


def trend(x: Sequence[float], y: Sequence[float]) -> Trend | None:
    """Least squares and Spearman, by SciPy; None for fewer than four points or one x.

    The p value of up to MOST_FOR_EXACT points is exact, over all pairings: the usual one is far too small for so few.
    """
    if len(x) < FEWEST_FOR_TREND or len(set(x)) < 2:
        return None
    line, rank = linregress(x, y), spearmanr(x, y)
    p_value = _exact_p(rankdata(x), rankdata(y)) if len(x) <= MOST_FOR_EXACT else float(rank.pvalue)
    return Trend(float(line.slope), float(line.intercept), float(rank.statistic), p_value, len(x))


def _exact_p(x: np.ndarray, y: np.ndarray) -> float:
    """Two-sided, of the correlation of two rankings [n], over all n! pairings."""

    def correlation(some: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.asarray(pearsonr(some, np.broadcast_to(y, some.shape), axis=axis).statistic)

    found = permutation_test(
        [x], correlation, permutation_type="pairings", n_resamples=factorial(len(x)), vectorized=True
    )
    return float(found.pvalue)


def published_gains(level: str = LEVEL, policy: str = POLICY) -> pd.DataFrame:
    """MID Tables I to VII: group, model, slack (1 - K/S computed), base (percent), gain (points), params."""
    frame = with_gains(*MID_GAIN_TABLES)
    frame = frame[(frame["policy"] == policy) & (frame["level"] == level)]
    counts = param_counts()
    return pd.DataFrame(
        {
            "group": frame["source"].map(GROUPS),
            "model": frame["model"],
            "slack": 1 - frame["K"].astype(float) / frame["S"].astype(float),
            "base": frame["base"],
            "gain": frame["gain"],
            "params": [counts[architecture(model)] for model in frame["model"]],
        }
    ).reset_index(drop=True)


def measured_gains(runs: Sequence[Run], level: str = LEVEL) -> pd.DataFrame:
    """The same columns and ``name``, ``policy``, ``low``, ``high`` (95 %, paired), a row for each network of the runs.

    Raises Incomparable when the networks saw different images, MissingData when none has random crops.
    """
    found = scored_networks(runs, beyond_centre=True)
    require_all_comparable(found)
    frame = accuracies(runs)
    names = line_names(found)
    rows = [
        _measured(rows_of_network(frame, network), network, level) | {"name": name}
        for network, name in zip(found, names, strict=True)
    ]
    return pd.DataFrame(rows)


def _measured(frame: pd.DataFrame, network: NetworkRun, level: str) -> dict[str, Any]:
    setting = network[1]
    policy = best_curve_policy(frame)
    row = frame[(frame["policy"] == policy) & (frame["level"] == level)].iloc[0]
    return {
        "group": setting.family or "other",
        "model": setting.model,
        "policy": policy,
        "slack": 1 - setting.K / setting.S,
        "base": row["top1"] - row["gain"],
        "gain": row["gain"],
        "low": row["gain_low"],
        "high": row["gain_high"],
        "params": setting.param_count,
        "images": int(row["images"]),
        "demo": setting.is_demo,
    }


@dataclass(frozen=True, slots=True)
class Points:
    """What the scatter plots draw."""

    published: pd.DataFrame
    measured: pd.DataFrame  # perhaps empty
    notes: list[str]


def points(runs: Sequence[Run]) -> Points:
    """Published gains, and those of the runs, with the small print."""
    published = published_gains()
    notes = [f"Hollow: published, MID Tables I to VII, softmax of {POLICY}, ImageNet validation (50,000 images)."]
    if not runs:
        return Points(published, pd.DataFrame(), notes)
    measured = measured_gains(runs)
    policies = " / ".join(dict.fromkeys(measured["policy"]))
    notes.append(
        f"Filled: measured, softmax of {policies}, with the 95 % interval of the paired difference (Newcombe)."
    )
    notes += provenance(scored_networks(runs, beyond_centre=True), int(measured["images"].iloc[0]))
    return Points(published, measured, notes)


GROUP_STYLES = dict(zip(GROUPS.values(), zip(style.COLOURS, style.MARKERS, strict=True), strict=False))


def scatter(axes: Axes, data: Points, x: str, scale: float = 1.0) -> list[Line2D]:
    """Published points hollow, measured ones filled with bars and numbered; returns the legend's handles."""
    handles = []
    for group, frame in data.published.groupby("group", sort=False):
        colour, marker = GROUP_STYLES[str(group)]
        axes.plot(
            frame[x] * scale, frame["gain"], linestyle="", marker=marker, markersize=5.5, markerfacecolor="none",
            markeredgecolor=colour, markeredgewidth=1.3, gid=f"published {group}",
        )  # fmt: skip
        handles.append(
            Line2D(
                [], [], linestyle="", marker=marker, markerfacecolor="none", markeredgecolor=colour, label=str(group)
            )
        )
    for i, row in enumerate(data.measured.to_dict("records")):
        colour, marker = style.colour(i), style.marker(i + 1)
        bar = [[row["gain"] - row["low"]], [row["high"] - row["gain"]]]
        axes.errorbar(
            [row[x] * scale], [row["gain"]], yerr=bar, color=colour, marker=marker, markersize=7, capsize=3,
            markeredgecolor="black", zorder=5, gid=f"measured {row['model']}",
        )  # fmt: skip
        what = f"{row['name']}: measured" + (", demo data" if row["demo"] and "demo" not in str(row["name"]) else "")
        handles.append(Line2D([], [], color=colour, linestyle="", marker=marker, markeredgecolor="black", label=what))
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel(style.label("gain"))
    return handles


def trend_line(axes: Axes, found: Trend | None, low: float, high: float, text: str, log: bool = False) -> list[Line2D]:
    """The trend between two values of x (of log10 x if ``log``), and its legend handle."""
    if found is None:
        return []
    x = np.linspace(low, high, 50)
    label = f"trend of the {text} points"
    return axes.plot(
        10**x if log else x, found.intercept + found.slope * x, color="#444444", linestyle="--", linewidth=1.1,
        label=label, gid="trend",
    )  # fmt: skip
