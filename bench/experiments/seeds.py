"""The same fine-tuning with several seeds: how far its results spread by chance alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.files import write_whole

SEEDS = "seeds.json"  # in the folder that holds one folder for each seed
SCORES = ("loss", "val_loss", "val_top1")


def run_each(folder: Path, note: dict[str, Any], one: Callable[[int, Path], dict[str, Any]]) -> dict[str, Any]:
    """``one(seed, folder of its own)`` gives the scores of each of ``note["seeds"]``; SEEDS is written before the first
    and after each. Returns the finished note: ``scores`` by seed, ``spread`` of each score."""
    scores: dict[str, dict[str, Any]] = {}
    _write(folder, note)
    for seed in note["seeds"]:
        scores[str(seed)] = one(seed, folder / f"seed-{seed}")
        note = note | {"scores": scores, "spread": spread(list(scores.values()))}
        _write(folder, note)
    note |= {"status": "finished"}
    _write(folder, note)
    return note


def spread(scores: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, standard deviation (of a sample; absent for a single run), least and most of each score that all have."""
    out = {}
    for name in SCORES:
        if all(name in one for one in scores):
            values = [float(one[name]) for one in scores]
            sd = {"sd": statistics.stdev(values)} if len(values) > 1 else {}
            out[name] = {"mean": statistics.fmean(values), **sd, "min": min(values), "max": max(values)}
    return out


def _write(folder: Path, note: dict[str, Any]) -> None:
    write_whole(folder / SEEDS, json.dumps(note, indent=1, allow_nan=False) + "\n")
