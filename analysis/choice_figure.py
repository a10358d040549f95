"""The figure beside a recipe: every setting that was considered, with its interval, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.candidates import Candidates
from analysis.stats import wilson

# What becomes of a setting, in the order of drawing: the chosen one lies on top.
MISSED, DROPPED, TIE, BETTER, CHOSEN = OUTCOMES = (
    "misses a target", "worse, or slower", "tie", "better on the reporting images", "chosen",
)  # fmt: skip
SHADES = {MISSED: style.GREY, DROPPED: style.colour(1), TIE: style.colour(0), BETTER: style.colour(3)}
NUMBERED = 9  # settings on the front, at most
MANY = 300  # settings: of more, what is out of the question has no bars
SPEED, PASSES = "images per second, end to end", "forward passes per image"


@dataclass(frozen=True, slots=True)
class Data:
    """``cost`` [k] on the axis ``cost_label``, ``top1`` [k] on all images with its 95 % interval, ``outcomes`` [k], and
    which settings no other beats in both, bool [k]."""

    demo: bool
    cost: np.ndarray
    cost_label: str
    top1: np.ndarray
    low: np.ndarray
    high: np.ndarray
    outcomes: list[str]
    front: np.ndarray
    images: int
    names: list[str]


def data_of(found: Candidates, outcomes: Sequence[str]) -> Data:
    """Against images per second, of those that were timed; where none was, against forward passes."""
    timed = [one.images_per_sec is not None for one in found.found]
    shown = [i for i, is_timed in enumerate(timed) if is_timed] or list(range(len(timed)))
    settings = [found.found[i] for i in shown]
    cost = np.array([one.images_per_sec or one.forwards for one in settings])
    top1 = np.array([100 * one.right.mean() for one in settings])
    intervals = np.array([wilson(int(one.right.sum()), len(one.right)) for one in settings])
    gain = cost if any(timed) else -cost
    at_least, above = gain[:, None] >= gain, top1[:, None] >= top1
    better = at_least & above & ((gain[:, None] > gain) | (top1[:, None] > top1))  # [j, i]: j beats i
    return Data(
        settings[0].setting.is_demo,
        cost,
        SPEED if any(timed) else PASSES,
        top1,
        intervals[:, 0],
        intervals[:, 1],
        [outcomes[i] for i in shown],
        np.array(~better.any(axis=0)),
        len(found.names),
        [one.name for one in settings],
    )


@style.styled
def draw(data: Data) -> Figure:
    """The Pareto front is a line of steps with the intervals of its settings as a band, its settings numbered; each
    outcome has its colour, the chosen setting a star. Among many settings few have a bar."""
    figure, (axes,) = style.canvas(height=5.8)
    handles: list[Artist] = []
    _draw_front(axes, data)
    for outcome in OUTCOMES:
        own = np.array([one == outcome for one in data.outcomes])
        if not own.any():
            continue
        look: dict[str, Any] = {"color": SHADES.get(outcome, "black"), "marker": "*" if outcome == CHOSEN else "o"}
        size = 13 if outcome == CHOSEN else 4
        axes.plot(data.cost[own], data.top1[own], linestyle="", markersize=size, gid=outcome, **look)
        others = len(data.cost) <= MANY or outcome not in (MISSED, DROPPED)
        barred = own & (data.front | (highest_at_its_cost(data) & others))
        up = [data.top1[barred] - data.low[barred], data.high[barred] - data.top1[barred]]
        axes.errorbar(data.cost[barred], data.top1[barred], yerr=up, fmt="none", elinewidth=0.8, ecolor=look["color"])
        handles.append(Line2D([], [], linestyle="", markersize=size, label=outcome, **look))
    handles.append(Line2D([], [], color=style.GREY, linewidth=2, label="Pareto front, its intervals"))
    axes.set_xscale("log")
    style.plain_log_axis(axes.xaxis, style.nice_ticks(*axes.get_xlim()))
    axes.set_xlabel(data.cost_label)
    axes.set_ylabel(style.label("top1", demo=data.demo))
    numbered = [f"{number} {data.names[i]}" for number, i in enumerate(front_of(data), 1)]
    more = f"; and {len(numbered) - NUMBERED} more" if len(numbered) > NUMBERED else ""
    notes = [
        f"Pareto front: {'; '.join(numbered[:NUMBERED])}{more}.",
        f"Top-1 on all {data.images:,} images, those that chose among them: points on the front look better than they "
        "are. Bars, of the best at each cost, and band: Wilson's 95 % interval. recipe.json has the chosen setting's "
        "top-1 on images that did not choose.",
    ]
    return style.finish(figure, title="What was chosen, and from what", notes=notes, handles=handles, columns=4)


def front_of(data: Data) -> np.ndarray:
    """Indices of the front, by cost; one of equals."""
    own = np.flatnonzero(data.front)
    _, first = np.unique(data.cost[own], return_index=True)
    return own[first]


def highest_at_its_cost(data: Data) -> np.ndarray:
    """bool [k]."""
    best: dict[float, int] = {}
    for i in np.argsort(-data.top1, kind="stable"):
        best.setdefault(float(data.cost[i]), int(i))
    return np.isin(np.arange(len(data.cost)), list(best.values()))


def _draw_front(axes: Axes, data: Data) -> None:
    front = front_of(data)
    # What can be had at a cost in between: the faster setting, or that of fewer passes.
    where: Any = "pre" if data.cost_label == SPEED else "post"
    cost = data.cost[front]
    axes.fill_between(cost, data.low[front], data.high[front], step=where, color=style.GREY, alpha=0.15, linewidth=0)
    axes.step(cost, data.top1[front], where=where, color=style.GREY, linewidth=2, zorder=1, gid="front")
    for number, i in enumerate(front[:NUMBERED], 1):
        axes.annotate(
            str(number),
            (data.cost[i], data.high[i]),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )


def draw_choice(found: Candidates, outcomes: Sequence[str], path: Path) -> Path:
    """Write the figure as PNG; return its absolute path."""
    return style.save(draw(data_of(found, outcomes)), path).resolve()
