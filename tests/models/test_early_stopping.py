"""Stopping for real against the rules scored afterwards: the same answers, the same cost, never another view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from models.averaging import log_probabilities, margins
from models.dense import Dense
from models.early_stopping import Answered, EarlyStopping, Stopping
from models.loading import load
from models.predict import Network, predict
from models.stopping import Running, exact, margin_above, rule_of, square_root, stage_columns, stage_weights, stages_of
from models.stopping import stop as stop_scored
from pipelines.backends import backend
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, parse_policy, union, unique

K = 48
CASES = [
    ("20RC~exact", "softmax", None),
    ("20RC~5%", "softmax", 0.02),
    ("CC+3DC~1%", "softmax", 0.02),
    ("CC+3DC+4RC~1%", "logit", 0.02),
    ("2RC+MDC+CC~sqrt", "softmax", None),
    ("6ARC+2DC+3RC@32~1%", "softmax", 0.03),
    ("WI+4RC~5%", "feature", 0.01),
]


@pytest.fixture(scope="module")
def network() -> Network:
    classifier = load("test_resnet", weights="random", num_classes=11, img_size=K, crop_pct=0.875, seed=3)
    return Network(classifier, batch_size=16, dense=Dense(classifier))


def scored(network: Network, planner: Planner, batches: Any, sizes: Any, stopping: Stopping) -> dict[int, Any]:
    """For each row: answer, forward passes; every view evaluated, the rule applied afterwards."""
    policy, views = stopping.policy, planner.views
    stages, columns = stages_of(policy), stage_columns(stopping.policy, views)
    policies = unique([policy.whole, *(stage.prefix for stage in stages)])
    rule = {"exact": exact, "sqrt": square_root}.get(rule_of(policy).kind)
    found = {}
    for one in predict(batches, network, views):
        shapes = planner.uncovered(sizes(one.rows))
        assert one.outputs is not None
        log_p = log_probabilities(stopping.level, one.outputs, views, policies, network.head, shapes)
        assert log_p is not None
        at = [policies.index(stage.prefix) for stage in stages]
        weight = stage_weights(policy, shapes)
        cost = planner.forwards(sizes(one.rows))[:, columns] * (weight > 0)
        top1 = log_p.argmax(-1).numpy()
        running = Running(top1[at].T, margins(log_p[at]).numpy().T, weight, cost, top1[0])
        may = rule(running) if rule else margin_above(running, stopping.threshold or 0.0)
        done = stop_scored(running, may)
        for i, row in enumerate(one.rows.tolist()):
            complete = weight[i, : done.stage[i] + 1].sum() == weight[i].sum()
            found[row] = (log_p[0 if complete else at[done.stage[i]], i], done.forwards[i])
    return found


@pytest.mark.parametrize("batch_images", [3, 64])
@pytest.mark.parametrize(("text", "level", "threshold"), CASES)
def test_answers_and_cost_are_those_of_the_rule_scored_afterwards(
    network: Network, random_images: Any, text: str, level: str, threshold: float | None, batch_images: int
) -> None:
    policy = parse_policy(text)
    assert network.dense is not None
    planner = Planner(network.classifier.spec, union([policy]), 3, stride=network.dense.s)
    rows = np.resize(np.arange(len(random_images)), 3 * len(random_images) // 2)[: len(random_images)]
    source = backend("dali-cpu")(random_images, planner, LoadConfig(batch_images=batch_images, workers=1))
    stopping = Stopping(policy, level, threshold)
    try:
        expected = scored(network, planner, source.batches(rows), random_images.sizes, stopping)
        found = list(EarlyStopping(network, planner, stopping).run(source.batches(rows), random_images.sizes))
    finally:
        source.close()
    assert [row for one in found for row in one.rows.tolist()] == rows.tolist()
    used = expected_used = 0.0
    for one in found:
        assert one.log_p is not None
        for row, log_p, forwards in zip(one.rows.tolist(), one.log_p, one.forwards, strict=True):
            assert torch.equal(log_p, expected[row][0]), "bit for bit"
            assert forwards >= expected[row][1] - 1e-9
            used, expected_used = used + forwards, expected_used + expected[row][1]
    whole = planner.forwards(random_images.sizes(rows)).sum()
    assert expected_used <= used <= whole + 1e-6


def test_batches_stay_full_and_stopped_views_are_not_evaluated(network: Network, random_images: Any) -> None:
    """Many images that stop at once: no forward pass but the last may hold padding."""
    policy = parse_policy("4RC~5%")
    planner = Planner(network.classifier.spec, union([policy]), 3)
    rows = np.resize(np.arange(8), 200)
    source = backend("dali-cpu")(random_images, planner, LoadConfig(batch_images=8, workers=1))
    calls = 0
    forward = network.forward

    def counted(size: int | None = None) -> Any:
        nonlocal calls
        calls += 1
        return forward(size)

    network.forward = counted  # type: ignore[method-assign]
    try:
        answers = list(EarlyStopping(network, planner, Stopping(policy, "softmax", 0.0)).run(
            source.batches(rows), random_images.sizes))  # fmt: skip
    finally:
        del network.forward  # type: ignore[method-assign]
        source.close()
    assert sum(len(one.rows) for one in answers) == 200
    assert calls <= -(-200 // 16) + 1


def test_what_is_refused(network: Network) -> None:
    planner = Planner(network.classifier.spec, union([parse_policy("4RC")]))
    with pytest.raises(ValueError, match="needs a threshold"):
        EarlyStopping(network, planner, Stopping(parse_policy("4RC~1%"), "softmax"))
    with pytest.raises(ValueError, match="no stopping rule"):
        EarlyStopping(network, planner, Stopping(parse_policy("4RC"), "softmax"))


def test_an_unreadable_batch_has_no_answers(network: Network) -> None:
    from pipelines.batch import CropBatch, Failure

    planner = Planner(network.classifier.spec, union([parse_policy("4RC")]))
    batch = CropBatch([], np.zeros(0, np.int64), [Failure(7, "broken")])
    stopping = EarlyStopping(network, planner, Stopping(parse_policy("4RC~exact"), "softmax"))
    (one,) = stopping.run([batch], lambda rows: np.zeros((len(rows), 2), np.int64))
    assert isinstance(one, Answered) and one.log_p is None and one.failed[0].row == 7
