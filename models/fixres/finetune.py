"""FixRes: re-train the last layers of a classifier at the resolution at which it will be asked.

    classifier = load("resnet:50", img_size=320)                   # S grows with K: their ratio stays (FixRes 4.1)
    recipe = Recipe(tune="classifier+bn", augmentation="test")
    crops = TrainingCrops(dataset, len(dataset), recipe, classifier.spec, make_backend)
    tuning = FineTuning(classifier, crops, labels, recipe)
    for epoch in tuning.run():                                     # one Epoch each: learning rate, loss, top-1
        tuning.save_state(path, log)                               # a killed run goes on from here, bit for bit
    save_weights(classifier.net, "model.safetensors")              # models.loading.load(..., checkpoint=...)

Touvron, Vedaldi, Douze, Jegou: Fixing the train-test resolution discrepancy (NeurIPS 2019), Sections 4.2 and 5, and
FixEfficientNet (2020), Section 3.1. Written from these texts. What they print is followed; where they are silent, the
value and its source are named at ``Recipe``.

**What is trained.** ``classifier`` is all that stands behind the global pooling (one linear layer in most networks, two
in MobileNetV3). ``classifier+bn`` adds "the batch normalization that precedes the global pooling": its gain and bias by
gradient, its running statistics by seeing batches ("In this way the batch statistics are adapted to the increased
resolution"), so that it, and it alone, is in training mode. All else is frozen and in evaluation mode, dropout too.
``LAYERS`` says which modules these are in the four families.

**What is computed once.** The network is split where training begins. Whatever lies before is run without gradients, in
batches of one fixed shape; under test DA, where an image is the same crop in every epoch, it is run once an image and
kept. Chunks of one shape make both ways equal bit for bit.

Left out: fine-tuning "the last three cells" (PNASNet, Table 1) and "layer 4" (Table 10).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from models.classifier import Classifier
from pipelines.batch import Backend, Failure, Source
from pipelines.crops import GroupPlan, Plan, Planner, Sizes, centre_offset, parse_policy, uniforms, union
from pipelines.data.spans import Span
from pipelines.files import whole_path
from pipelines.inputspec import InputSpec

TUNES = ("classifier", "classifier+bn")

# ---------------------------------------------------------------------------------------------------------------------
# The recipe

PAPER_LR, PAPER_BATCH = 0.008, 512  # FixRes Section 5, ResNet-50. ResNeXt-101 32x48d: 0.0008 with 256


def scaled_lr(batch_size: int) -> float:
    """The paper's fine-tuning rate for another batch size, by its own rule of training, ``0.1 x B/256``."""
    return PAPER_LR * batch_size / PAPER_BATCH


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fine-tune. Defaults are FixRes Section 5 for ResNet-50, and these where it prints nothing:

    ``momentum``, ``weight_decay``: of the training recipe that it cites ([15], He et al. 2019, "Bag of tricks").
    ``jitter``: strength of brightness, contrast and saturation; timm's default, and fb.resnet.torch's.
    ``label_smoothing``: none in FixRes; FixEfficientNet 3.1 adds it and prints no value (0.1 is the usual one).

    Raises ValueError, naming the flag, for what cannot be trained.
    """

    tune: str = "classifier+bn"  # one of TUNES
    augmentation: str = "test"  # one of AUGMENTATIONS
    epochs: int = 60
    batch_size: int = PAPER_BATCH
    lr: float = PAPER_LR
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    jitter: float = 0.4
    min_area: float = 0.08  # of RandomResizedCrop's region, a share of the image: FixRes' sigma 0.28, squared
    seed: int = 0  # of the order of images and of random windows

    def __post_init__(self) -> None:
        if self.tune not in TUNES:
            raise ValueError(f"`tune` {self.tune!r} is not one of {', '.join(TUNES)}")
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"`augmentation` {self.augmentation!r} is not one of {', '.join(AUGMENTATIONS)}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"`epochs` {self.epochs} and `batch_size` {self.batch_size} must be 1 or more")
        if self.tune == "classifier+bn" and self.batch_size < 2:
            raise ValueError("`batch_size` 1: a BatchNorm in training mode needs 2 or more; `tune` classifier takes 1")
        if not (0 < self.lr < math.inf and 0 <= self.momentum < 1 and 0 <= self.weight_decay < math.inf):
            raise ValueError(
                f"`lr` {self.lr} must be above 0, `momentum` {self.momentum} from 0 to below 1, "
                f"`weight_decay` {self.weight_decay} 0 or more"
            )
        if not (0 <= self.label_smoothing < 1 and 0 <= self.jitter < 1):
            raise ValueError(
                f"`label_smoothing` {self.label_smoothing} and `jitter` {self.jitter} must be from 0 to below 1"
            )
        if not 0 < self.min_area <= 1:
            raise ValueError(f"`min_area` {self.min_area} is a share of the image: above 0 and at most 1")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0: a tenth from the half on (the paper: every 30 of 60 epochs)."""
        return self.lr * 0.1 ** (2 * epoch // self.epochs)


# ---------------------------------------------------------------------------------------------------------------------
# Which windows are cut for training. Plans like those of pipelines.crops; every backend obeys them unchanged.

ONE_VIEW = union([parse_policy("1MRC")])  # a view that may be mirrored: DALI prepares mirrored frames only when told
CENTRE_VIEW = union([parse_policy("CC")])

ASPECT, ATTEMPTS = (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop, "the default PyTorch data augmentation"


class ShiftPlanner(Planner):
    """Test DA2: "random horizontal shift of the center crop, horizontal flip". Every offset is equally likely; how far
    the paper shifts is not printed."""

    def windows(self, names: Sequence[str], resized: Sizes) -> np.ndarray:
        room = np.asarray(resized, dtype=np.int64) - self.spec.K
        u = np.array([uniforms(self.seed, name, "DA2", 1)[0] for name in names]).reshape(len(names), 2)
        out = np.empty((len(room), 1, 3), dtype=np.int64)
        out[:, 0, 0] = centre_offset(room[:, 0])
        out[:, 0, 1] = np.floor(u[:, 0] * (room[:, 1] + 1))
        out[:, 0, 2] = u[:, 1] < 0.5
        return out


@dataclass(frozen=True, slots=True)
class ResizedCropPlanner(Planner):
    """Train DA: RandomResizedCrop and flip, as a plan. The whole image is resized so that the drawn region becomes
    K x K, then the window is cut: pixels beyond the region's border take part in its resampling, and both are rounded
    to whole pixels. It costs the pixels that are resized and thrown away."""

    min_area: float = 0.08

    def plan(self, rows: np.ndarray, names: Sequence[str], sizes: Sizes) -> Plan:
        sizes = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
        boxes = [
            resized_crop_box(self.seed, name, height, width, self.min_area)
            for name, (height, width) in zip(names, sizes.tolist(), strict=True)
        ]
        drawn = np.array(boxes, dtype=np.float64).reshape(-1, 5)  # top, left, height, width, mirror
        K, scale = self.spec.K, self.spec.K / drawn[:, 2:4]
        resized = np.maximum(np.rint(sizes * scale), K).astype(np.int64)
        corner = np.minimum(np.rint(drawn[:, :2] * scale).astype(np.int64), resized - K)
        windows = np.column_stack([corner, drawn[:, 4].astype(np.int64)])
        group = GroupPlan(K, resized, np.arange(len(rows)), np.zeros(len(rows), np.int32), windows)
        return Plan(np.asarray(rows, dtype=np.int64), sizes, (group,))


class FixedSizePlanner(Planner):
    """FixRes Section D, in place of RandomResizedCrop: "a Resize followed by a random crop with a fixed size", flip."""

    def windows(self, names: Sequence[str], resized: Sizes) -> np.ndarray:
        room = np.asarray(resized, dtype=np.int64) - self.spec.K
        u = np.array([uniforms(self.seed, name, "fixed", 2) for name in names]).reshape(len(names), 2, 2)
        out = np.empty((len(room), 1, 3), dtype=np.int64)
        out[:, 0, :2] = np.floor(u[:, 0] * (room + 1))
        out[:, 0, 2] = u[:, 1, 0] < 0.5
        return out


def resized_crop_box(
    seed: int, name: str, height: int, width: int, min_area: float = 0.08
) -> tuple[int, int, int, int, bool]:
    """(top, left, height, width, mirrored) of a RandomResizedCrop, by torchvision's algorithm from counter-based
    numbers: a function of (seed, name), the image's size and the smallest region, a share of its area."""
    u = uniforms(seed, name, "RandomResizedCrop", ATTEMPTS + 2)
    mirror = bool(u[-1, 0] < 0.5)
    log_aspect = np.log(ASPECT)
    for area_u, aspect_u in u[:ATTEMPTS].tolist():
        area = height * width * (min_area + area_u * (1 - min_area))
        aspect = math.exp(log_aspect[0] + aspect_u * (log_aspect[1] - log_aspect[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = (int(place * (room + 1)) for place, room in zip(u[-2], (height - h, width - w), strict=True))
            return top, left, h, w, mirror
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w, mirror


@dataclass(frozen=True, slots=True)
class Augmentation:
    """``new_each_epoch``: an image is another crop in every epoch, so that nothing can be kept."""

    what: str
    planner: Callable[[InputSpec, Recipe], Planner]
    new_each_epoch: bool
    jittered: bool


# FixRes Section 5, "Fine-tuning data-augmentation"
AUGMENTATIONS: dict[str, Augmentation] = {
    "test": Augmentation(
        "test DA: resize, centre crop", lambda spec, recipe: Planner(spec, CENTRE_VIEW, recipe.seed), False, False
    ),
    "test2": Augmentation(
        "test DA2: resize, centre crop shifted sideways at random, flip, colour jitter",
        lambda spec, recipe: ShiftPlanner(spec, ONE_VIEW, recipe.seed),
        True,
        True,
    ),
    "train": Augmentation(
        "train DA: RandomResizedCrop, flip, colour jitter",
        lambda spec, recipe: ResizedCropPlanner(spec, ONE_VIEW, recipe.seed, min_area=recipe.min_area),
        True,
        True,
    ),
    "fixed": Augmentation(
        "resize, random crop of a fixed size, flip (Section D; no fine-tuning of the paper)",
        lambda spec, recipe: FixedSizePlanner(spec, ONE_VIEW, recipe.seed),
        True,
        False,
    ),
}

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 luma, torchvision's and PIL's


def colour_jitter(crops: Tensor, factors: Tensor) -> Tensor:
    """Brightness, contrast, saturation, in this order: uint8 [n, K, K, 3], factors float [n, 3] -> uint8 [n, K, K, 3].

    torchvision's ColorJitter (a factor of 1 changes nothing), but for its random order and its rounding in between.
    """
    brightness, contrast, saturation = factors.to(crops.device, torch.float32)[:, :, None, None, None].unbind(1)
    weights = torch.tensor(GREY, device=crops.device)
    x = (crops.float() * brightness).clamp(0, 255)
    mean = (x @ weights).mean((1, 2))[:, None, None, None]
    x = (mean + contrast * (x - mean)).clamp(0, 255)
    grey = (x @ weights)[..., None]
    return (grey + saturation * (x - grey)).clamp(0, 255).round().byte()


class EpochSource:
    """A data set whose row ``e * images + i`` is image i in epoch e: the name tells the epoch, and random windows are a
    function of the name (DESIGN rule 2). So one backend serves all epochs, and draws nothing itself."""

    def __init__(self, source: Source, images: int) -> None:
        self.source, self.images = source, images

    def names(self, rows: np.ndarray) -> list[str]:
        """``cat/1.jpg in epoch 3``."""
        own = self.source.names(rows % self.images)
        return [f"{name} in epoch {e}" for name, e in zip(own, (rows // self.images).tolist(), strict=True)]

    def spans(self, rows: np.ndarray) -> list[Span]:
        return self.source.spans(rows % self.images)

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        return self.source.sizes(rows % self.images)


MakeBackend = Callable[[Source, Planner], Backend]


class TrainingCrops:
    """One crop an image and epoch, under the recipe's augmentation, through any backend. ``close`` it.

    ``failed`` collects the images that could not be read, each once.
    """

    def __init__(self, source: Source, images: int, recipe: Recipe, spec: InputSpec, make_backend: MakeBackend) -> None:
        self.images, self.recipe = images, recipe
        self.augmentation = AUGMENTATIONS[recipe.augmentation]
        self.source = EpochSource(source, images)
        self.planner = self.augmentation.planner(spec, recipe)
        self.backend = make_backend(self.source, self.planner)
        self.failed: dict[int, Failure] = {}

    def epoch(self, epoch: int, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        """(rows int64 [n], crops uint8 [n, K, K, 3] on the backend's device), batch by batch, in the order of ``rows``;
        images that cannot be read are left out and listed. ``epoch`` matters where the augmentation draws."""
        shown = epoch if self.augmentation.new_each_epoch else 0
        for batch in self.backend.batches(shown * self.images + np.asarray(rows, dtype=np.int64)):
            for failure in batch.failed:
                row = failure.row % self.images
                self.failed[row] = Failure(row, failure.reason, failure.stage)
            for group in batch.groups:
                real = np.flatnonzero(group.image >= 0)
                if len(real):
                    found = group.image[real]
                    yield found % self.images, self._jittered(found, group.crops[torch.from_numpy(real)])

    def _jittered(self, rows: np.ndarray, crops: Tensor) -> Tensor:
        if not (self.augmentation.jittered and self.recipe.jitter):
            return crops
        u = [uniforms(self.recipe.seed, name, "jitter", 2).ravel()[:3] for name in self.source.names(rows)]
        return colour_jitter(crops, 1 + self.recipe.jitter * (2 * torch.from_numpy(np.array(u)) - 1))

    def close(self) -> None:
        self.backend.close()


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """All rows in an order that is a function of (seed, epoch), int64 [images]."""
    return np.argsort(uniforms(seed, f"epoch {epoch}", "order", images)[:, 0], kind="stable")


# ---------------------------------------------------------------------------------------------------------------------
# Which layers are trained


@dataclass(frozen=True, slots=True)
class Layers:
    """What FixRes trains in a family. ``batch_norm`` is a regular expression for the module's name, or None."""

    batch_norm: str | None
    classifier: str
    why: str


# Stated for people and checked by tests; the code finds the modules by rule, so that any network can be tuned.
LAYERS: dict[str, Layers] = {
    "resnet": Layers(
        r"layer4\.\d+\.bn[23]",
        "fc, one linear layer",
        "the last block's last BatchNorm, before the sum with the shortcut, ReLU and pooling: what FixRes tunes in "
        "ResNet-50. The shortcut's own BatchNorm, where the last block has one, stays frozen",
    ),
    "mobilenet": Layers(
        r"features\.(12|16|18)\.1|blocks\.\d+\.\d+\.bn1",
        "V2: one linear layer. V3: both layers behind the pooling (to 1280 or 1024, hard-swish, to the classes): "
        "it is the first of them that meets the changed activations",
        "of the last 1x1 convolution, before the activation and pooling",
    ),
    "efficientnet": Layers(
        r"bn2|features\.8\.1",
        "classifier, one linear layer",
        "bn2, of the last 1x1 convolution, before SiLU and pooling",
    ),
    "nfnet": Layers(
        None,
        "head.fc, one linear layer",
        "there is no BatchNorm: weights are standardised and scaled by gains, and no statistics of the data are kept "
        "that a resolution could change. FixRes says nothing of such networks, and its reason for tuning the BatchNorm "
        "is its batch statistics; so the classifier alone is trained, and the gain of the last convolution is not",
    ),
}

SHORTCUTS = ("downsample", "shortcut")  # timm's and torchvision's names of the branch beside a residual block


def last_batch_norm(classifier: Classifier, x: Tensor) -> str | None:
    """Name of the BatchNorm that runs last before the pooling, shortcut branches passed over; None without one.

    Of several parallel branches (Inception, RepVGG) it is the one that runs last. Raises ValueError where the network
    has no pooled features.
    """
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in classifier.net.named_modules()
        if isinstance(module, _BatchNorm) and not any(word in name.split(".") for word in SHORTCUTS)
    ]
    try:
        _features(classifier, x)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


def classifier_parameters(classifier: Classifier, x: Tensor) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that stands behind the pooling: those on which the head's output depends."""
    features = _features(classifier, x)
    parameters = dict(classifier.net.named_parameters())
    before = [parameter.requires_grad for parameter in parameters.values()]
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            output = classifier.head(features).sum()
        found = torch.autograd.grad(output, list(parameters.values()), allow_unused=True)
    finally:
        for parameter, flag in zip(parameters.values(), before, strict=True):
            parameter.requires_grad_(flag)
    return {name: p for (name, p), grad in zip(parameters.items(), found, strict=True) if grad is not None}


def _features(classifier: Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        features = classifier.features(x)
    if features is None:
        raise ValueError(
            f"{classifier.name} cannot be fine-tuned: {classifier.feature_absent_reason}; FixRes adapts what pooled "
            "features go into. Choose a network with a feature level"
        )
    return features


def default_tune(classifier: Classifier) -> str:
    """``classifier+bn`` where there is a BatchNorm before the pooling, else ``classifier``."""
    return "classifier+bn" if last_batch_norm(classifier, _probe(classifier)) else "classifier"


def _probe(classifier: Classifier) -> Tensor:
    parameter = next(classifier.net.parameters())
    x = torch.randn(2, 3, classifier.spec.K, classifier.spec.K, generator=torch.Generator().manual_seed(0))
    return x.to(parameter.device)


# ---------------------------------------------------------------------------------------------------------------------
# Where the network is split


@dataclass(frozen=True)
class Split:
    """``tuned(*frozen(x))`` is the network: x [n, 3, K, K] -> activations, [n, ...] each -> logits [n, classes]."""

    frozen: Callable[[Tensor], tuple[Tensor, ...]]
    tuned: Callable[..., Tensor]
    where: str  # for the record


class NotSplit(Exception):
    """A network that cannot be split at a module; the message says why."""


class _OnlyAround(fx.Tracer):
    """Looks only into modules that contain the named one: all others stay whole, whatever their code does."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.name.startswith(f"{module_qualified_name}.")


def split_at_pooling(classifier: Classifier) -> Split:
    """Before: the trunk, pooled. After: the head."""

    def frozen(x: Tensor) -> tuple[Tensor, ...]:
        return (_features(classifier, x),)

    return Split(frozen, classifier.head, "behind the pooling")


def split_at_module(net: nn.Module, name: str, x: Tensor) -> Split:
    """After: the named module and whatever depends on its output. Before: the rest; a residual block's shortcut is one
    of the activations. Both parts hold the network's own modules.

    Raises NotSplit when the network cannot be traced or the parts do not give the same bits as the whole on ``x``.
    """
    try:
        graph = _OnlyAround(name).trace(net)
    except Exception as error:  # whatever the network's code does with a stand-in for a tensor
        raise NotSplit(f"its code cannot be traced ({type(error).__name__}: {error})") from error
    called = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if len(called) != 1:
        raise NotSplit(f"{name} runs {len(called)} times")
    after = set(called)
    for node in graph.nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    border = dict.fromkeys(s for node in graph.nodes if node in after for s in node.all_input_nodes if s not in after)
    frozen, tuned = _part(net, graph, after, border, False), _part(net, graph, after, border, True)
    with torch.no_grad():
        activations = frozen(x)
        if not all(isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] for value in activations):
            raise NotSplit(f"what passes from the layers before {name} to those behind is not one tensor an image")
        if not torch.equal(tuned(*activations), net(x)):
            raise NotSplit("the two parts differ from the whole")
    return Split(frozen, tuned, f"before {name}")


def _part(
    net: nn.Module, graph: fx.Graph, after: set[fx.Node], border: dict[fx.Node, None], behind: bool
) -> fx.GraphModule:
    """The graph's nodes behind the split, with the border as inputs; or those before it, with the border as outputs."""
    part = fx.Graph()
    copies = {node: part.placeholder(f"activation_{i}") for i, node in enumerate(border)} if behind else {}
    for node in graph.nodes:
        if (node in after) == behind:
            copies[node] = part.node_copy(node, copies.__getitem__)
    if not behind:
        part.output(tuple(copies[node] for node in border))
    return fx.GraphModule(net, part)


def split_nowhere(net: nn.Module, reason: str) -> Split:
    """All of the network is run in every step; gradients flow only where parameters ask for them."""
    return Split(lambda x: (x,), net, f"nowhere, the whole network runs in every step: {reason}")


# ---------------------------------------------------------------------------------------------------------------------
# Training


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch says. ``loss``, ``top1`` (percent) are means over its steps, before each step's update."""

    epoch: int  # from 0
    lr: float
    steps: int
    images: int  # steps x batch size: the incomplete last batch of each epoch's order is left out
    loss: float
    top1: float


@dataclass(slots=True)
class _Kept:
    """Activations of all readable images."""

    tensors: tuple[Tensor, ...]  # [images, ...] each
    readable: np.ndarray  # bool [images]


Lap = Callable[[str], None]
STAGES = {
    "load": "waiting for crops, or fetching the activations that were kept",
    "trunk": "the frozen part of a batch",
    "forward": "the tuned part and the loss",
    "backward": "gradients and the update",
    "keep-load": "waiting for crops, once an image, where activations are kept",
    "keep-trunk": "the frozen part of a trunk_batch_size of crops, padded",
}


def no_lap(stage: str) -> None:
    """Nobody is timing."""


class FineTuning:
    """Trains ``classifier.net`` in place. Run it to the end, or an epoch at a time with ``save_state`` in between.

    ``labels`` int64 [images]. ``trunk_batch_size``: crops per run of the frozen part, whose results do not depend on it
    as long as it is the same. ``keep_bytes``: the most memory that activations may take; above it they are computed
    anew in every epoch, and ``notes`` says so. ``lap(stage)`` is called after each stage, for whoever holds a clock:
    one of STAGES, or "" where a stretch begins.

    Raises ValueError where the network has no such layers, there are fewer images than a batch, or labels are missing.
    """

    def __init__(
        self,
        classifier: Classifier,
        crops: TrainingCrops,
        labels: np.ndarray,
        recipe: Recipe,
        *,
        trunk_batch_size: int = 64,
        device: str = "cpu",
        keep_bytes: int = 4 << 30,
        lap: Lap = no_lap,
    ) -> None:
        _check_data(crops, labels, recipe, classifier.num_classes)
        self.classifier, self.crops, self.recipe = classifier.place(device), crops, recipe
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64))
        self.trunk_batch_size, self.device, self.keep_bytes, self.lap = (
            trunk_batch_size,
            torch.device(device),
            keep_bytes,
            lap,
        )
        self.notes: list[str] = []
        self.epochs_done = 0
        net, x = classifier.net, _probe(classifier)
        self.parameters = classifier_parameters(classifier, x)
        self.classifier_names = list(self.parameters)
        self.batch_norm = self._batch_norm(x) if recipe.tune == "classifier+bn" else None
        self.split = self._split(x)
        norm = [] if self.batch_norm is None else list(net.get_submodule(self.batch_norm).named_parameters())
        self.parameters |= {f"{self.batch_norm}.{name}": parameter for name, parameter in norm}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.SGD(
            self.parameters.values(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        self._kept: _Kept | None = None

    def _batch_norm(self, x: Tensor) -> str:
        name = last_batch_norm(self.classifier, x)
        if name is None:
            raise ValueError(
                f"`tune` classifier+bn: {self.classifier.name} has no BatchNorm before its pooling; "
                "use `tune` classifier"
            )
        module = self.classifier.net.get_submodule(name)
        if not getattr(module, "track_running_stats", True):
            self.notes.append(f"{name} keeps no running statistics: it always uses those of the batch")
        return name

    def _split(self, x: Tensor) -> Split:
        if self.batch_norm is None:
            return split_at_pooling(self.classifier)
        try:
            return split_at_module(self.classifier.net, self.batch_norm, x)
        except NotSplit as error:
            split = split_nowhere(self.classifier.net, str(error))
            self.notes.append(f"the network is split {split.where}")
            return split

    def run(self) -> Iterator[Epoch]:
        """The epochs that are left; whoever stops iterating can go on later. Raises ValueError when too few images
        can be read, RuntimeError when the loss is not a number."""
        if self.epochs_done < self.recipe.epochs:
            self._kept = self._keep()
        for epoch in range(self.epochs_done, self.recipe.epochs):
            done = self._epoch(epoch)
            self.epochs_done = epoch + 1
            yield done

    def _epoch(self, epoch: int) -> Epoch:
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(epoch)
        losses: list[Tensor] = []
        right: list[Tensor] = []
        self._training(True)
        try:
            self.lap("")
            for rows, activations in self._batches(epoch):
                labels = self.labels[torch.from_numpy(rows)].to(self.device)
                loss, logits = self._step(activations, labels)
                losses.append(loss)
                right.append((logits.argmax(1) == labels).sum())
                self.lap("")
        finally:
            self._training(False)
        if not losses:
            raise ValueError(
                f"only {self.crops.images - len(self.crops.failed)} images can be read, fewer than one batch: lower "
                f"`batch_size` {recipe.batch_size}"
            )
        loss_mean = torch.stack(losses).double().mean().item()
        if not math.isfinite(loss_mean):
            raise RuntimeError(f"the loss of epoch {epoch} is {loss_mean}: lower `lr` {recipe.lr:g}")
        images = len(losses) * recipe.batch_size
        top1 = 100 * int(torch.stack(right).sum()) / images
        return Epoch(epoch, recipe.rate(epoch), len(losses), images, loss_mean, top1)

    def _step(self, activations: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            logits = self.split.tuned(*activations)
            loss = functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.lap("forward")
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.lap("backward")
        return loss.detach(), logits.detach()

    def _training(self, on: bool) -> None:
        """Training mode for the tuned BatchNorm, for nothing else."""
        if self.batch_norm is not None:
            self.classifier.net.get_submodule(self.batch_norm).train(on)

    def _batches(self, epoch: int) -> Iterator[tuple[np.ndarray, tuple[Tensor, ...]]]:
        """(rows [batch_size], activations) of each whole batch of an epoch."""
        order = epoch_order(self.recipe.seed, epoch, self.crops.images)
        if self._kept is not None:
            order = order[self._kept.readable[order]]
            for rows in _whole(order, self.recipe.batch_size):
                index = torch.from_numpy(rows)
                activations = tuple(tensor[index].to(self.device) for tensor in self._kept.tensors)
                self.lap("load")
                yield rows, activations
        else:
            for rows, crops in regroup(self.crops.epoch(epoch, order), self.recipe.batch_size):
                self.lap("load")
                activations = self.frozen(crops)
                self.lap("trunk")
                yield rows, activations

    @torch.no_grad()
    def frozen(self, crops: Tensor) -> tuple[Tensor, ...]:
        """Activations at the split of uint8 crops [n, K, K, 3], in padded pieces of ``trunk_batch_size`` crops."""
        pieces = []
        for piece in crops.split(self.trunk_batch_size):
            n = len(piece)
            padded = functional.pad(piece, (0, 0, 0, 0, 0, 0, 0, self.trunk_batch_size - n)).to(self.device)
            pieces.append(tuple(tensor[:n] for tensor in self.split.frozen(self.classifier.prepare(padded))))
        return tuple(torch.cat(tensors) for tensors in zip(*pieces, strict=True))

    def _keep(self) -> _Kept | None:
        """Run the frozen part once over all images; None where the augmentation or the memory does not allow it."""
        if self.crops.augmentation.new_each_epoch:
            return None
        K, images = self.classifier.spec.K, self.crops.images
        shapes = self.frozen(torch.zeros((1, K, K, 3), dtype=torch.uint8))
        needed = images * sum(tensor.nbytes for tensor in shapes)
        if needed > self.keep_bytes:
            self.notes.append(
                f"activations are computed anew in every epoch: keeping them takes {needed / 2**30:.1f} GiB, allowed "
                f"are {self.keep_bytes / 2**30:.1f} (`keep_gib`)"
            )
            return None
        kept = _Kept(tuple(t.new_empty((images, *t.shape[1:]), device="cpu") for t in shapes), np.zeros(images, bool))
        self.lap("")
        for rows, crops in regroup(self.crops.epoch(0, np.arange(images)), self.trunk_batch_size, tail=True):
            self.lap("keep-load")
            for tensor, found in zip(kept.tensors, self.frozen(crops), strict=True):
                tensor[torch.from_numpy(rows)] = found.cpu()
            kept.readable[rows] = True
            self.lap("keep-trunk")
        return kept

    # ---- what a killed run goes on from

    def tuned_state(self) -> dict[str, Tensor]:
        """Name -> tensor of all that training changes: the parameters and the tuned BatchNorm's statistics."""
        state = dict(self.classifier.net.state_dict())
        names = set(self.parameters)
        if self.batch_norm is not None:
            names |= {f"{self.batch_norm}.{name}" for name, _ in self._norm_buffers()}
        return {name: state[name] for name in sorted(names)}

    def _norm_buffers(self) -> list[tuple[str, Tensor]]:
        assert self.batch_norm is not None
        return list(self.classifier.net.get_submodule(self.batch_norm).named_buffers())

    def save_state(self, path: Path, log: Sequence[dict[str, object]]) -> None:
        """One safetensors file, written whole or not at all: tuned tensors, momentum, and ``log`` (plain values)."""
        momentum = {
            f"momentum/{name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.parameters.items()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        about = {"recipe": asdict(self.recipe), "epochs_done": self.epochs_done, "log": list(log)}
        _save(path, {**self.tuned_state(), **momentum}, {"about": json.dumps(about)})

    def load_state(self, path: Path) -> list[dict[str, object]]:
        """Go on from ``save_state``'s file; returns its log. Raises ValueError when it is not of this run."""
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                about = json.loads((file.metadata() or {})["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ValueError(
                f"{path} is not a saved state of a fine-tuning ({error}): start again in a new `out`"
            ) from error
        own = self.tuned_state()
        if about["recipe"] != asdict(self.recipe) or not set(own) <= set(tensors):
            raise ValueError(
                f"{path} belongs to a fine-tuning with another recipe or network: start again in a new `out`"
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])
        for name, parameter in self.parameters.items():
            if (buffer := tensors.get(f"momentum/{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(self.device)
        self.epochs_done = about["epochs_done"]
        return about["log"]


def _check_data(crops: TrainingCrops, labels: np.ndarray, recipe: Recipe, num_classes: int) -> None:
    if len(labels) != crops.images:
        raise ValueError(f"{len(labels)} labels for {crops.images} images")
    if crops.images < recipe.batch_size:
        raise ValueError(f"`batch_size` {recipe.batch_size} is more than the {crops.images} images: lower it")
    if not ((labels >= 0) & (labels < num_classes)).all():
        raise ValueError(
            f"fine-tuning needs a label from 0 to {num_classes - 1} for every image: {int((labels < 0).sum())} have "
            f"none, {int((labels >= num_classes).sum())} a higher one"
        )


def _whole(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows) - size + 1, size):
        yield rows[start : start + size]


def regroup(
    stream: Iterator[tuple[np.ndarray, Tensor]], size: int, *, tail: bool = False
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The same rows and crops in batches of ``size``; what is left at the end is dropped unless ``tail``."""
    rows = np.zeros(0, np.int64)
    parts: list[Tensor] = []
    for more_rows, crops in stream:
        rows, parts = np.concatenate([rows, more_rows]), [*parts, crops]
        if len(rows) >= size:
            together = torch.cat(parts)
            ready = len(rows) // size * size
            for start in range(0, ready, size):
                yield rows[start : start + size], together[start : start + size]
            rows, parts = rows[ready:], [together[ready:]]
    if tail and len(rows):
        yield rows, torch.cat(parts)


# ---------------------------------------------------------------------------------------------------------------------
# Files


def save_weights(net: nn.Module, path: Path) -> None:
    """The whole state dict as safetensors, written whole or not at all; ``models.loading.load`` reads it back."""
    _save(path, dict(net.state_dict()), None)


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    # safetensors refuses tensors that share memory
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_path(path) as part:
        save_file(copies, part, metadata)
