"""One large crop, or several of the network's own size, for the same cost? None of the papers compares this.

Left: accuracy against cost, for both choices. Right: at each larger K the number of crops that costs
most nearly the same, and the paired difference of the two answers on the same images. Three crops at 224 cost 1.8 times
as much as one at 288; two cost 1.2 times.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.runs import Inputs, MissingData, attempts, display_name, endings, provenance
from analysis.sizes import Sweep, choices, equal_cost, sweeps

MOST_SIZES = 10
FARTHEST = 1.5  # in cost, of what is shown on the right
LOOKS = {
    "CC": ("black", "o", "one crop of K pixels"),
    "RC": (style.BLUE, "s", "nRC of its own size"),
    "CC+RC": (style.ORANGE, "D", "CC+(n−1)RC of its own size"),
}


@dataclass(frozen=True, slots=True)
class Data:
    """``choices`` and ``compared``: the tables of ``analysis.sizes.choices`` and ``equal_cost``, the latter at the
    nearest costs, K ascending. ``timed``: whether every choice has seconds an image, which are then its cost."""

    name: str
    demo: bool
    own_K: int
    choices: pd.DataFrame
    compared: pd.DataFrame
    timed: bool
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data | MissingData]:
    """One picture for each network that was scored at several K, and with several crops at its own."""
    found = sweeps(inputs.runs)
    names = endings([sweep.networks[0] for sweep in found])
    return attempts({name: lambda sweep=sweep: _data(sweep) for name, sweep in zip(names, found, strict=True)})  # type: ignore[misc]


def _data(sweep: Sweep) -> Data:
    table, frame = equal_cost(sweep), choices(sweep)
    timed = bool(frame["seconds"].notna().all())
    compared = nearest(table)
    cost = "seconds per image, end to end, median" if timed else "pixels: K² a crop (not timed)"
    notes = [
        f"Cost: {cost}. Left: Wilson's 95 % intervals. Right: one crop of K less n of {sweep.own_K}, same images, 95 % "
        "(Newcombe); in brackets the large crop's cost over the others'; right of 0 it is the better choice.",
        *provenance(sweep.networks, int(frame["images"].iloc[0])),
    ]
    setting = sweep.base[1]
    return Data(display_name(setting), setting.is_demo, setting.K, frame, compared, timed, notes)


def nearest(table: pd.DataFrame) -> pd.DataFrame:
    """Of ``analysis.sizes.equal_cost`` one N for each K, none farther in cost than FARTHEST; of more than MOST_SIZES K
    the nearest in cost."""
    rows = table[table["nearest"] & table["cost_ratio"].between(1 / FARTHEST, FARTHEST)]
    unequal = (rows["cost_ratio"] - 1).abs().groupby(rows["K"]).first().sort_values(kind="stable")
    return rows[rows["K"].isin(unequal.index[:MOST_SIZES])].sort_values(["K", "policy"]).reset_index(drop=True)


@style.styled
def draw(data: Data) -> Figure:
    figure, (left, right) = style.canvas(1, 2, height=5.2, width_ratios=(1, 1.05))
    handles: list[Artist] = []
    for curve, (colour, marker, words) in LOOKS.items():
        rows = data.choices[data.choices["curve"] == curve]
        if curve != "CC":  # both curves begin with one crop of the own size
            start = data.choices[(data.choices["curve"] == "CC") & (data.choices["K"] == data.own_K)]
            rows = pd.concat([start, rows[rows["n_views"] > 1]])
        _line(left, rows.sort_values("crops_cost"), data.timed, colour, marker, curve)
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=4, label=words))
    left.set_xscale("log")
    style.plain_log_axis(left.xaxis, style.nice_ticks(*left.get_xlim()))
    left.set_xlabel("milliseconds per image" if data.timed else f"cost, in crops of {data.own_K} pixels")
    left.set_ylabel(style.label("top1", demo=data.demo))
    _forest(right, data)
    title = f"{data.name}: one larger crop, or more crops?"
    return style.finish(figure, title=title, notes=data.notes, handles=handles)


def _line(axes: Axes, rows: pd.DataFrame, timed: bool, colour: str, marker: str, name: str) -> None:
    x = 1000 * rows["seconds"] if timed else rows["crops_cost"]
    axes.plot(x, rows["top1"], color=colour, marker=marker, markersize=4, gid=name)
    axes.fill_between(x, rows["top1_low"], rows["top1_high"], color=colour, alpha=0.1, linewidth=0)
    if name == "CC":
        for place, top1, K in list(zip(x, rows["top1"], rows["K"], strict=True))[:: 1 + len(rows) // 14]:
            axes.annotate(str(K), (place, top1), xytext=(3, 5), textcoords="offset points", fontsize=7, color=colour)


def _forest(axes: Axes, data: Data) -> None:
    pairs = data.compared.drop_duplicates(["K", "N"])
    labels = []
    for y, (K, n) in enumerate(zip(pairs["K"], pairs["N"], strict=True)):
        rows = data.compared[(data.compared["K"] == K) & (data.compared["N"] == n)]
        ratio = rows["time_ratio" if data.timed else "cost_ratio"].iloc[0]
        labels.append(f"1 of {K} − {n} of {data.own_K} ({ratio:.2f})")
        for row in rows.to_dict("records"):
            colour, marker, _ = LOOKS["CC+RC" if row["policy"].startswith("CC") else "RC"]
            bar = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
            place = y + (0.14 if row["policy"].startswith("CC") else -0.14)
            axes.errorbar(
                [row["difference"]], [place], xerr=bar, color=colour, marker=marker, markersize=4.5, capsize=2,
                gid=f"{K} {row['policy']}",
            )  # fmt: skip
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlabel("difference in top-1, points")
