"""ImageNet-V2 accuracy against ImageNet accuracy (FixEfficientNet Figure 2, as far as its tables print it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from analysis import style
from analysis.published import load
from analysis.runs import NotDrawable, Source


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: kind (AdvProp, NoisyStudent), method (baseline, fixres), variant, imagenet, imagenet_v2 (percent)."""

    frame: pd.DataFrame
    notes: list[str]


def parts(source: Source) -> dict[str, Data]:
    """The published figure. Raises NotDrawable with runs."""
    if source.runs:
        raise NotDrawable("draws published numbers only: use --published")
    notes = ["Published: FixEfficientNet Tables 1 with 4 and 2 with 5 (ImageNet-V2 matched frequency)."]
    return {"": Data(pairs(), notes)}


def pairs() -> pd.DataFrame:
    """Each network's two printed top-1 accuracies."""
    kinds = {"NoisyStudent": ("fixeff_table1", "fixeff_table4"), "AdvProp": ("fixeff_table2", "fixeff_table5")}
    frames = []
    for kind, (one, two) in kinds.items():
        keys = ["model", "variant", "method"]
        old, new = (load(t).query("metric == 'top1'")[[*keys, "value"]] for t in (one, two))
        both = old.merge(new, on=keys, suffixes=("_old", "_new"), validate="one_to_one")
        frames.append(both.rename(columns={"value_old": "imagenet", "value_new": "imagenet_v2"}).assign(kind=kind))
    return pd.concat(frames, ignore_index=True)


LOOKS: dict[str, tuple[str, Any, str, tuple[int, int]]] = {  # method -> words, line, marker, where the names stand
    "baseline": ("EfficientNet", "--", "o", (9, -11)),
    "fixres": ("FixEfficientNet (fine-tuned)", "-", "^", (-9, 7)),
}


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
            look: dict[str, Any] = {"ha": "center", "fontsize": 7.5, "color": style.colour(i)}
            for j, (x, y, text) in enumerate(
                zip(*(frame[c] for c in ("imagenet", "imagenet_v2", "variant")), strict=True)
            ):
                away = (1 + 0.6 * (j % 2)) * np.array(where)  # near and far in turn: the largest lie close together
                axes.annotate(text, (x, y), xytext=tuple(away.tolist()), textcoords="offset points", **look)
        axes.set_title(str(kind))
        axes.set_xlabel("top-1 accuracy on ImageNet, %")
    panels[0].set_ylabel("top-1 accuracy on ImageNet-V2, %")
    title = "ImageNet-V2 against ImageNet (FixEfficientNet Figure 2)"
    return style.finish(figure, title=title, notes=data.notes, handles=handles[: len(LOOKS)])
