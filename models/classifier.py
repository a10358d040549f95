"""One network for the whole suite: crops -> pooled features -> logits, whichever library built it.

    classifier = load("resnet:18", weights="random", seed=0)
    x = classifier.prepare(crops)                  # uint8 [n, K, K, 3] -> float [n, 3, K, K], normalised
    features, logits = classifier.outputs(x)       # [n, f] or None, [n, classes]

``features`` is the pooled output of the convolutional trunk (DESIGN rule 13). Where a network is cut is known for
timm's ``forward_features`` / ``forward_head`` networks and for the torchvision classes in ``TORCHVISION_CUTS``. Every
cut is tried on a small batch when a Classifier is made: where the two parts do not give what the whole network gives,
the level is absent and ``feature_absent_reason`` says why.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import math
import pickle
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from models import families
from pipelines.inputspec import INTERPOLATIONS, InputSpec

WEIGHTS = ("pretrained", "random", "demo")

CUT_TOLERANCE = 1e-4  # of the largest logit: float32 sums in another order, no more
PROBE_SIDE = 96  # pixels; the cut does not depend on the size, and L2 at 800 would take a minute
REACHABLE_SECONDS = 5.0  # the hub's own client tries for most of a minute before it says that there is no network


class WeightsError(RuntimeError):
    """Weights cannot be had, cannot be read, or do not fit the network."""


# ---------------------------------------------------------------------------------------------------------------------
# Normalisation


GRAIN = 32768  # numbers; what is smaller torch does on the calling thread, without waiting for others that are busy


class Normalize(nn.Module):
    """uint8 ``[n, K, K, 3]`` -> ``dtype`` ``[n, 3, K, K]``: ``(x - 255 mean) / (255 std)`` in float32, then the cast.

    ``channels_last`` is the memory format of the result. Crops lie in memory as NHWC, so it costs no copy.

    ``out``, float32 [n, K, K, 3], is filled piece by piece and the result is a view of it, good until it is filled
    again. On a CPU that is ten times as fast as a new tensor a pass, bit for bit the same: a piece stays in the cache
    for all three steps, and no fresh pages are asked of the system. Both ways work on rows of 3 K numbers: broadcasting
    over the three channels alone leaves loops of length three.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, spec: InputSpec, *, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.channels_last = channels_last
        self.register_buffer("offset", 255 * torch.tensor(spec.mean), persistent=False)
        self.register_buffer("scale", 255 * torch.tensor(spec.std), persistent=False)

    def forward(self, crops: Tensor, out: Tensor | None = None) -> Tensor:
        n, K = crops.shape[:2]
        rows = crops.reshape(n, K, 3 * K)
        offset, scale = self.offset.repeat(K), self.scale.repeat(K)
        if out is None:
            x = rows.to(torch.float32).sub_(offset).div_(scale)
        else:
            x = out.view(n, K, 3 * K)
            piece = max(GRAIN // (3 * K), 1)
            for target, source in zip(x.flatten(0, 1).split(piece), rows.flatten(0, 1).split(piece), strict=True):
                target.copy_(source).sub_(offset).div_(scale)
        memory_format = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.view(n, K, K, 3).permute(0, 3, 1, 2).to(self.dtype).contiguous(memory_format=memory_format)


# ---------------------------------------------------------------------------------------------------------------------
# Where a network is cut


@dataclass(frozen=True)
class Cut:
    """``trunk``: x [n, 3, K, K] -> features [n, f]; ``head``: features [n, f] -> logits [n, classes]."""

    trunk: Callable[[Tensor], Tensor]
    head: Callable[[Tensor], Tensor]


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


def _timm_cut(net: nn.Module) -> Cut:
    # forward_head(x, pre_logits=True) is not used: for MobileNetV3 it includes the first of the head's two layers.
    name = type(net).__name__
    pool = getattr(net, "global_pool", None)
    if not isinstance(pool, nn.Module):
        pool = getattr(getattr(net, "head", None), "global_pool", None)
    if not isinstance(pool, nn.Module) or not (hasattr(net, "forward_features") and hasattr(net, "forward_head")):
        raise NoFeatureLevel(
            f"{name} does not pool a convolutional feature map before its head, as far as is known here"
        )
    module: Any = net
    return Cut(
        trunk=lambda x: _pooled(module.forward_features(x), pool, name),
        head=lambda features: module.forward_head(_as_map(features)),
    )


def _features_module(net: Any, x: Tensor) -> Tensor:
    return net.features(x)


def _resnet_trunk(net: Any, x: Tensor) -> Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def _shufflenet_trunk(net: Any, x: Tensor) -> Tensor:
    return net.conv5(net.stage4(net.stage3(net.stage2(net.maxpool(net.conv1(x))))))


_FLATTENS = "{} flattens a map of several places into its classifier: no feature is pooled"

# torchvision class -> (trunk, name of the head module), or the reason why there is no feature level.
TORCHVISION_CUTS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str] | str] = {
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


def _torchvision_cut(net: nn.Module) -> Cut:
    name = type(net).__name__
    entry = TORCHVISION_CUTS.get(name, f"no cut is written for torchvision's {name}: add it to TORCHVISION_CUTS")
    if isinstance(entry, str):
        raise NoFeatureLevel(entry)
    trunk, head_name = entry
    head: Any = getattr(net, head_name)

    def pool(feature_map: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(feature_map, 1)

    return Cut(
        trunk=lambda x: _pooled(trunk(net, x), pool, name),
        head=(lambda features: head(_as_map(features))) if name in _TAKES_A_MAP else head,
    )


def _probe(net: nn.Module, K: int) -> tuple[Tensor, Tensor]:
    """A small random batch and the whole network's logits. Raises ValueError when the network takes no K x K input."""
    generator = torch.Generator().manual_seed(0)
    for side in (min(K, PROBE_SIDE), K):  # some networks take only the size that they were built for
        x = torch.randn(2, 3, side, side, generator=generator)
        try:
            return x, net(x)
        except Exception as error:
            if side == K:
                raise ValueError(
                    f"the network does not take crops of {K} x {K}: {error}; choose another --img-size"
                ) from error
    raise AssertionError("unreachable")


def _verified(cut: Cut, x: Tensor, logits: Tensor) -> Tensor:
    """The features of ``x``, when ``head(trunk(x))`` equals ``logits``. Raises NoFeatureLevel where it does not."""
    try:
        features = cut.trunk(x)
        again = cut.head(features)
    except NoFeatureLevel:
        raise
    except Exception as error:
        raise NoFeatureLevel(f"the network cannot be run in two parts: {type(error).__name__}: {error}") from error
    if again.shape != logits.shape:
        raise NoFeatureLevel(f"the head gives {list(again.shape)} where the network gives {list(logits.shape)}")
    difference = (again - logits).abs().max().item()
    # Written so that a NaN is a failure.
    if not difference <= CUT_TOLERANCE * logits.abs().max().item():
        raise NoFeatureLevel(
            f"head(features(x)) differs from the network's own logits by {difference:.2g} on a random batch"
        )
    return features


# Exactly these: what is derived from them may compute with its weights before it casts them (weight standardisation).
_ROUNDED_ONCE = (nn.Conv2d, nn.Linear, timm.layers.Conv2dSame)

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


def _is_linear(net: nn.Module, head: Callable[[Tensor], Tensor], features: Tensor) -> bool:
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
        if not (ends.mean(0) - middle[0]).abs().max() <= CUT_TOLERANCE * ends.abs().max():
            return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# The classifier


class Classifier:
    """A network in evaluation mode, without gradients, that says how it is fed and where its views can be averaged.

    ``feature_dim``, and ``features`` in ``outputs``, are None where the network has no feature level
    (``has_feature_level`` False, ``feature_absent_reason`` says why). ``head_is_linear``: averaging features and
    averaging logits are the same thing; False where there is no feature level or where it could not be shown.
    ``weights`` is "pretrained", "random", "demo" or the checkpoint's path. ``notes`` belong into the record.

    Raises ValueError when the network does not take ``spec.K`` or gives no [n, classes].
    """

    def __init__(
        self,
        net: nn.Module,
        spec: InputSpec,
        *,
        name: str,
        weights: str,
        cut: Callable[[nn.Module], Cut] = _timm_cut,
        member: families.Member | None = None,
        notes: list[str] | None = None,
        crop_pct: float | None = None,
    ) -> None:
        self.crop_pct = crop_pct
        self.net = net.eval().requires_grad_(False)
        self.spec = spec
        self.name = name
        self.weights = weights
        self.member = member  # the paper's row, when these are the paper's weights
        self.notes = list(notes or [])
        self.normalize = Normalize(spec)
        self.param_count = sum(parameter.numel() for parameter in net.parameters())
        self.weight_hash = weight_hash(net)
        self.feature_dim: int | None = None
        self.feature_absent_reason: str | None = None
        self.head_is_linear = False
        self.folded = False
        self._cut: Cut | None = None
        with torch.inference_mode():
            x, logits = _probe(net, spec.K)
            if logits.ndim != 2:
                raise ValueError(
                    f"{name} gives an output of shape {list(logits.shape)}, not [n, classes]: not a classifier"
                )
            self.num_classes = logits.shape[1]
            try:
                candidate = cut(net)
                features = _verified(candidate, x, logits)
            except NoFeatureLevel as absent:
                self.feature_absent_reason = str(absent)
            else:
                self._cut = candidate
                self.feature_dim = features.shape[1]
                self.head_is_linear = _is_linear(net, candidate.head, features)

    @property
    def has_feature_level(self) -> bool:
        return self._cut is not None

    @property
    def is_demo(self) -> bool:
        return self.weights == "demo"

    def place(
        self, device: torch.device | str, *, channels_last: bool = False, dtype: torch.dtype = torch.float32
    ) -> Classifier:
        """Move to ``device``. ``dtype`` is what ``prepare`` hands over (autocast's type).

        Autocast rounds the weights of each convolution and linear layer to that type at every forward (it remembers
        them only where gradients are wanted). They are rounded here once, to the same bits; other layers keep float32.
        """
        self.net.to(device)
        if dtype != torch.float32:
            for module in self.net.modules():
                if type(module) in _ROUNDED_ONCE:
                    module.to(dtype)
        self.net.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)  # type: ignore[call-overload]
        self.normalize = Normalize(self.spec, dtype=dtype, channels_last=channels_last).to(device)
        return self

    def fold(self) -> None:
        """Compute once what inference computes anew at every forward (``models.folding``); ``notes`` say what, and
        ``folded`` whether there was anything.

        ``weight_hash`` stays that of the weights as they were loaded.
        """
        from models import folding

        with torch.inference_mode():
            x, _ = _probe(self.net, self.spec.K)
        try:
            done = folding.fold(self.net, x.clone())
        except ValueError as error:
            self.notes.append(str(error))
        else:
            self.folded = bool(done.batch_norms or done.standardised)
            self.notes.append(done.words())

    def prepare(self, crops: Tensor, out: Tensor | None = None) -> Tensor:
        """uint8 [n, K, K, 3] -> normalised [n, 3, K, K]; the network's own first step, on its device.

        ``out``: see ``Normalize``.
        """
        return self.normalize(crops, out)

    def spec_at(self, K: int) -> InputSpec:
        """Another crop size, as ``--img-size`` would set it. Raises ValueError for a network that takes no other."""
        if K == self.spec.K:
            return self.spec
        try:
            with torch.inference_mode():
                _probe(self.net, K)
        except ValueError as error:
            raise ValueError(f"{self.name}: a policy asks for crops @{K}, and {error}") from error
        return _spec_at(self.spec, K, self.crop_pct)

    def features(self, x: Tensor) -> Tensor | None:
        """[n, 3, K, K] -> [n, f], or None where there is no feature level."""
        return None if self._cut is None else self._cut.trunk(x)

    def head(self, features: Tensor) -> Tensor:
        """[n, f] -> [n, classes]. Raises ValueError where there is no feature level."""
        if self._cut is None:
            raise ValueError(f"{self.name} has no feature level: {self.feature_absent_reason}")
        return self._cut.head(features)

    def outputs(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """[n, 3, K, K] -> (features [n, f] or None, logits [n, classes]) from one run of the trunk."""
        if self._cut is None:
            return None, self.net(x)
        features = self._cut.trunk(x)
        return features, self._cut.head(features)

    def logits(self, x: Tensor) -> Tensor:
        """[n, 3, K, K] -> [n, classes]."""
        return self.outputs(x)[1]


def weight_hash(net: nn.Module) -> str:
    """First 16 hexadecimal digits of SHA-256 over the state dict: name, type, shape, bytes; in order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# What the two libraries ship


@dataclass(frozen=True)
class Shipped:
    """One model as its library describes it, before the paper's row and the user's flags are applied."""

    library: Library
    name: str  # with its tag
    config: Any  # timm's PretrainedCfg, torchvision's Weights entry
    spec: InputSpec
    crop_pct: float | None  # the ratio that S comes from; None: take it from spec
    num_classes: int
    notes: list[str] = field(default_factory=list)


class Library(Protocol):
    """What ``load`` needs of a library of networks."""

    def cut(self, net: nn.Module) -> Cut: ...

    def describe(self, model: str) -> Shipped: ...

    def build(self, shipped: Shipped, kwargs: dict[str, Any], pretrained: bool) -> nn.Module: ...

    def head_weight(self, shipped: Shipped, state: dict[str, Tensor]) -> Tensor | None:
        """The tensor of a state dict whose first axis is the classes; None where there is none."""
        ...


# timm names interpolations that the pipelines do not have: what is used in place of them is noted in the record.
_SUBSTITUTES = {
    "random": "bicubic",
    "lanczos": "bicubic",
    "nearest": "bilinear",
    "box": "bilinear",
    "hamming": "bilinear",
}


class TimmLibrary:
    def cut(self, net: nn.Module) -> Cut:
        return _timm_cut(net)

    def describe(self, model: str) -> Shipped:
        arch, _, tag = model.partition(".")
        if not timm.is_model(arch):
            near = difflib.get_close_matches(arch, timm.list_models(), n=5) or ["none alike"]
            raise ValueError(
                f"model {model!r} is unknown to timm {timm.__version__}; names like it: {', '.join(near)}; others are "
                f"torchvision:NAME and FAMILY:VARIANT such as resnet:18 (families: {', '.join(families.FAMILIES)})"
            )
        try:
            cfg = timm.get_pretrained_cfg(model)
        except RuntimeError as error:
            known = ", ".join(timm.list_pretrained(f"{arch}.*")) or "none"
            raise ValueError(f"timm has no weights {tag!r} for {arch}; known: {known}") from error
        assert cfg is not None  # the name is registered
        channels, height, width = cfg.test_input_size or cfg.input_size
        if channels != 3 or height != width:
            raise ValueError(
                f"model {model!r} takes {channels} x {height} x {width}; only square RGB crops are supported"
            )
        notes = []
        name = model
        if not tag and cfg.tag:
            name = f"{arch}.{cfg.tag}"
            notes.append(f"the bare name {arch} means {name} in timm {timm.__version__}")
        interpolation = cfg.interpolation
        if interpolation not in INTERPOLATIONS:
            if interpolation not in _SUBSTITUTES:
                raise ValueError(
                    f"timm resizes for {name} with {interpolation!r}, which is unknown: give --interpolation"
                )
            interpolation = _SUBSTITUTES[interpolation]
            notes.append(f"timm resizes with {cfg.interpolation}; {interpolation} is used")
        if cfg.crop_mode != "center":
            notes.append(f"timm's configuration says crop_mode={cfg.crop_mode}; the aspect ratio is kept (center)")
        crop_pct = (cfg.test_crop_pct or cfg.crop_pct) if cfg.test_input_size else cfg.crop_pct
        spec = InputSpec(
            math.floor(width / crop_pct), width, interpolation, "center", _triple(cfg.mean), _triple(cfg.std)
        )
        return Shipped(self, name, cfg, spec, crop_pct, cfg.num_classes, notes)

    def build(self, shipped: Shipped, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
        if not pretrained:
            return timm.create_model(shipped.name, pretrained=False, **kwargs)
        cfg = shipped.config
        if not cfg.has_weights:
            raise WeightsError(f"timm has no pretrained weights for {shipped.name}")
        # custom_load "hf": a few configurations whose file only timm's own loader understands.
        if cfg.hf_hub_id and cfg.custom_load != "hf":
            overlay = {"file": _hub_file(cfg, shipped.name), "custom_load": False}
            return timm.create_model(shipped.name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)
        _require_reachable(cfg.url, shipped.name)
        try:
            return timm.create_model(shipped.name, pretrained=True, **kwargs)
        except OSError as error:
            raise _unreachable(shipped.name, str(error)) from error

    def head_weight(self, shipped: Shipped, state: dict[str, Tensor]) -> Tensor | None:
        names = shipped.config.classifier
        return state.get(f"{names if isinstance(names, str) else (names or ('head',))[0]}.weight")


class TorchvisionLibrary:
    prefix = "torchvision:"

    def cut(self, net: nn.Module) -> Cut:
        return _torchvision_cut(net)

    def describe(self, model: str) -> Shipped:
        arch, _, weights_name = model.removeprefix(self.prefix).partition(".")
        known = torchvision.models.list_models(module=torchvision.models)
        if arch not in known:
            near = difflib.get_close_matches(arch, known, n=5) or known
            raise ValueError(
                f"model {model!r}: torchvision has no classifier {arch!r}; names like it: {', '.join(near)}"
            )
        choices = {entry.name: entry for entry in torchvision.models.get_model_weights(arch)}
        notes = []
        if not weights_name:
            # Not DEFAULT, which moves: the first weights are those that papers mean.
            weights_name = "IMAGENET1K_V1" if "IMAGENET1K_V1" in choices else next(iter(choices))
            if len(choices) > 1:
                notes.append(
                    f"{model} means {weights_name}; torchvision also has {', '.join(set(choices) - {weights_name})}"
                )
        if weights_name not in choices:
            raise ValueError(f"torchvision has no weights {weights_name!r} for {arch}; known: {', '.join(choices)}")
        entry = choices[weights_name]
        transforms = entry.transforms()
        S, K = transforms.resize_size[0], transforms.crop_size[0]
        spec = InputSpec(
            S, K, transforms.interpolation.value, "center", _triple(transforms.mean), _triple(transforms.std)
        )
        classes = len(entry.meta["categories"])
        return Shipped(self, f"{self.prefix}{arch}.{weights_name}", entry, spec, None, classes, notes)

    def build(self, shipped: Shipped, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
        arch = shipped.name.removeprefix(self.prefix).partition(".")[0]
        if not pretrained:
            return torchvision.models.get_model(arch, weights=None, **kwargs)
        url = shipped.config.url
        if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file():
            _require_reachable(url, shipped.name)
        kwargs = {key: value for key, value in kwargs.items() if key != "num_classes"}  # torchvision sets it
        try:
            return torchvision.models.get_model(arch, weights=shipped.config, **kwargs)
        except OSError as error:
            raise _unreachable(shipped.name, str(error)) from error

    def head_weight(self, shipped: Shipped, state: dict[str, Tensor]) -> Tensor | None:
        # By name: some of its networks cannot be built without memory (on "meta"), to be asked.
        layers = [
            name.split(".")[:-1] for name, tensor in state.items() if name.endswith(".weight") and tensor.ndim > 1
        ]
        heads = [layer for layer in layers if layer[0] in _TORCHVISION_HEADS]
        if not heads:
            return None
        last = max(heads, key=lambda layer: [int(part) if part.isdigit() else -1 for part in layer])
        return state[".".join([*last, "weight"])]


_TORCHVISION_HEADS = {"fc", "classifier", "head", "heads"}


def _describe(model: str) -> Shipped:
    library = TorchvisionLibrary() if model.startswith(TorchvisionLibrary.prefix) else TimmLibrary()
    return library.describe(model)


def _triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _hub_file(cfg: Any, model: str) -> str:
    """The weights' file in the hub's cache, downloaded when it is not there.

    Done here, not by timm, for two reasons: the hub's client asks the network first even when the cache has everything,
    and its errors then mean the download and nothing else. Raises WeightsError.
    """
    import huggingface_hub

    repository, _, revision = cfg.hf_hub_id.partition("@")
    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    for name in names:
        cached = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision or None)
        if isinstance(cached, str):
            return cached
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        raise _unreachable(model, "HF_HUB_OFFLINE is set and they are not in its cache")
    _require_reachable(huggingface_hub.constants.ENDPOINT, model)
    for name in names:
        try:
            return huggingface_hub.hf_hub_download(repository, name, revision=revision or None)
        except huggingface_hub.errors.LocalEntryNotFoundError as error:  # an EntryNotFoundError, but means "no answer"
            raise _unreachable(model, str(error)) from error
        except huggingface_hub.errors.EntryNotFoundError:
            continue
        except Exception as error:  # whichever HTTP library the client uses has errors of its own
            raise _unreachable(model, f"{type(error).__name__}: {error}") from error
    raise WeightsError(f"the hub's repository {repository} has none of {', '.join(names)}: give --checkpoint FILE")


def _require_reachable(url: str, model: str) -> None:
    """Raises WeightsError within seconds when nothing answers at ``url``. Any answer will do, a refusal too."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=REACHABLE_SECONDS).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        # The hub's client brings its own certificates: a certificate that this probe does not know decides nothing.
        if isinstance(getattr(error, "reason", error), ssl.SSLError):
            return
        raise _unreachable(model, f"{url}: {error}") from error


def _unreachable(model: str, reason: str) -> WeightsError:
    return WeightsError(
        f"the pretrained weights of {model} cannot be downloaded ({reason}); give a file with --checkpoint FILE, or "
        "measure speed only with --weights random"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


# In order of preference: timm and torchvision both save the averaged weights beside the last ones.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_NOT_WEIGHTS = ("num_batches_tracked", "n_averaged")  # counters that evaluation does not read


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict without wrappers and prefixes, and notes on what was chosen.

    Takes safetensors and ``torch.save`` files; the latter without running any code from them (``weights_only=True``).
    Raises WeightsError when there is no file, when it is refused, or when it holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"--checkpoint {path}: no such file")
    notes = []
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    wrappers = [key for key in _WRAPPERS if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)]
    if wrappers:
        content = content[wrappers[0]]
        if len(wrappers) > 1:
            notes.append(f"of {', '.join(wrappers)} in the checkpoint, {wrappers[0]} is used")
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        held = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"--checkpoint {path} holds no state dict (it holds: {held or 'nothing'}): save model.state_dict(), or a "
            f"dict with one under {' or '.join(_WRAPPERS)}"
        )
    return {_without_prefixes(str(name)): tensor for name, tensor in content.items()}, notes


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"--checkpoint {path} is no readable safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        # timm and torchvision save the training script's parsed arguments beside the weights; they run no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first_line = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"--checkpoint {path} holds more than tensors and is refused, because reading it could run code "
            f"({first_line}); save model.state_dict() alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"--checkpoint {path} cannot be read: {error}") from error


def _without_prefixes(name: str) -> str:
    while stripped := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(stripped)
    return name


def _load_weights(net: nn.Module, state: dict[str, Tensor], path: Path, model: str) -> None:
    """Copy every tensor. Raises WeightsError that names some of the missing, unexpected or misshapen ones."""
    own = net.state_dict()
    state = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(_NOT_WEIGHTS)}
    missing = [name for name in own if name not in state and not name.endswith(_NOT_WEIGHTS)]
    unexpected = [name for name in state if name not in own]
    misshapen = [
        f"{name} {list(tensor.shape)} for {list(own[name].shape)}"
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    text = "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names)
    if text:
        raise WeightsError(
            f"--checkpoint {path} does not fit {model} ({text}): name the model, --model-kwargs and --num-classes that "
            "it was saved from"
        )
    net.load_state_dict(state, strict=False)


# ---------------------------------------------------------------------------------------------------------------------
# load


def load(
    model: str,
    *,
    weights: str = "pretrained",
    checkpoint: Path | None = None,
    num_classes: int | None = None,
    model_kwargs: dict[str, Any] | None = None,
    img_size: int | None = None,
    crop_pct: float | None = None,
    crop_mode: str | None = None,
    interpolation: str | None = None,
    seed: int = 0,
) -> Classifier:
    """Build a network on the CPU, with its weights.

    ``model`` is ``FAMILY:VARIANT`` (``resnet:18``), a timm name, ``torchvision:NAME`` or ``torchvision:NAME.WEIGHTS``;
    or, with ``weights="demo"``, a family or ``FAMILY:demo``. Its InputSpec is the paper's row where there is one, else
    what its library ships at test size; the other arguments are timm's flags of those names and win over both.
    ``img_size`` alone keeps the ratio K/S. A ``checkpoint`` takes the place of pretrained weights; without
    ``num_classes`` it decides their number.

    Raises ValueError for an unknown name or an argument that does not fit, WeightsError for weights that cannot be had
    or do not fit, FileNotFoundError where the demo files are missing. The global random state is left as it was.
    """
    _check_arguments(model, weights, checkpoint, num_classes, img_size, crop_pct, crop_mode, interpolation)
    member, demo = families.find(model), _demo_of(model, weights, checkpoint)
    shipped = _describe(demo.model_id if demo else member.model_id if member else model)
    kwargs = {**(demo.model_kwargs if demo else {}), **(model_kwargs or {})}
    name, base, notes = shipped.name, shipped, list(shipped.notes)
    member = member or families.find(shipped.name)
    if demo:
        member = None
        name, base = demo.key, replace(shipped, spec=demo.spec, crop_pct=None, num_classes=demo.num_classes)
    elif member:
        base = replace(shipped, spec=member.spec, crop_pct=None)
    spec = _with_overrides(base, img_size, crop_pct, crop_mode, interpolation)
    if spec.crop_mode == "squash":
        notes = [note for note in notes if "crop_mode" not in note] + [
            "the aspect ratio is not kept (--crop-mode squash)"
        ]

    file = demo.checkpoint if demo and weights == "demo" else checkpoint
    state, file_notes = read_checkpoint(file) if file else (None, [])
    notes += file_notes
    pretrained = weights == "pretrained" and file is None
    classes = _class_count(base, num_classes, state, file, pretrained)
    kwargs = {**_size_arguments(shipped, spec), "num_classes": classes, **kwargs}
    # Kept apart from the caller's random numbers, and on the CPU: torch.manual_seed would reseed every device.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        net = _build(shipped, kwargs, pretrained)
    if state is not None and file is not None:
        _load_weights(net, state, file, name)
    if weights == "random":
        notes.append("random weights: speed only, accuracy means nothing")
    return Classifier(
        net,
        spec,
        name=name,
        weights=str(checkpoint) if checkpoint else weights,
        cut=shipped.library.cut,
        member=member if pretrained else None,
        notes=notes,
        crop_pct=crop_pct or base.crop_pct,
    )


def _check_arguments(
    model: str,
    weights: str,
    checkpoint: Path | None,
    num_classes: int | None,
    img_size: int | None,
    crop_pct: float | None,
    crop_mode: str | None,
    interpolation: str | None,
) -> None:
    if weights not in WEIGHTS:
        raise ValueError(
            f"--weights {weights!r} is not one of {', '.join(WEIGHTS)}; a file is given with --checkpoint FILE"
        )
    if checkpoint and weights != "pretrained":
        raise ValueError(f"--checkpoint {checkpoint} and --weights {weights} contradict each other: give one of them")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"--num-classes {num_classes} must be 1 or more")
    if img_size is not None and img_size < 1:
        raise ValueError(f"--img-size {img_size} must be 1 or more pixels")
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f"--crop-pct {crop_pct} must lie above 0 and not above 1: it is K/S")
    if crop_mode == "border":
        raise ValueError(
            "--crop-mode border is not supported: it fits the long side and pads, so random windows would hold it; "
            "use center (the default) or squash"
        )
    if crop_mode not in (None, "center", "squash"):
        raise ValueError(f"--crop-mode {crop_mode!r} is not one of center, squash")
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"--interpolation {interpolation!r} is not one that every backend has: use {' or '.join(INTERPOLATIONS)}"
        )
    if model in families.FAMILIES and weights != "demo":
        raise ValueError(
            f"{model!r} is a family: name a member such as {families.smallest(model).key}, or use --family {model}"
        )


def _demo_of(model: str, weights: str, checkpoint: Path | None) -> families.Demo | None:
    named = model.endswith(":demo")
    if weights != "demo" and not named:
        return None
    family = model.removesuffix(":demo")
    if family not in families.FAMILIES:
        raise ValueError(
            f"{model!r} is no demo network: those are {', '.join(f'{name}:demo' for name in families.FAMILIES)}; "
            "name one of them, or use --weights pretrained or --weights random"
        )
    if weights == "pretrained" and checkpoint is None:
        raise ValueError(f"{model!r} has no pretrained weights: use --weights demo, or --weights random (speed only)")
    return families.demo(family)


def _with_overrides(
    base: Shipped, img_size: int | None, crop_pct: float | None, crop_mode: str | None, interpolation: str | None
) -> InputSpec:
    spec = replace(
        base.spec,
        crop_mode=crop_mode or base.spec.crop_mode,
        interpolation=interpolation or base.spec.interpolation,
    )
    K = img_size or spec.K
    if crop_pct is None and K == spec.K:
        return spec
    return _spec_at(spec, K, crop_pct or base.crop_pct)


def _spec_at(spec: InputSpec, K: int, crop_pct: float | None) -> InputSpec:
    """``S = floor(K / crop_pct)``, as timm has it; without a ratio that of the spec's own sizes."""
    return spec.at(K) if crop_pct is None else replace(spec, S=math.floor(K / crop_pct), K=K)


def _class_count(
    base: Shipped,
    num_classes: int | None,
    state: dict[str, Tensor] | None,
    file: Path | None,
    pretrained: bool,
) -> int:
    """Raises ValueError or WeightsError where the number asked for is not the number that the weights have."""
    if state is not None:
        head = base.library.head_weight(base, state)
        held = base.num_classes if head is None else head.shape[0]
        if num_classes not in (None, held):
            raise WeightsError(f"--checkpoint {file} has {held} classes, not {num_classes}: leave --num-classes out")
        return held
    if pretrained and num_classes not in (None, base.num_classes):
        raise ValueError(
            f"the pretrained weights of {base.name} have {base.num_classes} classes; with --num-classes {num_classes} "
            "the head would be untrained: give --checkpoint FILE, or --weights random (speed only)"
        )
    classes = num_classes or base.num_classes
    if classes < 1:
        raise ValueError(
            f"{base.name} is shipped without a classifier: give --num-classes with --checkpoint or --weights random"
        )
    return classes


def _size_arguments(shipped: Shipped, spec: InputSpec) -> dict[str, Any]:
    """timm's networks of fixed input size (most transformers) are built for another size by ``img_size``."""
    fixed = getattr(shipped.config, "fixed_input_size", False)
    return {"img_size": spec.K} if fixed and shipped.config.input_size[-1] != spec.K else {}


def _build(shipped: Shipped, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
    try:
        return shipped.library.build(shipped, kwargs, pretrained)
    except TypeError as error:
        raise ValueError(f"--model-kwargs {kwargs} do not fit {shipped.name}: {error}") from error
