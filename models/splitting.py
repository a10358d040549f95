"""Where a network is split into trunk and head: x -> pooled features -> logits.

Known for timm's networks, which pool a map or tokens before their last layer (``TIMM_SPLITS``), and for the
torchvision classes in ``TORCHVISION_SPLITS``. Every split is tried on a small random batch: where the two parts do not
give what the whole network gives, the feature level is absent with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional

from pipelines.data.faults import raise_if_of_machine

SPLIT_TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order, no more
PROBE_SIDE = 96  # pixels; the split does not depend on the size, and L2 at 800 would take a minute


@dataclass(frozen=True)
class Split:
    """``trunk``: x [n, 3, K, K] -> features [n, f]; ``head``: features [n, f] -> logits [n, classes]."""

    trunk: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


Way = Callable[[nn.Module], Split]


class NoFeatureLevel(Exception):
    """A network has no pooled features, or none that are known here; the message says why."""


def _as_map(features: Tensor) -> Tensor:
    """[n, f] -> [n, f, 1, 1]: pooling such a map gives it back, so a head that pools first can be used as it is."""
    return features[:, :, None, None]


def _pooled(feature_map: Any, pool: Callable[[Tensor], Tensor], name: str) -> Tensor:
    """[n, c, h, w] -> [n, c]. Raises NoFeatureLevel for any other shape."""
    if not isinstance(feature_map, Tensor) or feature_map.ndim != 4:
        raise NoFeatureLevel(f"the trunk of {name} gives no feature map [n, c, h, w] to pool")
    pooled = pool(feature_map).flatten(1)
    if pooled.shape[1] != feature_map.shape[1]:
        raise NoFeatureLevel(f"the pooling of {name} does not keep one number for each channel of [n, c, h, w]")
    return pooled


def timm_pool(net: Any) -> nn.Module | None:
    """The pooling before a timm network's head, or None where none is known."""
    for owner in (net, getattr(net, "head", None)):
        if isinstance(pool := getattr(owner, "global_pool", None), nn.Module):
            return pool
    return None


def timm_split(net: nn.Module) -> Split:
    # forward_head(x, pre_logits=True) is not used: for MobileNetV3 it includes the first of the head's two layers.
    name = type(net).__name__
    pool = timm_pool(net)
    if pool is None or not (hasattr(net, "forward_features") and hasattr(net, "forward_head")):
        raise NoFeatureLevel(
            f"{name} does not pool a convolutional feature map before its head, as far as is known here"
        )
    module: Any = net
    return Split(
        trunk=lambda x: _pooled(module.forward_features(x), pool, name),
        head=lambda features: module.forward_head(_as_map(features)),
    )


def timm_classifier_split(net: nn.Module) -> Split:
    """Before the last layer, for networks that pool tokens or pool in a way of their own: timm's ``forward_head`` with
    ``pre_logits`` gives what the last layer is given. Raises NoFeatureLevel."""
    name = type(net).__name__
    found: Any = getattr(net, "get_classifier", lambda: None)()
    heads: list[Any] = list(found) if isinstance(found, tuple | list | nn.ModuleList) else [found]
    if not all(isinstance(head, nn.Module) and not isinstance(head, nn.Identity) for head in heads):
        raise NoFeatureLevel(f"{name} has no classifier: no last layer that timm knows")
    if len(heads) == 1 and hasattr(net, "forward_features") and hasattr(net, "forward_head"):
        last: Any = getattr(heads[0], "fc", heads[0])  # Sequencer's is the head with its pooling

        def pooled(x: Tensor) -> Tensor:
            features = net.forward_head(net.forward_features(x), pre_logits=True)  # type: ignore[operator]
            if not isinstance(features, Tensor) or features.flatten(1).shape[1] != features.shape[1]:
                raise NoFeatureLevel(f"{name} gives its last layer no vector [n, f]")
            return features.flatten(1)

        return Split(pooled, lambda features: last(_as_map(features) if _takes_a_map(last) else features).flatten(1))
    return _split_of_several(net, heads, name)


def _takes_a_map(layer: nn.Module) -> bool:
    first = next((module for module in layer.modules() if not list(module.children())), layer)
    return isinstance(first, nn.Conv2d)


def _split_of_several(net: nn.Module, heads: list[nn.Module], name: str) -> Split:
    """Networks whose answer is the mean of several last layers (distilled ones): their inputs side by side."""

    linear = [[part for part in head.modules() if isinstance(part, nn.Linear)] for head in heads]
    if not all(len(layers) == 1 for layers in linear):
        raise NoFeatureLevel(f"{name} has several last layers, not all of them linear")
    widths = [layers[0].in_features for layers in linear]

    def side_by_side(x: Tensor) -> Tensor:
        given: list[Tensor] = []
        hooks = [head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for head in heads]
        try:
            net(x)
        finally:
            for hook in hooks:
                hook.remove()
        if len(given) != len(heads) or any(features.ndim != 2 for features in given):
            raise NoFeatureLevel(f"{name} does not give each of its last layers one vector [n, f]")
        return torch.cat(given, dim=1)

    def mean_of_heads(features: Tensor) -> Tensor:
        parts = features.split(widths, dim=1)
        return torch.stack([head(part) for head, part in zip(heads, parts, strict=True)]).mean(0)

    return Split(side_by_side, mean_of_heads)


TIMM_SPLITS: tuple[Way, ...] = (timm_split, timm_classifier_split)  # in order of preference


def first_split(net: nn.Module, x: Tensor, logits: Tensor, ways: Sequence[Way]) -> tuple[Split, Tensor]:
    """The first way of splitting that gives the network's own logits, and the features of ``x``. Raises NoFeatureLevel,
    with the reasons, where none does."""
    reasons: list[str] = []
    for way in ways:
        try:
            candidate = way(net)
            return candidate, verified_features(candidate, x, logits)
        except NoFeatureLevel as absent:
            reasons.append(str(absent))
    raise NoFeatureLevel("; ".join(reasons))


def _features_module(net: Any, x: Tensor) -> Tensor:
    return net.features(x)


def _resnet_trunk(net: Any, x: Tensor) -> Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def _shufflenet_trunk(net: Any, x: Tensor) -> Tensor:
    return net.conv5(net.stage4(net.stage3(net.stage2(net.maxpool(net.conv1(x))))))


_FLATTENS = "{} flattens a map of several places into its classifier: no feature is pooled"

# torchvision class -> (trunk, name of the head module), or the reason why there is no feature level.
TORCHVISION_SPLITS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str] | str] = {
    "ResNet": (_resnet_trunk, "fc"),  # ResNeXt and wide ResNet too
    "MobileNetV2": (_features_module, "classifier"),
    "MobileNetV3": (_features_module, "classifier"),
    "EfficientNet": (_features_module, "classifier"),
    "ConvNeXt": (_features_module, "classifier"),
    "DenseNet": (lambda net, x: functional.relu(net.features(x)), "classifier"),
    "RegNet": (lambda net, x: net.trunk_output(net.stem(x)), "fc"),
    "MNASNet": (lambda net, x: net.layers(x), "classifier"),
    "ShuffleNetV2": (_shufflenet_trunk, "fc"),
    "SqueezeNet": "SqueezeNet classifies every place of its map, then pools the class scores: it pools no feature",
    "AlexNet": _FLATTENS.format("AlexNet"),
    "VGG": _FLATTENS.format("VGG"),
}

_TAKES_A_MAP = {"ConvNeXt"}  # its classifier starts with a normalisation over [n, c, h, w]


def torchvision_split(net: nn.Module) -> Split:
    name = type(net).__name__
    entry = TORCHVISION_SPLITS.get(name, f"no split is written for torchvision's {name}: add it to TORCHVISION_SPLITS")
    if isinstance(entry, str):
        raise NoFeatureLevel(entry)
    trunk, head_name = entry
    head: Any = getattr(net, head_name)

    def pool(feature_map: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(feature_map, 1)

    return Split(
        trunk=lambda x: _pooled(trunk(net, x), pool, name),
        head=(lambda features: head(_as_map(features))) if name in _TAKES_A_MAP else head,
    )


def refuse_patches_that_do_not_fit(net: nn.Module, K: int) -> None:
    """Raises ValueError where a transformer cuts K x K pixels into patches, and some would be left over: the probe's
    smaller size may fit."""
    patches = getattr(net, "patch_embed", None)
    if isinstance(patches, PatchEmbed) and not patches.dynamic_img_pad and any(K % side for side in patches.patch_size):
        raise ValueError(
            f"the network does not take crops of {K} x {K}: its patches have {patches.patch_size[0]} pixels a side: "
            "choose another `img_size`, a multiple of that"
        )


def probe(net: nn.Module, K: int) -> tuple[Tensor, Tensor]:
    """A small random batch and the whole network's logits. Raises ValueError when the network takes no K x K input."""
    refuse_patches_that_do_not_fit(net, K)
    generator = torch.Generator().manual_seed(0)
    for side in (min(K, PROBE_SIDE), K):  # some networks take only the size that they were built for
        x = torch.randn(2, 3, side, side, generator=generator)
        try:
            return x, net(x)
        except Exception as error:
            raise_if_of_machine(error)
            if "channels" in str(error) and "got 3" in str(error):
                raise ValueError(
                    f"the network takes no RGB images ({error}): leave in_chans out of `model_kwargs`"
                ) from error
            if side == K:
                raise ValueError(
                    f"the network does not take crops of {K} x {K}: {error}; choose another `img_size`"
                ) from error
    raise AssertionError("unreachable")


def verified_features(split: Split, x: Tensor, logits: Tensor) -> Tensor:
    """The features of ``x``, when ``head(trunk(x))`` equals ``logits``. Raises NoFeatureLevel where it does not."""
    try:
        features = split.trunk(x)
        again = split.head(features)
    except NoFeatureLevel:
        raise
    except Exception as error:
        raise_if_of_machine(error)
        raise NoFeatureLevel(f"the network cannot be run in two parts: {type(error).__name__}: {error}") from error
    if again.shape != logits.shape:
        raise NoFeatureLevel(f"the head gives {list(again.shape)} where the network gives {list(logits.shape)}")
    difference = (again - logits).abs().max().item()
    # Written so that a NaN is a failure.
    if not difference <= SPLIT_TOLERANCE * logits.abs().max().item():
        raise NoFeatureLevel(
            f"head(features(x)) differs from the network's own logits by {difference:.2g} on a random batch"
        )
    return features


_AFFINE = (
    nn.Linear,
    nn.Conv2d,
    nn.Identity,
    nn.Dropout,
    nn.Flatten,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,  # of a 1 x 1 map
)


def is_linear(net: nn.Module, head: Callable[[Tensor], Tensor], features: Tensor) -> bool:
    """Whether the head of the mean is the mean of the heads, for all features.

    Two signs are needed, because each alone can be fooled: only affine modules run in the head (a hook does not see a
    function such as ``F.relu``), and midpoints map to midpoints (near zero, hard-swish is almost linear).
    """
    ran: list[nn.Module] = []
    leaves = [module for module in net.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(lambda module, *_: ran.append(module)) for leaf in leaves]
    try:
        head(features)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(isinstance(module, _AFFINE) for module in ran):
        return False
    for scale in (1.0, -30.0):
        points = scale * features[:2]
        ends, middle = head(points), head(points.mean(0, keepdim=True))
        if not (ends.mean(0) - middle[0]).abs().max() <= SPLIT_TOLERANCE * ends.abs().max():
            return False
    return True
