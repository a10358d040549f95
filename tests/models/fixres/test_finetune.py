"""FixRes fine-tuning against references written another way: torch's own loss and BatchNorm on the whole network, and
runs that were not interrupted or kept nothing.

The data are small pictures of four colours, so that a loss can fall; the networks are timm's smallest, untrained.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.classifier import Classifier, weight_hash
from models.fixres import finetune
from models.fixres.finetune import FineTuning, save_weights
from models.fixres.layers import LAYERS, classifier_parameters, default_tune, last_batch_norm
from models.fixres.recipe import Recipe, scaled_lr
from models.fixres.tuning_split import NotSplit, split_at_module, split_nowhere
from models.loading import load
from pipelines.backends.torchvision import Torchvision
from pipelines.batch import LoadConfig
from pipelines.inputspec import InputSpec
from pipelines.training_crops import AUGMENTATIONS, TrainingCrops, epoch_order

IMAGES, K = 24, 32
QUICK = Recipe(tune="classifier+bn", epochs=2, batch_size=8, lr=0.05)


@pytest.fixture(scope="module")
def images(colours: Any) -> Any:
    return colours


LABELS = np.arange(IMAGES) % 4


def untrained(name: str, K: int = K) -> Classifier:
    return load(name, weights="random", num_classes=4, img_size=K)


def crops_of(images: Any, recipe: Recipe, spec: InputSpec, batch_images: int = 5) -> TrainingCrops:
    config = LoadConfig(batch_images=batch_images, workers=0)
    return TrainingCrops(
        images, len(images), recipe, spec, lambda source, planner: Torchvision(source, planner, config)
    )


def tuning_of(images: Any, recipe: Recipe = QUICK, name: str = "test_resnet", **words: Any) -> FineTuning:
    classifier = untrained(name)
    crops = crops_of(images, recipe, classifier.spec, words.pop("batch_images", 5))
    return FineTuning(classifier, crops, LABELS, recipe, trunk_batch_size=8, **words)


def state(tuning: FineTuning) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tuning.classifier.net.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


# ---- which layers


NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
TUNED = {  # network -> the BatchNorm before the pooling, the parameters behind it
    "test_resnet": ("layer4.0.bn2", {"fc.weight", "fc.bias"}),  # layer4.0.downsample.2 runs later, on the shortcut
    "test_efficientnet": ("bn2", {"classifier.weight", "classifier.bias"}),
    "mobilenetv3_small_050": (
        "blocks.5.0.bn1",
        {"conv_head.weight", "conv_head.bias", "classifier.weight", "classifier.bias"},
    ),
    "torchvision:mobilenet_v3_small": (
        "features.12.1",
        {"classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias"},
    ),
}


@pytest.mark.parametrize("name", TUNED)
def test_only_the_stated_tensors_change(images: Any, name: str) -> None:
    norm, head = TUNED[name]
    for tune, expected in (("classifier", head), ("classifier+bn", head | {f"{norm}.{part}" for part in NORM})):
        tuning = tuning_of(images, replace(QUICK, tune=tune), name, keep_bytes=0)  # the trunk runs while training
        before = state(tuning)
        list(tuning.run())
        assert differing(before, state(tuning)) == expected
        assert set(tuning.tuned_state()) == expected
        assert not any(module.training for module in tuning.classifier.net.modules())


FAMILY_NETWORKS = {
    "resnet": ("resnet18", "resnet50", "torchvision:resnet18", "test_resnet"),
    "mobilenet": (
        *("torchvision:mobilenet_v2", "torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_large"),
        "mobilenetv3_small_050",
    ),
    "efficientnet": ("tf_efficientnet_b0", "efficientnet_b0", "test_efficientnet"),
    "efficientnet-lite": ("tf_efficientnet_lite0",),
    "pnasnet": ("pnasnet5large",),
    "senet": ("legacy_seresnet18", "legacy_seresnext26_32x4d"),  # of SENet-154's class
    "resnext-wsl": ("resnext50_32x4d",),
    "nfnet": ("test_nfnet",),
}


@pytest.mark.parametrize(("family", "name"), [(f, n) for f, names in FAMILY_NETWORKS.items() for n in names])
def test_the_table_of_layers_is_true(family: str, name: str) -> None:
    classifier = untrained(name, 64)
    x = torch.randn(2, 3, 64, 64)
    found = last_batch_norm(classifier, x)
    stated = LAYERS[family].batch_norm
    assert (found is None) == (stated is None)
    if found is None or stated is None:
        assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in classifier.net.modules())
        return
    assert re.fullmatch(stated, found), found
    norm = classifier.net.get_submodule(found)
    assert norm.num_features in (classifier.feature_dim, 512, 864)  # type: ignore[operator] # what is pooled, or a branch
    # A change of its bias reaches the features; so it does lie before the pooling.
    before = classifier.features(x)
    with torch.no_grad():
        norm.bias += 1  # type: ignore[operator]
    assert not torch.equal(classifier.features(x), before)  # type: ignore[arg-type]


def test_every_family_has_its_layers_stated() -> None:
    from models.families import FAMILIES

    assert set(LAYERS) == set(FAMILIES) == set(FAMILY_NETWORKS)


def test_default_is_the_classifier_alone_without_a_batch_norm() -> None:
    assert default_tune(untrained("test_nfnet", 64)) == "classifier"
    assert default_tune(untrained("test_resnet", 64)) == "classifier+bn"


def test_head_parameters_leave_the_network_frozen() -> None:
    classifier = untrained("test_resnet", 64)
    assert list(classifier_parameters(classifier, torch.randn(2, 3, 64, 64))) == ["fc.weight", "fc.bias"]
    assert not any(parameter.requires_grad for parameter in classifier.net.parameters())


# ---- the split


@pytest.mark.parametrize(
    "name",
    ["test_resnet", "tf_efficientnet_b0", "mobilenetv3_small_050", "torchvision:shufflenet_v2_x0_5", "regnety_002"],
)
def test_split_gives_the_whole_networks_gradients_and_statistics(name: str) -> None:
    classifier = untrained(name, 64)
    whole = copy.deepcopy(classifier.net)
    x, labels = torch.randn(6, 3, 64, 64), torch.tensor([0, 1, 2, 3, 0, 1])
    norm = last_batch_norm(classifier, x)
    assert norm is not None
    split = split_at_module(classifier.net, norm, x)
    names = [f"{norm}.weight", f"{norm}.bias"]
    for net, run in ((classifier.net, lambda: split.tuned(*split.frozen(x))), (whole, lambda: whole(x))):
        net.get_submodule(norm).train()
        for name_ in names:
            net.get_parameter(name_).requires_grad_(True)
        nn.functional.cross_entropy(run(), labels).backward()
    for name_ in names:
        grad, expected = classifier.net.get_parameter(name_).grad, whole.get_parameter(name_).grad
        assert expected is not None and expected.abs().max() > 0
        assert torch.equal(grad, expected)  # type: ignore[arg-type]
    assert not differing(classifier.net.state_dict(), whole.state_dict())


def test_no_split_says_why_and_still_trains(images: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tuning_of(images)
    list(expected.run())

    def refuse(*_: Any) -> None:
        raise NotSplit("it is a test")

    monkeypatch.setattr(finetune, "split_at_module", refuse)
    tuning = tuning_of(images)
    list(tuning.run())
    assert any("it is a test" in note for note in tuning.notes)
    # The trunk sees batches in place of ``trunk_batch_size`` crops, as many here.
    assert not differing(state(tuning), state(expected))


def test_a_module_that_runs_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.norm(x)).mean((2, 3))

    with pytest.raises(NotSplit, match="norm runs 2 times"):
        split_at_module(Twice().eval(), "norm", torch.randn(2, 3, 8, 8))


def test_code_that_cannot_be_traced_is_refused() -> None:
    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x if x.sum() > 0 else -x).mean((2, 3))

    with pytest.raises(NotSplit, match="cannot be traced"):
        split_at_module(Decides().eval(), "norm", torch.randn(2, 3, 8, 8))
    assert "cannot" in split_nowhere(nn.Identity(), "cannot").where


# ---- training


def test_loss_falls_and_colours_are_learnt(images: Any) -> None:
    tuning = tuning_of(images, replace(QUICK, epochs=20, lr=0.1))
    epochs = list(tuning.run())
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert epochs[-1].top1 > 90 > epochs[0].top1
    assert [epoch.epoch for epoch in epochs] == list(range(20))
    assert {(epoch.steps, epoch.images) for epoch in epochs} == {(3, 24)}


@pytest.mark.parametrize("tune", ["classifier", "classifier+bn"])
def test_kept_activations_equal_recomputed_ones(images: Any, tune: str) -> None:
    recipe = replace(QUICK, tune=tune, epochs=3)
    kept, anew = tuning_of(images, recipe), tuning_of(images, recipe, keep_bytes=0, batch_images=7)
    assert list(kept.run()) == list(anew.run())
    assert kept._kept is not None and anew._kept is None
    assert any("computed anew" in note for note in anew.notes) and not kept.notes
    assert not differing(state(kept), state(anew))


def test_label_smoothing_is_torchs_own(images: Any) -> None:
    losses = []
    for smoothing in (0.0, 0.1):
        recipe = replace(QUICK, label_smoothing=smoothing, batch_size=IMAGES, epochs=1)
        classifier = untrained("test_resnet")
        with torch.no_grad():
            classifier.net.get_parameter("fc.weight").mul_(1000)  # answers that are sure, which smoothing costs
        net = copy.deepcopy(classifier.net)
        net.get_submodule("layer4.0.bn2").train()
        crops = crops_of(images, recipe, classifier.spec)
        together = torch.cat([crops for _, crops in crops.epoch(0, np.arange(IMAGES))])
        with torch.no_grad():
            logits = net(classifier.prepare(together))
        labels = logits.argmax(1)
        labels[0] = (labels[0] + 1) % 4
        expected = nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, labels)
        (epoch,) = FineTuning(classifier, crops, labels.numpy(), recipe, trunk_batch_size=8).run()
        assert epoch.loss == pytest.approx(expected.item(), rel=1e-4)
        assert epoch.top1 == pytest.approx(100 * 23 / 24)
        losses.append(epoch.loss)
    assert losses[1] > 1.1 * losses[0]


def test_a_step_is_sgds_and_batch_norms(images: Any) -> None:
    """One step on all images against torch's whole network, SGD by hand."""
    recipe = replace(QUICK, batch_size=IMAGES, epochs=1, momentum=0.9, weight_decay=0.01)
    tuning = tuning_of(images, recipe)
    net = copy.deepcopy(tuning.classifier.net)
    norm: Any = net.get_submodule("layer4.0.bn2")
    norm.train()
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    names = ["fc.weight", "fc.bias", "layer4.0.bn2.weight", "layer4.0.bn2.bias"]
    for name in names:
        net.get_parameter(name).requires_grad_(True)
    order = epoch_order(recipe.seed, 0, IMAGES)
    together = torch.cat([crops for _, crops in tuning.crops.epoch(0, order)])
    labels = torch.from_numpy(LABELS[order])
    mean_before = norm.running_mean.clone()
    nn.functional.cross_entropy(net(tuning.classifier.prepare(together)), labels).backward()
    list(tuning.run())
    for name in names:
        parameter = net.get_parameter(name)
        assert parameter.grad is not None
        expected = parameter - recipe.lr * (parameter.grad + 0.01 * parameter)
        assert torch.allclose(tuning.classifier.net.get_parameter(name), expected, rtol=1e-4, atol=1e-6)
    mean = seen[0].double().mean((0, 2, 3))
    expected = 0.9 * mean_before.double() + 0.1 * mean
    found = tuning.classifier.net.get_submodule("layer4.0.bn2").running_mean
    assert torch.allclose(found.double(), expected, atol=1e-6)  # type: ignore[union-attr,operator]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_resumed_run_equals_an_undisturbed_one(images: Any, tmp_path: Path, augmentation: str) -> None:
    recipe = replace(QUICK, augmentation=augmentation, epochs=4)
    whole = tuning_of(images, recipe)
    expected = list(whole.run())
    first = tuning_of(images, recipe)
    log: list[dict[str, object]] = []
    for epoch in first.run():
        log.append({"loss": epoch.loss})
        first.save_state(tmp_path / "state.safetensors", log)
        if epoch.epoch == 1:
            break
    second = tuning_of(images, recipe, batch_images=9)
    assert second.load_state(tmp_path / "state.safetensors") == log
    assert list(second.run()) == expected[2:]
    assert not differing(state(whole), state(second))
    assert differing(state(first), state(second))
    assert not list(tmp_path.glob("*.part"))


def test_a_state_of_another_recipe_is_refused(images: Any, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    tuning_of(images).save_state(path, [])
    with pytest.raises(ValueError, match="another recipe"):
        tuning_of(images, replace(QUICK, lr=0.1)).load_state(path)
    with pytest.raises(ValueError, match="another recipe or network"):
        tuning_of(images, name="test_efficientnet").load_state(path)
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="not a saved state"):
        tuning_of(images).load_state(path)


def test_checkpoint_loads_back_with_equal_outputs(images: Any, tmp_path: Path) -> None:
    tuning = tuning_of(images)
    list(tuning.run())
    save_weights(tuning.classifier.net, tmp_path / "model.safetensors")
    again = load("test_resnet", checkpoint=tmp_path / "model.safetensors", img_size=K)
    x = torch.randn(5, 3, K, K)
    with torch.no_grad():
        assert torch.equal(again.logits(x), tuning.classifier.logits(x))
    assert again.weight_hash == weight_hash(tuning.classifier.net) != tuning.classifier.weight_hash
    assert again.num_classes == 4


def test_the_rate_is_the_papers() -> None:
    paper = Recipe()
    rates = [paper.rate(epoch) for epoch in range(60)]
    assert rates[:30] == [0.008] * 30 and rates[30:] == pytest.approx([0.0008] * 30)  # "divided by 10 every 30 epochs"
    assert scaled_lr(512) == 0.008 and scaled_lr(256) == 0.004
    assert Recipe(epochs=1).rate(0) == 0.008
    assert [Recipe(epochs=5).rate(epoch) for epoch in range(5)] == pytest.approx([0.008] * 3 + [0.0008] * 2)


def test_the_rate_of_each_epoch_is_used(images: Any) -> None:
    tuning = tuning_of(images)
    used = [(epoch.lr, tuning.optimizer.param_groups[0]["lr"]) for epoch in tuning.run()]
    assert used == [(0.05, 0.05), (pytest.approx(0.005), pytest.approx(0.005))]


def test_stages_are_timed_in_order(images: Any) -> None:
    laps: list[str] = []
    tuning = tuning_of(images, replace(QUICK, epochs=1), keep_bytes=0, lap=laps.append)
    list(tuning.run())
    assert laps == ["", *["load", "trunk", "forward", "backward", ""] * 3]
    laps.clear()
    list(tuning_of(images, replace(QUICK, epochs=1), lap=laps.append).run())
    assert laps == ["", *["keep-load", "keep-trunk"] * 3, "", *["load", "forward", "backward", ""] * 3]
    assert set(laps) - {""} <= set(finetune.STAGES)


def test_an_unreadable_image_costs_itself(colours: Any, listing: Callable[[Path], Any], tmp_path: Path) -> None:
    for path in colours.root.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    images = listing(tmp_path)
    (tmp_path / "05.png").write_bytes(b"no image")
    for words in ({}, {"keep_bytes": 0}):
        tuning = tuning_of(images, **words)
        epochs = list(tuning.run())
        assert [epoch.steps for epoch in epochs] == [2, 2]  # of 23 images, two whole batches of 8
        assert list(tuning.crops.failed) == [5] and "PIL" in tuning.crops.failed[5].reason
        used = [row for rows, _ in tuning._batches(0) for row in rows]
        order = epoch_order(0, 0, IMAGES)
        assert used == order[order != 5][:16].tolist()


# ---- what is refused


def test_errors_name_the_remedy(images: Any) -> None:
    with pytest.raises(ValueError, match=r"test_nfnet.* has no BatchNorm .* use `tune` classifier"):
        tuning_of(images, name="test_nfnet")
    with pytest.raises(ValueError, match="more than the 24 images: lower it"):
        tuning_of(images, replace(QUICK, batch_size=25))
    classifier = untrained("test_resnet")
    crops = crops_of(images, QUICK, classifier.spec)
    with pytest.raises(ValueError, match="1 have none, 2 a higher one"):
        FineTuning(classifier, crops, np.array([-1, 4, 9, *[0] * 21]), QUICK)
    squeezenet = load("torchvision:squeezenet1_1", weights="random", num_classes=4, img_size=64)
    with pytest.raises(ValueError, match="pools the class scores"):
        FineTuning(squeezenet, crops, LABELS, replace(QUICK, tune="classifier"))


def test_a_loss_that_is_no_number_stops(images: Any) -> None:
    with pytest.raises(RuntimeError, match="lower `lr`"):
        list(tuning_of(images, replace(QUICK, lr=1e30, epochs=5)).run())


@pytest.mark.parametrize(
    "wrong",
    [
        {"tune": "trunk"}, {"augmentation": "test3"}, {"epochs": 0}, {"batch_size": 0}, {"batch_size": 1}, {"lr": 0.0},
        {"lr": float("nan")}, {"momentum": 1.0}, {"weight_decay": -1.0}, {"label_smoothing": 1.0},
        {"jitter": -0.1}, {"min_area": 0.0}, {"min_area": 1.1},
    ],
)  # fmt: skip
def test_recipes_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`"):
        Recipe(**wrong)
