"""Where memory or file descriptors run out, no network and no file is blamed: the fault comes through as it is.

Each of these places takes any other error as a property of the network or the file.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from models.checkpoints import classes_in_arrays, read_checkpoint, read_class_names
from models.costs import crop_cost
from models.fixres.finetune import read_state
from models.fixres.tuning_split import split_at_module
from models.splitting import Split, probe, verified_features
from pipelines.schemas import read_npz, read_text

FAULTS = [
    RuntimeError("could not create a primitive"),
    MemoryError("std::bad_alloc"),
    OSError(errno.EMFILE, "Too many open files"),
]

IMAGE = torch.zeros(1, 3, 8, 8)


class Failing(nn.Module):
    """A network, or a part of one, that meets the fault."""

    def __init__(self, fault: Exception) -> None:
        super().__init__()
        self.fault = fault
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        raise self.fault


OF_NETWORKS: dict[str, Callable[[Failing], Any]] = {
    "the input size": lambda net: probe(net, 32),
    "the feature level": lambda net: verified_features(
        Split(net, nn.Identity()), torch.zeros(1, 3, 8, 8), torch.zeros(1, 4)
    ),
    "multiply-adds": lambda net: crop_cost(net, 32),
    "two parts for fine-tuning": lambda net: split_at_module(net, "conv", IMAGE),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
@pytest.mark.parametrize("what", OF_NETWORKS)
def test_no_network_is_blamed(what: str, fault: Exception) -> None:
    with pytest.raises(type(fault)) as raised:
        OF_NETWORKS[what](Failing(fault))
    assert raised.value is fault


OF_FILES: dict[str, Callable[[Path], Any]] = {
    "weights.safetensors": read_checkpoint,
    "names.safetensors": read_class_names,
    "weights.pt": read_checkpoint,
    "weights.npz": classes_in_arrays,
    "state.safetensors": lambda path: read_state(path, held_out=False),
    "run.json": read_text,
    "pieces.npz": read_npz,
}
READERS = (
    "models.checkpoints.torch.load", "models.checkpoints.np.load", "safetensors.safe_open",
    "safetensors.torch.load_file", "models.fixres.finetune.safe_open", "pipelines.schemas.zipfile.ZipFile",
)  # fmt: skip


@pytest.mark.parametrize("name", OF_FILES)
def test_no_file_is_blamed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = OSError(errno.EMFILE, "Too many open files")

    def fails(*arguments: object, **keywords: object) -> None:
        raise fault

    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file({"a": torch.zeros(1)}, path)
    else:
        path.write_bytes(b"any bytes")
    for reader in READERS:
        monkeypatch.setattr(reader, fails)
    monkeypatch.setattr(Path, "read_text", fails)
    with pytest.raises(OSError, match="Too many open files") as raised:
        OF_FILES[name](path)
    assert raised.value is fault
