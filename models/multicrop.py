"""The Python API: classify images, each by the average of several crops.

classify = MultiCrop("resnet50.a1_in1k", policy="CC+9RC")
for image in classify("photos/"):
    print(image.name, image.error or image.top(5))
"""

from __future__ import annotations

import glob
import logging
import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.averaging import LEVELS
from models.class_names import ClassNames, class_names_for
from models.classifier import Classifier
from models.dense import Dense, DenseAbsent
from models.early_stopping import Answered, answers
from models.loading import load
from models.predict import Network, default_batch_size
from models.preset import CROPS, PRESETS, Choice, crops_of, network_arguments, pipeline_gone, policy_for
from models.preset import choose as choose_variant
from models.recipe import read_recipe
from models.stopping import rule_of
from models.thresholds import find
from models.variants import Variant, default_variant
from pipelines.backends import BACKENDS, backend, choose
from pipelines.batch import DEFAULT_MAX_RESIZED, CropBatch, LoadConfig, Source, default_batch_images
from pipelines.crops import Planner, Policy, Views, parse_policy, union
from pipelines.data.dataset import Dataset, DatasetError
from pipelines.data.labels.valid import checked_valid_labels, read_valid_labels
from pipelines.data.limits import DEFAULT_LIMITS, ImageLimits
from pipelines.data.memory import ImageList, name_of
from pipelines.data.scanning import scan
from pipelines.data.tars import is_pattern
from pipelines.surroundings import usable_cores

log = logging.getLogger(__name__)
NAN = "the network gave NaN: half precision may overflow, or the weights hold NaN"
FEWEST_OF_ONE_CLASS = 10  # images with one and the same answer, from which on a note says so
BLOCK_IMAGES = 256  # of a list or iterator, looked at together: memory stays bounded
GLOB_SIGNS = "*?["


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image: its probabilities, or why there are none: it could not be read, or the network gave NaN."""

    name: str
    probabilities: np.ndarray | None  # float64 [n classes], sums to 1; None where there is an error
    error: str | None = None
    classes: ClassNames = field(default_factory=ClassNames, repr=False)

    def top(self, k: int = 5) -> list[tuple[int, str | None, str | None, float]]:
        """The k most probable classes: (index, wnid, name, probability). wnid and name are None where they are not
        known.

        Of equal probabilities the lower index comes first. Raises ValueError for an image without an answer.
        """
        if self.probabilities is None:
            raise ValueError(f"{self.name} has no answer: {self.error}")
        order = np.argsort(-self.probabilities, kind="stable")[:k].tolist()
        return [(i, self.classes.wnid(i), self.classes.name(i), float(self.probabilities[i])) for i in order]


class MultiCrop:
    """A classifier that averages its predictions over the crops of a policy.

    ``model``: a timm name, ``torchvision:NAME``, ``FAMILY:VARIANT`` of the paper's families, or ``FAMILY:demo``.
    ``policy``: a sum of view terms, such as ``CC+9RC`` (see ``pipelines.crops``). ``level``: where the views are
    averaged, ``feature``, ``logit`` or ``softmax``. ``weights``: ``pretrained`` (downloaded once), ``pip`` (from an
    installed package), ``random`` or ``demo``; ``checkpoint``: a file instead. ``device``: ``cpu`` or ``cuda``;
    ``backend``: one of ``pipelines.backends.BACKENDS`` or ``auto``. ``batch_size``: crops per
    forward pass, always padded to so many: for single images the policy's number of crops answers soonest.
    ``workers``: decoding processes of the torchvision backend; 0, the default, starts none (DALI decodes in threads).
    ``seed``: of the random crops, which depend on it and the image's name. ``class_names``: for the classes in order.
    ``thresholds``: the folder of a run that calibrated a policy such as ``CC+3DC~1%``, or the threshold itself.
    ``valid_labels``: outputs, or a file of them, among which answers are.

    ``preset="fast"``: the first call tries faster ways of running the network on its images (``models.preset``), which
    takes minutes, and the fastest that gives the plain float32 network's answers on 300 crops is used from then on; the
    attribute ``preset`` then says which and why (a ``models.preset.Choice``; ``None`` before). It decides
    ``amp_dtype``, ``channels_last``, ``fold``, ``torchcompile``, ``tf32`` and ``cudnn_benchmark``. ``"eager"``: the
    same without what would have to be compiled.

    Images beyond ``max_megapixels`` or
    ``max_megabytes`` come with an error before they are decoded; of those that would have more than
    ``max_resized_megapixels`` when resized, the windows are cut one by one. The others are those of
    ``multicrop-bench run``.

    Predictions equal those of ``multicrop-bench run`` for the same images, policy, level and settings, bit for bit.
    An object may be called from several threads.

    Raises ValueError for unknown names or settings, models.checkpoints.WeightsError for weights that cannot be had,
    RuntimeError where the backend cannot run here.
    """

    def __init__(
        self,
        model: str,
        *,
        policy: str = "CC+9RC",
        level: str = "softmax",
        weights: str | None = None,
        checkpoint: str | Path | None = None,
        device: str | None = None,
        backend: str = "auto",
        batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
        num_classes: int | None = None,
        model_kwargs: dict[str, Any] | None = None,
        img_size: int | None = None,
        crop_pct: float | None = None,
        crop_mode: str | None = None,
        interpolation: str | None = None,
        amp_dtype: str = "float32",
        channels_last: bool | None = None,
        fold: bool = False,
        torchcompile: bool = False,
        tf32: bool = False,
        cudnn_benchmark: bool = False,
        preset: str | None = None,
        class_names: Sequence[str] | None = None,
        thresholds: str | Path | float | None = None,
        valid_labels: Sequence[int] | str | Path | None = None,
        max_megapixels: float = DEFAULT_LIMITS.megapixels,
        max_megabytes: float = DEFAULT_LIMITS.megabytes,
        max_resized_megapixels: float = DEFAULT_MAX_RESIZED,
    ) -> None:
        if level not in LEVELS:
            raise ValueError(f"`level` {level!r} is not one of {', '.join(LEVELS)}")
        self.policy, self.level, self.seed, self.workers = parse_policy(policy), level, seed, workers
        self.amp_dtype = amp_dtype
        self.device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")
        asked = Variant(bool(channels_last), fold, amp_dtype, torchcompile, tf32, cudnn_benchmark)
        self._choosing, self._eager = _choosing(preset, asked), preset == "eager"
        self.preset: Choice | None = None
        usual = default_variant(self.device) if channels_last is None else asked
        self._variant = replace(asked, channels_last=usual.channels_last)
        sizes = {"img_size": img_size, "crop_pct": crop_pct, "crop_mode": crop_mode, "interpolation": interpolation}
        how: dict[str, Any] = {"num_classes": num_classes, "model_kwargs": model_kwargs, "seed": seed, **sizes}
        self._load = partial(_loaded, model, valid_labels, weights=weights, checkpoint=checkpoint, **how)
        self.classifier = self._load(fold=fold)
        if level == "feature" and self.classifier.feature_absent_reason:
            raise ValueError(f"{model} has no feature level: {self.classifier.feature_absent_reason}")
        self.backend, _ = choose(backend, device=self.device)
        self._dense = _dense(self.classifier, self.policy)
        self.threshold = _threshold(self.classifier, self.policy, level, thresholds)
        self.planner = _planner(self.classifier, self.policy, seed, self._dense)
        self.views = self.planner.views
        self.classes = class_names_for(self.classifier, class_names)
        self.batch_size = batch_size or default_batch_size(self.classifier.spec.K, self.device)
        self.limits, self.max_resized_megapixels = ImageLimits(max_megapixels, max_megabytes), max_resized_megapixels
        self._lock = threading.Lock()
        self._taken = 0  # how often a network was asked for
        self._idle: list[Network] = []  # each call takes one, for its input buffers are its own

    @classmethod
    def from_recipe(
        cls, recipe: str | Path, *, workers: int = 0, class_names: Sequence[str] | None = None, **limits: Any
    ) -> MultiCrop:
        """What a recipe.json says (``models.recipe``; ``multicrop-bench recommend`` writes one). Predictions are those
        of the run that measured it, bit for bit. ``limits``: ``max_megapixels`` and its like.

        Raises models.recipe.RecipeError, naming it, where the weights, a package's version or a setting is not what
        was measured; else as the class itself.
        """
        read = read_recipe(recipe)
        read.require_unedited()
        read.require_same_packages()
        made = cls(**read.multicrop_arguments(), workers=workers, class_names=class_names, **limits)
        read.require_same_network(made.classifier)
        return made

    def __call__(self, images: Any, *, done: Collection[str] = ()) -> Iterator[ImageResult]:
        """Classify images, in order.

        ``images``: a folder, a glob, a tar or its pattern; one path, bytes of an encoded image, PIL image or uint8
        array [H, W, 3]; or an iterable of such items, read a few hundred ahead. In a folder an image's name is its path
        below the folder; else the path as given, or ``image N``. An unreadable image comes with its ``error`` and does
        not stop the others; one for which the network gave NaN too. ``done``: names of images to leave out, to continue
        what was interrupted. A warning is logged where ten images or more all get one class.

        Raises pipelines.data.dataset.DatasetError for a folder, glob or tar that is not there or holds no image.
        """
        if isinstance(images, str | Path):
            path = Path(images).expanduser()
            if path.is_dir() or (is_pattern(images) and not _is_glob_of_files(str(images))):
                return self._noting_one_class(self._scanned(path, frozenset(done)))
            if not path.is_file():
                return self._noting_one_class(self._listed(_matching(path), frozenset(done)))
        one = isinstance(images, str | Path | bytes | bytearray | memoryview | np.ndarray) or hasattr(images, "convert")
        return self._noting_one_class(self._listed([images] if one else images, frozenset(done)))

    def _noting_one_class(self, results: Iterator[ImageResult]) -> Iterator[ImageResult]:
        """Pass them on; at the end a warning, where all answers are one class."""
        images, classes = 0, set[int]()
        for result in results:
            if result.probabilities is not None and len(classes) < 2:
                classes.add(int(result.probabilities.argmax()))
                images += 1
            yield result
        if len(classes) == 1 and images >= FEWEST_OF_ONE_CLASS and self.classifier.num_classes > 1:
            (index,) = classes
            name = f" ({self.classes.name(index)})" if self.classes.name(index) else ""
            log.warning(
                "the network answers class %d%s for all %d images: unless they all show it, check weights, mean and "
                "std (of equal scores, the class with the lowest number is the answer)",
                index, name, images,
            )  # fmt: skip

    def dataset(self, root: str | Path) -> Dataset:
        """The images of a folder or of tars, without labels."""
        found = scan(Path(root), workers=usable_cores(), limits=self.limits, progress=False)
        return Dataset(found.root, found.table.assign(label=-1), found.unreadable, "labels are not needed", False)

    def _scanned(self, root: Path, done: frozenset[str]) -> Iterator[ImageResult]:
        """A folder or tars: readable and unreadable images in the order of their names."""
        data = self.dataset(root)
        rows = {name: row for row, name in enumerate(data.table["name"])}
        errors = dict(zip(data.unreadable["name"], data.unreadable["reason"], strict=True))
        names = sorted((rows.keys() | errors.keys()) - done)
        classified = self._classified(data, np.array([rows[name] for name in names if name in rows], dtype=np.int64))
        for name in names:
            yield next(classified) if name in rows else ImageResult(name, None, errors[name], self.classes)

    def _listed(self, images: Iterable[Any], done: frozenset[str]) -> Iterator[ImageResult]:
        numbered = ((number, image) for number, image in enumerate(images) if name_of(image, number) not in done)
        while block := list(islice(numbered, BLOCK_IMAGES)):
            source = ImageList.of([image for _, image in block], [number for number, _ in block], self.limits)
            classified = self._classified(source, source.readable)
            for row, name in enumerate(source.listed):
                if row in source.errors:
                    yield ImageResult(name, None, source.errors[row], self.classes)
                else:
                    yield next(classified)

    def _classified(self, source: Source, rows: np.ndarray) -> Iterator[ImageResult]:
        """One result for each row, in order."""
        if not len(rows):
            return
        self._choose_variant(source, rows)
        with closing(self.batches(source, rows)) as batches, closing(self.answered(batches, source)) as answered:
            for one in answered:
                results: dict[int, tuple[np.ndarray | None, str | None]]
                results = {failure.row: (None, failure.reason) for failure in one.failed}
                if one.log_p is not None:
                    probabilities = one.log_p.exp().cpu().numpy()
                    results |= {
                        row: (None, NAN) if np.isnan(p).any() else (p, None)
                        for row, p in zip(one.rows.tolist(), probabilities, strict=True)
                    }
                names = source.names(np.array(sorted(results), dtype=np.int64))
                for name, row in zip(names, sorted(results), strict=True):
                    yield ImageResult(name, *results[row], self.classes)

    def batches(self, source: Source, rows: np.ndarray) -> Generator[CropBatch, None, None]:
        """The crops of these rows of a data set."""
        loader = backend(self.backend)(source, self.planner, self._load_config(self.views))
        try:
            yield from loader.batches(rows)
        finally:
            loader.close()

    def answered(
        self, batches: Iterable[CropBatch], source: Source, policy: Policy | None = None
    ) -> Generator[Answered, None, None]:
        """The answers to batches of crops. ``policy``: instead of the object's own, one of the same views."""
        network = self._take()
        policy = policy or self.policy
        threshold = self.threshold if policy.suffix else None
        try:
            yield from answers(batches, network, self.planner, policy, self.level, source.sizes, threshold)
        finally:
            with self._lock:
                self._idle.append(network)

    @property
    def placed(self) -> bool:
        """Whether the network is on its device, in the type it computes in: from the first image on."""
        return self._taken > 0

    def _take(self) -> Network:
        with self._lock:
            self._taken += 1
            return self._idle.pop() if self._idle else self._network(self.classifier, self._dense, self._variant)

    def _network(self, classifier: Classifier, dense: Dense | None, variant: Variant) -> Network:
        arguments = network_arguments(variant)
        return Network(classifier, batch_size=self.batch_size, device=self.device, dense=dense, **arguments)

    def _made(self, variant: Variant) -> Network:
        """A network whose weights are its own."""
        classifier = self._load(fold=variant.fold)
        return self._network(classifier, _dense(classifier, self.policy), variant)

    def _choose_variant(self, source: Source, rows: np.ndarray) -> None:
        """``preset``: choose by the first images of which any can be read, and keep that."""
        if self._choosing is None:
            return
        with self._choosing:
            if self.preset is not None:
                return
            crops, images = self._sample(source, rows)
            if images:
                self.use(
                    *choose_variant(self._made, crops, images=images, label=self.classifier.name, eager=self._eager)
                )

    def use(self, choice: Choice, network: Network | None = None) -> None:
        """Run the network as a preset chose, here or in an earlier process, from now on."""
        network = network or self._made(Variant.of(choice.options))
        with self._lock:
            self.classifier, self._dense, self._variant = network.classifier, network.dense, Variant.of(choice.options)
            self._idle, self.amp_dtype = [network], self._variant.amp_dtype
            self.preset = choice

    def _sample(self, source: Source, rows: np.ndarray) -> tuple[torch.Tensor, int]:
        """At most CROPS crops of some of these images, and of how many."""
        some = rows[np.unique(np.linspace(0, len(rows) - 1, min(CROPS, len(rows))).astype(np.int64))]
        planner = _planner(self.classifier, parse_policy(policy_for(len(some))), self.seed, None)
        loader = backend(self.backend)(source, planner, self._load_config(planner.views))
        try:
            found = crops_of(loader.batches(some))
        finally:
            loader.close()
        pipeline_gone(self.device)
        return found

    def _load_config(self, views: Views) -> LoadConfig:
        on_gpu = BACKENDS[self.backend].on_gpu
        images = default_batch_images(views.cost(self.classifier.spec.K), self.classifier.spec.K, gpu=on_gpu)
        workers = self.workers or (0 if BACKENDS[self.backend].uses_processes else usable_cores())
        return LoadConfig(
            batch_images=images,
            workers=workers,
            device_id=torch.device(self.device).index or 0,
            max_resized_megapixels=self.max_resized_megapixels,
        )


def _loaded(
    model: str,
    valid_labels: Sequence[int] | str | Path | None,
    *,
    weights: str | None,
    checkpoint: str | Path | None,
    fold: bool,
    **how: Any,
) -> Classifier:
    """``models.loading.load``, with the outputs among which answers are. Raises DatasetError for outputs that the
    network does not have."""
    usual = "demo" if model.endswith(":demo") and checkpoint is None else "pretrained"
    path = None if checkpoint is None else Path(checkpoint)
    classifier = load(model, weights=weights or usual, checkpoint=path, **how)
    if isinstance(valid_labels, str | Path):
        classifier.restrict(read_valid_labels(Path(valid_labels), classifier.num_classes))
    elif valid_labels is not None:
        classifier.restrict(checked_valid_labels(valid_labels, classifier.num_classes))
    if fold:
        classifier.fold()
    return classifier


def _choosing(preset: str | None, asked: Variant) -> AbstractContextManager[Any] | None:
    """What a call holds while it chooses; None where there is nothing to choose. Raises ValueError for another preset,
    and for a setting beside it."""
    if preset is None:
        return None
    if preset not in PRESETS:
        raise ValueError(f"`preset` {preset!r} is not known: {' and '.join(PRESETS)} are")
    plain = Variant().options()
    if given := [name for name, value in asked.options().items() if value != plain[name]]:
        raise ValueError(f"`preset` {preset} decides `{given[0]}`: leave one of them out")
    return threading.Lock()


def _dense(classifier: Classifier, policy: Policy) -> Dense | None:
    """How frames are evaluated, where the policy has dense views. Raises ValueError for a network that lacks them."""
    if not policy.dense:
        return None
    try:
        return Dense(classifier)
    except DenseAbsent as absent:
        raise ValueError(f"policy {policy}: {absent}") from absent


def _planner(classifier: Classifier, policy: Policy, seed: int, dense: Dense | None) -> Planner:
    sizes = tuple(classifier.spec_at(K) for K in policy.sizes)
    return Planner(classifier.spec, union([policy]), seed, sizes, dense.s if dense else None)


def _threshold(
    classifier: Classifier, policy: Policy, level: str, thresholds: str | Path | float | None
) -> float | None:
    """The margin above which images are stopped, for a policy with a risk. Raises ValueError where there is none, or
    where a suffix cannot be at this level."""
    if not policy.suffix:
        return None
    rule = rule_of(policy)
    if rule.kind == "exact" and level != "softmax":
        raise ValueError(f"policy {policy}: ~exact needs `level` softmax: other levels have no bound")
    if rule.tolerance is None or isinstance(thresholds, float):
        return thresholds if isinstance(thresholds, float) else None
    return find(None if thresholds is None else Path(thresholds), classifier, policy, level)


def _matching(pattern: Path) -> list[str]:
    """The files that a glob names, sorted. Raises DatasetError where there are none."""
    found = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - an absolute pattern
    if not found:
        raise DatasetError(
            f"there is no file or folder {pattern}, and no file that it names as a pattern: check the path"
        )
    return found


def _is_glob_of_files(text: str) -> bool:
    """Whether a pattern names image files and not tars."""
    return any(sign in text for sign in GLOB_SIGNS) and not text.lower().endswith(".tar")
