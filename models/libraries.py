"""The libraries of networks, timm and torchvision: how each describes, builds and downloads a network."""

from __future__ import annotations

import difflib
import math
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import timm
import torch
import torchvision
from timm.models import PretrainedCfg
from timm.models._hub import load_model_config_from_path
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from models import families
from models.checkpoint_names import HEAD, is_efficientnet_pytorch
from models.checkpoints import UndecidedError, WeightsError, copied, is_counter, plain
from models.splitting import TIMM_SPLITS, Way, torchvision_split
from pipelines.data.faults import raise_if_of_machine
from pipelines.data.labels.classes import SYNSET_LISTS
from pipelines.inputspec import INTERPOLATIONS, InputSpec

REACHABLE_SECONDS = 5.0  # the hub's own client tries for most of a minute before it says that there is no network


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
    created_as: str = ""  # what timm's create_model is given, where that is not the name
    class_names: tuple[str, ...] | None = None  # of a model folder that says them

    @property
    def constructor(self) -> str:
        return self.created_as or self.name


class Library(Protocol):
    """What ``load`` needs of a library of networks."""

    split: tuple[Way, ...]  # the ways in which its networks are split, in order of preference

    def describe(self, model: str) -> Shipped: ...

    def build(self, shipped: Shipped, kwargs: dict[str, Any], pretrained: bool) -> nn.Module: ...

    def build_from(self, shipped: Shipped, kwargs: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        """As ``build`` with pretrained weights, which are ``state`` and not downloaded: the library's own construction
        and conversion. Raises whatever the library raises where they do not fit."""
        ...

    def build_from_arrays(self, shipped: Shipped, kwargs: dict[str, Any], file: Path) -> nn.Module:
        """With the weights of a NumPy file (.npz), as JAX's networks are published. Raises WeightsError."""
        ...

    def class_count(self, shipped: Shipped, state: dict[str, Tensor]) -> int | None:
        """How many classes the weights have, background classes that the library cuts off not counted; None where
        their last layer is not known."""
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
    split = TIMM_SPLITS

    def describe(self, model: str) -> Shipped:
        if model.startswith(MODEL_SOURCES):
            folder = _model_folder(model)
            theirs = _config_in(folder, model)
            found = _shipped(self, model, theirs, [])
            return replace(found, created_as=f"local-dir:{folder}", class_names=_class_names_of(theirs))
        arch, _, tag = model.partition(".")
        if not timm.is_model(arch):
            near = difflib.get_close_matches(arch, timm.list_models(), n=5) or ["none alike"]
            raise ValueError(
                f"model {model!r} is unknown to timm {timm.__version__}; names like it: {', '.join(near)}; others are "
                f"torchvision:NAME, local-dir:FOLDER, hf-hub:NAME and FAMILY:VARIANT such as resnet:18 (families: "
                f"{', '.join(families.FAMILIES)})"
            )
        try:
            cfg = timm.get_pretrained_cfg(model)
        except RuntimeError as error:
            known = ", ".join(timm.list_pretrained(f"{arch}.*")) or "none"
            raise ValueError(f"timm has no weights {tag!r} for {arch}; known: {known}") from error
        assert cfg is not None  # the name is registered
        notes = []
        name = model
        if not tag and cfg.tag:
            name = f"{arch}.{cfg.tag}"
            notes.append(f"the bare name {arch} means {name} in timm {timm.__version__}")
        return _shipped(self, name, cfg, notes)

    def build(self, shipped: Shipped, kwargs: dict[str, Any], pretrained: bool) -> nn.Module:
        if not pretrained:
            return timm.create_model(shipped.constructor, pretrained=False, **kwargs)
        if shipped.created_as:
            return self._from_folder(shipped, kwargs)
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
            raise_if_of_machine(error)
            raise _unreachable(shipped.name, str(error)) from error

    def build_from(self, shipped: Shipped, kwargs: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        overlay: dict[str, Any] = {"state_dict": copied(state), "source": "", "custom_load": False}
        overlay["num_classes"] = kwargs["num_classes"]  # or timm leaves the last layer random
        head = self._head_weight(shipped, state)
        if head is not None and head.shape[0] == kwargs["num_classes"]:
            overlay["label_offset"] = 0
        with complete_loads():
            return timm.create_model(shipped.constructor, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)

    def _from_folder(self, shipped: Shipped, kwargs: dict[str, Any]) -> nn.Module:
        if not shipped.name.startswith("local-dir:"):
            _from_hub(shipped.name.partition(":")[2], list(WEIGHTS), shipped.name)  # to where config.json lies
        try:
            with complete_loads():
                return timm.create_model(shipped.created_as, pretrained=True, **kwargs)
        except (RuntimeError, OSError) as error:
            raise_if_of_machine(error)
            raise WeightsError(f"the weights of {shipped.name} cannot be loaded: {plain(str(error))[:300]}") from error

    def build_from_arrays(self, shipped: Shipped, kwargs: dict[str, Any], file: Path) -> nn.Module:
        net: Any = timm.create_model(shipped.constructor, pretrained=False, **kwargs)
        if not hasattr(net, "load_pretrained"):
            raise WeightsError(
                f"`checkpoint` {file} is a NumPy file, which timm reads for networks of JAX (ViT, BiT) and not for "
                f"{shipped.name}: give .safetensors, .pt or .pth"
            )
        try:
            untouched = unchanged_by(net, lambda: net.load_pretrained(str(file)))
        except Exception as error:  # on what it does not know it raises nearly anything
            raise_if_of_machine(error)
            raise WeightsError(
                f"`checkpoint` {file} does not fit {shipped.name} ({type(error).__name__}: {plain(str(error))[:200]})"
            ) from error
        if untouched:
            raise WeightsError(
                f"`checkpoint` {file} does not fit {shipped.name} ({len(untouched)} weights are not in it: "
                f"{', '.join(untouched[:3])}): name the model and `num_classes` that it was saved from"
            )
        return net

    def class_count(self, shipped: Shipped, state: dict[str, Tensor]) -> int | None:
        head = self._head_weight(shipped, state)
        if head is None:
            return None
        offset = shipped.config.label_offset or 0
        return shipped.num_classes if head.shape[0] == shipped.num_classes + offset else head.shape[0]

    def _head_weight(self, shipped: Shipped, state: dict[str, Tensor]) -> Tensor | None:
        if is_efficientnet_pytorch(state):
            return state.get(HEAD)
        names = shipped.config.classifier
        first = names if isinstance(names, str) else (names or ("head",))[0]
        heads = (state.get(f"{name}.weight") for name in (first, *_TIMM_HEADS))
        return next((head for head in heads if head is not None and head.ndim > 1), None)


def _shipped(library: Library, name: str, cfg: Any, notes: list[str]) -> Shipped:
    """A network of timm by its configuration. Raises ValueError for one that takes no square RGB images."""
    channels, height, width = cfg.test_input_size or cfg.input_size
    if channels != 3 or height != width:
        raise ValueError(f"model {name!r} takes {channels} x {height} x {width}; only square RGB crops are supported")
    interpolation = cfg.interpolation
    if interpolation not in INTERPOLATIONS:
        if interpolation not in _SUBSTITUTES:
            raise ValueError(f"timm resizes for {name} with {interpolation!r}, which is unknown: give `interpolation`")
        interpolation = _SUBSTITUTES[interpolation]
        notes.append(f"timm resizes with {cfg.interpolation}; {interpolation} is used")
    if cfg.crop_mode != "center":
        notes.append(f"timm's configuration says crop_mode={cfg.crop_mode}; the aspect ratio is kept (center)")
    crop_pct = (cfg.test_crop_pct or cfg.crop_pct) if cfg.test_input_size else cfg.crop_pct
    spec = InputSpec(math.floor(width / crop_pct), width, interpolation, "center", triple(cfg.mean), triple(cfg.std))
    return Shipped(library, name, cfg, spec, crop_pct, cfg.num_classes, notes)


# Names that timm takes beside those of its own networks: a folder with config.json and weights, on disk or on the hub.
MODEL_SOURCES = ("local-dir:", "hf-hub:", "hf_hub:")
CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")


def _model_folder(model: str) -> Path:
    """Where the model's config.json lies: a folder on disk, or the hub's cache, to which it is downloaded."""
    source, _, place = model.partition(":")
    if source == "local-dir":
        return Path(place).expanduser().absolute()
    return Path(_from_hub(place, [CONFIG], model)).parent


def _config_in(folder: Path, model: str) -> PretrainedCfg:
    """timm's configuration of a model folder. Raises ValueError, naming it, where there is none."""
    try:
        fields, arch, _ = load_model_config_from_path(folder)
        cfg = PretrainedCfg(**fields)
    except FileNotFoundError as error:
        raise ValueError(f"model {model!r}: there is no {CONFIG} in {folder}: check the path") from error
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ValueError(
            f"model {model!r}: {folder / CONFIG} is not a configuration of timm's ({type(error).__name__}: {error}): "
            "give a folder that timm's save_for_hf wrote"
        ) from error
    if not timm.is_model(arch):
        raise ValueError(f"model {model!r}: {folder / CONFIG} names {arch!r}, which timm {timm.__version__} has not")
    return cfg


def _class_names_of(cfg: PretrainedCfg) -> tuple[str, ...] | None:
    """What a model folder calls its classes; not of ImageNet's networks, whose classes are known by their wnids."""
    names = cfg.label_names
    if not isinstance(names, list | tuple) or len(names) != cfg.num_classes or len(names) in SYNSET_LISTS:
        return None
    return tuple(map(str, names))


# The last layers of the layouts that timm converts, beside its own.
_TIMM_HEADS = ("head.fc", "head", "fc", "classifier", "head.l", "last_linear", "heads.head", "classif")


@torch.no_grad()
def unchanged_by(net: nn.Module, load: Callable[[], None]) -> list[str]:
    """Load, and name the parameters to which nothing was written: they are still random."""
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    load()
    same = {name: parameter for name, parameter in net.named_parameters() if torch.equal(parameter, before[name])}
    for parameter in same.values():  # perhaps the file's values are those: written again, they replace NaN
        parameter.fill_(math.nan)
    if same:
        load()
    return [name for name, parameter in same.items() if parameter.isnan().any()]


@contextmanager
def complete_loads() -> Iterator[None]:
    """Raises WeightsError where a library leaves out some of a network's weights: for a few networks timm lets a state
    dict be incomplete, and the rest stays random."""
    load = nn.Module.load_state_dict

    def strictly(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = load(module, *args, **kwargs)
        if missing := [name for name in result.missing_keys if not is_counter(name)]:
            raise WeightsError(f"{len(missing)} weights are missing: {', '.join(missing[:3])}")
        return result

    nn.Module.load_state_dict = strictly  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


@contextmanager
def instead_of_a_download(state: dict[str, Tensor]) -> Iterator[None]:
    """torchvision's weights are these: it has no other way to load a file as it loads its own."""
    download = WeightsEnum.get_state_dict
    WeightsEnum.get_state_dict = lambda *_, **__: copied(state)  # type: ignore[method-assign]
    try:
        yield
    finally:
        WeightsEnum.get_state_dict = download  # type: ignore[method-assign]


class TorchvisionLibrary:
    prefix = "torchvision:"

    split: tuple[Way, ...] = (torchvision_split,)

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
            S, K, transforms.interpolation.value, "center", triple(transforms.mean), triple(transforms.std)
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
            raise_if_of_machine(error)
            raise _unreachable(shipped.name, str(error)) from error

    def build_from(self, shipped: Shipped, kwargs: dict[str, Any], state: dict[str, Tensor]) -> nn.Module:
        arch = shipped.name.removeprefix(self.prefix).partition(".")[0]
        own = {key: value for key, value in kwargs.items() if key != "num_classes"}
        if kwargs["num_classes"] == shipped.num_classes:
            with instead_of_a_download(state):
                return torchvision.models.get_model(arch, weights=shipped.config, **own)
        if arch in _TRANSFORM_INPUT and "transform_input" not in own:
            raise UndecidedError(
                f"{arch} changes its input where it starts from published weights, and a file of "
                f"{kwargs['num_classes']} classes does not say whether it was trained so: give `model_kwargs` "
                "transform_input=True if it was fine-tuned from torchvision's weights, else transform_input=False"
            )
        net = torchvision.models.get_model(arch, weights=None, **kwargs)
        used = {name: tensor for name, tensor in state.items() if not name.startswith(_TRAINING_ONLY)}
        with complete_loads():
            net.load_state_dict(used, strict=False)
        if spare := sorted(used.keys() - net.state_dict().keys()):
            raise WeightsError(f"{len(spare)} weights are unexpected: {', '.join(spare[:3])}")
        return net

    def build_from_arrays(self, shipped: Shipped, kwargs: dict[str, Any], file: Path) -> nn.Module:
        raise WeightsError(f"`checkpoint` {file}: NumPy files are read for networks of timm, not for {shipped.name}")

    def class_count(self, shipped: Shipped, state: dict[str, Tensor]) -> int | None:
        head = self._head_weight(state)
        return None if head is None else head.shape[0]

    def _head_weight(self, state: dict[str, Tensor]) -> Tensor | None:
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
_TRANSFORM_INPUT = ("googlenet", "inception_v3")
_TRAINING_ONLY = ("aux1.", "aux2.", "AuxLogits.")  # heads that evaluation does not run


def describe(model: str) -> Shipped:
    library = TorchvisionLibrary() if model.startswith(TorchvisionLibrary.prefix) else TimmLibrary()
    return library.describe(model)


def triple(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _hub_file(cfg: Any, model: str) -> str:
    """The weights' file in the hub's cache, downloaded when it is not there.

    Done here, not by timm, for two reasons: the hub's client asks the network first even when the cache has everything,
    and its errors then mean the download and nothing else. Raises WeightsError.
    """
    names = [cfg.hf_hub_filename] if cfg.hf_hub_filename else list(WEIGHTS)
    return _from_hub(cfg.hf_hub_id, names, model)


def _from_hub(repository: str, names: list[str], model: str) -> str:
    """The first of these files that the repository (``NAME`` or ``NAME@REVISION``) has, in the hub's cache."""
    import huggingface_hub

    repository, _, revision = repository.partition("@")
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
            raise_if_of_machine(error)
            raise _unreachable(model, f"{type(error).__name__}: {error}") from error
    raise WeightsError(f"the hub's repository {repository} has none of {', '.join(names)}: give `checkpoint` FILE")


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
        f"the pretrained weights of {model} cannot be downloaded ({reason}); give a file with `checkpoint` FILE, or "
        "measure speed only with `weights` random"
    )
