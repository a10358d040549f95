"""Softmax scores that a run keeps for ensembles, against the mean of the views' softmax in NumPy."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import job as job_module
from bench import records, run
from bench.measure import accuracy
from bench.measure.scores import SavedScores, answers, path_beside, rounded
from bench.predictions import Predictions, joined
from models.dense import DenseAbsent
from models.predict import predict
from pipelines.schemas import DamagedFile
from tests.stress import kills

ARGV = ["--policies", "CC,3RC,DC", "--save-scores", "3RC,CC", "--no-throughput"]


def kept_of(out: Path) -> SavedScores:
    (path,) = out.glob("scores-*.npz")
    return SavedScores.load(path)


# --------------------------------------------------------------------- the numbers


def test_scores_are_the_mean_of_the_views_softmax(make_job: Callable[..., Any], tmp_path: Path) -> None:
    job = make_job(*ARGV)
    list(accuracy.accuracy_phase(job, job.setting(), tmp_path))
    kept = kept_of(tmp_path)
    assert kept.policies == ["3RC", "CC"] and kept.scores.dtype == np.float32
    source = job.make_backend(job.planner(*job.policies), job.load_config(job.view_cost))
    logits: dict[str, np.ndarray] = {}
    for predicted in predict(source.batches(job.rows), job.network, job.views):
        for name, values in zip(job.data.names(predicted.rows), predicted.outputs.logits.numpy(), strict=True):
            logits[name] = values.astype(np.float64)
    source.close()
    assert len(kept.names) == len(logits) == 24
    for image, name in enumerate(kept.names):
        for policy, stream in (("3RC", "RC"), ("CC", "CC")):
            total = np.zeros(kept.scores.shape[-1])
            for column in job.views.columns[stream]:
                view = logits[name][column]
                total += np.exp(view - view.max()) / np.exp(view - view.max()).sum()
            np.testing.assert_allclose(kept.of_policy(policy)[image], total / total.sum(), atol=1e-6)


def test_their_highest_are_the_runs_own_predictions(small_run: Callable[..., Any]) -> None:
    done = small_run(*ARGV)
    assert done.status == 0 and "softmax scores of 2 policies for 1 network" in done.stderr
    (path,) = done.out.glob("predictions-*.npz")
    stored, kept = Predictions.load(path), kept_of(done.out)
    assert stored.scores is None  # figures read the predictions without them
    for policy in kept.policies:
        own = stored.top1[stored.levels.index("softmax"), stored.policies.index(policy)]
        assert (answers(kept.of_policy(policy)) == own).all()
    assert (kept.labels == stored.labels).all() and (kept.content_crc32 == stored.facts["content_crc32"]).all()
    assert done.run.info["models"][0]["multiply_adds"] > 0


def test_rounding_never_changes_the_answer() -> None:
    """Class 2 leads class 1 by less than float32 can tell; equal scores; NaN."""
    p = np.array([[0.1, 0.45 - 1e-12, 0.45 + 1e-12], [0.4, 0.4, 0.2], [np.nan, 0.5, 0.5]])
    top1 = np.array([2, 0, -1])
    assert p[0].astype(np.float32).argmax() == 1  # what would go wrong
    scores = rounded(np.log(p)[None], top1[None])[0]
    assert answers(scores).tolist() == top1.tolist()
    np.testing.assert_allclose(scores, p, atol=1e-7)


# --------------------------------------------------------------------- interrupted, resumed


def test_an_interrupted_run_keeps_the_scores_of_a_whole_one(
    small_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = small_run(*ARGV, out="whole")
    real, pieces = Predictions.save, []
    with monkeypatch.context() as patch:

        def save(self: Predictions, path: Path, names: list[str], **how: Any) -> None:
            if len(pieces) == 2:
                raise KeyboardInterrupt
            pieces.append(path)
            real(self, path, names, **how)

        patch.setattr(Predictions, "save", save)
        stopped = small_run(*ARGV)
    assert stopped.status == 130 and len(pieces) == 2
    pieces[0].write_bytes(pieces[0].read_bytes()[:300])
    resume = ["--resume", str(stopped.out), "--no-figures"]
    assert run.main([*resume, "--save-scores", "CC"]) == 2
    assert "--save-scores is ['3RC', 'CC'] in the run and ['CC'] here" in capfd.readouterr().err
    assert run.main(resume) == 0
    assert "set aside" in capfd.readouterr().err
    assert kills.differences(kills.contents(expected.out), kills.contents(stopped.out)) == []
    assert not (stopped.out / records.PARTIAL_RESULTS).exists()


def test_pieces_with_and_without_scores_are_not_joined() -> None:
    shape = (1, 1, 0)
    empty = Predictions(
        np.zeros(0, int), np.zeros(0, int), ["CC"], ["softmax"], np.zeros(shape, int), np.zeros(shape, bool),
        np.zeros(shape), np.zeros((0, 1), int), [], score_policies=["CC"], scores=np.zeros((1, 0, 3)),
    )  # fmt: skip
    other = Predictions(*(getattr(empty, name) for name in list(Predictions.__slots__)[:9]))
    with pytest.raises(ValueError, match="different policies"):
        joined([empty, other])


# --------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--policies", "CC,5RC", "--save-scores", "CC,4RC"], "--save-scores: 4RC is not a policy of this run"),
        (["--policies", "CC,5RC", "--save-scores", "CC,x"], "'x'"),
        (["--policies", "5RC~1%", "--save-scores", "5RC~1%"], "stops early, and only its answers are known"),
        (
            ["--policies", "CC", "--save-scores", "CC", "--no-accuracy"],
            "--save-scores is for scoring, which --no-accuracy switches off",
        ),
    ],
)
def test_other_policies_are_refused_before_anything_is_loaded(
    argv: list[str], said: str, small_run: Callable[..., Any]
) -> None:
    done = small_run(*argv)
    assert done.status == 2 and said in done.stderr
    assert not done.out.exists()


def test_a_policy_that_the_network_lacks_has_no_scores(
    make_job: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(classifier: object) -> None:
        raise DenseAbsent("it has no feature map")

    monkeypatch.setattr(job_module, "Dense", lacks)
    job = make_job("--policies", "CC,DC", "--save-scores", "DC,CC", "--no-throughput")
    assert job.score_policies == ("CC",) and job.scoring().score_columns == [0]


def test_a_disk_without_room_is_told_before_the_pass(
    small_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    done = small_run(*ARGV)
    assert done.status == 2 and "--save-scores: the scores take up to 0.0" in done.stderr
    assert list(done.out.glob("*")) == []


# --------------------------------------------------------------------- damaged files

NAMES = np.array(["a.jpg", "b.jpg"])
GOOD = np.array([[[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]], np.float32)


@pytest.mark.parametrize(
    ("names", "scores", "said"),
    [
        (NAMES, GOOD * 2, "a.jpg with CC are not shares that sum to 1"),
        (NAMES, GOOD - np.float32([0, 0, 0.5]) + np.float32([0, 0.5, 0]), "are not shares"),
        (np.array(["a.jpg", "a.jpg"]), GOOD, "comes twice"),
        (NAMES, GOOD[:, :1], "`scores`.*damaged"),
        (NAMES, GOOD.astype(int), "`scores`.*damaged"),
    ],
)
def test_a_damaged_file_is_named(names: np.ndarray, scores: np.ndarray, said: str, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions-net.npz"
    SavedScores(names, np.zeros(2, int), np.zeros(2, np.uint64), ["CC"], scores).save(predictions)
    with pytest.raises(DamagedFile, match=f"scores-net.npz.*{said}"):
        SavedScores.load(path_beside(predictions))


def test_scores_of_a_network_that_gave_nan_are_read(tmp_path: Path) -> None:
    scores = GOOD.copy()
    scores[0, 1] = np.nan
    predictions = tmp_path / "predictions-net.npz"
    SavedScores(NAMES, np.zeros(2, int), np.zeros(2, np.uint64), ["CC"], scores).save(predictions)
    assert answers(SavedScores.load(path_beside(predictions)).of_policy("CC")).tolist() == [0, -1]
