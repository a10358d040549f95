"""What experiments wrote beside runs: fine-tunings, networks trained at several sizes, activation statistics.

    runs, experiments = split([Path("runs/a"), Path("runs/tuned"), Path("runs/low-high")])

A folder is known by its file: ``finetune.json`` (multicrop-bench finetune), ``results.json`` (train-low-test-high),
``activations.json`` (activations). Anything else is taken for a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.schemas import DamagedFile, read_json_object, read_npz

ANSWERS = "answers"  # folder of train-low-test-high: NETWORK-K.npz, which images are right


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
    recipe, base = note["recipe"], note["base"]
    return Tuning(
        folder=folder.name, base=base["model"], base_weights=base["weights"], base_hash=base["weight_hash"],
        train_res=base["train_K"],
        weight_hash=note["result"]["weight_hash"], K=note["input"]["K"], layers=recipe["tune"],
        augmentation=recipe["augmentation"], label_smoothing=recipe["label_smoothing"],
        batch_size=recipe["batch_size"], device=note["device"], is_demo=note["data"]["is_demo"],
        step_ms=note["step_ms"], adapt=note.get("adapt"),
    )  # fmt: skip


def _trained(folder: Path, info: dict[str, Any]) -> TrainedSizes:
    paths = sorted((folder / ANSWERS).glob("*.npz"))
    if not paths:
        raise ValueError(f"the folder holds no {ANSWERS}/*.npz: run the experiment again in a new folder")
    names: np.ndarray | None = None
    answers = []
    for path in paths:
        file = read_npz(path)
        if names is None:
            names = file["names"]
        elif not np.array_equal(names, file["names"]):
            raise ValueError(f"{path.name} is of other images than {paths[0].name}")
        crop, train_res, test_res = path.stem.split("-")
        for layers in file.keys() - {"names"}:
            answers.append(TrainedAnswers(crop, int(train_res), int(test_res), layers, file[layers]))
    assert names is not None
    answers.sort(key=lambda one: (one.crop, one.train_res, one.test_res, one.layers != "none"))
    return TrainedSizes(folder.name, info["settings"]["family"], names, tuple(answers))


def _activations(folder: Path, info: dict[str, Any]) -> Activations:
    frame = pd.read_csv(folder / "activations.csv")
    return Activations(folder.name, info["model"], info["is_demo"], info["train_K"], frame)


READERS: dict[str, Callable[[Path, dict[str, Any]], Any]] = {
    "finetune.json": _tuning,
    "results.json": _trained,
    "activations.json": _activations,
}
