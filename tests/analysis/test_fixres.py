"""analysis/fixres.py: image by image against what the tuned network was made from."""

from __future__ import annotations

import numpy as np
import pytest

from analysis import fixres
from analysis.runs import MissingData
from analysis.stats import paired_difference
from bench.records import Incomparable

B = 400


@pytest.fixture
def answers():
    """Labels of one class; right with the given probability."""
    rng = np.random.default_rng(0)
    return lambda share: (rng.random(B) > share).astype(int)  # 0 is right


@pytest.fixture
def make(maker, answers):
    def one(name, sizes, policies, *, weight_hash, share=0.7, order=None, data_hash=None):
        labels, names = np.zeros(B, int), [f"{i:03}.jpg" for i in range(B)]
        records, stored = [], {}
        for K in sizes:
            extra = {} if data_hash is None else {"data_hash": data_hash}
            setting = maker.setting(model="resnet:demo", S=K + 14, K=K, weight_hash=weight_hash, **extra)
            stored[K] = {policy: answers(share) for policy in policies}
            records += maker.records_of(setting, labels, stored[K])
        models = [
            {"model": "resnet:demo", "S": K + 14, "K": K, "own_K": 96, "predictions": f"predictions-{K}.npz"}
            for K in sizes
        ]
        run = maker.run(name, records, models=models)
        index = np.arange(B) if order is None else order
        for K in sizes:
            top1 = {policy: values[index] for policy, values in stored[K].items()}
            maker.predictions(run, str(K), [names[i] for i in index], labels, top1, np.zeros((B, 1)))
        return run, stored

    return one


def test_each_way_is_compared_image_by_image(make):
    tuned, ours = make("tuned", [128], ["CC"], weight_hash="tt", share=0.8, order=np.arange(B)[::-1])
    untuned, theirs = make("untuned", [64, 96, 128], ["CC", "2RC", "CC+1RC", "5RC"], weight_hash="uu")
    frame = fixres.compare(tuned, untuned)
    ways = list(zip(frame["against"], frame["K_other"], frame["policy"], strict=True))
    assert ways == [
        ("the same size", 128, "CC"), ("its own size", 96, "CC"),
        ("equal cost", 96, "2RC"), ("equal cost", 96, "CC+1RC"),
    ]  # fmt: skip
    for row in frame.to_dict("records"):
        right, base = ours[128]["CC"] == 0, theirs[row["K_other"]][row["policy"]] == 0
        newly_correct, newly_wrong = int((right & ~base).sum()), int((base & ~right).sum())
        assert row["difference"] == pytest.approx(100 * (newly_correct - newly_wrong) / B)
        assert (row["low"], row["high"]) == paired_difference(newly_correct, newly_wrong, int(right.sum()), B)
        assert row["cost_ratio"] == pytest.approx((128 / row["K_other"]) ** 2 / (2 if "RC" in row["policy"] else 1))


@pytest.mark.parametrize(
    ("sizes", "policies", "extra", "error", "says"),
    [
        ([96], ["CC", "2RC"], {}, MissingData, "--img-size"),
        ([96, 128], ["CC", "5RC"], {}, MissingData, "--crops 2"),
        ([96, 128], ["CC", "2RC"], {"data_hash": "other"}, Incomparable, "data_hash"),
        ([96, 128], ["CC", "2RC"], {"weight_hash": "tt"}, MissingData, "one network"),
    ],
)
def test_what_cannot_be_compared_is_refused(make, sizes, policies, extra, error, says):
    tuned, _ = make("tuned", [128], ["CC"], weight_hash="tt")
    untuned, _ = make("untuned", sizes, policies, **{"weight_hash": "uu", **extra})
    with pytest.raises(error, match=says):
        fixres.compare(tuned, untuned)


def test_the_command(make, capsys, tmp_path):
    tuned, _ = make("tuned", [128], ["CC"], weight_hash="tt")
    untuned, _ = make("untuned", [96, 128], ["CC", "2RC"], weight_hash="uu")
    assert fixres.main([str(tuned.folder), str(untuned.folder)]) == 0
    assert "2RC of 96 (equal cost)" in capsys.readouterr().out
    assert (tuned.folder / "fixres.csv").is_file()
    assert fixres.main([str(tmp_path / "no"), str(untuned.folder)]) == 2
    assert "no" in capsys.readouterr().err
