"""Does a recipe still hold: a run of it beside what the recipe says was measured."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest, fisher_exact

from analysis.recipes import images_per_sec
from analysis.summary import top1_interval
from bench.records import Accuracy, Run
from models.recipe import Recipe
from models.stopping import rule_of
from pipelines.crops import parse_policy

SIGNIFICANT = 0.01
SLOWER = 0.9  # of the recipe's images/s, below which its speed does not hold


def check_lines(recipe: Recipe, runs: Sequence[Run]) -> tuple[bool, list[str]]:
    """Whether accuracy and speed are what the recipe says, and lines that say so.

    Raises ValueError where no run measured the recipe's network and policy.
    """
    run, record = _measured(recipe, runs)
    findings = [_packages(recipe), _accuracy(recipe, record), *_risk(record), _speed(recipe, run, record)]
    holds = all(fine for fine, _ in findings)
    verdict = "the recipe holds" if holds else "the recipe does NOT hold: choose again with multicrop-bench recommend"
    return holds, [*(f"{'ok ' if fine else 'NOT'}  {line}" for fine, line in findings), verdict]


def _measured(recipe: Recipe, runs: Sequence[Run]) -> tuple[Run, Accuracy]:
    use, remedy = recipe.use, f"multicrop-bench run --recipe {recipe.path} measures it, with --data for images"
    thresholds: list[float | None] = []
    for run in runs:
        for record in run.accuracies:
            same = (record.setting.weight_hash, record.policy, record.level) == (use.weight_hash, use.policy, use.level)
            if same and recipe.measured["setting"]["K"] == record.setting.K:
                if recipe.threshold in (None, record.deployed_threshold):
                    return run, record
                thresholds.append(record.deployed_threshold)
    if thresholds:
        raise ValueError(
            f"no run stopped images at the threshold of {recipe.path}, {recipe.threshold}, but at {thresholds[0]}: "
            f"{remedy}"
        )
    raise ValueError(f"no run measured {recipe.path}: {remedy}")


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


def _risk(record: Accuracy) -> list[tuple[bool, str]]:
    """Whether a policy such as 20RC~1% changes no more answers at the recipe's threshold than its risk allows: exact
    one-sided binomial test."""
    if record.deployed_agreement is None:
        return []
    whole, _, risk = record.policy.partition("~")
    tolerance = rule_of(parse_policy(record.policy)).tolerance
    assert tolerance is not None, "only policies with a risk have a threshold"
    other = round((1 - record.deployed_agreement) * record.images)
    p = float(binomtest(other, record.images, tolerance, alternative="greater").pvalue)
    line = f"early stopping changes {other} of {record.images} answers of {whole}; the risk is {risk}; p = {p:.2g}"
    return [(p >= SIGNIFICANT, line)]


def _speed(recipe: Recipe, run: Run, record: Accuracy) -> tuple[bool, str]:
    then, now = recipe.measured["images_per_sec"], images_per_sec(run, record)
    if then is None or now is None:
        return True, "images/s: not measured " + ("by the recipe" if then is None else "by this run")
    machine = recipe.measured["where"].get("machine_id")
    elsewhere = "" if machine == record.setting.machine_id else ", on another machine"
    return now >= SLOWER * then, f"images/s {now:.1f}; the recipe says {then:.1f}{elsewhere}"
