"""Averages against plain Python loops over views in exact fractions or float64, scores against sorting."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from models.averaging import LEVELS, ViewOutputs, log_probabilities, policy_means, score
from pipelines.crops import Policy, Views, parse_policy, union, view_count

IMAGES, FEATURES, CLASSES = 4, 7, 37
POLICIES = ["CC", "1RC", "3RC", "CC+4RC", "5FC", "CC+5FC", "5FC+5MFC+3RC+2MRC", "2MRC", "20RC", "6ARC", "CC+4ARC+9AMRC"]
# Pixels that the centre crop leaves out, and all, of each image: the adaptive terms take few and many of them.
UNCOVERED = np.array([[0, 100], [23, 100], [60, 100], [99, 100]])


def linear_head() -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(FEATURES, CLASSES).requires_grad_(False)


def bent_head() -> torch.nn.Module:
    """Two layers with a bend between them, as MobileNetV3's and EfficientNet-Lite's heads."""
    torch.manual_seed(1)
    layers = torch.nn.Linear(FEATURES, 9), torch.nn.Hardswish(), torch.nn.Linear(9, CLASSES)
    return torch.nn.Sequential(*layers).requires_grad_(False)


def view_vector(image: int, stream: str, j: int, size: int, what: str) -> list[float]:
    """What the network says of one view: a function of the view alone, whatever else is in the run."""
    if (stream, j) == ("FC", 4):
        stream, j = "CC", 0  # the same window
    rng = random.Random(f"{image} {stream} {j} {what}")
    return np.array([rng.gauss(0, 1) * 10 ** rng.uniform(-2, 1) for _ in range(size)], np.float32).tolist()


def row_by_row(head: torch.nn.Module, features: Tensor) -> Tensor:
    """[..., f] -> [..., n], each row alone: its bits do not depend on how many there are, as ``Network.head`` promises
    and a matrix product does not."""
    return torch.stack([head(row[None])[0] for row in features.flatten(0, -2)]).unflatten(0, features.shape[:-1])


def outputs_of(views: Views, head: torch.nn.Module) -> ViewOutputs:
    """Features [b, v, f] with a column for each view of the union, and the head's logits of them."""
    features = torch.zeros(IMAGES, views.total, FEATURES)
    for stream, columns in views.columns.items():
        for j, column in enumerate(columns):
            for image in range(IMAGES):
                features[image, column] = torch.tensor(view_vector(image, stream, j, FEATURES, "features"))
    return ViewOutputs(features, row_by_row(head, features))


def number_of_views(term: str, n: int, image: int) -> int:
    if "A" not in term:
        return n
    out, whole = UNCOVERED[image].tolist()
    return min(1 + int(Fraction(n * out, whole)), n)


def viewed(policy: Policy, views: Views, values: Tensor, image: int) -> list[list[float]]:
    """The vectors of one image's views that the policy averages."""
    return [
        values[image, views.columns[term.replace("A", "")][j]].tolist()
        for term, n in policy.terms
        for j in range(number_of_views(term, n, image))
    ]


def plain_mean(vectors: list[list[float]]) -> list[float]:
    return [math.fsum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def plain_softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    exponentials = [math.exp(x - top) for x in logits]
    return [e / math.fsum(exponentials) for e in exponentials]


def plain_prediction(level: str, vectors: dict[str, list[list[float]]], head: torch.nn.Module) -> list[float]:
    """Probabilities of one image: DESIGN's levels, one line each."""
    if level == "feature":
        logits = head.double()(torch.tensor(plain_mean(vectors["features"]), dtype=torch.float64)).tolist()
        head.float()
        return plain_softmax(logits)
    if level == "logit":
        return plain_softmax(plain_mean(vectors["logits"]))
    return plain_mean([plain_softmax(logits) for logits in vectors["logits"]])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("head", [linear_head(), bent_head()], ids=["linear", "bent"])
def test_every_level_is_the_plain_loop(level: str, head: torch.nn.Module) -> None:
    policies = [parse_policy(text) for text in POLICIES]
    views = union(policies)
    outputs = outputs_of(views, head)
    got = log_probabilities(level, outputs, views, policies, head, UNCOVERED)
    assert got is not None and got.dtype == torch.float64
    assert got.shape == (len(policies), IMAGES, CLASSES)
    # The feature level goes through the network's float32 head; the others never leave float64.
    tolerance = 2e-6 if level == "feature" else 1e-13
    assert outputs.features is not None
    for p, policy in enumerate(policies):
        for image in range(IMAGES):
            vectors = {
                "features": viewed(policy, views, outputs.features, image),
                "logits": viewed(policy, views, outputs.logits, image),
            }
            expected = plain_prediction(level, vectors, head)
            np.testing.assert_allclose(got[p, image].exp().numpy(), expected, rtol=0, atol=tolerance)
            np.testing.assert_allclose(
                got[p, image].numpy(), np.log(expected), rtol=20 * tolerance, atol=20 * tolerance
            )


@pytest.mark.parametrize("level", LEVELS)
def test_probabilities_sum_to_one(level: str) -> None:
    policies = [parse_policy(text) for text in POLICIES]
    views, head = union(policies), bent_head()
    got = log_probabilities(level, outputs_of(views, head), views, policies, head, UNCOVERED)
    assert got is not None
    assert (got <= 0).all()
    np.testing.assert_allclose(got.exp().sum(-1).numpy(), 1, rtol=0, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("text", POLICIES)
def test_a_policys_bits_do_not_depend_on_the_run(level: str, text: str) -> None:
    """Alone, among others in any order, and from a larger union with other columns."""
    policy, head = parse_policy(text), linear_head()
    alone_views = union([policy])

    def predicted(policies: list[Policy], views: Views) -> Tensor:
        got = log_probabilities(level, outputs_of(views, head), views, policies, partial(row_by_row, head), UNCOVERED)
        assert got is not None
        return got[policies.index(policy)]

    alone = predicted([policy], alone_views)
    everything = [parse_policy(other) for other in [*POLICIES, "40RC+30MRC"]]
    for policies in (everything, everything[::-1], [parse_policy("CC"), policy, parse_policy("1MRC")]):
        policies = list(dict.fromkeys(policies))
        assert torch.equal(predicted(policies, union(policies)), alone)
    assert torch.equal(predicted([policy], union(everything)), alone)


def test_means_are_sums_in_float64() -> None:
    """Ten views of 2^24 and ten of 1: in float32 the ones would be lost."""
    policy = parse_policy("20RC")
    values = torch.full((1, 20, 1), 2.0**24)
    values[0, 10:] = 1
    (mean,) = policy_means(values, union([policy]), [policy])
    assert mean.item() == (10 * 2**24 + 10) / 20


def test_the_centre_in_both_terms_counts_twice() -> None:
    policy = parse_policy("CC+5FC")
    views = union([policy])
    values = torch.zeros(1, views.total, 1)
    values[0, views.columns["CC"][0]] = 1
    (mean,) = policy_means(values, views, [policy])
    assert mean.item() == pytest.approx(2 / 6)


def test_views_that_an_image_does_not_need_are_not_read() -> None:
    """Adaptive policies leave them at zero; here they are NaN."""
    policy = parse_policy("CC+4ARC+9AMRC")
    views = union([policy, parse_policy("8ARC")])
    values = torch.ones(IMAGES, views.total, 2)
    for image in range(IMAGES):
        for stream, n in (("RC", 4), ("MRC", 9)):
            for column in views.columns[stream][number_of_views(f"A{stream}", n, image) :]:
                values[image, column] = math.nan
    (mean,) = policy_means(values, views, [policy], UNCOVERED)
    assert mean.tolist() == [[1.0, 1.0]] * IMAGES


def test_an_adaptive_policy_needs_the_shapes() -> None:
    policy = parse_policy("4ARC")
    with pytest.raises(ValueError, match=r"4ARC.*uncovered"):
        list(policy_means(torch.zeros(1, 4, 2), union([policy]), [policy]))


def test_view_counts_here_are_the_plans() -> None:
    """This file's plain count is an independent one: the two must agree."""
    for term, n in (("ARC", 6), ("AMRC", 9), ("RC", 3)):
        assert view_count(term, n, UNCOVERED).tolist() == [number_of_views(term, n, image) for image in range(IMAGES)]


def test_features_and_logits_agree_for_a_linear_head_only() -> None:
    policies = [parse_policy(text) for text in POLICIES]
    views = union(policies)
    differences = {}
    for name, head in (("linear", linear_head()), ("bent", bent_head())):
        outputs = outputs_of(views, head)
        by_level = {}
        for level in ("feature", "logit"):
            got = log_probabilities(level, outputs, views, policies, head, UNCOVERED)
            assert got is not None
            by_level[level] = got.exp()
        differences[name] = (by_level["feature"] - by_level["logit"]).abs().amax((1, 2))
    assert differences["linear"].max() < 1e-6
    several = torch.tensor([policy.n_views > 1 for policy in policies])
    assert (differences["bent"][several] > 1e-3).all()
    assert (differences["bent"][~several] < 1e-6).all()  # the mean of one view is that view


def test_logit_and_softmax_differ_as_soon_as_there_are_two_views() -> None:
    """Else one of them could be the other under its name."""
    policies = [parse_policy("CC"), parse_policy("3RC")]
    views, head = union(policies), linear_head()
    logit, softmax = (
        log_probabilities(level, outputs_of(views, head), views, policies, head) for level in ("logit", "softmax")
    )
    assert logit is not None and softmax is not None
    np.testing.assert_allclose(logit[0].numpy(), softmax[0].numpy(), atol=1e-12)
    assert (logit[1].exp() - softmax[1].exp()).abs().max() > 1e-2


def test_a_level_that_a_network_has_not_is_absent() -> None:
    policy = parse_policy("2RC")
    outputs = ViewOutputs(None, torch.zeros(1, 2, 3))
    assert log_probabilities("feature", outputs, union([policy]), [policy], linear_head()) is None
    for level in ("logit", "softmax"):
        assert log_probabilities(level, outputs, union([policy]), [policy], linear_head()) is not None


def test_very_large_logits_do_not_overflow() -> None:
    policy = parse_policy("2RC")
    outputs = ViewOutputs(None, torch.tensor([[[30000.0, -30000.0, 0.0], [29999.0, 0.0, 0.0]]]))
    for level in ("logit", "softmax"):
        got = log_probabilities(level, outputs, union([policy]), [policy], linear_head())
        assert got is not None and not got.isnan().any()
        assert got.argmax().item() == 0


# --------------------------------------------------------------------------------------------------------------- scores


def plain_order(scores: list[float]) -> list[int]:
    """Classes from the most probable on; of equals the lower number first."""
    return sorted(range(len(scores)), key=lambda c: (-scores[c], c))


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6, 30])
def test_scores_are_those_of_sorting_with_ties(classes: int) -> None:
    """Few distinct values, so that most rows have ties; fewer than five classes are all in the top five."""
    rng = np.random.default_rng(classes)
    log_p = torch.from_numpy(rng.integers(-3, 0, (3, 200, classes)).astype(np.float64))
    labels = torch.from_numpy(rng.integers(-1, classes, 200))
    got = score(log_p, labels)
    assert (got.top1.dtype, got.in_top5.dtype, got.nll.dtype) == (torch.int32, torch.bool, torch.float32)
    for p in range(3):
        for image, label in enumerate(labels.tolist()):
            order = plain_order(log_p[p, image].tolist())
            assert got.top1[p, image].item() == order[0]
            assert got.in_top5[p, image].item() == (label in order[:5])
            nll = got.nll[p, image].item()
            assert math.isnan(nll) if label < 0 else nll == pytest.approx(-log_p[p, image, label].item())


def test_all_equal_scores_are_the_first_classes() -> None:
    """A network that knows nothing is right for class 0 only, and in its top five for classes 0 to 4 only."""
    log_p = torch.full((1, 10, 10), -math.log(10), dtype=torch.float64)
    got = score(log_p, torch.arange(10))
    assert got.top1[0].tolist() == [0] * 10
    assert got.in_top5[0].tolist() == [True] * 5 + [False] * 5


def test_an_image_without_label_is_never_right() -> None:
    got = score(torch.log_softmax(torch.randn(2, 3, 7, dtype=torch.float64), -1), torch.tensor([-1, 2, -1]))
    assert not got.in_top5[:, [0, 2]].any()
    assert got.nll.isnan().tolist() == [[True, False, True]] * 2
    assert (got.top1 >= 0).all()  # what is predicted is known all the same


@pytest.mark.parametrize("where", [0, 3, 6])
def test_nan_is_never_right(where: int) -> None:
    """Whatever the label, and also for a tie of NaN with itself."""
    log_p = torch.log_softmax(torch.arange(7.0, dtype=torch.float64), -1).repeat(1, 8, 1)
    log_p[0, :, where] = math.nan
    got = score(log_p, torch.tensor([-1, *range(7)]))
    assert got.top1.tolist() == [[-1] * 8]
    assert not got.in_top5.any()
    everything = score(torch.full((1, 8, 7), math.nan, dtype=torch.float64), torch.tensor([-1, *range(7)]))
    assert everything.top1.tolist() == [[-1] * 8]
    assert not everything.in_top5.any()
    assert everything.nll.isnan().all()


def test_impossible_is_a_probability_too() -> None:
    """softmax underflows to 0 and its logarithm to -inf: last in rank, an infinite NLL, no NaN."""
    log_p = torch.tensor([[[0.0, -math.inf, -math.inf, -math.inf, -math.inf, -math.inf]]], dtype=torch.float64)
    for label, in_top5 in ((0, True), (1, True), (4, True), (5, False)):
        got = score(log_p, torch.tensor([label]))
        assert got.top1.item() == 0
        assert got.in_top5.item() is in_top5
        assert got.nll.item() == (0.0 if label == 0 else math.inf)


def test_scoring_leaves_its_inputs_alone() -> None:
    log_p, labels = torch.randn(1, 3, 6, dtype=torch.float64), torch.tensor([-1, 2, 0])
    before = log_p.clone(), labels.clone()
    score(log_p, labels)
    assert torch.equal(log_p, before[0]) and torch.equal(labels, before[1])
