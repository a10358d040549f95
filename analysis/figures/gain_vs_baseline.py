"""Gain over the centre crop against the centre crop's accuracy, and against the number of parameters.

MID, Section V.B: "the performance gain is higher for smaller models than for the larger ones".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from analysis import style
from analysis.figures._gains import Points, Trend, points, scatter, trend, trend_line
from analysis.runs import Inputs


@dataclass(frozen=True, slots=True)
class Data:
    """The points and the published ones' trends: on accuracy, and on log10 of the parameter count in millions."""

    points: Points
    on_base: Trend | None
    on_params: Trend | None


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture of all networks; without runs of the published ones."""
    found = points(inputs.runs)
    gain = found.published["gain"].tolist()
    log_params = np.log10(found.published["params"] / 1e6).tolist()
    return {"": Data(found, trend(found.published["base"].tolist(), gain), trend(log_params, gain))}


@style.styled
def draw(data: Data) -> Figure:
    figure, (left, right) = style.canvas(1, 2, height=5.2, sharey=True)
    published = data.points.published
    handles = scatter(left, data.points, "base")
    scatter(right, data.points, "params", 1e-6)
    trend_line(left, data.on_base, published["base"].min(), published["base"].max(), "published")
    low, high = np.log10(published["params"] / 1e6).agg(["min", "max"])
    trend_line(right, data.on_params, low, high, "published", log=True)
    for axes, found in ((left, data.on_base), (right, data.on_params)):
        if found is not None:
            axes.set_title(f"published: {found.text}", fontsize=style.SMALL)
    right.set_xscale("log")
    style.plain_log_axis(right.xaxis, style.nice_ticks(*right.get_xlim()))
    right.set_ylabel("")
    left.set_xlabel(style.label("base"))
    right.set_xlabel(style.label("params"))
    title = "Gain of random crops against accuracy and size of the network"
    return style.finish(figure, title=title, notes=data.points.notes, handles=handles, columns=3)
