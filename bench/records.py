"""A run's folder: what is written, how it is read back, and when two results may be compared.

    run.json             schema, command, configuration, environment, data set, models; written first
    results.jsonl        JSON lines (`Accuracy`, `Throughput`, `Latency`, `Absent`, `ImageAccounting`, `FailedModel`);
                         those of a network's accuracy appear together when it is scored, those of its throughput and
                         of its latency when it is timed
    partial/             while a network is scored: the predictions so far; `--resume` begins there
    summary.csv          one row for each line above with derived columns (analysis/summary.py): intervals, tests, rates
    predictions-*.npz    for each model: every image's answers (see bench.predictions)
    scores-*.npz         with --save-scores: every image's softmax scores (see bench.measure.scores)
    unreadable.csv       every image that could not be read: name, stage, reason
    *.png                figures

Raw counts and raw repetitions are stored; intervals, tests and ceilings are computed on reading (analysis/stats.py,
analysis/ceilings.py, analysis/summary.py), so that a better statistic needs no new run. A number that was not measured
is an `Absent` line with its reason.

Every file appears whole or not at all, whatever ends the run (``whole_file``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, checked_fields, parse_json_line, read_json_object, read_text, shown, typed

SCHEMA = 2
PARTIAL_RESULTS = "partial"  # folder of a run while a network is scored (bench.measure.partial_results)
ORIGINAL, REAL = LABELS = (
    "original",
    "real",
)  # which labels were scored; real: a second set (pipelines.data.real_labels)
# The stages of a throughput pass. `read`, `decode` and `resize` (each with those before it) do not depend on the crops.
READ, DECODE, RESIZE, LOAD, MODEL, END_TO_END = "read", "decode", "resize", "load", "model", "end_to_end"


@dataclass(frozen=True, slots=True)
class Setting:
    """All that a result depends on. Two results are comparable when these agree, but for what is being compared."""

    model: str
    family: str | None
    variant: str | None
    weights: str  # pretrained, random, demo, or a checkpoint's path
    weight_hash: str
    param_count: int
    published_top1: float | None  # percent, ImageNet validation, centre crop; where: `published_in`
    published_in: str | None
    S: int
    K: int
    interpolation: str
    crop_mode: str
    data: str  # the folder's name
    data_hash: str  # of names and labels, so that equal means the same images
    is_demo: bool
    backend: str
    batch_size: int  # crops per forward pass
    batch_images: int  # images per pipeline batch; with several crop counts the accuracy pass's
    workers: int
    device: str
    machine_id: str
    amp_dtype: str
    channels_last: bool
    torchcompile: bool
    seed: int
    folded: bool = False  # --fold, where there was something to fold (models.folding)
    adapt: str | None = None  # the parametric adaptation to K (models.fixres.activations), if any
    processes: int = 1  # that share the timing; accuracy does not depend on their number
    prefetch: int = 2  # batches in flight
    mmap: bool = True  # DALI may map image files
    hw_load: float | None = None  # share of a batch for a GPU's JPEG engine, whose pixels may differ; dali-gpu only
    crop_operator: str | None = (
        None  # DALI's operator for the crops (pipelines.backends.crop_ops) where it is not the usual one; dali-gpu only
    )
    hybrid_huffman_threshold: int | None = None  # pixels; where it is not DALI's default; dali-gpu only
    tf32: bool = False  # float32 convolutions and matrix products may round to TF32; on a GPU only
    cudnn_benchmark: bool = False  # cuDNN took the fastest of its algorithms; on a GPU only
    valid_labels: str | None = None  # among which outputs answers are (pipelines.data.labels.valid.words); None: all


# No answer depends on these, only how fast it comes: accuracies are comparable where they differ.
SPEED_FIELDS = ("batch_images", "workers", "prefetch", "mmap", "crop_operator", "machine_id")


def without_speed(setting: Setting) -> Setting:
    """The setting with SPEED_FIELDS left empty: equal where answers are."""
    empty: dict[str, Any] = dict.fromkeys(SPEED_FIELDS)
    return replace(setting, **empty)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """One policy at one level."""

    kind: ClassVar[str] = "accuracy"
    setting: Setting
    policy: str
    n_views: int
    level: str
    images: int  # scored, with a label
    unreadable: int
    top1_correct: int
    top5_correct: int
    nll_mean: float | None  # nats
    newly_correct: int  # wrong at the centre crop, right here
    newly_wrong: int
    mean_views: float | None = None  # per image: below n_views where a policy depends on the image's shape
    labels: str = ORIGINAL  # one of LABELS
    fitting_batch_size: int | None = None  # after running out of memory: the batch size that fitted
    forwards: float | None = None  # forward passes per image: the pixels that the network sees, over K^2
    # Of a stopped policy:
    agreement: float | None = None  # share of images with the answer of the whole policy
    first_threshold: float | None = None  # of the margin, certified by the first half, by which the second is stopped
    second_threshold: float | None = None  # the other way round
    # The one threshold that thresholds.json and recipes hold: the stricter of the two, or that of the recipe which is
    # measured again. And what comes of it, on all images:
    deployed_threshold: float | None = None
    deployed_correct: int | None = None  # top-1; None for the second set of labels
    deployed_agreement: float | None = None  # share of images with the answer of the whole policy
    deployed_forwards: float | None = None  # forward passes per image
    images_needed: int | None = None  # in each half, where the risk could not be certified and a number would do
    note: str | None = None

    @property
    def top1(self) -> float:
        """Percent."""
        return 100 * self.top1_correct / self.images

    @property
    def top5(self) -> float:
        return 100 * self.top5_correct / self.images

    @property
    def gain(self) -> float:
        """Points of top-1 over the centre crop at the same level, on the same images."""
        return 100 * (self.newly_correct - self.newly_wrong) / self.images


@dataclass(frozen=True, slots=True)
class Throughput:
    """All rounds of one stage at one crop count. ``model`` is in crops, the others are in images."""

    kind: ClassVar[str] = "throughput"
    setting: Setting
    stage: str  # read, decode, resize, load, model, end_to_end
    crops: int | None  # per image; None where the stage does not depend on it
    batch_images: int | None  # images per pipeline batch in this case
    # Images (of `model`: crops) in each round, disturbed ones too; of a stopped policy its forward passes over their
    # mean.
    counts: list[float]
    durations_s: list[float]
    interval_ms: list[float]  # between successive batches, of the kept rounds
    peak_mem_bytes: int  # this process and its children, sampled between rounds
    gpu_used_bytes: int | None
    frame_error_levels: float  # worst mean difference of a checked frame from the reference, grey levels (rule 7)
    fitting_batch_size: int | None = None  # after running out of memory: the batch size that fitted
    # Of several processes, per second [rounds][processes]. They start together: `counts` are of all of them, and
    # `durations_s` of the slowest, so that `rate` is what all of them do together, at least.
    rank_rates: list[list[float]] = field(default_factory=list)
    # Of dense and stopped policies (`crops` is then None; `model` is in images of the policy's views too):
    policy: str | None = None
    forwards: float | None = None  # forward passes per image: network pixels / K^2, discarded ones among them
    agreement: float | None = None  # share of images whose timed answer is the scored one; None where none was scored
    # Of each round (empty in older records): CPU time of the processes and their workers, seconds, and what disturbed
    # it, in words, or "" (bench.measure.disturbance). No text at all: no round was disturbed.
    cpu_s: list[float] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)

    @property
    def kept(self) -> list[int]:
        """The rounds that count: the undisturbed ones, or all where there is none."""
        return kept_rounds(self.disturbed or [""] * len(self.counts))

    @property
    def rates(self) -> list[float]:
        """Per second, of the kept rounds."""
        return [self.counts[i] / self.durations_s[i] for i in self.kept]

    @property
    def rate(self) -> float:
        """Median over the kept rounds, per second."""
        return float(np.median(self.rates))

    @property
    def images_per_sec(self) -> float | None:
        return None if self.stage == MODEL and self.policy is None else self.rate

    @property
    def crops_per_sec(self) -> float | None:
        if self.policy is not None:
            return None if self.forwards is None else self.rate * self.forwards
        if self.stage == MODEL:
            return self.rate
        return None if self.crops is None else self.rate * self.crops

    @property
    def spread(self) -> float:
        """(largest - smallest) / median over the kept rounds."""
        return (max(self.rates) - min(self.rates)) / self.rate


def kept_rounds(disturbed: Sequence[str]) -> list[int]:
    """The numbers of the rounds without a reason, or all where each has one."""
    return [i for i, reason in enumerate(disturbed) if not reason] or list(range(len(disturbed)))


@dataclass(frozen=True, slots=True)
class Latency:
    """One policy, one image at a time: from asking for it to its class on the host (bench.measure.latency)."""

    kind: ClassVar[str] = "latency"
    setting: Setting
    policy: str
    crops: int | None  # per image, of nRC; None for dense and stopped policies
    crops_per_forward: int  # all crops, but for stopped policies
    latency_ms: list[float]  # of each query, in order
    rows: list[int]  # the image of each query: the same for all policies, as far as each of them came
    forwards: float  # passes per image, discarded ones among them
    agreement: float | None = None  # share of answers that are the scored ones; None where none was scored
    # Of each round what disturbed it, or ""; the queries of disturbed rounds are left out where there are others. No
    # text at all: no round was disturbed.
    disturbed: list[str] = field(default_factory=list)

    def percentile(self, percent: float) -> float | None:
        """The latency that so many percent of the queries do not exceed, ms: one that was measured. None where the
        queries are too few for one of them to lie above it."""
        if len(self.latency_ms) * (100 - percent) < 100:
            return None
        return float(np.percentile(self.latency_ms, percent, method="inverted_cdf"))


@dataclass(frozen=True, slots=True)
class Absent:
    """A number that was not measured, and why."""

    kind: ClassVar[str] = "absent"
    setting: Setting
    what: str  # "accuracy", "accuracy at level feature", "throughput", ...
    reason: str


@dataclass(frozen=True, slots=True)
class ImageAccounting:
    """Every image that was found, or chosen by --limit, is scored or unreadable (at the scan, or when decoded)."""

    kind: ClassVar[str] = "images"
    setting: Setting
    expected: int
    scored: int  # 0 where nothing was scored
    unreadable_at_scan: int
    unreadable_when_decoded: int
    failed: list[list[str]]  # [name, stage, reason] of the latter


@dataclass(frozen=True, slots=True)
class FailedModel:
    """A network of a sweep that could not be measured, or not to the end. It has no setting: it may not even load."""

    kind: ClassVar[str] = "failed"
    label: str  # bench.cases.ModelCase.label
    stage: str  # load, accuracy, throughput
    reason: str


Record = Accuracy | Throughput | Latency | Absent | ImageAccounting
KINDS: dict[str, Any] = {c.kind: c for c in (Accuracy, Throughput, Latency, Absent, ImageAccounting)}


class Incomparable(ValueError):
    """Two results differ in something that is not being compared."""


def require_comparable(a: Setting, b: Setting, *, varying: Iterable[str] = ()) -> None:
    """Raise Incomparable, naming the first field in which the settings differ, but for those in ``varying``."""
    allowed = set(varying)
    for one in fields(Setting):
        mine, theirs = getattr(a, one.name), getattr(b, one.name)
        if one.name not in allowed and mine != theirs:
            raise Incomparable(
                f"results cannot be compared: {one.name} is {mine!r} in one ({a.model}) and {theirs!r} in the other "
                f"({b.model}); draw them apart, or run again with the same {one.name}"
            )


def to_line(record: Record | FailedModel) -> str:
    """One JSON line; never NaN or Infinity, which are not JSON."""
    return json.dumps({"schema": SCHEMA, "kind": record.kind, **asdict(record)}, allow_nan=False)


# The smallest value of a field, of each number where it is a list; nothing else that is stored may be negative.
LEAST: dict[str, float] = {
    "S": 1, "K": 1, "param_count": 0, "published_top1": 0, "batch_size": 1, "batch_images": 0, "workers": 0,
    "processes": 1, "prefetch": 0, "hw_load": 0, "seed": -(1 << 63), "n_views": 0, "images": 1, "unreadable": 0,
    "top1_correct": 0, "top5_correct": 0, "nll_mean": 0, "newly_correct": 0, "newly_wrong": 0, "mean_views": 0,
    "fitting_batch_size": 1, "forwards": 0, "agreement": 0, "deployed_correct": 0,
    "deployed_agreement": 0, "deployed_forwards": 0, "images_needed": 0, "crops": 0, "counts": 0,
    "durations_s": 1e-12, "interval_ms": 0, "peak_mem_bytes": 0, "gpu_used_bytes": 0, "frame_error_levels": 0,
    "crops_per_forward": 1, "latency_ms": 0, "rows": 0,
    "expected": 0, "scored": 0, "unreadable_at_scan": 0, "unreadable_when_decoded": 0,
}  # fmt: skip
STAGES = (READ, DECODE, RESIZE, LOAD, MODEL, END_TO_END)


def from_line(line: str, where: str = "a line of results") -> Record | FailedModel:
    """Read ``to_line``'s line. Raises DamagedFile, naming ``where`` and the field, for another schema, fields that are
    missing or unknown, and values of other types or out of their range."""
    values = parse_json_line(line, where)
    schema, kind = values.pop("schema", None), values.pop("kind", None)
    if schema == SCHEMA and kind == FailedModel.kind:
        return typed(FailedModel, values, where)
    if schema != SCHEMA or not isinstance(kind, str) or kind not in KINDS:
        raise DamagedFile(
            f"{where}: schema {shown(schema)}, kind {shown(kind)}: this version reads schema {SCHEMA}, "
            f"{', '.join(KINDS)}"
        )
    values["setting"] = typed(Setting, values.get("setting", {}), where, LEAST)
    record: Record = typed(KINDS[kind], values, where, LEAST)
    if reason := _contradiction(record):
        raise DamagedFile(f"{where}: {reason}")
    return record


def _contradiction(record: Record) -> str:
    """Why a record cannot be true, or ""."""
    if isinstance(record, Accuracy):
        wrong = record.images - record.top1_correct
        most = {"top1_correct": record.images, "top5_correct": record.images}
        most |= {"newly_correct": record.top1_correct, "newly_wrong": wrong}
        return next(
            (
                f"`{name}` is {value}, of {record.images} `images` of which {record.top1_correct} are right"
                for name, limit in most.items()
                if (value := getattr(record, name)) > limit
            ),
            "",
        )
    if isinstance(record, Throughput):
        if record.stage not in STAGES:
            return f"`stage` is {shown(record.stage)}, and none of {', '.join(STAGES)}"
        if not record.counts or len(record.counts) != len(record.durations_s) or max(record.counts) == 0:
            return f"`counts` has {len(record.counts)} rounds and `durations_s` {len(record.durations_s)}"
    if isinstance(record, Latency) and not 0 < len(record.latency_ms) == len(record.rows):
        return f"`latency_ms` has {len(record.latency_ms)} queries and `rows` {len(record.rows)}"
    if isinstance(record, ImageAccounting) and any(len(one) != 3 for one in record.failed):
        return "`failed` holds something else than [name, stage, reason]"
    return ""


def append(folder: Path, record: Record) -> None:
    """Add one line to results.jsonl, and see it to the disk."""
    extend(folder, [record])


def extend(folder: Path, added: Sequence[Record | FailedModel]) -> None:
    """Add these lines to results.jsonl, all of them or, when the disk is full or the process is killed, none."""
    _rewrite(folder, [*_lines(folder / "results.jsonl"), *map(to_line, added)])


def drop_failures(folder: Path) -> None:
    """Take FailedModel lines out of results.jsonl: those networks are tried again."""
    lines = _lines(folder / "results.jsonl")
    kept = [line for line in lines if not isinstance(from_line(line), FailedModel)]
    if len(kept) < len(lines):
        _rewrite(folder, kept)


def _rewrite(folder: Path, lines: Sequence[str]) -> None:
    write_whole(folder / "results.jsonl", "".join(f"{line}\n" for line in lines))


def _lines(path: Path) -> list[str]:
    return read_text(path).splitlines() if path.is_file() else []


@dataclass(frozen=True, slots=True)
class Run:
    """A run's folder, read back."""

    folder: Path
    info: dict[str, Any]  # run.json
    records: list[Record]
    failed: list[FailedModel] = field(default_factory=list)

    @property
    def accuracies(self) -> list[Accuracy]:
        """Against the original labels: the others' are never mixed with them, and are asked for by name."""
        return self.accuracies_of(ORIGINAL)

    def accuracies_of(self, labels: str) -> list[Accuracy]:
        return [r for r in self.records if isinstance(r, Accuracy) and r.labels == labels]

    def predictions_path(self, setting: Setting) -> Path | None:
        """The file of a network's predictions, as run.json names it; None where it does not."""
        for model in self.info.get("models", []):
            if all(model.get(key) == getattr(setting, key) for key in ("model", "S", "K")) and "predictions" in model:
                return self.folder / model["predictions"]
        return None

    @property
    def throughputs(self) -> list[Throughput]:
        return [r for r in self.records if isinstance(r, Throughput)]

    @property
    def latencies(self) -> list[Latency]:
        return [r for r in self.records if isinstance(r, Latency)]

    @property
    def image_accounts(self) -> list[ImageAccounting]:
        return [r for r in self.records if isinstance(r, ImageAccounting)]

    @property
    def absents(self) -> list[Absent]:
        return [r for r in self.records if isinstance(r, Absent)]


# run.json: what is read from it, where it is there.
RUN_INFO: dict[str, Any] = {
    "schema": int, "command": list[str], "directory": str, "started": str, "resumed": list[str], "expected_s": float,
    "networks": list[str], "policies": list[str], "data": str, "images_found": int, "images_unreadable_at_scan": int,
    "config": dict[str, Any], "load": dict[str, Any], "environment": dict[str, Any], "models": list[dict[str, Any]],
}  # fmt: skip
MODEL_INFO: dict[str, Any] = {
    "model": str, "label": str, "S": int, "K": int, "own_K": int | None, "train_K": int | None, "notes": list[str],
    "label_rule": str | None, "predictions": str, "setting": dict[str, Any], "asked": dict[str, Any],
    "num_classes": int, "images": int, "batch_size": int, "crops_per_sec": float | None, "expected_s": float,
    "multiply_adds": int | None, "activations": int | None,
}  # fmt: skip
ENVIRONMENT: dict[str, Any] = {"packages": dict[str, str | None], "cores_usable": int | None}
INFO_LEAST: dict[str, float] = {
    "images_found": 0, "images_unreadable_at_scan": 0, "S": 1, "K": 1, "expected_s": 0, "multiply_adds": 0,
    "activations": 0,
}  # fmt: skip


def read_info(folder: Path) -> dict[str, Any]:
    """run.json. Raises DamagedFile, naming the field, for another schema or values of other types."""
    path = folder / "run.json"
    info = read_json_object(path)
    if info.get("schema", SCHEMA) != SCHEMA:
        raise DamagedFile(
            f"{path} has schema {shown(info['schema'])}, and this version reads schema {SCHEMA}: read it with the "
            "version that wrote it, or run it again"
        )
    info = checked_fields(info, RUN_INFO, str(path), INFO_LEAST)
    if "environment" in info:
        info["environment"] = checked_fields(info["environment"], ENVIRONMENT, f"{path}: `environment`")
    if "models" in info:
        info["models"] = [_model_info(one, f"{path}: model {n}") for n, one in enumerate(info["models"], 1)]
    return info


def _model_info(values: dict[str, Any], where: str) -> dict[str, Any]:
    model = checked_fields(values, MODEL_INFO, where, INFO_LEAST)
    if "model" not in model:
        raise DamagedFile(f"{where} lacks `model`, its name")
    if (name := model.get("predictions")) and (Path(name).name != name or not name.isprintable()):
        raise DamagedFile(f"{where}: `predictions` is {shown(name)}, and should be the name of a file in the folder")
    return model


def read_run(folder: Path) -> Run:
    """Read a run's folder. Raises ValueError, naming file and line, where it is not a run or is damaged."""
    if not (folder / "run.json").is_file():
        raise ValueError(f"{folder} is not a run: it has no run.json. Give a folder that multicrop-bench run wrote")
    run = Run(folder, read_info(folder), [])
    results = folder / "results.jsonl"
    for number, line in enumerate(_lines(results), 1):
        record = from_line(line, f"{results}, line {number}")
        if isinstance(record, FailedModel):
            run.failed.append(record)
        else:
            run.records.append(record)
    return run
