"""Pooled activations at each test resolution, and what mapping them back gains (FixRes, Figures 3 and 6).

multicrop-bench figures DIR        # a folder that multicrop-bench activations wrote
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.experiments import read_activations
from analysis.runs import Inputs, experiment_folders
from analysis.text import name_text
from pipelines.schemas import DamagedFile

NAMES = {"frechet": "Fréchet, behind the pooling", "gaussian": "Gaussian, before the last activation"}


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: activations.csv; ``points`` [m], ``cdf`` and ``fitted`` (the Fréchet model) {K: shares 0..1 [m]}."""

    frame: pd.DataFrame
    points: np.ndarray
    cdf: dict[int, np.ndarray]
    fitted: dict[int, np.ndarray]
    train_K: int
    model: str
    notes: list[str]


@dataclass(frozen=True, slots=True)
class Curves:
    """The distributions of one folder. ``tuned_from``, ``tuned_at``: of a fine-tuned network, its base's hash and K."""

    points: np.ndarray
    cdf: dict[int, np.ndarray]
    fitted: dict[int, np.ndarray]
    fit_distance: dict[int, float]  # the largest between the model and the positive values' shares, 0..1
    train_K: int
    model: str
    weight_hash: str
    tuned_from: str | None
    tuned_at: int | None
    origin: str

    def at(self, K: int | None, points: np.ndarray) -> np.ndarray:
        """The shares at other points; those above the last are not drawn (NaN)."""
        assert K is not None
        return np.interp(points, self.points, self.cdf[K], right=np.nan)


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each folder of this experiment. Raises MissingData without any."""
    folders = experiment_folders(inputs, "activations")
    return {ending: read(folder) for ending, folder in folders.items()}


def read(folder: Path) -> Data:
    """Raises DamagedFile, naming the folder, for one that multicrop-bench activations did not write."""
    frame, info = _files(folder)
    own = _curves(frame, info)
    demo = "the generated DEMO DATA (says nothing about ImageNet)" if info["is_demo"] else name_text(info["data"])
    notes = [
        "Left: zeros are the height at 0. Right: top-1 of the centre crop adapted less as it is, same images, 95 % "
        "(Newcombe).",
        f"Statistics of {int(frame['crops'].iloc[0]):,} centre crops of {frame['fitted_on'].iloc[0]}; accuracy of "
        f"{int(frame['images'].iloc[0]):,} images of {demo}.",
    ]
    if own.fitted:
        gaps = ", ".join(f"{100 * gap:.1f} at {K}" for K, gap in sorted(own.fit_distance.items()))
        notes.insert(1, f"Dotted: the Fréchet model of the positive values; largest distance, points: {gaps}.")
    return Data(frame, own.points, own.cdf, own.fitted, own.train_K, own.model, notes)


def curves(folder: Path) -> Curves:
    """Raises DamagedFile, naming the folder, for one that multicrop-bench activations did not write."""
    return _curves(*_files(folder))


def _files(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    try:
        return read_activations(folder)
    except DamagedFile as error:
        raise DamagedFile(f"{folder} was not written by multicrop-bench activations: {error}") from error


def _curves(frame: pd.DataFrame, info: dict[str, Any]) -> Curves:
    points = np.array(info["points"])
    cdf = {int(K): np.array(values) for K, values in info["cdf"].items()}
    fits = {int(K): fit for K, fit in info["frechet"].items()}
    tuned = info["tuned"] or {}
    data = "the generated DEMO DATA" if info["is_demo"] else name_text(info["data"])
    return Curves(
        points=points, cdf=cdf, fitted={K: _fitted(points, fit) for K, fit in fits.items()},
        fit_distance={K: fit["distance"] for K, fit in fits.items()}, train_K=info["train_K"],
        model=name_text(info["model"]), weight_hash=info["weight_hash"], tuned_from=tuned.get("base_hash"),
        tuned_at=tuned.get("K"), origin=f"{int(frame['crops'].iloc[0]):,} centre crops of {data}.",
    )  # fmt: skip


def _fitted(points: np.ndarray, fit: dict[str, float]) -> np.ndarray:
    """Shares at or below each point, zeros included: P(x) = exp(-(1 + xi (x - mu) / sigma) ** (-1 / xi)), A.1."""
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        base = np.maximum(1 + fit["xi"] * (points - fit["mu"]) / fit["sigma"], 0)
        positive = np.exp(-(base ** (-1 / fit["xi"])))
    return fit["zero_share"] + (1 - fit["zero_share"]) * positive


@style.styled
def draw(data: Data) -> Figure:
    figure, (left, middle, right) = style.canvas(1, 3, height=4.6, width=10.0)
    handles = []
    for i, (K, shares) in enumerate(sorted(data.cdf.items())):
        trained = data.train_K == K
        looks: dict[str, Any] = {"color": style.colour(i), "linewidth": 2.4 if trained else 1.2}
        left.plot(data.points, 100 * shares, gid=f"K {K}", **looks)
        if K in data.fitted:
            left.plot(data.points, 100 * data.fitted[K], color="black", linestyle=":", linewidth=1, gid=f"fit {K}")
        handles.append(Line2D([], [], label=f"crops of {K}" + " (as trained)" * trained, **looks))
    if data.fitted:
        handles.append(Line2D([], [], color="black", linestyle=":", linewidth=1, label="Fréchet model"))
    left.set_xlabel("pooled activation")
    left.set_ylabel("values at or below it, %")
    for column, label, marker in (("zero_percent", "zeros", "o"), ("above_2_percent", "above 2", "s")):
        middle.plot(data.frame["K"], data.frame[column], color="black", marker=marker, gid=column)
        handles.append(Line2D([], [], color="black", marker=marker, label=label))
    middle.set_ylabel("share of pooled activations, %")
    for i, (name, label) in enumerate(NAMES.items()):
        frame = data.frame.dropna(subset=[f"{name}_gain"])
        if frame.empty:
            continue
        gain = frame[f"{name}_gain"]
        colour = (style.BLUE, style.ORANGE)[i]
        bars = [gain - frame[f"{name}_gain_low"], frame[f"{name}_gain_high"] - gain]
        right.errorbar(
            frame["K"] + i, gain, yerr=bars, color=colour, marker=style.marker(i), capsize=3, gid=name, linewidth=1.2
        )
        handles.append(Line2D([], [], color=colour, marker=style.marker(i), label=label))
    right.axhline(0, color="black", linewidth=0.8)
    right.set_ylabel("gain by adapting, points of top-1")
    for axes in (middle, right):
        axes.axvline(data.train_K, color=style.GREY, linestyle="--")
        axes.set_xlabel("test resolution, pixels")
    handles.append(Line2D([], [], color=style.GREY, linestyle="--", label="training resolution"))
    title = f"{data.model}: activations against the test resolution"
    return style.finish(figure, title=title, notes=data.notes, handles=handles, columns=4)
