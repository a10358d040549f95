"""One network on one data set: the loaded network, the labelled images, and the sizes of everything between them."""

from __future__ import annotations

import hashlib
import logging
import math
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import machine, records
from bench.cases import ModelCase, crop_counts, policies, score_policies
from bench.config import RunConfig
from bench.distributed import ALONE, Processes
from bench.measure import auto_batch
from bench.measure.scoring import Scoring
from bench.resume import NetworkPlan
from models import families
from models.classifier import Classifier
from models.costs import crop_cost
from models.dense import Dense, DenseAbsent
from models.fixres.new_head import with_new_head
from models.loading import load
from models.predict import GpuModes, Network, default_batch_size
from models.recipe import read_recipe
from models.stopping import stages_of
from pipelines.backends import BACKENDS, backend
from pipelines.batch import Backend, Failure, LoadConfig, crop_operator_at, default_batch_images, size_hint, split
from pipelines.crops import Planner, Policy, resized_sizes, union, unique
from pipelines.data import real_labels
from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.data.labels import label, unlabelled
from pipelines.data.labels.classes import SYNSET_LISTS
from pipelines.data.labels.valid import label_among, read_valid_labels
from pipelines.data.labels.valid import words as valid_words
from pipelines.dense_frames import dense_frame

log = logging.getLogger(__name__)
# Shapes of dense frames that are compiled, each of so many of the images: one takes as long as the network's crops do.
MOST_COMPILED_FRAMES, LEAST_COMPILED_SHARE = 4, 0.05
COST_IMAGES = 2000  # of which the mean cost of a view is taken
BATCH_SECONDS = 0.25  # a pipeline batch should not keep the network busy for longer, or a timed round takes minutes


class Job:
    """One network's part of a run. Making one loads the weights and matches the labels, so that errors come early.

    ``config`` is a resolved one (bench.setup.resolve). ``plan``: what was settled when the run began, for its
    continuations and its other processes. ``new_classes``: names for a new last layer, which is not trained yet.
    """

    def __init__(
        self,
        case: ModelCase,
        scan: Scan,
        config: RunConfig,
        processes: Processes = ALONE,
        plan: NetworkPlan | None = None,
        new_classes: tuple[str, ...] | None = None,
    ) -> None:
        self.new_classes = new_classes
        self.case, self.scan, self.config, self.processes = case, scan, config, processes
        asked = policies(config.measure)
        self.crops = crop_counts(config.measure, asked)
        self.recipe_thresholds: dict[tuple[str, str], float] = {}  # (policy, level): not calibrated again
        self.classifier = self._load()
        self.dense, self.absent_policies = self._dense(asked)
        self.policies = [policy for policy in asked if policy not in self.absent_policies]
        self.stopped = [policy for policy in self.policies if policy.suffix]
        self.plain = [policy for policy in self.policies if not policy.suffix]
        self.score_policies = tuple(p.name for p in score_policies(config.measure) if p in self.plain)
        self.data = self._label(scan)
        self.real = self._real_labels()
        self.rows = np.arange(len(self.data))
        self.views = union(self.policies)
        self.specs = {K: self.classifier.spec_at(K) for policy in self.policies for K in policy.sizes}
        self.view_cost = self._view_cost()
        self.batch_size = plan.batch_size if plan else self._batch_size()
        self.crops_per_sec = (plan.crops_per_sec if plan else None) or float("nan")
        self.pipeline_images_per_sec: float | None = plan.pipeline_images_per_sec if plan else None
        self.failed: list[Failure] = []
        self.adapted = False
        self.preset: dict[str, Any] | None = None  # what `preset` chose, and why (models.preset.Choice)
        self.home = home_of(self.data)
        self.home_identity = folder_identity(self.home)

    def _load(self) -> Classifier:
        network = self.config.network
        loaded = load(
            self.case.name,
            weights=network.weights or "pretrained",
            checkpoint=network.checkpoint,
            seed=self.config.data.seed,
            img_size=self.case.img_size,
            crop_pct=self.case.crop_pct,
            num_classes=network.num_classes,
            model_kwargs=dict(network.model_kwargs),
            crop_mode=network.crop_mode,
            interpolation=network.interpolation,
            mean=network.mean,
            std=network.std,
        )
        if path := self.config.data.valid_labels:
            loaded.restrict(read_valid_labels(path, loaded.num_classes))
        if self.new_classes:
            loaded = with_new_head(loaded, self.new_classes, self.config.data.seed)
        if network.recipe:
            self._check_recipe(network.recipe, loaded)
        if network.fold:
            loaded.fold()
        return loaded

    def _check_recipe(self, path: Path, loaded: Classifier) -> None:
        """Raises RecipeError for other weights or sizes. Packages may have changed: the run measures with these."""
        recipe = read_recipe(path)
        recipe.require_same_network(loaded)
        if (threshold := recipe.threshold) is not None:
            self.recipe_thresholds = {(recipe.use.policy, recipe.use.level): threshold}
        if changed := recipe.changed_package():
            log.warning("%s was measured with %s %s; this run measures with %s", path, *changed)

    def _dense(self, asked: list[Policy]) -> tuple[Dense | None, dict[Policy, str]]:
        """How frames are evaluated, where a policy needs it; else the policies that the network lacks, with why."""
        wanted = [policy for policy in asked if policy.dense]
        if not wanted:
            return None, {}
        try:
            return Dense(self.classifier), {}
        except DenseAbsent as absent:
            return None, dict.fromkeys(wanted, str(absent))

    @cached_property
    def common_frames(self) -> tuple[frozenset[tuple[int, int]], float]:
        """The commonest heights and widths of dense frames, by the header scan, and the share of images that have
        them. A compiled network compiles these; other frames run as they are."""
        if self.dense is None or not len(self.data):
            return frozenset(), 0.0
        spec = self.classifier.spec
        resized = resized_sizes(self.data.sizes(np.arange(len(self.data))), spec)
        shapes, counts = np.unique(dense_frame(resized, spec.K, self.dense.s)[:, 2:], axis=0, return_counts=True)
        common = np.argsort(-counts, kind="stable")[:MOST_COMPILED_FRAMES]
        common = common[counts[common] >= LEAST_COMPILED_SHARE * counts.sum()]
        frames = frozenset((height, width) for height, width in shapes[common].tolist())
        return frames, float(counts[common].sum() / counts.sum())

    def _view_cost(self) -> int:
        """What the network does for an image, in crops of its own size, rounded up; the mean over some images."""
        rows = self.rows[:COST_IMAGES]
        return max(1, math.ceil(self.planner(*self.policies).forwards(self.data.sizes(rows)).sum(axis=1).mean()))

    def _label(self, scan: Scan) -> Dataset:
        asked, valid = self.config.data, self.classifier.valid_labels
        match = partial(label_among, valid=valid) if valid else label
        try:
            data = match(
                scan,
                num_classes=self.classifier.num_classes,
                labels_file=asked.labels_file,
                class_map=asked.class_map,
                synsets_file=asked.synsets_file,
                label_order=asked.label_order,
                class_names=self.classifier.class_names,
            )
        except DatasetError as error:
            if self.why_no_accuracy is None:
                raise
            data = unlabelled(scan, str(error))
        return data.subset(asked.limit, asked.seed, asked.skip) if asked.limit is not None or asked.skip else data

    def _real_labels(self) -> real_labels.RealLabels | None:
        path = self.config.data.real_labels
        if path is None:
            return None
        if not self.data.has_labels:
            raise DatasetError(
                f"`real_labels` {path} are scored beside the original labels, and the images have "
                f"none ({self.data.label_rule}): give `labels_file`"
            )
        return real_labels.read(path, self.data, self.classifier.num_classes)

    def note_on_classes(self) -> str | None:
        """What to know of images of some of ImageNet's classes, where the answers may be any of them."""
        count, labels = self.classifier.num_classes, self.data.table["label"]
        if count not in SYNSET_LISTS or not self.data.has_labels or self.classifier.valid_labels:
            return None
        if self.config.data.limit is not None or self.config.data.skip or labels.nunique() == count:
            return None
        return (
            f"the images are of {labels.nunique()} classes, and answers may be any of the network's {count}: "
            "`valid_labels` FILE scores among some of them, as is usual for ImageNet-A and -R"
        )

    @property
    def why_no_accuracy(self) -> str | None:
        """Why this network is not scored, or None."""
        if not self.config.measure.accuracy:
            return "not asked for (`accuracy`)"
        if self.config.network.weights == "random" and self.config.network.checkpoint is None:
            return "the weights are random (`weights` random): accuracy would mean nothing"
        if hasattr(self, "data") and not self.data.has_labels:
            return f"the images have no labels ({self.data.label_rule})"
        return None

    def _batch_size(self) -> int:
        K, asked = self.classifier.spec.K, self.config.network.batch_size
        if asked == "auto":
            # Not compiled: a graph for each size that is tried would take minutes. If the compiled one then does not
            # fit, it is halved.
            return auto_batch.largest(partial(self.make_network, compiled=False), max([K, *self.specs]))
        return int(asked) if asked else default_batch_size(K, self.device)

    def is_timed(self, stage: str) -> bool:
        """Whether the throughput pass times this stage."""
        return self.config.measure.stages is None or stage in self.config.measure.stages

    @property
    def device(self) -> str:
        assert self.config.network.device, "the configuration is not resolved"
        return self.config.network.device

    @cached_property
    def network(self) -> Network:
        """The network on its device, with the run's batch size and settings."""
        return self.make_network(self.batch_size, compiled=self.config.network.torchcompile)

    def make_network(self, batch_size: int, *, compiled: bool = False) -> Network:
        asked = self.config.network
        if self.dense is not None:
            self.dense.compiled_frames = self.common_frames[0] if compiled else frozenset()
        return Network(
            self.classifier,
            batch_size=batch_size,
            device=self.device,
            amp_dtype=asked.amp_dtype,
            channels_last=bool(asked.channels_last),
            compiled=compiled,
            modes=GpuModes(asked.tf32, asked.cudnn_benchmark),
            dense=self.dense,
        )

    def planner(self, *wanted: Policy) -> Planner:
        sized = tuple(self.specs[K] for K in sorted({K for policy in wanted for K in policy.sizes}))
        stride = self.dense.s if self.dense else None
        return Planner(self.classifier.spec, union(wanted), self.config.data.seed, sized, stride)

    def load_config(self, n_views: int) -> LoadConfig:
        """Images per batch by memory, and so that a slow network is not given minutes of work at once."""
        loading = self.config.loading
        workers = loading.workers or 1
        gpu = BACKENDS[loading.data_backend].on_gpu
        images = default_batch_images(n_views, self.classifier.spec.K, gpu=gpu, most=loading.max_batch_images)
        if np.isfinite(self.crops_per_sec):
            images = int(np.clip(BATCH_SECONDS * self.crops_per_sec / n_views, min(workers, images), images))
        # Timing reads the rows again and again; a batch no longer than they are holds none of them twice.
        readable = max(len(self.rows) - len(self.failed), 1)
        defaults = LoadConfig()
        return LoadConfig(
            batch_images=min(loading.batch_images or images, readable),
            workers=workers,
            prefetch=loading.prefetch or defaults.prefetch,
            device_id=torch.device(self.device).index or 0,
            hw_load=defaults.hw_load if loading.hw_load is None else loading.hw_load,
            mmap=loading.mmap,
            max_resized_megapixels=loading.max_resized_megapixels,
            crop_operator=loading.crop_operator,
            hybrid_huffman_threshold=loading.hybrid_huffman_threshold if gpu else None,
            size_hint=self.size_hint if gpu else None,
        )

    @cached_property
    def size_hint(self) -> tuple[int, int] | None:
        """Of the images as the header scan found them."""
        return size_hint(self.data.sizes(self.rows))

    def make_backend(self, planner: Planner, load_config: LoadConfig, name: str | None = None) -> Backend:
        """The run's backend, or the one named."""
        return backend(name or self.config.loading.data_backend)(self.data, planner, load_config)

    def uncovered(self, rows: np.ndarray) -> np.ndarray:
        """int64 [b, 2]: what the centre crop leaves out of each image, for policies that depend on it."""
        return self.planner(*self.policies).uncovered(self.data.sizes(rows))

    def scoring(self) -> Scoring:
        """The labels and policies of the accuracy pass, with those that stopped policies consist of."""
        labels = self.data.table["label"].to_numpy(np.int64)
        prefixes = [stage.prefix for policy in self.stopped for stage in stages_of(policy)]
        return Scoring(
            labels,
            self.views,
            unique([*self.plain, *prefixes]),
            self.uncovered,
            self.forwards,
            frozenset(policy.name for policy in prefixes),
            self.real.sets if self.real else None,
            self.score_policies,
        )

    def forwards(self, rows: np.ndarray) -> np.ndarray:
        """float64 [b, v]: what each view costs the network, in forward passes."""
        return self.planner(*self.policies).forwards(self.data.sizes(rows))

    def mean_views(self, policy: Policy, rows: np.ndarray) -> float:
        """Views per image, averaged over ``rows``."""
        if not policy.adaptive:
            return float(policy.n_views)
        return float(sum(count for _, count in policy.view_counts(self.uncovered(rows))).mean())  # type: ignore[union-attr]

    @property
    def predictions_name(self) -> str:
        return f"predictions-{self.case.file_name}.npz"

    def _compiled_frames(self) -> dict[str, Any]:
        """Which dense frames are compiled, [height, width], and the share of images that have them; for run.json."""
        if self.dense is None or not self.config.network.torchcompile:
            return {}
        frames, share = self.common_frames
        return {"compiled_frames": [list(pair) for pair in sorted(frames)], "compiled_frames_share": round(share, 4)}

    def _crop_cost(self) -> dict[str, int]:
        """Multiply-adds and activations of a crop; only for ``results_file`` and ensembles, for counting takes a second
        or two."""
        network = self.classifier
        is_wanted = self.config.output.results_file or self.config.measure.save_scores
        found = crop_cost(network.net, network.spec.K) if is_wanted else None
        return dict(zip(("multiply_adds", "activations"), found, strict=True)) if found else {}

    def setting(self) -> records.Setting:
        """What the results depend on."""
        network, spec, loading = self.classifier, self.classifier.spec, self.config.loading
        asked, member = self.config.network, self.classifier.member
        return records.Setting(
            model=network.name,
            family=self.case.family,
            variant=self.case.variant,
            weights=network.weights,
            weight_hash=network.weight_hash,
            param_count=network.param_count,
            published_top1=member.top1 if member else None,
            published_in=member.table if member else None,
            S=spec.S,
            K=spec.K,
            interpolation=spec.interpolation,
            crop_mode=spec.crop_mode,
            data=self.data.root.name,
            data_hash=data_hash(self.data),
            is_demo=self.data.is_demo,
            backend=loading.data_backend,
            batch_size=self.batch_size,
            batch_images=self.load_config(self.view_cost).batch_images,
            workers=loading.workers or 1,
            device=self.device,
            machine_id=machine.machine_id(),
            amp_dtype=asked.amp_dtype,
            channels_last=bool(asked.channels_last),
            torchcompile=asked.torchcompile,
            hybrid_huffman_threshold=self.load_config(1).hybrid_huffman_threshold,
            tf32=asked.tf32 and self.device != "cpu",
            cudnn_benchmark=asked.cudnn_benchmark and self.device != "cpu",
            valid_labels=valid_words(network.valid_labels, network.num_classes),
            seed=self.config.data.seed,
            adapt=asked.adapt if self.adapted else None,
            folded=network.folded,
            processes=self.processes.world if self.config.measure.throughput else 1,
            prefetch=loading.prefetch or LoadConfig().prefetch,
            mmap=loading.mmap,
            hw_load=loading.hw_load if BACKENDS[loading.data_backend].on_gpu else None,
            crop_operator=crop_operator_at(spec.K, loading.crop_operator, on_gpu=BACKENDS[loading.data_backend].on_gpu),
        )

    def describe(self) -> dict[str, Any]:
        """For run.json."""
        data, network = self.data, self.classifier
        return {
            "model": network.name,
            "feature_dim": network.feature_dim,
            "feature_absent_reason": network.feature_absent_reason,
            "head_is_linear": network.head_is_linear,
            "num_classes": network.num_classes,
            "notes": network.notes,
            "images": len(data),
            "label_rule": data.label_rule,
            "valid_labels": network.valid_labels,
            "note_on_classes": self.note_on_classes(),
            "real_label_rule": self.real and self.real.rule,
            "real_label_hash": self.real and self.real.file_hash,
            "S": network.spec.S,
            "K": network.spec.K,
            "mean": list(network.spec.mean),
            "std": list(network.spec.std),
            **sizes(network),
            **self._crop_cost(),
            **self._compiled_frames(),
            "predictions": self.predictions_name,
            "asked": {"model": self.case.name, "img_size": self.case.img_size, "crop_pct": self.case.crop_pct},
        }


def sizes(classifier: Classifier) -> dict[str, int | None]:
    """``own_K``, the size at which these weights are meant to be used, and ``train_K``, at which they were trained;
    None where nothing says so. timm's configurations hold both."""
    if classifier.weights == "demo":
        K = families.demo(classifier.name.partition(":")[0]).spec.K
        return {"own_K": K, "train_K": K}
    own, trained = (classifier.member.spec.K if classifier.member else None), None
    if classifier.weights in ("pretrained", "pip") and (config := getattr(classifier.net, "pretrained_cfg", None)):
        own = own or (config.get("test_input_size") or config["input_size"])[-1]
        trained = config["input_size"][-1]
    return {"own_K": own, "train_K": trained}


def home_of(data: Dataset) -> Path:
    """The data set's folder; of tars, the first one's."""
    first = Path(data.spans(np.arange(1))[0].path)
    return data.root if data.root.is_dir() else first.parent


def folder_identity(folder: Path) -> tuple[int, int] | None:
    """Which folder of which file system this is; None where it cannot be reached."""
    try:
        info = folder.stat()
    except OSError:
        return None
    return info.st_dev, info.st_ino


def data_hash(data: Dataset) -> str:
    """16 hexadecimal digits over names and labels: equal means the same images with the same labels."""
    digest = hashlib.sha256()
    numbers = data.table["label"].to_numpy()
    for rows in split(np.arange(len(data)), 1 << 16):  # piece by piece: a million updates take seconds
        lines = (f"{name}\0{number}\n" for name, number in zip(data.names(rows), numbers[rows].tolist(), strict=True))
        digest.update("".join(lines).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
