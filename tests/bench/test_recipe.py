"""A recipe: its predictions are the run's, bit for bit, and what changed since is refused by name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from analysis.recipes import recipe_of
from bench import predict
from bench.predictions import read_named
from models import MultiCrop, recipe
from models.recipe import RecipeError, read_recipe
from tests.bench.conftest import run_command

POLICY = "CC+2RC"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipe")


@pytest.fixture(scope="module")
def shared(folder: Path, weights_file: Path, demo_root: Path) -> Any:
    """A run with weights of its own; what tests read of it only."""
    own = shutil.copy(weights_file, folder / "own.safetensors")
    model = ["--models", "test_resnet", "--checkpoint", str(own), "--img-size", "64", "--crop-pct", "0.8"]
    done = run_command(
        *model, "--data", str(demo_root), "--policies", f"{POLICY},4RC", "--seed", "3", out=folder / "out"
    )
    assert done.status == 0, done.stderr
    return done


@pytest.fixture
def own_weights(shared: Any, folder: Path) -> Iterator[Path]:
    """Those of the run, which a test may change."""
    path = folder / "own.safetensors"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


@pytest.fixture
def measured(shared: Any, tmp_path: Path) -> tuple[Any, Path]:
    """A run, and the recipe of one of its policies."""
    (record,) = [r for r in shared.run.accuracies if (r.policy, r.level) == (POLICY, "logit")]
    return shared, recipe_of(shared.run, record).write(tmp_path / "recipe.json")


def edited(path: Path, part: str, **values: Any) -> Path:
    stored = json.loads(path.read_text())
    stored[part] |= values
    path.write_text(json.dumps(stored))
    return path


def test_predictions_are_those_of_the_run(measured: tuple[Any, Path], demo_root: Path) -> None:
    done, path = measured
    (stored,) = done.out.glob("predictions-*.npz")
    names, scored = read_named(stored)
    answers = {image.name: image.probabilities for image in MultiCrop.from_recipe(path)(demo_root)}
    level, policy = scored.levels.index("logit"), scored.policies.index(POLICY)
    assert [int(answers[name].argmax()) for name in names] == scored.top1[level, policy].tolist()
    nll = [-np.log(answers[name][label]) for name, label in zip(names, scored.labels.tolist(), strict=True)]
    assert np.array_equal(np.array(nll).astype(np.float32), scored.nll[level, policy])


def test_predict_uses_it(measured: tuple[Any, Path], demo_root: Path, tmp_path: Path) -> None:
    _, path = measured
    out = tmp_path / "answers.jsonl"
    assert predict.main([str(demo_root), "--recipe", str(path), "--topk", "1", "--out", str(out), "-q"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == [predict.row_of(image, 1) for image in MultiCrop.from_recipe(path)(demo_root)]


def test_the_file_says_what_was_measured(measured: tuple[Any, Path]) -> None:
    done, path = measured
    stored = json.loads(path.read_text())
    (record,) = [r for r in done.run.accuracies if (r.policy, r.level) == (POLICY, "logit")]
    assert stored["measured"]["setting"] == asdict(record.setting)
    assert stored["measured"]["top1"] == round(record.top1, 3)
    (timed,) = [t for t in done.run.throughputs if (t.stage, t.crops) == ("end_to_end", 3)]
    assert stored["measured"]["images_per_sec"] == round(timed.rate, 2)
    assert (stored["use"]["img_size"], stored["use"]["crop_pct"], stored["use"]["seed"]) == (64, 0.8, 3)
    assert stored["use"]["stopping"] is None and stored["use"]["fold"] is False
    folded = replace(record, setting=replace(record.setting, folded=True))  # as `preset` may decide
    stopped = replace(record, policy="CC+2RC~1%", first_threshold=0.4, second_threshold=0.5)
    written = recipe_of(done.run, stopped)
    written.require_unedited()
    assert written.use.stopping == written.measured["stopping"] == {"threshold": 0.5}  # the stricter one
    assert written.multicrop_arguments()["thresholds"] == 0.5
    info = {**done.run.info, "models": [{**done.run.info["models"][0], "setting": asdict(folded.setting)}]}
    assert recipe_of(replace(done.run, info=info), folded).use.fold is True
    assert stored["measured"]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_run_measures_the_same_again(measured: tuple[Any, Path], finish: Callable[..., Any], demo_root: Path) -> None:
    done, path = measured
    again = finish("--recipe", str(path), "--data", str(demo_root), out="again")
    assert again.status == 0
    (setting,) = {record.setting for record in again.run.accuracies}
    assert asdict(setting) == json.loads(path.read_text())["measured"]["setting"]

    def counts(run: Any) -> list[int]:
        return [r.top1_correct for r in run.accuracies if r.policy in ("CC", POLICY)]

    assert {r.policy for r in again.run.accuracies} == {"CC", POLICY}
    assert counts(again.run) == counts(done.run)


EDITS: list[tuple[dict[str, Any], str]] = [
    ({"policy": "CC+3RC"}, "`policy` is 'CC+3RC'"),
    ({"level": "softmax"}, "`level` is 'softmax'"),
    ({"seed": 4}, "`seed` is 4"),
    ({"backend": "dali-cpu"}, "`backend` is 'dali-cpu'"),
    ({"stopping": {"threshold": 2.0}}, "`stopping` is"),
    ({"device": "cuda"}, "`device` is 'cuda'"),
    ({"weight_hash": "0" * 16}, "`weight_hash` is"),
    ({"img_size": 96}, "S is 120"),
    ({"crop_pct": 1.0}, "S is 64"),
    ({"interpolation": "bicubic"}, "interpolation is 'bicubic'"),
]


def test_an_edited_recipe_is_refused_by_name(measured: tuple[Any, Path], tmp_path: Path) -> None:
    for values, named in EDITS:
        path = edited(Path(shutil.copy(measured[1], tmp_path / "edited.json")), "use", **values)
        with pytest.raises(RecipeError, match=re.escape(named)) as refused:
            MultiCrop.from_recipe(path)
        assert str(path) in str(refused.value)


def test_changed_weights_are_refused(
    measured: tuple[Any, Path], own_weights: Path, finish: Callable[..., Any], demo_root: Path
) -> None:
    _, path = measured
    state = load_file(own_weights)
    name = next(name for name, values in state.items() if values.is_floating_point())
    state[name].view(-1)[0] += 1e-6 + state[name].view(-1)[0].abs() * 1e-6
    save_file(state, own_weights)
    with pytest.raises(RecipeError, match=r"the weights of .*own\.safetensors are not those that were measured"):
        MultiCrop.from_recipe(path)
    again = finish("--recipe", str(path), "--data", str(demo_root), out="again")
    assert again.status == 2 and "are not those that were measured" in again.stderr


def test_another_version_of_a_package_is_refused_by_name(
    measured: tuple[Any, Path],
    monkeypatch: pytest.MonkeyPatch,
    demo_root: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, path = measured
    real = recipe.package_version
    for package in ("torch", "timm", "pillow", "simplejpeg"):
        monkeypatch.setattr(recipe, "package_version", lambda name, old=package: "0.0.1" if name == old else real(name))
        with pytest.raises(RecipeError, match=rf"was measured with {package} {real(package)}, and this is 0\.0\.1"):
            MultiCrop.from_recipe(path)
        assert predict.main([str(demo_root), "--recipe", str(path), "-q"]) == 2
        assert f"with {package} " in capfd.readouterr().err


def test_a_recipe_that_was_written_before_a_package_was_noted_is_used_with_a_warning(
    measured: tuple[Any, Path], caplog: pytest.LogCaptureFixture
) -> None:
    _, path = measured
    stored = json.loads(path.read_text())
    del stored["measured"]["packages"]["simplejpeg"]
    path.write_text(json.dumps(stored))
    with caplog.at_level("WARNING"):
        read_recipe(path).require_same_packages()
    assert "does not say with which simplejpeg it was measured" in caplog.text
    del stored["measured"]["packages"]["torch"]
    path.write_text(json.dumps(stored))
    with pytest.raises(RecipeError, match="was measured with torch None"):
        read_recipe(path).require_same_packages()


def test_an_option_that_says_otherwise_is_refused(
    measured: tuple[Any, Path], capfd: pytest.CaptureFixture[str], finish: Callable[..., Any]
) -> None:
    _, path = measured
    for flag, value in (("--model", "resnet50"), ("--policy", "5RC"), ("--img-size", "96"), ("--seed", "1")):
        with pytest.raises(SystemExit) as stop:
            predict.main(["photos", "--recipe", str(path), flag, value])
        assert stop.value.code == 2 and f"leave {flag} out" in capfd.readouterr().err
        of_a_run = {"--policy": "--policies", "--model": "--models"}.get(flag, flag)
        refused = finish("--recipe", str(path), of_a_run, value, out="again")
        assert refused.status == 2 and f"leave {of_a_run} out" in refused.stderr


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("no json", "is not a recipe"),
        ("[]", "is not a recipe of schema 1"),
        ('{"schema": 2}', "is not a recipe of schema 1"),
        ('{"schema": 1, "use": {}}', 'lacks "use" or "measured"'),
        ('{"schema": 1, "use": {"model": "a"}, "measured": {}}', "lacks the field"),
        ('{"schema": 1, "use": {"modell": "a"}, "measured": {}}', "unknown field 'modell'"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(RecipeError, match=says):
        read_recipe(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.json")


def test_it_is_exported_as_it_was_measured(measured: tuple[Any, Path], demo_root: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason='pip install -e ".[onnx]"')
    from bench.compare import export

    _, path = measured
    out = tmp_path / "exported"
    assert export.main(["--recipe", str(path), "--data", str(demo_root), "--out", str(out), "-q"]) == 0
    said = json.loads((out / "export.json").read_text())
    assert (said["policy"], said["level"], said["seed"], said["crop_px"]) == (POLICY, "logit", 3, 64)
    assert said["checked"]["largest_difference"] < 1e-5
    assert (out / "recipe.json").read_bytes() == path.read_bytes()
    changed = edited(path, "use", policy="CC+3RC")
    with pytest.raises(SystemExit):
        export.main(["--recipe", str(changed), "--policy", "CC", "--out", str(tmp_path / "other")])
    assert export.main(["--recipe", str(changed), "--out", str(tmp_path / "other"), "-q"]) == 2
