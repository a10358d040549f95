"""A fine-tuned network against the network that it was made from, evaluated in other ways at equal cost (FixRes, MID).

    multicrop-bench finetune --family resnet --img-size 128 --epochs 30 --batch-size 64 --out runs/tuned
    multicrop-bench run --models resnet:demo --checkpoint runs/tuned/model.safetensors --img-size 128 \\
        --policies CC --no-throughput --out runs/tuned-scored
    multicrop-bench run --family resnet --img-size 96,128 --crops 1,2,5 --no-throughput --out runs/untuned
    multicrop-bench fixres runs/tuned-scored runs/untuned

The tuned network's centre crop is compared with the untuned one's at the same size, at its own size, and with as many
of its own random crops as cost the same pixels, image by image: difference of top-1 with its paired 95 % interval
(Newcombe), exact McNemar p. Prints a table and writes fixres.csv into the first folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.commands import command, command_parser
from analysis.evidence import common
from analysis.runs import MissingData, NetworkRun, predictions, read, scored_networks
from analysis.stats import mcnemar, paired_difference
from analysis.text import aligned, write_csv
from bench.records import Incomparable, Run

LEVEL = "softmax"


def right(network: NetworkRun, policy: str) -> tuple[np.ndarray, np.ndarray]:
    """Names [b] and bool [b] of a part's labelled images."""
    answers = predictions(network)
    known = answers.labels >= 0
    return np.array(answers.names)[known], answers.of(policy, LEVEL)[known]


def compare(tuned: Run, untuned: Run) -> pd.DataFrame:
    """One row for each variant of evaluating the untuned network, for each size of the tuned one.

    Columns: K, against, K_other, policy, cost_ratio (pixels, the tuned crop's over the other's), tuned_top1, top1,
    difference, low, high (points), p_value, images. Raises MissingData, with the remedy, where a run or size is
    missing, Incomparable where the two are of other images.
    """
    others = {network[1].K: network for network in scored_networks([untuned])}
    own = next((m["own_K"] for m in untuned.info.get("models", []) if m.get("own_K") in others), min(others, default=0))
    rows = []
    for network in scored_networks([tuned]):
        base = others.get(network[1].K)
        if base is None:
            raise MissingData(f"{untuned.folder} has no centre crop at {network[1].K} pixels: add it to --img-size")
        if base[1].data_hash != network[1].data_hash:
            raise Incomparable(f"data_hash differs: {tuned.folder} and {untuned.folder} are of other images or labels")
        if base[1].weight_hash == network[1].weight_hash:
            raise MissingData(f"{tuned.folder} and {untuned.folder} hold one network: give the tuned run first")
        K = network[1].K
        variants = [("the same size", K, "CC")]
        if own < K:
            variants += [
                ("its own size", own, "CC"),
                *(("equal cost", own, policy) for policy in equal(others[own], K)),
            ]
        rows += [{"K": K, "against": what, **row(network, others[k], policy)} for what, k, policy in variants]
    return pd.DataFrame(rows)


def equal(own: NetworkRun, K: int) -> list[str]:
    """The policies of the untuned network whose cost is nearest to one crop of K. Raises MissingData without any."""
    ratio = (K / own[1].K) ** 2
    there = {record.policy for record in own[0].accuracies if record.setting == own[1]}
    n = max(2, round(ratio))
    found = [policy for policy in (f"{n}RC", f"CC+{n - 1}RC") if policy in there]
    if not found:
        raise MissingData(
            f"one crop of {K} costs {ratio:.1f} crops of {own[1].K}: run the untuned one with --crops {n}"
        )
    return found


def row(tuned: NetworkRun, other: NetworkRun, policy: str) -> dict[str, Any]:
    ours, theirs = common([right(tuned, "CC"), right(other, policy)])
    newly_correct, newly_wrong, images = int((ours & ~theirs).sum()), int((theirs & ~ours).sum()), len(ours)
    low, high = paired_difference(newly_correct, newly_wrong, int(ours.sum()), images)
    n = next(record.n_views for record in other[0].accuracies if record.policy == policy)
    return {
        "K_other": other[1].K,
        "policy": policy,
        "cost_ratio": (tuned[1].K / other[1].K) ** 2 / n,
        "tuned_top1": 100 * float(ours.mean()),
        "top1": 100 * float(theirs.mean()),
        "difference": 100 * (newly_correct - newly_wrong) / images,
        "low": low,
        "high": high,
        "p_value": mcnemar(newly_correct, newly_wrong),
        "images": images,
    }


def text(frame: pd.DataFrame) -> str:
    """The table for the terminal."""
    rows = [["tuned, K", "top-1 %", "against untuned", "top-1 %", "cost", "difference (95 %)", "p"]]
    for one in frame.to_dict("records"):
        rows.append(
            [
                str(one["K"]),
                f"{one['tuned_top1']:.2f}",
                f"{one['policy']} of {one['K_other']} ({one['against']})",
                f"{one['top1']:.2f}",
                f"{one['cost_ratio']:.2f}",
                f"{one['difference']:+.2f} ({one['low']:+.2f} .. {one['high']:+.2f})",
                f"{one['p_value']:.2g}",
            ]
        )
    note = f"{frame['images'].iloc[0]:,} images; cost: pixels of the tuned crop over the other's"
    return "\n".join([*aligned(rows), note])


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, or 2 for what the user can correct."""
    parser = command_parser("fixres", __doc__)
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="a run of the fine-tuned checkpoint")
    parser.add_argument("untuned", type=Path, metavar="UNTUNED", help="a run of the network that it was made from")
    args = parser.parse_args(argv)
    frame = compare(*read([args.tuned, args.untuned]))
    print(text(frame))
    print(write_csv(args.tuned / "fixres.csv", frame))
    return 0
