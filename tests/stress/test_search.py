"""tests/stress/search.py: its tests against made answers, and all of it in miniature."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from pipelines.data import demo
from tests.stress import search
from tests.stress.search import Outcome, same_share, worse


def test_shares_on_other_images_are_told_apart_by_chance_only() -> None:
    assert same_share((380, 400), (1900, 2000)) == pytest.approx(1)
    assert same_share((380, 400), (1800, 2000)) < 0.01 < same_share((380, 400), (1870, 2000))


def test_a_choice_that_is_worse_is_found_and_a_better_one_is_none() -> None:
    theirs = np.ones(100, dtype=bool)
    ours = theirs.copy()
    ours[:8] = False
    assert worse(ours, theirs) == pytest.approx(binom.sf(7, 8, 0.5)) and worse(theirs, ours) == 1
    assert worse(ours, ours) == 1


def test_what_is_missed_is_said() -> None:
    good = Outcome(1, 7.0, 12.0, "a", (380, 400), (1900, 2000), "b", (1910, 2000), 0.9, 0.2)
    assert good.missed == [] and search.row(good)[-1] == "holds"
    bad = replace(good, minutes=9.0, p_reported=0.001, p_worse=0.001)
    assert len(bad.missed) == 3 and "another top-1 than reported" in search.row(bad)[-1]
    assert len(search.row(good)) == len(search.rows([good])[0])


@pytest.mark.slow
@pytest.mark.dali
def test_the_command_searches_scores_fresh_images_and_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    val = demo.ensure("val", images=160, cache=tmp_path / "demo", workers=1)
    fresh = demo.ensure("fresh-3", images=60, cache=tmp_path / "demo", workers=1)
    monkeypatch.setattr(demo, "ensure", lambda split, images: fresh)
    monkeypatch.setattr(search, "POLICIES", ["--crops", "1,2"])
    words = [
        "--seeds", "3", "--images", "60", "--folder", str(tmp_path / "out"),
        "--networks", f"--models resnet:demo,mobilenet:demo --img-size 64 --data {val} --crops 1,2",
        "--search", "--screen-images 60 --rounds 1 --round-seconds 0.1",
    ]  # fmt: skip
    status = search.main(words)
    (outcome,) = json.loads(capsys.readouterr().out.splitlines()[-1])["outcomes"]
    assert status == 0 and outcome["fresh"][1] == outcome["exhaustive_fresh"][1] == 60
    assert outcome["chosen"].startswith("resnet:demo 64") and outcome["minutes"] > 0 and outcome["cpu_minutes"] > 0
    monkeypatch.setattr(search, "MOST_MINUTES", 0.0)
    assert search.main(words) == 1  # nothing is searched again, and its time is too long
    assert list(json.loads(capsys.readouterr().out.splitlines()[-1])["missed"]) == ["3"]
