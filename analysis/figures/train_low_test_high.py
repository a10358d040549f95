"""Top-1 against the test resolution, a line for each train resolution: FixRes Figures 5 and 8, and the same in small.

    multicrop-bench figures DIR        # a folder that multicrop-bench train-low-test-high wrote

Above what the paper printed (Tables 5 and 9, ResNet-50 on ImageNet), below what a demo network did on the demo data:
left as trained, in the middle its last layers fine-tuned at the test resolution, right trained without
RandomResizedCrop and not fine-tuned. The scales differ and are not to be compared; what is, is where each line is
highest. Filled marks: tested as trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.experiments import read_trained
from analysis.published import load
from analysis.runs import Inputs, experiment_folders
from analysis.text import name_text
from pipelines.schemas import DamagedFile

RESIZED, FIXED = (
    "RandomResizedCrop",
    "random crop of a fixed size",
)  # as multicrop-bench train-low-test-high writes them
HEADINGS = ("as trained", "fine-tuned at the test size", "trained with fixed-size crops")


@dataclass(frozen=True, slots=True)
class Data:
    """``published``, ``ours``: a frame for each of HEADINGS, with train_res, test_res, top1 (percent) and, ours, its
    interval top1_low, top1_high."""

    title: str
    published: tuple[pd.DataFrame, ...]
    ours: tuple[pd.DataFrame, ...]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each folder of this experiment. Raises MissingData without any."""
    folders = experiment_folders(inputs, "train_low_test_high")
    return {ending: read(folder) for ending, folder in folders.items()}


def read(folder: Path) -> Data:
    """Raises DamagedFile, naming the file, for a folder that multicrop-bench train-low-test-high did not finish."""
    try:
        frame, info = read_trained(folder)
    except DamagedFile as error:
        raise DamagedFile(f"{folder} is not a finished run of multicrop-bench train-low-test-high: {error}") from error
    resized, fixed = frame[frame["crop"] == RESIZED], frame[frame["crop"] == FIXED]
    ours = (
        resized[resized["adaptation"] == "none"],
        resized[resized["adaptation"] != "none"],
        fixed[fixed["adaptation"] == "none"],
    )
    settings = info["settings"]
    environment = info["environment"]
    notes = [
        "Above: FixRes Tables 5 and 9, ResNet-50 on ImageNet. Below: "
        f"{settings['family']} demo network on the generated DEMO DATA (says nothing about ImageNet), "
        f"{int(frame['images'].iloc[0]):,} test images, bars: Wilson 95 % intervals. Filled marks: tested as trained.",
        f"Left and middle trained with RandomResizedCrop, regions from {settings['min_area']:g} of the image on "
        "(paper: 0.08), right with random crops of a fixed size.",
        f"Trained on {settings['images']:,} images for {settings['epochs']} epochs, fine-tuned on "
        f"{min(settings['adapt_images'], settings['images']):,} for {settings['adapt_epochs']}; centre crops; "
        f"seed {settings['seed']}; {name_text(environment['cpu'] or 'unknown CPU')}, "
        f"torch {environment['packages'].get('torch')}.",
    ]
    return Data("Train low, test high: published, and in small", published(), ours, notes)


def published() -> tuple[pd.DataFrame, ...]:
    """FixRes Table 5, left and right, and Table 9."""
    five, nine = (load(name).rename(columns={"value": "top1"}) for name in ("fixres_table5", "fixres_table9"))
    return five[five["adaptation"] == "none"], five[five["adaptation"] != "none"], nine


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(2, 3, height=7.2, width=8.3, sharey="row")
    handles: list[Line2D] = []
    for row, (frames, demo) in enumerate(((data.published, False), (data.ours, True))):
        resolutions = sorted({int(res) for frame in frames for res in frame["train_res"]})
        colours = dict(zip(resolutions, style.COLOURS, strict=False))
        for axes, frame, heading in zip(panels[3 * row : 3 * row + 3], frames, HEADINGS, strict=True):
            for train_res, lines in frame.groupby("train_res"):
                _line(axes, lines.sort_values("test_res"), int(str(train_res)), colours[int(str(train_res))], demo)
            axes.set_title(heading)
            axes.set_xlabel("test resolution, pixels")
            axes.set_xticks(sorted(set(frame["test_res"].astype(int))))
            axes.tick_params(axis="x", labelrotation=60)
        panels[3 * row].set_ylabel(style.label("top1", demo=demo))
        source = "demo" if demo else "published"
        handles += [
            Line2D([], [], color=colours[r], marker="o", label=f"{source}, trained at {r}") for r in resolutions
        ]
    return style.finish(figure, title=data.title, notes=data.notes, handles=handles, columns=4)


def _line(axes: Axes, frame: pd.DataFrame, train_res: int, colour: str, demo: bool) -> None:
    x, y = frame["test_res"].astype(int), frame["top1"]
    axes.plot(
        x, y, color=colour, marker="o", markersize=4, markerfacecolor="white",
        gid=f"{'demo' if demo else 'published'} {train_res}",
    )  # fmt: skip
    own = frame[x == train_res]
    axes.plot(own["test_res"].astype(int), own["top1"], color=colour, marker="o", markersize=7, linestyle="")
    if demo:
        bars = [y - frame["top1_low"], frame["top1_high"] - y]
        axes.errorbar(x, y, yerr=bars, color=colour, linestyle="", linewidth=0.8, alpha=0.6)
