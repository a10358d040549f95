"""Distribution of the longer side after resizing the shorter one to S (MID Figure 4): what the centre crop leaves."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from analysis import style
from analysis.runs import Inputs, images, settings
from analysis.text import name_text
from pipelines.crops import resized_sizes
from pipelines.inputspec import InputSpec

PAPER_S = 256  # MID Figure 4
BINS = 60


@dataclass(frozen=True, slots=True)
class Data:
    """``sides``: int64 [b], pixels after resizing to ``S``; ``K`` the crop's side, where a run gives one."""

    sides: np.ndarray
    S: int
    K: int | None
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """From the headers of the run's images, or of ``--data``; S is the run's, or the paper's 256."""
    found = images(inputs, inputs.runs[0] if inputs.runs else None)
    sizes = {(setting.S, setting.K) for setting in settings(inputs.runs) if setting.crop_mode == "center"}
    S, K = sizes.pop() if len(sizes) == 1 else (PAPER_S, None)
    sides = longer_sides(found.table[["height", "width"]].to_numpy(np.int64), S)
    what = "the generated DEMO DATA" if found.is_demo else name_text(found.root.name)
    origin = f"{len(sides):,} images of {what}, sizes from their headers, shorter side resized to {S} pixels."
    return {"": Data(sides, S, K, [f"{origin} {words(sides, S)}"])}


def longer_sides(sizes: np.ndarray, S: int) -> np.ndarray:
    """int64 [b] from stored height and width [b, 2]: torchvision's rule, as the crops are planned."""
    return resized_sizes(sizes, InputSpec(S, S)).max(axis=1)


def words(sides: np.ndarray, S: int) -> str:
    """The distribution in a sentence."""
    square, long = (100 * float(np.mean(mask)) for mask in (sides <= 1.05 * S, sides > 1.5 * S))
    middle = np.median(sides)
    return (
        f"Median {middle:.0f}; nearly square (up to {1.05 * S:.0f}): {square:.0f} %; above {1.5 * S:.0f}: {long:.0f} %."
    )


@style.styled
def draw(data: Data) -> Figure:
    figure, (axes,) = style.canvas(height=4.4)
    top = max(float(np.quantile(data.sides, 0.995)), data.S * 1.2)
    axes.hist(
        np.minimum(data.sides, top), bins=np.linspace(data.S, top, BINS + 1).tolist(), color=style.BLUE, gid="sides"
    )
    axes.set_yscale("log")
    axes.set_xlim(data.S - 0.02 * (top - data.S), top)
    style.plain_log_axis(axes.yaxis)
    axes.set_xlabel(f"{style.label('longer_side')} (the last bar holds all above {top:.0f})")
    axes.set_ylabel(style.label("images"))
    ratio = axes.secondary_xaxis("top", functions=(partial(np.multiply, 1 / data.S), partial(np.multiply, data.S)))
    ratio.set_xlabel(style.label("aspect"))
    crop = f"; crops of {data.K}" if data.K else ""
    title = f"How much longer images are: shorter side {data.S}{crop}"
    return style.finish(figure, title=title, notes=data.notes)
