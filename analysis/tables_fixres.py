"""The tables of FixRes and FixEfficientNet: published and measured numbers beside each other.

A measured number stands beside a printed one only where weights, test size, adaptation, the augmentation of the
fine-tuning, data set and labels agree, and only for the centre crop with the aspect ratio kept. Fine-tuned networks
need the folder that ``multicrop-bench finetune`` wrote beside the run that scored them. Where there is no measurement
the reason is given: the first of these that no run fulfils.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.experiments import Experiments, Tuning
from analysis.grids import Grid, letters
from analysis.published import TABLES, load
from analysis.runs import is_v2
from analysis.stats import wilson
from bench.records import ORIGINAL, REAL, Accuracy, Run, Setting

# Table -> columns of the CSV that name a row, and those that name a column, as the print has them.
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fixres_table1": (("variant", "adaptation"), ("test_res",)),
    "fixres_table2": (("row",), ("metric",)),
    "fixres_table4": (("adaptation",), ("test_res",)),
    "fixres_table5": (("adaptation", "test_res"), ("train_res",)),
    "fixres_table6": (("train_res", "adaptation", "augmentation"), ("test_res",)),
    "fixres_table7": (("train_res", "test_res", "adaptation"), ("metric",)),
    "fixres_table8": (("model", "method", "test_res"), ("augmentation",)),
    "fixres_table9": (("test_res",), ("train_res",)),
    "fixres_table10": (("dataset", "row", "train_res", "adaptation"), ("metric",)),
    "fixeff_table1": (("variant",), ("method", "metric")),
    "fixeff_table2": (("variant",), ("method", "metric")),
    "fixeff_table3": (("variant", "extra_data"), ("method", "metric")),
    "fixeff_table4": (("variant",), ("method", "metric")),
    "fixeff_table5": (("variant",), ("method", "metric")),
    "fixeff_table6": (("row",), ("metric",)),
}
PAPERS = {"fixres": "FixRes", "fixefficientnet": "FixEfficientNet"}
IMAGES = {"imagenet": 50_000, "imagenet_real": 50_000, "imagenet_v2": 10_000}  # at most; ReaL leaves some out
DATA_WORDS = {
    "imagenet": "ImageNet's validation images",
    "imagenet_real": "ImageNet with cleaner labels; add --real-labels real.json",
    "imagenet_v2": "ImageNet-V2 (a folder with v2 in its name)",
}

# (network, method without +fixres) -> the weights that are meant. Billion-scale (Yalniz et al.) is timm's swsl, WSL
# (Mahajan et al.) its wsl. What no library ships is in NOT_SHIPPED.
WEIGHTS = {
    ("resnet50", "baseline"): "resnet50.tv_in1k",
    ("resnet50d", "baseline"): "resnet50d.gluon_in1k",  # [15], He et al. 2019
    ("pnasnet5large", "baseline"): "pnasnet5large.tf_in1k",
    ("tf_efficientnet_b7_aa", "baseline"): "tf_efficientnet_b7.aa_in1k",
    **{
        (model, "billion_scale"): f"{model}.fb_swsl_ig1b_ft_in1k"
        for model in ("resnet50", "resnext50_32x4d", "resnext101_32x4d", "resnext101_32x8d", "resnext101_32x16d")
    },
    **{(f"resnext101_{size}", "wsl"): f"resnext101_{size}.fb_wsl_ig1b_ft_in1k"
       for size in ("32x8d", "32x16d", "32x32d")},
    **{(f"tf_efficientnet_b{n}_ap", "baseline"): f"tf_efficientnet_b{n}.ap_in1k" for n in range(9)},
    **{(f"tf_efficientnet_{n}_ns", "baseline"): f"tf_efficientnet_{n}.ns_jft_in1k"
       for n in (*(f"b{n}" for n in range(8)), "l2")},
}  # fmt: skip
NOT_SHIPPED = {  # method without +fixres -> why WEIGHTS has no entry
    "repeated_augmentation": "no library ships FixRes's own ResNet-50, trained with repeated augmentation",
    "fixed_size_random_crop": "no library ships FixRes's ResNet-50 trained on crops of a fixed size",
    "mixup": "no library ships these weights (mixup)",
    "cutmix": "no library ships these weights (CutMix)",
    "multigrain": "no library ships these weights (MultiGrain)",
    "wsl": "timm ships no WSL weights of this size",
    "unknown": "the paper does not say which pre-training was fine-tuned",
    "baseline": "timm has no such network",
}
OWN_RESNET = ("resnet50", "repeated_augmentation")  # what FixRes fine-tuned in its Tables 4 to 8
LAYERS = {
    "classifier": "classifier",
    "classifier+batch_norm": "classifier+bn",
    "classifier+batch_norm+last_three_cells": "from:cell_9",  # of timm's PNASNet-5
}
AUGMENTATIONS = {"test_da": "test", "test_da2": "test2", "train_da": "train"}
# Of Table 10: what is printed, and why it cannot be measured. `multicrop-bench ensembles` averages networks on other
# images.
COMPETITIONS = ("inaturalist2019", "herbarium2019")
OF_COMPETITION = {
    "test_res": "a member of the ensemble: the paper prints its sizes, and no accuracy of its own",
    "final_score": "the score of a competition, whose test labels are not public",
    "rank": "a rank in a competition that is over",
    "participants": "the number of participants in a competition",
}
FROM_SCRATCH = "times of a training from scratch: nothing is trained from scratch on ImageNet here"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a printed number is of."""

    weights: tuple[str, str]  # network and method before fine-tuning: a key of WEIGHTS
    train_res: int | None
    tuned: bool
    adaptation: str
    augmentation: str
    test_res: int | None
    dataset: str
    metric: str
    smoothed: bool  # fine-tuned with label smoothing, as FixEfficientNet

    @property
    def name(self) -> str:
        """For ``--weights``: ``resnet50/repeated_augmentation@224``."""
        return "/".join(self.weights) + ("" if self.train_res is None else f"@{self.train_res}")


@dataclass(frozen=True, slots=True)
class Measured:
    """A number that may stand beside a printed one. Accuracies in percent, with Wilson's 95 % interval."""

    value: float
    low: float | None
    high: float | None
    images: int | None
    run: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A printed number, what was measured of it, and why nothing was."""

    line: dict[Any, Any]  # of the CSV
    measured: Measured | None
    why_not: str

    @property
    def difference(self) -> float | None:
        """Measured less published."""
        return None if self.measured is None else self.measured.value - self.line["value"]

    @property
    def inside(self) -> bool | None:
        """Whether the published value is in the measured interval, where it has one."""
        if self.measured is None or self.measured.low is None or self.measured.high is None:
            return None
        return bool(self.measured.low <= self.line["value"] <= self.measured.high)


@dataclass(frozen=True, slots=True)
class Filled:
    """One table with what was measured."""

    name: str
    cells: tuple[Cell, ...]

    @property
    def is_measured(self) -> bool:
        return any(cell.measured for cell in self.cells)


@dataclass(frozen=True, slots=True)
class _Score:
    """One network's centre crop on one data set, and the fine-tuning that made it."""

    run: str
    record: Accuracy
    tuning: Tuning | None

    @property
    def setting(self) -> Setting:
        return self.record.setting

    @property
    def dataset(self) -> str:
        if self.record.labels == REAL:
            return "imagenet_real"
        return "imagenet_v2" if is_v2(self.setting) else "imagenet"


def name_of(table: str) -> str:
    """``fixeff_table3`` -> ``FixEfficientNet Table 3``."""
    return f"{PAPERS[TABLES[table].paper]} Table {TABLES[table].number}"


def known_weights(given: Sequence[str]) -> dict[str, str]:
    """``["resnet50/repeated_augmentation@224=HASH"]`` -> {Wanted.name: hash}. Raises ValueError for other text."""
    known = {}
    allowed = sorted({one.name for one in map(wanted, _all_lines()) if one.weights not in WEIGHTS})
    for text in given:
        name, equals, weight_hash = text.partition("=")
        if not equals or not weight_hash or name not in allowed:
            raise ValueError(
                f"`weights` {text!r} is not NETWORK/METHOD@TRAIN_SIZE=HASH with one of {', '.join(allowed)}"
            )
        known[name] = weight_hash
    return known


def _all_lines() -> list[dict[Any, Any]]:
    lines = [line for name in LAYOUTS for line in load(name).to_dict("records")]
    return [line for line in lines if line["dataset"] not in COMPETITIONS]


# ---- what a printed number is of


def _base(line: Mapping[Any, Any]) -> tuple[str, str]:
    """Network and method before fine-tuning."""
    model, method = line["model"], line["method"].removesuffix("+fixres")
    if method != "fixres":
        return model, method
    if model == "resnet50":
        return OWN_RESNET
    return model, "unknown" if model.startswith("resnext") else "baseline"


def _test_res(line: Mapping[Any, Any]) -> int | None:
    """The printed test size; FixEfficientNet's Tables 3 and 6 have their networks' sizes in Tables 1 and 2."""
    if not pd.isna(line["test_res"]):
        return int(line["test_res"])
    for table in ("fixeff_table1", "fixeff_table2"):
        frame = load(table)
        same = frame[(frame["model"] == line["model"]) & (frame["method"] == line["method"])]
        if len(same):
            return int(same["test_res"].iloc[0])
    return 224 if line["method"] == "billion_scale" else None  # at which FixRes Table 2 tests such networks


def wanted(line: Mapping[Any, Any]) -> Wanted:
    """From a line of a table's CSV."""
    tuned = "fixres" in line["method"] and line["adaptation"] not in ("none", "distribution")
    smoothed = tuned and line["paper"] == "fixefficientnet"
    adaptation = line["adaptation"] or ("classifier+batch_norm" if tuned else "none")
    augmentation = line["augmentation"] if tuned else ""
    train_res = None if pd.isna(line["train_res"]) else int(line["train_res"])
    return Wanted(
        _base(line), train_res, tuned, adaptation, augmentation, _test_res(line), line["dataset"], line["metric"],
        smoothed,
    )  # fmt: skip


# ---- matching


def fill(name: str, runs: Sequence[Run], experiments: Experiments, known: Mapping[str, str]) -> Filled:
    """A table of LAYOUTS with what runs and fine-tunings measured.

    ``known``: {Wanted.name: weight hash} of weights that no library ships and the user vouches for.
    """
    scores = _scores(runs, experiments)
    return Filled(name, tuple(_cell(line, scores, experiments, known) for line in load(name).to_dict("records")))


def _scores(runs: Sequence[Run], experiments: Experiments) -> list[_Score]:
    return [
        _Score(run.folder.name, record, experiments.tuning_of(record.setting.weight_hash))
        for run in runs
        for labels in (ORIGINAL, REAL)
        for record in run.accuracies_of(labels)
        if (record.policy, record.level) == ("CC", "softmax")
    ]


def _cell(line: dict[Any, Any], scores: Sequence[_Score], experiments: Experiments, known: Mapping[str, str]) -> Cell:
    if line["dataset"] in COMPETITIONS:
        return Cell(line, None, OF_COMPETITION[line["metric"]])
    asked = wanted(line)
    if asked.metric in ("train_forward_ms", "train_backward_ms", "total_time_hours"):
        return Cell(line, None, FROM_SCRATCH)
    if asked.metric.startswith("fine_tune_"):
        return _time_cell(line, asked, experiments, known)
    left = list(scores)
    for fits, why in _conditions(asked, known):
        left = [score for score in left if fits(score)]
        if not left:
            return Cell(line, None, why)
    record = left[0].record
    correct = record.top1_correct if asked.metric == "top1" else record.top5_correct
    low, high = wilson(correct, record.images)
    return Cell(line, Measured(100 * correct / record.images, low, high, record.images, left[0].run), "")


Condition = tuple[Callable[[_Score], bool], str]  # what a score must fulfil, and the reason where none does


def _conditions(asked: Wanted, known: Mapping[str, str]) -> list[Condition]:
    """In turn; the first that leaves no score is the reason."""
    weights = _weights_condition(asked, known)
    size = f"not scored at {asked.test_res} pixels; add --img-size {asked.test_res}"
    return [
        weights,
        (lambda score: not score.setting.is_demo, "demo data, which says nothing about ImageNet"),
        (lambda score: score.dataset == asked.dataset, f"not scored on {DATA_WORDS[asked.dataset]}"),
        (lambda score: score.record.images <= IMAGES[asked.dataset], "more images than this data set has"),
        (lambda score: score.setting.crop_mode == "center", "the aspect ratio was not kept"),
        (lambda score: asked.test_res is not None, "the test size is not printed"),
        (lambda score: asked.test_res == score.setting.K, size),
        (lambda score: _is_adapted(score, asked), _how_to_adapt(asked)),
    ]


def _weights_condition(asked: Wanted, known: Mapping[str, str]) -> Condition:
    if asked.name in known:
        same = known[asked.name]
        fits = lambda score: (score.tuning.base_hash if score.tuning else score.setting.weight_hash) == same  # noqa: E731
        return fits, f"no run of the weights {same}"
    model_id = WEIGHTS.get(asked.weights)
    if model_id is None:
        why = NOT_SHIPPED[asked.weights[1]]
        return lambda score: False, f"{why}; if you have them, score them and add --weights {asked.name}=HASH"

    def fits_name(score: _Score) -> bool:
        made_of = (score.tuning.base, score.tuning.base_weights) if score.tuning else None
        return (made_of or (score.setting.model, score.setting.weights)) == (model_id, "pretrained")

    return fits_name, f"no run of {model_id}"


def _is_adapted(score: _Score, asked: Wanted) -> bool:
    if asked.adaptation == "distribution":
        return score.tuning is None and score.setting.adapt == "gaussian"
    if not asked.tuned:
        return score.tuning is None and score.setting.adapt is None
    return (
        score.tuning is not None
        and score.tuning.K == score.setting.K
        and score.tuning.adapt == score.setting.adapt
        and (score.setting.adapt == "gaussian") == asked.adaptation.startswith("distribution")
        and score.tuning.layers == LAYERS.get(asked.adaptation.removeprefix("distribution+"))
        and asked.augmentation
        in ("", *(words for words, own in AUGMENTATIONS.items() if own == score.tuning.augmentation))
        and (score.tuning.label_smoothing > 0) == asked.smoothed
    )


def _how_to_adapt(asked: Wanted) -> str:
    if asked.adaptation.startswith("distribution+"):
        return (
            "needs the weights of finetune --adapt gaussian --tune classifier at this size, and a run of them with "
            "--adapt gaussian"
        )
    if asked.adaptation == "distribution":
        return "not scored with --adapt gaussian"
    if not asked.tuned:
        return "scored only adapted or fine-tuned"
    options = [f"--img-size {asked.test_res}", f"--tune {LAYERS[asked.adaptation]}"]
    options += [f"--augmentation {AUGMENTATIONS[asked.augmentation]}"] if asked.augmentation else []
    options += ["--label-smoothing 0.1"] if asked.smoothed else []
    return f"not fine-tuned so, or its folder was not given; multicrop-bench finetune {' '.join(options)}"


def _time_cell(line: dict[Any, Any], asked: Wanted, experiments: Experiments, known: Mapping[str, str]) -> Cell:
    """A step of fine-tuning in batches of 64 on one GPU (the caption): forward is frozen trunk and tuned layers.

    Times do not depend on the weights: any ResNet-50 counts, unless ``known`` names the paper's.
    """
    stages = ("backward",) if "backward" in asked.metric else ("trunk", "forward")
    fitting = [
        one
        for one in experiments.tunings
        if (known.get(asked.name) or one.base_hash) == one.base_hash
        and one.base.startswith("resnet50")
        and not one.is_demo
        and asked.test_res == one.K
        and one.layers == LAYERS[asked.adaptation]
        and set(stages) <= one.step_ms.keys()
    ]
    if not fitting:
        return Cell(line, None, f"no ResNet-50 was fine-tuned at {asked.test_res} pixels, or its folder was not given")
    same = [one for one in fitting if one.batch_size == 64 and one.device.startswith("cuda")]
    if not same:
        return Cell(line, None, "fine-tuned, but not in batches of 64 on a GPU, as the caption of Table 7 says")
    ms = {key: sum(same[0].step_ms[stage][key] for stage in stages) for key in ("median", "min", "max")}
    return Cell(line, Measured(ms["median"], ms["min"], ms["max"], None, same[0].folder), "")


# ---- as Markdown and CSV


def grid(one: Filled) -> Grid:
    """The printed rows and columns; three lines a row where anything was measured."""
    row_names, column_names = LAYOUTS[one.name]
    columns = list(dict.fromkeys(_key(cell.line, column_names) for cell in one.cells))
    by_place = {(_key(cell.line, row_names), _key(cell.line, column_names)): cell for cell in one.cells}
    marks: dict[str, str] = {}
    rows: list[tuple[str, ...]] = []
    for row in dict.fromkeys(_key(cell.line, row_names) for cell in one.cells):
        cells = [by_place.get((row, column)) for column in columns]
        rows.append((*row, "published", *(cell.line["printed"] if cell else "" for cell in cells)))
        if one.is_measured:
            empty = ("",) * len(row)
            rows.append((*empty, "measured", *(_measured(cell, marks) for cell in cells)))
            rows.append((*empty, "difference", *(_difference(cell) for cell in cells)))
    title = f"{name_of(one.name)}: {TABLES[one.name].title}"
    headings = (*row_names, "", *(" ".join(column) for column in columns))
    return Grid(title, headings, tuple(rows), tuple(_notes(one, marks)))


def _key(line: Mapping[Any, Any], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(_text(name, line[name]) for name in names)


def _text(name: str, value: object) -> str:
    if pd.isna(value):  # type: ignore[call-overload]
        return ""
    return ("extra data" if value else "no extra data") if name == "extra_data" else str(value)


def _measured(cell: Cell | None, marks: dict[str, str]) -> str:
    if cell is None:
        return ""
    if cell.measured is None:
        return f"[{marks.setdefault(cell.why_not, letters(len(marks)))}]"
    found = cell.measured
    return f"{found.value:.2f}" + ("" if found.low is None else f" ({found.low:.2f} to {found.high:.2f})")


def _difference(cell: Cell | None) -> str:
    if cell is None or cell.difference is None:
        return ""
    return f"{cell.difference:+.2f} {'inside' if cell.inside else 'outside'}"


def _notes(one: Filled, marks: Mapping[str, str]) -> list[str]:
    if not one.is_measured:
        counts: dict[str, int] = {}
        for cell in one.cells:
            counts[cell.why_not] = counts.get(cell.why_not, 0) + 1
        return [f"{count} of {len(one.cells)} numbers not measured: {why}." for why, count in counts.items()]
    notes = [f"[{mark}] not measured: {why}." for why, mark in marks.items()]
    runs = dict.fromkeys(cell.measured.run for cell in one.cells if cell.measured)
    interval = (
        "Inside: the published value is in the measured 95 % interval (Wilson), or between least and most of a time."
    )
    return [*notes, interval, f"From {', '.join(runs)}."]


def frame(one: Filled) -> pd.DataFrame:
    """A row for each printed number."""
    names = ("row", "model", "method", "train_res", "test_res", "adaptation", "augmentation", "metric")
    rows = []
    for cell in one.cells:
        row: dict[str, object] = {name: _text(name, cell.line[name]) for name in names}
        found = cell.measured
        row |= {
            "published": cell.line["printed"],
            "measured": f"{found.value:.4f}" if found else "",
            "low": "" if found is None or found.low is None else f"{found.low:.4f}",
            "high": "" if found is None or found.high is None else f"{found.high:.4f}",
            "difference": "" if cell.difference is None else f"{cell.difference:.4f}",
            "inside": "" if cell.inside is None else "yes" if cell.inside else "no",
            "images": found.images if found and found.images else "",
            "run": found.run if found else "",
            "why_not": cell.why_not,
        }
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)
