"""What experiments wrote beside runs: fine-tunings, networks trained at several sizes, activation statistics.

    runs, experiments = split([Path("runs/a"), Path("runs/tuned"), Path("runs/low-high")])

A folder is known by its file: ``finetune.json`` (multicrop-bench finetune), ``results.json`` (train-low-test-high),
``activations.json`` (activations). Anything else is taken for a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.schemas import DamagedFile, as_type, read_csv, read_json_object, read_npz, required_fields

ANSWERS_NAME = re.compile(r"([a-z]+)-(\d{1,6})-(\d{1,6})", re.ASCII)
ANSWERS = "answers"  # folder of train-low-test-high: NETWORK-K.npz, which images are right
# What is read of an experiment's files, and of which type: of a fine-tuning's note, of the parts in it, and so on.
TUNING: dict[str, Any] = {"device": str, "step_ms": dict[str, dict[str, float]]}
TUNING_PARTS: dict[str, dict[str, Any]] = {
    "base": {"model": str, "weights": str, "weight_hash": str, "train_K": int | None},
    "result": {"weight_hash": str},
    "input": {"K": int},
    "recipe": {"tune": str, "augmentation": str, "label_smoothing": float, "batch_size": int},
    "data": {"is_demo": bool},
}
STEP = ("median", "min", "max")  # of each stage in `step_ms`
TRAINED_SETTINGS = {
    "family": str, "min_area": float, "images": int, "epochs": int, "adapt_images": int, "adapt_epochs": int,
    "seed": int,
}  # fmt: skip
TRAINED_ENVIRONMENT = {"cpu": str | None, "packages": dict[str, str | None]}
TRAINED_COLUMNS = {
    "family": str, "crop": str, "train_res": int, "test_res": int, "S": int, "adaptation": str, "images": int,
    "top1_correct": int, "newly_correct": int, "newly_wrong": int, "top1": float, "top1_low": float, "top1_high": float,
}  # fmt: skip
ACTIVATIONS = {
    "model": str, "is_demo": bool, "data": str, "train_K": int, "points": list[float], "cdf": dict[str, list[float]],
}  # fmt: skip
# What older folders lack: the Fréchet fit at each crop size, and which fine-tuning the network comes from, if any.
FRECHET = dict.fromkeys(("mu", "sigma", "xi", "zero_share", "distance"), float)
NEWER = {"weight_hash": str, "frechet": dict[str, dict[str, float]], "tuned": dict[str, Any] | None}
TUNED_FROM = {"K": int, "base_hash": str}
GAINS = ("gain", "gain_low", "gain_high")  # of an adaptation; empty where it could not be made
ACTIVATION_COLUMNS = {
    "K": int, "crops": int, "zero_percent": float, "above_2_percent": float, "fitted_on": str, "images": int,
    "top1": float,
    **{f"{name}_{ending}": float | None for name in ("frechet", "gaussian") for ending in GAINS},
}  # fmt: skip
SPARSITY = {name: ACTIVATIONS[name] for name in ("model", "is_demo", "train_K")}  # all that claims ask for
SPARSITY_COLUMNS = {name: ACTIVATION_COLUMNS[name] for name in ("K", "zero_percent")}


@dataclass(frozen=True, slots=True)
class Tuning:
    """One finished fine-tuning (finetune.json)."""

    folder: str
    base: str  # the network that was tuned
    base_weights: str  # pretrained, random, demo, or a checkpoint's path
    base_hash: str
    train_res: int | None  # at which it had been trained, pixels; None where nothing said so
    weight_hash: str  # of the result
    K: int  # at which it was tuned, pixels
    layers: str  # classifier or classifier+bn
    augmentation: str  # test, test2 or train
    label_smoothing: float
    batch_size: int
    device: str
    is_demo: bool
    step_ms: dict[str, dict[str, float]]  # stage -> median, min, max
    adapt: str | None = None  # how the activations were adapted meanwhile; a run must adapt them so too


@dataclass(frozen=True, slots=True)
class TrainedAnswers:
    """Which images one network of train-low-test-high gets right at one test size."""

    crop: str  # of the training: train (RandomResizedCrop) or fixed (random crop of a fixed size)
    train_res: int
    test_res: int
    layers: str  # none, classifier or classifier+bn: what was adapted
    right: np.ndarray  # bool [b]


@dataclass(frozen=True, slots=True)
class TrainedSizes:
    """One folder of train-low-test-high; always on the demo data."""

    folder: str
    family: str
    names: np.ndarray  # str [b]: the images
    answers: tuple[TrainedAnswers, ...]


@dataclass(frozen=True, slots=True)
class Activations:
    """One folder of activations: a row for each test size."""

    folder: str
    model: str
    is_demo: bool
    train_res: int
    frame: pd.DataFrame  # activations.csv: K, zero_percent, above_2_percent, top1, frechet_gain, ...


@dataclass(frozen=True, slots=True)
class Experiments:
    """All that was found."""

    tunings: tuple[Tuning, ...] = ()
    trained: tuple[TrainedSizes, ...] = ()
    activations: tuple[Activations, ...] = ()

    def tuning_of(self, weight_hash: str) -> Tuning | None:
        """The fine-tuning whose result has these weights."""
        return next((tuning for tuning in self.tunings if tuning.weight_hash == weight_hash), None)

    def of(self, *, is_demo: bool) -> Experiments:
        """Those on the demo data, or those on other data. Tunings belong to both: their networks may be scored on any
        data."""
        activations = tuple(one for one in self.activations if one.is_demo == is_demo)
        return Experiments(self.tunings, self.trained if is_demo else (), activations)


def split(folders: Iterable[Path]) -> tuple[list[Path], Experiments]:
    """Folders of runs, and what the others hold. Raises ValueError, naming the folder, for one that is damaged."""
    runs: list[Path] = []
    found: dict[str, list[Any]] = {file: [] for file in READERS}
    for folder in folders:
        file = next((file for file in READERS if (folder / file).is_file()), None)
        if file is None or (folder / "run.json").is_file():
            runs.append(folder)
        else:
            found[file].append(_read(folder, file))
    tunings, trained, activations = (tuple(found[file]) for file in READERS)
    return runs, Experiments(tunings, trained, activations)


def _read(folder: Path, file: str) -> Any:
    try:
        return READERS[file](folder, read_json_object(folder / file))
    except DamagedFile:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFile(f"{folder / file} cannot be read: {type(error).__name__}: {error}") from error


def _tuning(folder: Path, note: dict[str, Any]) -> Tuning:
    if note.get("status") != "finished":
        raise ValueError("this fine-tuning has not finished; continue it with multicrop-bench finetune --resume")
    where = str(folder / "finetune.json")
    note = required_fields(note, TUNING | dict.fromkeys(TUNING_PARTS, dict[str, Any]), where)
    note |= {name: required_fields(note[name], part, f"{where}: `{name}`") for name, part in TUNING_PARTS.items()}
    for stage, ms in note["step_ms"].items():
        required_fields(ms, dict.fromkeys(STEP, float), f"{where}: `step_ms`, {stage}")
    recipe, base = note["recipe"], note["base"]
    return Tuning(
        folder=folder.name, base=base["model"], base_weights=base["weights"], base_hash=base["weight_hash"],
        train_res=base["train_K"],
        weight_hash=note["result"]["weight_hash"], K=note["input"]["K"], layers=recipe["tune"],
        augmentation=recipe["augmentation"], label_smoothing=recipe["label_smoothing"],
        batch_size=recipe["batch_size"], device=note["device"], is_demo=note["data"]["is_demo"],
        step_ms=note["step_ms"], adapt=as_type(note.get("adapt"), str | None, f"{where}: `adapt`"),
    )  # fmt: skip


def read_trained(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """results.csv and results.json of train-low-test-high. Raises DamagedFile, naming the file and the field."""
    path = folder / "results.json"
    info = _trained_info(read_json_object(path), path)
    return with_rows(read_csv(folder / "results.csv", TRAINED_COLUMNS), folder / "results.csv"), info


def _trained_info(info: dict[str, Any], path: Path) -> dict[str, Any]:
    info = required_fields(info, {"settings": dict[str, Any], "environment": dict[str, Any]}, str(path))
    settings = required_fields(info["settings"], TRAINED_SETTINGS, f"{path}: `settings`")
    environment = required_fields(info["environment"], TRAINED_ENVIRONMENT, f"{path}: `environment`")
    return {**info, "settings": settings, "environment": environment}


def with_rows(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table, which must not be empty."""
    if frame.empty:
        raise DamagedFile(f"{path} has a header and no row")
    return frame


def read_activations(folder: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """activations.csv and activations.json. Raises DamagedFile, naming the file and the field."""
    path = folder / "activations.json"
    info = _activations_info(read_json_object(path), path)
    return with_rows(read_csv(folder / "activations.csv", ACTIVATION_COLUMNS), folder / "activations.csv"), info


def _activations_info(info: dict[str, Any], path: Path) -> dict[str, Any]:
    info = {"weight_hash": "", "frechet": {}, "tuned": None} | info
    info = required_fields(info, ACTIVATIONS | NEWER, str(path), {"train_K": 1})
    if info["tuned"] is not None:
        required_fields(info["tuned"], TUNED_FROM, f"{path}: `tuned`", {"K": 1})
    for K, fit in info["frechet"].items():
        required_fields(fit, FRECHET, f"{path}: `frechet` at {K[:20]!r}", {"sigma": 1e-12, "xi": 1e-12})
        if K not in info["cdf"]:
            raise DamagedFile(f"{path}: `frechet` at {K[:20]!r}, where `cdf` has no such crop size")
    for K, shares in info["cdf"].items():
        if not K.isdecimal() or not K.isascii() or len(K) > 6 or len(shares) != len(info["points"]):
            raise DamagedFile(
                f"{path}: `cdf` needs a share for each of `points` at each crop size, not as at {K[:20]!r}"
            )
    return info


def _trained(folder: Path, info: dict[str, Any]) -> TrainedSizes:
    where = str(folder / "results.json")
    settings = required_fields(info, {"settings": dict[str, Any]}, where)["settings"]
    family = required_fields(settings, {"family": str}, f"{where}: `settings`")["family"]
    paths = sorted((folder / ANSWERS).glob("*.npz"))
    if not paths:
        raise ValueError(f"the folder holds no {ANSWERS}/*.npz: run the experiment again in a new folder")
    names: np.ndarray | None = None
    answers = []
    for path in paths:
        file = read_npz(path)
        if file.get("names", np.zeros(0)).dtype.kind != "U":
            raise DamagedFile(f"{path}: `names` holds no names of images")
        if names is None:
            names = file["names"]
        elif not np.array_equal(names, file["names"]):
            raise ValueError(f"{path.name} is of other images than {paths[0].name}")
        named = ANSWERS_NAME.fullmatch(path.stem)
        if named is None:
            raise DamagedFile(f"{path} is not named CROP-TRAIN_SIZE-TEST_SIZE.npz: it is another program's")
        for layers in file.keys() - {"names"}:
            if file[layers].dtype != np.bool_ or file[layers].shape != names.shape:
                raise DamagedFile(f"{path}: `{layers}` does not say of each image whether the answer is right")
            answers.append(TrainedAnswers(named[1], int(named[2]), int(named[3]), layers, file[layers]))
    assert names is not None
    answers.sort(key=lambda one: (one.crop, one.train_res, one.test_res, one.layers != "none"))
    return TrainedSizes(folder.name, family, names, tuple(answers))


def _activations(folder: Path, info: dict[str, Any]) -> Activations:
    info = required_fields(info, SPARSITY, str(folder / "activations.json"), {"train_K": 1})
    frame = read_csv(folder / "activations.csv", SPARSITY_COLUMNS)
    return Activations(folder.name, info["model"], info["is_demo"], info["train_K"], frame)


READERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "finetune.json": _tuning,
    "results.json": _trained,
    "activations.json": _activations,
}
