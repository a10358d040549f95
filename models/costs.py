"""What one crop costs a network: multiply-adds and activations, counted and not timed.

Counted by ``torch.utils.flop_counter`` while the network runs on tensors that have shapes and no values. timm counts
with fvcore, which adds about 0.3 % for normalisation layers; here they are left out, so that ResNet-18 at 224 pixels
has 1.81 billion multiply-adds where timm publishes 1.82.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from pipelines.data.faults import raise_if_of_machine

log = logging.getLogger(__name__)


def crop_cost(net: nn.Module, K: int) -> tuple[int, int] | None:
    """Multiply-adds, and numbers that come out of convolutions, linear layers and matrix products (timm's
    "activations"), for one crop of K x K pixels; None for a network that cannot be counted. Attention counts as the
    products it consists of."""
    try:
        return _counted(net, K, FlopCounterMode(display=False)) // 2, _counted(net, K, _outputs())
    except Exception as error:  # whatever a network does with values: it has no count then, and everything else
        raise_if_of_machine(error)
        log.info("the multiply-adds of this network cannot be counted: %s", error)
        return None


def _counted(net: nn.Module, K: int, counter: FlopCounterMode) -> int:
    device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
    dtype = next((parameter.dtype for parameter in net.parameters()), torch.float32)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH), counter:
        net(torch.empty(1, 3, K, K, device=device, dtype=dtype))
    return counter.get_total_flops()


def _outputs() -> FlopCounterMode:
    """Counts the numbers that come out of each operation whose multiply-adds are counted."""

    def count(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return math.prod(out_shape)

    return FlopCounterMode(display=False, custom_mapping=dict.fromkeys(flop_registry, count))
