"""Images that fine-tuning is judged by and not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from pipelines.crops import uniforms
from pipelines.training_crops import TrainingCrops


def held_out(names: Sequence[str], labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool [images]: ``share`` of each class, to the nearest image, at least one where a class has two or more. Which
    ones depends on the seed and the names only. Labels int64 [images]."""
    keys = np.array([uniforms(seed, name, "validation", 1)[0, 0] for name in names])
    out = np.zeros(len(labels), dtype=bool)
    for number in np.unique(labels):
        rows = np.flatnonzero(labels == number)
        count = max(round(share * len(rows)), min(len(rows) - 1, 1))
        out[rows[np.argsort(keys[rows], kind="stable")[:count]]] = True
    return out


@dataclass(slots=True)
class HeldOut:
    """``rows``: bool [images]. ``crops``: their centre crops. ``best``: what was trained when the loss on them was
    lowest, after epoch ``best_epoch``."""

    rows: np.ndarray
    crops: TrainingCrops
    kept: list[tuple[np.ndarray, tuple[Tensor, ...]]] | None = None  # rows and activations, batch by batch
    best_epoch: int = -1
    best_loss: float = float("inf")
    best: dict[str, Tensor] = field(default_factory=dict)

    def note(self, epoch: int, loss: float, state: dict[str, Tensor]) -> None:
        """The loss after an epoch (from 0), and what was trained until then."""
        if loss < self.best_loss:
            self.best_epoch, self.best_loss = epoch, loss
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
