"""Checkpoints that call their tensors by another library's names: translated to the names that timm's network has.

EfficientNet-PyTorch (package ``efficientnet_pytorch``, and ``efficientnet_lite_pytorch`` after it) is the library of
most EfficientNet checkpoints that are not timm's own. It numbers the blocks through, where timm numbers them within
stages, and its ``_bn0`` is the norm of the stem in one place and of a block's first convolution in another.
"""

from __future__ import annotations

import re

from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from models.checkpoints import WeightsError

HEAD = "_fc.weight"  # [classes, f]
TRANSLATED = "the checkpoint has the names of EfficientNet-PyTorch, which were translated to timm's"  # for the record
_STEM_AND_HEAD = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
# A block that widens its input first, and one of the first stage, which does not: timm counts its norms from 1.
_WIDENING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
} | _SQUEEZE
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"} | _SQUEEZE
_IN_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
_EPS = 1e-3  # of TensorFlow's batch norms, which EfficientNet-PyTorch and timm's tf_ networks keep


def is_efficientnet_pytorch(state: dict[str, Tensor]) -> bool:
    """Whether the tensors have the names of EfficientNet-PyTorch."""
    return "_conv_stem.weight" in state and any(name.startswith("_blocks.") for name in state)


def as_timm_names(state: dict[str, Tensor], net: nn.Module, model: str) -> dict[str, Tensor]:
    """EfficientNet-PyTorch's state dict with the names of timm's ``net``. Names that ``net`` has no place for stay as
    they were: ``load_weights`` names them.

    Raises WeightsError for a network that would compute something else with these weights.
    """
    _require_tensorflow_padding(net, model)
    blocks = [
        (f"blocks.{s}.{i}", block)
        for s, stage in enumerate(net.blocks)  # type: ignore[arg-type]
        for i, block in enumerate(stage)
    ]
    prefixes = [(prefix, _WIDENING if hasattr(block, "conv_pwl") else _PLAIN) for prefix, block in blocks]
    return {_timm_name(name, prefixes): tensor for name, tensor in state.items()}


def _timm_name(name: str, blocks: list[tuple[str, dict[str, str]]]) -> str:
    if inside := _IN_BLOCK.fullmatch(name):
        number, layer, tensor = int(inside[1]), inside[2], inside[3]
        if number < len(blocks) and layer in blocks[number][1]:
            prefix, layers = blocks[number]
            return f"{prefix}.{layers[layer]}.{tensor}"
        return name
    layer, _, tensor = name.partition(".")
    return f"{_STEM_AND_HEAD[layer]}.{tensor}" if layer in _STEM_AND_HEAD else name


def _require_tensorflow_padding(net: nn.Module, model: str) -> None:
    """EfficientNet-PyTorch pads as TensorFlow does and has its eps. timm's ``efficientnet_b0`` takes the same tensors
    and pads otherwise: its answers would be wrong without any error."""
    if not isinstance(net, EfficientNet):
        raise WeightsError(
            f"`checkpoint`: its tensors have EfficientNet-PyTorch's names, which fit timm's tf_efficientnet networks, "
            f"not {model}"
        )
    pads = type(net.conv_stem).__name__ == "Conv2dSame"
    if not pads or getattr(net.bn1, "eps", None) != _EPS:
        raise WeightsError(
            f"`checkpoint`: it is EfficientNet-PyTorch's, whose convolutions pad as TensorFlow's do, and {model} pads "
            "otherwise: name timm's network that begins with tf_, such as tf_efficientnet_b0"
        )
