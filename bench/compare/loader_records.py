"""What ``multicrop-bench compare loaders`` writes, and how it is read back. No torch.

    run.json        the command, the settings that all loaders share, the machine, what each loader is
    loaders.jsonl   one line for each timed segment as it is measured (`Timed`), and for what was not timed (`NotTimed`)
    loaders.csv     one row for each loader, output and crop count: medians, and each of our backends over that loader

Raw counts and times are stored; rates, medians and intervals are computed on reading.

History of the schema: 2 names loaders and workloads, as the code does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, parse_json_line, read_text, typed
from pipelines.text import csv_text

SCHEMA = 2
CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True, slots=True, order=True)
class Workload:
    """What a loader is asked to do. Loaders are compared on equal workloads only."""

    output: str  # "uint8", or the float type of the network's input
    crops: int  # of each image


@dataclass(frozen=True, slots=True)
class Timed:
    """One segment of one loader."""

    kind: ClassVar[str] = "timed"
    loader: str
    workload: Workload
    round: int
    crops_done: int  # crops that arrived; divided by workload.crops: images
    duration_s: float
    batch_images: int
    peak_mem_bytes: int  # the loader's processes, when the segment ended
    frame_error_levels: float  # worst mean difference of a checked crop from the reference, grey levels

    @property
    def images_per_sec(self) -> float:
        return self.crops_done / self.workload.crops / self.duration_s


@dataclass(frozen=True, slots=True)
class NotTimed:
    """A loader, or one workload of it, that was not timed, and why."""

    kind: ClassVar[str] = "not timed"
    loader: str
    workload: Workload | None  # None: none of them
    reason: str
    wrong: bool = False  # its pixels are not the images'


Line = Timed | NotTimed
KINDS: dict[str, type[Timed] | type[NotTimed]] = {c.kind: c for c in (Timed, NotTimed)}


def to_line(line: Line) -> str:
    return json.dumps({"schema": SCHEMA, "kind": line.kind, **asdict(line)}, allow_nan=False)


LEAST = {"round": 0, "crops_done": 0, "duration_s": 1e-12, "batch_images": 0, "peak_mem_bytes": 0}


def from_line(text: str, where: str = "a line") -> Line:
    """Raises DamagedFile for another schema, an unknown kind, or other fields or types than this version's."""
    values = parse_json_line(text, where)
    schema, kind = values.pop("schema", None), values.pop("kind", None)
    if schema != SCHEMA or not isinstance(kind, str) or kind not in KINDS:
        raise DamagedFile(
            f"{where}: schema {schema!r}, kind {kind!r}: this version reads schema {SCHEMA}, {', '.join(KINDS)}"
        )
    line: Line = typed(KINDS[kind], values, where, LEAST)
    if line.workload and line.workload.crops < 1:
        raise DamagedFile(f"{where}: `crops` is {line.workload.crops}, and must be at least 1")
    return line


def append(folder: Path, line: Line) -> None:
    """Add one line to loaders.jsonl, and wait until it is on the disk."""
    with (folder / "loaders.jsonl").open("a", encoding="utf-8") as file:
        file.write(to_line(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> list[Line]:
    """Raises ValueError, naming the line, for what is damaged."""
    path = folder / "loaders.jsonl"
    lines = read_text(path).splitlines()
    return [from_line(text, f"{path}, line {number}") for number, text in enumerate(lines, 1)]


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one loader in one workload."""

    loader: str
    workload: Workload
    rates: dict[int, float]  # round -> images per second
    batch_images: int
    peak_mem_bytes: int
    frame_error_levels: float

    @property
    def rate(self) -> float:
        """Median over rounds, images per second."""
        return float(np.median(list(self.rates.values())))

    @property
    def spread(self) -> float:
        """(largest - smallest) / median over rounds."""
        return (max(self.rates.values()) - min(self.rates.values())) / self.rate


def summaries(lines: Iterable[Line]) -> list[Summary]:
    """In order of first appearance."""
    timed: dict[tuple[str, Workload], list[Timed]] = {}
    for line in lines:
        if isinstance(line, Timed):
            timed.setdefault((line.loader, line.workload), []).append(line)
    return [
        Summary(
            loader,
            workload,
            {one.round: one.images_per_sec for one in mine},
            mine[0].batch_images,
            max(one.peak_mem_bytes for one in mine),
            mine[0].frame_error_levels,
        )
        for (loader, workload), mine in timed.items()
    ]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as many images a second one loader did as the other, round by round."""

    median: float  # of the rounds' ratios
    low: float | None  # its 95 % interval; None with fewer than two rounds
    high: float | None
    rounds: int


def paired_ratio(ours: dict[int, float], theirs: dict[int, float], seed: int = 0) -> Ratio | None:
    """The median of the ratios of the rounds that both have, with its 95 % percentile-bootstrap interval over rounds.

    A ratio within a round cancels what slows the machine for both. None without a common round. With five rounds or
    fewer no interval of the median can reach 95 %: the one given is then from the smallest ratio to the largest.
    """
    rounds = sorted(ours.keys() & theirs.keys())
    if not rounds:
        return None
    ratios = np.array([ours[r] / theirs[r] for r in rounds])
    middle = float(np.median(ratios))
    if len(rounds) < 2:
        return Ratio(middle, None, None, len(rounds))
    interval = bootstrap(
        (ratios,),
        np.median,
        confidence_level=CONFIDENCE,
        n_resamples=RESAMPLES,
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Ratio(middle, float(interval.low), float(interval.high), len(rounds))


def rows(lines: Sequence[Line], ours: Sequence[str]) -> list[dict[str, Any]]:
    """One row for each loader and workload: plain figures, and the ratio of each of ``ours`` to that loader."""
    found = summaries(lines)
    mine = {(s.loader, s.workload): s for s in found if s.loader in ours}
    out = []
    for s in sorted(found, key=lambda s: (s.workload.output == "uint8", s.workload.crops)):
        row: dict[str, Any] = {
            "output": s.workload.output,
            "crops": s.workload.crops,
            "loader": s.loader,
            "images_per_sec": s.rate,
            "rate_low": min(s.rates.values()),
            "rate_high": max(s.rates.values()),
            "spread": s.spread,
            "rounds": len(s.rates),
            "batch_images": s.batch_images,
            "peak_mem_bytes": s.peak_mem_bytes,
            "frame_error_levels": s.frame_error_levels,
        }
        for name in ours:
            one = mine.get((name, s.workload))
            ratio = paired_ratio(one.rates, s.rates) if one and name != s.loader else None
            row |= {
                f"{name}_over_it": ratio and ratio.median,
                f"{name}_over_it_low": ratio and ratio.low,
                f"{name}_over_it_high": ratio and ratio.high,
            }
        out.append(row)
    return out


def write_csv(folder: Path, table: Sequence[dict[str, Any]]) -> Path:
    """loaders.csv; an absent figure is an empty field."""
    path = folder / "loaders.csv"
    write_whole(path, csv_text(pd.DataFrame(list(table))))
    return path
