"""The command line of fine-tuning: its files, what it refuses, and interrupted runs against undisturbed ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from bench.experiments import finetune
from models.fixres.finetune import FineTuning
from models.loading import load

CLASSES, PER_CLASS = 3, 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("numbered"), np.random.default_rng(0)
    for c in range(CLASSES):
        (root / str(c)).mkdir()
        for i in range(PER_CLASS):
            pixels = np.clip(rng.integers(0, 90, (40, 52, 3)) + 80 * np.eye(3)[c], 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / str(c) / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def command(data: Path) -> Callable[..., list[str]]:
    def flags(out: Path, *more: str) -> list[str]:
        return [
            *("--models", "test_resnet", "--weights", "random", "--num-classes", str(CLASSES), "--data", str(data)),
            *("--img-size", "32", "--epochs", "3", "--batch-size", "6", "--lr", "0.05", "--workers", "1"),
            *("--device", "cpu", "--out", str(out), *more),
        ]

    return flags


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once the state of so many epochs is saved, before the note says so."""
    save = FineTuning.save_state

    def interrupted(self: FineTuning, path: Path, log: list[dict[str, object]]) -> None:
        save(self, path, log)
        if len(log) == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(FineTuning, "save_state", interrupted)


def test_files_and_note(command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tuned"
    assert finetune.main(command(out, "--label-smoothing", "0.1")) == 0
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "finetune.json", "state.safetensors"}
    note = json.loads((out / "finetune.json").read_text())
    assert note["status"] == "finished"
    assert note["input"] == {"S": 33, "K": 32, "interpolation": "bilinear", "crop_mode": "center"}
    assert note["recipe"]["label_smoothing"] == 0.1 and note["recipe"]["tune"] == "classifier+bn"
    assert note["tuned"]["batch_norm"] == "layer4.0.bn2" and note["tuned"]["classifier"] == ["fc.weight", "fc.bias"]
    assert [epoch["steps"] for epoch in note["epochs"]] == [3, 3, 3]
    assert note["data"]["images"] == 18 and note["data"]["label_rule"]
    for stage in ("trunk", "forward", "backward"):
        assert 0 < note["step_ms"][stage]["min"] <= note["step_ms"][stage]["median"] <= note["step_ms"][stage]["max"]
    assert note["step_ms"]["forward"]["steps"] == 9
    again = load("test_resnet", checkpoint=out / "model.safetensors", img_size=32)
    assert again.weight_hash == note["result"]["weight_hash"] != note["base"]["weight_hash"]
    base = load("test_resnet", weights="random", num_classes=CLASSES, img_size=32)
    assert base.weight_hash == note["base"]["weight_hash"]
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["checkpoint"] == str(out / "model.safetensors") and last["loss"] == note["epochs"][-1]["loss"]
    assert "--checkpoint" in note["score_with"] and "--img-size 32" in note["score_with"]


@pytest.mark.parametrize("augmentation", ["test", "train"])
def test_interrupted_and_resumed(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finetune.main(command(whole, "--augmentation", augmentation)) == 0
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        assert finetune.main(command(cut, "--augmentation", augmentation)) == 130
    assert not (cut / "model.safetensors").exists()
    assert len(json.loads((cut / "finetune.json").read_text())["epochs"]) == 1  # the note is behind the state
    assert finetune.main(["--resume", str(cut)]) == 0
    expected, found = load_file(whole / "model.safetensors"), load_file(cut / "model.safetensors")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    a, b = (json.loads((folder / "finetune.json").read_text()) for folder in (whole, cut))
    assert [e["loss"] for e in a["epochs"]] == [e["loss"] for e in b["epochs"]]
    assert a["result"] == b["result"]


def test_resume_before_the_first_epoch(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(self: FineTuning) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "run", at_once)
        assert finetune.main(command(tmp_path / "a")) == 130
    assert finetune.main(["--resume", str(tmp_path / "a")]) == 0
    assert finetune.main(command(tmp_path / "b")) == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_resume_refuses_other_data(
    command: Callable[..., list[str]],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        stop_after(1, patch)
        assert finetune.main(command(out)) == 130
    extra = data / "0" / "extra.jpg"
    extra.write_bytes((data / "0" / "0.jpg").read_bytes())
    try:
        assert finetune.main(["--resume", str(out)]) == 2
    finally:
        extra.unlink()
    assert "data.data_hash was" in capsys.readouterr().err


def test_what_is_refused(command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error(argv: list[str]) -> str:
        try:
            assert finetune.main(argv) == 2
        except SystemExit as end:
            assert end.code == 2
        return capsys.readouterr().err

    (tmp_path / "there").mkdir()
    assert "never written over" in error(command(tmp_path / "there"))
    assert f"holds no {finetune.NOTE}" in error(["--resume", str(tmp_path / "there")])
    assert "takes no other option" in error(["--resume", str(tmp_path / "there"), "--epochs", "3"])
    assert "unrecognized arguments: --crops 1,2 --yes" in error(command(tmp_path / "new", "--crops", "1,2", "--yes"))
    assert "--img-size K and --out DIR are needed" in error(["--models", "test_resnet"])
    assert "--trunk-batch-size" in error(command(tmp_path / "new", "--trunk-batch-size", "0"))
    assert "more than the 18 images" in error(command(tmp_path / "new", "-b", "19"))
    assert "one network at a time" in error(command(tmp_path / "new", "--models", "test_resnet,test_nfnet"))
    assert "use --tune classifier" in error(
        command(tmp_path / "new", "--models", "test_nfnet", "--tune", "classifier+bn")
    )
    assert not (tmp_path / "new").exists()


def test_a_finished_run_is_not_resumed(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert finetune.main(command(out, "--epochs", "1", "--models", "test_nfnet")) == 0
    assert json.loads((out / "finetune.json").read_text())["recipe"]["tune"] == "classifier"  # there is no BatchNorm
    assert finetune.main(["--resume", str(out)]) == 2
    assert "has finished" in capsys.readouterr().err


def test_step_times_scale_a_kept_trunk_to_a_batch() -> None:
    epochs = [
        {"ms": {"keep-load": [1.0], "keep-trunk": [10.0, 30.0], "forward": [1.0, 3.0]}},
        {"ms": {"forward": [2.0], "backward": [4.0]}},
    ]
    found = finetune.step_ms(epochs, batch_size=64, trunk_batch_size=16)
    assert found == {
        "backward": {"median": 4.0, "min": 4.0, "max": 4.0, "steps": 1},
        "forward": {"median": 2.0, "min": 1.0, "max": 3.0, "steps": 3},
        "trunk": {"median": 80.0, "min": 40.0, "max": 120.0, "steps": 2},
    }


def test_adapted_and_tuned_together(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """FixRes Table 4: the classifier is tuned on adapted activations, whichever way they are adapted."""
    out, size = tmp_path / "both", ("--train-size", "48")
    plain = finetune.main(command(tmp_path / "plain", "--tune", "classifier", "--epochs", "1"))
    assert plain == finetune.main(command(out, "--adapt", "gaussian", *size, "--epochs", "1")) == 0
    note, other = (json.loads((folder / "finetune.json").read_text()) for folder in (out, tmp_path / "plain"))
    assert (note["adapt"], other["adapt"]) == ("gaussian", None) and note["recipe"]["tune"] == "classifier"
    assert note["base"] == other["base"] and note["epochs"][0]["loss"] != other["epochs"][0]["loss"]
    assert "--adapt gaussian" in note["score_with"] and "--train-size 48" in note["score_with"]
    base = load("test_resnet", weights="random", num_classes=CLASSES, img_size=32).net.state_dict()
    tuned = load_file(out / "model.safetensors")
    assert {name for name in tuned if not torch.equal(tuned[name], base[name])} == {"fc.weight", "fc.bias"}
    assert finetune.main(command(tmp_path / "bn", "--adapt", "gaussian", *size, "--tune", "classifier+bn")) == 2
    assert "use --tune classifier without --new-head" in capsys.readouterr().err
