"""--valid-labels from end to end, against the answers among all outputs, restricted and normalised afterwards."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import predict
from bench.records import ImageAccounting
from models import MultiCrop
from pipelines.data import demo

VALID = (2, 3, 7, 12)
SMALL: dict[str, Any] = {"img_size": 64, "batch_size": 8, "backend": "torchvision"}


@pytest.fixture
def subset(demo_root: Path, tmp_path: Path) -> Path:
    """The images of a few classes, in folders by name."""
    for output in VALID:
        folder = sorted(demo.CLASSES)[output]
        shutil.copytree(demo_root / folder, tmp_path / "subset" / folder)
    return tmp_path / "subset"


@pytest.fixture
def valid_file(tmp_path: Path) -> Path:
    path = tmp_path / "valid.txt"
    path.write_text("".join(f"{output}\n" for output in VALID))
    return path


def restricted(probabilities: np.ndarray) -> np.ndarray:
    among = np.zeros_like(probabilities)
    among[..., list(VALID)] = probabilities[..., list(VALID)]
    return among / among.sum(-1, keepdims=True)


@pytest.mark.parametrize(("policy", "level"), [("CC", "softmax"), ("CC+2RC", "logit"), ("CC+2RC", "feature")])
def test_answers_are_those_among_all_outputs_restricted(
    policy: str, level: str, demo_root: Path, weights_file: Path
) -> None:
    """Where views are averaged before the softmax, and for one view, the softmax among some outputs is the whole one
    normalised anew."""
    how: dict[str, Any] = {"checkpoint": weights_file, "policy": policy, "level": level, **SMALL}
    everything = [image.probabilities for image in MultiCrop("test_resnet", **how)(demo_root)]
    among = [image.probabilities for image in MultiCrop("test_resnet", **how, valid_labels=VALID)(demo_root)]
    np.testing.assert_allclose(among, restricted(np.array(everything)), rtol=1e-5, atol=1e-12)


def test_a_run_scores_among_them_and_says_so(
    small_run: Callable[..., Any], subset: Path, valid_file: Path, weights_file: Path, tmp_path: Path
) -> None:
    policies = ["--policies", "CC,CC+2RC,DC,CC+2RC~exact"]
    done = small_run(*policies, "--data", str(subset), "--valid-labels", str(valid_file))
    assert done.status == 0, done.stderr
    assert "answers among 4 of 16 outputs" in done.stdout
    assert done.run.info["models"][0]["valid_labels"] == list(VALID)
    assert {record.setting.valid_labels[:15] for record in done.run.records} == {"4 of 16 outputs"}
    found = done.predictions()
    of_folder = {sorted(demo.CLASSES)[output]: output for output in VALID}
    assert found["labels"].tolist() == [of_folder[name.split("/")[0]] for name in found["names"].tolist()]
    level = found["levels"].tolist().index("softmax")  # ~exact is absent at others
    assert np.isin(found["top1"][level], VALID).all() and np.isin(found["view_top1"], [*VALID, -1]).all()
    classify = MultiCrop("test_resnet", checkpoint=weights_file, policy="CC+2RC", valid_labels=valid_file, **SMALL)
    policy = found["policies"].tolist().index("CC+2RC")
    assert [image.top(1)[0][0] for image in classify(subset)] == found["top1"][level, policy].tolist()
    assert np.isfinite(found["nll"][level, policy]).all()


def test_a_list_is_needed_for_folders_that_only_have_a_rank(small_run: Callable[..., Any], subset: Path) -> None:
    done = small_run("--policies", "CC", "--data", str(subset), "--no-throughput")
    assert done.status == 2 and "cannot be matched by rank with a model of 16 classes" in done.stderr


def test_predict_answers_among_them(
    demo_root: Path, weights_file: Path, valid_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64", "--policy", "CC"]
    how = ["--data-backend", "torchvision", "--topk", "1", "-q", "--valid-labels", str(valid_file)]
    assert predict.main([str(demo_root), *model, *how]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    column = rows[0].index("index_0")
    assert {int(row[column]) for row in rows[1:]} <= set(VALID)


def test_folders_that_the_class_map_does_not_name_are_left_out_and_counted(
    small_run: Callable[..., Any], subset: Path, valid_file: Path, tmp_path: Path
) -> None:
    """As ObjectNet: the images' classes are more than the network's, and the map names those of the network."""
    names = {sorted(demo.CLASSES)[output]: output for output in VALID}
    lines = tmp_path / "map.txt"
    lines.write_text("".join(f"{name} {output}\n" for name, output in list(names.items())[:3]))
    listed = ["--valid-labels", str(valid_file)]
    everything = small_run("--policies", "CC", "--data", str(subset), *listed, out=str(tmp_path / "all"))
    left_out = list(names)[3]
    options = ["--policies", "CC", "--data", str(subset), "--class-map", str(lines)]
    done = small_run(*options, *listed, out=str(tmp_path / "three"))
    assert done.status == 0, done.stderr
    count = len(list((subset / left_out).iterdir()))
    said = f"{count} images of 1 folder that the class map does not name ('{left_out}')"
    assert f"{subset}: {said} are left out" in done.stderr
    assert said in done.run.info["models"][0]["label_rule"]
    one, before = (next(r for r in run.run.records if isinstance(r, ImageAccounting)) for run in (done, everything))
    assert one.scored == before.scored - count
    refused = small_run(*options, out=str(tmp_path / "refused"))
    assert refused.status != 0 and left_out in refused.stderr, "without a list of outputs nothing is left out"
