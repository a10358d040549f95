"""ImageNet-V2 accuracy against ImageNet accuracy (FixEfficientNet Figure 2, as far as its tables print it)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
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


LOOKS = {  # (kind, method) -> words, colour, marker
    ("AdvProp", "baseline"): ("EfficientNet AdvProp", style.BLUE, "o"),
    ("AdvProp", "fixres"): ("FixEfficientNet AdvProp", style.BLUE, "^"),
    ("NoisyStudent", "baseline"): ("EfficientNet NoisyStudent", style.ORANGE, "o"),
    ("NoisyStudent", "fixres"): ("FixEfficientNet NoisyStudent", style.ORANGE, "^"),
}

TEXT_OFFSETS = {("AdvProp", "fixres"): (8, -12), ("NoisyStudent", "fixres"): (-8, 8)}  # points; networks named once


def draw(data: Data) -> Figure:
    figure, (axes,) = style.canvas(height=5.0)
    handles = []
    for (kind, method), (words, colour, marker) in LOOKS.items():
        frame = data.frame[(data.frame["kind"] == kind) & (data.frame["method"] == method)]
        (line,) = axes.plot(
            frame["imagenet"], frame["imagenet_v2"], color=colour, marker=marker, markerfacecolor="white",
            linewidth=1, linestyle="-" if method == "fixres" else "--", label=words, gid=words,
        )  # fmt: skip
        handles.append(line)
        side = TEXT_OFFSETS.get((kind, method))
        for x, y, text in zip(frame["imagenet"], frame["imagenet_v2"], frame["variant"], strict=True):
            if side:
                look: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": colour}
                axes.annotate(text, (x, y), xytext=side, textcoords="offset points", **look)
    axes.set_xlabel("top-1 accuracy on ImageNet, %")
    axes.set_ylabel("top-1 accuracy on ImageNet-V2, %")
    title = "ImageNet-V2 against ImageNet (FixEfficientNet Figure 2)"
    return style.finish(figure, title=title, notes=data.notes, handles=handles, columns=2)
