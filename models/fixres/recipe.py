"""How a network is fine-tuned: the figures of FixRes, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass

from models.fixres.tunes import FROM, TUNES
from pipelines.training_crops import AUGMENTATIONS

OPTS = ("sgd", "lbfgs")

PAPER_LR, PAPER_BATCH = 0.008, 512  # FixRes Section 5, ResNet-50. ResNeXt-101 32x48d: 0.0008 with 256
NEW_HEAD_BATCH = 32  # people's own sets are small


def scaled_lr(batch_size: int) -> float:
    """The paper's fine-tuning rate for another batch size, by its own rule of training, ``0.1 x B/256``."""
    return PAPER_LR * batch_size / PAPER_BATCH


def new_head_lr(batch_size: int) -> float:
    """The paper's rate for training from the start: ``0.1 x B/256``."""
    return 0.1 * batch_size / 256


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fine-tune. Defaults are FixRes Section 5 for ResNet-50, and these where it prints nothing:

    ``momentum``, ``weight_decay``: of the training recipe that it cites ([15], He et al. 2019, "Bag of tricks").
    ``jitter``: strength of brightness, contrast and saturation; timm's default, and fb.resnet.torch's.
    ``tune`` all: every parameter, all BatchNorms in training mode, as in ordinary training (Table 3's transfer).
    ``tune`` last-block: the last block before the pooling, and all behind it, likewise. ``from:NAME``: the module
    of this name in its place (FixRes Table 1: ``from:cell_9``, timm's name; Table 10: ``from:layer4``).
    ``opt`` lbfgs: not the paper's. The best classifier on features that do not change, in one step (linear_head.py).
    ``label_smoothing``: none in FixRes; FixEfficientNet 3.1 adds it and prints no value (0.1 is the usual one).

    Raises ValueError, naming the field, for what cannot be trained.
    """

    tune: str = "classifier+bn"  # one of TUNES, or from:NAME
    augmentation: str = "test"  # one of AUGMENTATIONS
    epochs: int = 60
    batch_size: int = PAPER_BATCH
    lr: float = PAPER_LR
    momentum: float = 0.9
    weight_decay: float | None = 1e-4  # None, only with lbfgs: 1 / images
    label_smoothing: float = 0.0
    jitter: float = 0.4
    min_area: float = 0.08  # of RandomResizedCrop's region, a share of the image: FixRes' sigma 0.28, squared
    val_split: float = 0.0  # share of each class that is held out and scored after every epoch
    patience: int | None = None  # epochs without a lower loss on the held-out images after which training stops
    opt: str = "sgd"  # one of OPTS
    seed: int = 0  # of the order of images and of random windows

    def __post_init__(self) -> None:
        if self.tune not in TUNES and not self.tune.startswith(FROM):
            raise ValueError(f"`tune` {self.tune!r} is not one of {', '.join(TUNES)}, {FROM}NAME")
        if self.opt not in OPTS:
            raise ValueError(f"`opt` {self.opt!r} is not one of {', '.join(OPTS)}")
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"`augmentation` {self.augmentation!r} is not one of {', '.join(AUGMENTATIONS)}")
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"`epochs` {self.epochs} and `batch_size` {self.batch_size} must be 1 or more")
        if self.tune != "classifier" and self.batch_size < 2:
            raise ValueError("`batch_size` 1: a BatchNorm in training mode needs 2 or more; `tune` classifier takes 1")
        if self.opt == "lbfgs":
            self._check_lbfgs()
        if not 0 <= self.val_split < 1:
            raise ValueError(f"`val_split` {self.val_split} is a share of the images: from 0 to below 1")
        if self.patience is not None and (self.patience < 1 or not self.val_split):
            raise ValueError(f"`patience` {self.patience} needs `val_split`, and must be 1 or more")
        decay = self.weight_decay if self.weight_decay is not None or self.opt != "lbfgs" else 0.0
        if decay is None or not (0 < self.lr < math.inf and 0 <= self.momentum < 1 and 0 <= decay < math.inf):
            raise ValueError(
                f"`lr` {self.lr} must be above 0, `momentum` {self.momentum} from 0 to below 1, "
                f"`weight_decay` {self.weight_decay} 0 or more"
            )
        if not (0 <= self.label_smoothing < 1 and 0 <= self.jitter < 1):
            raise ValueError(
                f"`label_smoothing` {self.label_smoothing} and `jitter` {self.jitter} must be from 0 to below 1"
            )
        if not 0 < self.min_area <= 1:
            raise ValueError(f"`min_area` {self.min_area} is a share of the image: above 0 and at most 1")

    def _check_lbfgs(self) -> None:
        if self.tune != "classifier" or AUGMENTATIONS[self.augmentation].new_each_epoch:
            raise ValueError(
                "`opt` lbfgs finds the best classifier on features that do not change: it needs `tune` classifier and "
                "`augmentation` test; use `opt` sgd"
            )
        if self.epochs != 1 or self.patience is not None:
            raise ValueError("`opt` lbfgs takes one step to the optimum: it has no `epochs` and no `patience`")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0: a tenth from the half on (the paper: every 30 of 60 epochs)."""
        return self.lr * 0.1 ** (2 * epoch // self.epochs)
