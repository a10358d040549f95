"""Runs, images and published tables as plain data. Figures read files only through this module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from analysis.figures import EXPERIMENT_FILES
from analysis.published import load
from analysis.summary import derived
from analysis.text import name_text
from bench.predictions import Predictions, read_named
from bench.records import ORIGINAL, SPEED_FIELDS, Incomparable, Run, Setting, read_run, require_comparable
from pipelines.crops import parse_policy, resized_sizes
from pipelines.data.dataset import DatasetError, Scan
from pipelines.data.decode import decode
from pipelines.data.scanning import scan
from pipelines.data.spans import Span
from pipelines.inputspec import InputSpec

# Terms of a policy -> the curve it is a point of. ARC: more random crops for elongated images.
CURVES = {("CC",): "CC", ("RC",): "RC", ("CC", "RC"): "CC+RC", ("ARC",): "ARC"}

# What may differ between two networks whose accuracies are compared: what the network is, its input, and what
# does not change a prediction. Data, seed, backend, device and number format must agree.
NETWORK_FIELDS = (
    "model", "family", "variant", "weights", "weight_hash", "param_count", "published_top1", "published_in",
    "S", "K", "interpolation", "batch_size", *SPEED_FIELDS,
)  # fmt: skip
PAPER_TABLES = {
    f"MID Table {roman}": f"mid_table{i}" for i, roman in enumerate(("I", "II", "III", "IV", "V", "VI", "VII"), 1)
}


class MissingData(ValueError):
    """The runs and folders given do not have what a figure or table needs. The message says what would be needed."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What figures are drawn from: runs, a folder of images where the runs' own has moved, folders of experiments.
    Each may be missing."""

    runs: tuple[Run, ...] = ()
    data: Path | None = None
    experiments: tuple[Path, ...] = ()


NetworkRun = tuple[Run, Setting]  # one network on one data set, and the run that measured it


def read(folders: Iterable[Path]) -> tuple[Run, ...]:
    """Read runs. Raises ValueError for a folder that is not a run, and for a run that is damaged or without results."""
    runs = tuple(read_run(Path(folder)) for folder in folders)
    for run in runs:
        if not run.records:
            raise ValueError(f"{run.folder} holds no results: its results.jsonl is missing or empty. Run it again")
    return runs


def experiment_folders(inputs: Inputs, figure: str) -> dict[str, Path]:
    """File name ending -> folder of the experiment that this figure shows. Raises MissingData without any."""
    file = EXPERIMENT_FILES[figure]
    found = [folder for folder in inputs.experiments if (folder / file).is_file()]
    if not found:
        raise MissingData(f"needs a folder that multicrop-bench {figure.replace('_', '-')} wrote")
    return {slug(folder.name) if len(found) > 1 else "": folder for folder in found}


# ---- records


def accuracies(runs: Sequence[Run], labels: str = ORIGINAL) -> pd.DataFrame:
    """One row for each scored policy and level of all runs, against one of the sets of labels (bench.records.LABELS).

    Columns: run (its folder), setting, name (for people), images, policy, curve (of ``curve``), n_views,
    views (the mean over images, which is less where the number depends on the image), level, forwards (passes per
    image), top1 and its Wilson
    interval (percent), gain and its paired interval (points), p_value.
    """
    rows = [
        {
            "run": run.folder,
            "setting": record.setting,
            "name": display_name(record.setting),
            "images": record.images,
            "policy": record.policy,
            "curve": curve(record.policy),
            "n_views": record.n_views,
            "views": record.n_views if record.mean_views is None else record.mean_views,
            "level": record.level,
            "forwards": record.n_views if record.forwards is None else record.forwards,
            **derived(record),
        }
        for run in runs
        for record in run.accuracies_of(labels)
    ]
    return pd.DataFrame(rows)


def rows_of_network(frame: pd.DataFrame, network: NetworkRun) -> pd.DataFrame:
    """The rows of ``accuracies`` that belong to one network of one run."""
    run, setting = network
    return frame[(frame["run"] == run.folder) & (frame["setting"] == setting)].reset_index(drop=True)


def curve(policy: str) -> str:
    """Which curve a policy is a point of: CC, RC, CC+RC, ARC, or other; stopped and dense ones, whose cost is not a
    number of crops, are on none."""
    parsed = parse_policy(policy)
    if parsed.suffix or parsed.dense:
        return "stopped" if parsed.suffix else "dense"
    return CURVES.get(tuple(term for term, _ in parsed.terms), "other")


SHOWN_COUNTS = (1, 2, 3, 5, 10, 20, 40)  # of a curve's crop counts, those that printed tables show


def is_shown(policy: str, n_views: int) -> bool:
    """Whether printed tables show a policy: of the curves nRC and CC+(n-1)RC only SHOWN_COUNTS; every other policy."""
    on_curve = policy in (f"{n_views}RC", f"CC+{n_views - 1}RC")
    return not on_curve or n_views in SHOWN_COUNTS


def scored_networks(runs: Sequence[Run], *, beyond_centre: bool = False) -> list[NetworkRun]:
    """Networks that were scored, in order; ``beyond_centre``: at more than the centre crop.

    Raises MissingData, with the runs' own reasons, when there is none.
    """
    if not runs:
        raise MissingData("needs a run: give a folder that bench/run.py wrote")
    found = {
        (run.folder, record.setting): (run, record.setting)
        for run in runs
        for record in run.accuracies
        if not beyond_centre or record.policy != "CC"
    }
    if not found:
        if any(run.accuracies for run in runs):
            raise MissingData("needs policies with several crops: run with --crops 1,2,5,10,20")
        raise MissingData(f"needs a run with an accuracy pass{_reasons(runs, 'accuracy')}")
    return list(found.values())


def settings(runs: Sequence[Run]) -> list[Setting]:
    """Every setting of the runs, in order, once."""
    return list(dict.fromkeys(record.setting for run in runs for record in run.records))


def is_v2(setting: Setting) -> bool:
    """Told by the folder's name, such as imagenetv2-matched-frequency-format-val; the demo's versions are not V2."""
    return "v2" in setting.data.lower() and not setting.is_demo


def timed_networks(runs: Sequence[Run]) -> list[NetworkRun]:
    """Networks that were timed, in order. Raises MissingData, with the runs' own reasons, when there is none."""
    if not runs:
        raise MissingData("needs a run: give a folder that bench/run.py wrote")
    found = {(run.folder, t.setting): (run, t.setting) for run in runs for t in run.throughputs}
    if not found:
        raise MissingData(f"needs a run with a throughput pass{_reasons(runs, 'throughput')}")
    return list(found.values())


def _reasons(runs: Sequence[Run], what: str) -> str:
    found = dict.fromkeys(r.reason for run in runs for r in run.absents if r.what == what)
    return f"; the run says: {'; '.join(found)}" if found else ""


def require_all_comparable(networks: Sequence[NetworkRun], varying: Iterable[str] = NETWORK_FIELDS) -> None:
    """Raise bench.records.Incomparable, naming the field, when two networks may not be compared."""
    allowed = tuple(varying)
    for _, setting in networks[1:]:
        require_comparable(networks[0][1], setting, varying=allowed)


def best_curve_policy(frame: pd.DataFrame, most: int = 20) -> str:
    """Of the policies nRC of one network, the one with the most crops, ``most`` at most (the papers' 20)."""
    curves = frame[(frame["curve"] == "RC") & (frame["n_views"] <= most)]
    if curves.empty:
        raise MissingData("needs random crops alone (20RC): run with --crops 1,2,5,10,20")
    return str(curves.sort_values("n_views")["policy"].iloc[-1])


T = TypeVar("T")


def attempts(makers: dict[str, Callable[[], T]]) -> dict[str, T | MissingData]:
    """Each part's data, or why it has none: one network that cannot be shown does not hide the others.

    Raises MissingData when no part has any.
    """
    out: dict[str, T | MissingData] = {}
    for ending, make in makers.items():
        try:
            out[ending] = make()
        except (MissingData, Incomparable) as reason:
            out[ending] = MissingData(str(reason))
    reasons = [str(one) for one in out.values() if isinstance(one, MissingData)]
    if len(reasons) == len(out):
        raise MissingData("; ".join(dict.fromkeys(reasons)))
    return out


def endings(networks: Sequence[NetworkRun]) -> list[str]:
    """File name endings that tell the parts apart: "" for one alone, else the model, with S or the run where needed."""
    if len(networks) == 1:
        return [""]
    texts = _distinct(
        networks,
        lambda run, setting: setting.model,
        lambda run, setting: f"{setting.model}-S{setting.S}",
        lambda run, setting: f"{setting.model}-S{setting.S}-{run.folder.name}",
    )
    return [slug(text) for text in texts]


def line_names(networks: Sequence[NetworkRun]) -> list[str]:
    """Legend texts that tell the parts apart: the network; with its sizes, its machine or its run where needed."""

    def machine(run: Run, setting: Setting) -> str:
        environment = run.info.get("environment", {})
        return f"{member_name(setting)}, {machine_text(environment, setting)}, {setting.backend}, {setting.amp_dtype}"

    return _distinct(
        networks,
        lambda run, setting: member_name(setting),
        lambda run, setting: f"{member_name(setting)}, {setting.K}/{setting.S}",
        machine,
        lambda run, setting: f"{member_name(setting)}, {setting.K}/{setting.S}, {name_text(run.folder.name)}",
    )


def _distinct(networks: Sequence[NetworkRun], *makers: Callable[[Run, Setting], str]) -> list[str]:
    """The first maker's texts that are all different; or the last's, numbered."""
    for make in makers:
        texts = [make(run, setting) for run, setting in networks]
        if len(set(texts)) == len(texts):
            return texts
    return [f"{text} {i}" for i, text in enumerate(texts, 1)]


def slug(text: str) -> str:
    """For a file name: letters, digits, ``.-_``; all else becomes a hyphen. Also how bench names its .npz files."""
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in text)


# ---- words


def display_name(setting: Setting) -> str:
    """What a title or legend can hold: ``resnet (demo network)``, ``mobilenet_v2.IMAGENET1K_V1``."""
    if setting.variant == "demo":
        return name_text(f"{setting.family} (demo network)")
    return name_text(setting.model.removeprefix("torchvision:"))


def member_name(setting: Setting) -> str:
    """The same, shorter, for legends: ``resnet 18``, ``efficientnet ap:b0``."""
    if setting.variant and setting.family:
        return name_text(f"{setting.family} {setting.variant}")
    return display_name(setting)


def provenance(networks: Sequence[NetworkRun], images: int | None = None) -> list[str]:
    """The small print: images, weights, sizes, machine, backend, versions; what differs between parts with slashes."""
    settings = [setting for _, setting in networks]
    environments = [run.info.get("environment", {}) for run, _ in networks]
    sizes = [f"{s.K} from {s.S} pixels, {s.interpolation}" for s in settings]
    what = [
        (f"{images:,} images of " if images is not None else "on ") + _either(data_text(s) for s in settings),
        _either(weights_text(s) for s in settings),
        f"crops of {_either(sizes)}" if len(set(sizes)) <= 3 else "crops of several sizes",
        f"seed {_either(s.seed for s in settings)}",
    ]
    how = [
        _either(machine_text(e, s) for e, s in zip(environments, settings, strict=True)),
        f"{_either(s.backend for s in settings)}, network on {_either(s.device for s in settings)}, "
        f"{_either(s.amp_dtype for s in settings)}, batch size {_either(s.batch_size for s in settings)}",
        _either(versions_text(e) for e in environments),
    ]
    return ["; ".join(what), "; ".join(how)]


def _either(values: Iterable[object]) -> str:
    return " / ".join(dict.fromkeys(str(value) for value in values))


def data_text(setting: Setting) -> str:
    return "the generated DEMO DATA (says nothing about ImageNet)" if setting.is_demo else name_text(setting.data)


def weights_text(setting: Setting) -> str:
    kind = setting.weights if setting.weights in ("pretrained", "pip", "random", "demo") else Path(setting.weights).name
    return f"{name_text(kind)} weights"


def machine_text(environment: dict, setting: Setting) -> str:
    """The GPU's name, or the CPU's with its cores, or the machine's digits."""
    cores = f", {environment['cores_usable']} cores" if environment.get("cores_usable") else ""
    return f"{name_text(environment.get('gpu') or environment.get('cpu') or setting.machine_id)}{cores}"


def versions_text(environment: dict) -> str:
    packages = environment.get("packages", {})
    named = (("torch", "torch"), ("timm", "timm"), ("nvidia-dali-cuda120", "DALI"))
    return ", ".join(f"{short} {packages[name]}" for name, short in named if packages.get(name)) or "versions unknown"


# ---- per-image predictions


@dataclass(frozen=True)
class ImagePredictions:
    """A run's predictions-*.npz with the images' names; [l, p, b] = level, policy, image."""

    names: list[str]  # [b]
    stored: Predictions

    @property
    def labels(self) -> np.ndarray:
        """int64 [b], -1 = none."""
        return self.stored.labels

    @property
    def policies(self) -> list[str]:
        return self.stored.policies

    @property
    def levels(self) -> list[str]:
        return self.stored.levels

    @property
    def top1(self) -> np.ndarray:
        """int32 [l, p, b]: the predicted class."""
        return self.stored.top1

    @property
    def view_top1(self) -> np.ndarray:
        """int32 [b, v], columns of pipelines.crops.union(policies): the class that each view alone predicts."""
        return self.stored.view_top1

    @cached_property
    def right(self) -> np.ndarray:
        """bool [l, p, b]."""
        return self.top1 == self.labels

    def has(self, policy: str, level: str) -> bool:
        return policy in self.policies and level in self.levels

    def of(self, policy: str, level: str = "softmax") -> np.ndarray:
        """bool [b]: which images the policy gets right."""
        return self.right[self.levels.index(level), self.policies.index(policy)]


def predictions(network: NetworkRun) -> ImagePredictions:
    """The per-image predictions of one network of a run. Raises MissingData when its folder does not hold them."""
    run, setting = network
    named = run.predictions_path(setting)
    paths = sorted(run.folder.glob("predictions-*.npz")) if named is None else [named] if named.is_file() else []
    stored = {path: ImagePredictions(*read_named(path)) for path in paths}
    for scored in dict.fromkeys(record.setting for record in run.accuracies) if named is None else [setting]:
        path = next((path for path, answers in stored.items() if _belongs(answers, run, scored)), None)
        if scored == setting and path is not None:
            return stored[path]
        stored.pop(path, None)  # type: ignore[arg-type]
    raise MissingData(
        f"needs the per-image predictions of {setting.model}: {run.folder} has no predictions-*.npz that fits its "
        "records; run it again"
    )


def _belongs(answers: ImagePredictions, run: Run, setting: Setting) -> bool:
    """Whether the predictions give the very counts of the setting's records."""
    known = int((answers.labels >= 0).sum())
    return all(
        answers.has(record.policy, record.level)
        and known == record.images
        and int(answers.of(record.policy, record.level).sum()) == record.top1_correct
        for record in run.accuracies
        if record.setting == setting
    )


# ---- images


def images(inputs: Inputs, run: Run | None = None) -> Scan:
    """The images of a run, or of ``--data``. Raises MissingData when they are no longer there."""
    folder = inputs.data or (Path(run.info["data"]) if run and run.info.get("data") else None)
    if folder is None:
        raise MissingData("needs images: give a run, or --data DIR")
    try:
        return scan(folder, workers=2, progress=False)
    except DatasetError as error:
        raise MissingData(
            f"needs the images of the run: {error}. If they have moved, name their folder: --data DIR"
        ) from error


def rows_of(names: Sequence[str], found: Scan) -> pd.DataFrame:
    """The scan's rows of these images, in this order. Raises MissingData when some are missing."""
    table = found.table.set_index("name")
    missing = [name for name in names if name not in table.index]
    if missing:
        raise MissingData(
            f"{len(missing)} images of the run are not in {found.root}, such as {missing[0]}: name their folder with "
            "--data DIR"
        )
    return table.loc[list(names)].reset_index()


def spec_of(setting: Setting) -> InputSpec:
    """How the run's images were resized and cropped (the normalisation plays no part in it)."""
    return InputSpec(setting.S, setting.K, setting.interpolation, setting.crop_mode)


def resized_picture(image: Path | Span, setting: Setting) -> np.ndarray:
    """The image as the crops were cut from it, uint8 [H, W, 3], by PIL: for looking at, not for measuring."""
    from PIL import Image

    stored = decode(image)
    height, width = resized_sizes(np.array([stored.shape[:2]]), spec_of(setting))[0].tolist()
    return np.asarray(Image.fromarray(stored).resize((width, height), Image.Resampling.BICUBIC))


# ---- published


def published_rows(setting: Setting) -> pd.DataFrame:
    """The paper's own rows for this network (``analysis.published``), empty where there are none.

    Only published weights on images that are not the demo's, with the aspect ratio kept, are compared with the paper's.
    """
    table = PAPER_TABLES.get(setting.published_in or "")
    if table is None or setting.is_demo or setting.weights != "pretrained" or setting.crop_mode != "center":
        return load("mid_table1").iloc[:0]
    frame = load(table)
    architecture = setting.model.removeprefix("torchvision:").partition(".")[0]
    columns = frame["model"].str.removesuffix("_ap").str.removesuffix("_ns")
    same = (columns == architecture) & (frame["K"] == setting.K) & (frame["S"] == setting.S)
    return frame[same.fillna(False)].reset_index(drop=True)
