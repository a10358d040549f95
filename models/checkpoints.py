"""Weights from files, read without running code from them."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class WeightsError(RuntimeError):
    """Weights cannot be had, cannot be read, or do not fit the network."""


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
        raise WeightsError(f"`checkpoint` {path}: no such file")
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
            f"`checkpoint` {path} holds no state dict (it holds: {held or 'nothing'}): save model.state_dict(), or a "
            f"dict with one under {' or '.join(_WRAPPERS)}"
        )
    return {_without_prefixes(str(name)): tensor for name, tensor in content.items()}, notes


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"`checkpoint` {path} is not a readable safetensors file: {error}") from error


def _read_pickle(path: Path) -> Any:
    try:
        # timm and torchvision save the training script's parsed arguments beside the weights; they run no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first_line = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"`checkpoint` {path} holds more than tensors and is refused, because reading it could run code "
            f"({first_line}); save model.state_dict() alone, best as safetensors"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(f"`checkpoint` {path} cannot be read: {error}") from error


def _without_prefixes(name: str) -> str:
    while stripped := next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(stripped)
    return name


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
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    text = "; ".join(f"{len(names)} {kind}: {', '.join(names[:3])}" for kind, names in problems.items() if names)
    if text:
        raise WeightsError(
            f"`checkpoint` {path} does not fit {model} ({text}): name the model, `model_kwargs` and `num_classes` that "
            "it was saved from"
        )
    net.load_state_dict(state, strict=False)
