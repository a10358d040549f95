"""Does a GPU meet its targets? One table of what was wanted, what was measured, and what is absent and why.

Read from the results folder of ``multicrop-bench compare gpu``:

    end to end         over the ceiling min(P, M/N) (DESIGN rule 6): 0.95 where the two differ by more than 1.5 times,
                       0.85 in between; ResNet-50, half precision, compiled
    pipeline           our fastest backend, tuned, over the PIL loader, on the same cores: 5 times at one
                       crop, 20 times at 20
    network alone      ours over the same network as timm's benchmark runs it, each at its best batch size: at least 1
    kernels active     at least 0.95 of the wall time at five crops and more, from a profiler's trace
    same answer        of the GPU's decoding and the CPU backends', image by image: 0.99
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.ceilings import rate_rows
from bench import records
from bench.compare import loader_records
from bench.compare.gpu_steps import HEADLINE, NETWORKS, PARITY_HW_LOADS, folder_of
from bench.compare.loader_table import OURS
from models.variants import COMPILED, TIMM
from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, read_csv, read_json, required_fields
from pipelines.text import csv_text

OVER_PIL = {1: 5.0, 20: 20.0}  # crops -> times as fast
FAR_APART, FAR, NEAR = 1.5, 0.95, 0.85
KERNELS, KERNELS_FROM_CROPS = 0.95, 5
AGREEMENT = 0.99
WHO = ("ours", "timm")
# What is read of the steps' files.
NETWORK_COLUMNS = {"variant": str, "crops_per_sec": float, "batch_size": int}
KERNEL_COLUMNS = {"model": str, "crops": int, "kernel_share": float | None}
PARITY = {"images": int, "top1_agreement": dict[str, dict[str, float]], "frames": dict[str, dict[str, float]]}
Why = Callable[[str], str]  # the name of a step -> why what it should have written is not there


@dataclass(frozen=True, slots=True)
class Target:
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


def targets(folder: Path, why: Why) -> list[Target]:
    """All of them, in order. What is damaged is absent: a step may have been ended while it wrote."""
    found: list[Target] = []
    for table in TABLES:
        try:
            found += list(table(folder, why))
        except (ValueError, OSError) as error:
            found.append(Target(table.__name__.replace("_", " "), None, None, str(error)))
    return found


def end_to_end(folder: Path, why: Why) -> Iterator[Target]:
    """Efficiency at each crop count."""
    what, path = f"end to end over its ceiling, {HEADLINE}", folder / "runs" / folder_of(HEADLINE)
    rows = rate_rows(records.read_run(path).throughputs) if (path / "run.json").is_file() else []
    if not rows:
        yield Target(what, FAR, None, why(f"run-{HEADLINE}"))
    for row in rows:
        pipeline, network = row["pipeline_images_per_sec"], row["network_crops_per_sec"] / row["crops"]
        ratio = max(pipeline, network) / min(pipeline, network)
        rates = f"P {pipeline:.0f}, M/N {network:.0f}, end to end {row['images_per_sec']:.0f} images/s"
        note = f"{rates}, which spread by {row['spread']:.0%}"
        wanted = FAR if ratio > FAR_APART else NEAR
        yield Target(f"{what}, {row['crops']} crops", wanted, row["efficiency"], note)


def over_pil(folder: Path, why: Why) -> Iterator[Target]:
    """Our fastest backend over the PIL loader (a), both to the network's input."""
    for crops, wanted in OVER_PIL.items():
        what, path = f"pipeline over the PIL loader, {crops} crops", folder / "loaders" / str(crops)
        lines = loader_records.read(path) if (path / "loaders.jsonl").is_file() else []
        table = loader_records.rows(lines, list(OURS))
        found = [r for r in table if (r["loader"], r["crops"]) == ("pil", crops) and r["output"] != "uint8"]
        ratios = {name: row[f"{name}_over_it"] for row in found for name in OURS if row[f"{name}_over_it"]}
        if not ratios:
            said = [f"{one.loader}: {one.reason}" for one in lines if isinstance(one, loader_records.NotTimed)]
            yield Target(what, wanted, None, "; ".join(said) or why(f"loaders-{crops}"))
            continue
        best = max(ratios, key=lambda name: ratios[name])
        low, high = (found[0][f"{best}_over_it_{end}"] for end in ("low", "high"))
        interval = "" if low is None else f", {low:.2f} .. {high:.2f}"
        yield Target(what, wanted, ratios[best], f"{best}{interval}, {found[0]['rounds']} rounds")


def network_alone(folder: Path, why: Why) -> Iterator[Target]:
    """Ours over timm's benchmark, each at its best batch size."""
    for model in NETWORKS:
        what = f"network alone over timm's benchmark, {model}"
        paths = sorted(folder.glob(f"network/{folder_of(model)}-*/network.csv"))
        table = pd.concat([read_csv(path, NETWORK_COLUMNS) for path in paths]) if paths else None
        if table is None:
            yield Target(what, 1.0, None, why(f"network-{model}"))
            continue
        theirs, ours = table[table["variant"] == TIMM], table[table["variant"].str.endswith(COMPILED)]
        if theirs.empty or ours.empty:
            yield Target(what, 1.0, None, "no compiled variant was timed")
            continue
        best = [part.loc[part["crops_per_sec"] == part["crops_per_sec"].max()].iloc[0] for part in (ours, theirs)]
        rates = [float(row["crops_per_sec"]) for row in best]
        each = (
            f"{who} {row['crops_per_sec']:.0f} crops/s at {row['batch_size']}"
            for who, row in zip(WHO, best, strict=True)
        )
        sizes = ", ".join(map(str, sorted(set(table["batch_size"]))))
        yield Target(what, 1.0, rates[0] / rates[1], f"{', '.join(each)}, of batch sizes {sizes}")


def kernels_active(folder: Path, why: Why) -> Iterator[Target]:
    """At each crop count from KERNELS_FROM_CROPS on."""
    path = folder / "kernels.csv"
    table = read_csv(path, KERNEL_COLUMNS) if path.is_file() else None
    if table is None:
        yield Target("kernels active, share of wall time", KERNELS, None, why("kernels"))
        return
    for row in table[table["crops"] >= KERNELS_FROM_CROPS].to_dict("records"):
        what = f"kernels active, share of wall time, {row['model']}, {row['crops']} crops"
        seen = not pd.isna(row["kernel_share"])
        yield Target(what, KERNELS, row["kernel_share"] if seen else None, "" if seen else "the profiler saw no kernel")


def same_answer(folder: Path, why: Why) -> Iterator[Target]:
    """Top-1 of dali-gpu and of each CPU backend, at the policy where they agree least."""
    for load in PARITY_HW_LOADS:
        path = folder / "parity" / f"hw-{load}" / "parity.json"
        found = required_fields(read_json(path), PARITY, str(path)) if path.is_file() else {}
        pairs = {pair: shares for pair, shares in found.get("top1_agreement", {}).items() if "dali-gpu" in pair}
        if not pairs:
            note = "dali-gpu was not compared" if found else why(f"parity-{load}")
            yield Target(f"same answer, JPEG engine's share {load}", AGREEMENT, None, note)
        for pair, shares in pairs.items():
            frames = found["frames"].get(pair, {})
            if not shares or "mean" not in frames:
                raise DamagedFile(f"{path}: {pair} lacks its shares, or the mean difference of its frames")
            least = min(shares, key=lambda policy: shares[policy])
            note = f"at {least}, {found['images']} images; frames differ by {frames['mean']:.3f} grey levels"
            yield Target(f"same answer, {pair}, JPEG engine's share {load}", AGREEMENT, shares[least], note)


TABLES: tuple[Callable[[Path, Why], Iterator[Target]], ...] = (
    end_to_end, over_pil, network_alone, kernels_active, same_answer,
)  # fmt: skip


def text(table: Sequence[Target]) -> list[str]:
    """For a person."""
    width = max(len(target.what) for target in table)
    lines = [f"{'':{width}}  wanted  measured"]
    for target in table:
        wanted = "-" if target.wanted is None else f"{target.wanted:.2f}"
        measured = "-" if target.measured is None else f"{target.measured:.3f}"
        lines.append(
            f"{target.what:{width}}  {wanted:>6s}  {measured:>8s}  {target.verdict:6s}  {target.note}".rstrip()
        )
    return lines


def write(path: Path, table: Sequence[Target]) -> None:
    """As CSV; an absent figure is an empty field."""
    columns = ["what", "wanted", "measured", "verdict", "note"]
    rows = [[getattr(target, column) for column in columns] for target in table]
    write_whole(path, csv_text(pd.DataFrame(rows, columns=columns)))
