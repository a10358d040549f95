"""What the frozen part of a network gives for every image: computed once, used in every epoch and by other seeds."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from pipelines.batch import Failure


@dataclass(slots=True)
class KeptActivations:
    """Activations at the split, of all readable images, in host memory."""

    tensors: tuple[Tensor, ...]  # [images, ...] each
    readable: np.ndarray  # bool [images]
    failed: dict[int, Failure] = field(default_factory=dict)  # by row


class ActivationStore:
    """The activations that were kept last, and of what they are: images, crops, frozen weights, split."""

    def __init__(self) -> None:
        self._of: Hashable = None
        self._kept: KeptActivations | None = None

    def get(self, of: Hashable) -> KeptActivations | None:
        return self._kept if of == self._of else None

    def put(self, of: Hashable, kept: KeptActivations) -> None:
        self._of, self._kept = of, kept


def frozen_hash(net: nn.Module, tuned: Collection[str]) -> str:
    """SHA-256 of all tensors of the state dict but those that are ``tuned``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        if name not in tuned:
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
