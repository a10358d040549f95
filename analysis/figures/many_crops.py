"""Images on which early stopping took the most crops, and some on which it took the fewest.

Drawn are the random crops that were evaluated, planned again from the run's seed and sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.figures.gallery import EACH, RIGHT, WRONG, Picture, class_names, draw_picture, picture
from analysis.runs import (
    ImagePredictions,
    Inputs,
    MissingData,
    NetworkRun,
    attempts,
    display_name,
    endings,
    images,
    predictions,
    provenance,
    rows_of,
    scored_networks,
)
from pipelines.data.dataset import spans_of

LEVEL = "softmax"
RULES = ("~1%", "~sqrt", "~exact")  # whose crops are shown: the first that was scored


@dataclass(frozen=True, slots=True)
class Data:
    """``most``, ``fewest``: (crops taken, picture) of images of one network."""

    name: str
    policy: str
    most: list[tuple[int, Picture]]
    fewest: list[tuple[int, Picture]]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data | MissingData]:
    """One picture for each network that was scored with stopped random crops, and whose images are there."""
    found = scored_networks(inputs.runs, beyond_centre=True)
    return attempts({name: partial(_data, inputs, one) for name, one in zip(endings(found), found, strict=True)})


def _data(inputs: Inputs, network: NetworkRun) -> Data:
    answers = predictions(network)
    policy = stopped_policy(answers)
    crops = crops_taken(answers, policy)
    scan = images(inputs, network[0])
    table = rows_of(answers.names, scan)
    names = class_names(table, answers.labels)

    def shown(rows: list[int]) -> list[tuple[int, Picture]]:
        spans = spans_of(scan.root, table, np.array(rows, dtype=np.int64))
        return [
            (int(crops[row]), picture(answers, row, f"{int(crops[row])}RC", network, names, span))
            for row, span in zip(rows, spans, strict=True)
        ]

    most, fewest = choose(answers, policy, crops)
    count, whole = int((crops == crops.max()).sum()), policy.partition("~")[0]
    notes = [
        f"{policy} ({LEVEL}): {crops.mean():.1f} crops per image; {count:,} of {len(crops):,} images took "
        f"{int(crops.max())}, {int((crops == crops.min()).sum()):,} took {int(crops.min())}. Of those with equally "
        f"many crops, shown on top: the smallest margin of {whole}; below: the largest. Text: the prediction of the "
        "centre crop, of the crops taken together, and of each.",
        *provenance([network]),
    ]
    return Data(display_name(network[1]), policy, shown(most), shown(fewest), notes)


def stopped_policy(answers: ImagePredictions) -> str:
    """The stopped random crops whose counts are shown. Raises MissingData without any."""
    for rule in RULES:
        found = [p for p in answers.policies if p.endswith(f"RC{rule}") and p.partition("RC")[0].isdigit()]
        if found and answers.stored.margin is not None and LEVEL in answers.levels:
            return max(found, key=lambda name: int(name.partition("RC")[0]))
    raise MissingData("needs stopped random crops: run with --crops, without --no-cheap")


def crops_taken(answers: ImagePredictions, policy: str) -> np.ndarray:
    """int64 [b]: of each image."""
    assert answers.stored.forwards is not None
    return answers.stored.forwards[answers.levels.index(LEVEL), answers.policies.index(policy)].round().astype(int)


def choose(answers: ImagePredictions, policy: str, crops: np.ndarray, each: int = EACH) -> tuple[list[int], list[int]]:
    """Rows of the images with the most crops and, of the others, with the fewest; among equals by the margin of the
    whole policy: least sure first, and surest first."""
    assert answers.stored.margin is not None
    whole = answers.policies.index(policy.partition("~")[0])
    margin = answers.stored.margin[answers.levels.index(LEVEL), whole]
    labelled = [row for row in range(len(crops)) if answers.labels[row] >= 0]
    most = sorted(labelled, key=lambda row: (-crops[row], margin[row], answers.names[row]))[:each]
    others = [row for row in labelled if row not in most and crops[row] < crops[most].min()]
    return most, sorted(others, key=lambda row: (crops[row], -margin[row], answers.names[row]))[:each]


@style.styled
def draw(data: Data) -> Figure:
    rows = [shown for shown in (data.most, data.fewest) if shown]
    figure, axes = style.canvas(len(rows), EACH, height=3.0 * len(rows) + 0.9, gridspec_kw={"wspace": 0.02})
    for i, shown in enumerate(rows):
        for j in range(EACH):
            panel = axes[i * EACH + j]
            panel.set_axis_off()
            if j < len(shown):
                count, one = shown[j]
                draw_picture(panel, one, f"{count} {'crop' if count == 1 else 'crops'}:\n{one.label}")
    handles = [
        Line2D([], [], color=RIGHT, label="random crop that was taken, right"),
        Line2D([], [], color=WRONG, label="wrong"),
        Line2D([], [], color="black", linestyle="--", linewidth=2, label="centre crop"),
    ]
    title = f"{data.name}: images that need many crops, and few ({data.policy})"
    return style.finish(figure, title=title, notes=data.notes, handles=handles)
