"""Multiply-adds and activations of a crop: by hand, and what timm publishes."""

from __future__ import annotations

import logging

import pytest
import timm
import torch
from torch import nn

from models.costs import crop_cost

# Billions of multiply-adds and millions of activations at this size, as timm publishes them in its folder ``results``
# (benchmark-infer-amp-nchw-pt110-cu113-rtx3090.csv; counted by fvcore).
PUBLISHED = {
    "resnet18": (224, 1.82, 2.48),
    "resnet50": (224, 4.11, 11.11),
    "mobilenetv3_large_100": (224, 0.23, 4.41),
    "vit_small_patch16_224": (224, 4.61, 11.95),
}


def test_a_small_network_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 16 x 16 positions of 8 channels, 27 products each
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),  # 9 products each
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    ).eval()
    outputs = 16 * 16 * 8
    assert crop_cost(net, 32) == (outputs * 27 + outputs * 9 + 80, outputs + outputs + 10)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_of_timm_has_what_timm_publishes(name: str) -> None:
    """Up to the normalisation layers, which fvcore counts too."""
    K, gmacs, macts = PUBLISHED[name]
    found = crop_cost(timm.create_model(name).eval(), K)
    assert found is not None
    assert 0.94 * gmacs < found[0] / 1e9 <= gmacs and found[1] / 1e6 == pytest.approx(macts, abs=0.006)


def test_counting_changes_nothing() -> None:
    net = timm.create_model("test_resnet").eval()
    x = torch.randn(1, 3, 64, 64)
    before = net(x)
    assert crop_cost(net, 64) and torch.equal(net(x), before)


class Decides(nn.Module):
    """What it does depends on values, which a count does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) if x.sum().item() > 0 else -x.mean((2, 3))


def test_what_cannot_be_counted_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert crop_cost(Decides(), 32) is None
    assert "cannot be counted" in caplog.text
