"""Does a GPU meet what is asked of it? One table of what was wanted, what was measured, and what is absent and why.

Reads what bench/compare/gpu.py left in its folder, and measures nothing:

    end to end         over the ceiling min(P, M/N) (DESIGN rule 6): 0.95 where the two differ by more than 1.5 times,
                       0.85 in between; ResNet-50, half precision, compiled
    pipeline           our fastest backend, tuned, over the loader that people write, on the same cores: 5 times at one
                       crop, 20 times at 20
    network alone      ours over the same network as timm's benchmark runs it, each at its best chunk: at least 1
    kernels active     at least 0.95 of the wall time at five crops and more, from a profiler's trace
    same answer        of the GPU's decoding and the CPU backends', image by image: 0.99
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import records
from bench.compare import loader_records as rival_records
from bench.compare.gpu import HEADLINE, NETWORKS, PARITY_HW_LOADS, place
from bench.compare.loader_table import OURS
from bench.compare.network import COMPILED, TIMM

OVER_PIL = {1: 5.0, 20: 20.0}  # crops -> times as fast
FAR_APART, FAR, NEAR = 1.5, 0.95, 0.85
KERNELS, KERNELS_FROM_CROPS = 0.95, 5
AGREEMENT = 0.99
Why = Callable[[str], str]  # the name of a step -> why what it should have written is not there


@dataclass(frozen=True, slots=True)
class Bar:
    """One figure and the least that it should be. ``measured`` is None where it is absent; then ``note`` says why."""

    what: str
    wanted: float | None  # None where not even that could be read
    measured: float | None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "absent"
        return "pass" if self.wanted is not None and self.measured >= self.wanted else "miss"


def bars(folder: Path, why: Why) -> list[Bar]:
    """All of them, in order. What is damaged is absent: a step may have been ended while it wrote."""
    found: list[Bar] = []
    for table in TABLES:
        try:
            found += list(table(folder, why))
        except (ValueError, KeyError, OSError) as error:
            found.append(Bar(table.__name__.replace("_", " "), None, None, f"{type(error).__name__}: {error}"))
    return found


def end_to_end(folder: Path, why: Why) -> Iterator[Bar]:
    """Efficiency at each crop count."""
    what, path = f"end to end over its ceiling, {HEADLINE}", folder / "runs" / place(HEADLINE)
    from analysis.ceilings import rate_rows  # this module is read by an entry point only

    rows = rate_rows(records.read_run(path).throughputs) if (path / "run.json").is_file() else []
    if not rows:
        yield Bar(what, FAR, None, why(f"run-{HEADLINE}"))
    for row in rows:
        pipeline, network = row["pipeline_images_per_sec"], row["network_crops_per_sec"] / row["crops"]
        ratio = max(pipeline, network) / min(pipeline, network)
        rates = f"P {pipeline:.0f}, M/N {network:.0f}, end to end {row['images_per_sec']:.0f} images/s"
        note = f"{rates}, which spread by {row['spread']:.0%}"
        wanted = FAR if ratio > FAR_APART else NEAR
        yield Bar(f"{what}, {row['crops']} crops", wanted, row["efficiency"], note)


def over_pil(folder: Path, why: Why) -> Iterator[Bar]:
    """Our fastest backend over rival (a), both to the network's input."""
    for crops, wanted in OVER_PIL.items():
        what, path = f"pipeline over the PIL loader, {crops} crops", folder / "rivals" / str(crops)
        lines = rival_records.read(path) if (path / "loaders.jsonl").is_file() else []
        table = rival_records.rows(lines, list(OURS))
        found = [r for r in table if (r["loader"], r["crops"]) == ("pil", crops) and r["output"] != "uint8"]
        ratios = {name: row[f"{name}_over_it"] for row in found for name in OURS if row[f"{name}_over_it"]}
        if not ratios:
            said = [f"{one.loader}: {one.reason}" for one in lines if isinstance(one, rival_records.NotTimed)]
            yield Bar(what, wanted, None, "; ".join(said) or why(f"rivals-{crops}"))
            continue
        best = max(ratios, key=lambda name: ratios[name])
        low, high = (found[0][f"{best}_over_it_{end}"] for end in ("low", "high"))
        interval = "" if low is None else f", {low:.2f} .. {high:.2f}"
        yield Bar(what, wanted, ratios[best], f"{best}{interval}, {found[0]['rounds']} rounds")


def network_alone(folder: Path, why: Why) -> Iterator[Bar]:
    """Ours over timm's way, each at its best chunk."""
    for model in NETWORKS:
        what = f"network alone over timm's benchmark, {model}"
        rows = [row for path in sorted(folder.glob(f"network/{place(model)}-*/network.csv")) for row in _csv(path)]
        best: dict[str, dict[str, str]] = {}
        for row in rows:
            side = "timm" if row["way"] == TIMM else "ours" if row["way"].endswith(COMPILED) else ""
            if side and float(row["crops_per_sec"]) > float(best.get(side, {}).get("crops_per_sec", 0)):
                best[side] = row
        if {"timm", "ours"} - best.keys():
            note = "no compiled side was timed" if rows else why(f"network-{model}")
            yield Bar(what, 1.0, None, note)
            continue
        rates = {side: float(row["crops_per_sec"]) for side, row in best.items()}
        each = ", ".join(f"{side} {rates[side]:.0f} crops/s at {best[side]['chunk']}" for side in ("ours", "timm"))
        chunks = ", ".join(sorted({row["chunk"] for row in rows}, key=int))
        yield Bar(what, 1.0, rates["ours"] / rates["timm"], f"{each}, of chunks {chunks}")


def kernels_active(folder: Path, why: Why) -> Iterator[Bar]:
    """At each crop count from KERNELS_FROM_CROPS on."""
    path = folder / "kernels.csv"
    rows = [row for row in (_csv(path) if path.is_file() else []) if int(row["crops"]) >= KERNELS_FROM_CROPS]
    if not rows:
        yield Bar("kernels active, share of wall time", KERNELS, None, why("kernels"))
    for row in rows:
        share = float(row["kernel_share"]) if row["kernel_share"] else None
        what = f"kernels active, share of wall time, {row['model']}, {row['crops']} crops"
        yield Bar(what, KERNELS, share, "" if row["kernel_share"] else "the profiler saw no kernel")


def same_answer(folder: Path, why: Why) -> Iterator[Bar]:
    """Top-1 of dali-gpu and of each CPU backend, at the policy where they agree least."""
    for load in PARITY_HW_LOADS:
        path = folder / "parity" / f"hw-{load}" / "parity.json"
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        pairs = {pair: shares for pair, shares in found.get("top1_agreement", {}).items() if "dali-gpu" in pair}
        if not pairs:
            note = "dali-gpu was not compared" if found else why(f"parity-{load}")
            yield Bar(f"same answer, JPEG engine's share {load}", AGREEMENT, None, note)
        for pair, shares in pairs.items():
            least = min(shares, key=lambda policy: shares[policy])
            frames = found["frames"][pair]
            note = f"at {least}, {found['images']} images; frames differ by {frames['mean']:.3f} grey levels"
            yield Bar(f"same answer, {pair}, JPEG engine's share {load}", AGREEMENT, shares[least], note)


TABLES: tuple[Callable[[Path, Why], Iterator[Bar]], ...] = (
    end_to_end, over_pil, network_alone, kernels_active, same_answer,
)  # fmt: skip


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def text(table: Sequence[Bar]) -> list[str]:
    """For a person."""
    width = max(len(bar.what) for bar in table)
    lines = [f"{'':{width}}  wanted  measured"]
    for bar in table:
        wanted = "-" if bar.wanted is None else f"{bar.wanted:.2f}"
        measured = "-" if bar.measured is None else f"{bar.measured:.3f}"
        lines.append(f"{bar.what:{width}}  {wanted:>6s}  {measured:>8s}  {bar.verdict:6s}  {bar.note}".rstrip())
    return lines


def write(path: Path, table: Sequence[Bar]) -> None:
    """As CSV; an absent figure is an empty cell."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "wanted", "measured", "verdict", "note"])
        writer.writerows([bar.what, bar.wanted, bar.measured, bar.verdict, bar.note] for bar in table)
