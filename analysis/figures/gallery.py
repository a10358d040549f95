"""Images that averaging random crops makes newly correct, and newly wrong (MID Figures 1 and 2).

Windows are planned again from the run's seed and sizes, which is exact; the pixels are PIL's, for looking at.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis import style
from analysis.runs import (
    ImagePredictions,
    Inputs,
    MissingData,
    NetworkRun,
    accuracies,
    attempts,
    best_curve_policy,
    display_name,
    endings,
    images,
    predictions,
    provenance,
    resized_picture,
    rows_of,
    rows_of_network,
    scored_networks,
    spec_of,
)
from analysis.text import name_text
from pipelines.crops import Planner, parse_policy, union
from pipelines.data.dataset import spans_of
from pipelines.data.spans import Span

EACH = 4  # pictures of either kind
LONGEST_CLASS = 30  # characters
MOST_WINDOWS = 20  # drawn on a picture
RIGHT, WRONG = style.SKY, style.RED


@dataclass(frozen=True, slots=True)
class Picture:
    """One image. ``windows``: int64 [v, 2], (y, x) of the random crops; ``centre``: the centre crop's."""

    pixels: np.ndarray
    K: int
    centre: tuple[int, int]
    windows: np.ndarray
    right: np.ndarray  # bool [v]
    label: str
    centre_predicted: str
    averaged_predicted: str
    predicted: list[tuple[str, int]]  # the views' predictions, the most frequent first


@dataclass(frozen=True, slots=True)
class Data:
    """Newly correct and newly wrong images of one network."""

    name: str
    policy: str
    newly_correct: list[Picture]
    newly_wrong: list[Picture]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data | MissingData]:
    """One picture for each network whose per-image predictions and images are there."""
    found = scored_networks(inputs.runs, beyond_centre=True)
    frame = accuracies(inputs.runs)
    return attempts(
        {
            ending: partial(_data, inputs, network, rows_of_network(frame, network))
            for ending, network in zip(endings(found), found, strict=True)
        }
    )


def _data(inputs: Inputs, network: NetworkRun, frame: pd.DataFrame) -> Data:
    policy = best_curve_policy(frame, MOST_WINDOWS)
    answers = predictions(network)
    scan = images(inputs, network[0])
    table = rows_of(answers.names, scan)
    newly_correct, newly_wrong = choose(answers, policy)
    if not newly_correct and not newly_wrong:
        raise MissingData(f"{policy} and the centre crop are right on the same images: there is nothing to show")
    names = class_names(table, answers.labels)

    def shown(rows: list[int]) -> list[Picture]:
        spans = spans_of(scan.root, table, np.array(rows, dtype=np.int64))
        return [picture(answers, row, policy, network, names, span) for row, span in zip(rows, spans, strict=True)]

    notes = [
        f"Of {(answers.labels >= 0).sum():,} images {changed_count(answers, policy)} are newly correct with {policy} "
        f"(softmax) and {changed_count(answers, policy, newly_wrong=True)} newly wrong; shown are those on which the "
        "views agree most. Below each: the prediction of the centre crop, of the average, and of the single random "
        "crops.",
        *provenance([network]),
    ]
    return Data(display_name(network[1]), policy, shown(newly_correct), shown(newly_wrong), notes)


def changed_count(answers: ImagePredictions, policy: str, *, newly_wrong: bool = False) -> int:
    """Images right with the policy and wrong at the centre crop; ``newly_wrong``: the opposite."""
    return int((_changes(answers, policy) == (-1 if newly_wrong else 1)).sum())


def _changes(answers: ImagePredictions, policy: str) -> np.ndarray:
    """int [b]: +1 newly correct, -1 newly wrong, 0 neither (or no label)."""
    change = answers.of(policy).astype(int) - answers.of("CC")
    return np.where(answers.labels >= 0, change, 0)


def choose(answers: ImagePredictions, policy: str, each: int = EACH) -> tuple[list[int], list[int]]:
    """Rows of newly correct and of newly wrong images: first those where most (or fewest) views are right."""
    columns = union([parse_policy(p) for p in answers.policies]).take(parse_policy(policy))
    share = (answers.view_top1[:, columns] == answers.labels[:, None]).mean(axis=1)
    change = _changes(answers, policy)

    def ordered(kind: int) -> list[int]:
        rows = np.flatnonzero(change == kind).tolist()
        return sorted(rows, key=lambda row: (-kind * share[row], answers.names[row]))[:each]

    return ordered(1), ordered(-1)


def class_names(table: pd.DataFrame, labels: np.ndarray) -> dict[int, str]:
    """Label -> name: the demo's class, or the folder's name where every image of a label is in one folder."""
    texts = table["class"] if "class" in table else table["name"].str.partition("/")[0]
    out: dict[int, str] = {}
    for label, own in texts.groupby(labels):
        if own.nunique() == 1 and not own.iloc[0].lower().endswith((".jpg", ".jpeg", ".png")):
            out[int(label)] = str(own.iloc[0])  # type: ignore[call-overload]
    return out


def picture(
    answers: ImagePredictions, row: int, policy: str, network: NetworkRun, names: dict[int, str], span: Span
) -> Picture:
    """Plan one image's windows again, and read it."""
    setting = network[1]
    views = union([parse_policy(p) for p in answers.policies])
    planner = Planner(spec_of(setting), union([parse_policy("CC"), parse_policy(policy)]), setting.seed)
    pixels = resized_picture(span, setting)
    windows = planner.windows([answers.names[row]], np.array([pixels.shape[:2]]))[0]
    own = planner.views
    predicted = answers.view_top1[row, views.take(parse_policy(policy))].tolist()
    label = int(answers.labels[row])
    p, level = answers.policies.index, answers.levels.index("softmax")

    def name(number: int) -> str:
        return name_text(names.get(number, f"class {number}"), LONGEST_CLASS)

    return Picture(
        pixels=pixels,
        K=setting.K,
        centre=tuple(windows[own.columns["CC"][0], :2].tolist()),
        windows=windows[own.take(parse_policy(policy)), :2],
        right=np.array(predicted) == label,
        label=name(label),
        centre_predicted=name(int(answers.top1[level, p("CC"), row])),
        averaged_predicted=name(int(answers.top1[level, p(policy), row])),
        predicted=[(name(number), count) for number, count in Counter(predicted).most_common()],
    )


@style.styled
def draw(data: Data) -> Figure:
    kinds = (("newly correct", data.newly_correct), ("newly wrong", data.newly_wrong))
    rows = [(words, shown) for words, shown in kinds if shown]
    figure, axes = style.canvas(len(rows), EACH, height=3.0 * len(rows) + 0.9, gridspec_kw={"wspace": 0.02})
    for i, (words, shown) in enumerate(rows):
        for j in range(EACH):
            panel = axes[i * EACH + j]
            panel.set_axis_off()
            if j < len(shown):
                draw_picture(panel, shown[j], f"{words}:\n{shown[j].label}")
    handles = [
        Line2D([], [], color=RIGHT, label=f"random crop of {data.policy}, right"),
        Line2D([], [], color=WRONG, label="random crop, wrong"),
        Line2D([], [], color="black", linestyle="--", linewidth=2, label="centre crop"),
    ]
    title = f"{data.name}: newly correct and newly wrong by averaging {data.policy}"
    return style.finish(figure, title=title, notes=data.notes, handles=handles)


def draw_picture(axes: Axes, one: Picture, title: str) -> None:
    """The image with its windows, and below it what was predicted."""
    height, width = one.pixels.shape[:2]
    side = max(height, width)  # square panels of one size, whatever the image's shape: the layout is then exact
    axes.imshow(one.pixels)
    axes.set_anchor("N")
    axes.set(xlim=((width - side) / 2 - 0.5, (width + side) / 2 - 0.5), ylim=(side - 0.5, -0.5))
    for (y, x), right in zip(one.windows.tolist(), one.right.tolist(), strict=True):
        axes.add_patch(
            Rectangle(
                (x, y), one.K - 1, one.K - 1, fill=False, edgecolor=RIGHT if right else WRONG, linewidth=0.9, alpha=0.85
            )
        )
    y, x = one.centre
    for colour, width in (("white", 3.2), ("black", 1.8)):
        axes.add_patch(
            Rectangle((x, y), one.K - 1, one.K - 1, fill=False, edgecolor=colour, linestyle="--", linewidth=width)
        )
    axes.set_title(title, fontsize=style.SMALL, fontweight="bold", pad=3)
    tally = "\n".join(f"{count} × {name}" for name, count in one.predicted[:3])
    text = f"centre: {one.centre_predicted}\naveraged: {one.averaged_predicted}\n{tally}"
    axes.annotate(
        text, (0, height), xytext=(0, -3), textcoords="offset points", va="top", fontsize=7.5, annotation_clip=False
    )
