"""Early stopping of random crops: how many answers a rule keeps for how many crops, and how many crops images take.

Rules are applied to the stored margins of a run: all views were evaluated, so each rule is scored from the same images.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.runs import (
    ImagePredictions,
    Inputs,
    MissingData,
    NetworkRun,
    attempts,
    display_name,
    endings,
    predictions,
    provenance,
    scored_networks,
)
from models.stopping import Running, exact, margin_above, square_root, stop

LEVEL = "softmax"
THRESHOLDS = np.round(np.arange(0.0, 1.0, 0.02), 2)
RULES = {"~exact": exact, "~sqrt": square_root}


@dataclass(frozen=True, slots=True)
class Data:
    """``curve``: threshold, crops (mean per image), agreement (percent); ``rules``: name, crops, agreement;
    ``crops``: of each stopped policy of the run, the crops that each image took."""

    name: str
    whole: str
    curve: pd.DataFrame
    rules: pd.DataFrame
    crops: dict[str, np.ndarray]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data | MissingData]:
    """One picture for each network that was scored with stopped random crops."""
    networks = scored_networks(inputs.runs, beyond_centre=True)
    names = endings(networks)
    return attempts({name: partial(_data, one) for name, one in zip(names, networks, strict=True)})


def _data(network: NetworkRun) -> Data:
    answers = predictions(network)
    whole = _whole(answers)
    running = running_of(answers, whole)
    curve = [(t, *_scored(running, margin_above(running, t))) for t in THRESHOLDS.tolist()]
    rules = [(name, *_scored(running, rule(running))) for name, rule in RULES.items()]
    level = answers.levels.index(LEVEL)
    assert answers.stored.forwards is not None
    crops = {
        policy: answers.stored.forwards[level, p]
        for p, policy in enumerate(answers.policies)
        if policy.startswith(f"{whole}~")
    }
    notes = [
        f"Agreement: images with the top-1 class of {whole}. Margin: between the two most probable classes of the mean "
        "so far, from 0 (right end: 0.98). ~exact cannot err; a policy ~1 % takes its threshold from the other half.",
        *provenance([network], len(answers.names)),
    ]
    return Data(
        display_name(network[1]),
        whole,
        pd.DataFrame(curve, columns=["threshold", "crops", "agreement"]),
        pd.DataFrame(rules, columns=["name", "crops", "agreement"]),
        crops,
        notes,
    )


def _whole(answers: ImagePredictions) -> str:
    """The largest nRC that was stopped. Raises MissingData without one."""
    found = {policy.partition("~")[0] for policy in answers.policies if "~" in policy}
    curves = [policy for policy in found if policy.endswith("RC") and policy[:-2].isdigit()]
    if not curves or answers.stored.margin is None or LEVEL not in answers.levels:
        raise MissingData("needs stopped random crops: run with --crops, without --no-cheap")
    return max(curves, key=lambda policy: int(policy[:-2]))


def running_of(answers: ImagePredictions, whole: str) -> Running:
    """Top-1 classes and margins of ``nRC`` after each crop. Raises MissingData where they are not stored."""
    count = int(whole.removesuffix("RC"))
    policies = [f"{n}RC" for n in range(1, count + 1)]
    if lacking := [policy for policy in policies if policy not in answers.policies]:
        raise MissingData(f"needs the curve of random crops: {lacking[0]} was not scored; run with --crops {count}")
    level, columns = answers.levels.index(LEVEL), [answers.policies.index(policy) for policy in policies]
    assert answers.stored.margin is not None
    ones = np.ones((len(answers.names), count))
    top1 = answers.top1[level, columns].T
    return Running(top1, answers.stored.margin[level, columns].T, ones, ones, top1[:, -1])


def _scored(running: Running, may_stop: np.ndarray) -> tuple[float, float]:
    """Mean crops per image, and percent of the answers kept."""
    stopped = stop(running, may_stop)
    return float(stopped.forwards.mean()), 100 * float(stopped.agrees.mean())


@style.styled
def draw(data: Data) -> Figure:
    figure, (left, right) = style.canvas(1, 2, height=4.8)
    left.plot(
        data.curve["crops"], data.curve["agreement"], color=style.colour(0), marker="o", markersize=3, gid="margin"
    )
    handles = [Line2D([], [], color=style.colour(0), marker="o", markersize=3, label="margin above a threshold")]
    for i, row in enumerate(data.rules.to_dict("records"), start=1):
        left.plot(
            row["crops"], row["agreement"], color=style.colour(i), marker=style.marker(i), linestyle="", gid=row["name"]
        )
        handles.append(Line2D([], [], color=style.colour(i), marker=style.marker(i), linestyle="", label=row["name"]))
    left.set_xlabel("crops per image, mean")
    left.set_ylabel(f"answers of {data.whole} kept, %")
    most = int(data.whole.removesuffix("RC"))
    edges = np.arange(0.5, most + 1)
    for i, (policy, crops) in enumerate(data.crops.items(), start=3):
        share = 100 * np.histogram(crops, edges)[0] / len(crops)
        right.stairs(share, edges, color=style.colour(i), linewidth=1.4, gid=policy)
        handles.append(Line2D([], [], color=style.colour(i), label=f"{policy}: {crops.mean():.1f} crops"))
    right.set_xlabel(style.label("crops"))
    right.set_ylabel("images, %")
    return style.finish(figure, title=f"Early stopping: {data.name}", notes=data.notes, handles=handles)
