"""One network evaluated at several test resolutions: the sweep, and paired comparisons within it.

All comparisons are paired, on the same images: a larger crop against the network's own size, and one large crop
against several crops of the own size that cost about as much, which none of the papers compares.

    multicrop-bench sizes RUN...        # the tables; all rows: sizes.csv, equal_cost.csv in the first run
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.commands import command, command_parser
from analysis.evidence import common
from analysis.runs import (
    ImagePredictions,
    MissingData,
    NetworkRun,
    accuracies,
    predictions,
    read,
    require_all_comparable,
    rows_of_network,
    scored_networks,
)
from analysis.stats import paired
from analysis.text import visible, write_csv
from bench.records import END_TO_END, SPEED_FIELDS, Run

VARYING = ("S", "K", "batch_size", *SPEED_FIELDS)
LEVEL = "softmax"


@dataclass(frozen=True)
class Sweep:
    """One network at each K, in order of K."""

    networks: tuple[NetworkRun, ...]
    own_K: int | None  # the test size that the weights are made for; None where the run does not record it
    train_K: int | None

    @property
    def resolutions(self) -> list[int]:
        return [setting.K for _, setting in self.networks]

    @property
    def base(self) -> NetworkRun:
        """The network at its own size. Raises MissingData where it was not scored."""
        found = next((network for network in self.networks if self.own_K == network[1].K), None)
        if found is None:
            own = self.own_K or "the network's own size, which the run does not record"
            raise MissingData(f"compares with the network's own size: add it to --img-size ({own})")
        return found

    @cached_property
    def frame(self) -> pd.DataFrame:
        """Rows of ``analysis.runs.accuracies`` at LEVEL with ``K`` and ``S``, in order of K."""
        runs = list({run.folder: run for run, _ in self.networks}.values())
        rows = accuracies(runs)
        tables = [rows_of_network(rows, network).assign(K=network[1].K, S=network[1].S) for network in self.networks]
        frame = pd.concat(tables, ignore_index=True)
        return frame[frame["level"] == LEVEL].reset_index(drop=True)

    @cached_property
    def _answers(self) -> dict[int, ImagePredictions]:
        return {}

    def right(self, K: int, policy: str) -> tuple[np.ndarray, np.ndarray]:
        """Names [b] and bool [b] of the labelled images. Raises MissingData without predictions."""
        if K not in self._answers:
            self._answers[K] = predictions(self.networks[self.resolutions.index(K)])
        answers = self._answers[K]
        known = answers.labels >= 0
        return np.array(answers.names)[known], answers.of(policy, LEVEL)[known]


def sweeps(runs: Sequence[Run]) -> list[Sweep]:
    """The networks that were scored at several K with one crop ratio, on one data set.

    Raises MissingData when there is none, Incomparable when the runs of a network differ in more than the sizes.
    """
    groups: dict[tuple, list[NetworkRun]] = {}
    for network in scored_networks(runs):
        setting = network[1]
        groups.setdefault((setting.weight_hash, setting.model, setting.data_hash), []).append(network)
    found = [_sweep(own) for own in groups.values() if len({setting.K for _, setting in own}) > 1]
    if not found:
        raise MissingData("needs one network at several K: run with --img-size 128,160,224,256,288,320")
    return found


def _sweep(own: Sequence[NetworkRun]) -> Sweep:
    require_all_comparable(own, VARYING)
    by_K: dict[int, NetworkRun] = {}
    for network in own:
        earlier = by_K.setdefault(network[1].K, network)
        if earlier[1].S != network[1].S:
            raise MissingData(
                f"{network[1].model} at K={network[1].K} has the crop ratios of S={earlier[1].S} and "
                f"S={network[1].S}: give runs with one --crop-pct"
            )
        if len(_policies(network)) > len(_policies(earlier)):
            by_K[network[1].K] = network
    networks = tuple(by_K[K] for K in sorted(by_K))
    own_K, train_K = (next(_recorded(own, name), None) for name in ("own_K", "train_K"))
    return Sweep(networks, own_K, train_K)


def _policies(network: NetworkRun) -> set[str]:
    return {record.policy for record in network[0].accuracies if record.setting == network[1]}


def _recorded(networks: Iterable[NetworkRun], name: str) -> Any:
    """The values that run.json records for a network, without None."""
    for run, setting in networks:
        for model in run.info.get("models", []):
            if model.get("model") == setting.model and model.get(name) is not None:
                yield model[name]


def difference(sweep: Sweep, one: tuple[int, str], other: tuple[int, str]) -> dict[str, Any]:
    """Top-1 of ``one`` (K, policy) less that of ``other``, points, on the images of both: paired 95 % interval
    (Newcombe), exact McNemar p."""
    right, base = common([sweep.right(*one), sweep.right(*other)])
    found = paired(right, base)
    return {
        "difference": found.difference, "low": found.low, "high": found.high, "p_value": found.p_value,
        "images": len(right),
    }  # fmt: skip


def against_own_size(sweep: Sweep) -> pd.DataFrame:
    """One crop at each K against one at the network's own: K and the columns of ``difference``."""
    own = sweep.base[1].K
    return pd.DataFrame([{"K": K, **difference(sweep, (K, "CC"), (own, "CC"))} for K in sweep.resolutions])


def equal_cost(sweep: Sweep) -> pd.DataFrame:
    """One crop at each larger K against N >= 2 crops of the network's own size, from half to twice its cost.

    Cost is pixels, K^2 a crop. Columns: K, N, policy (nRC and CC+(n-1)RC), cost_ratio (the large crop's over the
    others'), time_ratio (the same from images/s end to end; NaN where not timed), nearest (whether no other N costs as
    nearly the same), and those of ``difference`` (positive: the large crop is better).

    Raises MissingData when nothing can be compared.
    """
    own = sweep.base[1].K
    there = _policies(sweep.base)
    rows = []
    for K in [resolution for resolution in sweep.resolutions if resolution > own]:
        ratio = (K / own) ** 2
        counts = [n for n in range(2, ceil(2 * ratio) + 1) if 0.5 <= ratio / n <= 2 and f"{n}RC" in there]
        for n in counts:
            nearest = n == min(counts, key=lambda count: abs(log(ratio / count)))
            cost = {"cost_ratio": ratio / n, "time_ratio": _seconds(sweep, K, 1) / _seconds(sweep, own, n)}
            for policy in [one for one in (f"{n}RC", f"CC+{n - 1}RC") if one in there]:
                compared = difference(sweep, (K, "CC"), (own, policy))
                rows.append({"K": K, "N": n, "policy": policy, **cost, "nearest": nearest, **compared})
    if not rows:
        raise MissingData(
            f"needs K above the network's own {own} and several crops there: run with --img-size "
            f"{own},{ceil(2**0.5 * own)},{2 * own} --crops 1,2,5"
        )
    return pd.DataFrame(rows)


def _seconds(sweep: Sweep, K: int, crops: int) -> float:
    """Seconds per image, end to end; NaN where they were not measured."""
    run, setting = sweep.networks[sweep.resolutions.index(K)]
    rates = [t.rate for t in run.throughputs if t.setting == setting and (t.stage, t.crops) == (END_TO_END, crops)]
    return 1 / rates[0] if rates else float("nan")


def choices(sweep: Sweep) -> pd.DataFrame:
    """Every choice between one crop at any K and several at the own K, with its cost, for accuracy against cost.

    Columns: K, n_views, policy, curve (CC: one crop; RC, CC+RC: at the own K), crops_cost (in crops of the own size),
    seconds (an image, end to end; NaN where not timed), top1, top1_low, top1_high.
    """
    own = sweep.base[1].K
    frame = sweep.frame
    chosen = frame[(frame["curve"] == "CC") | ((frame["K"] == own) & frame["curve"].isin(["RC", "CC+RC"]))]
    cost = chosen["n_views"] * (chosen["K"] / own) ** 2
    seconds = [_seconds(sweep, K, n) for K, n in zip(chosen["K"], chosen["n_views"], strict=True)]
    columns = ["K", "n_views", "policy", "curve", "top1", "top1_low", "top1_high", "images"]
    return chosen[columns].assign(crops_cost=cost, seconds=seconds).reset_index(drop=True)


def tables(found: Sequence[Sweep]) -> dict[str, pd.DataFrame]:
    """File name -> one table of all sweeps. Raises MissingData where a network's own size is missing."""
    sizes, costs = [], []
    for sweep in found:
        name = {"model": sweep.networks[0][1].model, "train_K": sweep.train_K, "own_K": sweep.own_K}
        shown = sweep.frame[["K", "S", "policy", "top1", "top1_low", "top1_high", "images"]]
        own = against_own_size(sweep).drop(columns="images").assign(policy="CC")
        sizes.append(shown.merge(own, on=["K", "policy"], how="left").assign(**name))
        try:
            costs.append(equal_cost(sweep).assign(**name))
        except MissingData as reason:
            print(f"no table of equal cost for {visible(sweep.networks[0][1].model)}: {reason}", file=sys.stderr)
    made = {"sizes.csv": sizes, "equal_cost.csv": costs}
    return {file: pd.concat(frames, ignore_index=True) for file, frames in made.items() if frames}


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    parser = command_parser("sizes", __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    args = parser.parse_args(argv)
    found = tables(sweeps(read(args.runs)))
    for file, table in found.items():
        main_rows = table["nearest"] if "nearest" in table else table["policy"] == "CC"
        print(table[main_rows].round(3).to_string(index=False))
        print(write_csv(args.runs[0] / file, table))
    return 0
