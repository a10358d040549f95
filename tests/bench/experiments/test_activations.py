"""activations and --adapt on a small network: the numbers of a plain loop, and what cannot be adapted."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from analysis.stats import paired_difference
from bench.experiments import activations
from bench.job import Job
from bench.measure.adapt import at_size, fit, statistics
from models.fixres.adaptation import ADAPTATIONS, attach
from models.fixres.distributions import Frechet
from pipelines.backends import reference
from pipelines.crops import crop_windows, parse_policy


def features_by_hand(job: Job) -> torch.Tensor:
    """Centre crops cut by the reference, one after the other through the trunk."""
    out = []
    planner = job.planner(parse_policy("CC"))
    for row in job.rows:
        one = np.array([row])
        group = planner.plan(one, job.data.names(one), job.data.sizes(one)).groups[0]
        crop = crop_windows(reference.frame(job.data, planner, row), group.windows, group.K)
        with torch.inference_mode():
            found = job.classifier.features(job.classifier.prepare(torch.from_numpy(crop)))
        assert found is not None
        out.append(found[0])
    return torch.stack(out)


def test_statistics_are_those_of_a_plain_loop(make_job: Callable[..., Job]) -> None:
    job = make_job("--crops", "1", "--data-backend", "dali-cpu")
    found, expected = statistics(job), features_by_hand(job)
    assert found.crops == len(expected) == len(job.rows)
    assert found.pooled.zeros == int((expected == 0).sum())
    assert found.pooled.above_share == pytest.approx(float((expected > 2).float().mean()), abs=2e-3)
    assert found.before is not None


def test_a_limit_on_images_is_kept(make_job: Callable[..., Job]) -> None:
    assert statistics(make_job("--crops", "1"), 5).crops == 5


@pytest.mark.parametrize("name", ADAPTATIONS)
def test_the_option_gives_what_fit_and_attach_give(
    name: str, make_job: Callable[..., Job], small_run: Callable[..., Any]
) -> None:
    done = small_run("--policies", "CC", "--no-throughput", "--adapt", name, "--train-size", "48")
    assert done.status == 0, done.stderr
    (model,) = done.run.info["models"]
    assert any(f"{name} 64 -> 48" in note for note in model["notes"])
    assert {record.setting.adapt for record in done.run.records} == {name}
    job = make_job("--policies", "CC")
    attach(job.classifier, fit(job, name, 48))
    right = activations.score(job).right
    assert next(r for r in done.run.accuracies if r.level == "logit").top1_correct == int(right.sum())
    plain = small_run("--policies", "CC", "--no-throughput", out="plain")
    assert {record.setting.adapt for record in plain.run.records} == {None}
    ours, theirs = (run.predictions()["nll"] for run in (done, plain))
    assert not np.array_equal(ours, theirs)  # it did something


def test_nothing_is_done_at_the_training_size(small_run: Callable[..., Any]) -> None:
    done = small_run("--policies", "CC", "--no-throughput", "--adapt", "frechet", "--train-size", "64")
    assert done.status == 0
    assert any("nothing to do at 64" in note for note in done.run.info["models"][0]["notes"])
    assert {record.setting.adapt for record in done.run.records} == {None}


def test_without_a_training_size_it_is_asked_for(small_run: Callable[..., Any]) -> None:
    done = small_run("--policies", "CC", "--no-throughput", "--adapt", "frechet")
    assert done.status == 2 and "--train-size" in done.stderr


def test_several_sizes_at_once_are_refused(small_run: Callable[..., Any]) -> None:
    done = small_run("--policies", "CC+CC@96", "--no-throughput", "--adapt", "frechet", "--train-size", "48")
    assert done.status == 2 and "one crop size" in done.stderr


def test_the_command(
    demo_root: Path, weights_file: Path, tmp_path: Path, fast_backend: object, capsys: pytest.CaptureFixture[str],
    make_job: Callable[..., Job],
) -> None:  # fmt: skip
    out = tmp_path / "out"
    argv = [
        "--models",
        "test_resnet",
        "--checkpoint",
        str(weights_file),
        "--data",
        str(demo_root),
        "-j",
        "1",
        "-b",
        "8",
    ]
    argv += ["--train-size", "48", "--img-size", "64", "--data-backend", "torchvision", "--out", str(out)]
    assert activations.main(argv) == 0
    rows = {int(row["K"]): row for row in csv.DictReader((out / "activations.csv").open())}
    assert sorted(rows) == [48, 64] and (out / "activations.png").is_file()
    assert rows[48]["frechet_reason"] == "nothing to do at the training size" and rows[48]["frechet_gain"] == ""
    job = make_job("--policies", "CC")
    plain = activations.score(job)
    assert float(rows[64]["top1"]) == pytest.approx(100 * plain.right.mean())
    detach = attach(job.classifier, fit(job, "gaussian", 48))
    adapted = activations.score(job)
    detach()
    newly_correct, newly_wrong = int((adapted.right & ~plain.right).sum()), int((plain.right & ~adapted.right).sum())
    low, high = paired_difference(newly_correct, newly_wrong, int(adapted.right.sum()), len(plain.right))
    got = [float(rows[64][f"gaussian_{key}"]) for key in ("gain", "gain_low", "gain_high")]
    assert got == pytest.approx([100 * (newly_correct - newly_wrong) / len(plain.right), low, high])
    info = json.loads((out / "activations.json").read_text())
    shares = statistics(at_size(job, 48)).pooled.cdf(np.array(info["points"]))
    np.testing.assert_allclose(info["cdf"]["48"], shares, atol=2e-3)  # the points are rounded
    own = Frechet.fit(statistics(at_size(job, 64)).pooled)
    assert [info["frechet"]["64"][name] for name in ("mu", "sigma")] == pytest.approx([own.mu, own.sigma], rel=1e-6)
    assert info["tuned"] is None
    assert "trained at 48" in capsys.readouterr().out
    assert activations.main(argv) == 2  # never over results that are there
    assert activations.main([*argv[:-1], str(tmp_path / "new"), "--fit-data", str(tmp_path / "no")]) == 2
    assert "no" in capsys.readouterr().err
