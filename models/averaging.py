"""Where views are averaged: pooled features, logits or softmax scores; all policies from the same outputs.

MID's Equations 3 (features) and "similar averaging ... using the logits or softmax scores" (Section III). Sums run
stream by stream, view by view, in float64: a policy's average is a sum of at most five prefix sums, so that its bits
never depend on which other policies are in the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.transfer import to_device
from pipelines.crops import Policy, Views, is_dense, stream_of


@dataclass(frozen=True, slots=True)
class ViewOutputs:
    """What the network said of every view of some images; the views are numbered as in ``Views``."""

    features: Tensor | None  # float [b, v, f], None where the network has no feature level
    logits: Tensor  # float [b, v, n]
    # Of dense views, by view: the mean over the windows of their softmax scores, float64 [b, n]. What is in `features`
    # and `logits` for them are means over the windows too.
    window_scores: dict[int, Tensor] = field(default_factory=dict)


# torch's CPU kernels for exp and log use another formula for the elements that do not fill a vector register, so that a
# row's last bit depends on how many rows there are. NumPy's do not (tests/models/test_averaging.py), nor do CUDA's.


def softmax(x: Tensor) -> Tensor:
    """Over the last axis; float64."""
    if not x.is_cpu:
        return x.softmax(-1)
    e = np.exp(_shifted(x))
    return torch.from_numpy(e / e.sum(-1, keepdims=True))


def log_softmax(x: Tensor) -> Tensor:
    """Over the last axis; float64."""
    if not x.is_cpu:
        return x.log_softmax(-1)
    shifted = _shifted(x)
    return torch.from_numpy(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def log(x: Tensor) -> Tensor:
    """float64; -inf for 0."""
    if not x.is_cpu:
        return x.log()
    with np.errstate(divide="ignore"):
        return torch.from_numpy(np.log(x.numpy()))


def _shifted(x: Tensor) -> np.ndarray:
    values = np.ascontiguousarray(x.numpy())
    return values - values.max(-1, keepdims=True)


@dataclass(frozen=True, slots=True)
class Level:
    """The mean over v is taken ``of`` the views' outputs; ``finish`` turns the means into log-probabilities.

    ``finish``: means float64 [m, d] and the network's head ([m, f] -> [m, n]) -> float64 [m, n].
    """

    of: Callable[[ViewOutputs], Tensor | None]
    finish: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]
    what: str


def softmax_scores(outputs: ViewOutputs) -> Tensor:
    """float64 [b, v, n]: each view's softmax scores."""
    scores = softmax(outputs.logits.double())
    for view, of_windows in outputs.window_scores.items():
        scores[:, view] = of_windows
    return scores


LEVELS: dict[str, Level] = {
    "feature": Level(
        lambda out: out.features,
        lambda mean, head: log_softmax(head(mean.float()).double()),
        "mean over views of the pooled features, then the head",
    ),
    "logit": Level(
        lambda out: out.logits,
        lambda mean, head: log_softmax(mean),
        "mean over views of the logits",
    ),
    "softmax": Level(
        softmax_scores,
        lambda mean, head: log(mean),
        "mean over views of the softmax scores",
    ),
}


def policy_means(
    values: Tensor, views: Views, policies: Sequence[Policy], uncovered: np.ndarray | None = None
) -> Iterator[Tensor]:
    """For each policy the mean of its views: float [b, v, d] -> float64 [b, d].

    ``uncovered`` int64 [b, 2] (``Planner.uncovered``) says how many views an adaptive policy takes of each image.
    """
    sums = {stream: prefix_sums(values, views.columns[stream]) for stream in views.counts}
    images = torch.arange(len(values), device=values.device)
    for policy in policies:
        if not policy.adaptive:
            parts = (weighted(sums[stream_of(term)], term, n) for term, n in policy.terms)
            yield sum(parts, start=sums_of_none(values)) / policy.weight
            continue
        if uncovered is None:
            raise ValueError(f"policy {policy} depends on the images' sizes, and uncovered is not given")
        total, taken = sums_of_none(values), torch.zeros(len(values), 1, device=values.device)
        for (term, weight), (stream, count) in zip(policy.terms, policy.view_counts(uncovered), strict=True):
            if is_dense(term):
                total, taken = total + weighted(sums[stream], term, weight), taken + weight
                continue
            n = to_device(count, values.device)
            total = total + torch.stack(sums[stream])[n, images]
            taken = taken + n[:, None]
        yield total / taken


def weighted(sums: Sequence[Tensor], term: str, n: int) -> Tensor:
    """What a term adds: the sum of its stream's first n views, or n times its dense view."""
    return sums[1] * n if is_dense(term) else sums[n]


def sums_of_none(values: Tensor) -> Tensor:
    """float64 zeros [b, d] for [b, v, d]."""
    return torch.zeros_like(values[:, 0], dtype=torch.float64)


def prefix_sums(values: Tensor, columns: Sequence[int]) -> list[Tensor]:
    """Sum of the first 0, 1, ... of these columns of [b, v, d], float64 [b, d] each, added one after the other."""
    total = sums_of_none(values)
    sums = [total]
    for column in columns:
        total = total + values[:, column]
        sums.append(total)
    return sums


def log_probabilities(
    level: str,
    outputs: ViewOutputs,
    views: Views,
    policies: Sequence[Policy],
    head: Callable[[Tensor], Tensor],
    uncovered: np.ndarray | None = None,
) -> Tensor | None:
    """float64 [p, b, n]: the averaged prediction of every policy, or None where the network has no such level.

    ``head`` maps [m, f] -> [m, n] and must give each row the same whatever m is (see ``predict.Network.head``).
    """
    values = LEVELS[level].of(outputs)
    if values is None:
        return None
    means = torch.stack(list(policy_means(values, views, policies, uncovered)))
    return LEVELS[level].finish(means.flatten(0, 1), head).unflatten(0, means.shape[:2])


def margins(log_p: Tensor) -> Tensor:
    """float64 [...]: how much more probable the most probable class is than the next, from log-probabilities
    [..., n]; NaN where a prediction holds NaN. Raises ValueError for a single class."""
    if log_p.shape[-1] < 2:
        raise ValueError("a margin needs two classes")
    best = log_p.exp().topk(2, dim=-1).values
    return (best[..., 0] - best[..., 1]).masked_fill(log_p.isnan().any(-1), float("nan"))


@dataclass(frozen=True, slots=True)
class Scores:
    """Per policy and image, [p, b] each, on the CPU."""

    top1: Tensor  # int32: predicted class; -1 where the network gave no number (NaN)
    in_top5: Tensor  # bool: the label is among the five most probable
    nll: Tensor  # float32: -log p(label), nats; NaN without a label


def score(log_p: Tensor, labels: Tensor) -> Scores:
    """Score log-probabilities [p, b, n] against labels int64 [b]; -1 means no label.

    Of equal scores the class with the lower number counts as more probable, for top-1 and top-5 alike. A prediction
    that holds NaN (float16 overflows in some networks) is class -1: never right by accident of comparison.
    """
    n = log_p.shape[-1]
    labels = labels.to(log_p.device)
    known = labels >= 0
    index = labels.clamp(min=0).expand(log_p.shape[0], -1)[..., None]
    own = log_p.gather(-1, index)
    before = torch.arange(n, device=log_p.device) < index
    rank = ((log_p > own) | ((log_p == own) & before)).sum(-1)
    broken = log_p.isnan().any(-1)
    top1 = log_p.argmax(-1).masked_fill(broken, -1)
    nll = (-own[..., 0]).masked_fill(~known, float("nan"))
    return Scores(top1.int().cpu(), ((rank < 5) & known & ~broken).cpu(), nll.float().cpu())
