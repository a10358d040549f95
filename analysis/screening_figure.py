"""What a search dropped, when and why: a table and a figure, one line for each network at each size."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.screening import Verdict
from analysis.text import write_csv

LEFT = "measured to the end"
NO_TIME = "final"  # the step at which only time is wanting
COLUMNS = ["setting", "outcome", "when", "images", "top1", "low", "high", "reason"]
WRAP = 62  # characters of a reason on one line


@dataclass(frozen=True, slots=True)
class Data:
    """``rows``: the best first."""

    rows: list[Verdict]
    demo: bool


def table(verdicts: Sequence[Verdict]) -> pd.DataFrame:
    """COLUMNS; top-1 in percent, of the better of the screened policies, with Wilson's 95 % interval."""
    rows = [
        {
            **{name: value for name, value in asdict(one).items() if name in COLUMNS},
            "setting": one.name,
            "outcome": LEFT if one.kept else "left out" if one.step == NO_TIME else "dropped",
            "when": one.step,
        }
        for one in ordered(verdicts)
    ]
    return pd.DataFrame(rows, columns=COLUMNS).round({"top1": 3, "low": 3, "high": 3})


def ordered(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return sorted(verdicts, key=lambda one: (not one.kept, -(one.top1 or 0)))


@style.styled
def draw(data: Data) -> Figure:
    """A point with its interval for each; to its right the reason why it was dropped."""
    figure, (axes,) = style.canvas(height=1.9 + 0.34 * len(data.rows))
    steps = list(dict.fromkeys([LEFT, *sorted({one.step for one in data.rows if not one.kept})]))
    colours = {step: style.colour(i) for i, step in enumerate(steps)}
    for y, one in enumerate(data.rows):
        if one.top1 is None or one.low is None or one.high is None:
            continue
        colour = colours[LEFT if one.kept else one.step]
        axes.errorbar(
            one.top1, y, xerr=[[one.top1 - one.low], [one.high - one.top1]], fmt="o", color=colour, gid=one.name
        )
    axes.set_yticks(range(len(data.rows)), [one.name.replace("--img-size ", "") for one in data.rows])
    axes.set_ylim(len(data.rows) - 0.4, -0.6)
    reasons = axes.secondary_yaxis("right")
    reasons.set_yticks(range(len(data.rows)), [textwrap.fill(one.reason, WRAP) for one in data.rows], fontsize=6.5)
    reasons.tick_params(length=0)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel(style.label("top1", demo=data.demo))
    handles: list[Artist] = [
        Line2D([], [], marker="o", linestyle="", color=colours[step], label=said_of(step)) for step in steps
    ]
    notes = [
        "Top-1 of the better of two screened policies, with Wilson's 95 % interval; those that were screened longer "
        "have more images. Dropped is what is far from a target, or what the paired test, corrected for the number of "
        "comparisons, shows to be worse."
    ]
    return style.finish(figure, title="What the search dropped, when and why", notes=notes, handles=handles, columns=4)


def said_of(step: str) -> str:
    """For the legend."""
    return {LEFT: LEFT, NO_TIME: "left out: no time"}.get(step, f"dropped: {step}")


def write_screening(folder: Path, verdicts: Sequence[Verdict], *, demo: bool) -> Path:
    """screening.csv and screening.png, written anew; the path of the latter."""
    write_csv(folder / "screening.csv", table(verdicts))
    return style.save(draw(Data(ordered(verdicts), demo)), folder / "screening.png")
