"""How every figure looks: words for the axes, colours, sizes, the small print, and how a figure becomes a PNG.

Figures are about 8 inches wide at 150 dots per inch: a README shows them at two thirds, and 10 points stay readable.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from pipelines.files import whole_file

T = TypeVar("T")

# seaborn's "colorblind" palette, its values and not the dependency.
BLUE, ORANGE, GREEN, RED, PURPLE, BROWN, PINK, GREY, YELLOW, SKY = (
    "#0173B2", "#DE8F05", "#029E73", "#D55E00", "#CC78BC", "#CA9161", "#FBAFE4", "#949494", "#ECE133", "#56B4E9",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, BROWN, SKY, RED, PINK, GREY, YELLOW)
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "h", "<")

DPI = 150
WIDTH = 8.0  # inches
SMALL, SMALLER = 8.5, 7.0  # points: legends and marks; the small print

RC_PARAMS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same everywhere
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.facecolor": "white",
    "text.parse_math": False,  # names from data hold $, _ and ^ as they are
}


def styled(draw: Callable[[T], Figure]) -> Callable[[T], Figure]:
    """A figure's ``draw`` under RC_PARAMS, which are then put back: artists read them when they are made."""

    @wraps(draw)
    def drawn(data: T) -> Figure:
        with matplotlib.rc_context(RC_PARAMS):
            return draw(data)

    return drawn


@dataclass(frozen=True, slots=True)
class Metric:
    """One quantity's axis text. ``demo_label``: the text for the demo's images."""

    label: str
    demo_label: str = ""


METRICS: dict[str, Metric] = {
    "top1": Metric("top-1 accuracy, %", "top-1 accuracy on demo data, %"),
    "gain": Metric("gain over the centre crop, points"),
    "crops": Metric("crops per image"),
    "forwards": Metric("forward passes per image"),
    "images_per_sec": Metric("images per second"),
    "gmacs": Metric("GMACs per image"),
    "crops_per_sec": Metric("crops per second"),
    "base": Metric("top-1 accuracy of the centre crop, %"),
    "slack": Metric("slack 1 − K/S"),
    "crop_ratio": Metric("crop ratio K/S"),
    "params": Metric("parameters, millions"),
    "longer_side": Metric("longer side after resizing, pixels"),
    "images": Metric("images"),
    "aspect": Metric("longer side / shorter side"),
    "offset": Metric("object's distance from the image centre, short sides"),
    "size": Metric("object's size, short sides"),
}


def label(metric: str, *, demo: bool = False) -> str:
    """The axis text of a METRICS entry. Raises KeyError, listing the entries, for another name."""
    if metric not in METRICS:
        raise KeyError(f"no axis text for {metric!r}; known: {', '.join(METRICS)}")
    entry = METRICS[metric]
    return entry.demo_label if demo and entry.demo_label else entry.label


def colour(i: int) -> str:
    """The i-th line's, from the start again when there are more lines than colours."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    return MARKERS[i % len(MARKERS)]


def canvas(
    rows: int = 1, columns: int = 1, *, height: float = 4.8, width: float = WIDTH, **grid: Any
) -> tuple[Figure, list[Axes]]:
    """An empty figure, ``width`` x ``height`` inches, and its axes row by row. Extra words go to ``subplots``."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **grid)
    return figure, list(axes.flat)


def finish(
    figure: Figure, *, title: str, notes: Sequence[str], handles: Sequence[Any] = (), columns: int = 3
) -> Figure:
    """Title on top; below the axes the legend (``handles``, in ``columns``) and the notes, one line a note."""
    figure.suptitle(title, fontsize=11.5, fontweight="bold", x=0.02, ha="left")
    text = "\n".join(textwrap.fill(note, round(17.5 * figure.get_figwidth())) for note in notes)
    print_height = (len(text.splitlines()) * SMALLER * 1.3 + 4) / 72 / figure.get_figheight() if text else 0.0
    figure.text(0.012, 0.006, text, fontsize=SMALLER, color="#555555", va="bottom", linespacing=1.3)
    legend_height = 0.0
    if handles:
        box = _legend(figure, handles, columns, print_height).get_window_extent()
        legend_height = box.height / figure.bbox.height + 0.012
    bottom = print_height + legend_height
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.set(rect=(0.005, bottom, 0.99, 1 - bottom))  # type: ignore[call-arg]
    return figure


def _legend(figure: Figure, handles: Sequence[Any], columns: int, bottom: float) -> Legend:
    """At most ``columns``, and as many fewer as make it fit into the figure's width."""
    legend = figure.legend(
        handles=list(handles), loc="lower center", bbox_to_anchor=(0.5, bottom), ncols=columns, borderaxespad=0
    )
    legend.set_in_layout(False)
    if columns > 1 and legend.get_window_extent().width > figure.bbox.width:
        legend.remove()
        return _legend(figure, handles, columns - 1, bottom)
    return legend


def plain_log_axis(axis: Any, ticks: Sequence[float] = ()) -> None:
    """Ticks of a log axis as plain numbers, at ``ticks`` if given: 10 and not 10^1."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator()) if ticks else axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if ticks:
        axis.set_major_locator(FixedLocator(list(ticks)))


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers in low..high for a log axis: the coarsest of four steps of which at least four fit; in a range so
    narrow that not even two do, evenly spaced ones."""
    ticks: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [factor * 10.0**power for power in range(-3, 9) for factor in factors]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 4:
            break
    if len(ticks) < 2:
        ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return ticks


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG that depends on nothing but the figure: no time, no program name. Whole or not at all."""
    with matplotlib.rc_context(RC_PARAMS), whole_file(path) as file:
        figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return path
