"""ImageNet-V2 accuracy against ImageNet accuracy (FixEfficientNet Figure 2, as far as its tables have the numbers).

With runs: the networks that were scored on both sets, with intervals, beside the printed ones. Networks that overfit
ImageNet's validation images are lower than others of the same accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.published import accuracies_on_both, load
from analysis.runs import (
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    is_v2,
    line_names,
    provenance,
    require_all_comparable,
    rows_of_network,
)
from bench.records import SPEED_FIELDS, require_comparable

LEVEL = "softmax"
# The two printed accuracies of the kinds of networks: ImageNet, ImageNet-V2.
EXTRA_DATA = "NoisyStudent"  # the kind beside which the other networks are drawn: trained with extra data, as they are
KINDS = {"AdvProp": ("fixeff_table2", "fixeff_table5"), "NoisyStudent": ("fixeff_table1", "fixeff_table4")}


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: kind (AdvProp, NoisyStudent), method (baseline, fixres), variant, imagenet, imagenet_v2 (percent).
    ``others``: name and both accuracies of networks that are not EfficientNets, trained with extra data.
    ``measured``: name, policy, and both accuracies with ``_low`` and ``_high``; perhaps empty."""

    frame: pd.DataFrame
    others: pd.DataFrame
    measured: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """The published figure, with what the runs measured of it. Raises MissingData with runs of one of the sets only."""
    notes = [
        "Published: FixEfficientNet Tables 1 with 4 and 2 with 5 (ImageNet-V2 matched frequency); other networks: "
        "FixRes Table 2 with FixEfficientNet Table 6."
    ]
    others = accuracies_on_both()
    if not inputs.runs:
        return {"": Data(pairs(), others, pd.DataFrame(), notes)}
    both = scored_on_both(inputs)
    frame = accuracies(inputs.runs)
    names = line_names([old for old, _ in both])
    rows = [_measured(rows_of_network(frame, old), rows_of_network(frame, new)) for old, new in both]
    measured = pd.concat([table.assign(name=name) for table, name in zip(rows, names, strict=True)], ignore_index=True)
    notes.append(
        "Measured: filled the centre crop, half filled the most random crops; softmax, Wilson's 95 % intervals."
    )
    return {"": Data(pairs(), others, measured, [*notes, *provenance([network for pair in both for network in pair])])}


def scored_on_both(inputs: Inputs) -> list[tuple[NetworkRun, NetworkRun]]:
    """(on ImageNet, on ImageNet-V2) of each network. Raises MissingData when there is none, Incomparable when it was
    fed differently on the two."""
    scored = {(run.folder, r.setting): (run, r.setting) for run in inputs.runs for r in run.accuracies}
    new = {(s.model, s.weight_hash, s.K): (run, s) for run, s in scored.values() if is_v2(s)}
    old = {(s.model, s.weight_hash, s.K): (run, s) for run, s in scored.values() if not is_v2(s) and not s.is_demo}
    both = [(old[key], new[key]) for key in old if key in new]
    if not both:
        raise MissingData(
            "needs one network's runs on ImageNet and on ImageNet-V2 (a folder with v2 in its name); the papers' own "
            "figure: --published"
        )
    for one, other in both:
        require_comparable(one[1], other[1], varying=("data", "data_hash", *SPEED_FIELDS))
    require_all_comparable([one for one, _ in both])
    return both


def _measured(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """The centre crop and the most random crops that both have."""
    columns = ["policy", "curve", "n_views", "top1", "top1_low", "top1_high"]
    tables = [frame[frame["level"] == LEVEL][columns] for frame in (old, new)]
    merged = tables[0].merge(tables[1], on=["policy", "curve", "n_views"], suffixes=("", "_v2"))
    crops = merged[merged["curve"] == "RC"].nlargest(1, "n_views")
    merged = pd.concat([merged[merged["curve"] == "CC"], crops])
    ends = {"": "imagenet", "_v2": "imagenet_v2"}
    return merged.rename(
        columns={f"top1{end}{s}": f"{name}{end}" for s, name in ends.items() for end in ("", "_low", "_high")}
    )


def pairs() -> pd.DataFrame:
    """Each network's two printed top-1 accuracies."""
    return pairs_of(KINDS, ("imagenet", "imagenet_v2"))


def pairs_of(tables: dict[str, tuple[str, str]], columns: tuple[str, str]) -> pd.DataFrame:
    """Top-1 of the networks that two printed tables share, in two ``columns``, for each kind of them."""
    frames = []
    for kind, names in tables.items():
        keys = ["model", "variant", "method"]
        one, other = (load(name).query("metric == 'top1'")[[*keys, "value"]] for name in names)
        both = one.merge(other, on=keys, suffixes=("_0", "_1"), validate="one_to_one")
        frames.append(both.rename(columns={f"value_{i}": column for i, column in enumerate(columns)}).assign(kind=kind))
    return pd.concat(frames, ignore_index=True)


LOOKS: dict[
    str, tuple[str, Any, str, tuple[int, int]]
] = {  # method -> words, line, marker, where the names are written
    "baseline": ("EfficientNet", "--", "o", (9, -11)),
    "fixres": ("FixEfficientNet (fine-tuned)", "-", "^", (-9, 7)),
}


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(1, 2, height=4.8, sharex=True, sharey=True)
    handles: list[Artist] = []
    for axes, (kind, rows) in zip(panels, data.frame.groupby("kind"), strict=True):
        for i, (method, (words, line, marker, where)) in enumerate(LOOKS.items()):
            frame = rows[rows["method"] == method]
            handles += axes.plot(
                frame["imagenet"], frame["imagenet_v2"], color=style.colour(i), marker=marker, markerfacecolor="white",
                linewidth=1, linestyle=line, label=words, gid=f"{kind} {method}",
            )  # fmt: skip
            _write_names(axes, frame, where, style.colour(i))
        if kind == EXTRA_DATA:
            handles += _draw_others(axes, data.others)
        handles += _draw_measured(axes, data.measured)
        axes.set_title(str(kind))
        axes.set_xlabel("top-1 accuracy on ImageNet, %")
    panels[0].set_ylabel("top-1 accuracy on ImageNet-V2, %")
    title = "ImageNet-V2 against ImageNet (FixEfficientNet Figure 2)"
    return style.finish(figure, title=title, notes=data.notes, handles=distinct(handles))


CLOSE = 0.75  # points of ImageNet accuracy: names of networks closer than this are written one above the other


def _write_names(axes: Axes, frame: pd.DataFrame, where: tuple[int, int], colour: str) -> None:
    """Each network's name, in the direction ``where``; with a line to its point where neighbours push it away."""
    level, before = 0, -np.inf
    for row in frame.sort_values("imagenet").to_dict("records"):
        level = level + 1 if row["imagenet"] - before < CLOSE else 0
        before = row["imagenet"]
        away = tuple((np.array(where) * (1 + 1.25 * level)).tolist())
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "shrinkB": 3} if level else None
        axes.annotate(
            row["variant"], (row["imagenet"], row["imagenet_v2"]), xytext=away, textcoords="offset points",
            ha="center", fontsize=7.5, color=colour, arrowprops=line,
        )  # fmt: skip


def distinct(handles: list[Artist]) -> list[Artist]:
    """One handle for each label: both panels have the same lines."""
    return list({str(handle.get_label()): handle for handle in reversed(handles)}.values())[::-1]


def _draw_others(axes: Axes, rows: pd.DataFrame) -> list[Artist]:
    """Networks that are not EfficientNets, as crosses, their names to the upper left."""
    look: dict[str, Any] = {"ha": "right", "fontsize": 7.5, "color": style.GREY}
    for row in rows.to_dict("records"):
        place = (row["imagenet"], row["imagenet_v2"])
        line = {"arrowstyle": "-", "color": style.GREY, "linewidth": 0.4, "shrinkB": 4}
        axes.annotate(row["name"], place, xytext=(-36, 12), textcoords="offset points", arrowprops=line, **look)
    label = "other networks with extra data"
    shape: dict[str, Any] = {"color": style.GREY, "marker": "X", "markersize": 7, "linestyle": ""}
    return list(axes.plot(rows["imagenet"], rows["imagenet_v2"], label=label, gid="others", **shape))


def _draw_measured(axes: Axes, rows: pd.DataFrame) -> list[Artist]:
    handles: list[Artist] = []
    for i, (name, points) in enumerate(rows.groupby("name", sort=False) if len(rows) else ()):
        colour, marker = style.colour(2 + i), style.marker(2 + i)
        for row in points.to_dict("records"):
            x, y = row["imagenet"], row["imagenet_v2"]
            across, up = (
                [[row[c] - row[f"{c}_low"]], [row[f"{c}_high"] - row[c]]] for c in ("imagenet", "imagenet_v2")
            )
            axes.errorbar(
                [x], [y], xerr=across, yerr=up, color=colour, marker=marker, markersize=6, linewidth=0.8,
                fillstyle="full" if row["curve"] == "CC" else "left", gid=f"measured {name} {row['policy']}",
            )  # fmt: skip
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", label=f"{name}: measured"))
    return handles
