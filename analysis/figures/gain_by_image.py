"""Which images gain: by aspect ratio, and on the demo set by the object's distance from the centre and its size.

Each panel is one question to the same answers: in bins, the difference in top-1 between averaged random crops and the
centre crop; and over images, Spearman's correlation of the variable with the change: newly correct +1, same 0, newly
wrong -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from analysis import style
from analysis.runs import (
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    attempts,
    best_curve_policy,
    display_name,
    endings,
    images,
    predictions,
    provenance,
    rows_of,
    rows_of_network,
    scored_networks,
)
from analysis.stats import paired_difference

ASPECT_EDGES = (1.0, 1.1, 1.3, 1.4, 1.55, np.inf)  # around what cameras give: 1, 4/3 and 3/2 each in a bin of its own
BINS = 5  # of the object's offset and size, with equally many images
FEWEST_IMAGES = 10  # in a bin: an interval of fewer is too wide


@dataclass(frozen=True, slots=True)
class Panel:
    """``bins``: low, high (of the variable), middle (median), images, gain, gain_low, gain_high (points)."""

    metric: str
    bins: pd.DataFrame
    rho: float
    p_value: float


@dataclass(frozen=True, slots=True)
class Data:
    """One network's panels."""

    name: str
    panels: list[Panel]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data | MissingData]:
    """One picture for each network whose per-image answers and images are there."""
    found = scored_networks(inputs.runs, beyond_centre=True)
    frame = accuracies(inputs.runs)
    return attempts(
        {
            ending: partial(_data, inputs, network, rows_of_network(frame, network))
            for ending, network in zip(endings(found), found, strict=True)
        }
    )


def _data(inputs: Inputs, network: NetworkRun, frame: pd.DataFrame) -> Data:
    policy = best_curve_policy(frame)
    answers = predictions(network)
    table = rows_of(answers.names, images(inputs, network[0]))
    known = answers.labels >= 0
    change = (answers.of(policy).astype(int) - answers.of("CC"))[known]
    right = answers.of(policy)[known]
    values_of = variables(table).items()
    panels_of = [panel(metric, values[known], change, right, edges) for metric, (values, edges) in values_of]
    panels = [one for one in panels_of if one is not None]
    if not panels:
        raise MissingData(f"needs more images: no bin holds {FEWEST_IMAGES}")
    notes = [
        f"Gain of {policy}, softmax averaged; bars: 95 % interval of the paired difference (Newcombe); small numbers: "
        "images. ρ: Spearman's over single images (newly correct +1, newly wrong −1).",
        *provenance([network], int(known.sum())),
    ]
    return Data(display_name(network[1]), panels, notes)


def variables(table: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """METRICS name -> (value of each image, edges of the bins); the object's only where the table has them."""
    sides = table[["width", "height"]].to_numpy(np.float64)
    out = {"aspect": (sides.max(axis=1) / sides.min(axis=1), np.array(ASPECT_EDGES))}
    for metric, column in (("offset", "offset"), ("size", "object_size")):
        if column in table:
            values = table[column].to_numpy(np.float64)
            edges = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)))
            edges[-1] = np.inf  # bins are closed on the left; the largest value belongs to the last
            out[metric] = (values, edges)
    return out


def panel(metric: str, values: np.ndarray, change: np.ndarray, right: np.ndarray, edges: np.ndarray) -> Panel | None:
    """Bins of one variable; ``change`` int [b] in -1, 0, 1, ``right`` bool [b] of the policy. None if all are small."""
    rows = []
    for low, high in pairwise(edges):
        inside = (values >= low) & (values < high)
        n = int(inside.sum())
        if n < FEWEST_IMAGES:
            continue
        newly_correct, newly_wrong = int((change[inside] > 0).sum()), int((change[inside] < 0).sum())
        gain_low, gain_high = paired_difference(newly_correct, newly_wrong, int(right[inside].sum()), n)
        rows.append(
            {
                "low": low,
                "high": high,
                "middle": float(np.median(values[inside])),
                "images": n,
                "gain": 100 * (newly_correct - newly_wrong) / n,
                "gain_low": gain_low,
                "gain_high": gain_high,
            }
        )
    if not rows:
        return None
    varies = len(set(values.tolist())) > 1 and len(set(change.tolist())) > 1  # else there is no correlation
    rank = spearmanr(values, change) if varies else None
    return Panel(
        metric,
        pd.DataFrame(rows),
        float(rank.statistic) if rank else float("nan"),
        float(rank.pvalue) if rank else float("nan"),
    )


@style.styled
def draw(data: Data) -> Figure:
    width = style.WIDTH if len(data.panels) > 1 else 5.5
    figure, panels = style.canvas(1, len(data.panels), height=4.4, width=width, sharey=True)
    for axes, one in zip(panels, data.panels, strict=True):
        _panel(axes, one)
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(low - 0.08 * (high - low), high)  # space for the numbers; the panels share the axis
    panels[0].set_ylabel(style.label("gain"))
    return style.finish(figure, title=f"{data.name}: which images gain", notes=data.notes)


def _panel(axes: Axes, one: Panel) -> None:
    bins = one.bins
    x = np.arange(len(bins))
    bars = [bins["gain"] - bins["gain_low"], bins["gain_high"] - bins["gain"]]
    axes.errorbar(x, bins["gain"], yerr=bars, color=style.BLUE, marker="o", linestyle="-", capsize=3, gid=one.metric)
    axes.axhline(0, color="black", linewidth=0.8)
    for position, n in zip(x, bins["images"], strict=True):
        axes.annotate(
            str(n), (position, 0), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
            ha="center", fontsize=style.SMALLER, color="#555555",
        )  # fmt: skip
    axes.set_xticks(x, [bin_text(low, high) for low, high in zip(bins["low"], bins["high"], strict=True)], fontsize=7.5)
    axes.tick_params(axis="x", labelrotation=30)
    axes.margins(x=0.12)
    axes.set_xlabel(style.label(one.metric), fontsize=style.SMALL)
    if np.isfinite(one.rho):
        axes.set_title(f"ρ = {one.rho:+.2f}, p = {one.p_value:.2g}", fontsize=style.SMALL)


def bin_text(low: float, high: float) -> str:
    return f"{low:.2f}–{high:.2f}" if np.isfinite(high) else f"≥ {low:.2f}"
