"""A new head, held-out images and training of the whole network, against plain torch."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models.fixres.finetune import FineTuning
from models.fixres.held_out import held_out
from models.fixres.new_head import with_new_head
from models.fixres.recipe import Recipe
from models.loading import load
from pipelines.backends.torchvision import Torchvision
from pipelines.batch import LoadConfig
from pipelines.training_crops import TrainingCrops, epoch_order

IMAGES, K = 24, 32
LABELS = np.arange(IMAGES) % 4
QUICK = Recipe(tune="classifier", epochs=3, batch_size=6, lr=0.05, val_split=0.25)
CLASSES = ("ant", "bee", "cat", "dog")


def crops_of(images: Any, recipe: Recipe, spec: Any) -> TrainingCrops:
    config = LoadConfig(batch_images=5, workers=0)
    return TrainingCrops(images, IMAGES, recipe, spec, lambda source, planner: Torchvision(source, planner, config))


def tuning_of(images: Any, recipe: Recipe, labels: np.ndarray = LABELS, rows: np.ndarray | None = None) -> FineTuning:
    classifier = load("test_resnet", weights="random", num_classes=4, img_size=K)
    tuning = FineTuning(classifier, crops_of(images, recipe, classifier.spec), labels, recipe, trunk_batch_size=8)
    if rows is not None:
        tuning.hold_out(rows, crops_of(images, replace(recipe, augmentation="test"), classifier.spec))
    return tuning


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("test_resnet", "fc"),
        ("test_nfnet", "head.fc"),
        ("mobilenetv3_small_050", "classifier"),
        ("tf_efficientnet_lite0", "classifier"),
        ("torchvision:mobilenet_v3_small", "classifier.3"),
    ],
)
def test_only_the_last_layer_is_new(model: str, layer: str) -> None:
    classifier = load(model, weights="random", img_size=64)
    before = copy.deepcopy(classifier.net.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    found = with_new_head(classifier, CLASSES, seed=1)
    assert torch.equal(torch.rand(1), expected)  # the caller's random numbers are untouched
    after = found.net.state_dict()
    differing = {name for name in after if not torch.equal(after[name], before.get(name, torch.empty(0)))}
    assert differing == {f"{layer}.weight", f"{layer}.bias"}
    assert found.num_classes == 4 and found.class_names == CLASSES and found.has_feature_level
    again = with_new_head(load(model, weights="random", img_size=64), CLASSES, seed=1)
    other = with_new_head(load(model, weights="random", img_size=64), CLASSES, seed=2)
    assert found.weight_hash == again.weight_hash != other.weight_hash


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two classes or more; there are 1"):
        with_new_head(load("test_resnet", weights="random", img_size=64), ["ant"], seed=0)


def test_each_class_gives_its_share_by_seed_and_name() -> None:
    names = [f"{i}.jpg" for i in range(43)]
    labels = np.array([0] * 20 + [1] * 20 + [2] * 2 + [3])
    rows = held_out(names, labels, 0.2, seed=0)
    assert [int(rows[labels == c].sum()) for c in range(4)] == [4, 4, 1, 0]
    assert np.array_equal(rows, held_out(names, labels, 0.2, seed=0))
    assert not np.array_equal(rows, held_out(names, labels, 0.2, seed=1))
    order = np.random.default_rng(0).permutation(len(names))
    assert np.array_equal(rows[order], held_out([names[i] for i in order], labels[order], 0.2, seed=0))


@pytest.mark.parametrize("augmentation", ["test", "train"])
def test_what_is_held_out_is_not_trained_on(colours: Any, augmentation: str) -> None:
    rows = np.arange(IMAGES) >= 18
    wrong = np.where(rows, (LABELS + 1) % 4, LABELS)
    recipe = replace(QUICK, augmentation=augmentation)
    one, other = (list(tuning_of(colours, recipe, labels, rows).run()) for labels in (LABELS, wrong))
    assert [epoch.loss for epoch in one] == [epoch.loss for epoch in other]
    assert [epoch.val_loss for epoch in one] != [epoch.val_loss for epoch in other]
    assert all(epoch.images == 18 for epoch in one)


def test_the_result_is_the_best_epochs_and_training_stops_by_patience(colours: Any) -> None:
    rows = np.arange(IMAGES) >= 18
    wrong = np.where(rows, (LABELS + 1) % 4, LABELS)  # what is learnt makes the held-out images worse
    recipe = replace(QUICK, epochs=20, patience=2, lr=0.2)
    tuning = tuning_of(colours, recipe, wrong, rows)
    epochs, states = [], []
    for epoch in tuning.run():
        epochs.append(epoch)
        states.append(copy.deepcopy(tuning.tuned_state()))
    losses = [epoch.val_loss for epoch in epochs]
    best = int(np.argmin(losses))
    assert tuning.best_epoch == best and len(epochs) == best + 3 < 20
    assert all(torch.equal(tensor, states[best][name]) for name, tensor in tuning.tuned_state().items())
    # The loss is that of a plain forward pass over the centre crops.
    batches = tuning.crops.epoch(0, np.arange(IMAGES))
    crops = {row: crop for found, batch in batches for row, crop in zip(found, batch, strict=True)}
    x = torch.stack([crops[row] for row in np.flatnonzero(rows)])
    logits = tuning.classifier.net(tuning.classifier.prepare(x))
    expected = nn.functional.cross_entropy(logits, torch.from_numpy(wrong[rows])).item()
    assert losses[best] == pytest.approx(expected, rel=1e-5)


def trained_by_plain_torch(tuning: FineTuning, recipe: Recipe, modules: list[str]) -> dict[str, torch.Tensor]:
    """The state of a copy of the network in which only these modules are trained; "" is all of it."""
    net = copy.deepcopy(tuning.classifier.net)
    trained = [parameter for name in modules for parameter in net.get_submodule(name).parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.SGD(trained, lr=recipe.lr, momentum=0.9, weight_decay=1e-4)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = recipe.lr * (1, 0.1)[epoch]
        order = epoch_order(0, epoch, IMAGES)
        found = {r: c for rows, batch in tuning.crops.epoch(epoch, order) for r, c in zip(rows, batch, strict=True)}
        for start in range(0, IMAGES, 6):
            rows = order[start : start + 6]
            for name in modules:
                net.get_submodule(name).train()
            x = tuning.classifier.prepare(torch.stack([found[row] for row in rows]))
            loss = nn.functional.cross_entropy(net(x), torch.from_numpy(LABELS[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return dict(net.state_dict())


@pytest.mark.parametrize(
    ("changed", "modules", "where"),
    [
        ({"tune": "all", "augmentation": "train"}, [""], None),
        ({"tune": "last-block"}, ["layer4.0", "fc"], "before layer4.0"),
        ({"tune": "from:layer3"}, ["layer3", "layer4", "fc"], "before layer3"),
    ],
    ids=["the whole network", "the last block", "from a module on"],
)
def test_more_of_the_network_is_trained_as_plain_torch_trains_it(
    colours: Any, changed: dict[str, Any], modules: list[str], where: str | None
) -> None:
    recipe = replace(QUICK, epochs=2, val_split=0.0, **changed)
    tuning = tuning_of(colours, recipe)
    assert where is None or tuning.split.where == where
    expected = trained_by_plain_torch(tuning, recipe, modules)
    list(tuning.run())
    for name, tensor in tuning.classifier.net.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=1e-4, atol=1e-6), name
    assert not any(module.training for module in tuning.classifier.net.modules())


def test_dropout_draws_the_same_after_a_stop(colours: Any, tmp_path: Any) -> None:
    recipe = replace(QUICK, tune="all", val_split=0.0, epochs=2)

    def tuning() -> FineTuning:
        classifier = load("test_resnet", weights="random", num_classes=4, img_size=K, model_kwargs={"drop_rate": 0.5})
        return FineTuning(classifier, crops_of(colours, recipe, classifier.spec), LABELS, recipe, trunk_batch_size=8)

    torch.manual_seed(1)
    expected = list((whole := tuning()).run())
    cut = tuning()
    next(cut.run())
    cut.save_state(tmp_path / "state.safetensors", [])
    torch.manual_seed(2)
    again = tuning()
    again.load_state(tmp_path / "state.safetensors")
    assert list(again.run()) == expected[1:]
    assert again.classifier.weight_hash == whole.classifier.weight_hash
    assert not any(module.training for module in again.classifier.net.modules())


@pytest.mark.parametrize("tune", ["classifier", "last-block", "all"])
def test_a_stopped_run_goes_on_bit_for_bit(colours: Any, tmp_path: Any, tune: str) -> None:
    rows, recipe = np.arange(IMAGES) >= 18, replace(QUICK, tune=tune, epochs=4, patience=3)
    whole = tuning_of(colours, recipe, rows=rows)
    expected = list(whole.run())
    cut = tuning_of(colours, recipe, rows=rows)
    run = cut.run()
    next(run), next(run)
    cut.save_state(tmp_path / "state.safetensors", [])
    again = tuning_of(colours, recipe, rows=rows)
    again.load_state(tmp_path / "state.safetensors")
    assert list(again.run()) == expected[2:]
    assert again.best_epoch == whole.best_epoch
    assert all(
        torch.equal(a, b) for a, b in zip(again.tuned_state().values(), whole.tuned_state().values(), strict=True)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_split": 1.0}, "`val_split` 1.0"),
        ({"val_split": 0.0, "patience": 3}, "`patience` 3 needs `val_split`"),
        ({"patience": 0}, "must be 1 or more"),
        ({"tune": "all", "batch_size": 1}, "`batch_size` 1"),
        ({"opt": "adam"}, "`opt` 'adam' is not one of sgd, lbfgs"),
        ({"opt": "lbfgs", "tune": "all", "epochs": 1}, "`opt` lbfgs .* needs `tune` classifier"),
        ({"opt": "lbfgs", "augmentation": "train", "epochs": 1}, "needs `tune` classifier and `augmentation` test"),
        ({"opt": "lbfgs"}, "`opt` lbfgs takes one step"),
        ({"weight_decay": None}, "`weight_decay` None"),
    ],
)
def test_recipes_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **changes)


def test_too_few_images_beside_the_held_out_ones(colours: Any) -> None:
    with pytest.raises(ValueError, match="`batch_size` 6 is more than the 4 images that are not held out"):
        tuning_of(colours, QUICK, rows=np.arange(IMAGES) >= 4)
