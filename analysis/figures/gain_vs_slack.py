"""Gain over the centre crop against the slack 1 - K/S: more space for random windows, more gain? (MID, Section V.B.)

The rank correlation is over networks; networks of a family are not independent, so its p value is only descriptive.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.figure import Figure

from analysis import style
from analysis.figures._gains import Points, Trend, points, scatter, trend, trend_line
from analysis.runs import Inputs


@dataclass(frozen=True, slots=True)
class Data:
    """The points, the published ones' trend, and the measured ones' where there are four or more slacks."""

    points: Points
    published: Trend | None
    measured: Trend | None


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture of all networks; without runs of the published ones."""
    found = points(inputs.runs)
    both = [
        trend(f["slack"].tolist(), f["gain"].tolist()) if len(f) else None for f in (found.published, found.measured)
    ]
    return {"": Data(found, *both)}


@style.styled
def draw(data: Data) -> Figure:
    figure, (axes,) = style.canvas(height=5.2)
    handles = scatter(axes, data.points, "slack")
    low, high = data.points.published["slack"].min(), data.points.published["slack"].max()
    handles += trend_line(axes, data.published, low, high, "published")
    trends = {"published": data.published, "measured": data.measured}
    texts = [f"{words}: {found.text}" for words, found in trends.items() if found is not None]
    axes.set_title("\n".join(texts), fontsize=style.SMALL, loc="left")
    axes.set_xlabel(style.label("slack"))
    title = "Gain of random crops against the slack"
    return style.finish(figure, title=title, notes=data.points.notes, handles=handles, columns=3)
