"""Equation 5 by formula, by integration and by torchvision's own RandomResizedCrop (FixRes Section 3)."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from scipy.integrate import quad

from analysis import apparent_size as sizes
from analysis import object_size
from analysis.figures import object_size as figure
from analysis.runs import Inputs


def test_equation_5_by_formula():
    assert sizes.expected_ratio(256, 224) == pytest.approx(0.8086, abs=0.0005)
    assert sizes.scale_factor(0.28, 1) == pytest.approx(0.7075, abs=0.0005)


@pytest.mark.parametrize("low", [0.0, 0.28, math.sqrt(0.08), 0.9])
def test_the_factor_is_the_mean_of_sigma(low):
    """sigma squared is uniform in [low^2, 1]: integrate sqrt(x)."""
    mean = quad(math.sqrt, low**2, 1)[0] / (1 - low**2)
    assert sizes.scale_factor(low, 1.0) == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("shape", sizes.SHAPES.values(), ids=sizes.SHAPES)
def test_windows_follow_torchvisions_rule(shape):
    """Both draw 4,000 windows with generators of their own: the means of sigma agree within four standard errors."""
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    h, w = shape
    torch.manual_seed(0)
    image = torch.zeros((1, h, w))
    theirs = np.array([
        transforms.RandomResizedCrop.get_params(image, [*sizes.AREA], [*sizes.ASPECT])[2:] for _ in range(4000)
    ])  # fmt: skip
    ours = sizes.sample_windows(np.full(4000, h), np.full(4000, w), np.random.default_rng(1))
    sigma = [np.sqrt(windows.prod(axis=1) / (h * w)) for windows in (theirs, ours)]
    error = math.hypot(*(one.std() / math.sqrt(len(one)) for one in sigma))
    assert abs(sigma[0].mean() - sigma[1].mean()) < 4 * error
    assert abs(np.median(theirs[:, 0]) - np.median(ours[:, 0])) < 0.05 * h
    assert ours[:, 0].max() <= h and ours[:, 1].max() <= w


def test_when_nothing_fits_the_middle_is_cut_as_torchvision_does():
    torch = pytest.importorskip("torch")
    transforms = pytest.importorskip("torchvision.transforms")
    for h, w in ((20, 400), (400, 20)):  # no window of 8 % of these fits
        _, _, height, width = transforms.RandomResizedCrop.get_params(
            torch.zeros((1, h, w)), [*sizes.AREA], [*sizes.ASPECT]
        )
        ours = sizes.sample_windows(np.array([h]), np.array([w]), np.random.default_rng(0))
        assert ours.tolist() == [[height, width]]


@pytest.mark.parametrize("shape", sizes.SHAPES.values(), ids=sizes.SHAPES)
def test_integration_agrees_with_drawing(shape):
    h, w = (4 * side for side in shape)  # larger, so that rounding to pixels does not matter
    rule = sizes.fitting(w / h)
    sampled = sizes.sample(np.array([[h, w]]), 256, 224, 224, windows=100_000)
    assert sampled.mean_sigma == pytest.approx(rule.mean_sigma, abs=0.003)


def test_what_was_drawn_is_lower_than_the_formula_and_depends_on_the_shape():
    rows = {row.images: row for row in sizes.rows_of_shapes(256, 224, 224, windows=20_000)}
    assert rows["1:1"].sampled == pytest.approx(0.762, abs=0.005)
    assert rows["4:3"].sampled < rows["1:1"].sampled < rows["1:1"].paper
    assert rows["4:3"].as_resized > rows["1:1"].as_resized
    assert rows["4:3"].sampled == pytest.approx(rows["3:4"].sampled, abs=0.005)


@pytest.mark.parametrize("bad", [(-0.1, 1), (0.5, 0.5), (1, 0.5)])
def test_a_range_that_means_nothing_is_refused(bad):
    with pytest.raises(ValueError, match="lower end"):
        sizes.scale_factor(*bad)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="--data"):
        sizes.sample(np.zeros((0, 2)), 256, 224, 224)


def test_the_figure_shows_what_the_table_says():
    data = figure.pictures(Inputs())[""]
    drawn = figure.draw(data)
    ratios = drawn.axes[1]
    lines = {line.get_gid(): line for line in ratios.lines}
    assert lines["Equation 5"].get_ydata()[0] == pytest.approx(0.8086, abs=0.0005)
    assert lines["sampled"].get_ydata().tolist() == [row.sampled for row in data.rows]


def test_the_command(tmp_path, capsys):
    assert object_size.main(["--out", str(tmp_path)]) == 0
    assert re.search(r"1:1\s+0\.8086", capsys.readouterr().out) and (tmp_path / "object_size.png").is_file()
    assert object_size.main(["--out", str(tmp_path), "--data", str(tmp_path / "no")]) == 2
    assert "no" in capsys.readouterr().err
