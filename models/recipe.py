"""A recipe: the choice of a network and its crops as a small JSON file, with what was measured of it and where.

    classify = MultiCrop.from_recipe("recipe.json")

``use`` is what is done, ``measured`` what came of it: the setting of that measurement, accuracy, rate, machine and
package versions. Both hold the policy and the network's settings, so that an edit in one is noticed. A recipe is
refused, by name, where weights, packages or settings are not those that were measured. No torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pipelines.files import write_whole
from pipelines.schemas import DamagedFile, checked_fields, read_json, typed

log = logging.getLogger(__name__)
SCHEMA = 1
# Packages that a prediction may depend on. DALI only where it makes the crops.
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")
ADDED_LATER = ("simplejpeg",)  # recipes that were written before do not name them
DALI = "nvidia-dali-cuda120"
# Field of Use -> field of ``measured["setting"]`` (bench.records.Setting) that must say the same.
SAME_IN_SETTING = {
    "weight_hash": "weight_hash",
    "seed": "seed",
    "backend": "backend",
    "batch_size": "batch_size",
    "amp_dtype": "amp_dtype",
    "channels_last": "channels_last",
    "torchcompile": "torchcompile",
    "tf32": "tf32",
    "cudnn_benchmark": "cudnn_benchmark",
}
# Types of what is read from ``measured``, and the smallest values of ``use``.
MEASURED: dict[str, Any] = {
    "setting": dict[str, Any], "packages": dict[str, str | None], "policy": str, "level": str,
    "stopping": dict[str, Any] | None,
}  # fmt: skip
SETTING: dict[str, Any] = {"S": int, "K": int, "interpolation": str, "crop_mode": str}
LEAST = {"batch_size": 1, "num_classes": 1, "img_size": 1, "crop_pct": 1e-3}
SAME_IN_MEASURED = ("policy", "level", "stopping")


class RecipeError(ValueError):
    """A recipe that cannot be read, or that something has changed since it was measured."""


@dataclass(frozen=True, slots=True)
class Use:
    """What is done with an image. The names are those of ``models.MultiCrop``; ``weight_hash`` names the weights."""

    model: str
    policy: str
    level: str
    weights: str  # pretrained, random or demo; without effect beside a checkpoint
    weight_hash: str
    seed: int
    backend: str
    device: str  # cpu or cuda
    batch_size: int
    checkpoint: str | None = None
    num_classes: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    img_size: int | None = None
    crop_pct: float | None = None
    crop_mode: str | None = None
    interpolation: str | None = None
    amp_dtype: str = "float32"
    channels_last: bool = False
    fold: bool = False
    torchcompile: bool = False
    tf32: bool = False
    cudnn_benchmark: bool = False
    stopping: dict[str, Any] | None = None  # thresholds of early stopping; None: every view is evaluated


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done, and what was measured of it."""

    use: Use
    measured: dict[str, Any]
    path: Path = Path("recipe.json")

    def write(self, path: Path) -> Path:
        """Write it, whole or not at all; return the absolute path."""
        measured = {**self.measured, "use_hash": use_hash(self.use)}
        stored = {"schema": SCHEMA, "use": asdict(self.use), "measured": measured}
        write_whole(path, json.dumps(stored, indent=2, allow_nan=False) + "\n")
        return path.resolve()

    def require_unedited(self) -> None:
        """Raise RecipeError, naming the field, where ``use`` is not what was measured."""
        setting = self.measured["setting"]
        pairs = {name: (getattr(self.use, name), self.measured.get(name)) for name in SAME_IN_MEASURED}
        pairs |= {mine: (getattr(self.use, mine), setting.get(theirs)) for mine, theirs in SAME_IN_SETTING.items()}
        pairs["device"] = (self.use.device, str(setting.get("device")).split(":")[0])
        for name, (used, measured) in pairs.items():
            if used != measured:
                raise RecipeError(
                    f'{self.path}: `{name}` is {used!r} in "use", and {measured!r} was measured: what is written '
                    "there was not measured. Undo the change, or measure it with multicrop-bench run"
                )

    def require_same_hash(self) -> None:
        """Raise RecipeError where ``use`` was edited in a way that ``measured`` does not show. Older recipes have no
        hash."""
        written, now = self.measured.get("use_hash"), use_hash(self.use)
        if written is not None and written != now:
            raise RecipeError(
                f'{self.path}: "use" was edited after it was measured (its hash is {now}, and {written!r} was '
                "written). Undo the change, or measure it with multicrop-bench run"
            )

    def require_same_packages(self) -> None:
        """Raise RecipeError, naming the package, where another version is installed than was measured. A package
        that older recipes do not name is only warned of."""
        for name in self.unnamed_packages():
            log.warning(
                "%s does not say with which %s it was measured: predictions are its own only if it was %s, which is "
                "installed here. To be sure, measure it again: multicrop-bench run --recipe %s",
                self.path, name, package_version(name), self.path,
            )  # fmt: skip
        if changed := self.changed_package():
            name, then, now = changed
            raise RecipeError(
                f"{self.path} was measured with {name} {then}, and this is {now}: predictions may differ. Install "
                f"{name} {then}, or measure it again: multicrop-bench run --recipe {self.path}"
            )

    def changed_package(self) -> tuple[str, str, str] | None:
        """(name, version when it was measured, version now) of the first package that changed, or None."""
        then = self.measured["packages"]
        for name, now in package_versions(self.use.backend).items():
            if then.get(name) != now and name not in self.unnamed_packages():
                return name, str(then.get(name)), str(now)
        return None

    def unnamed_packages(self) -> list[str]:
        """Those of ADDED_LATER that an older recipe says nothing about."""
        return [name for name in ADDED_LATER if name not in self.measured["packages"]]

    def require_same_weights(self, weight_hash: str) -> None:
        """Raise RecipeError unless these are the weights that were measured."""
        if weight_hash != self.use.weight_hash:
            raise RecipeError(
                f"{self.path}: the weights of {self.use.checkpoint or self.use.model} are not those that were measured "
                f"(hash {weight_hash} now, {self.use.weight_hash} then): get those weights, or measure these with "
                "multicrop-bench run"
            )

    def require_same_sizes(self, S: int, K: int, interpolation: str, crop_mode: str) -> None:
        """Raise RecipeError, naming the size, unless the images are prepared as they were measured."""
        now = {"S": S, "K": K, "interpolation": interpolation, "crop_mode": crop_mode}
        for name, value in now.items():
            if self.measured["setting"][name] != value:
                raise RecipeError(
                    f"{self.path}: {name} is {value!r} now, and {self.measured['setting'][name]!r} was measured: undo "
                    "the change of img_size, crop_pct, crop_mode or interpolation, or measure it with multicrop-bench "
                    "run"
                )

    def require_same_network(self, classifier: Any) -> None:
        """``require_same_weights`` and ``require_same_sizes`` of a loaded ``models.classifier.Classifier``, and
        ``require_same_hash``, which names no field and comes last."""
        spec = classifier.spec
        self.require_same_weights(classifier.weight_hash)
        self.require_same_sizes(spec.S, spec.K, spec.interpolation, spec.crop_mode)
        self.require_same_hash()

    @property
    def threshold(self) -> float | None:
        """Of the margin above which images are stopped, of a policy with a risk.

        Raises RecipeError where it is not a number between 0 and 1.
        """
        if self.use.stopping is None:
            return None
        value = self.use.stopping.get("threshold")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise RecipeError(f'{self.path}: `stopping` needs a "threshold" between 0 and 1, not {value!r}')
        return float(value)

    def multicrop_arguments(self) -> dict[str, Any]:
        """Keywords of ``models.MultiCrop``."""
        own = ("weight_hash", "stopping")
        stopping = {} if self.threshold is None else {"thresholds": self.threshold}
        return {name: value for name, value in asdict(self.use).items() if name not in own} | stopping

    def run_options(self) -> dict[str, Any]:
        """Options of a run that measures the same again: field names of bench.config.RunConfig."""
        use = self.use
        return {
            "models": [use.model],
            "policies": use.policy,
            "weights": None if use.checkpoint else use.weights,
            "checkpoint": Path(use.checkpoint) if use.checkpoint else None,
            "img_size": [use.img_size] if use.img_size else None,
            "crop_pct": [use.crop_pct] if use.crop_pct else None,
            "data_backend": use.backend,
            **{name: getattr(use, name) for name in SAME_AS_OPTIONS},
        }


# Fields of Use that are options of a run under the same name.
SAME_AS_OPTIONS = (
    "num_classes", "model_kwargs", "crop_mode", "interpolation", "seed", "device", "batch_size", "amp_dtype",
    "channels_last", "fold", "torchcompile", "tf32", "cudnn_benchmark",
)  # fmt: skip


def use_hash(use: Use) -> str:
    """16 hexadecimal digits: an edit is noticed also where it was made in both parts of the file."""
    as_read = typed(Use, json.loads(json.dumps(asdict(use))), "use")  # 1 and 1.0 are one value
    return hashlib.sha256(json.dumps(asdict(as_read), sort_keys=True).encode()).hexdigest()[:16]


def package_versions(backend: str) -> dict[str, str | None]:
    """Versions of the packages that a prediction of this backend depends on; None where one is not installed."""
    names = (*PACKAGES, DALI) if backend.startswith("dali") else PACKAGES
    return {name: package_version(name) for name in names}


def package_version(name: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def read_recipe(path: str | Path) -> Recipe:
    """Read ``Recipe.write``'s file. Raises RecipeError, naming the file and the field, for what is not a recipe."""
    path = Path(path)
    try:
        return _recipe_in(path, read_json(path))
    except DamagedFile as error:
        raise RecipeError(f"{error}; this is not a recipe of multicrop-bench recommend") from error


def _recipe_in(path: Path, stored: Any) -> Recipe:
    """Raises RecipeError and DamagedFile."""
    if not isinstance(stored, dict) or stored.get("schema") != SCHEMA:
        raise RecipeError(f"{path} is not a recipe of schema {SCHEMA}: multicrop-bench recommend writes one")
    use, measured = stored.get("use"), stored.get("measured")
    if not isinstance(use, dict) or not isinstance(measured, dict):
        raise RecipeError(f'{path} lacks "use" or "measured"')
    names = {one.name for one in fields(Use)}
    if unknown := sorted(use.keys() - names):
        raise RecipeError(f'{path}: "use" has the unknown field {unknown[0]!r}')
    if missing := sorted(names - use.keys()):
        raise RecipeError(f'{path}: "use" lacks the field {missing[0]!r}')
    if not isinstance(measured.get("setting"), dict) or not isinstance(measured.get("packages"), dict):
        raise RecipeError(f'{path}: "measured" lacks "setting" or "packages"')
    measured = checked_fields(measured, MEASURED, f'{path}: "measured"')
    setting = checked_fields(measured["setting"], SETTING, f'{path}: "setting"')
    if lacking := sorted(SETTING.keys() - setting.keys()):
        raise RecipeError(f'{path}: "setting" lacks the field {lacking[0]!r}')
    return Recipe(typed(Use, use, f'{path}: "use"', LEAST), {**measured, "setting": setting}, path)
