"""Hand-made runs: folders as bench/run.py writes them, from literal numbers, with no network and no clock."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from bench.predictions import Predictions
from bench.records import Absent, Accuracy, Latency, Record, Run, Setting, Throughput, append, read_run
from pipelines.crops import parse_policy

SETTING = Setting(
    model="resnet18.tv_in1k", family="resnet", variant="18", weights="pretrained", weight_hash="aa",
    param_count=11_689_512, published_top1=69.76, published_in="MID Table I", S=256, K=224, interpolation="bilinear",
    crop_mode="center", data="val", data_hash="dd", is_demo=False, backend="dali-cpu", batch_size=64, batch_images=8,
    workers=2, device="cpu", machine_id="m1", amp_dtype="float32", channels_last=False, torchcompile=False, seed=0,
)  # fmt: skip
ENVIRONMENT = {
    "cpu": "Some CPU",
    "gpu": None,
    "cores_usable": 2,
    "packages": {"torch": "2.15.0", "timm": "1.0.31", "nvidia-dali-cuda120": "2.4.0"},
}


@dataclass(frozen=True)
class Maker:
    """Writes runs below ``root``."""

    root: Path

    def setting(self, **changes: object) -> Setting:
        return replace(SETTING, **changes)  # type: ignore[arg-type]

    def accuracy(
        self,
        setting: Setting,
        policy: str,
        correct: int,
        newly_correct: int,
        newly_wrong: int,
        *,
        level: str = "softmax",
        images: int = 1000,
    ) -> Accuracy:
        views = parse_policy(policy).n_views
        return Accuracy(
            setting,
            policy,
            views,
            level,
            images,
            0,
            correct,
            min(images, correct + 50),
            1.0,
            newly_correct,
            newly_wrong,
            views,
        )

    def curve(self, setting: Setting, *, level: str = "softmax") -> list[Record]:
        """Of 1,000 images: CC 700; 1RC 680, 2RC 705, 10RC 715, 20RC 720; CC+1RC 708, CC+19RC 721."""
        counts = {
            "CC": (700, 0, 0),
            "1RC": (680, 20, 40),
            "2RC": (705, 30, 25),
            "10RC": (715, 40, 25),
            "20RC": (720, 45, 25),
            "CC+1RC": (708, 18, 10),
            "CC+19RC": (721, 45, 24),
        }
        return [self.accuracy(setting, policy, *three, level=level) for policy, three in counts.items()]

    def rates(self, setting: Setting, stage: str, crops: int | None, rates: Sequence[float]) -> Throughput:
        """One round of a second for each rate."""
        counts = [int(rate) for rate in rates]
        return Throughput(setting, stage, crops, 8, counts, [1.0] * len(counts), [10.0, 12.0], 10**9, None, 0.02)

    def speed(self, setting: Setting) -> list[Record]:
        """Network 1,000 crops/s; pipeline 400 images/s at 1 and 10 crops; end to end 200 and 75."""
        return [
            self.rates(setting, "model", None, [900, 1000, 1100]),
            self.rates(setting, "decode", None, [600, 600, 600]),
            self.rates(setting, "load", 1, [380, 400, 410]),
            self.rates(setting, "load", 10, [400, 400, 400]),
            self.rates(setting, "end_to_end", 1, [190, 200, 230]),
            self.rates(setting, "end_to_end", 10, [70, 75, 76]),
        ]

    def run(
        self, name: str, records: Sequence[Record], *, data: Path | None = None, models: Sequence[dict] = ()
    ) -> Run:
        """``models``: what run.json says of the networks."""
        folder = self.root / name
        folder.mkdir()
        info = {"schema": 2, "data": str(data or self.root / "no images"), "environment": ENVIRONMENT}
        info |= {"models": list(models)} if models else {}
        (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
        for record in records:
            append(folder, record)
        return read_run(folder)

    def records_of(self, setting: Setting, labels: np.ndarray, top1: dict[str, np.ndarray]) -> list[Record]:
        """The records that go with ``predictions``' arrays, at each level."""
        out: list[Record] = []
        for policy, values in top1.items():
            for i, level in enumerate(["softmax"] if values.ndim == 1 else ["feature", "softmax"]):
                right = np.atleast_2d(values)[i] == labels
                base = np.atleast_2d(top1["CC"])[i] == labels
                counts = (int(mask.sum()) for mask in (right, right & ~base, base & ~right))
                out.append(self.accuracy(setting, policy, *counts, level=level, images=len(labels)))
        return out

    def absent(self, setting: Setting, what: str, reason: str) -> Absent:
        return Absent(setting, what, reason)

    def predictions(
        self,
        run: Run,
        file: str,
        names: Sequence[str],
        labels: Sequence[int],
        top1: dict[str, np.ndarray],
        views: np.ndarray,
    ) -> None:
        """``top1``: policy -> int [b] (softmax) or [l, b] (feature, softmax)."""
        levels = ["softmax"] if next(iter(top1.values())).ndim == 1 else ["feature", "softmax"]
        stacked = np.stack([np.atleast_2d(values) for values in top1.values()], axis=1).astype(np.int32)
        save_predictions(run.folder / f"predictions-{file}.npz", names, labels, list(top1), levels, stacked, views)


def save_predictions(
    path: Path,
    names: Sequence[str],
    labels: Sequence[int],
    policies: list[str],
    levels: list[str],
    top1: np.ndarray,
    views: np.ndarray | None = None,
) -> None:
    """As a run writes them; ``top1``: [l, p, b]. The other arrays hold ones."""
    found = Predictions(
        rows=np.arange(len(names)), labels=np.array(labels), policies=policies, levels=levels,
        top1=top1.astype(np.int32), in_top5=np.ones(top1.shape, bool), nll=np.ones(top1.shape, np.float32),
        view_top1=np.ones((len(names), 1), np.int32) if views is None else views.astype(np.int32), failed=[],
    )  # fmt: skip
    found.save(path, list(names))


@pytest.fixture
def maker(tmp_path: Path) -> Maker:
    return Maker(tmp_path)


@pytest.fixture
def labelled_images(tmp_path: Path, picture: Callable[[int, int, int], object]) -> Path:
    """24 pictures 60 x 90 (odd ones 60 x 60) in two class folders: cats/00.jpg to dogs/23.jpg."""
    root = tmp_path / "images"
    for i in range(24):
        folder = root / ("cats" if i < 12 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        picture(60, 60 if i % 2 else 90, i).save(folder / f"{i:02}.jpg")  # type: ignore[attr-defined]
    return root


# ---- a run with answers to images, to choose from

MADE_IMAGES = 600
MADE_NAMES = [f"{i:04}.jpg" for i in range(MADE_IMAGES)]
MADE_LABELS = np.zeros(MADE_IMAGES, np.int64)
# Share of right answers, and images/s, of the settings of a made run: 5RC is best and slow, 2RC next, CC fast.
SHARES = {"CC": 0.60, "2RC": 0.80, "CC+1RC": 0.80, "5RC": 0.95}
RATES = {1: 300.0, 2: 150.0, 5: 60.0}
NETWORK = {"checkpoint": None, "num_classes": None, "model_kwargs": {}, "crop_mode": None, "interpolation": None}


@pytest.fixture
def made_run(maker):
    """``made_run(name, **setting)``: a run of one network with SHARES and RATES."""

    def make(name: str = "made", shares: dict[str, float] = SHARES, rates: dict[int, float] = RATES, **changes) -> Run:
        setting = maker.setting(**changes)
        shared = np.random.default_rng(0).random(MADE_IMAGES)
        top1 = {}
        for i, (policy, share) in enumerate(shares.items()):
            own, alike = np.random.default_rng(i + 1).random((2, MADE_IMAGES))
            top1[policy] = np.where(np.where(alike < 0.9, shared, own) < share, 0, 1)
        records = maker.records_of(setting, MADE_LABELS, top1)
        for crops, rate in rates.items():  # so many crops need so many GB, and two of 100 images three times as long
            timed = maker.rates(setting, "end_to_end", crops, [rate] * 3)
            alone = [1000 / rate] * 98 + [3000 / rate] * 2
            records.append(replace(timed, peak_mem_bytes=crops * 10**9))
            records.append(Latency(setting, f"{crops}RC", crops, crops, alone, list(range(100)), float(crops)))
        asked = {"model": setting.model, "img_size": None, "crop_pct": None}
        model = {"model": setting.model, "S": setting.S, "K": setting.K, "predictions": "predictions-a.npz"}
        run = maker.run(name, records, models=[{**model, "asked": asked, "setting": asdict(setting)}])
        maker.predictions(run, "a", MADE_NAMES, MADE_LABELS.tolist(), top1, np.zeros((MADE_IMAGES, 1)))
        info = json.loads((run.folder / "run.json").read_text())
        info |= {"config": {"network": {**NETWORK, "fold": False}}, "started": "now", "directory": str(run.folder)}
        (run.folder / "run.json").write_text(json.dumps(info))
        return read_run(run.folder)

    return make
