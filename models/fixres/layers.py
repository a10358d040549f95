"""Which layers FixRes trains, found in any network: the BatchNorm before the pooling, and all behind the pooling."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.classifier import Classifier


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
    "efficientnet-lite": Layers(
        r"bn2", "classifier, one linear layer", "bn2, of the last 1x1 convolution, before ReLU6 and pooling"
    ),
    "pnasnet": Layers(
        r"cell_\d+\.comb_iter_\d_(left|right)\.bn_sep_2|cell_\d+\.conv_1x1\.bn",
        "last_linear, one linear layer",
        "of the branch of the last cell that runs last; FixRes tunes the last cells (Table 1): `tune` from:cell_9",
    ),
    "senet": Layers(
        r"layer4\.\d+\.bn[23]", "last_linear, one linear layer", "the last block's last BatchNorm, as in ResNet"
    ),
    "resnext-wsl": Layers(r"layer4\.\d+\.bn3", "fc, one linear layer", "the last block's last BatchNorm, as in ResNet"),
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
        pooled_features(classifier, x)
    finally:
        for hook in hooks:
            hook.remove()
    return ran[-1] if ran else None


@dataclass(frozen=True, slots=True)
class LastBlock:
    """``name``: the module at which training begins. ``behind``: the modules with parameters that run after its first
    layer and are not in it, up to the pooling."""

    name: str
    behind: tuple[str, ...]


def last_block(classifier: Classifier, x: Tensor) -> LastBlock:
    """The last block of layers before the pooling: of the modules with a number in their name (``layer4.2``,
    ``blocks.6.0``, ``denselayer16``) that hold two or more convolutions or linear layers, the one that ends last.

    Raises ValueError where the network has no pooled features, or no such module.
    """
    ran = _run_order(classifier, x)
    for i, name in reversed(list(enumerate(ran))):
        if (block := _block_of(classifier.net, name)) is not None:
            return LastBlock(block, _not_in(block, ran[i + 1 :]))
    raise ValueError(
        f"`tune` last-block: {classifier.name} is not made of numbered blocks; use `tune` classifier or all"
    )


def from_module(classifier: Classifier, x: Tensor, name: str) -> LastBlock:
    """The module ``name`` and all that runs after its first layer: ``layer4`` of SENet-154 (FixRes Table 10),
    ``cell_9`` for the last three cells of PNASNet-5 (Table 1).

    Raises ValueError where the network has no such module, or has it behind the pooling, or has no pooled features.
    """
    ran = _run_order(classifier, x)
    first = next((i for i, one in enumerate(ran) if f"{one}.".startswith(f"{name}.")), None)
    if not name or first is None:
        known = ", ".join(dict.fromkeys(one.partition(".")[0] for one in ran))
        raise ValueError(
            f"`tune` from:{name}: {classifier.name} has no layers of this name before its pooling, but {known} and "
            "what is in them"
        )
    return LastBlock(name, _not_in(name, ran[first:]))


def _run_order(classifier: Classifier, x: Tensor) -> list[str]:
    """Names of the modules that have parameters of their own, as they run, up to the pooling."""
    ran: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in classifier.net.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        pooled_features(classifier, x)
    finally:
        for hook in hooks:
            hook.remove()
    return ran


def _not_in(block: str, ran: list[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one for one in ran if not f"{one}.".startswith(f"{block}.")))


def _block_of(net: nn.Module, name: str) -> str | None:
    """The innermost module around ``name`` that is numbered and holds two weight matrices or more, or None."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        if re.search(r"\d", parts[end - 1]):
            around = ".".join(parts[:end])
            matrices = [p for p in net.get_submodule(around).parameters() if p.ndim > 1]
            if len(matrices) > 1:
                return around
    return None


def classifier_parameters(classifier: Classifier, x: Tensor) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that stands behind the pooling: those on which the head's output depends."""
    features = pooled_features(classifier, x)
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


def pooled_features(classifier: Classifier, x: Tensor) -> Tensor:
    """[n, 3, K, K] -> [n, f], without gradients. Raises ValueError where the network has no feature level."""
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
    return "classifier+bn" if last_batch_norm(classifier, probe_batch(classifier)) else "classifier"


def probe_batch(classifier: Classifier) -> Tensor:
    """Two inputs of noise, float [2, 3, K, K] on the network's device: the same for every call."""
    parameter = next(classifier.net.parameters())
    x = torch.randn(2, 3, classifier.spec.K, classifier.spec.K, generator=torch.Generator().manual_seed(0))
    return x.to(parameter.device)
