"""Accuracy against what it costs: forward passes per image, and images per second beside it.

The curve is that of random crops; dense crops and policies that stop images early are points of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.ceilings import policy_rows, rate_rows
from analysis.runs import (
    SHOWN_COUNTS,
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    attempts,
    curve,
    display_name,
    endings,
    provenance,
    rows_of_network,
    scored_networks,
)
from pipelines.crops import parse_policy

KINDS = {"random crops": "o", "dense crops": "s", "stopped early": "^"}


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: policy, kind (of KINDS), forwards, top1 with low and high, images_per_sec with rate_low and rate_high
    (NaN where it was not timed)."""

    name: str
    demo: bool
    frame: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data | MissingData]:
    """One picture for each network that was scored with dense crops or early stopping."""
    networks = scored_networks(inputs.runs, beyond_centre=True)
    scores = accuracies(inputs.runs)
    names = endings(networks)
    return attempts(
        {name: partial(_data, one, rows_of_network(scores, one)) for name, one in zip(names, networks, strict=True)}
    )


def _data(network: NetworkRun, scores: pd.DataFrame) -> Data:
    run, setting = network
    softmax = scores[scores["level"] == "softmax"]
    softmax = softmax.assign(kind=[kind(policy) or "" for policy in softmax["policy"]])
    softmax = softmax[softmax["kind"] != ""]
    if set(softmax["kind"]) <= {"random crops"}:
        raise MissingData("needs dense crops or early stopping: run with --crops, without --no-cheap")
    timed = [t for t in run.throughputs if t.setting == setting]
    rates = {("CC" if row["crops"] == 1 else f"{row['crops']}RC"): row["rates"] for row in rate_rows(timed)}
    rates |= {row["policy"]: row["rates"] for row in policy_rows(timed)}
    frame = softmax[["policy", "kind", "forwards", "top1", "top1_low", "top1_high"]].reset_index(drop=True)
    rounds = [pd.Series(rates.get(policy, []), dtype=float) for policy in frame["policy"]]
    frame = frame.assign(
        images_per_sec=[one.median() for one in rounds],
        rate_low=[one.min() for one in rounds],
        rate_high=[one.max() for one in rounds],
    )
    notes = [
        "Averaged at the softmax level. Forward passes: the pixels that the network sees over those of one crop; of "
        "stopped policies the mean over images. Bars: Wilson's 95 % interval; smallest and largest round.",
        *provenance([network], int(softmax["images"].iloc[0])),
    ]
    return Data(display_name(setting), setting.is_demo, frame, notes)


def kind(policy: str) -> str | None:
    """Which of KINDS a policy is drawn as; None for others, and for crop counts that tables do not show."""
    on = curve(policy)
    if on in ("stopped", "dense"):
        return {"stopped": "stopped early", "dense": "dense crops"}[on]
    shown = on == "CC" or (on == "RC" and parse_policy(policy).n_views in SHOWN_COUNTS[1:])
    return "random crops" if shown else None


@style.styled
def draw(data: Data) -> Figure:
    timed = bool(data.frame["images_per_sec"].notna().any())
    figure, panels = style.canvas(1, 2 if timed else 1, height=5.2, sharey=True)
    others = _others(data.frame)
    _panel(panels[0], data.frame, "forwards", None, others)
    panels[0].set_xlabel(style.label("forwards"))
    panels[0].set_ylabel(style.label("top1", demo=data.demo))
    if timed:
        rows = data.frame.dropna(subset=["images_per_sec"])
        _panel(panels[1], rows, "images_per_sec", ("rate_low", "rate_high"), others)
        panels[1].set_xlabel(f"{style.label('images_per_sec')}, end to end")
    handles = [Line2D([], [], color=style.colour(0), marker=KINDS["random crops"], label="random crops")]
    handles += [
        Line2D([], [], color=colour, marker=KINDS[kind], linestyle="", label=f"{policy}, {kind}")
        for policy, kind, colour in others
    ]
    return style.finish(figure, title=f"What accuracy costs: {data.name}", notes=data.notes, handles=handles)


def _others(frame: pd.DataFrame) -> list[tuple[str, str, str]]:
    """policy, kind and colour of each point that is not on the curve. They are in the legend: beside the points, their
    names would be in each other's way."""
    rows = frame[frame["kind"] != "random crops"]
    return [
        (policy, kind, style.colour(i))
        for i, (policy, kind) in enumerate(zip(rows["policy"], rows["kind"], strict=True), start=1)
    ]


def _panel(
    axes: Axes, frame: pd.DataFrame, x: str, spread: tuple[str, str] | None, others: list[tuple[str, str, str]]
) -> None:
    curve_rows = frame[frame["kind"] == "random crops"].sort_values(x)
    _points(axes, curve_rows, x, spread, color=style.colour(0), marker=KINDS["random crops"], linestyle="-")
    for at, top1, policy in zip(curve_rows[x], curve_rows["top1"], curve_rows["policy"], strict=True):
        axes.annotate(
            policy, (at, top1), xytext=(4, -12), textcoords="offset points", fontsize=7.5, color=style.colour(0)
        )
    for policy, kind, colour in others:
        rows = frame[frame["policy"] == policy]
        _points(axes, rows, x, spread, color=colour, marker=KINDS[kind], linestyle="")
    axes.set_xscale("log")
    style.plain_log_axis(axes.xaxis, style.nice_ticks(*axes.get_xlim()))


def _points(axes: Axes, rows: pd.DataFrame, x: str, spread: tuple[str, str] | None, **look: str) -> None:
    up = [rows["top1"] - rows["top1_low"], rows["top1_high"] - rows["top1"]]
    across = None if spread is None else [rows[x] - rows[spread[0]], rows[spread[1]] - rows[x]]
    axes.errorbar(rows[x], rows["top1"], xerr=across, yerr=up, markersize=6, elinewidth=0.6, linewidth=1.3, **look)  # type: ignore[arg-type]
