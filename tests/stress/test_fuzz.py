"""tests/stress/fuzz.py in small; and can it fail?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stress import fuzz

SLOW_READERS = ("synsets, meta.mat", "labels, devkit")  # SciPy has a process of its own: half a second each


@pytest.mark.parametrize("name", fuzz.READERS)
def test_damaged_files_are_refused_in_the_projects_own_words(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    outcome = fuzz.fuzz(name, 3 if name in SLOW_READERS else 40, 1, tmp_path)
    assert not outcome.foreign, outcome.foreign
    assert outcome.refused or fuzz.READERS[name].is_forgiving


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in fuzz.READERS if name not in SLOW_READERS])
def test_two_thousand_damaged_files_of_each_kind(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    outcome = fuzz.fuzz(name, fuzz.CHANGES, 2, tmp_path)
    assert not outcome.foreign, outcome.foreign


def test_a_reader_that_raises_another_error_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    careless = fuzz.Reader(fuzz.writes("x.json", '{"a": 1}'), lambda path: json.loads(path.read_text())["a"] + 1, True)
    monkeypatch.setitem(fuzz.READERS, "careless", careless)
    assert sum(fuzz.fuzz("careless", 50, 0, tmp_path).foreign.values()) > 10
