"""The photographs of other packages: folders by class, and what to install where they are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pipelines.data import photographs


def test_folders_are_named_by_wnid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn"), pytest.importorskip("skimage")
    assert photographs.main([str(tmp_path / "photos")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'photos'}\n"
    found = sorted((tmp_path / "photos").rglob("*.*"))
    assert {path.name: path.parent.name for path in found} == {
        name: wnid for name, (_, _, wnid) in photographs.PHOTOGRAPHS.items()
    }
    assert all(min(Image.open(path).size) >= 256 for path in found)
    found[0].write_bytes(b"mine")
    assert photographs.main([str(tmp_path / "photos")]) == 0 and found[0].read_bytes() == b"mine"  # not written over


def test_a_missing_package_is_named_as_pip_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    assert photographs.main([str(tmp_path)]) == 2
    assert "pip install scikit-learn" in capsys.readouterr().err
