"""From a run to a recipe: one of its networks with one of its policies, and what was measured of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.candidates import timed_end_to_end
from analysis.runs import MissingData
from analysis.summary import top1_interval
from bench.records import Accuracy, Run
from models.recipe import Recipe, Use


def recipe_of(run: Run, record: Accuracy, report: dict[str, Any] | None = None) -> Recipe:
    """The recipe of one scored policy. ``report``: figures to put beside the measured ones, by name (those of a choice
    that was made on other images, for example).

    Raises ValueError for a run that does not hold what a recipe needs, or that was adapted to its images.
    """
    setting = record.setting
    stored: dict[str, Any] = next(
        (one for one in run.info.get("models", []) if one.get("setting") == asdict(setting)), {}
    )
    asked, network = stored.get("asked"), run.info.get("config", {}).get("network")
    if asked is None or network is None:
        raise ValueError(f"{run.folder}: its run.json does not say how {setting.model} was asked for: run it again")
    if setting.adapt:
        raise ValueError(
            f"{setting.model} was adapted to the images that it was scored on (`adapt`): a recipe holds no activations"
        )
    if setting.valid_labels:
        raise ValueError(
            f"{setting.model} answered among {setting.valid_labels} (`valid_labels`): a recipe holds no such list"
        )
    checkpoint = network["checkpoint"] and str(Path(run.info["directory"], network["checkpoint"]))
    use = Use(
        **asked,
        **{name: network[name] for name in ("num_classes", "model_kwargs", "crop_mode", "interpolation")},
        checkpoint=checkpoint,
        policy=record.policy,
        level=record.level,
        stopping=_stopping(record),
        weights=setting.weights if network["checkpoint"] is None else "pretrained",
        device=setting.device.split(":")[0],
        fold=setting.folded,  # --preset may have decided it
        **{name: getattr(setting, name) for name in SAME_AS_SETTING},
    )
    return Recipe(use, measured_of(run, record) | (report or {}))


SAME_AS_SETTING = (
    "weight_hash", "seed", "backend", "batch_size", "amp_dtype", "channels_last", "torchcompile", "tf32",
    "cudnn_benchmark",
)  # fmt: skip


def measured_of(run: Run, record: Accuracy) -> dict[str, Any]:
    """What is known of a policy: accuracy with its interval, rate, images, machine and packages."""
    low, high = top1_interval(record)
    environment = run.info["environment"]
    rate = images_per_sec(run, record)
    return {
        "policy": record.policy,
        "level": record.level,
        "stopping": _stopping(record),
        "images": record.images,
        "top1": round(record.top1, 3),
        "top1_low": round(low, 3),
        "top1_high": round(high, 3),
        "images_per_sec": None if rate is None else round(rate, 2),
        **_at_the_threshold(record),
        "demo_data": record.setting.is_demo,
        "when": run.info["started"],
        "where": {name: environment.get(name) for name in ("machine_id", "cpu", "cores_usable", "gpu", "os", "python")},
        "packages": environment["packages"],
        "setting": asdict(record.setting),
    }


def _stopping(record: Accuracy) -> dict[str, float] | None:
    """The threshold of a policy with a risk: the stricter of both halves'. Raises MissingData where one is lacking."""
    if not record.policy.endswith("%"):
        return None
    if not is_certified(record):
        raise MissingData(f"{record.policy} has no certified threshold ({record.note}): choose another policy")
    halves = (record.first_threshold, record.second_threshold)  # of older records, which lack the one threshold
    threshold = record.deployed_threshold
    return {"threshold": max(t for t in halves if t is not None) if threshold is None else threshold}


def is_certified(record: Accuracy) -> bool:
    """Whether a policy can be used for other images: one with a risk needs a threshold."""
    halves = record.first_threshold is not None and record.second_threshold is not None
    return not record.policy.endswith("%") or record.deployed_threshold is not None or halves


def _at_the_threshold(record: Accuracy) -> dict[str, Any]:
    """Of a policy with a risk: what comes of the recipe's one threshold on all of the run's images. Predictions with
    the recipe are these, image by image; ``top1`` is that of each half at the other half's threshold."""
    if record.deployed_correct is None:
        return {}
    return {
        "at_this_threshold": {
            "images": record.images,
            "top1": round(100 * record.deployed_correct / record.images, 3),
            "same_answer_as_all_views": record.deployed_agreement,
            "forwards": record.deployed_forwards,
            "note": SAME_IMAGES if record.first_threshold is not None else OTHER_IMAGES,
        }
    }


SAME_IMAGES = (
    "the answers that this recipe gives to the images on which its threshold was calibrated; top1 above is the "
    "estimate for others: each half of the images at the threshold of the other half"
)
OTHER_IMAGES = "the answers that this recipe gives to these images; its threshold was calibrated before"


def images_per_sec(run: Run, record: Accuracy) -> float | None:
    """End to end at that number of crops, median of the rounds; None where it was not timed, as for policies with crops
    of several sizes."""
    timed = timed_end_to_end(run, record)
    return None if timed is None else timed.rate
