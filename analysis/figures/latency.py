"""Latency of one image at a time, against the number of crops, and of each policy (bench.measure.latency)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.runs import Inputs, MissingData, display_name, endings, provenance
from analysis.timing_notes import latency_notes
from bench.records import Latency, Run, Setting

PERCENTILES = (50, 90, 99)
LOOK = {50: (style.BLUE, "o"), 90: (style.ORANGE, "s"), 99: (style.RED, "^")}  # percentile -> colour, marker


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: one row a policy: policy, crops (NaN but for nRC), p50, p90, p99 (ms; NaN where there were too few
    images for it)."""

    name: str
    frame: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each network whose latency was measured."""
    found = [(run, setting) for run in inputs.runs for setting in dict.fromkeys(one.setting for one in run.latencies)]
    if not found:
        raise MissingData("needs a run that measured latency: without --latency-queries 0, --no-throughput or torchrun")
    return {ending: _data(*network) for ending, network in zip(endings(found), found, strict=True)}


def _data(run: Run, setting: Setting) -> Data:
    own = [one for one in run.latencies if one.setting == setting]
    queries = sorted({len(one.latency_ms) for one in own})
    number = f"{queries[0]}" if len(queries) == 1 else f"{queries[0]} to {queries[-1]}"
    notes = [
        "One image at a time: read, decoded and resized, then all crops through the network in one batch, or in several"
        " where images stop early (~), until its class is on the host.",
        f"{number} images for each policy, of the same ones; a percentile is a latency that was measured.",
        *(f"{note[0].upper()}{note[1:]}." for note in latency_notes(own)),
        *provenance([(run, setting)]),
    ]
    return Data(display_name(setting), pd.DataFrame([_row(one) for one in own]), notes)


def _row(one: Latency) -> dict[str, Any]:
    return {"policy": one.policy, "crops": one.crops} | {f"p{p}": one.percentile(p) for p in PERCENTILES}


@style.styled
def draw(data: Data) -> Figure:
    figure, (left, right) = style.canvas(1, 2, height=4.8)
    curve = data.frame.dropna(subset=["crops"]).sort_values("crops")
    handles = []
    for percent in PERCENTILES:
        colour, marker = LOOK[percent]
        values = curve[f"p{percent}"]
        if values.notna().any():
            left.plot(curve["crops"], values, color=colour, marker=marker, markersize=4.5, gid=f"p{percent}")
        handles.append(Line2D([], [], color=colour, marker=marker, label=f"p{percent}"))
    if len(curve):
        left.set_xscale("log")
        style.plain_log_axis(left.xaxis, curve["crops"].tolist())
    left.set_ylim(bottom=0)
    left.set_xlabel(style.label("crops"))
    left.set_ylabel("latency of one image, ms")
    _policies(right, data.frame)
    return style.finish(figure, title=f"{data.name}: latency", notes=data.notes, handles=handles)


def _policies(axes: Axes, frame: pd.DataFrame) -> None:
    """A line for each policy, from p50 to the highest percentile there is; the slowest on top."""
    ordered = frame.sort_values("p50", kind="stable")
    for at, row in enumerate(ordered.to_dict("records")):
        known = {p: row[f"p{p}"] for p in PERCENTILES if pd.notna(row[f"p{p}"])}
        axes.plot(list(known.values()), [at] * len(known), color=style.GREY, linewidth=1)
        for percent, value in known.items():
            colour, marker = LOOK[percent]
            axes.plot(
                value, at, color=colour, marker=marker, markersize=5, linestyle="", gid=f"{row['policy']} p{percent}"
            )
    axes.set_yticks(range(len(ordered)), ordered["policy"])
    axes.set_xlim(left=0)
    axes.set_xlabel("latency of one image, ms")
