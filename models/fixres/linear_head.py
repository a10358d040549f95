"""The best linear layer on features that do not change: the one optimum of a convex loss, found by L-BFGS.

This is multinomial logistic regression, by default with the penalty of scikit-learn's LogisticRegression at C = 1:
|W|^2 / 2 against the sum over the n images, so a weight decay of 1/n; the biases are not penalised. For two classes
scikit-learn keeps one vector, the difference of the two here: its penalty is then a weight decay of 2/n here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from models.classifier import Classifier

ROWS = 8192  # images whose float64 copies exist at a time
LARGEST_GRADIENT = 1e-7  # of the mean loss, by any weight: where the search ends
MAX_ITERATIONS = 20_000


@dataclass(frozen=True, slots=True)
class Solution:
    """``loss``: mean cross-entropy without the penalty; ``top1``: percent; both on the images that were fitted."""

    weight: Tensor  # float64 [classes, f]
    bias: Tensor  # float64 [classes]
    loss: float
    top1: float
    weight_decay: float
    iterations: int
    gradient: float  # the largest derivative left
    converged: bool


def solve(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    weight_decay: float | None = None,
    label_smoothing: float = 0.0,
    device: str = "cpu",
) -> Solution:
    """Minimise ``mean cross-entropy + weight_decay / 2 * |W|^2`` from zero, in float64; the biases are not penalised.

    ``features`` [n, f], ``labels`` int64 [n], both in host memory. ``weight_decay`` None: 1/n, for two classes
    2/n.
    """
    n, f = features.shape
    decay = (2 if classes == 2 else 1) / n if weight_decay is None else weight_decay

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = _unpacked(flat, classes, f, device)
        total, by_weight, by_bias = 0.0, torch.zeros_like(weight), torch.zeros_like(bias)
        for start in range(0, n, ROWS):
            x = features[start : start + ROWS].to(device, torch.float64)
            log_p = (x @ weight.T + bias).log_softmax(1)
            target = torch.full_like(log_p, label_smoothing / classes)
            target[torch.arange(len(x)), labels[start : start + ROWS].to(device)] += 1 - label_smoothing
            total -= (target * log_p).sum().item()
            by_logit = (log_p.exp() - target) / n
            by_weight += by_logit.T @ x
            by_bias += by_logit.sum(0)
        penalty = decay / 2 * weight.square().sum().item()
        by_weight += decay * weight
        return total / n + penalty, torch.cat([by_weight.flatten(), by_bias]).cpu().numpy()

    options: Any = {"maxiter": MAX_ITERATIONS, "maxfun": 2 * MAX_ITERATIONS, "gtol": LARGEST_GRADIENT, "ftol": 0.0}
    found = minimize(loss_and_gradient, np.zeros(classes * (f + 1)), method="L-BFGS-B", jac=True, options=options)
    weight, bias = _unpacked(found.x, classes, f, device)
    gradient = float(np.abs(found.jac).max())
    right = 0
    for start in range(0, n, ROWS):
        logits = features[start : start + ROWS].to(device, torch.float64) @ weight.T + bias
        right += int((logits.argmax(1).cpu() == labels[start : start + ROWS]).sum())
    loss = float(found.fun) - decay / 2 * weight.square().sum().item()
    # Rounding may end the search a little before its bound: ten times the bound is the same optimum to float32.
    converged = gradient <= 10 * LARGEST_GRADIENT
    return Solution(weight.cpu(), bias.cpu(), loss, 100 * right / n, decay, int(found.nit), gradient, converged)


def _unpacked(flat: np.ndarray, classes: int, f: int, device: str) -> tuple[Tensor, Tensor]:
    values = torch.from_numpy(flat).to(device)
    return values[: classes * f].view(classes, f), values[classes * f :]


def only_linear_layer(classifier: Classifier, parameters: dict[str, nn.Parameter], features: Tensor) -> str | None:
    """Name of the linear layer that is all of the head, or None where the head is more. ``parameters``: the head's;
    ``features`` [n, f]: some, on which both must give the same."""
    names = {name.rpartition(".")[0] for name in parameters}
    if len(names) != 1:
        return None
    (name,) = names
    layer = classifier.net.get_submodule(name)
    if not isinstance(layer, nn.Linear) or layer.bias is None or classifier.valid_labels is not None:
        return None
    with torch.no_grad():
        return name if torch.equal(layer(features), classifier.head(features)) else None
