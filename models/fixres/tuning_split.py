"""Where a network is split for fine-tuning: what is frozen runs without gradients, perhaps only once an image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from models.classifier import Classifier
from models.fixres.layers import pooled_features
from pipelines.data.faults import raise_if_of_machine


@dataclass(frozen=True)
class TuningSplit:
    """``tuned(*frozen(x))`` is the network: x [n, 3, K, K] -> activations, [n, ...] each -> logits [n, classes]."""

    frozen: Callable[[Tensor], tuple[Tensor, ...]]
    tuned: Callable[..., Tensor]
    where: str  # for the record


class NotSplit(Exception):
    """A network that cannot be split at a module; the message says why."""


class _OnlyAround(fx.Tracer):
    """Looks only into modules that contain the named one: all others stay whole, whatever their code does."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not self.name.startswith(f"{module_qualified_name}.")


def split_at_pooling(classifier: Classifier) -> TuningSplit:
    """Before: the trunk, pooled. After: the head."""

    def frozen(x: Tensor) -> tuple[Tensor, ...]:
        return (pooled_features(classifier, x),)

    return TuningSplit(frozen, classifier.head, "behind the pooling")


def split_at_module(net: nn.Module, name: str, x: Tensor) -> TuningSplit:
    """After: the named module and whatever depends on its output. Before: the rest; a residual block's shortcut is one
    of the activations. Both parts hold the network's own modules.

    Raises NotSplit when the network cannot be traced or the parts do not give the same bits as the whole on ``x``.
    """
    try:
        graph = _OnlyAround(name).trace(net)
    except Exception as error:  # whatever the network's code does with a stand-in for a tensor
        raise_if_of_machine(error)
        raise NotSplit(f"its code cannot be traced ({type(error).__name__}: {error})") from error
    called = [node for node in graph.nodes if node.op == "call_module" and node.target == name]
    if len(called) != 1:
        raise NotSplit(f"{name} runs {len(called)} times")
    after = set(called)
    for node in graph.nodes:
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    border = dict.fromkeys(s for node in graph.nodes if node in after for s in node.all_input_nodes if s not in after)
    frozen, tuned = _part(net, graph, after, border, False), _part(net, graph, after, border, True)
    with torch.no_grad():
        activations = frozen(x)
        if not all(isinstance(value, Tensor) and value.shape[:1] == x.shape[:1] for value in activations):
            raise NotSplit(f"what passes from the layers before {name} to those behind is not one tensor an image")
        if not torch.equal(tuned(*activations), net(x)):
            raise NotSplit("the two parts differ from the whole")
    return TuningSplit(frozen, tuned, f"before {name}")


def _part(
    net: nn.Module, graph: fx.Graph, after: set[fx.Node], border: dict[fx.Node, None], behind: bool
) -> fx.GraphModule:
    """The graph's nodes behind the split, with the border as inputs; or those before it, with the border as outputs."""
    part = fx.Graph()
    copies = {node: part.placeholder(f"activation_{i}") for i, node in enumerate(border)} if behind else {}
    for node in graph.nodes:
        if (node in after) == behind:
            copies[node] = part.node_copy(node, copies.__getitem__)
    if not behind:
        part.output(tuple(copies[node] for node in border))
    return fx.GraphModule(net, part)


def split_nowhere(net: nn.Module, reason: str) -> TuningSplit:
    """All of the network is run in every step; gradients flow only where parameters ask for them."""
    return TuningSplit(lambda x: (x,), net, f"nowhere, the whole network runs in every step: {reason}")
