"""--checkpoint FILE against the library's own loading of the same file as its published weights.

pytest tests/models/test_checkpoints.py
"""

from __future__ import annotations

import argparse
import datetime
import pathlib
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision

from models.checkpoints import WeightsError, load_weights, read_checkpoint
from models.loading import load

X = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(3))


def random_state(net):
    """Weights with which answers differ from image to image."""
    torch.manual_seed(7)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net.train()(X)
    return net.state_dict()


def old_densenet_names(state):
    """As in torchvision's published files, which are older than its present names and BatchNorm's counters."""
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor for name, tensor in state.items()}


PUBLISHED = {
    "googlenet": ({"aux_logits": True, "init_weights": False}, lambda state: state),
    "densenet121": ({}, old_densenet_names),
    "mnasnet0_5": ({}, lambda state: state),
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_a_file_of_torchvision_answers_as_torchvision_answers_with_it(arch, tmp_path, monkeypatch):
    kwargs, published = PUBLISHED[arch]
    state = published(random_state(torchvision.models.get_model(arch, weights=None, **kwargs)))
    entry = torchvision.models.get_model_weights(arch).IMAGENET1K_V1
    path = tmp_path / "checkpoints" / entry.url.rsplit("/", 1)[-1]
    path.parent.mkdir()
    torch.save(state, path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    theirs = torchvision.models.get_model(arch, weights=entry).eval()
    ours = load(f"torchvision:{arch}", checkpoint=path)
    with torch.inference_mode():
        assert torch.equal(ours.net(X), theirs(X))


def test_whether_the_input_is_changed_must_be_said_of_own_classes(tmp_path):
    state = torchvision.models.googlenet(weights=None, num_classes=7, aux_logits=True, init_weights=False).state_dict()
    torch.save(state, tmp_path / "own.pth")
    with pytest.raises(WeightsError, match=r"7 classes does not say .*`model_kwargs` transform_input=True"):
        load("torchvision:googlenet", checkpoint=tmp_path / "own.pth")
    kwargs = {"transform_input": True, "init_weights": False}
    found = load("torchvision:googlenet", checkpoint=tmp_path / "own.pth", model_kwargs=kwargs)
    assert found.num_classes == 7 and found.net.transform_input


def facebooks_convnext(state):
    """The names of the published files of ConvNeXt's authors."""
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in (
            (r"downsample_layers.0.", r"stem."),
            (r"norm.", r"head.norm."),
            (r"head.", r"head.fc."),
            (r".dwconv.", r".conv_dw."),
            (r".pwconv", r".mlp.fc"),
        ):
            if ours in name:
                name = name.replace(ours, theirs)
                break
        name = re.sub(r"stages\.(\d+)\.blocks\.(\d+)", r"stages.\1.\2", name)
        name = re.sub(r"stages\.(\d+)\.downsample\.(\d+)", r"downsample_layers.\1.\2", name)
        renamed[name] = tensor
    return {"model": renamed}


def test_a_file_of_a_networks_authors_is_converted_as_timm_converts_it(tmp_path):
    torch.manual_seed(1)
    own = timm.create_model("convnext_atto").eval()
    torch.save(facebooks_convnext(own.state_dict()), tmp_path / "theirs.pth")
    overlay = {"file": str(tmp_path / "theirs.pth")}
    theirs = timm.create_model("convnext_atto", pretrained=True, pretrained_cfg_overlay=overlay).eval()
    ours = load("convnext_atto", checkpoint=tmp_path / "theirs.pth")
    with torch.inference_mode():
        assert torch.equal(theirs(X), own(X))
        assert torch.equal(ours.net(X), theirs(X))


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(2)
    return timm.create_model("test_resnet", num_classes=10).state_dict()


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


WRAPPED = {
    "Lightning": lambda s: {"state_dict": prefixed("model.", s), "callbacks": {"x": {"best": torch.tensor(0.7)}}},
    "Lightning with a loss": lambda s: {"state_dict": {**prefixed("net.model.", s), "net.loss.w": torch.ones(3)}},
    "a prefix of its own": lambda s: prefixed("encoder.backbone.", s),
    "an unknown wrapper": lambda s: {"weights": s, "epoch": 3},
    "wrappers in wrappers": lambda s: {"state": {"network": {"net": s}}, "optimizer": {"m": {"a": torch.ones(2)}}},
    "numbers beside tensors": lambda s: {**s, "epoch": 3, "best": 0.7, "name": "resnet"},
    "NumPy's numbers": lambda s: {"state_dict": s, "best_acc": np.float64(0.7), "epoch": np.int64(3), "a": np.ones(3)},
    "paths and arguments": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(out=pathlib.Path("runs"), lr=np.float32(0.1)),
    },
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_weights_are_found_by_what_a_file_holds(kind, state, tmp_path):
    torch.save(WRAPPED[kind](state), tmp_path / "file.pth")
    found = load("test_resnet", checkpoint=tmp_path / "file.pth")
    assert found.num_classes == 10
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.net.state_dict().items())


def test_safetensors_are_known_by_their_content(state, tmp_path):
    from safetensors.torch import save_file

    save_file(state, tmp_path / "weights.bin")
    assert load("test_resnet", checkpoint=tmp_path / "weights.bin").num_classes == 10


def test_two_networks_in_one_file_are_refused(state, tmp_path):
    torch.save({"student": state, "teacher": state}, tmp_path / "two.pth")
    with pytest.raises(WeightsError, match=r"several state dicts \(student, teacher\)"):
        read_checkpoint(tmp_path / "two.pth")


def test_the_refused_object_is_named_without_colours(state, tmp_path):
    torch.save({"state_dict": state, "when": datetime.datetime(2026, 1, 1)}, tmp_path / "when.pth")
    with pytest.raises(WeightsError, match=r"it holds datetime\.datetime\)") as caught:
        read_checkpoint(tmp_path / "when.pth")
    assert str(caught.value).isprintable()


def test_a_network_that_timm_would_load_in_part_is_refused(tmp_path):
    state = timm.create_model("dla34").state_dict()
    del state["level3.tree1.tree1.conv1.weight"]
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match=r"1 missing: level3\.tree1\.tree1\.conv1\.weight"):
        load("dla34", checkpoint=tmp_path / "part.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_not_cast(dtype: torch.dtype) -> None:
    net = torch.nn.Linear(3, 2)
    state = {"weight": torch.ones(2, 3).to(dtype), "bias": torch.zeros(2)}
    with pytest.raises(WeightsError, match=rf"weight \({str(dtype).removeprefix('torch.')} for float32\)"):
        load_weights(net, state, Path("w.pt"), "net")


STRANGE = {
    "sparse": lambda weight: weight.to_sparse(),
    "without data": lambda weight: torch.empty_like(weight, device="meta"),
    "complex64": lambda weight: weight.to(torch.complex64),
    "bool": lambda weight: weight > 0,
    "nested tensors": lambda weight: torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)]),
    "of another shape: fc.weight []": lambda weight: torch.tensor(1.0),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_plain_numbers_are_named(kind, tmp_path):
    """Through the whole of loading: a library's own way would cast some of them without a word."""
    state = timm.create_model("test_resnet").state_dict()
    torch.save(state | {"fc.weight": STRANGE[kind](state["fc.weight"])}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=rf"w\.pt .*{re.escape(kind)}"):
        load("test_resnet", checkpoint=tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_point_of_another_width_is_taken(dtype: torch.dtype) -> None:
    net = torch.nn.Linear(3, 2)
    load_weights(net, {"weight": torch.ones(2, 3, dtype=dtype), "bias": torch.zeros(2)}, Path("w.pt"), "net")
    assert net.weight.dtype == torch.float32
    assert bool((net.weight == 1).all())
