"""What end-to-end throughput can reach at most, and where the network becomes the slower part (DESIGN rule 6).

P is the pipeline's rate alone in images per second, M the network's alone in crops per second, N crops per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.records import END_TO_END, LOAD, MODEL, Throughput


def ceiling_images_per_sec(pipeline: float, network_crops: float, crops: int, *, shared: bool) -> float:
    """DESIGN rule 6: what end to end can reach, from P images/s and M crops/s.

    ``shared`` is True where the pipeline and the network use the same cores: 1 / (1/P + N/M); else min(P, M/N).
    """
    if shared:
        return 1 / (1 / pipeline + crops / network_crops)
    return min(pipeline, network_crops / crops)


def rate_rows(throughputs: Sequence[Throughput]) -> list[dict[str, Any]]:
    """For each crop count of one model: P, M, end to end, its ceiling (DESIGN rule 6) and the share reached."""
    network = next((t for t in throughputs if t.stage == MODEL and t.policy is None), None)
    loads = {t.crops: t for t in throughputs if t.stage == LOAD and t.policy is None}
    rows = []
    for t in throughputs:
        if t.stage != END_TO_END or t.crops is None or network is None or t.crops not in loads:
            continue
        pipeline = loads[t.crops].rate
        ceiling = ceiling_images_per_sec(pipeline, network.rate, t.crops, shared=t.setting.device == "cpu")
        binds = "pipeline" if pipeline * t.crops < network.rate else "network"
        rows.append(
            {
                "crops": t.crops,
                "pipeline_images_per_sec": pipeline,
                "network_crops_per_sec": network.rate,
                "images_per_sec": t.rate,
                "crops_per_sec": t.crops_per_sec,
                "rates": t.rates,
                "pipeline_rates": loads[t.crops].rates,
                "ceiling_images_per_sec": ceiling,
                "efficiency": t.rate / ceiling,
                "binds": binds,
                "spread": t.spread,
                "record": t,
            }
        )
    return rows


def policy_rows(throughputs: Sequence[Throughput]) -> list[dict[str, Any]]:
    """For each dense or stopped policy of one model: end to end, forward passes per image, and its ceiling, in which n
    crops are the forward passes. A stopped policy has the pipeline of the whole one, and the network's rate on its
    frames where it has any."""
    plain = next((t.rate for t in throughputs if t.stage == MODEL and t.policy is None), None)
    loads = {t.policy or f"{t.crops}RC": t.rate for t in throughputs if t.stage == LOAD}
    networks = {t.policy: t.crops_per_sec for t in throughputs if t.stage == MODEL and t.policy is not None}
    rows = []
    for t in throughputs:
        if t.stage != END_TO_END or t.policy is None or t.forwards is None:
            continue
        whole = t.policy.partition("~")[0]
        pipeline, network = loads.get(whole), networks.get(whole) or plain
        known = pipeline is not None and network is not None
        shared = t.setting.device == "cpu"
        ceiling = None
        if known:
            assert pipeline is not None and network is not None
            ceiling = _ceiling(pipeline, network / t.forwards, shared=shared)
        rows.append(
            {
                "policy": t.policy,
                "images_per_sec": t.rate,
                "rates": t.rates,
                "forwards": t.forwards,
                "spread": t.spread,
                "agreement": t.agreement,
                "ceiling_images_per_sec": ceiling,
                "efficiency": None if ceiling is None else t.rate / ceiling,
                "record": t,
            }
        )
    return rows


def _ceiling(pipeline: float, network: float, *, shared: bool) -> float:
    """Of two rates in images/s."""
    return 1 / (1 / pipeline + 1 / network) if shared else min(pipeline, network)


@dataclass(frozen=True, slots=True)
class Crossover:
    """The number of crops above which the network, not the pipeline, is the slower part."""

    predicted: float  # crops; from the ceilings: where 1/P = N/M
    observed: float | None  # crops; from the end-to-end rates
    why_not: str = ""  # why there is no observed one

    @property
    def text(self) -> str:
        """What the end-to-end rates say, in words."""
        return (
            f"not observed end to end: {self.why_not}"
            if self.observed is None
            else (f"observed end to end at {self.observed:.1f}")
        )


def crossover(throughputs: Sequence[Throughput]) -> Crossover | None:
    """Predicted and observed crossover of one model's throughput; None without its ceilings.

    Seconds per image, end to end, are ``1/P + N/M`` on shared cores: a straight line in N, observed at intercept /
    slope of the least-squares line. With a GPU of its own for the network they are ``max(1/P, N/M)``: observed where
    the level of the fewest crops meets the line through the origin and the most crops.
    """
    rows = rate_rows(throughputs)
    if not rows:
        return None
    predicted = rows[0]["network_crops_per_sec"] / rows[0]["pipeline_images_per_sec"]
    n = np.array([row["crops"] for row in rows], dtype=float)
    seconds = np.array([1 / row["images_per_sec"] for row in rows])
    if len(rows) < 2:
        return Crossover(predicted, None, "only one number of crops was timed")
    if rows[0]["record"].setting.device != "cpu":
        return Crossover(predicted, float(seconds[0] * n[-1] / seconds[-1]))
    slope, intercept = np.polyfit(n, seconds, 1, w=1 / seconds)  # relative errors are alike at all crop counts
    if slope <= 0:
        return Crossover(predicted, None, "an image did not take longer with more crops")
    if intercept <= 0:
        return Crossover(predicted, None, "the time of an image grew at least in proportion to its crops")
    return Crossover(predicted, float(intercept / slope))
