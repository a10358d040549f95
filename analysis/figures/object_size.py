"""Apparent size of objects at test time against training, and the areas of the crops (FixRes Figure 2, Equation 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import apparent_size as sizes
from analysis import style
from analysis.apparent_size import Row
from analysis.runs import Inputs, images, settings
from analysis.text import name_text

WINDOWS = 100_000
BINS = 50  # of the area's axis
ASPECTS = np.linspace(1, 3, 81)  # long side / short side


@dataclass(frozen=True, slots=True)
class Data:
    """``shown``: whose areas the left panel shows; ``rows``: all lines of the table, those of SHAPES last.

    ``mean_sigma`` [m]: by integration, for images of the aspects ASPECTS.
    """

    rows: list[Row]
    shown: list[Row]
    mean_sigma: np.ndarray
    S: int
    K_test: int
    K_train: int
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """From the images of a run or of ``--data``; without them for images of a few shapes, at the paper's sizes.

    A run's network counts as trained at its own K, with torchvision's RandomResizedCrop.
    """
    found = {(setting.S, setting.K) for setting in settings(inputs.runs) if setting.crop_mode == "center"}
    S, K = found.pop() if len(found) == 1 else (sizes.PAPER_S, sizes.PAPER_K)
    return {"": made_of(inputs, S, K, K)}


def made_of(inputs: Inputs, S: int, K_test: int, K_train: int) -> Data:
    """The data for these sizes. Raises MissingData where the images are no longer there."""
    rows = sizes.rows_of_shapes(S, K_test, K_train, windows=WINDOWS)
    shown = [one for one in rows if one.images in ("1:1", "4:3", "2:1")]
    origin = "Images of three shapes; centre crops of one shape cover one area."
    if inputs.runs or inputs.data:
        scan = images(inputs, inputs.runs[0] if inputs.runs else None)
        table = scan.table[["height", "width"]].to_numpy(np.int64)
        name = "demo data" if scan.is_demo else name_text(scan.root.name)
        shown = [sizes.row(name, table, S, K_test, K_train, windows=WINDOWS)]
        origin = f"{len(table):,} images of {'the generated DEMO DATA' if scan.is_demo else name}, sizes from headers."
        rows = shown + rows
    mean_sigma = np.array([sizes.fitting(float(aspect)).mean_sigma for aspect in ASPECTS])
    return Data(rows, shown, mean_sigma, S, K_test, K_train, [f"{origin} {words(rows, K_train)}", WHY])


WHY = (
    "Equation 5 takes every window that could be drawn; RandomResizedCrop draws again when one does not fit into the "
    "image, large ones most. At test time the short side becomes S, so that long images are enlarged more."
)


def words(rows: list[Row], K_train: int) -> str:
    """The numbers in a sentence."""
    square = next(row for row in rows if row.images == "1:1")
    sentence = f"Equation 5: {square.paper:.3f}. Drawn, square images: {square.sampled:.3f}"
    if rows[0] is not square:
        sentence += f"; {rows[0].images}: {rows[0].as_resized:.3f}"
    return f"{sentence}. Training crops of {K_train}, areas {sizes.AREA[0]} to {sizes.AREA[1]:g}."


@style.styled
def draw(data: Data) -> Figure:
    figure, (areas, ratios) = style.canvas(1, 2, height=4.8)
    edges = np.linspace(0, 1, BINS + 1).tolist()
    # The table's three shapes would hide each other if they were filled.
    alone = len(data.shown) == 1
    for i, row in enumerate(data.shown):
        weights = np.full(len(row.windows.train_area), 100 / len(row.windows.train_area))
        looks: dict[str, Any] = {"bins": edges, "weights": weights, "color": style.colour(i)}
        areas.hist(
            row.windows.train_area, histtype="stepfilled" if alone else "step", alpha=0.6 if alone else 1,
            gid=f"train {row.images}", **looks,
        )  # fmt: skip
        if alone:
            areas.hist(row.windows.test_area, **{**looks, "color": style.ORANGE}, alpha=0.7, gid=f"test {row.images}")
        else:
            areas.axvline(row.test_area, color=style.colour(i), linestyle="--", gid=f"test {row.images}")
    areas.set_xlim(0, 1)
    areas.set_xlabel("area of the crop / area of the image")
    areas.set_ylabel(f"share of crops, % for each {1 / BINS:g} of area")
    areas.set_title("what is cropped")

    scale = data.S / data.K_train
    ratios.axhline(data.rows[-1].paper, color=style.GREY, linestyle="--", gid="Equation 5")
    ratios.plot(ASPECTS, data.mean_sigma * scale, color=style.GREEN, gid="fitting")
    ratios.plot(ASPECTS, data.mean_sigma * scale * np.sqrt(ASPECTS), color=style.RED, gid="short side")
    shapes = [row for row in data.rows if row.images in sizes.SHAPES]
    aspect = [max(sizes.SHAPES[row.images]) / min(sizes.SHAPES[row.images]) for row in shapes]
    dots: dict[str, Any] = {"linestyle": "none", "markersize": 5, "markerfacecolor": "white"}
    ratios.plot(aspect, [row.sampled for row in shapes], color=style.GREEN, marker="o", gid="sampled", **dots)
    ratios.plot(aspect, [row.as_resized for row in shapes], color=style.RED, marker="s", gid="as resized", **dots)
    ratios.set_xlabel(style.label("aspect"))
    ratios.set_ylabel("object's apparent size, test / train")
    ratios.set_title(f"S = {data.S}, training crops of {data.K_train}")
    title = f"Objects look smaller at test time: crops of {data.K_test}"
    return style.finish(figure, title=title, notes=data.notes, handles=_legend(data), columns=3)


def _legend(data: Data) -> list[Line2D]:
    alone = len(data.shown) == 1
    colours = [(row.images, style.colour(i)) for i, row in enumerate(data.shown)]
    train = [Line2D([], [], color=colour, label=f"RandomResizedCrop, {name}") for name, colour in colours]
    test = [Line2D([], [], color=colour, linestyle="--", label=f"centre crop, {name}") for name, colour in colours]
    if alone:
        test = [Line2D([], [], color=style.ORANGE, linewidth=5, label=f"centre crop, {colours[0][0]}")]
    return [
        *train,
        *test,
        Line2D([], [], color=style.GREY, linestyle="--", label="Equation 5"),
        Line2D([], [], color=style.GREEN, marker="o", markerfacecolor="white", label="windows that fit (drawn: dots)"),
        Line2D([], [], color=style.RED, marker="s", markerfacecolor="white", label="and the short side resized to S"),
    ]
