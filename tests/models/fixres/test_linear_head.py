"""The best linear layer on fixed features against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from models.fixres import linear_head
from models.fixres.layers import classifier_parameters, from_module, last_block, pooled_features, probe_batch
from models.fixres.linear_head import only_linear_layer, solve
from models.loading import load

linear_model = pytest.importorskip("sklearn.linear_model")


def made(n: int, classes: int, seed: int, f: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Features as behind a ReLU, of very different sizes; classes that overlap."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    x = rng.normal(0, 1, (classes, f))[labels] + rng.normal(0, 2, (n, f))
    return torch.from_numpy(np.maximum(x, 0) * 10 ** rng.uniform(-1, 1, f)).float(), torch.from_numpy(labels)


def sklearn_fit(x: torch.Tensor, y: torch.Tensor, C: float = 1.0) -> linear_model.LogisticRegression:
    return linear_model.LogisticRegression(C=C, tol=1e-9, max_iter=100_000).fit(x.double().numpy(), y.numpy())


@pytest.mark.parametrize("n", [12, 60, 500])
@pytest.mark.parametrize("classes", [3, 7])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_is_scikit_learns_optimum(n: int, classes: int, seed: int) -> None:
    x, y = made(n, classes, seed)
    found, expected = solve(x, y, classes), sklearn_fit(x, y)
    assert found.converged and found.weight_decay == 1 / n
    assert np.allclose(found.weight.numpy(), expected.coef_, atol=1e-3 * np.abs(expected.coef_).max())
    centred = found.bias - found.bias.mean()  # a constant added to all of them changes no probability
    assert np.allclose(centred.numpy(), expected.intercept_ - expected.intercept_.mean(), atol=2e-3)
    assert found.top1 == pytest.approx(100 * expected.score(x.double().numpy(), y.numpy()))
    log_p = expected.predict_log_proba(x.double().numpy())[np.arange(n), y.numpy()]
    assert found.loss == pytest.approx(-log_p.mean(), abs=1e-5)


def test_two_classes_and_another_penalty() -> None:
    x, y = made(80, 2, 0)
    found, expected = solve(x, y, 2), sklearn_fit(x, y)
    difference = (found.weight[1] - found.weight[0]).numpy()
    assert np.allclose(difference, expected.coef_[0], atol=1e-3 * np.abs(expected.coef_).max())
    x, y = made(80, 4, 0)
    found, expected = solve(x, y, 4, weight_decay=0.05), sklearn_fit(x, y, C=1 / (80 * 0.05))
    assert np.allclose(found.weight.numpy(), expected.coef_, atol=1e-3 * np.abs(expected.coef_).max())
    assert not np.allclose(found.weight.numpy(), sklearn_fit(x, y).coef_, atol=1e-3)


def test_label_smoothing_is_torchs_and_rows_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = made(50, 3, 2)
    whole = solve(x, y, 3, label_smoothing=0.1)
    monkeypatch.setattr(linear_head, "ROWS", 7)
    pieces = solve(x, y, 3, label_smoothing=0.1)
    assert torch.allclose(whole.weight, pieces.weight, atol=1e-4)
    weight, bias = whole.weight.clone().requires_grad_(), whole.bias.clone().requires_grad_()
    loss = nn.functional.cross_entropy(x.double() @ weight.T + bias, y, label_smoothing=0.1)
    assert whole.loss == pytest.approx(loss.item(), rel=1e-9)
    (loss + 0.5 / 50 * weight.square().sum()).backward()
    assert weight.grad is not None and bias.grad is not None  # no derivative is left at the optimum
    assert max(weight.grad.abs().max(), bias.grad.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("model", "layer"),
    [
        ("test_resnet", "fc"),
        ("test_nfnet", "head.fc"),
        ("tf_efficientnet_lite0", "classifier"),
        ("mobilenetv3_small_050", None),  # conv_head is behind the pooling too
        ("torchvision:mobilenet_v3_small", None),
    ],
)
def test_which_heads_are_one_linear_layer(model: str, layer: str | None) -> None:
    classifier = load(model, weights="random", num_classes=4, img_size=64)
    x = probe_batch(classifier)
    parameters = classifier_parameters(classifier, x)
    assert only_linear_layer(classifier, parameters, pooled_features(classifier, x)) == layer


@pytest.mark.parametrize(
    ("model", "block", "behind"),
    [
        ("test_resnet", "layer4.0", ()),
        ("tf_efficientnet_lite0", "blocks.6.0", ("conv_head", "bn2")),
        ("torchvision:efficientnet_b0", "features.7.0", ("features.8.0", "features.8.1")),
        ("torchvision:mobilenet_v2", "features.17", ("features.18.0", "features.18.1")),
        ("mobilenetv3_small_050", "blocks.4.2", ("blocks.5.0.conv", "blocks.5.0.bn1")),
        ("test_nfnet", "stages.3.0", ("final_conv",)),
        ("test_convnext", "stages.3.blocks.1", ()),
        ("regnetx_002", "s4.b7", ()),
        ("densenet121", "features.denseblock4.denselayer16", ("features.norm5",)),
    ],
)
def test_the_last_block(model: str, block: str, behind: tuple[str, ...]) -> None:
    classifier = load(model, weights="random", num_classes=4, img_size=64)
    found = last_block(classifier, probe_batch(classifier))
    assert (found.name, found.behind) == (block, behind)


@pytest.mark.parametrize(
    ("model", "name", "behind"),
    [
        ("test_resnet", "layer4", ()),
        ("legacy_seresnet18", "layer4", ()),  # the library's SENet-154 is of this class
        ("tf_efficientnet_lite0", "blocks.5", ("blocks.6.0",)),
        ("torchvision:mobilenet_v2", "features.18", ()),
    ],
)
def test_all_from_a_module_on(model: str, name: str, behind: tuple[str, ...]) -> None:
    classifier = load(model, weights="random", num_classes=4, img_size=64)
    found = from_module(classifier, probe_batch(classifier), name)
    assert found.name == name
    assert all(any(one.startswith(f"{part}.") for one in found.behind) for part in behind)
    assert not any(f"{one}.".startswith(f"{name}.") for one in found.behind)


def test_the_last_three_cells_of_pnasnet() -> None:
    """FixRes Table 1: the cells 9, 10 and 11 are trained, whole, and nothing before them."""
    kwargs = {"num_classes": 4, "img_size": 64}
    classifier = load("pnasnet5large", weights="random", **kwargs)
    found = from_module(classifier, probe_batch(classifier), "cell_9")
    trained = {name.partition(".")[0] for name in (found.name, *found.behind)}
    assert trained == {"cell_9", "cell_10", "cell_11"}
    of_cells = {name for name, _ in classifier.net.named_parameters() if name.partition(".")[0] in trained}
    parts = (found.name, *found.behind)
    assert of_cells == {
        name for name, _ in classifier.net.named_parameters() if any(name.startswith(f"{part}.") for part in parts)
    }


@pytest.mark.parametrize("name", ["layer9", "fc", "layer", ""])
def test_a_module_that_is_not_there_is_named(name: str) -> None:
    classifier = load("test_resnet", weights="random", num_classes=4, img_size=64)
    with pytest.raises(ValueError, match=f"`tune` from:{name}: .*no layers of this name .* but conv1, .*layer4"):
        from_module(classifier, probe_batch(classifier), name)


def test_a_network_without_blocks_says_so() -> None:
    classifier = load("vgg11", weights="random", num_classes=4, img_size=64)
    with pytest.raises(ValueError, match=r"`tune` last-block: vgg11.* is not made of numbered blocks"):
        last_block(classifier, probe_batch(classifier))
