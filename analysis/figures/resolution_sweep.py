"""Top-1 against the test resolution of one network, measured: does it rise above the training resolution?

Left with each accuracy's own interval; right against the same images at the network's own size, paired. Steps of one
pixel (FixRes, supplement, Figure 7) show the border effects at multiples of 32.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import style
from analysis.published import load
from analysis.runs import Inputs, MissingData, NetworkRun, best_curve_policy, display_name, endings, provenance
from analysis.sizes import Sweep, against_own_size, sweeps

MOST_MARKED = 20  # more points are a line without marks
IMAGENET_IMAGES = 50_000
STRIDE = 32  # of the papers' networks: where their last map grows by a row


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: K, policy (CC and perhaps the most random crops), top1 and its interval. ``paired``: K, difference,
    low, high against one crop at ``own_K``; empty where the answers or that size are missing. ``published``: K, top1.
    """

    name: str
    demo: bool
    frame: pd.DataFrame
    paired: pd.DataFrame
    published: pd.DataFrame
    own_K: int | None
    train_K: int | None
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each network that was scored at several K."""
    found = sweeps(inputs.runs)
    names = endings([sweep.networks[0] for sweep in found])
    return {name: _data(sweep) for name, sweep in zip(names, found, strict=True)}


def _data(sweep: Sweep) -> Data:
    frame = sweep.frame
    policies = ["CC", *_most_crops(frame)]
    notes = [
        "Left: Wilson's 95 % intervals. Right: one crop at K less one at the own size, same images, 95 % (Newcombe)."
    ]
    try:
        paired = against_own_size(sweep)
    except MissingData as reason:
        paired = pd.DataFrame()
        notes = [f"Wilson's 95 % intervals. No paired differences: {reason}."]
    if sweep.train_K is None:
        notes.append("At which resolution these weights were trained is not recorded.")
    published = published_points(sweep.networks[0], sweep.train_K, int(frame["images"].iloc[0]))
    if len(published):
        notes.append("Hollow: published, FixRes Table 5, ResNet-50 not adapted: other weights (repeated augmentation).")
    setting = sweep.networks[0][1]
    return Data(
        display_name(setting), setting.is_demo, frame[frame["policy"].isin(policies)], paired, published, sweep.own_K,
        sweep.train_K, [*notes, *provenance(sweep.networks, int(frame["images"].iloc[0]))],
    )  # fmt: skip


def _most_crops(frame: pd.DataFrame) -> list[str]:
    """The policy nRC of the most crops that was scored at every K; none where only the centre crop was."""
    everywhere = frame.groupby("policy")["K"].nunique() == frame["K"].nunique()
    shared = frame[frame["policy"].map(everywhere)]
    try:
        return [best_curve_policy(shared)]
    except MissingData:
        return []


def published_points(network: NetworkRun, train_K: int | None, images: int) -> pd.DataFrame:
    """K, top1 of FixRes Table 5 (left), where they may be compared with the measurement: ResNet-50 with pretrained
    weights trained at a resolution of the table, all of ImageNet's validation images, the aspect ratio kept."""
    setting = network[1]
    table = load("fixres_table5")
    rows = table[(table["adaptation"] == "none") & (table["train_res"] == train_K)]
    architecture = setting.model.removeprefix("torchvision:").partition(".")[0]
    same = architecture == "resnet50" and setting.weights == "pretrained" and setting.crop_mode == "center"
    if train_K is None or not same or setting.is_demo or images != IMAGENET_IMAGES:
        rows = rows.iloc[:0]
    return pd.DataFrame({"K": rows["test_res"].astype(int), "top1": rows["value"]}).reset_index(drop=True)


LOOKS = ("black", style.BLUE)


@style.styled
def draw(data: Data) -> Figure:
    figure, panels = style.canvas(1, 2 if len(data.paired) else 1, height=4.8)
    left = panels[0]
    handles: list[Artist] = []
    for policy, colour in zip(dict.fromkeys(data.frame["policy"]), LOOKS, strict=False):
        rows = data.frame[data.frame["policy"] == policy]
        _line(left, rows, "top1", ("top1_low", "top1_high"), colour, policy)
        words = "CC: centre crop" if policy == "CC" else policy
        handles.append(Line2D([], [], color=colour, marker="o", markersize=4, label=words))
    if len(data.published):
        left.plot(
            data.published["K"], data.published["top1"], linestyle="", marker="D", markerfacecolor="none",
            color=style.ORANGE, gid="published",
        )  # fmt: skip
        look = {"linestyle": "", "marker": "D", "markerfacecolor": "none", "color": style.ORANGE}
        handles.append(Line2D([], [], **look, label="published (FixRes Table 5)"))  # type: ignore[arg-type]
    left.set_ylabel(style.label("top1", demo=data.demo))
    for right in panels[1:]:
        _line(right, data.paired, "difference", ("low", "high"), "black", "difference")
        right.axhline(0, color="black", linewidth=0.8)
        right.set_ylabel(f"top-1 less that at {data.own_K} pixels, points")
    for axes in panels:
        axes.set_xlabel("test resolution K, pixels")
        _marks(axes, data)
    handles += _mark_handles(data)
    title = f"{data.name}: accuracy against the test resolution"
    return style.finish(figure, title=title, notes=data.notes, handles=handles, columns=4)


def _line(axes: Axes, rows: pd.DataFrame, y: str, ends: tuple[str, str], colour: str, name: str) -> None:
    marked = len(rows) <= MOST_MARKED
    axes.plot(rows["K"], rows[y], color=colour, marker="o" if marked else ".", markersize=4 if marked else 3, gid=name)
    axes.fill_between(rows["K"], rows[ends[0]], rows[ends[1]], color=colour, alpha=0.13, linewidth=0)


def _marks(axes: Axes, data: Data) -> None:
    if data.train_K is not None:
        axes.axvline(data.train_K, color=style.GREEN, linestyle="--", linewidth=1.2, gid="train_K")
    if data.own_K not in (None, data.train_K):
        axes.axvline(data.own_K, color=style.GREY, linestyle=":", linewidth=1.4, gid="own_K")  # type: ignore[arg-type]
    if _is_fine(data):
        low, high = data.frame["K"].min(), data.frame["K"].max()
        axes.set_xticks(range(STRIDE * -(-low // STRIDE), high + 1, STRIDE))
        axes.set_xticks(range(8 * -(-low // 8), high + 1, 8), minor=True)


def _is_fine(data: Data) -> bool:
    """Steps so small that the multiples of the stride are what to look at."""
    return data.frame["K"].drop_duplicates().diff().max() < STRIDE / 4


def _mark_handles(data: Data) -> list[Artist]:
    handles: list[Artist] = []
    if data.train_K is not None:
        handles.append(Line2D([], [], color=style.GREEN, linestyle="--", label=f"trained at {data.train_K}"))
    if data.own_K not in (None, data.train_K):
        handles.append(Line2D([], [], color=style.GREY, linestyle=":", label=f"its own test size, {data.own_K}"))
    return handles
