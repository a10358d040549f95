"""Train the demo checkpoints: one small network a family, from scratch, on the demo data's ``train`` split.

    python models/demo/train.py                           # all families; wall_time_s in each .json says how long
    python models/demo/train.py --models resnet nfnet --threads 1

Writes ``<family>.safetensors`` (float16: half the size; the scores below are of the rounded weights) and
``<family>.json`` (how to build and feed the network, how it was trained, the log) beside this file.

Recipe: RandomResizedCrop with area 0.25..1 (the usual 0.08 is made for networks of a hundred times the size) and aspect
3/4..4/3, mirrored half of the time, 64 pixels wide in the first four tenths of the epochs (half the cost), then K = 96;
AdamW, one-cycle cosine, label smoothing 0.1. Test protocol: short side to S = 110 with the aspect kept (bilinear,
antialiased), centre crop of 96. The accuracy logged by epoch is on the last 800 images of ``train``, which are not
trained on; ``val`` is looked at once, at the end. Nothing here was chosen by its effect on the gain from several crops.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: search the repo root, not models/demo/
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as tvF
from tqdm import tqdm

from pipelines.data import demo
from pipelines.inputspec import InputSpec

HERE = Path(__file__).resolve().parent
SPEC = InputSpec(S=110, K=96)
STORE_SHORT_SIDE = 128  # pixels; training images are kept at this size in memory
TRAIN_IMAGES, HELD_OUT_IMAGES = 8000, 800
BATCH = 32
EARLY_CROP, EARLY_SHARE = 64, 0.4  # pixels, and the share of the epochs that train on crops of that size
SEED = 0
AREA, ASPECT = (0.25, 1.0), (3 / 4, 4 / 3)  # RandomResizedCrop's
CROP_COUNTS = (1, 2, 5, 10, 20)  # scored on val at the end

# family -> timm model and what differs between the recipes
RECIPES: dict[str, dict[str, Any]] = {
    "resnet": {"model": "test_resnet", "epochs": 40, "peak_lr": 2e-3},
    "efficientnet": {"model": "test_efficientnet", "epochs": 40, "peak_lr": 2e-3},
    "nfnet": {"model": "test_nfnet", "epochs": 40, "peak_lr": 1e-3},  # an epoch costs four of resnet's on a CPU
    "mobilenet": {"model": "mobilenetv3_small_050", "epochs": 60, "peak_lr": 2e-3},
}
WEIGHT_DECAY, LABEL_SMOOTHING, CLIP_NORM = 0.05, 0.1, 1.0


def load_images(split: str, images: int, short_side: int) -> tuple[list[Tensor], Tensor]:
    """Decode and reduce once: uint8 [3, h, w] an image, ``short_side`` high or wide, and the labels [b]."""
    root = demo.ensure(split, images)
    table = demo.read_table(root)
    pictures = []
    for name in tqdm(table["name"], desc=f"reading {split}", unit="image"):
        pixels = tvF.pil_to_tensor(Image.open(root / name).convert("RGB"))
        height, width = pixels.shape[-2:]
        shorter = min(height, width)
        size = [short_side * height // shorter, short_side * width // shorter]
        pictures.append(tvF.resize(pixels, size, antialias=True))
    return pictures, torch.tensor(table["label"].to_numpy())


def augmented(pictures: list[Tensor], labels: Tensor, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch in random order: uint8 [BATCH, 3, side, side], labels [BATCH]; the incomplete last batch is dropped."""
    order = torch.randperm(len(pictures))
    for batch in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
        yield torch.stack([_random_crop(pictures[i], side) for i in batch.tolist()]), labels[batch]


def _random_crop(picture: Tensor, side: int) -> Tensor:
    top, left, height, width = RandomResizedCrop.get_params(picture, list(AREA), list(ASPECT))
    crop = tvF.resized_crop(picture, top, left, height, width, [side, side], antialias=True)
    return crop.flip(-1) if torch.rand(()) < 0.5 else crop


def normalise(crops: Tensor) -> Tensor:
    """uint8 [b, 3, K, K] -> float32, channels last in memory."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SPEC.mean, SPEC.std))
    return ((crops.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def probabilities(model: nn.Module, crops: Tensor) -> Tensor:
    """Softmax [b, n] of uint8 crops [b, 3, K, K]."""
    model.eval()
    return torch.cat([model(normalise(chunk)).softmax(dim=1) for chunk in crops.split(256)])


def centre_crops(pictures: list[Tensor]) -> Tensor:
    return torch.stack([tvF.center_crop(picture, [SPEC.K, SPEC.K]) for picture in pictures])


def random_crops(pictures: list[Tensor], rng: np.random.Generator) -> Tensor:
    """One uniformly placed window an image."""
    crops = []
    for picture in pictures:
        top, left = (int(rng.integers(side - SPEC.K + 1)) for side in picture.shape[-2:])
        crops.append(picture[:, top : top + SPEC.K, left : left + SPEC.K])
    return torch.stack(crops)


def top1_percent(scores: Tensor, labels: Tensor) -> float:
    return round(100 * (scores.argmax(dim=1) == labels).double().mean().item(), 2)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """No decay on biases, gains and normalisation weights."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]


class Training:
    """AdamW with a one-cycle schedule, clipped gradients and smoothed labels, an epoch at a time. ``steps``: of all
    epochs together."""

    def __init__(self, model: nn.Module, peak_lr: float, steps: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(parameter_groups(model))
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=peak_lr, total_steps=steps, pct_start=0.1, div_factor=10
        )

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
        """Train on (normalised crops [b, 3, K, K], labels [b]); the mean loss."""
        self.model.train()
        losses = []
        for crops, labels in batches:
            loss = F.cross_entropy(self.model(crops), labels, label_smoothing=LABEL_SMOOTHING)
            self.optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
            self.optimizer.step()
            self.schedule.step()
            losses.append(loss.item())
        return float(np.mean(losses))


def fit(
    model: nn.Module, recipe: dict[str, Any], train: tuple[list[Tensor], Tensor], held_out: tuple[Tensor, Tensor]
) -> list[dict[str, float]]:
    """Train in place; one entry an epoch: mean loss, accuracy on the held-out centre crops in percent, seconds."""
    epochs, batches = recipe["epochs"], len(train[0]) // BATCH
    training = Training(model, recipe["peak_lr"], epochs * batches)
    log = []
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        side = EARLY_CROP if epoch <= EARLY_SHARE * epochs else SPEC.K
        loss = training.epoch((normalise(crops), labels) for crops, labels in augmented(*train, side=side))
        accuracy = top1_percent(probabilities(model, held_out[0]), held_out[1])
        seconds = round(time.perf_counter() - started, 1)
        log.append(
            {
                "epoch": epoch,
                "crop": side,
                "loss": round(loss, 4),
                "held_out_top1": accuracy,
                "s": seconds,
            }
        )
        print(json.dumps(log[-1]), file=sys.stderr, flush=True)
    return log


def score(model: nn.Module, pictures: list[Tensor], labels: Tensor) -> dict[str, float]:
    """Top-1 in percent: centre crop, and the mean softmax over the first n random crops (they nest)."""
    result = {"CC": top1_percent(probabilities(model, centre_crops(pictures)), labels)}
    rng = np.random.default_rng(SEED)
    total = torch.zeros(len(labels), len(demo.CLASSES))
    for count in range(1, max(CROP_COUNTS) + 1):
        total += probabilities(model, random_crops(pictures, rng))
        if count in CROP_COUNTS:
            result[f"{count}RC"] = top1_percent(total, labels)
    return result


def build(family: str) -> nn.Module:
    return timm.create_model(RECIPES[family]["model"], pretrained=False, num_classes=len(demo.CLASSES))


def save(model: nn.Module, path: Path) -> None:
    rounded = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(rounded, path)


def load(family: str) -> nn.Module:
    """The network with the weights that are shipped, in float32."""
    model = build(family)
    model.load_state_dict(load_file(HERE / f"{family}.safetensors"))  # copies into float32
    return model.to(memory_format=torch.channels_last).eval()


def train_family(
    family: str,
    train: tuple[list[Tensor], Tensor],
    held_out: tuple[Tensor, Tensor],
    val: tuple[list[Tensor], Tensor],
) -> dict[str, float]:
    started = time.perf_counter()
    torch.manual_seed(SEED)
    recipe = RECIPES[family]
    model = build(family).to(memory_format=torch.channels_last)
    log = fit(model, recipe, train, held_out)
    save(model, HERE / f"{family}.safetensors")
    wall_time_s = round(time.perf_counter() - started, 1)
    val_top1 = score(load(family), *val)
    record = {
        "model": recipe["model"],
        "model_kwargs": {},
        "num_classes": len(demo.CLASSES),
        "classes": list(demo.CLASSES),
        "S": SPEC.S,
        "K": SPEC.K,
        "interpolation": SPEC.interpolation,
        "crop_mode": SPEC.crop_mode,
        "mean": SPEC.mean,
        "std": SPEC.std,
        "stored_dtype": "float16",
        "command": f"python models/demo/train.py --models {family}",
        "hyperparameters": {
            "optimizer": "AdamW",
            "peak_lr": recipe["peak_lr"],
            "schedule": "OneCycleLR, cosine, from a tenth of the peak, 10 % warm-up",
            "weight_decay": WEIGHT_DECAY,
            "label_smoothing": LABEL_SMOOTHING,
            "clip_norm": CLIP_NORM,
            "batch": BATCH,
            "early_crop": EARLY_CROP,
            "early_share": EARLY_SHARE,
            "crop_area": AREA,
            "crop_aspect": ASPECT,
            "horizontal_flip": 0.5,
            "train_images": TRAIN_IMAGES,
            "held_out_images": HELD_OUT_IMAGES,
            "stored_short_side": STORE_SHORT_SIDE,
        },
        "seed": SEED,
        "demo_version": demo.VERSION,
        "demo_seed": demo.SEED,
        "epochs": recipe["epochs"],
        "wall_time_s": wall_time_s,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "demo_val_top1": val_top1,  # percent of 1,000 images, levels averaged as softmax
        "log": log,
    }
    (HERE / f"{family}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return val_top1


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo checkpoints.")
    parser.add_argument("--models", nargs="+", choices=list(RECIPES), default=list(RECIPES), metavar="FAMILY")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures, labels = load_images("train", TRAIN_IMAGES + HELD_OUT_IMAGES, STORE_SHORT_SIDE)
    train = pictures[:TRAIN_IMAGES], labels[:TRAIN_IMAGES]
    held_out_small = [_to_test_size(picture) for picture in pictures[TRAIN_IMAGES:]]
    held_out = centre_crops(held_out_small), labels[TRAIN_IMAGES:]
    val = load_images("val", demo.SPLITS["val"], SPEC.S)
    for family in args.models:
        print(json.dumps({"family": family, "demo_val_top1": train_family(family, train, held_out, val)}), flush=True)


def _to_test_size(picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    shorter = min(height, width)
    return tvF.resize(picture, [SPEC.S * height // shorter, SPEC.S * width // shorter], antialias=True)


if __name__ == "__main__":
    main()
