"""A new last layer for other classes, on a network that was trained on some: transfer, as in FixRes Table 3."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from models.classifier import Classifier
from models.fixres.layers import classifier_parameters, probe_batch
from models.libraries import TimmLibrary, TorchvisionLibrary


def with_new_head(classifier: Classifier, class_names: Sequence[str], seed: int) -> Classifier:
    """The same network with an untrained last linear layer, one output for each of ``class_names``; a head of several
    layers (MobileNetV3) keeps its others. The first network is used up. The global random state is left as it was.

    Raises ValueError for fewer than two classes, and where the last layer is not a linear one.
    """
    if len(class_names) < 2:
        raise ValueError(f"`new_head` needs two classes or more; there are {len(class_names)}")
    with torch.no_grad():
        name = _last_linear(classifier)
    net = classifier.net
    old = net.get_submodule(name)
    assert isinstance(old, nn.Linear)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        new = nn.Linear(old.in_features, len(class_names))
        # Of zero mean and small, as torchvision's and timm's networks begin; the default's spread slows SGD down.
        nn.init.normal_(new.weight, std=0.01)
        nn.init.zeros_(new.bias)
    net.set_submodule(name, new)
    if hasattr(net, "num_classes"):
        net.num_classes = len(class_names)  # type: ignore[assignment]
    is_torchvision = classifier.name.startswith(TorchvisionLibrary.prefix)
    made = Classifier(
        net,
        classifier.spec,
        name=classifier.name,
        weights=classifier.weights,
        split=(TorchvisionLibrary() if is_torchvision else TimmLibrary()).split,
        notes=[*classifier.notes, f"{name} is new: {len(class_names)} outputs, untrained at first (seed {seed})"],
        crop_pct=classifier.crop_pct,
    )
    made.class_names = tuple(class_names)
    return made


def _last_linear(classifier: Classifier) -> str:
    """Name of the linear layer that gives the logits."""
    names = classifier_parameters(classifier, probe_batch(classifier))
    modules = dict.fromkeys(name.rpartition(".")[0] for name in names)
    linear = [name for name in modules if isinstance(classifier.net.get_submodule(name), nn.Linear)]
    if not linear or classifier.net.get_submodule(linear[-1]).out_features != classifier.num_classes:
        raise ValueError(
            f"`new_head`: the last layer of {classifier.name} is not a linear one with {classifier.num_classes} "
            "outputs; choose another network"
        )
    return linear[-1]
