"""Images and crops per second against the number of crops, with what they cannot exceed drawn in (DESIGN rule 6).

P: the pipeline alone; M/N: the network alone; their combination is the ceiling of end to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style
from analysis.ceilings import crossover, rate_rows
from analysis.runs import Inputs, MissingData, NetworkRun, display_name, endings, provenance, timed_networks
from bench.records import DECODE, MODEL, READ, RESIZE, Run, Setting


@dataclass(frozen=True, slots=True)
class Data:
    """``frame``: one row a crop count, see ``rates``. ``stages``: what does not depend on it -> images per second."""

    name: str
    frame: pd.DataFrame
    stages: dict[str, float]
    notes: list[str]


def pictures(inputs: Inputs) -> dict[str, Data]:
    """One picture for each network that was timed end to end."""
    timed = timed_networks(inputs.runs)
    found = {ending: _data(network) for ending, network in zip(endings(timed), timed, strict=True)}
    drawable = {ending: data for ending, data in found.items() if len(data.frame)}
    if not drawable:
        raise MissingData("needs load, model and end_to_end rates of one network: the throughput pass did not finish")
    return drawable


def _data(network: NetworkRun) -> Data:
    run, setting = network
    shared = setting.device == "cpu"
    rounds = max(len(t.rates) for t in run.throughputs if t.setting == setting)
    ceiling = "1 / (1/P + n/M): they share the cores" if shared else "min(P, M/n): the network has its own device"
    notes = [
        f"Medians of {rounds} rounds; bars: smallest and largest. Ceiling {ceiling}. {turning(run, setting)}",
        *provenance([network]),
    ]
    stages = {t.stage: t.rate for t in run.throughputs if t.setting == setting and t.stage in (READ, DECODE, RESIZE)}
    return Data(display_name(setting), rates(run, setting), stages, notes)


def turning(run: Run, setting: Setting) -> str:
    """From how many crops on the network is the slower part, in a sentence; "" where that is not known."""
    found = crossover([t for t in run.throughputs if t.setting == setting])
    if found is None:
        return ""
    return f"The network is the slower part above n = M/P = {found.predicted:.1f} ({found.text})."


def rates(run: Run, setting: Setting) -> pd.DataFrame:
    """Rows by crop count: end to end, pipeline, network, each with low and high over rounds; the ceiling. Images/s."""
    own = [t for t in run.throughputs if t.setting == setting]
    network = next((t for t in own if t.stage == MODEL), None)
    rows = []
    for row in rate_rows(own):
        assert network is not None  # rate_rows gives no row without it
        n = row["crops"]
        rows.append(
            {
                "crops": n,
                **_spread("end_to_end", row["rates"], row["images_per_sec"]),
                **_spread("pipeline", row["pipeline_rates"], row["pipeline_images_per_sec"]),
                **_spread("network", [rate / n for rate in network.rates], row["network_crops_per_sec"] / n),
                "ceiling": row["ceiling_images_per_sec"],
            }
        )
    return pd.DataFrame(rows).sort_values("crops").reset_index(drop=True) if rows else pd.DataFrame()


def _spread(name: str, rates: list[float], median: float) -> dict[str, float]:
    return {name: median, f"{name}_low": min(rates), f"{name}_high": max(rates)}


STAGES: dict[str, tuple[str, Any]] = {
    READ: ("reading", ":"),
    DECODE: ("reading, decoding", "-."),
    RESIZE: ("reading, decoding, resizing", (0, (6, 2))),
}
# column -> legend text, colour, line style, marker; in the order of drawing
SERIES = {
    "pipeline": ("P: pipeline alone", style.GREEN, "--", "^"),
    "network": ("M/n: network alone", style.ORANGE, "--", "s"),
    "end_to_end": ("end to end", style.BLUE, "-", "o"),
}


@style.styled
def draw(data: Data) -> Figure:
    figure, (images, crops) = style.canvas(1, 2, height=4.6)
    handles = _panel(images, data.frame, per_crop=False)
    for stage, rate in data.stages.items():
        words, line = STAGES[stage]
        handles.append(images.axhline(rate, color="#777777", linewidth=1, linestyle=line, label=words, gid=stage))
    style.plain_log_axis(images.yaxis, style.nice_ticks(*images.get_ylim()))
    _panel(crops, data.frame, per_crop=True)
    images.set_ylabel(style.label("images_per_sec"))
    crops.set_ylabel(style.label("crops_per_sec"))
    return style.finish(
        figure, title=f"{data.name}: throughput against crops", notes=data.notes, handles=handles, columns=4
    )


def _panel(axes: Axes, frame: pd.DataFrame, *, per_crop: bool) -> list[Any]:
    n = frame["crops"].to_numpy()
    factor = n if per_crop else 1
    ceiling = axes.plot(
        n,
        frame["ceiling"] * factor,
        color="black",
        linestyle=":",
        linewidth=1.8,
        label="ceiling of both",
        gid="ceiling",
    )
    handles: list[Any] = list(ceiling)
    for column, (text, colour, line, marker) in SERIES.items():
        middle = frame[column] * factor
        bars = [middle - frame[f"{column}_low"] * factor, frame[f"{column}_high"] * factor - middle]
        handles.append(
            axes.errorbar(
                n, middle, yerr=bars, color=colour, linestyle=line, marker=marker, markersize=4.5, capsize=2.5,
                elinewidth=1, label=text, gid=column,
            )
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_yscale("log")
    style.plain_log_axis(axes.xaxis, n.tolist())
    style.plain_log_axis(axes.yaxis, style.nice_ticks(*axes.get_ylim()))
    axes.set_xlabel(style.label("crops"))
    return handles
