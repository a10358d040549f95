"""FixRes: re-train the last layers of a classifier at the resolution at which it will be used.

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
``models.fixres.layers.LAYERS`` says which modules these are in the families. ``last-block`` trains the last block
before the pooling and all behind it, ``from:NAME`` the module of this name and all behind it ("the last three cells" of
PNASNet in Table 1, "layer 4" in Table 10), ``all`` everything, as networks usually are: BatchNorms and dropout too.

**How.** By SGD, as the papers do. Or, where the classifier is one linear layer on features that do not change, by
going to the one optimum that it has (``Recipe.opt`` lbfgs; ``models.fixres.linear_head``).

**When it stops.** With ``hold_out`` the loss on images that are not trained on is measured after every epoch; what was
trained when it was lowest is the result, and with ``patience`` training ends early.

**What is computed once.** The network is split where training begins. Whatever lies before is run without gradients, in
batches of one fixed shape; under test DA, where an image is the same crop in every epoch, it is run once an image and
kept. Batches of one shape make both ways equal bit for bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoints import CLASS_NAMES
from models.classifier import Classifier
from models.fixres.held_out import HeldOut
from models.fixres.kept import ActivationStore, KeptActivations, frozen_hash
from models.fixres.layers import (
    LastBlock,
    classifier_parameters,
    from_module,
    last_batch_norm,
    last_block,
    pooled_features,
    probe_batch,
)
from models.fixres.linear_head import Solution, only_linear_layer, solve
from models.fixres.recipe import Recipe
from models.fixres.tunes import FROM
from models.fixres.tuning_split import NotSplit, TuningSplit, split_at_module, split_at_pooling, split_nowhere
from pipelines.crops import uniforms
from pipelines.data.faults import raise_if_of_machine
from pipelines.files import whole_path
from pipelines.schemas import DamagedFile, required_fields
from pipelines.training_crops import TrainingCrops, epoch_order


@dataclass(frozen=True, slots=True)
class Epoch:
    """What an epoch says. ``loss``, ``top1`` (percent) are means over its steps, before each step's update; with lbfgs
    those of the optimum, and ``steps`` are its iterations."""

    epoch: int  # from 0
    lr: float | None  # None with lbfgs
    steps: int
    images: int  # steps x batch size: the incomplete last batch of each epoch's order is dropped; with lbfgs all
    loss: float
    top1: float
    val_loss: float | None = None  # on the held-out images, after the epoch; None where there are none
    val_top1: float | None = None


Lap = Callable[[str], None]
STAGES = {
    "load": "waiting for crops, or fetching the activations that were kept",
    "trunk": "the frozen part of a batch",
    "forward": "the tuned part and the loss",
    "backward": "gradients and the update",
    "keep-load": "waiting for crops, once an image, where activations are kept",
    "keep-trunk": "the frozen part of a trunk_batch_size of crops, padded",
    "solve": "the search for the optimum, of lbfgs",
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
        x = probe_batch(classifier)
        self.parameters = classifier_parameters(classifier, x)
        self.classifier_names = list(self.parameters)
        self.batch_norm = self._batch_norm(x) if recipe.tune == "classifier+bn" else None
        self.block = self._block(x)
        self.linear_layer = self._linear_layer(x) if recipe.opt == "lbfgs" else None
        self.solution: Solution | None = None  # of lbfgs
        self.split = self._split(x)
        self.trained_modules = self._trained_modules()
        self.parameters |= {
            name: parameter
            for name, parameter in classifier.net.named_parameters()
            if any(_is_in(name, module) for module in self.trained_modules)
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.SGD(
            self.parameters.values(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay or 0.0
        )
        self._kept: KeptActivations | None = None
        self._store: ActivationStore | None = None
        self._data_hash = ""
        self._held_out: HeldOut | None = None

    def hold_out(self, rows: np.ndarray, crops: TrainingCrops) -> None:
        """Score the images of ``rows`` (bool [images]) after every epoch, from their centre ``crops``, and train on the
        others only. Raises ValueError where these are fewer than a batch."""
        if (left := int((~rows).sum())) < self.recipe.batch_size:
            raise ValueError(
                f"`batch_size` {self.recipe.batch_size} is more than the {left} images that are not held out: lower it"
            )
        self._held_out = HeldOut(rows, crops)

    def share(self, store: ActivationStore, data_hash: str) -> None:
        """Take kept activations from the store where it has those of the same images, crops and frozen weights, and
        leave them there."""
        self._store, self._data_hash = store, data_hash

    @property
    def best_epoch(self) -> int | None:
        """The epoch (from 0) whose weights are the result; None where nothing is held out."""
        return self._held_out.best_epoch if self._held_out else None

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

    def _block(self, x: Tensor) -> LastBlock | None:
        if self.recipe.tune.startswith(FROM):
            return from_module(self.classifier, x, self.recipe.tune.removeprefix(FROM))
        return last_block(self.classifier, x) if self.recipe.tune == "last-block" else None

    def _linear_layer(self, x: Tensor) -> str:
        name = only_linear_layer(self.classifier, self.parameters, pooled_features(self.classifier, x))
        if name is None:
            raise ValueError(f"`opt` lbfgs: the head of {self.classifier.name} is not one linear layer; use `opt` sgd")
        return name

    def _trained_modules(self) -> tuple[str, ...]:
        """Those that are in training mode while they are trained; "" is the whole network."""
        if self.recipe.tune == "all":
            return ("",)
        if self.block is not None:
            return (self.block.name, *self.block.behind)
        return () if self.batch_norm is None else (self.batch_norm,)

    def _split(self, x: Tensor) -> TuningSplit:
        if self.recipe.tune == "all":
            return split_nowhere(self.classifier.net, "all of it is trained")
        first = self.batch_norm if self.block is None else self.block.name
        if first is None:
            return split_at_pooling(self.classifier)
        try:
            return split_at_module(self.classifier.net, first, x)
        except NotSplit as error:
            split = split_nowhere(self.classifier.net, str(error))
            self.notes.append(f"the network is split {split.where}")
            return split

    def run(self) -> Iterator[Epoch]:
        """The epochs that are left; whoever stops iterating can go on later. Raises ValueError when too few images
        can be read, RuntimeError when the loss is not a number."""
        if self.epochs_done < self.recipe.epochs and not self._has_stopped():
            self._kept = self._keep()
        while self.epochs_done < self.recipe.epochs and not self._has_stopped():
            done = self._scored(self._solve() if self.linear_layer else self._epoch(self.epochs_done))
            self.epochs_done += 1
            yield done
        if self._held_out is not None:
            self._set(self._held_out.best)

    def _has_stopped(self) -> bool:
        held_out, patience = self._held_out, self.recipe.patience
        return bool(held_out and patience and self.epochs_done - 1 - held_out.best_epoch >= patience)

    def _scored(self, done: Epoch) -> Epoch:
        """With the loss and accuracy on the held-out images."""
        held_out = self._held_out
        if held_out is None:
            return done
        total, right, images = 0.0, 0, 0
        with torch.no_grad():
            for rows, activations in self._held_out_batches(held_out):
                labels = self.labels[torch.from_numpy(rows)].to(self.device)
                logits = self.split.tuned(*(tensor.to(self.device) for tensor in activations))
                total += functional.cross_entropy(logits, labels, reduction="sum").item()
                right += int((logits.argmax(1) == labels).sum())
                images += len(rows)
        if not images:
            raise ValueError("none of the images that are held out (`val_split`) can be read")
        held_out.note(done.epoch, total / images, self.tuned_state())
        return replace(done, val_loss=total / images, val_top1=100 * right / images)

    def _held_out_batches(self, held_out: HeldOut) -> Iterator[tuple[np.ndarray, tuple[Tensor, ...]]]:
        """(rows, activations) of the held-out images; the same in every epoch, and kept where memory allows it."""
        if self._kept is not None:  # the same centre crops
            held = np.flatnonzero(held_out.rows & self._kept.readable)
            for start in range(0, len(held), self.trunk_batch_size):
                found = held[start : start + self.trunk_batch_size]
                yield found, tuple(tensor[torch.from_numpy(found)] for tensor in self._kept.tensors)
            return
        if held_out.kept is not None:
            yield from held_out.kept
            return
        kept, room = [], self.keep_bytes
        rows = np.flatnonzero(held_out.rows)
        for found, crops in regroup(held_out.crops.epoch(0, rows), self.trunk_batch_size, tail=True):
            activations = tuple(tensor.cpu() for tensor in self.frozen(crops))
            room -= sum(tensor.nbytes for tensor in activations)
            if room >= 0:
                kept.append((found, activations))
            yield found, activations
        if room >= 0:
            held_out.kept = kept

    def _solve(self) -> Epoch:
        """Set the classifier to the optimum on all images that are not held out."""
        assert self.linear_layer is not None
        if self._kept is None:
            raise ValueError(
                f"`opt` lbfgs needs all features in memory; {self.notes[-1]}: allow more, or use `opt` sgd"
            )
        trained_on = self._kept.readable.copy()
        if self._held_out is not None:
            trained_on &= ~self._held_out.rows
        rows = torch.from_numpy(np.flatnonzero(trained_on))
        if not len(rows):
            raise ValueError("none of the images that are not held out can be read")
        self.lap("")
        found = solve(
            self._kept.tensors[0][rows],
            self.labels[rows],
            self.classifier.num_classes,
            weight_decay=self.recipe.weight_decay,
            label_smoothing=self.recipe.label_smoothing,
            device=str(self.device),
        )
        self.lap("solve")
        layer = self.classifier.net.get_submodule(self.linear_layer)
        self._set({f"{self.linear_layer}.weight": found.weight, f"{self.linear_layer}.bias": found.bias})
        assert isinstance(layer, nn.Linear) and layer.weight.isfinite().all()
        if not found.converged:
            self.notes.append(
                f"the search for the best classifier ended after {found.iterations} iterations with a derivative of "
                f"{found.gradient:.1e}: it is near the optimum, not at it"
            )
        self.solution = found
        return Epoch(0, None, found.iterations, len(rows), found.loss, found.top1)

    def _epoch(self, epoch: int) -> Epoch:
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(epoch)
        losses: list[Tensor] = []
        right: list[Tensor] = []
        with self._training_mode(epoch):
            self.lap("")
            for rows, activations in self._batches(epoch):
                labels = self.labels[torch.from_numpy(rows)].to(self.device)
                loss, logits = self._step(activations, labels)
                losses.append(loss)
                right.append((logits.argmax(1) == labels).sum())
                self.lap("")
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

    @contextmanager
    def _training_mode(self, epoch: int) -> Iterator[None]:
        """Training mode for the modules that are trained whole, and for nothing else. What dropout draws is a function
        of seed and epoch, so that a resumed run draws the same."""
        modules = [self.classifier.net.get_submodule(name) for name in self.trained_modules]
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else [], enabled=bool(modules)):
            if modules:
                torch.manual_seed(int(uniforms(self.recipe.seed, f"epoch {epoch}", "dropout", 1)[0, 0] * 2**53))
            for module in modules:
                module.train()
            try:
                yield
            finally:
                for module in modules:
                    module.eval()

    def _batches(self, epoch: int) -> Iterator[tuple[np.ndarray, tuple[Tensor, ...]]]:
        """(rows [batch_size], activations) of each whole batch of an epoch."""
        order = epoch_order(self.recipe.seed, epoch, self.crops.images)
        if self._held_out is not None:
            order = order[~self._held_out.rows[order]]
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

    def _keep(self) -> KeptActivations | None:
        """Run the frozen part once over all images; None where the augmentation or the memory does not allow it."""
        if self.crops.augmentation.new_each_epoch:
            return None
        if self._store is None:
            return self._run_once()
        frozen = frozen_hash(self.classifier.net, self.tuned_state().keys())
        of = (self._data_hash, frozen, self.split.where, self.classifier.spec, self.trunk_batch_size, str(self.device))
        kept = self._store.get(of)
        if kept is None and (kept := self._run_once()) is not None:
            self._store.put(of, kept)
        if kept is not None:
            self.crops.failed |= kept.failed
        return kept

    def _run_once(self) -> KeptActivations | None:
        K, images = self.classifier.spec.K, self.crops.images
        shapes = self.frozen(torch.zeros((1, K, K, 3), dtype=torch.uint8))
        needed = images * sum(tensor.nbytes for tensor in shapes)
        if needed > self.keep_bytes:
            self.notes.append(
                f"activations are computed anew in every epoch: keeping them takes {needed / 2**30:.1f} GiB, allowed "
                f"are {self.keep_bytes / 2**30:.1f} (`keep_gib`)"
            )
            return None
        empty = tuple(t.new_empty((images, *t.shape[1:]), device="cpu") for t in shapes)
        kept = KeptActivations(empty, np.zeros(images, bool))
        self.lap("")
        for rows, crops in regroup(self.crops.epoch(0, np.arange(images)), self.trunk_batch_size, tail=True):
            self.lap("keep-load")
            for tensor, found in zip(kept.tensors, self.frozen(crops), strict=True):
                tensor[torch.from_numpy(rows)] = found.cpu()
            kept.readable[rows] = True
            self.lap("keep-trunk")
        kept.failed = dict(self.crops.failed)
        return kept

    @torch.no_grad()
    def _set(self, state: Mapping[str, Tensor]) -> None:
        """What is tuned becomes what ``state`` says."""
        for name, tensor in self.tuned_state().items():
            tensor.copy_(state[name])

    # ---- what a killed run goes on from

    def tuned_state(self) -> dict[str, Tensor]:
        """Name -> tensor of all that training changes: parameters, and buffers of the modules that are trained."""
        state = self.classifier.net.state_dict()
        inside = {name for name in state if any(_is_in(name, module) for module in self.trained_modules)}
        return {name: state[name] for name in sorted(inside | (self.parameters.keys() & state.keys()))}

    def save_state(self, path: Path, log: Sequence[dict[str, object]]) -> None:
        """One safetensors file, written whole or not at all: tuned tensors, momentum, and ``log`` (plain values)."""
        momentum = {
            f"momentum/{name}": self.optimizer.state[parameter]["momentum_buffer"]
            for name, parameter in self.parameters.items()
            if self.optimizer.state.get(parameter, {}).get("momentum_buffer") is not None
        }
        about = {"recipe": asdict(self.recipe), "epochs_done": self.epochs_done, "log": list(log)}
        best = {}
        if self._held_out is not None:
            about |= {"best_epoch": self._held_out.best_epoch, "best_loss": self._held_out.best_loss}
            best = {f"best/{name}": tensor for name, tensor in self._held_out.best.items()}
        _save(path, {**self.tuned_state(), **momentum, **best}, {"about": json.dumps(about)})

    def load_state(self, path: Path) -> list[dict[str, object]]:
        """Go on from ``save_state``'s file; returns its log. Raises ValueError when it is not of this run."""
        about, tensors = read_state(path, held_out=self._held_out is not None)
        own = self.tuned_state()
        needed = own | ({f"best/{name}": tensor for name, tensor in own.items()} if self._held_out is not None else {})
        perhaps = {f"momentum/{name}": parameter for name, parameter in self.parameters.items()}
        fits = all(tensors[name].shape == one.shape for name, one in (perhaps | needed).items() if name in tensors)
        if about["recipe"] != asdict(self.recipe) or not set(needed) <= set(tensors) or not fits:
            raise ValueError(
                f"{path} belongs to a fine-tuning with another recipe or network: start again in a new `out`"
            )
        self._set(tensors)
        if self._held_out is not None:
            self._held_out.best_epoch, self._held_out.best_loss = about["best_epoch"], about["best_loss"]
            self._held_out.best = {name: tensors[f"best/{name}"] for name in own}
        for name, parameter in self.parameters.items():
            if (buffer := tensors.get(f"momentum/{name}")) is not None:
                self.optimizer.state[parameter]["momentum_buffer"] = buffer.to(self.device)
        self.epochs_done = about["epochs_done"]
        return about["log"]


def _is_in(name: str, module: str) -> bool:
    """Whether the parameter or buffer is the module's; "" is the whole network."""
    return not module or name.startswith(f"{module}.")


STATE = {"recipe": dict[str, Any], "epochs_done": int, "log": list[dict[str, Any]]}  # what `about` holds
# Beside them, with images held out. A number that is not finite is one here: a loss that was never lower.
STATE_HELD_OUT = {"best_epoch": (int,), "best_loss": (int, float)}


def read_state(path: Path, *, held_out: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What ``FineTuning.save_state`` wrote: its plain values and its tensors. Raises DamagedFile."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            about = required_fields(json.loads((file.metadata() or {})["about"]), STATE, "about", {"epochs_done": 0})
            for name, kinds in STATE_HELD_OUT.items() if held_out else ():
                if type(about.get(name)) not in kinds:
                    raise DamagedFile(f"about: `{name}` is {about.get(name)!r:.40}, not a number")
            return about, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError, RuntimeError) as error:
        raise_if_of_machine(error)
        raise DamagedFile(
            f"{path} is not a saved state of a fine-tuning ({error}): start again in a new `out`"
        ) from error


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


def save_weights(net: nn.Module, path: Path, class_names: Sequence[str] | None = None) -> None:
    """The whole state dict as safetensors, with the names of the classes where they are the network's own; written
    whole or not at all. ``models.loading.load`` reads it back."""
    _save(path, dict(net.state_dict()), {CLASS_NAMES: json.dumps(list(class_names))} if class_names else None)


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    # safetensors refuses tensors that share memory
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with whole_path(path) as part:
        save_file(copies, part, metadata)
