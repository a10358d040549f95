"""Accuracy against multiply-adds and images per second: single networks with their policies, and networks averaged."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.ensemble_scores import Ensemble, Field, Single, of_runs
from analysis.runs import Inputs, MissingData, is_shown, provenance
from analysis.stats import wilson
from analysis.text import name_text
from pipelines.crops import parse_policy

PANELS = ("gmacs", "images_per_sec")


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: a row for each network and policy, and each ensemble: kind (the network, or "2 networks averaged"),
    averaged (how many networks), policy, gmacs, images_per_sec (NaN where they are not known), top1, low, high."""

    demo: bool
    frame: pd.DataFrame
    panels: tuple[str, ...]  # of PANELS: those that ensembles have
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture of all runs. Raises MissingData where no ensemble has a cost."""
    return {"": data_of(of_runs(inputs.runs))}


def data_of(field: Field) -> Data:
    """Raises MissingData where no ensemble has a cost."""
    frame = points(field)
    panels = tuple(name for name in PANELS if frame.loc[frame["averaged"] > 1, name].notna().any())
    if not panels:
        raise MissingData("needs what ensembles cost: " + "; ".join(f"{c}: {w}" for c, w in field.why_no_cost.items()))
    notes = [
        "Mean of softmax scores, over crops and over networks. Bars: Wilson's 95 % interval. Costs of an ensemble are "
        "computed from its networks' own, one after the other. No ensemble was chosen: all are shown.",
        *provenance(field.networks, len(field.names)),
    ]
    return Data(field.networks[0][1].is_demo, frame, panels, notes)


def points(field: Field) -> pd.DataFrame:
    """``Data.frame``. Of curves only some numbers of crops, as in printed tables; stopped policies are left out."""
    singles = [one for one in field.singles if _is_shown(one.policy)]
    rows = [_row(one, one.network, 1) for one in singles]
    rows += [_row(one, f"{n} networks averaged", n) for one in field.ensembles for n in [len(one.members)]]
    return pd.DataFrame(rows).astype(dict.fromkeys(PANELS, "float64"))


def _is_shown(policy: str) -> bool:
    parsed = parse_policy(policy)
    return not parsed.suffix and is_shown(policy, parsed.n_views)


def _row(one: Single | Ensemble, kind: str, averaged: int) -> dict[str, object]:
    low, high = wilson(int(one.right.sum()), len(one.right))
    return {
        "kind": kind,
        "averaged": averaged,
        "policy": one.policy,
        "gmacs": one.costs.gmacs,
        "images_per_sec": one.costs.images_per_sec,
        "top1": 100 * float(one.right.mean()),
        "low": low,
        "high": high,
    }


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(1, len(data.panels), height=5.0, sharey=True)
    kinds = list(dict.fromkeys(data.frame["kind"]))
    for axes, cost in zip(panels, data.panels, strict=True):
        for i, kind in enumerate(kinds):
            _draw_kind(axes, data.frame[data.frame["kind"] == kind].dropna(subset=[cost]), cost, i)
        axes.set_xscale("log")
        style.plain_log_axis(axes.xaxis, style.nice_ticks(*axes.get_xlim()))
        axes.set_xlabel(style.label(cost))
        axes.set_gid(cost)
    panels[0].set_ylabel(style.label("top1", demo=data.demo))
    handles: list[Artist] = [
        Line2D([], [], linestyle="", color=style.colour(i), marker=_marker(i), label=name_text(kind))
        for i, kind in enumerate(kinds)
    ]
    title = "One network with more crops, or several networks averaged"
    return style.finish(figure, title=title, notes=data.notes, handles=handles, columns=4)


def _marker(i: int) -> str:
    """Another one for each kind that has the same colour."""
    return style.marker(i + i // len(style.COLOURS))


def _draw_kind(axes: Axes, own: pd.DataFrame, cost: str, i: int) -> None:
    up = [own["top1"] - own["low"], own["high"] - own["top1"]]
    axes.errorbar(
        own[cost], own["top1"], yerr=up, color=style.colour(i), marker=_marker(i), markersize=5, elinewidth=0.6,
        linestyle="", gid=str(i),
    )  # fmt: skip
