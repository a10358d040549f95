"""Top-1 of ResNet-50 against the test resolution, a line for each train resolution (FixRes Figures 5 and 8)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.published import load
from analysis.runs import Inputs, MissingData


@dataclass(frozen=True, slots=True)
class Data:
    """``panels``: heading -> frame of train_res, test_res, value."""

    title: str
    panels: dict[str, pd.DataFrame]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """Two published figures. Raises MissingData with runs: no run measures several resolutions of one network."""
    if inputs.runs:
        raise MissingData("draws published numbers only: use --published")
    five, nine = load("fixres_table5"), load("fixres_table9")
    halves = {
        "not adapted": five[five["adaptation"] == "none"],
        "classifier and batch norm fine-tuned": five[five["adaptation"] != "none"],
    }
    fixed_size = {"trained with random crops of a fixed size, not adapted": nine}
    return {
        "fixres5": Data("ResNet-50 at other resolutions (FixRes Figure 5)", halves, ["Published: FixRes Table 5."]),
        "fixres8": Data("ResNet-50 at other resolutions (FixRes Figure 8)", fixed_size, ["Published: FixRes Table 9."]),
    }


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(1, len(data.panels), height=4.6, sharey=True)
    resolutions = sorted({int(res) for frame in data.panels.values() for res in frame["train_res"]})
    handles = []
    for axes, (heading, frame) in zip(panels, data.panels.items(), strict=True):
        for train_res, colour, marker in zip(resolutions, style.COLOURS, style.MARKERS, strict=False):
            rows = frame[frame["train_res"] == train_res].sort_values("test_res")
            x, y = rows["test_res"].astype(int), rows["value"]
            (line,) = axes.plot(
                x, y, color=colour, marker=marker, markersize=5, markerfacecolor="white",
                label=f"trained at {train_res}", gid=f"{heading} {train_res}",
            )  # fmt: skip
            handles.append(line)
        axes.set_title(heading)
        axes.set_xlabel("test resolution, pixels")
        axes.set_xticks(sorted(set(frame["test_res"].astype(int))))
        axes.tick_params(axis="x", labelrotation=60)
    panels[0].set_ylabel(style.label("top1"))
    first = handles[: len(resolutions)]
    return style.finish(figure, title=data.title, notes=data.notes, handles=first, columns=len(first))
