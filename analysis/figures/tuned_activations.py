"""Pooled activations at each test resolution, before and after fine-tuning at it (FixRes, Figure 4).

multicrop-bench activations --checkpoint tuned/model.safetensors --train-size 96 --img-size 128 --out after
multicrop-bench figures before after       # folders of activations: of the network, and of what was tuned from it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.figures.activations import Curves, curves
from analysis.runs import Inputs, MissingData, experiment_folders


@dataclass(frozen=True, slots=True)
class Data:
    """``before``, ``after``: {K: shares 0..1 [m]} at ``points`` [m]. ``train``: those at ``train_K``, as it is."""

    points: np.ndarray
    train_K: int
    train: np.ndarray
    before: dict[int, np.ndarray]
    after: dict[int, np.ndarray]
    model: str
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each network with fine-tuned ones. Raises MissingData without any."""
    found = {ending: curves(folder) for ending, folder in experiment_folders(inputs, "activations").items()}
    out = {}
    for ending, base in found.items():
        tuned = [one for one in found.values() if one.tuned_from == base.weight_hash]
        if tuned and base.tuned_from is None and base.train_K in base.cdf:
            out[ending if len(found) > 2 else ""] = together(base, tuned)
    if not out:
        raise MissingData(
            "needs folders that multicrop-bench activations wrote of a network and of what was fine-tuned from it"
        )
    return out


def together(base: Curves, tuned: list[Curves]) -> Data:
    """The network as it is, and each fine-tuned one at the size at which it was tuned."""
    after = {one.tuned_at: one.at(one.tuned_at, base.points) for one in tuned if one.tuned_at in one.cdf}
    before = {K: base.cdf[K] for K in sorted(after) if K in base.cdf}
    gaps = [f"{K}: {distance(before[K], base)} before, {distance(after[K], base)} after" for K in before]
    notes = [
        f"Largest distance of the curve from that at {base.train_K}, points of percent: {'; '.join(gaps)}.",
        "Right: each network tuned at the size at which it is tested. " + base.origin,
    ]
    return Data(base.points, base.train_K, base.cdf[base.train_K], before, after, base.model, notes)


def distance(shares: np.ndarray, base: Curves) -> str:
    return f"{100 * np.nanmax(np.abs(shares - base.cdf[base.train_K])):.1f}"


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(1, 2, height=4.6, sharey=True)
    handles = [Line2D([], [], color="black", linewidth=2.4, label=f"crops of {data.train_K} (as trained)")]
    sizes = sorted(data.after)
    for axes, side, name in zip(panels, (data.before, data.after), ("before", "after"), strict=True):
        axes.plot(data.points, 100 * data.train, color="black", linewidth=2.4, gid="as trained")
        for i, K in enumerate(sizes):
            looks: dict[str, Any] = {"color": style.colour(i), "linewidth": 1.2}
            if K in side:
                axes.plot(data.points, 100 * side[K], gid=f"{name} {K}", **looks)
            if name == "after":
                handles.append(Line2D([], [], label=f"crops of {K}", **looks))
        axes.set_title(f"{name} fine-tuning")
        axes.set_xlabel("pooled activation")
    panels[0].set_ylabel("values at or below it, %")
    title = f"{data.model}: activations before and after fine-tuning"
    return style.finish(figure, title=title, notes=data.notes, handles=handles, columns=4)
