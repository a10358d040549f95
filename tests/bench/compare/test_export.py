"""Export: ONNX Runtime answers as the network does, for any number of images, crops and sizes of frames."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from bench.compare import export
from models import MultiCrop, onnx_check
from models import export as onnx_export
from models.multicrop import ImageResult

onnxruntime = pytest.importorskip("onnxruntime", reason='pip install -e ".[onnx]"')
pytest.importorskip("onnx", reason='pip install -e ".[onnx]"')
K = 64


@pytest.fixture
def exported(weights_file: Path, demo_root: Path, tmp_path: Path) -> Callable[..., tuple[int, Path]]:
    """``exported("--policy", "CC")``: the command's status and its folder."""

    def call(*arguments: str) -> tuple[int, Path]:
        model = ["--model", "test_resnet", "--checkpoint", str(weights_file), "--img-size", str(K)]
        out = tmp_path / "exported"
        given = [*model, "--data", str(demo_root), "--check-images", "5", "--device", "cpu", "--out", str(out), "-q"]
        return export.main([*given, "--data-backend", "torchvision", *arguments]), out

    return call


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def expected(weights: Path, crops: np.ndarray, level: str) -> np.ndarray:
    """With timm alone: normalised crops [b, v, K, K, 3], features, logits and their means."""
    state = load_file(weights)
    net: Any = timm.create_model("test_resnet", num_classes=len(state["fc.bias"]))
    net.load_state_dict(state)
    net.eval()
    config = net.pretrained_cfg
    x = (torch.from_numpy(crops).double() / 255 - torch.tensor(config["mean"])) / torch.tensor(config["std"])
    with torch.no_grad():
        maps = net.forward_features(x.flatten(0, 1).permute(0, 3, 1, 2).float())
        features = maps.mean((2, 3)).unflatten(0, crops.shape[:2])
        if level == "feature":
            return net.fc(features.mean(1)).softmax(-1).numpy()
        logits = net.fc(features)
    return (logits.softmax(-1).mean(1) if level == "softmax" else logits.mean(1).softmax(-1)).numpy()


@pytest.mark.parametrize("level", ["softmax", "logit", "feature"])
def test_scores_are_those_of_the_network_for_any_number_of_images_and_crops(
    level: str, exported: Callable[..., tuple[int, Path]], weights_file: Path
) -> None:
    status, out = exported("--policy", "CC+2RC", "--level", level)
    assert status == 0
    network = session(out / "network.onnx")
    (given,), (scores,) = network.get_inputs(), network.get_outputs()
    assert (given.name, given.type, given.shape) == ("crops", "tensor(uint8)", ["images", "crops", K, K, 3])
    assert (scores.name, scores.type) == ("scores", "tensor(float)")
    random = np.random.default_rng(0)
    for images, views in [(1, 1), (2, 3), (5, 7)]:
        crops = random.integers(0, 256, (images, views, K, K, 3), dtype=np.uint8)
        found = network.run(None, {"crops": crops})[0]
        assert np.abs(found - expected(weights_file, crops, level)).max() < 1e-5
        assert np.allclose(found.sum(1), 1, atol=1e-5)
    said = json.loads((out / "export.json").read_text())
    assert said["networks"][0]["inputs"][0]["shape"] == given.shape and said["level"] == level
    assert said["networks"][0]["output"]["shape"] == scores.shape
    assert said["checked"]["images"] == 5 and said["checked"]["largest_difference"] < 1e-5
    assert said["checked"]["top1_agreement"] == 1


@pytest.mark.parametrize("policy", ["CC+5FC", "CC@96+2RC+3ARC@96", "CC+3DC", "2DC+MDC+2WI+2RC"])
def test_policies_of_all_kinds_agree(policy: str, exported: Callable[..., tuple[int, Path]]) -> None:
    status, out = exported("--policy", policy)
    assert status == 0
    said = json.loads((out / "export.json").read_text())
    assert said["checked"]["largest_difference"] < 1e-5 and said["checked"]["top1_agreement"] == 1
    names = [one["name"] for one in said["networks"][0]["inputs"]]
    assert names == [one.name for one in session(out / "network.onnx").get_inputs()]
    assert sorted(path.name for path in out.iterdir()) == ["export.json", "network.onnx"]


@pytest.mark.parametrize("level", ["softmax", "logit", "feature"])
def test_stopping_by_the_written_rule_gives_our_answers(
    level: str, exported: Callable[..., tuple[int, Path]], weights_file: Path, demo_root: Path
) -> None:
    """The rule of export.json on the scores of single views, as a program of someone else would use them."""
    status, out = exported("--policy", "CC+9RC~sqrt", "--level", level)
    assert status == 0
    said = json.loads((out / "export.json").read_text())
    assert (said["stopping"]["rule"], said["stopping"]["order"]) == ("sqrt", "CC+9RC")
    network = session(out / "crops.onnx")
    classify = MultiCrop(
        "test_resnet", checkpoint=weights_file, img_size=K, policy="CC+9RC~sqrt", level=level, backend="torchvision"
    )
    data = classify.dataset(demo_root)
    ours = {image.name: image for image in classify(demo_root)}
    views, used = 10, []
    for batch in classify.batches(data, np.arange(12)):
        (group,) = batch.groups
        for row, name in zip(batch.rows.tolist(), data.names(batch.rows), strict=True):
            own = group.crops[torch.from_numpy(group.image == row)].numpy()
            out_of_views = network.run(None, {"crops": own[None]})[0][0].astype(np.float64)
            for n in range(1, views + 1):
                mean = out_of_views[:n].mean(0)
                p = mean if level == "softmax" else np.exp(mean - mean.max()) / np.exp(mean - mean.max()).sum()
                second, first = np.sort(p)[-2:]
                if (first - second) * n > np.sqrt(n * (views - n) / views):
                    break
            used.append(n)
            assert isinstance(ours[name], ImageResult) and np.abs(ours[name].probabilities - p).max() < 1e-5
    assert min(used) < views  # some stop early


def test_a_length_that_became_a_constant_is_found(
    exported: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fixed(module: onnx_export.Averaged, path: Path) -> None:
        names = [one.name for one in module.graph.inputs]
        torch.onnx.export(module, module.example(), str(path), dynamo=False, input_names=names, output_names=["scores"])

    traced = onnx_export.EXPORTERS["torchscript"]
    monkeypatch.setattr(onnx_export, "EXPORTERS", {"fixed": fixed})
    status, out = exported("--policy", "CC+2RC")
    assert status == 2 and "cannot be exported: fixed: " in capsys.readouterr().err and not out.exists()
    monkeypatch.setattr(onnx_export, "EXPORTERS", {"fixed": fixed, "torchscript": traced})
    status, out = exported("--policy", "CC+2RC")
    assert status == 0
    assert json.loads((out / "export.json").read_text())["networks"][0]["exporter"] == "torchscript"


def test_answers_that_are_not_ours_are_refused(
    exported: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = onnx_export.Averaged.normalized
    monkeypatch.setattr(onnx_export.Averaged, "normalized", lambda self, pixels: right(self, pixels).flip(1))
    status, out = exported("--policy", "CC")
    assert status == 2 and "does not give our answers: on 5 images" in capsys.readouterr().err
    assert not out.exists() and list(out.parent.glob(f".{out.name}*")) == []


def test_without_the_packages_the_command_that_installs_them_is_named(
    exported: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_export, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert exported()[0] == 2
    assert 'needs the package onnxruntime, which is not installed: pip install -e ".[onnx]"' in capsys.readouterr().err


def test_what_cannot_be_exported_says_why(
    exported: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("models.dense.Dense._averages", lambda self, like: False)
        status, out = exported("--policy", "CC+3DC")
    assert status == 2 and "does not pool its map by a mean" in capsys.readouterr().err
    classifier = MultiCrop("mobilenetv3_small_050", weights="random", img_size=64, policy="CC").classifier
    with pytest.raises(onnx_export.ExportError, match=r"the head of mobilenetv3_small_050\S* is not linear"):
        onnx_export.graphs_of(classifier, onnx_export.Policy((("RC", 4),), "exact", (("RC", 4),)), "feature")
    assert not out.exists()


def test_a_folder_that_exists_or_cannot_be_made_is_refused(
    exported: Callable[..., tuple[int, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "exported").mkdir()
    assert exported()[0] == 2 and f"--out {tmp_path / 'exported'} exists" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert exported("--out", str(tmp_path / "file" / "below"))[0] == 2 and "file" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        export.main(["--model", "test_resnet"])
    assert stop.value.code == 2 and "--out DIR is needed" in capsys.readouterr().err


def test_an_interrupted_export_leaves_nothing(
    exported: Callable[..., tuple[int, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_check, "agreement", interrupted)
    status, out = exported("--policy", "CC")
    assert status == 130 and "nothing was written" in capsys.readouterr().err
    assert not out.exists() and list(out.parent.glob(f".{out.name}*")) == []


def test_a_multicrop_that_has_seen_images_is_refused(weights_file: Path, demo_root: Path, tmp_path: Path) -> None:
    """In bfloat16 its weights are rounded from then on."""
    classify = MultiCrop("test_resnet", checkpoint=weights_file, img_size=K, policy="CC", backend="torchvision")
    next(iter(classify(demo_root)))
    with pytest.raises(onnx_export.ExportError, match="before its first image"):
        onnx_export.export(classify, tmp_path, onnx_check.differs)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet:demo", "mobilenet:demo", "efficientnet:demo", "nfnet:demo"])
def test_the_demo_networks_agree(model: str, demo_root: Path, tmp_path: Path) -> None:
    for level, policy in [("softmax", "CC+3DC~exact"), ("logit", "CC+2RC"), ("feature", "CC+3DC")]:
        out = tmp_path / level
        given = ["--model", model, "--policy", policy, "--level", level, "--data", str(demo_root), "-q"]
        assert export.main([*given, "--data-backend", "torchvision", "--device", "cpu", "--out", str(out)]) == 0
        checked = json.loads((out / "export.json").read_text())["checked"]
        assert checked["largest_difference"] < 1e-5 and checked["top1_agreement"] == 1


@pytest.mark.slow
def test_networks_that_tracing_does_not_take_go_through_torch_export(
    demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "EXPORTERS", {"dynamo": onnx_export.EXPORTERS["dynamo"]})
    given = ["--model", "resnet:demo", "--policy", "CC+2RC", "--data", str(demo_root), "-q", "--device", "cpu"]
    assert export.main([*given, "--data-backend", "torchvision", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "export.json").read_text())["networks"][0]["exporter"] == "dynamo"
