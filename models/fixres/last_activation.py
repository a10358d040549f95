"""The last activation before the pooling: found in any network, read and replaced by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.classifier import Classifier


@dataclass(frozen=True, slots=True)
class Activation:
    """An elementwise function. ``rectifier``: it gives exact zeros and nothing negative, as the paper's ReLU."""

    rectifier: bool
    what: str


# Class of the module -> what it is. timm and torch use the same names for the same function.
ACTIVATIONS: dict[str, Activation] = {
    "ReLU": Activation(True, "ReLU"),
    "ReLU6": Activation(True, "ReLU up to 6"),
    "SiLU": Activation(False, "SiLU"),
    "Swish": Activation(False, "SiLU"),
    "GELU": Activation(False, "GELU"),
    "GELUTanh": Activation(False, "GELU"),
    "GammaAct": Activation(False, "GELU or SiLU times a constant (timm's DeepMind NFNets)"),
    "Hardswish": Activation(False, "hard-swish"),
    "HardSwish": Activation(False, "hard-swish"),
    "Mish": Activation(False, "Mish"),
}

# Family -> (regular expression of the module's name, what it is), stated for people and checked by tests; the code
# finds the module by trying, so that any network can be measured.
LAST_ACTIVATION: dict[str, tuple[str, str]] = {
    "resnet": (r"layer4\.\d+\.(act[23]|relu)", "ReLU, behind the last block's sum with its shortcut"),
    "mobilenet": (
        r"features\.(12|16|18)\.2|blocks\.\d+\.\d+\.bn1\.act",
        "of the last 1x1 convolution: V2 ReLU6, V3 hard-swish",
    ),
    "efficientnet": (r"bn2\.act", "SiLU, of the last 1x1 convolution"),
    "efficientnet-lite": (r"bn2\.act", "ReLU6, of the last 1x1 convolution"),
    "pnasnet": (r"act", "ReLU, behind the last cell"),
    "senet": (r"layer4\.\d+\.relu", "ReLU, behind the last block's sum with its shortcut"),
    "resnext-wsl": (r"layer4\.\d+\.act3", "ReLU, behind the last block's sum with its shortcut"),
    "nfnet": (r"final_act", "GELU (timm's small ones SiLU), behind the last 1x1 convolution"),
}

NOT_RECTIFIED = (
    "its last activation before the pooling, {name}, is {what}, which rounds nothing to zero: the Fréchet model is of "
    "the pooled positive parts of a Gaussian, the zeros left out (FixRes supplement A.1). Use gaussian, which matches "
    "what goes into the activation, whichever it is"
)


class NotAdaptable(ValueError):
    """An adaptation that a network cannot have; the message says why."""


@dataclass(frozen=True, slots=True)
class LastActivation:
    """The ``call``-th run (from 0) of the module ``name`` in a forward pass: torchvision's blocks share one ReLU."""

    name: str
    kind: Activation
    call: int
    first: str  # the module that runs first of all: a new pass begins


def last_activation(classifier: Classifier) -> LastActivation:
    """The elementwise activation whose output is what is pooled, found by running a small batch.

    It is checked by putting noise in the place of its output: the features must become the mean of the noise.

    Raises NotAdaptable where there is none: no feature level, layers or a sum behind the last activation, a function
    in place of a module, a pooling that is not the average.
    """
    net, x = classifier.net, _small_batch(classifier)
    ran: list[str] = []
    leaves = {name: module for name, module in net.named_modules() if not list(module.children())}
    hooks = [leaf.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, leaf in leaves.items()]
    with removed_after(hooks), torch.inference_mode():
        features = classifier.features(x)
    if features is None:
        raise NotAdaptable(f"{classifier.name} cannot be adapted: {classifier.feature_absent_reason}")
    known = [name for name in ran if type(leaves[name]).__name__ in ACTIVATIONS]
    if known:
        name = known[-1]
        found = LastActivation(name, ACTIVATIONS[type(leaves[name]).__name__], ran.count(name) - 1, ran[0])
        if _is_pooled(classifier, found, x):
            return found
    raise NotAdaptable(
        f"{classifier.name} cannot be adapted: no activation function known here "
        f"({', '.join(dict.fromkeys(known[-1:])) or 'none runs'}) gives what is averaged into its features. FixRes "
        "works on the last ReLU before the average pooling; name a network that ends so, such as resnet:50"
    )


def _is_pooled(classifier: Classifier, at: LastActivation, x: Tensor) -> bool:
    noise: list[Tensor] = []

    def replace_by_noise(output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise.append(torch.rand(output.shape, generator=generator).to(output))
        return noise[-1]

    with removed_after(hook_last(classifier, at, after=replace_by_noise)), torch.inference_mode():
        features = classifier.features(x)
    if features is None or len(noise) != 1 or noise[0].ndim != 4:
        return False
    pooled = noise[0].mean((2, 3))
    return features.shape == pooled.shape and bool(torch.allclose(features, pooled, rtol=1e-4, atol=1e-5))


def hook_last(
    classifier: Classifier,
    at: LastActivation,
    *,
    before: Callable[[Tensor], Tensor] | None = None,
    after: Callable[[Tensor], Tensor] | None = None,
) -> list[Any]:
    """Put ``before(input)`` for the activation's input, or ``after(output)`` for its output, [n, c, h, w] each.

    Returns the hooks' handles, each with ``remove()``.
    """
    modules = dict(classifier.net.named_modules())
    calls = 0

    def begin(*_: Any) -> None:
        nonlocal calls
        calls = 0

    def on_input(module: nn.Module, arguments: tuple[Tensor, ...]) -> Tensor | None:
        return before(arguments[0]) if before and calls == at.call else None

    def on_output(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        nonlocal calls
        calls += 1
        return after(output) if after and calls == at.call + 1 else None

    return [
        modules[at.first].register_forward_pre_hook(begin),
        modules[at.name].register_forward_pre_hook(on_input),
        modules[at.name].register_forward_hook(on_output),
    ]


@contextmanager
def removed_after(handles: Iterable[Any]) -> Iterator[None]:
    """Remove the hooks in the end, whatever happens."""
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _small_batch(classifier: Classifier) -> Tensor:
    parameter = next(classifier.net.parameters())
    K = classifier.spec.K
    x = torch.randn(2, 3, K, K, generator=torch.Generator().manual_seed(0))
    return x.to(parameter.device, parameter.dtype)
