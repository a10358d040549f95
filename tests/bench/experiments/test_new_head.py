"""``finetune --new-head`` from folders to a scored checkpoint with its class names, beside scikit-learn."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from bench import predict as predict_command
from bench import run as run_command
from bench.experiments import finetune
from models import MultiCrop
from models.classifier import Classifier
from models.fixres import finetune as finetune_module
from models.fixres import linear_head
from models.fixres.finetune import FineTuning
from models.fixres.held_out import held_out
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
    assert note["recipe"]["tune"] == "classifier" and note["recipe"]["opt"] == "lbfgs"
    assert note["data"]["held_out"] == 4 * 8 and note["epochs"][0]["images"] == 128
    assert note["epochs"][0]["optimum"]["converged"] and note["epochs"][0]["optimum"]["weight_decay"] == 1 / 128
    assert note["result"]["val_loss"] == min(epoch["val_loss"] for epoch in note["epochs"])
    found = load("resnet:demo", checkpoint=out / "model.safetensors", img_size=32)
    assert found.class_names == names and found.weight_hash == note["result"]["weight_hash"]
    base = load("resnet:demo", weights="demo", img_size=32).net.state_dict()
    own = found.net.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in base.items() if not name.startswith("fc."))
    classify = MultiCrop("resnet:demo", checkpoint=out / "model.safetensors", img_size=32, policy="CC")
    right = [image.top(1)[0][2] == image.name.split("/")[0] for image in classify(data[1])]
    assert np.mean(right) > 0.6 and len(right) == 200


def pil_features(tuned: Classifier, at: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """[images, f] of the centre crops, the classes' numbers and the names, by PIL."""
    names, spec, found, labels, files = sorted(CLASSES), tuned.spec, [], [], []
    for number, name in enumerate(names):
        for path in sorted((at / name).iterdir()):
            image = Image.open(path)
            image = image.resize((spec.S * 36 // 30, spec.S), Image.Resampling.BILINEAR)
            left, top = round((image.width - spec.K) / 2), round((image.height - spec.K) / 2)
            pixels = np.asarray(image.crop((left, top, left + spec.K, top + spec.K)))
            x = (torch.tensor(pixels).float() / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
            found.append(tuned.features(x.permute(2, 0, 1)[None])[0].numpy())  # type: ignore[index]
            labels.append(number)
            files.append(f"{name}/{path.name}")
    return np.array(found, dtype=float), np.array(labels), files


@pytest.mark.parametrize("count", [10, 40])
def test_it_is_scikit_learns_head_on_the_very_same_features(
    data: tuple[Path, Path], tmp_path: Path, command: Flags, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Coefficients and accuracy, at two sizes of the set and two seeds, whose held-out images differ."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    root, out, given = tmp_path / "train", tmp_path / "heads", []
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").symlink_to(data[0] / name / f"{i}.png")

    def noted(features: torch.Tensor, labels: torch.Tensor, *rest: int, **more: Any) -> linear_head.Solution:
        given.append((features.double().numpy(), labels.numpy()))
        return linear_head.solve(features, labels, *rest, **more)

    monkeypatch.setattr(finetune_module, "solve", noted)
    assert finetune.main(command(out, "--data", str(root), "--seeds", "2")) == 0
    tuned = [load("resnet:demo", checkpoint=out / f"seed-{seed}" / "model.safetensors", img_size=32) for seed in (0, 1)]
    test_x, test_y, _ = pil_features(tuned[0], data[1])
    pil_x, pil_y, files = pil_features(tuned[0], root)
    for seed, (x, y) in enumerate(given):
        rows = ~held_out(files, pil_y, 0.2, seed)  # what was fitted is what is not held out
        assert np.array_equal(np.bincount(y), np.bincount(pil_y[rows])) and len(y) == 4 * count * 8 // 10
        order, own = np.lexsort((pil_x[rows][:, 0], pil_y[rows])), np.lexsort((x[:, 0], y))
        assert np.abs(pil_x[rows][order].mean(0) - x[own].mean(0)).max() < 0.05 * np.abs(x).max()
        expected = linear_model.LogisticRegression(tol=1e-9, max_iter=50_000).fit(x, y)
        head = tuned[seed].net.get_submodule("fc")
        assert isinstance(head, torch.nn.Linear)
        assert np.abs(head.weight.numpy() - expected.coef_).max() < 1e-3 * np.abs(expected.coef_).max()
        got = (tuned[seed].head(torch.from_numpy(test_x).float()).argmax(1).numpy() == test_y).mean()
        assert 0.5 < expected.score(test_x, test_y) < 1
        assert abs(got - expected.score(test_x, test_y)) <= 0.01


def test_seeds_run_what_is_frozen_once(command: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran, run_once = [], FineTuning._run_once

    def counted(self: FineTuning) -> object:
        ran.append(self.recipe.seed)
        return run_once(self)

    monkeypatch.setattr(FineTuning, "_run_once", counted)
    assert finetune.main(command(tmp_path / "seeds", "--seeds", "3")) == 0
    assert ran == [0]
    assert finetune.main(command(tmp_path / "alone", "--seed", "2")) == 0
    alone, shared = note_of(tmp_path / "alone"), note_of(tmp_path / "seeds" / "seed-2")
    assert alone["result"] == shared["result"]  # bit for bit, weights too
    assert note_of(tmp_path / "seeds" / "seed-1")["result"]["val_loss"] != shared["result"]["val_loss"]
    ran.clear()  # random weights differ with the seed: what is frozen is not the same then
    more = ("--model", "test_resnet", "--weights", "random", "--seeds", "2", "--epochs", "1", "-b", "8")
    assert finetune.main(command(tmp_path / "random", *more)) == 0
    assert ran == [0, 1]


def stopped(monkeypatch: pytest.MonkeyPatch, tune: str, epoch: int, run: Callable[[], int]) -> None:
    """Ctrl-C once the state after so many epochs is saved."""
    save = FineTuning.save_state

    def interrupted(self: FineTuning, path: Path, log: list[dict[str, object]]) -> None:
        save(self, path, log)
        if self.recipe.tune == tune and len(log) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "save_state", interrupted)
        assert run() == 130


@pytest.mark.parametrize("tune", ["last-block", "all", "from:layer4"])
def test_first_the_classifier_then_more_of_the_network(
    command: Flags, data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tune: str
) -> None:
    more = ("--tune", tune, "--augmentation", "train", "--epochs", "3")
    whole, cut, alone = tmp_path / "whole", tmp_path / "cut", tmp_path / "alone"
    assert finetune.main(command(whole, *more)) == 0
    assert finetune.main(command(alone)) == 0
    note, first = note_of(whole), note_of(whole / "head")
    assert first["recipe"]["tune"] == "classifier" and first["result"] == note_of(alone)["result"]
    assert note["base"]["weight_hash"] == first["result"]["weight_hash"] and note["recipe"]["tune"] == tune
    assert note["recipe"]["lr"] == pytest.approx(0.008 * 32 / 512) and note["recipe"]["patience"] == 10  # a lower rate
    assert note["tuned"]["block"] == {"last-block": "layer4.0", "from:layer4": "layer4"}.get(tune)
    assert note["data"]["held_out"] == first["data"]["held_out"] == 32
    # killed in the first part, then in the second: the same weights
    stopped(monkeypatch, "classifier", 1, lambda: finetune.main(command(cut, *more)))
    stopped(monkeypatch, tune, 2, lambda: finetune.main(["--resume", str(cut)]))
    assert finetune.main(["--resume", str(cut)]) == 0
    assert note_of(cut)["result"] == note["result"] and len(note_of(cut)["epochs"]) == 3
    # only what is tuned differs from the head alone, and the classes keep their names
    base, own = (load("resnet:demo", checkpoint=at / "model.safetensors", img_size=32) for at in (alone, whole))
    assert own.class_names == base.class_names == tuple(sorted(CLASSES))
    tensors = own.net.state_dict()
    changed = {name for name, tensor in base.net.state_dict().items() if not torch.equal(tensor, tensors[name])}
    if tune != "all":
        assert changed and all(name.startswith(("layer4.0.", "fc.")) for name in changed)
    else:
        assert "conv1.0.weight" in changed
    classify = MultiCrop("resnet:demo", checkpoint=whole / "model.safetensors", img_size=32, policy="CC")
    right = [image.top(1)[0][2] == image.name.split("/")[0] for image in classify(data[1])]
    assert np.mean(right) > 0.5


def test_a_tuned_checkpoint_is_scored_and_predicts_by_its_names(
    command: Flags, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, scored = tmp_path / "tuned", tmp_path / "scored"
    assert finetune.main(command(out, "--tune", "last-block", "--epochs", "1")) == 0
    network = ["--model", "resnet:demo", "--checkpoint", str(out / "model.safetensors"), "--img-size", "32"]
    assert predict_command.main([str(data[1]), *network, "--policy", "CC", "--device", "cpu", "-q"]) == 0
    text = capsys.readouterr().out
    rows = list(csv.DictReader(io.StringIO(text[text.index("filename") :])))
    right = sum(row["name_0"] == row["filename"].split("/")[0] for row in rows)
    flags = ["--data", str(data[1]), "--policies", "CC", "--no-throughput", "--no-figures", "--device", "cpu"]
    assert run_command.main([*network, *flags, "--workers", "1", "--yes", "--out", str(scored)]) == 0
    summary = pd.read_csv(scored / "summary.csv")
    (top1,) = summary[(summary["policy"] == "CC") & (summary["level"] == "softmax")]["top1"]
    assert len(rows) == 200 and top1 == pytest.approx(100 * right / 200) and top1 > 50


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
        *("--model", "resnet:demo", "--checkpoint", str(tmp_path / "head" / "model.safetensors"), "--tune", "all"),
        *("--data", str(data[0]), "--img-size", "48", "--epochs", "1", "-b", "16", "--val-split", "0.1"),
        *("--workers", "1", "--device", "cpu", "--out", str(tmp_path / "all")),
    ]
    assert finetune.main(more) == 0
    found = load("resnet:demo", checkpoint=tmp_path / "all" / "model.safetensors", img_size=48)
    assert found.class_names == tuple(sorted(CLASSES)) == tuple(note_of(tmp_path / "all")["class_names"])


@pytest.mark.parametrize(("more", "epoch"), [(("--epochs", "4"), 2), ((), 1)])
def test_an_interrupted_one_is_resumed(
    command: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], epoch: int
) -> None:
    assert finetune.main(command(tmp_path / "whole", *more)) == 0
    stopped(monkeypatch, "classifier", epoch, lambda: finetune.main(command(tmp_path / "cut", *more)))
    assert finetune.main(["--resume", str(tmp_path / "cut")]) == 0
    whole, cut = note_of(tmp_path / "whole"), note_of(tmp_path / "cut")
    assert whole["result"] == cut["result"] and len(cut["epochs"]) == (4 if more else 1)
    assert [epoch.get("optimum") for epoch in whole["epochs"]] == [epoch.get("optimum") for epoch in cut["epochs"]]


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
        (("--opt", "lbfgs", "--lr", "0.1"), "--lr is an option of sgd"),
        (
            ("--opt", "lbfgs", "--augmentation", "train"),
            "--opt lbfgs finds the best classifier on features that do not",
        ),
        (("--opt", "lbfgs", "--keep-gib", "0"), "--opt lbfgs needs all features in memory"),
    ],
)
def test_what_means_nothing_is_refused(command: Flags, tmp_path: Path, capsys, more, words: str) -> None:
    assert finetune.main(command(tmp_path / "head", *more)) == 2
    assert words in capsys.readouterr().err


def test_a_flat_folder_is_refused(command: Flags, data: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    assert finetune.main(command(tmp_path / "head", "--data", str(data[0] / "owl"))) == 2
    assert "--new-head needs a folder for each class in" in capsys.readouterr().err
