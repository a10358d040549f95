"""What a network computes anew at every forward although it never changes, computed once.

* BatchNorm behind a convolution: in inference an affine map of each channel, which the convolution's weights can hold
  (``torch.nn.utils.fusion``). A pass over every feature map is saved; its activation, if it has one, stays.
* NFNet's scaled weight standardisation (Brock et al. 2021, "Characterizing signal propagation"): timm's
  ``ScaledStdConv2d`` standardises its weights at every forward, whatever the batch size.

Mean and std of the input are not folded into the first convolution: it pads with zeros, which are the mean colour
behind the normalisation and black before it, so that the border of every feature map would change. ``Normalize`` makes
one pass over each crop while it lies in the cache instead.

Which BatchNorm follows which convolution is found by running the network: the tensor that one gives is the tensor that
the other takes, and no other module takes it. The folded network's outputs are compared with the original's; where
they differ by more than TOLERANCE nothing is folded.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from timm.layers import Conv2dSame, ScaledStdConv2d, ScaledStdConv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

TOLERANCE = 1e-4  # of the largest logit: float32 rounds otherwise when sums are taken in another order


@dataclass(frozen=True, slots=True)
class Folded:
    """What was folded, for the record."""

    batch_norms: int
    standardised: int

    def words(self) -> str:
        parts = [f"{self.batch_norms} BatchNorms into their convolutions"] * (self.batch_norms > 0)
        parts += [f"weight standardisation of {self.standardised} convolutions"] * (self.standardised > 0)
        return f"folded: {', '.join(parts)}" if parts else "nothing to fold"


def fold(net: nn.Module, x: Tensor) -> Folded:
    """Fold a network in evaluation mode, in place; ``x`` [n, 3, K, K] is a batch that it takes, on its device.

    It is tried on a copy first. Raises ValueError, and leaves the network as it is, when the outputs on ``x`` move by
    more than TOLERANCE of the largest one: then something between a pair is not what it seems.
    """
    trial = copy.deepcopy(net)
    with torch.no_grad():
        expected = net(x)
        pairs = _pairs(trial, x)
        _apply(trial, pairs)
        largest, difference = float(expected.abs().max()), float((trial(x) - expected).abs().max())
        if not difference <= TOLERANCE * largest:
            raise ValueError(f"not folded: it would move the outputs by {difference:.2g} of {largest:.2g}")
        standardised = _apply(net, pairs)
    return Folded(len(pairs), standardised)


def _apply(net: nn.Module, pairs: list[tuple[str, str]]) -> int:
    """Returns the number of standardised convolutions."""
    for conv_name, norm_name in pairs:
        _fuse(net, conv_name, norm_name)
    return _standardise(net)


def _standardise(net: nn.Module) -> int:
    done = 0
    for name, module in list(net.named_modules()):
        if isinstance(module, ScaledStdConv2d | ScaledStdConv2dSame):
            _put(net, name, _plain(module))
            done += 1
    return done


def _plain(conv: ScaledStdConv2d | ScaledStdConv2dSame) -> nn.Conv2d:
    """The convolution with the weights that this one makes at every forward."""
    same = getattr(conv, "same_pad", False)
    made = (Conv2dSame if same else nn.Conv2d)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=0 if same else conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    flat = conv.weight.reshape(1, conv.out_channels, -1)
    gain = (conv.gain * conv.scale).view(-1)
    weight = nn.functional.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0, eps=conv.eps)
    made.weight = nn.Parameter(weight.reshape_as(conv.weight).contiguous(), requires_grad=False)
    if conv.bias is not None:
        made.bias = nn.Parameter(conv.bias.detach().clone(), requires_grad=False)
    return made.eval()


def _pairs(net: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """(convolution, BatchNorm) where the one's output goes into the other, and nowhere else among all modules."""
    names = {module: name for name, module in net.named_modules()}
    made_by: dict[int, str] = {}
    taken_by: dict[int, list[str]] = {}
    runs: dict[str, int] = {}
    alive: list[Tensor] = []  # so that no other tensor gets a dead one's number

    def before(module: nn.Module, inputs: tuple) -> None:
        for value in inputs:
            if isinstance(value, Tensor) and id(value) in made_by:
                taken_by.setdefault(id(value), []).append(names[module])

    def after(module: nn.Module, inputs: tuple, output: object) -> None:
        runs[names[module]] = runs.get(names[module], 0) + 1
        if isinstance(module, nn.Conv2d) and isinstance(output, Tensor):
            made_by[id(output)] = names[module]
            alive.append(output)

    leaves = [m for m in net.modules() if isinstance(m, _BatchNorm) or not list(m.children())]
    hooks = [m.register_forward_pre_hook(before) for m in leaves] + [m.register_forward_hook(after) for m in leaves]
    try:
        net(x)
    finally:
        for hook in hooks:
            hook.remove()
    modules = dict(net.named_modules())
    found = []
    for number, conv in made_by.items():
        takers = taken_by.get(number, [])
        if len(takers) == 1 and runs[conv] == runs[takers[0]] == 1 and _is_fixed_norm(modules[takers[0]]):
            found.append((conv, takers[0]))
    return found


def _is_fixed_norm(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None and not module.training


def _fuse(net: nn.Module, conv_name: str, norm_name: str) -> None:
    modules = dict(net.named_modules())
    conv, norm = modules[conv_name], modules[norm_name]
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    wide = [None if t is None else t.double() for t in (conv.weight, conv.bias, norm.running_mean, norm.running_var)]
    affine = [None if t is None else t.double() for t in (norm.weight, norm.bias)]
    weight, bias = fuse_conv_bn_weights(wide[0], wide[1], wide[2], wide[3], norm.eps, *affine)  # type: ignore[arg-type]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    activation = getattr(norm, "act", None)  # timm's BatchNormAct2d has one
    _put(net, norm_name, activation if isinstance(activation, nn.Module) else nn.Identity())


def _put(net: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, module)
