"""Top-1 against the number of crops for one network: does the n-th crop still gain anything?

Random crops alone, with the centre crop, and the centre crop as a horizontal line, at each level. The band is paired:
centre crop + Newcombe's 95 % interval of the difference to it on the same images. That difference is what the figure
shows, and it is known far better than the accuracy itself, whose Wilson interval is in the notes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis import style
from analysis.runs import Inputs, NetworkRun, accuracies, endings, provenance, rows_of_network, scored_networks

LINES: dict[str, Any] = {"softmax": "-", "logit": "--", "feature": ":"}  # level -> line style
CURVES = {
    "RC": ("nRC: random crops", style.BLUE),
    "CC+RC": ("CC+(n−1)RC: with the centre", style.ORANGE),
    "ARC": ("nARC: more for elongated images", style.GREEN),  # at the mean number of views
}


@dataclass(frozen=True, slots=True)
class Data:
    """One network's accuracies (rows of ``analysis.runs.accuracies``) and the small print."""

    name: str
    demo: bool
    frame: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each network that was scored at more than one number of crops."""
    found = scored_networks(inputs.runs, beyond_centre=True)
    frame = accuracies(inputs.runs)
    return {
        ending: _data(rows_of_network(frame, network), network)
        for ending, network in zip(endings(found), found, strict=True)
    }


def _data(frame: pd.DataFrame, network: NetworkRun) -> Data:
    centre = centre_crop(frame)
    notes = [
        f"Centre crop {centre['top1']:.2f} %, Wilson 95 % interval {centre['top1_low']:.1f} to "
        f"{centre['top1_high']:.1f}. Band and bars: 95 % interval of the difference to it, paired (Newcombe).",
        *provenance([network], int(centre["images"])),
    ]
    return Data(str(centre["name"]), network[1].is_demo, frame, notes)


def centre_crop(frame: pd.DataFrame) -> pd.Series:
    """The baseline's row. One view has one answer, so that every level's is the same; softmax's is taken."""
    return frame[frame["curve"] == "CC"].sort_values("level", ascending=False).iloc[0]


def with_band(frame: pd.DataFrame, centre_top1: float) -> pd.DataFrame:
    """Adds ``low`` and ``high``: the centre crop's top-1 plus the paired interval of the gain, percent."""
    return frame.assign(low=centre_top1 + frame["gain_low"], high=centre_top1 + frame["gain_high"])


@style.styled
def draw(data: Data) -> Figure:
    figure, (axes,) = style.canvas(height=5.0)
    centre = centre_crop(data.frame)
    top1 = float(centre["top1"])
    frame = with_band(data.frame, top1)
    levels = distinct_levels(frame)
    handles: list[Artist] = []
    for name, (text, colour) in CURVES.items():
        drawn = frame[frame["curve"] == name]
        if drawn.empty:
            continue
        for level in reversed(levels if name != "ARC" else ["softmax"]):
            _curve(axes, drawn[drawn["level"] == level], level, colour)
        handles.append(Line2D([], [], color=colour, marker="o", markersize=4, label=text))
    axes.axhline(top1, color="black", linewidth=1.2, gid="CC")
    handles.append(Line2D([], [], color="black", linewidth=1.2, label="CC: centre crop"))
    handles += _others(axes, frame[(frame["curve"] == "other") & (frame["level"] == "softmax")])
    handles += [Line2D([], [], color="#444444", linestyle=LINES[level], label=text) for level, text in levels.items()]
    handles.append(Patch(color=style.BLUE, alpha=0.16, linewidth=0, label="95 % interval of nRC, softmax"))
    most = frame["views"].max()
    axes.set_xticks([n for n in (1, 2, 3, 5, 10, 15, 20, 30, 40, 60, 80, 100) if n <= most])
    axes.set_xlim(0.5, most + 0.5)
    axes.set_xlabel(style.label("crops"))
    axes.set_ylabel(style.label("top1", demo=data.demo))
    gain = axes.secondary_yaxis("right", functions=(partial(np.add, -top1), partial(np.add, top1)))
    gain.set_ylabel(style.label("gain"))
    return style.finish(figure, title=f"{data.name}: accuracy against crops", notes=data.notes, handles=handles)


def distinct_levels(frame: pd.DataFrame) -> dict[str, str]:
    """Level -> legend text, of the levels to draw. Behind a linear head features and logits average to the same."""
    by_level = {level: frame[frame["level"] == level].set_index("policy")["top1"] for level in LINES}
    there = {level: f"averaged {level}" for level in LINES if len(by_level[level])}
    if "feature" in there and "logit" in there and by_level["feature"].equals(by_level["logit"]):
        return {"softmax": there["softmax"], "logit": "averaged logit, feature (equal)"}
    return there


def _curve(axes: Axes, frame: pd.DataFrame, level: str, colour: str) -> None:
    frame = frame.sort_values("views")
    if frame.empty:
        return
    main = level == "softmax"
    axes.plot(
        frame["views"],
        frame["top1"],
        color=colour,
        linestyle=LINES[level],
        marker="o" if main else "",
        markersize=3.5,
        linewidth=1.8 if main else 1.4,
        alpha=1.0 if main else 0.75,
        gid=f"{frame['curve'].iloc[0]} {level}",
    )
    if main and colour == CURVES["RC"][1]:  # one band: they overlap, and are equally wide
        axes.fill_between(frame["views"], frame["low"], frame["high"], color=colour, alpha=0.16, linewidth=0)


def _others(axes: Axes, frame: pd.DataFrame) -> list[Artist]:
    """Policies that are on no curve, each a marked point with its interval; returns legend handles."""
    handles: list[Artist] = []
    for i, row in enumerate(frame.to_dict("records")):
        colour, marker = style.colour(3 + i), style.marker(1 + i)
        bar = [[row["top1"] - row["low"]], [row["high"] - row["top1"]]]
        axes.errorbar(
            [row["views"]], [row["top1"]], yerr=bar, color=colour, marker=marker, markersize=6, capsize=2.5,
            linewidth=1.1, zorder=5, gid=row["policy"],
        )  # fmt: skip
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=row["policy"]))
    return handles
