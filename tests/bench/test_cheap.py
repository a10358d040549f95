"""Dense crops and early stopping from one end to the other: scored, timed, and used by MultiCrop and predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.text
import numpy as np
import pytest

from analysis import report
from analysis.figures import accuracy_vs_forwards, latency, many_crops, stopping
from analysis.runs import Inputs, MissingData, read
from bench.predictions import Predictions, read_named
from bench.records import END_TO_END, Absent
from models import MultiCrop, thresholds
from models.stopping import Running, calibrate, second_half, stages_of
from pipelines.crops import parse_policy

SMALL: dict[str, Any] = {"img_size": 64, "batch_size": 8, "backend": "torchvision"}
SPEED = ["--rounds", "1", "--round-seconds", "0.05", "--num-warm-iter", "1", "--latency-queries", "6"]
POLICIES = "CC+3DC,WI+CC,4RC~exact,CC+2DC+2RC~sqrt,4RC~30%"


@pytest.fixture(scope="module")
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {}


@pytest.fixture
def scored(small_run: Callable[..., Any], finished: dict[str, Any], tmp_path_factory: Any) -> Any:
    """One run for all tests of this file."""
    if not finished:
        finished["run"] = small_run(
            "--policies", POLICIES, "--data-backend", "torchvision", "--batch-size", "8", *SPEED,
            out=str(tmp_path_factory.mktemp("cheap") / "run"),
        )  # fmt: skip
    return finished["run"]


def stored(run: Any) -> tuple[list[str], Predictions]:
    (path,) = run.out.glob("predictions-*.npz")
    return read_named(path)


def test_every_policy_has_its_forward_passes(scored: Any) -> None:
    assert scored.status == 0, scored.stderr
    found = {(r.policy, r.level): r for r in scored.run.accuracies}
    assert found["CC", "softmax"].forwards == 1 and found["4RC", "softmax"].forwards == 4
    assert 1 < found["CC+3DC", "softmax"].forwards < 1 + found["CC+WI", "softmax"].forwards
    assert found["4RC~exact", "softmax"].forwards <= 4  # random weights are never sure
    assert ("4RC~exact", "logit") not in found
    assert any(isinstance(r, Absent) and "4RC~exact at level logit" in r.what for r in scored.run.records)


def test_exact_stopping_keeps_every_answer(scored: Any) -> None:
    _, predictions = stored(scored)
    level = predictions.levels.index("softmax")
    one, other = (predictions.policies.index(name) for name in ("4RC~exact", "4RC"))
    assert np.array_equal(predictions.top1[level, one], predictions.top1[level, other])
    (record,) = (r for r in scored.run.accuracies if r.policy == "4RC~exact")
    assert record.agreement == 1 and record.mean_views == record.forwards


def test_the_risk_is_scored_by_thresholds_of_the_other_half(scored: Any) -> None:
    """The stored margins and answers, put through models.stopping alone, give the stored stopped answers."""
    names, predictions = stored(scored)
    i, policies = predictions.levels.index("softmax"), predictions.policies
    policy = parse_policy("4RC~30%")
    prefixes = [stage.prefix.name for stage in stages_of(policy)]
    available = [name for name in prefixes if name in policies]
    assert available == ["4RC"], "parts of a policy that nobody asked for are not stored"
    record = next(r for r in scored.run.accuracies if (r.policy, r.level) == ("4RC~30%", "softmax"))
    second = second_half(names, 0)
    assert 0 < second.sum() < len(names)
    assert (record.first_threshold is None) == (record.note is not None) or record.second_threshold is None
    answers = predictions.top1[i, policies.index("4RC~30%")]
    assert record.agreement == (answers == predictions.top1[i, policies.index("4RC")]).mean()


def test_timed_answers_are_the_scored_ones(scored: Any) -> None:
    timed = {t.policy: t for t in scored.run.throughputs if t.policy and t.stage == END_TO_END}
    assert {"CC+3DC", "CC+WI", "4RC~exact", "CC+2DC+2RC~sqrt"} <= set(timed)
    for name, one in timed.items():
        assert one.crops is None and one.rate > 0
        assert one.agreement == 1, name
    assert "as scored" in scored.stdout and "CC+3DC" in scored.stdout


def test_the_report_has_the_rates_and_the_latencies(scored: Any) -> None:
    run = read([scored.out])[0]
    (network,) = report.networks([run])
    rates, latencies = report.policy_rate_grid(network), report.latency_grid(network)
    assert rates is not None and {row[0] for row in rates.rows} == {
        t.policy for t in run.throughputs if t.policy and t.stage == END_TO_END
    }
    shown = {row[0]: row for row in latencies.rows}
    assert list(shown) == [one.policy for one in run.latencies] and len(shown) >= 4
    for one in run.latencies:
        median = sorted(one.latency_ms)[(len(one.latency_ms) - 1) // 2]
        assert shown[one.policy][1] == f"{median:.1f}" and shown[one.policy][3] == "", "six images have no p99"
    page = report.html([run])
    assert "Latency of one image" in page and "Dense crops, early stopping" in page


def test_the_figure_of_latency_shows_the_records(scored: Any) -> None:
    (data,) = latency.pictures(Inputs(runs=read([scored.out]))).values()
    records = {one.policy: one for one in scored.run.latencies}
    assert list(data.frame["policy"]) == list(records)
    _, policies = latency.draw(data).axes
    points = {line.get_gid(): float(np.atleast_1d(line.get_xdata())[0]) for line in policies.lines if line.get_gid()}
    for name, one in records.items():
        assert points[f"{name} p50"] == one.percentile(50) and f"{name} p99" not in points
    with pytest.raises(MissingData, match="latency-queries"):
        latency.pictures(Inputs(runs=[replace(scored.run, records=[])]))


def test_the_figure_shows_the_records(scored: Any) -> None:
    (data,) = accuracy_vs_forwards.pictures(Inputs(runs=read([scored.out]))).values()
    assert not isinstance(data, MissingData)
    records = {r.policy: r for r in scored.run.accuracies if r.level == "softmax"}
    rates = {t.policy: t.rate for t in scored.run.throughputs if t.stage == END_TO_END}
    assert {"CC", "CC+3DC", "4RC~exact"} <= set(data.frame["policy"])
    for row in data.frame.to_dict("records"):
        assert (row["top1"], row["forwards"]) == (records[row["policy"]].top1, records[row["policy"]].forwards)
        if row["kind"] != "random crops" and row["policy"] in rates:
            assert row["images_per_sec"] == rates[row["policy"]]
    words = [text.get_text() for text in accuracy_vs_forwards.draw(data).findobj(matplotlib.text.Text)]
    assert "4RC~exact, stopped early" in words


def test_the_figure_of_stopping_shows_the_stored_answers(small_run: Callable[..., Any]) -> None:
    """The exact rule's point is the record of the stopped policy; a threshold's point is a plain loop over images."""
    run = small_run("--crops", "3", "--no-throughput")
    (data,) = stopping.pictures(Inputs(runs=read([run.out]))).values()
    assert not isinstance(data, MissingData) and data.whole == "3RC"
    record = next(r for r in run.run.accuracies if (r.policy, r.level) == ("3RC~exact", "softmax"))
    (point,) = data.rules[data.rules["name"] == "~exact"].to_dict("records")
    assert point["crops"] == pytest.approx(record.forwards) and point["agreement"] == 100 * record.agreement
    _, predictions = stored(run)
    level = predictions.levels.index("softmax")
    columns = [predictions.policies.index(f"{n}RC") for n in (1, 2, 3)]
    assert predictions.margin is not None
    row = data.curve.iloc[1]
    used = same = 0
    for margin, top1 in zip(predictions.margin[level, columns].T, predictions.top1[level, columns].T, strict=True):
        stage = next((t for t in range(2) if margin[t] > row["threshold"]), 2)
        used, same = used + stage + 1, same + int(top1[stage] == top1[2])
    assert (row["crops"], row["agreement"]) == (used / len(predictions), 100 * same / len(predictions))
    assert set(data.crops) == {"3RC~exact", "3RC~1%"}
    assert stopping.draw(data).axes


@pytest.mark.parametrize("policy", ["CC+3DC", "4RC~exact", "CC+2DC+2RC~sqrt", "CC+WI"])
def test_multicrop_answers_as_the_run(scored: Any, policy: str, weights_file: Path, demo_root: Path) -> None:
    names, predictions = stored(scored)
    classify = MultiCrop("test_resnet", checkpoint=weights_file, policy=policy, **SMALL)
    found = {image.name: image for image in classify(demo_root)}
    level = predictions.levels.index("softmax")
    for name, top1 in zip(names, predictions.top1[level, predictions.policies.index(policy)], strict=True):
        assert found[name].top(1)[0][0] == top1


def test_a_risk_needs_a_threshold_that_matches(
    scored: Any, weights_file: Path, demo_root: Path, tmp_path: Path
) -> None:
    settings = {"checkpoint": weights_file, "policy": "4RC~30%", **SMALL}
    with pytest.raises(ValueError, match=r"needs a calibrated threshold.*--policies '4RC~30%'"):
        MultiCrop("test_resnet", **settings)
    (one, *_) = [t for t in thresholds.read(scored.out) if t.level == "softmax"]
    path = tmp_path / thresholds.FILE_NAME
    path.write_text(json.dumps([_plain(replace(one, threshold=0.25))]))
    classify = MultiCrop("test_resnet", thresholds=tmp_path, **settings)
    assert classify.threshold == 0.25
    assert all(image.error is None for image in classify(demo_root))
    with pytest.raises(ValueError, match="calibrated with K 64, and this network has 48"):
        MultiCrop("test_resnet", thresholds=path, **{**settings, "img_size": 48, "crop_pct": 48 / one.S})
    with pytest.raises(ValueError, match="has none for 4RC~30% at level logit"):
        MultiCrop("test_resnet", thresholds=path, level="logit", **settings)
    path.write_text(json.dumps([_plain(replace(one, threshold=None, note="too few images"))]))
    with pytest.raises(ValueError, match="too few images"):
        MultiCrop("test_resnet", thresholds=path, **settings)
    path.write_text("nothing")
    with pytest.raises(ValueError, match="holds no thresholds"):
        MultiCrop("test_resnet", thresholds=path, **settings)


def _plain(one: thresholds.Threshold) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def test_multicrop_refuses_what_a_network_lacks(weights_file: Path) -> None:
    with pytest.raises(ValueError, match="~exact needs `level` softmax"):
        MultiCrop("test_resnet", checkpoint=weights_file, policy="4RC~exact", level="logit", **SMALL)
    with pytest.raises(ValueError, match="policy DC: "):
        MultiCrop("torchvision:alexnet", weights="random", policy="DC", img_size=224, batch_size=8)


def test_calibration_of_stored_margins() -> None:
    """calibrate on the arrays that a run stores, against each half done by hand."""
    rng = np.random.default_rng(0)
    b, t = 3000, 4
    full = rng.integers(0, 5, b)
    margin = rng.random((b, t))
    wrong = rng.random((b, t)) < 0.02 * (1 - margin)
    top1 = np.where(wrong, full[:, None] + 1, full[:, None])
    running = Running(top1, margin, np.ones((b, t)), np.ones((b, t)), full)
    second = second_half([f"{i}.jpg" for i in range(b)], 0)
    done = calibrate(running, second, 0.05, "softmax")
    for rows, half in ((second, done.halves[0]), (~second, done.halves[1])):
        assert half.threshold is not None
        stage = np.where(
            (margin[rows, :-1] > half.threshold).any(1), (margin[rows, :-1] > half.threshold).argmax(1), t - 1
        )
        assert np.array_equal(done.stopped.stage[rows], stage)


def test_the_gallery_of_stopping_shows_the_crops_that_were_taken(small_run: Callable[..., Any]) -> None:
    run = small_run("--crops", "3", "--no-throughput")
    (data,) = many_crops.pictures(Inputs(runs=read([run.out]))).values()
    assert not isinstance(data, MissingData), data
    assert data.policy in ("3RC~1%", "3RC~exact") and data.most
    _, predictions = stored(run)
    level = predictions.levels.index("softmax")
    assert predictions.forwards is not None
    crops = predictions.forwards[level, predictions.policies.index(data.policy)]
    assert [count for count, _ in data.most] == sorted(crops.astype(int).tolist(), reverse=True)[: len(data.most)]
    for count, one in data.most + data.fewest:
        assert len(one.windows) == len(one.right) == count
    words = [text.get_text() for text in many_crops.draw(data).findobj(matplotlib.text.Text)]
    assert any(text.startswith(f"{data.most[0][0]} crop") for text in words)


def test_which_images_are_shown_for_their_crops() -> None:
    """The most crops first, of equals the least sure; then the fewest, of equals the surest; none twice."""
    margin = np.array([[[0.2, 0.1, 0.9, 0.5, 0.95, 0.3]]])
    answers: Any = SimpleNamespace(
        policies=["5RC"], levels=["softmax"], names=list("abcdef"), labels=np.array([0, 1, 2, 3, 4, -1]),
        stored=SimpleNamespace(margin=margin),
    )  # fmt: skip
    crops = np.array([5, 5, 1, 3, 1, 5])
    assert many_crops.choose(answers, "5RC~1%", crops, each=2) == ([1, 0], [4, 2])  # f has no label
    assert many_crops.choose(answers, "5RC~1%", np.full(6, 5), each=2) == ([1, 0], [])
