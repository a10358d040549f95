"""Accuracy against the number of crops for the members of a family, with and without the centre (MID Figures 3, 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.runs import (
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    attempts,
    line_names,
    provenance,
    published_rows,
    require_all_comparable,
    rows_of_network,
    scored_networks,
)
from pipelines.crops import parse_policy

MOST_MEMBERS = len(style.COLOURS)
LINES = {"RC": "-", "CC+RC": "--"}


@dataclass(frozen=True, slots=True)
class Member:
    """One network: rows of ``analysis.runs.accuracies`` at softmax, and the paper's points (n_views, top1, gain)."""

    name: str
    frame: pd.DataFrame
    published: pd.DataFrame


@dataclass(frozen=True, slots=True)
class Data:
    """The networks of one picture."""

    title: str
    demo: bool
    members: list[Member]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data | MissingData]:
    """One picture for each family with several networks in the runs; the rest together, where they are several."""
    found = scored_networks(inputs.runs, beyond_centre=True)
    groups: dict[str, list[NetworkRun]] = {}
    for network in found:
        groups.setdefault(network[1].family or "", []).append(network)
    single = [network for family, own in groups.items() if len(own) == 1 or not family for network in own]
    by_name = {family: own for family, own in groups.items() if family and len(own) > 1}
    if len(single) > 1:
        by_name["networks"] = single
    if not by_name:
        raise MissingData("needs several networks: run with --variants all, or give several runs on the same images")
    frame = accuracies(inputs.runs)
    return attempts({name: partial(_data, name, own, frame) for name, own in by_name.items()})


def _data(name: str, own: list[NetworkRun], frame: pd.DataFrame) -> Data:
    require_all_comparable(own)
    if len(own) > MOST_MEMBERS:
        raise MissingData(f"{len(own)} networks are too many for one picture of {name}: give fewer runs")
    members = [
        member(rows_of_network(frame, network), network, text)
        for network, text in zip(own, line_names(own), strict=True)
    ]
    images = int(members[0].frame["images"].iloc[0])
    notes = ["Averaged at softmax. Right: the difference to the same network's centre crop, with its paired 95 % band."]
    if any(len(one.published) for one in members):
        notes[0] += " Hollow diamonds: published (MID)."
    title = f"Accuracy against crops: {'all networks' if name == 'networks' else name}"
    return Data(title, own[0][1].is_demo, members, notes + provenance(own, images))


def member(frame: pd.DataFrame, network: NetworkRun, name: str) -> Member:
    """One network's curves at softmax, with MID's own points on them."""
    rows = published_rows(network[1])
    rows = rows[rows["policy"].isin(["CC", "10RC", "20RC"]) & rows["level"].isin(["none", "softmax"])]
    centre = rows.loc[rows["policy"] == "CC", "value"]
    published = pd.DataFrame(
        {
            "n_views": [parse_policy(policy).n_views for policy in rows["policy"]],
            "top1": rows["value"].to_numpy(),
            "gain": rows["value"].to_numpy() - (centre.iloc[0] if len(centre) else 0.0),
        }
    )
    return Member(name, frame[frame["level"] == "softmax"].reset_index(drop=True), published)


@style.styled
def draw(data: Data) -> Figure:
    figure, (left, right) = style.canvas(1, 2, height=5.2)
    handles: list[Artist] = []
    for one, colour in zip(data.members, style.COLOURS, strict=False):
        _member(left, right, one, colour)
        handles.append(Line2D([], [], color=colour, label=one.name))
    words: Sequence[tuple[str, str]] = (("-", "nRC"), ("--", "CC+(n−1)RC"), (":", "CC"))
    handles += [Line2D([], [], color="#444444", linestyle=line, label=word) for line, word in words]  # type: ignore[arg-type]
    right.axhline(0, color="black", linewidth=0.8)
    for axes in (left, right):
        axes.set_xlabel(style.label("crops"))
    left.set_ylabel(style.label("top1", demo=data.demo))
    right.set_ylabel(style.label("gain"))
    return style.finish(figure, title=data.title, notes=data.notes, handles=handles, columns=4)


def _member(left: Axes, right: Axes, one: Member, colour: str) -> None:
    frame = one.frame.sort_values("n_views")
    centre = frame.loc[frame["curve"] == "CC", "top1"].iloc[0]
    left.axhline(centre, color=colour, linestyle=":", linewidth=1.1, gid=f"{one.name} CC")
    for name, line in LINES.items():
        rows = frame[frame["curve"] == name]
        for axes, column in ((left, "top1"), (right, "gain")):
            axes.plot(rows["n_views"], rows[column], color=colour, linestyle=line, gid=f"{one.name} {name} {column}")
    rows = frame[frame["curve"] == "RC"]
    right.fill_between(rows["n_views"], rows["gain_low"], rows["gain_high"], color=colour, alpha=0.07, linewidth=0)
    for axes, column in ((left, "top1"), (right, "gain")):
        axes.plot(
            one.published["n_views"], one.published[column], linestyle="", marker="D", markersize=6,
            markerfacecolor="none", markeredgecolor=colour, gid=f"{one.name} published {column}",
        )  # fmt: skip
