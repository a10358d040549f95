"""Does a recipe still hold: a run of it beside what the recipe says was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import fisher_exact

from analysis.recipes import images_per_sec
from analysis.summary import top1_interval
from bench.records import Accuracy, Run
from models.recipe import Recipe

SIGNIFICANT = 0.01
SLOWER = 0.9  # of the recipe's images/s, below which its speed does not hold


def check_lines(recipe: Recipe, runs: Sequence[Run]) -> tuple[bool, list[str]]:
    """Whether accuracy and speed are what the recipe says, and lines that say so.

    Raises ValueError where no run measured the recipe's network and policy.
    """
    run, record = _measured(recipe, runs)
    findings = [_packages(recipe), _accuracy(recipe, record), _speed(recipe, run, record)]
    holds = all(fine for fine, _ in findings)
    verdict = "the recipe holds" if holds else "the recipe does NOT hold: choose again with multicrop-bench recommend"
    return holds, [*(f"{'ok ' if fine else 'NOT'}  {line}" for fine, line in findings), verdict]


def _measured(recipe: Recipe, runs: Sequence[Run]) -> tuple[Run, Accuracy]:
    use = recipe.use
    for run in runs:
        for record in run.accuracies:
            same = (record.setting.weight_hash, record.policy, record.level) == (use.weight_hash, use.policy, use.level)
            if same and recipe.measured["setting"]["K"] == record.setting.K:
                return run, record
    raise ValueError(
        f"no run measured {recipe.path}: multicrop-bench run --recipe {recipe.path} measures it, with --data for images"
    )


def _packages(recipe: Recipe) -> tuple[bool, str]:
    if changed := recipe.changed_package():
        return False, "packages: {} was {}, and is {}".format(*changed)
    return True, "packages are those that were measured"


def _accuracy(recipe: Recipe, record: Accuracy) -> tuple[bool, str]:
    """Fisher's exact test of two shares: the images are others, or fewer."""
    then = recipe.measured
    low, high = top1_interval(record)
    correct = round(then["top1"] * then["images"] / 100)
    counts = [[record.top1_correct, record.images - record.top1_correct], [correct, then["images"] - correct]]
    p = float(fisher_exact(np.array(counts)).pvalue)
    line = (
        f"top-1 {record.top1:.2f} ({low:.2f}..{high:.2f}) on {record.images} images; the recipe says "
        f"{then['top1']:.2f} ({then['top1_low']:.2f}..{then['top1_high']:.2f}); p = {p:.2g}"
    )
    return p >= SIGNIFICANT or record.top1 > then["top1"], line


def _speed(recipe: Recipe, run: Run, record: Accuracy) -> tuple[bool, str]:
    then, now = recipe.measured["images_per_sec"], images_per_sec(run, record)
    if then is None or now is None:
        return True, "images/s: not measured " + ("by the recipe" if then is None else "by this run")
    machine = recipe.measured["where"].get("machine_id")
    elsewhere = "" if machine == record.setting.machine_id else ", on another machine"
    return now >= SLOWER * then, f"images/s {now:.1f}; the recipe says {then:.1f}{elsewhere}"
