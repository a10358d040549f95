"""Top-1 against the hours of training: trained low and fine-tuned beside trained at the test size (FixRes, Table 7)."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis import style
from analysis.published import load
from analysis.runs import Inputs, MissingData


@dataclass(frozen=True, slots=True)
class Data:
    """``rows``: a row of Table 7 each: train_res, test_res, is_tuned, hours, top1."""

    rows: pd.DataFrame
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One published figure. Raises MissingData with runs: no run trains from scratch on ImageNet."""
    if inputs.runs:
        raise MissingData("draws published numbers only: use --published")
    rows = trade_off()
    notes = ["Published: FixRes Table 7, ResNet-50; hours of one GPU, training and fine-tuning together.", *words(rows)]
    return {"": Data(rows, notes)}


def trade_off() -> pd.DataFrame:
    """Table 7, a row for each pair of sizes: train_res, test_res, is_tuned, hours, top1."""
    key = ["train_res", "test_res", "adaptation"]
    frame = load("fixres_table7")
    wide = frame[frame["metric"].isin(("total_time_hours", "top1"))].pivot_table("value", key, "metric").reset_index()
    return pd.DataFrame(
        {
            "train_res": wide["train_res"].astype(int),
            "test_res": wide["test_res"].astype(int),
            "is_tuned": wide["adaptation"] != "none",
            "hours": wide["total_time_hours"],
            "top1": wide["top1"],
        }
    )


def words(rows: pd.DataFrame) -> list[str]:
    """For each test size: what the networks fine-tuned there cost and gain beside the one that was trained there."""
    native = rows[rows["train_res"] == rows["test_res"]].set_index("test_res")
    found = []
    for line in rows[rows["is_tuned"]].to_dict("records"):
        if (size := line["test_res"]) in native.index:
            hours, top1 = line["hours"] - native["hours"][size], line["top1"] - native["top1"][size]
            found.append(f"{line['train_res']} for {size}: {hours:+.1f} h, {top1:+.1f} points")
    return [f"Trained low and fine-tuned, against trained at the test size: {'; '.join(found)}."]


@style.styled
def draw(data: Data) -> Figure:
    figure, (axes,) = style.canvas(height=4.6)
    looks = {False: ("as trained", style.BLUE, "o"), True: ("trained lower, then fine-tuned", style.ORANGE, "D")}
    handles = []
    for is_tuned, (label, colour, marker) in looks.items():
        rows = data.rows[data.rows["is_tuned"] == is_tuned]
        handles.append(
            axes.scatter(rows["hours"], rows["top1"], color=colour, marker=marker, label=label, gid=label, zorder=3)
        )
    for line in data.rows.to_dict("records"):
        below = line["train_res"] != line["test_res"] and not line["is_tuned"]
        axes.annotate(
            f"{line['train_res']} for {line['test_res']}", (line["hours"], line["top1"]), textcoords="offset points",
            xytext=(7, -10 if below else 4), fontsize=style.SMALL,
        )  # fmt: skip
    axes.set_xscale("log")
    style.plain_log_axis(axes.xaxis)
    axes.set_xlabel("hours of training and fine-tuning")
    axes.set_ylabel(style.label("top1"))
    return style.finish(figure, title="What training low saves (FixRes Table 7)", notes=data.notes, handles=handles)
