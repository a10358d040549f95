"""Dense crops against a plain loop over the feature map, and, for trunks without padding, against real crops."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from models.classifier import Classifier
from models.dense import Dense, DenseAbsent
from models.splitting import timm_split, torchvision_split
from pipelines.inputspec import InputSpec


class Max(nn.Module):
    def forward(self, x):
        return x.amax((2, 3))


class Unpadded(nn.Module):
    """As timm's networks: forward_features, global_pool, forward_head. No padding anywhere."""

    def __init__(self, strides, pool=None):
        super().__init__()
        layers, channels = [], 3
        for stride in strides:
            layers += [nn.Conv2d(channels, 8, 3, stride), nn.Tanh()]
            channels = 8
        self.trunk, self.global_pool = nn.Sequential(*layers), pool or nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))

    def forward_features(self, x):
        return self.trunk(x)

    def forward_head(self, x):
        return self.fc(self.global_pool(x).flatten(1))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def classifier(net, K, split=timm_split):
    return Classifier(net, InputSpec(K + 10, K), name="net", weights="random", split=split)


def unpadded(strides=(2, 2), K=32, **kwargs):
    torch.manual_seed(0)
    return classifier(Unpadded(strides, **kwargs), K)


def frames(dense, height, width, n=2):
    _, _, h, w = dense.frame(height, width)
    return torch.randn(n, 3, h, w, generator=torch.Generator().manual_seed(1))


def loop(net, dense, x):
    """The plain way: each window pooled and classified alone."""
    feature_map = net.net.forward_features(x)
    found = []
    for i in range(feature_map.shape[2] - dense.k + 1):
        for j in range(feature_map.shape[3] - dense.k + 1):
            window = feature_map[:, :, i : i + dense.k, j : j + dense.k]
            pooled = net.net.global_pool(window).flatten(1)
            found.append((pooled.double(), net.net.forward_head(window).double()))
    features, logits = (torch.stack(part) for part in zip(*found, strict=True))
    return features.mean(0), logits.mean(0), logits.softmax(-1).mean(0), len(found)


def assert_same(outputs, expected):
    features, logits, softmax, count = expected
    assert outputs.count == count
    for got, wanted in ((outputs.features, features), (outputs.logits, logits), (outputs.softmax, softmax)):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize("size", [(32, 32), (41, 60), (33, 200)])
@pytest.mark.parametrize("pool", [None, Max()])
def test_windows_equal_a_plain_loop(size, pool):
    net = unpadded(pool=pool)
    dense = Dense(net)
    assert dense.averages == (pool is None)
    x = frames(dense, *size)
    assert_same(dense.windows(x), loop(net, dense, x))


@pytest.mark.parametrize(("name", "s"), [("resnet18", 32), ("mobilenetv3_small_050", 32)])
def test_windows_of_a_padded_network_with_odd_sizes(name, s):
    net = classifier(timm.create_model(name, num_classes=7), 80)
    dense = Dense(net)
    assert (dense.k, dense.s) == (3, s)
    assert dense.frame(91, 150) == (5, 3, 80, 144)
    x = frames(dense, 91, 150)
    assert_same(dense.windows(x), loop(net, dense, x))


@pytest.mark.parametrize(("strides", "s"), [((1,), 1), ((2, 2), 4), ((3, 1), 3), ((3, 2), 6), ((5,), 5)])
def test_without_padding_windows_are_real_crops(strides, s):
    K = 29
    net = unpadded(strides, K)
    dense = Dense(net)
    assert dense.s == s
    x = frames(dense, 41, 47)
    crops = [
        x[:, :, top : top + K, left : left + K]
        for top in range(0, x.shape[2] - K + 1, s)
        for left in range(0, x.shape[3] - K + 1, s)
    ]
    logits = torch.stack([net.logits(crop).double() for crop in crops])
    features = torch.stack([net.features(crop).double() for crop in crops]).mean(0)
    assert_same(dense.windows(x), (features, logits.mean(0), logits.softmax(-1).mean(0), len(crops)))


def test_a_frame_of_one_crop_is_the_centre_crop():
    net = classifier(timm.create_model("resnet18", num_classes=7), 80)
    dense = Dense(net)
    x = frames(dense, 80, 91)
    assert x.shape[2:] == (80, 80) and dense.forwards(80, 80) == 1
    features, logits = net.outputs(x)
    expected = (features.double(), logits.double(), logits.double().softmax(-1), 1)
    assert_same(dense.windows(x), expected)
    assert_same(dense.whole(x), expected)


def test_tiles_equal_the_untiled_frame():
    net = unpadded()
    whole, tiled = Dense(net), Dense(net, max_side=49)
    x = frames(whole, 60, 131)
    expected = whole.windows(x)
    assert_same(tiled.windows(x), (expected.features, expected.logits, expected.softmax, expected.count))
    assert tiled.forwards(*x.shape[2:]) > whole.forwards(*x.shape[2:]) == x.shape[2] * x.shape[3] / 32**2
    assert list(tiled._tiles(x.shape[2])) == [(0, 5), (5, 3)]
    with pytest.raises(ValueError, match="smaller than a crop"):
        Dense(net, max_side=31)


def test_nan_stays_in_its_image():
    dense = Dense(unpadded())
    x = frames(dense, 40, 48)
    clean = dense.windows(x)
    x[0, 0, 0, 0] = float("nan")
    outputs = dense.windows(x)
    assert outputs.logits[0].isnan().all() and outputs.softmax[0].isnan().all()
    torch.testing.assert_close(outputs.logits[1], clean.logits[1], rtol=0, atol=0)


def test_whole_frame_is_pooled_once():
    net = unpadded()
    x = torch.randn(2, 3, 45, 61)
    outputs = Dense(net).whole(x)
    torch.testing.assert_close(outputs.logits, net.net(x).double(), rtol=0, atol=1e-6)
    assert outputs.count == 1


def test_squeezenet_has_no_feature_level():
    net = classifier(torchvision.models.squeezenet1_1(num_classes=6), 64, torchvision_split)
    dense = Dense(net)
    assert dense.s == 16 and not dense.has_features
    x = frames(dense, 80, 96)
    scores = net.net.classifier[:-1](net.net.features(x))
    k = dense.k
    windows = [
        scores[:, :, i : i + k, j : j + k].mean((2, 3)).double()
        for i in range(scores.shape[2] - k + 1)
        for j in range(scores.shape[3] - k + 1)
    ]
    outputs = dense.windows(x)
    assert outputs.features is None and outputs.count == len(windows) == 6
    torch.testing.assert_close(outputs.logits, torch.stack(windows).mean(0), rtol=0, atol=1e-6)
    torch.testing.assert_close(dense.whole(x).logits, net.net(x).double(), rtol=0, atol=1e-6)


def test_networks_without_the_term():
    with pytest.raises(DenseAbsent, match="flattens a map"):
        Dense(classifier(torchvision.models.vgg11(num_classes=3, init_weights=False), 64, torchvision_split))


def test_what_is_refused():
    dense = Dense(unpadded())
    with pytest.raises(ValueError, match="holds no crop"):
        dense.frame(31, 80)
    with pytest.raises(ValueError, match="not a dense frame"):
        dense.windows(torch.zeros(1, 3, 33, 36))
    with pytest.raises(ValueError, match="was expected"):
        dense.pooled_windows(torch.zeros(1, 8, 4, 4), 1, 1)
