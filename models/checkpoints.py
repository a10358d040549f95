"""Weights from files, read without running code from them.

A file may hold more than weights: an optimiser, the best accuracy, the last and the averaged network.
``read_checkpoint`` finds the state dict in it by its content, and ``variants`` gives the readings of its names, with a
prefix or without; which of them the network has is tried by ``models.loading``.
"""

from __future__ import annotations

import argparse
import codecs
import pathlib
import pickle
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipelines.data.faults import raise_if_of_machine
from pipelines.schemas import DamagedFile, as_type, parse_json


class WeightsError(RuntimeError):
    """Weights cannot be had, cannot be read, or do not fit the network."""


class UndecidedError(WeightsError):
    """The weights fit the network, but not in one way only: the user must say which is meant."""


# In order of preference: timm and torchvision both save the averaged weights beside the last ones.
_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_NOT_WEIGHTS = ("num_batches_tracked", "n_averaged")  # counters that evaluation does not read
_NOT_NETWORKS = re.compile("optim|sched|scaler|loop|callback|rng", re.IGNORECASE)  # parts of a training state
DEEPEST = 4  # wrappers within wrappers


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict without wrappers and the usual prefixes, and notes on what was chosen.

    Takes safetensors and ``torch.save`` files; the latter without running any code from them (``weights_only=True``).
    Raises WeightsError when there is no file, when it is refused, or when it holds no state dict or several.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"`checkpoint` {path}: no such file")
    content = _read_safetensors(path) if _is_safetensors(path) else _read_pickle(path)
    state, notes = _state_dict_in(content, path)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if nested := [name for name, tensor in tensors.items() if tensor.is_nested]:  # it has no shape
        raise WeightsError(f"`checkpoint` {path} holds nested tensors ({_some(nested)}): {PLAIN}")
    if others := [str(name) for name in state if str(name) not in tensors]:
        notes.append(f"beside its tensors the checkpoint has {_some(others)}, which are not weights")
    return _renamed(tensors, _without_prefixes, getattr(state, "_metadata", None)), notes


ARRAYS = (".npz", ".npy")  # NumPy's files, as JAX's networks are published


def classes_in_arrays(path: Path) -> int | None:
    """How many classes a NumPy file's last layer has; None where it has none that is known. Raises WeightsError."""
    if not path.is_file():
        raise WeightsError(f"`checkpoint` {path}: no such file")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            heads = [name for name in arrays.files if name.endswith(("head/bias", "head/conv2d/bias"))]
            return int(arrays[heads[0]].shape[-1]) if len(heads) == 1 else None
    except Exception as error:  # on damaged archives NumPy raises nearly anything
        raise_if_of_machine(error)
        raise WeightsError(f"`checkpoint` {path} is not a NumPy archive (.npz) that can be read: {error}") from error


CLASS_NAMES = "class_names"  # in the metadata of a safetensors file: a JSON list, in the order of the outputs


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """The class names that a fine-tuning kept with its weights; None where there are none."""
    from safetensors import SafetensorError, safe_open

    if not _is_safetensors(path):
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CLASS_NAMES)
    except (SafetensorError, OSError) as error:
        raise_if_of_machine(error)
        raise WeightsError(f"`checkpoint` {path} is not a readable safetensors file: {plain(str(error))}") from error
    where = f"`checkpoint` {path}: its {CLASS_NAMES}"
    try:
        names = as_type(parse_json(text, where), list[str], where) if text else None
    except DamagedFile as error:
        raise WeightsError(str(error)) from error
    return tuple(names) if names else None


# ------------------------------------------------------------------------------------------------------------ the file


def _is_safetensors(path: Path) -> bool:
    """By its suffix, or because it begins as one: the length of a JSON header, and the header."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise_if_of_machine(error)
        raise WeightsError(f"`checkpoint` {path} is not a readable safetensors file: {plain(str(error))}") from error


def _harmless() -> list[Any]:
    """What training scripts save beside the weights, and what runs no code when it is read: parsed arguments, paths,
    NumPy's numbers and arrays."""
    core = getattr(np, "_core", None) or np.core
    numpy_types = [type(np.dtype(kind)) for kind in "?bhilqBHILQefdgFDGSUO"]
    numpy_names = [(core.multiarray.scalar, f"numpy.{name}.multiarray.scalar") for name in ("core", "_core")]
    numpy_names += [
        (core.multiarray._reconstruct, f"numpy.{name}.multiarray._reconstruct") for name in ("core", "_core")
    ]
    paths = [getattr(pathlib, name) for name in ("PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath")]
    return [argparse.Namespace, codecs.encode, np.dtype, np.ndarray, *numpy_types, *numpy_names, *paths]


def _read_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"`checkpoint` {path} holds more than tensors and is refused, because reading it could run code "
            f"({_refused_object(error)}); save model.state_dict() alone, best as safetensors"
        ) from error
    except Exception as error:  # on damaged files torch raises nearly anything
        raise_if_of_machine(error)
        raise WeightsError(f"`checkpoint` {path} cannot be read: {plain(str(error))[:300]}") from error


def _refused_object(error: Exception) -> str:
    """The object that torch refused, by its name; what torch says is long and coloured."""
    text = plain(str(error))
    named = re.search(r"GLOBAL (\S+)|class (\S+)|code in (\S+)", text)
    name = next((group for group in named.groups() if group), "") if named else ""
    return f"it holds {name.strip('.,')}" if name else text[:200]


def plain(text: str) -> str:
    """Text on one line, without the signs that a terminal obeys."""
    without_colours = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    return " ".join("".join(sign if sign.isprintable() else " " for sign in without_colours).split())


# ------------------------------------------------------------------------------------------------------ the state dict


def _state_dict_in(content: Any, path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    """The state dict of a checkpoint, which is found by what it holds, and notes. Raises WeightsError."""
    found = dict(_state_dicts(content))
    if not found:
        held = _some([str(key) for key in content], 5) if isinstance(content, Mapping) else type(content).__name__
        raise WeightsError(
            f"`checkpoint` {path} holds no state dict (it holds: {held or 'nothing'}): save model.state_dict(), or a "
            f"dict with one under {' or '.join(_WRAPPERS)}"
        )
    if len(found) == 1:
        return next(iter(found.values())), []
    for wrapper in _WRAPPERS:
        ends = [place for place in found if place.split("/")[-1] == wrapper]
        if len(ends) == 1:
            return found[ends[0]], [f"of {', '.join(found)} in the checkpoint, {ends[0]} is used"]
    raise WeightsError(
        f"`checkpoint` {path} holds several state dicts ({', '.join(found)}), and which of them is meant is unclear: "
        "save one of them alone, or under the name state_dict"
    )


def _state_dicts(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """(where, state dict) of all that look like one: names with tensors, of which some have axes."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    tensors = [value for value in content.values() if isinstance(value, Tensor)]
    if any(tensor.is_nested or tensor.ndim for tensor in tensors) and all(isinstance(name, str) for name in content):
        yield place, content
        return
    for name, value in content.items():
        if not _NOT_NETWORKS.search(str(name)):
            yield from _state_dicts(value, f"{place}/{name}".lstrip("/"), depth + 1)


def _without_prefixes(name: str) -> str:
    while stripped := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(stripped)
    return name


def _renamed(state: Mapping[str, Tensor], rename: Any, metadata: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """With other names; the versions of its modules, which PyTorch keeps beside a state dict, go with them."""
    renamed = OrderedDict((rename(name), tensor) for name, tensor in state.items())
    if metadata is not None:
        names = {rename(f"{name}."): version for name, version in metadata.items()}
        renamed._metadata = OrderedDict((name.rstrip("."), version) for name, version in names.items())  # type: ignore[attr-defined]
    return renamed


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in another dict, which a library may change."""
    return _renamed(state, str, getattr(state, "_metadata", None))


def variants(state: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Readings of a state dict, the likeliest first, with notes: as it is; and without the first part of its names
    (``model.``, ``backbone.``), where most of them share it, or where it is one under which networks are saved
    (``model_ema.`` beside ``model.``). A training program's own tensors beside the network, such as a loss's, are then
    left out."""
    yield state, []
    for _ in range(DEEPEST):
        counts = Counter(name.split(".")[0] for name in state)
        first, count = next(((name, counts[name]) for name in _WRAPPERS if name in counts), counts.most_common(1)[0])
        inside = {name: tensor for name, tensor in state.items() if name.startswith(f"{first}.")}
        if (2 * count <= len(state) and first not in _WRAPPERS) or not inside:
            return
        notes = [f"the names of the checkpoint begin with {first}., which is left out"]
        if others := [name for name in state if name not in inside]:
            notes.append(f"the checkpoint's tensors outside {first}. are not used: {_some(others)}")
        metadata = getattr(state, "_metadata", None)
        if metadata is not None:
            metadata = {name: version for name, version in metadata.items() if f"{name}.".startswith(f"{first}.")}
        state = _renamed(inside, lambda name, before=f"{first}.": name.removeprefix(before), metadata)
        yield state, notes


def refuse_several(state: Mapping[str, Tensor], path: Path) -> None:
    """Raises WeightsError for a state dict that holds the same network several times (``student.``, ``teacher.``)."""
    inside: dict[str, set[str]] = {}
    for name in state:
        first, _, rest = name.partition(".")
        inside.setdefault(first, set()).add(rest)
    if len(inside) > 1 and len({frozenset(names) for names in inside.values()}) == 1:
        first_parts = ", ".join(f"{one}." for one in inside)
        raise WeightsError(
            f"`checkpoint` {path} holds several networks, whose names begin with {first_parts} and which of them is "
            "meant is unclear: save one of them alone"
        )


def _some(names: list[str], shown: int = 3) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


# ------------------------------------------------------------------------------------------------------------- loading

PLAIN = "save floating-point weights in memory (quantized, complex and sparse ones are not cast)"
_NUMBERS = ("weight", "bias", "running_mean", "running_var")  # last parts of names of what a network computes with


def strange_kind(name: str, tensor: Tensor) -> str | None:
    """What a tensor is, if it cannot be copied into a network as it is, or would be cast to other numbers."""
    if tensor.is_meta:
        return "without data"
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized or tensor.is_complex():
        return str(tensor.dtype).removeprefix("torch.")
    if name.rpartition(".")[2] in _NUMBERS and not tensor.is_floating_point():
        return str(tensor.dtype).removeprefix("torch.")
    return None


def load_weights(net: nn.Module, state: dict[str, Tensor], path: Path, model: str) -> None:
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
    casts = [
        f"{name} ({strange_kind(name, tensor) or str(tensor.dtype).removeprefix('torch.')} for "
        f"{str(own[name].dtype).removeprefix('torch.')})"
        for name, tensor in state.items()
        if name in own
        and (strange_kind(name, tensor) or (own[name].is_floating_point() and not tensor.is_floating_point()))
    ]
    if casts:
        raise WeightsError(
            f"`checkpoint` {path} holds numbers of another kind than {model} computes with: {_some(casts)}; {PLAIN}"
        )
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    text = "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names)
    if text:
        raise WeightsError(
            f"`checkpoint` {path} does not fit {model} ({text}): name the model, `model_kwargs` and `num_classes` that "
            "it was saved from"
        )
    loadable = copied(state)
    loadable._metadata = own._metadata  # type: ignore[attr-defined] # some networks ask for their version
    net.load_state_dict(loadable, strict=False)


def is_counter(name: str) -> bool:
    """Whether a tensor of a state dict is one that evaluation does not read."""
    return name.endswith(_NOT_WEIGHTS)


def shared_names(net: nn.Module, state: dict[str, Tensor]) -> int:
    """How many of a network's tensors a state dict names."""
    return len(net.state_dict().keys() & state.keys())
