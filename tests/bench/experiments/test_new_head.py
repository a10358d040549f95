"""``finetune --new-head`` from folders to a scored checkpoint with its class names, beside scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.experiments import finetune
from models import MultiCrop
from models.fixres.finetune import FineTuning
from models.loading import load
from pipelines.data.labels import label
from pipelines.data.scanning import scan

CLASSES = ("owl", "cat", "10", "2")  # neither in order nor named alike


def pictures(root: Path, count: int, seed: int) -> Path:
    """``count`` pictures a class: stripes across, stripes down, checks, plain; so much noise that some look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:30, :36]
    for number, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for i in range(count):
            width = rng.integers(3, 6)
            pattern = (y // width % 2, x // width % 2, (y // width + x // width) % 2, np.zeros_like(y))[number]
            pixels = (
                110 + rng.uniform(10, 60) * pattern[:, :, None] + rng.normal(0, 12, 3) + rng.normal(0, 30, (30, 36, 3))
            )
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("own")
    return pictures(folder / "train", 40, 0), pictures(folder / "test", 50, 1)


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))


Flags = Callable[..., list[str]]


@pytest.fixture
def command(data: tuple[Path, Path]) -> Flags:
    def flags(out: Path, *more: str) -> list[str]:
        return [
            *("--model", "resnet:demo", "--weights", "demo", "--new-head", "--data", str(data[0]), "--img-size", "32"),
            *("--workers", "1", "--device", "cpu", "--out", str(out), *more),
        ]

    return flags


def note_of(folder: Path) -> dict:
    return json.loads((folder / "finetune.json").read_text())


def test_from_folders_to_names(command: Flags, data: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "head"
    assert finetune.main(command(out)) == 0
    note, names = note_of(out), tuple(sorted(CLASSES))
    assert tuple(note["class_names"]) == names == ("10", "2", "cat", "owl")
    assert note["recipe"]["tune"] == "classifier" and note["recipe"]["patience"] == 10
    assert note["data"]["held_out"] == 4 * 8 and note["epochs"][0]["images"] == 128
    assert note["result"]["val_loss"] == min(epoch["val_loss"] for epoch in note["epochs"])
    found = load("resnet:demo", checkpoint=out / "model.safetensors", img_size=32)
    assert found.class_names == names and found.weight_hash == note["result"]["weight_hash"]
    base = load("resnet:demo", weights="demo", img_size=32).net.state_dict()
    own = found.net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in base.items() if not name.startswith("fc."))
    classify = MultiCrop("resnet:demo", checkpoint=out / "model.safetensors", img_size=32, policy="CC")
    right = [image.top(1)[0][2] == image.name.split("/")[0] for image in classify(data[1])]
    assert np.mean(right) > 0.6 and len(right) == 200


def test_accuracy_is_that_of_scikit_learn_on_the_same_features(command: Flags, data, tmp_path: Path) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    assert finetune.main(command(tmp_path / "head", "--patience", "60", "--lr", "0.05")) == 0
    tuned = load("resnet:demo", checkpoint=tmp_path / "head" / "model.safetensors", img_size=32)

    def features(root: Path) -> tuple[np.ndarray, np.ndarray]:
        found, labels, spec = [], [], tuned.spec
        for number, name in enumerate(sorted(CLASSES)):
            for path in sorted((root / name).iterdir()):
                image = Image.open(path)
                image = image.resize((spec.S * 36 // 30, spec.S), Image.Resampling.BILINEAR)
                left, top = round((image.width - spec.K) / 2), round((image.height - spec.K) / 2)
                pixels = np.asarray(image.crop((left, top, left + spec.K, top + spec.K)))
                x = (torch.tensor(pixels).float() / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
                found.append(tuned.features(x.permute(2, 0, 1)[None])[0].numpy())  # type: ignore[index]
                labels.append(number)
        return np.array(found), np.array(labels)

    x, y = features(data[0])
    test_x, test_y = features(data[1])
    expected = linear_model.LogisticRegression(max_iter=5000).fit(x, y).score(test_x, test_y)
    got = (tuned.head(torch.from_numpy(test_x)).argmax(1).numpy() == test_y).mean()
    assert 0.6 < expected < 1
    assert abs(got - expected) <= 0.03  # six of 200 images; on Lite0's features within 1 point (tests/test_real.py)


def test_a_run_matches_folders_by_the_checkpoints_names(data: tuple[Path, Path], tmp_path: Path) -> None:
    found = scan(data[1], workers=1)
    labelled = label(found, num_classes=4, class_names=("cat", "2", "owl", "10"))
    assert labelled.table.groupby(labelled.table["name"].str.split("/").str[0])["label"].first().to_dict() == {
        "cat": 0, "2": 1, "owl": 2, "10": 3,
    }  # fmt: skip
    assert labelled.label_rule.endswith("the outputs that the model calls so")
    with pytest.raises(ValueError, match="owl"):
        label(found, num_classes=4, class_names=("cat", "2", "ape", "10"))
    few = tmp_path / "few"
    few.mkdir()
    (few / "owl").symlink_to(data[1] / "owl")
    assert set(label(scan(few, workers=1), num_classes=4, class_names=("cat", "2", "owl", "10")).table["label"]) == {2}


def test_the_names_survive_further_tuning(command: Flags, data: tuple[Path, Path], tmp_path: Path) -> None:
    assert finetune.main(command(tmp_path / "head", "--epochs", "1")) == 0
    more = [
        *("--model", "resnet:demo", "--checkpoint", str(tmp_path / "head" / "model.safetensors"), "--tune", "network"),
        *("--data", str(data[0]), "--img-size", "48", "--epochs", "1", "-b", "16", "--val-split", "0.1"),
        *("--workers", "1", "--device", "cpu", "--out", str(tmp_path / "all")),
    ]
    assert finetune.main(more) == 0
    found = load("resnet:demo", checkpoint=tmp_path / "all" / "model.safetensors", img_size=48)
    assert found.class_names == tuple(sorted(CLASSES)) == tuple(note_of(tmp_path / "all")["class_names"])


def test_an_interrupted_one_is_resumed(command: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert finetune.main(command(tmp_path / "whole", "--epochs", "4")) == 0
    save = FineTuning.save_state

    def interrupted(self: FineTuning, path: Path, log: list[dict[str, object]]) -> None:
        save(self, path, log)
        if len(log) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "save_state", interrupted)
        assert finetune.main(command(tmp_path / "cut", "--epochs", "4")) == 130
    assert finetune.main(["--resume", str(tmp_path / "cut")]) == 0
    whole, cut = note_of(tmp_path / "whole"), note_of(tmp_path / "cut")
    assert whole["result"] == cut["result"] and len(cut["epochs"]) == 4


def test_seeds_spread_and_are_resumed(command: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, more = tmp_path / "seeds", ("--epochs", "2", "--seed", "3", "--seeds", "3")
    finish = finetune.finish
    with monkeypatch.context() as patch:  # Ctrl-C in the second

        def interrupted(folder: Path, *rest: object) -> int:
            if folder.name == "seed-4":
                raise KeyboardInterrupt
            return finish(folder, *rest)  # type: ignore[arg-type]

        patch.setattr(finetune, "finish", interrupted)
        assert finetune.main(command(out, *more)) == 130
    written = (out / "seed-3" / "model.safetensors").stat().st_mtime_ns
    assert finetune.main(["--resume", str(out)]) == 0
    assert (out / "seed-3" / "model.safetensors").stat().st_mtime_ns == written
    note = json.loads((out / "seeds.json").read_text())
    tops = [note_of(out / f"seed-{seed}")["result"]["val_top1"] for seed in (3, 4, 5)]
    assert note["status"] == "finished" and note["seeds"] == [3, 4, 5]
    found = note["spread"]["val_top1"]
    assert found == pytest.approx(
        {"mean": np.mean(tops), "sd": np.std(tops, ddof=1), "min": min(tops), "max": max(tops)}
    )
    assert len({note_of(out / f"seed-{seed}")["base"]["weight_hash"] for seed in (3, 4, 5)}) == 3
    assert finetune.main(["--resume", str(out)]) == 2  # nothing is left to do


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--num-classes", "4"), "--new-head takes its classes from the folders of --data"),
        (("--label-order", "number"), "--new-head takes its classes from the folders of --data"),
        (("--val-split", "0", "--patience", "3"), "--patience 3 needs --val-split"),
    ],
)
def test_what_means_nothing_is_refused(command: Flags, tmp_path: Path, capsys, more, words: str) -> None:
    assert finetune.main(command(tmp_path / "head", *more)) == 2
    assert words in capsys.readouterr().err


def test_a_flat_folder_is_refused(command: Flags, data: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    assert finetune.main(command(tmp_path / "head", "--data", str(data[0] / "owl"))) == 2
    assert "--new-head needs a folder for each class in" in capsys.readouterr().err
