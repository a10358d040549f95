"""From a run to a recipe to its use, with every kind of policy: the recipe's answers are the run's, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis import recommend
from analysis.recipes import recipe_of
from bench import predict
from bench.predictions import Predictions, read_named
from models import MultiCrop
from models.recipe import Recipe, read_recipe
from pipelines.data import demo

IMAGES = 120
RISKY = "6RC~10%"  # on so few images no smaller risk can be certified
OTHERS = ("CC+3DC~10%", "CC+3DC", "4RC", "4RC~exact")
MODEL = ["--models", "resnet:demo", "--weights", "demo", "--img-size", "64", "--seed", "5"]
QUICK = ["--no-throughput", "--data-backend", "torchvision"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure("val", images=IMAGES, cache=tmp_path_factory.mktemp("many"), workers=1)


def stored(out: Path) -> tuple[list[str], Predictions]:
    (path,) = out.glob("predictions-*.npz")
    return read_named(path)


def require_the_same_answers(recipe: Path, out: Path, again: Path, root: Path, tmp_path: Path) -> None:
    """``MultiCrop.from_recipe``, ``predict --recipe`` and ``run --recipe`` (in ``again``) beside the run in ``out``."""
    use = read_recipe(recipe).use
    names, first = stored(out)
    expected = dict(zip(names, first.deployed(use.policy, use.level).tolist(), strict=True))
    answers = {image.name: image.probabilities for image in MultiCrop.from_recipe(recipe)(root)}
    assert {name: int(p.argmax()) for name, p in answers.items() if p is not None} == expected

    level, policy = first.levels.index(use.level), first.policies.index(use.policy)
    kept = first.nll if use.stopping is None or first.deployed_nll is None else first.deployed_nll
    nll = [-np.log(answers[name][label]) for name, label in zip(names, first.labels.tolist(), strict=True)]
    assert np.array_equal(np.array(nll).astype(np.float32), kept[level, policy])

    table = tmp_path / "answers.jsonl"
    assert predict.main([str(root), "--recipe", str(recipe), "--topk", "1", "--out", str(table), "-q"]) == 0
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert {row["filename"]: row["index_0"] for row in rows} == expected

    names_again, second = stored(again)
    at = second.policies.index(use.policy)
    assert dict(zip(names_again, second.top1[level, at].tolist(), strict=True)) == expected
    order = [names_again.index(name) for name in names]
    assert np.array_equal(second.nll[level, at][order], kept[level, policy])


def test_a_stopped_policy_from_a_run_to_its_use(
    finish: Callable[..., Any], many: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = finish(*MODEL, *QUICK, "--data", str(many), "--policies", RISKY, out=str(tmp_path / "run"))
    assert done.status == 0 and "each half of the images is stopped at the threshold of the other half" in done.stdout
    path = tmp_path / "recipe.json"
    search = [str(done.out), "--levels", "softmax", "--target", "forwards<=5.9", "--out", str(path)]
    assert recommend.main(search) == 0
    said = capfd.readouterr().out
    assert f"{RISKY}\n" in said or (f"{RISKY} " in said and "images stop where the margin is above" in said)
    recipe = read_recipe(path)
    (record,) = [r for r in done.run.accuracies if (r.policy, r.level) == (RISKY, "softmax")]
    assert recipe.use.policy == RISKY and recipe.threshold == record.deployed_threshold
    assert record.deployed_threshold == max(record.first_threshold, record.second_threshold)
    assert record.first_threshold != record.second_threshold, "the halves differ, so that the two scores may"
    kept = recipe.measured["at_this_threshold"]
    assert kept["images"] == IMAGES and kept["top1"] == round(100 * record.deployed_correct / IMAGES, 3)

    again = finish("--recipe", str(path), "--data", str(many), "--no-throughput", out=str(tmp_path / "again"))
    assert again.status == 0, again.stderr
    require_the_same_answers(path, done.out, again.out, many, tmp_path)
    (measured,) = [r for r in again.run.accuracies if (r.policy, r.level) == (RISKY, "softmax")]
    assert measured.deployed_threshold == recipe.threshold and measured.first_threshold is None
    assert measured.top1_correct == measured.deployed_correct == record.deployed_correct
    assert measured.forwards == pytest.approx(kept["forwards"]) and "recipe's threshold" in measured.note
    assert json.loads((again.out / "thresholds.json").read_text())[0]["threshold"] is not None

    assert recommend.main([str(again.out), "--check", str(path)]) == 0
    said = capfd.readouterr().out
    assert "the recipe holds" in said and f"of {IMAGES} answers of 6RC; the risk is 10%" in said
    # A recipe that is measured again gives the same recipe.
    assert recipe_of(again.run, measured).use == recipe.use


@pytest.mark.slow
@pytest.mark.parametrize("policy", OTHERS)
def test_every_kind_of_policy_from_a_run_to_its_use(
    finish: Callable[..., Any], many: Path, tmp_path: Path, policy: str
) -> None:
    done = finish(*MODEL, *QUICK, "--data", str(many), "--policies", policy, out=str(tmp_path / "run"))
    (record,) = [r for r in done.run.accuracies if (r.policy, r.level) == (policy, "softmax")]
    path = recipe_of(done.run, record).write(tmp_path / "recipe.json")
    again = finish("--recipe", str(path), "--data", str(many), "--no-throughput", out=str(tmp_path / "again"))
    assert again.status == 0, again.stderr
    require_the_same_answers(path, done.out, again.out, many, tmp_path)
    assert recommend.main([str(again.out), "--check", str(path)]) == 0


def test_another_threshold_is_refused_by_name(finish: Callable[..., Any], many: Path, tmp_path: Path) -> None:
    """In ``use`` alone, in both parts to a number that is none, and a run at another threshold as the check's."""
    options = ["--data", str(many), "--limit", "60", "--policies", "2RC~30%"]
    done = finish(*MODEL, *QUICK, *options, out=str(tmp_path / "run"))
    (record,) = [r for r in done.run.accuracies if (r.policy, r.level) == ("2RC~30%", "softmax")]
    path = recipe_of(done.run, record).write(tmp_path / "recipe.json")
    written = json.loads(path.read_text())
    for part, value, says in (
        (["use"], 0.123, "`stopping` is"),
        (["use", "measured"], 0.123, '"use" was edited after it was measured'),
        (["use", "measured"], "high", 'needs a "threshold" between 0 and 1'),
    ):
        changed = json.loads(json.dumps(written))
        for name in part:
            changed[name]["stopping"] = {"threshold": value}
        path.write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=says):
            MultiCrop.from_recipe(path)
        assert finish("--recipe", str(path), "--data", str(many), out=str(tmp_path / "no")).status == 2
    for value in ("high", 1.5):  # by a program that writes recipes
        odd = replace(read_recipe(path).use, stopping={"threshold": value})
        with pytest.raises(ValueError, match='needs a "threshold" between 0 and 1'):
            _ = Recipe(odd, {}).threshold
    written["use"]["stopping"] = written["measured"]["stopping"] = {"threshold": 0.123}
    path.write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"no run stopped images at the threshold of .*recipe\.json, 0\.123, but at"):
        recommend.check([done.run], path)


def test_a_risk_that_was_not_certified_is_never_chosen(
    finish: Callable[..., Any], many: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """1 % needs 368 images in each half: with 60 the policy falls back, and no recipe could hold a threshold."""
    options = ["--data", str(many), "--limit", "60", "--policies", "2RC~1%"]
    done = finish(*MODEL, *QUICK, *options, out=str(tmp_path / "run"))
    (record,) = [r for r in done.run.accuracies if (r.policy, r.level) == ("2RC~1%", "softmax")]
    assert record.deployed_threshold is None and record.deployed_correct is None
    with pytest.raises(ValueError, match="has no certified threshold"):
        recipe_of(done.run, record)
    path = tmp_path / "recipe.json"
    assert recommend.main([str(done.out), "--levels", "softmax", "--out", str(path)]) == 0
    assert "1 settings: the risk of stopping early could not be certified" in capfd.readouterr().out
    assert read_recipe(path).use.policy in ("CC", "2RC", "1RC", "CC+1RC")
