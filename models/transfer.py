"""From NumPy to the network's device without making the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Sequence[int], device: torch.device) -> Tensor:
    """The same numbers on ``device``. From pinned memory a copy to a GPU is queued; from ordinary memory, as with
    ``torch.tensor(..., device=)`` or a list as index, the host would wait until the GPU has done all it was given."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cpu":
        return tensor
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
