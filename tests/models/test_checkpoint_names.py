"""Checkpoints with EfficientNet-PyTorch's names against a network with those names that is written here, from the
EfficientNet paper's Table 1: the translated weights must give timm's network the same outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from models.checkpoint_names import as_timm_names, is_efficientnet_pytorch
from models.checkpoints import WeightsError
from models.loading import load

# kernel, stride of the first, expansion, channels, blocks: EfficientNet-B0, Tan and Le 2019, Table 1
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv(nn.Conv2d):
    """TensorFlow's padding SAME: what is missing is added, the odd pixel at the end."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for side in (x.shape[-1], x.shape[-2]):
            stride, kernel = self.stride[0], self.kernel_size[0]
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return functional.conv2d(functional.pad(x, pads), self.weight, self.bias, self.stride, groups=self.groups)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    def __init__(self, before: int, after: int, kernel: int, stride: int, expansion: int, lite: bool) -> None:
        super().__init__()
        wide = before * expansion
        self.act = functional.relu6 if lite else functional.silu
        self.adds = before == after and stride == 1
        if expansion > 1:
            self._expand_conv, self._bn0 = SameConv(before, wide, 1, bias=False), norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        if not lite:
            self._se_reduce = SameConv(wide, before // 4, 1)
            self._se_expand = SameConv(before // 4, wide, 1)
        self._project_conv, self._bn2 = SameConv(wide, after, 1, bias=False), norm(after)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs
        if hasattr(self, "_expand_conv"):
            x = self.act(self._bn0(self._expand_conv(x)))
        x = self.act(self._bn1(self._depthwise_conv(x)))
        if hasattr(self, "_se_reduce"):
            x = x * self._se_expand(self.act(self._se_reduce(x.mean((2, 3), keepdim=True)))).sigmoid()
        x = self._bn2(self._project_conv(x))
        return x + inputs if self.adds else x


class Reference(nn.Module):
    """EfficientNet-B0, or Lite0: without squeeze-and-excitation, ReLU6 for SiLU."""

    def __init__(self, lite: bool, classes: int) -> None:
        super().__init__()
        self.act = functional.relu6 if lite else functional.silu
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), norm(32)
        blocks, channels = [], 32
        for kernel, stride, expansion, after, count in STAGES:
            for i in range(count):
                blocks.append(Block(channels, after, kernel, stride if i == 0 else 1, expansion, lite))
                channels = after
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = SameConv(320, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, classes)

    def features(self, x: Tensor) -> Tensor:
        """[n, 3, h, w] -> the map that is pooled, [n, 1280, h / 32, w / 32]."""
        x = self.act(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self.act(self._bn1(self._conv_head(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self._fc(self.features(x).mean((2, 3)))


def reference(lite: bool, classes: int = 7) -> Reference:
    """With weights and statistics that all differ, so that no two of equal shape can be confused unnoticed."""
    torch.manual_seed(3)
    net = Reference(lite, classes).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.2)
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return net


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Reference]]:
    folder, out = tmp_path_factory.mktemp("names"), {}
    for name, lite in (("tf_efficientnet_lite0", True), ("tf_efficientnet_b0", False)):
        net = reference(lite)
        torch.save(net.state_dict(), folder / f"{name}.pth")
        out[name] = (folder / f"{name}.pth", net)
    return out


@pytest.mark.parametrize("model", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
@pytest.mark.parametrize("K", [64, 97])  # SAME pads an odd side otherwise
def test_translated_weights_give_the_same_outputs(checkpoints, model: str, K: int) -> None:
    path, net = checkpoints[model]
    found = load(model, checkpoint=path)
    assert found.num_classes == 7
    assert any("EfficientNet-PyTorch" in note for note in found.notes)
    x = torch.randn(2, 3, K, K, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = net(x), found.net(x)
    assert expected.std() > 0.1  # not all alike
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_every_tensor_is_translated_once(checkpoints) -> None:
    path, net = checkpoints["tf_efficientnet_lite0"]
    found = load("tf_efficientnet_lite0", checkpoint=path)
    translated = as_timm_names(net.state_dict(), found.net, "x")
    assert translated.keys() == found.net.state_dict().keys()


def test_a_prefix_before_the_names_is_left_out(checkpoints, tmp_path: Path) -> None:
    path, net = checkpoints["tf_efficientnet_lite0"]
    torch.save({f"backbone.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "x.pth")
    expected = load("tf_efficientnet_lite0", checkpoint=path)
    assert load("tf_efficientnet_lite0", checkpoint=tmp_path / "x.pth").weight_hash == expected.weight_hash


def test_timms_own_names_stay_as_they_are() -> None:
    found = load("tf_efficientnet_lite0", weights="random", num_classes=5)
    assert not is_efficientnet_pytorch(dict(found.net.state_dict()))


@pytest.mark.parametrize(
    ("model", "of", "message"),
    [  # network, whose checkpoint
        ("efficientnet_b0", "tf_efficientnet_b0", "pads otherwise: name timm's network that begins with tf_"),
        ("resnet18", "tf_efficientnet_b0", "not resnet18"),
        ("tf_efficientnet_b0", "tf_efficientnet_lite0", r"does not fit .*missing: blocks\.0\.0\.se\."),
        ("tf_efficientnet_lite1", "tf_efficientnet_lite0", r"does not fit .*75 missing: blocks\.5\.1\."),
        ("tf_efficientnet_b3", "tf_efficientnet_b0", "does not fit .*of another shape"),
    ],
)
def test_a_network_that_would_compute_something_else_is_refused(checkpoints, model, of, message) -> None:
    with pytest.raises(WeightsError, match=message):
        load(model, checkpoint=checkpoints[of][0])
