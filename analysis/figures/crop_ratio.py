"""Accuracy and gain against the crop ratio K/S, measured: one network, one K, several S.

The papers compare networks whose ratios differ along with everything else; here nothing else differs.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.runs import (
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    display_name,
    endings,
    provenance,
    require_all_comparable,
    rows_of_network,
    scored_networks,
)
from bench.records import SPEED_FIELDS

SHOWN = {"CC": ("black", "o"), "2RC": (style.SKY, "s"), "5RC": (style.GREEN, "D"), "10RC": (style.ORANGE, "^"),
         "20RC": (style.BLUE, "v")}  # fmt: skip
VARYING = ("S", *SPEED_FIELDS)


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: crop_ratio, policy and the columns of ``analysis.runs.accuracies``, at softmax."""

    name: str
    demo: bool
    frame: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each network that was scored at several S with one K."""
    groups: dict[tuple, list[NetworkRun]] = {}
    for network in scored_networks(inputs.runs, beyond_centre=True):
        setting = network[1]
        groups.setdefault((setting.weight_hash, setting.model, setting.K, setting.data_hash), []).append(network)
    several = [own for own in groups.values() if len({setting.S for _, setting in own}) > 1]
    if not several:
        raise MissingData("needs one network at several S: run with --crop-pct 0.7,0.8,0.875,0.95,1.0")
    frame = accuracies(inputs.runs)
    names = endings([own[0] for own in several])
    return {name: _data(own, frame) for name, own in zip(names, several, strict=True)}


def _data(own: list[NetworkRun], frame: pd.DataFrame) -> Data:
    require_all_comparable(own, VARYING)
    rows = ratios(frame, own)
    if rows["policy"].nunique() < 2:
        raise MissingData(f"needs one of {', '.join(list(SHOWN)[1:])}: run with --crops 1,2,5,10,20")
    sizes = ", ".join(str(s) for s in sorted({setting.S for _, setting in own}))
    notes = [
        f"K = {own[0][1].K} from S = {sizes} pixels, softmax averaged. Left: Wilson's 95 % interval. Right: the paired "
        "difference to the centre crop at the same S, 95 % (Newcombe).",
        *provenance(own, int(rows["images"].iloc[0])),
    ]
    return Data(display_name(own[0][1]), own[0][1].is_demo, rows, notes)


def ratios(frame: pd.DataFrame, own: list[NetworkRun]) -> pd.DataFrame:
    """The shown policies of each S, with ``crop_ratio``, in order of it."""
    tables = [rows_of_network(frame, network).assign(crop_ratio=network[1].K / network[1].S) for network in own]
    rows = pd.concat(tables, ignore_index=True)
    rows = rows[(rows["level"] == "softmax") & rows["policy"].isin(list(SHOWN))]
    return rows.sort_values("crop_ratio").reset_index(drop=True)


@style.styled
def draw(data: Data) -> Figure:
    figure, (left, right) = style.canvas(1, 2, height=4.8)
    handles: list[Artist] = []
    there = [policy for policy in SHOWN if policy in set(data.frame["policy"])]
    for i, policy in enumerate(there):
        colour, marker = SHOWN[policy]
        frame = data.frame[data.frame["policy"] == policy]
        x = frame["crop_ratio"] + 0.0012 * (i - (len(there) - 1) / 2)  # bars side by side
        for axes, y, low, high in ((left, "top1", "top1_low", "top1_high"), (right, "gain", "gain_low", "gain_high")):
            if axes is right and policy == "CC":
                continue
            bars = [frame[y] - frame[low], frame[high] - frame[y]]
            axes.errorbar(
                x, frame[y], yerr=bars, color=colour, marker=marker, markersize=4.5, capsize=2, elinewidth=0.8,
                gid=f"{policy} {y}",
            )  # fmt: skip
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=4.5, label=policy))
    right.axhline(0, color="black", linewidth=0.8)
    left.set_ylabel(style.label("top1", demo=data.demo))
    right.set_ylabel(style.label("gain"))
    for axes in (left, right):
        axes.set_xlabel(style.label("crop_ratio"))
    title = f"{data.name}: accuracy and gain against the crop ratio"
    return style.finish(figure, title=title, notes=data.notes, handles=handles, columns=len(handles))
