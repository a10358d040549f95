"""Accuracy against images per second and against forward passes: more crops of a small network, or a larger crop, dense
crops, early stopping, a fine-tuned or a larger network (the question of MID, Figure 8)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.alternatives import KINDS, of_runs, points
from analysis.runs import Inputs, MissingData, provenance

COSTS = {"images_per_sec": "images/s, end to end", "passes": "forward passes per image"}


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: as ``analysis.alternatives.points``."""

    demo: bool
    base: str
    frame: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture of all runs. Raises MissingData where there is nothing beside crops of one network at one size."""
    field = of_runs(inputs.runs)
    frame = points(field)
    if frame[list(COSTS)].isna().all().any():
        raise MissingData("needs images/s of crops and of an alternative: run without --no-throughput")
    base = field.base
    notes = [
        "Softmax averaged. Bars: Wilson's 95 % interval; smallest and largest round. "
        "Forward passes: pixels that the network sees, in crops of its own size; none for other networks.",
        *provenance([(base.run, base.setting)], len(field.names)),
    ]
    return {"": Data(base.setting.is_demo, base.name, frame, notes)}


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(1, 2, height=5.0, sharey=True)
    handles: list[Artist] = []
    for i, kind in enumerate(KINDS):
        own = data.frame[data.frame["kind"] == kind]
        if own.empty:
            continue
        for axes, cost in zip(panels, COSTS, strict=True):
            _draw_kind(axes, own.dropna(subset=[cost]).sort_values(cost), cost, i)
        handles.append(Line2D([], [], color=style.colour(i), marker=style.marker(i), linestyle="", label=kind))
    for axes, (cost, text) in zip(panels, COSTS.items(), strict=True):
        axes.set_xscale("log")
        style.plain_log_axis(axes.xaxis, style.nice_ticks(*axes.get_xlim()))
        axes.set_xlabel(text)
        axes.set_gid(cost)
    panels[0].set_ylabel(style.label("top1", demo=data.demo))
    return style.finish(figure, title="Crops, or what else costs as much", notes=data.notes, handles=handles, columns=3)


def _draw_kind(axes: Axes, own: pd.DataFrame, cost: str, i: int) -> None:
    up = [own["top1"] - own["top1_low"], own["top1_high"] - own["top1"]]
    across = None
    if cost == "images_per_sec":
        across = [own[cost] - own["rate_low"], own["rate_high"] - own[cost]]
    axes.errorbar(
        own[cost], own["top1"], xerr=across, yerr=up, color=style.colour(i), marker=style.marker(i), markersize=5,
        elinewidth=0.7, linestyle="", gid=KINDS[i],
    )  # fmt: skip
