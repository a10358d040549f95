"""Folded networks give the unfolded ones' answers, and do without what was folded."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import ScaledStdConv2d, ScaledStdConv2dSame
from torch import nn

from models import classifier, folding, loading
from pipelines.inputspec import InputSpec

NETWORKS = {  # name -> BatchNorms, standardised convolutions
    "resnet18": (20, 0),
    "mobilenetv3_large_100": (46, 0),
    "tf_efficientnet_b0": (49, 0),  # TensorFlow's padding
    "dm_nfnet_f0": (0, 57),
}


def trained(name: str) -> nn.Module:
    """As training leaves it: statistics and affine maps that are not the identity."""
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=10).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_stay_and_the_norms_go(name):
    net, x = trained(name), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        logits, features = net(x), net.forward_features(x)
    folded = folding.fold(net, x)
    assert (folded.batch_norms, folded.standardised) == NETWORKS[name]
    assert not any(isinstance(m, nn.BatchNorm2d | ScaledStdConv2d | ScaledStdConv2dSame) for m in net.modules())
    other = torch.randn(3, 3, 96, 96)  # not the batch that it was checked on
    with torch.inference_mode():
        torch.testing.assert_close(net(x), logits, rtol=0, atol=1e-5 * float(logits.abs().max()))
        torch.testing.assert_close(net.forward_features(x), features, rtol=0, atol=3e-5 * float(features.abs().max()))
        expected = trained(name)(other)
        torch.testing.assert_close(net(other), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_weight_standardisation_is_bit_equal():
    net, x = trained("dm_nfnet_f0"), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = net(x)
        folding.fold(net, x)
        assert torch.equal(net(x), expected)


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "efficientnet", "nfnet"])
def test_demo_checkpoints(family):
    plain, folded = (loading.load(f"{family}:demo", weights="demo") for _ in range(2))
    hash_before = folded.weight_hash
    folded.fold()
    assert any(note.startswith("folded: ") for note in folded.notes)
    assert folded.weight_hash == hash_before
    assert folded.folded and not plain.folded
    crops = torch.randint(0, 256, (4, 96, 96, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected, got = (one.outputs(one.prepare(crops)) for one in (plain, folded))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-5 * float(b.abs().max()))


class Shortcut(nn.Module):
    """The convolution's output goes into the BatchNorm, and round it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.constant_(self.norm.running_mean, 1)

    def forward(self, x):
        y = self.conv(x)
        return (y + self.norm(y)).mean((2, 3))


class Shared(nn.Module):
    """One convolution, two BatchNorms: neither may go."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        nn.init.constant_(self.two.running_mean, 1)

    def forward(self, x):
        y = self.conv(x)
        return (self.one(y) + self.two(y)).mean((2, 3))


def test_what_would_change_the_answers_is_left_alone():
    x = torch.randn(2, 3, 8, 8)
    net = Shortcut().eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="not folded"):
        folding.fold(net, x)
    assert isinstance(net.norm, nn.BatchNorm2d)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    shared = Shared().eval()
    assert folding.fold(shared, x).batch_norms == 0
    assert isinstance(shared.one, nn.BatchNorm2d)


def test_a_second_time_there_is_nothing_left():
    net, x = trained("resnet18"), torch.randn(1, 3, 64, 64)
    assert folding.fold(net, x).words() == "folded: 20 BatchNorms into their convolutions"
    assert folding.fold(net, x).words() == "nothing to fold"


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(1, 4)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.mark.parametrize("net", [Norm, Shortcut])
def test_a_network_without_anything_to_fold_does_not_call_itself_folded(net):
    one = classifier.Classifier(net(), InputSpec(S=36, K=32), name="one", weights="random")
    one.fold()
    assert not one.folded and len(one.notes) == 1


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("folded", [False, True])
def test_weights_rounded_once_are_those_that_autocast_rounds_at_every_forward(name, folded):
    x = torch.randn(2, 3, 64, 64).to(torch.bfloat16)
    ours = classifier.Classifier(trained(name), InputSpec(S=72, K=64), name=name, weights="random")
    theirs = trained(name).requires_grad_(False)
    if folded:
        ours.fold()
        folding.fold(theirs, x.float())
    ours.place("cpu", dtype=torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        expected = theirs(x)
        assert torch.equal(ours.outputs(x)[1], theirs.forward_head(theirs.forward_features(x)))
        assert torch.equal(ours.net(x), expected)
    convolutions = [m for m in ours.net.modules() if isinstance(m, nn.Conv2d)]
    standardised = [m for m in convolutions if isinstance(m, ScaledStdConv2d | ScaledStdConv2dSame)]
    assert all((m.weight.dtype == torch.float32) == (m in standardised) for m in convolutions)
