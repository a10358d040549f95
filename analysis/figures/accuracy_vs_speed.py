"""Accuracy against images per second, over networks, crop counts and machines, with the Pareto front.

Each line is one network on one machine; along it the number of crops grows from one (the centre crop) to the right end
of the run's ``--crops``. The front joins the points to which no other is superior in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.ceilings import rate_rows
from analysis.runs import (
    NETWORK_FIELDS,
    Inputs,
    MissingData,
    accuracies,
    line_names,
    provenance,
    require_all_comparable,
    rows_of_network,
    scored_networks,
    timed_networks,
)
from bench.records import Run, Setting

# Speed may be compared over machines, backends and number formats; the images and their windows must be the same.
VARYING = (
    *NETWORK_FIELDS,
    "backend",
    "device",
    "amp_dtype",
    "channels_last",
    "torchcompile",
    "tf32",
    "cudnn_benchmark",
)


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: line (its name), crops, images_per_sec, top1, each with low and high, and front (bool)."""

    demo: bool
    frame: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture of all networks with accuracy and speed in one run."""
    timed = timed_networks(inputs.runs)
    found = [network for network in scored_networks(inputs.runs) if network in timed]
    if not found:
        raise MissingData("needs accuracy and throughput of one network in one run")
    require_all_comparable(found, VARYING)
    scores = accuracies(inputs.runs)
    names = line_names(found)
    lines = [
        points(rows_of_network(scores, network), *network).assign(line=name)
        for network, name in zip(found, names, strict=True)
    ]
    frame = pd.concat(lines, ignore_index=True)
    if frame.empty:
        raise MissingData(
            "needs accuracy and end-to-end throughput at the same crop counts: run with --crops 1,2,5,10,20"
        )
    frame["front"] = on_front(frame)
    notes = [
        "1: the centre crop; n: nRC, softmax averaged. Bars: Wilson's 95 % interval; smallest and largest round.",
        *provenance(found, int(scores["images"].iloc[0])),
    ]
    return {"": Data(found[0][1].is_demo, frame, notes)}


def points(scores: pd.DataFrame, run: Run, setting: Setting) -> pd.DataFrame:
    """One network's crop counts that have both an accuracy and a rate."""
    softmax = scores[scores["level"] == "softmax"].set_index("policy")
    rows = []
    for row in rate_rows([t for t in run.throughputs if t.setting == setting]):
        n = row["crops"]
        policy = "CC" if n == 1 else f"{n}RC"
        if policy not in softmax.index:
            continue
        score = softmax.loc[policy]
        rows.append(
            {
                "crops": n,
                "images_per_sec": row["images_per_sec"],
                "rate_low": min(row["rates"]),
                "rate_high": max(row["rates"]),
                "top1": score["top1"],
                "top1_low": score["top1_low"],
                "top1_high": score["top1_high"],
            }
        )
    return pd.DataFrame(rows)


def on_front(frame: pd.DataFrame) -> list[bool]:
    """Which points no other point beats: none is at least as fast and as accurate, and better in one of the two."""
    pairs = list(zip(frame["images_per_sec"], frame["top1"], strict=True))
    return [
        not any(rate >= own_rate and top1 >= own_top1 and (rate, top1) != (own_rate, own_top1) for rate, top1 in pairs)
        for own_rate, own_top1 in pairs
    ]


@style.styled
def draw(data: Data) -> Figure:
    figure, (axes,) = style.canvas(height=5.4)
    handles: list[Artist] = []
    front = data.frame[data.frame["front"]].sort_values("images_per_sec")
    axes.plot(front["images_per_sec"], front["top1"], color=style.GREY, linewidth=6, alpha=0.45, zorder=1, gid="front")
    lines = data.frame.groupby("line", sort=False)
    for i, (name, frame) in enumerate(lines):
        colour, marker = style.colour(i), style.marker(i)
        frame = frame.sort_values("crops")
        across = [frame["images_per_sec"] - frame["rate_low"], frame["rate_high"] - frame["images_per_sec"]]
        up = [frame["top1"] - frame["top1_low"], frame["top1_high"] - frame["top1"]]
        axes.errorbar(
            frame["images_per_sec"], frame["top1"], xerr=across, yerr=up, color=colour, marker=marker, markersize=5,
            elinewidth=0.7, linewidth=1.4, gid=str(name),
        )  # fmt: skip
        for rate, top1, n in zip(frame["images_per_sec"], frame["top1"], frame["crops"], strict=True):
            axes.annotate(str(n), (rate, top1), xytext=(4, 4), textcoords="offset points", fontsize=8, color=colour)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=5, label=str(name)))
    handles.append(Line2D([], [], color=style.GREY, linewidth=6, alpha=0.45, label="Pareto front"))
    axes.set_xscale("log")
    style.plain_log_axis(axes.xaxis, style.nice_ticks(*axes.get_xlim()))
    axes.set_xlabel(f"{style.label('images_per_sec')}, end to end (numbers: crops per image)")
    axes.set_ylabel(style.label("top1", demo=data.demo))
    return style.finish(figure, title="Accuracy against speed", notes=data.notes, handles=handles, columns=3)
