"""Write a network and its policy as ONNX, checked against our own answers with ONNX Runtime.

    multicrop-bench export --recipe recipe.json --out exported/
    multicrop-bench export --model resnet50.a1_in1k --policy CC+9RC --out exported/ --data photos/

DIR then holds network.onnx (uint8 crops in, averaged class scores out, normalisation inside; any number of images and
of crops), the recipe, and export.json: names and shapes of inputs and output, how images are resized and cut, and how
far ONNX Runtime's answers are from ours on the same crops. Policies that stop early become a network for single views
and the rule. Needs pip install -e ".[onnx]".
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench import logs, predict, values
from bench.config import option
from bench.errors import UserError, exit_status
from bench.options import group_flags, parse_group, shared
from bench.predict import PredictConfig
from pipelines.data.faults import raise_if_of_machine
from pipelines.files import whole_folder, write_whole

if TYPE_CHECKING:
    from models import MultiCrop
    from models.onnx_check import Agreement

log = logging.getLogger(__name__)
SCHEMA = 1
DESCRIPTION = "export.json"


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """Which network to write, where to, and what to check it on."""

    title: ClassVar[str] = "export"
    out: Path | None = option("--out", metavar="DIR", parse=values.path, help="a new folder for the files")
    recipe: Path | None = shared(PredictConfig, "recipe")
    model: str | None = shared(PredictConfig, "model")
    policy: str = shared(PredictConfig, "policy")
    level: str = shared(PredictConfig, "level")
    thresholds: Path | None = shared(PredictConfig, "thresholds")
    weights: str | None = shared(PredictConfig, "weights")
    checkpoint: Path | None = shared(PredictConfig, "checkpoint")
    num_classes: int | None = shared(PredictConfig, "num_classes")
    img_size: int | None = shared(PredictConfig, "img_size")
    crop_pct: float | None = shared(PredictConfig, "crop_pct")
    interpolation: str | None = shared(PredictConfig, "interpolation")
    valid_labels: Path | None = shared(PredictConfig, "valid_labels")
    data: Path | None = option(
        "--data", metavar="DIR", parse=values.path, help="images that it is checked on (default: demo images)"
    )
    check_images: int = option(
        "--check-images", default=50, metavar="N", parse=values.positive, help="so many of them (default: 50)"
    )
    device: str | None = shared(PredictConfig, "device")
    data_backend: str = shared(PredictConfig, "data_backend")
    seed: int = shared(PredictConfig, "seed")
    verbose: int = shared(PredictConfig, "verbose")
    quiet: bool = shared(PredictConfig, "quiet")

    def __post_init__(self) -> None:
        if self.out is None:
            raise ValueError("`out` DIR is needed: a new folder for the files")
        self.prediction()  # raises for options that contradict each other

    def prediction(self) -> PredictConfig:
        """The same network as multicrop-bench predict would use it."""
        names = {one.name for one in fields(PredictConfig)} & {one.name for one in fields(self)} - {"out"}
        return PredictConfig(images=[str(self.data)], **{name: getattr(self, name) for name in names})


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, 2 for what the user can mend, 130 after Ctrl-C."""
    config = parse_group(argv, "multicrop-bench export", __doc__, ExportConfig)
    logs.set_up(config.verbose, config.quiet)
    return exit_status(lambda: run(config), group_flags(ExportConfig), "interrupted; nothing was written")


def run(config: ExportConfig) -> int:
    """Load, write, check; the folder appears when all of it is right."""
    from models.checkpoints import WeightsError
    from models.export import require_packages

    out = config.out
    assert out is not None
    require_packages()
    if out.exists():
        raise UserError(f"`out` {out} exists; results are never written over others: name a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(out) as part:
        try:
            classify = predict.load(config.prediction())
        except (WeightsError, RuntimeError) as error:
            raise_if_of_machine(error)
            raise UserError(str(error)) from error
        description = write(config, classify, part)
    for line in lines(description):
        log.info("%s", line)
    log.info("written: %s", out.resolve())
    return 0


def write(config: ExportConfig, classify: MultiCrop, folder: Path) -> dict[str, Any]:
    """The files; returns what export.json says. Raises UserError where ONNX Runtime's answers are not ours."""
    from models.export import described, export
    from models.onnx_check import agreement, check_rows, differs
    from pipelines.data import demo

    graphs = export(classify, folder, differs)
    data = classify.dataset(config.data if config.data is not None else demo.ensure("val"))
    rows = check_rows(data, config.check_images)
    found = agreement(classify, graphs, folder, data, rows.tolist())
    require_agreement(found, classify)
    if config.recipe:
        shutil.copyfile(config.recipe, folder / "recipe.json")
    description = {
        "schema": SCHEMA,
        "networks": described(graphs, classify.classifier.num_classes),
        **said_of(classify),
        "checked": asdict(found) | {"images_of": data.root.name, "demo_images": demo.is_demo(data.root)},
    }
    write_whole(folder / DESCRIPTION, json.dumps(description, indent=2, allow_nan=False) + "\n")
    return description


def require_agreement(found: Agreement, classify: MultiCrop) -> None:
    """Raise UserError where the largest difference is more than rounding explains."""
    from models.onnx_check import TOLERANCES

    allowed = TOLERANCES[classify.amp_dtype]
    if not found.largest_difference <= allowed:
        raise UserError(
            f"the exported {classify.classifier.name} does not give our answers: on {found.images} images, "
            f"probabilities differ by up to {found.largest_difference:.2g}, and {allowed:g} is allowed; nothing was "
            "written"
        )


def said_of(classify: MultiCrop) -> dict[str, Any]:
    """What a program that feeds the network must know: sizes, crops, where they are averaged, when to stop."""
    from models.recipe import package_version

    classifier, policy = classify.classifier, classify.policy
    spec = classifier.spec
    return {
        "model": classifier.name,
        "weight_hash": classifier.weight_hash,
        "classes": classifier.num_classes,
        "valid_labels": None if classifier.valid_labels is None else list(classifier.valid_labels),
        "resize_short_side_px": spec.S,
        "crop_px": spec.K,
        "interpolation": spec.interpolation,
        "crop_mode": spec.crop_mode,
        "policy": policy.name,
        "level": classify.level,
        "seed": classify.seed,
        "dense_stride_px": classify.planner.stride,
        "stopping": stopping(classify),
        "notes": notes(classify),
        "packages": {name: package_version(name) for name in ("torch", "timm", "onnx", "onnxruntime", "onnxscript")},
    }


def stopping(classify: MultiCrop) -> dict[str, Any] | None:
    """The order of the views and the rule, of a policy that stops early."""
    from models.stopping import rule_of

    policy = classify.policy
    if not policy.suffix:
        return None
    order = "+".join(term if n == 1 else f"{n}{term}" for term, n in policy.written)
    return {
        "rule": rule_of(policy).kind,
        "threshold": classify.threshold,
        "order": order,
        "what": WHAT[rule_of(policy).kind],
    }


MEAN = (
    "p: the class probabilities of the weighted mean over the views seen so far (the mean of view_scores, or the "
    "softmax of the mean of view_logits); m: the largest p minus the second largest. "
)
WHAT = {
    "exact": MEAN + "Stop when m times the weight seen is more than the weight of the views that are left.",
    "margin": MEAN + "Stop when m is more than the threshold.",
    "sqrt": MEAN + "n of N: the weight seen, of all views. Stop when m * n is more than sqrt(n * (N - n) / N).",
}


def notes(classify: MultiCrop) -> list[str]:
    """What differs from the measured setting, in words."""
    found = ["views are cut after resizing (see models.export and pipelines.crops of multicrop-bench); a view that the "
             "policy counts twice (the centre in CC+5FC) is handed over twice"]  # fmt: skip
    if classify.policy.adaptive:
        found.append("images have different numbers of crops: put those of one number into a batch")
    if classify.policy.dense:
        found.append("frames of one batch have one size; sides of up to 4096 pixels (larger frames are split in tiles)")
    if classify.amp_dtype != "float32":
        found.append(f"measured in {classify.amp_dtype}; the files compute in float32")
    return found


def lines(description: dict[str, Any]) -> list[str]:
    """For a person: what was written, and how it agrees."""
    checked = description["checked"]
    files = [
        f"{one['file']} ({one['exporter']}): "
        + ", ".join(f"{given['name']} {given['shape']}" for given in one["inputs"])
        + f" -> {one['output']['name']} {one['output']['shape']}"
        for one in description["networks"]
    ]
    return [
        *(line.replace("'", "") for line in files),
        f"ONNX Runtime beside our own answers, {checked['images']} images: the largest difference of a probability is "
        f"{checked['largest_difference']:.2g}, top-1 agrees in {100 * checked['top1_agreement']:.1f} %"
        + (f" ({checked['note']})" if checked["note"] else ""),
    ]
