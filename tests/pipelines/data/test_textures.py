"""The generated textures: folders by class, the same for one seed, other pictures for the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.data import textures


def test_each_texture_has_its_folder_and_one_seed_its_pictures(tmp_path: Path) -> None:
    roots = [textures.write(tmp_path / name, 2, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = ([np.asarray(Image.open(path)) for path in sorted(root.rglob("*.png"))] for root in roots)
    assert sorted(path.name for path in roots[0].iterdir()) == sorted(textures.TEXTURES) and len(first) == 12
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(np.array_equal(one, two) for one in first for two in other)
    assert all(textures.SIZES[0] <= side < textures.SIZES[1] for one in first for side in one.shape[:2])


def test_the_command_writes_two_sets_and_never_over_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(textures, "TRAIN", 2)
    monkeypatch.setattr(textures, "TEST", 1)
    assert textures.main([str(tmp_path / "new")]) == 0 and capsys.readouterr().out == f"{tmp_path / 'new'}\n"
    assert len(list((tmp_path / "new").rglob("*.png"))) == 18
    assert textures.main([str(tmp_path / "new")]) == 2 and "exists" in capsys.readouterr().err
