"""More crops beside what else costs as much, on made runs: what is compared with what, and what is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from analysis import alternatives, choosing
from analysis.alternatives import CROPS, PASSES, SPEED, of_runs, only_crops, table
from analysis.figures import alternatives as figure_module
from analysis.runs import Inputs, MissingData
from analysis.stats import paired_difference

# A larger network and a larger crop as fast as two crops, a fine-tuned network as fast as one, a slow large network.
OTHERS = {
    "larger": ({"model": "resnet50", "param_count": 25_000_000, "weight_hash": "b"}, 0.9, 150.0),
    "crop": ({"K": 288, "S": 329}, 0.6, 155.0),
    "tuned": ({"weight_hash": "c"}, 0.6, 300.0),
    "slow": ({"model": "resnet101", "param_count": 45_000_000, "weight_hash": "d"}, 0.9, 60.0),
}


@pytest.fixture
def runs(made_run):
    others = [
        made_run(name, shares={"CC": share}, rates={1: rate}, **changes)
        for name, (changes, share, rate) in OTHERS.items()
    ]
    return [made_run(), *others]


def test_each_alternative_is_beside_the_best_crops_that_cost_no_more(runs) -> None:
    field = of_runs(runs)
    assert field.base.record.policy == "CC" and field.base.setting.K == 224
    assert {kind: len(own) for kind, own in field.kinds.items()} == {
        CROPS: 4, "larger crop": 1, "fine-tuned": 1, "larger network": 2,
    }  # fmt: skip
    found = table(field).set_index(["kind", "cost", "alternative_cost"])
    assert found.loc[("larger network", SPEED, 150.0), "crops"] in ("2RC", "CC+1RC")
    assert found.loc[("larger network", SPEED, 60.0), "crops"] == "5RC"
    assert found.loc[("larger crop", SPEED, 155.0), "crops"] in ("2RC", "CC+1RC")  # 150 is within 5 % of 155
    assert found.loc[("fine-tuned", SPEED, 300.0), "crops"] == "CC"
    passes = (288 / 224) ** 2
    assert found.loc[("larger crop", PASSES, passes), "crops"] == "CC"  # two crops are two passes
    assert ("larger network", PASSES) not in {key[:2] for key in found.index}
    assert found.loc[("larger network", SPEED, 150.0), "better"] == "larger network"
    assert found.loc[("larger crop", SPEED, 155.0), "better"] == "crops"
    assert found.loc[("fine-tuned", SPEED, 300.0), "better"] == "neither is shown to be"


def test_differences_are_those_of_the_images_that_did_not_choose(runs) -> None:
    field = of_runs(runs)
    found = table(field)
    (row,) = found[(found["alternative_cost"] == 60) & (found["cost"] == SPEED)].to_dict("records")
    part = ~choosing.parts(field.names)
    (one,) = [one for one in field.kinds["larger network"] if one.images_per_sec == 60]
    (crops,) = [one for one in field.kinds[CROPS] if one.record.policy == "5RC"]
    ahead, behind = int((crops.right & ~one.right)[part].sum()), int((one.right & ~crops.right)[part].sum())
    assert row["images"] == part.sum()
    assert row["difference"] == pytest.approx(100 * (ahead - behind) / part.sum())
    joint = 1 - 0.05 / len(found)
    expected = paired_difference(ahead, behind, int(crops.right[part].sum()), int(part.sum()), joint)
    assert (row["low"], row["high"]) == pytest.approx(expected)


def test_the_network_at_its_own_size_is_the_base_where_the_run_records_it(made_run) -> None:
    small = made_run("small", K=160, S=183)
    own = made_run("own")
    assert of_runs([small, own]).base.setting.K == 160
    own.info["models"][0]["own_K"] = small.info["models"][0]["own_K"] = 224
    with pytest.raises(MissingData, match="needs something beside crops"):  # a smaller crop is not an alternative
        of_runs([small, own])


def test_one_network_at_one_size_has_nothing_beside_it(made_run) -> None:
    with pytest.raises(MissingData, match="larger --img-size, or larger --models"):
        of_runs([made_run()])


def test_without_timings_only_passes_are_compared(made_run) -> None:
    runs = [made_run(rates={}), made_run("crop", shares={"CC": 0.7}, rates={}, K=320, S=366)]
    assert set(table(of_runs(runs))["cost"]) == {PASSES}
    with pytest.raises(MissingData, match="images/s"):
        figure_module.pictures(Inputs(tuple(runs)))


@pytest.mark.parametrize(
    ("policy", "expected"),
    [("CC", True), ("CC+9RC", True), ("5FC+5MFC", True), ("CC@192+4RC@256", True), ("DC", False), ("CC+4DC", False)],
)
def test_dense_crops_are_told_by_their_terms(policy: str, expected: bool) -> None:
    assert only_crops(policy) is expected


def test_the_figure_has_every_choice_in_both_panels(runs) -> None:
    data = figure_module.pictures(Inputs(tuple(runs)))[""]
    assert len(data.frame) == 8
    assert data.frame["passes"].isna().sum() == 2  # the larger networks
    figure = figure_module.draw(data)
    for axes in figure.axes:
        drawn = [line for line in axes.lines if line.get_linestyle() == "None" and len(line.get_xdata())]
        points = {(float(x), round(float(y), 3)) for line in drawn for x, y in zip(*line.get_data(), strict=True)}
        expected = data.frame.dropna(subset=[axes.get_gid()])[[axes.get_gid(), "top1"]]
        assert {(x, round(y, 3)) for x, y in expected.to_numpy().tolist()} <= points
    assert np.isfinite(data.frame["top1_low"]).all()


def test_the_command_prints_and_writes_them(runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert alternatives.main([*(str(run.folder) for run in runs), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "larger network" in said and "neither is shown to be" in said
    assert {path.name for path in out.iterdir()} == {"alternatives.csv", "alternatives.png"}
    assert alternatives.main([str(runs[0].folder)]) == 2
    assert "needs something beside crops" in capsys.readouterr().err
