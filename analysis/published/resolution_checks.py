"""Sentences of FixRes about sizes: where accuracy peaks, which layers to tune, how large the training region is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from analysis.published.cells import columns, unless
from analysis.published.checks import indexed, lookup
from analysis.published.tables import load

FEWER_LAYERS, MORE_LAYERS = "classifier+batch_norm", "classifier+batch_norm+last_three_cells"


def peaks(table: str) -> dict[int, tuple[int, float]]:
    """Of networks that were not adapted: train size -> (best test size, points above the accuracy at the train size).

    Of two test sizes that are equally good the smaller one. A network that was not tested at its train size is absent.
    """
    frame = load(table)
    frame = frame[frame["adaptation"] == "none"]
    found = {}
    for (train_res,), values in columns(indexed(frame, "train_res", "test_res")):
        if train_res in values:
            _, best = max((value, -test_res) for test_res, value in values.items())
            found[train_res] = -best, values[-best] - values[train_res]
    return found


def _peaks_because_of_random_resized_crop() -> Iterator[str]:
    """The sentence holds for a network whose accuracy peaks at its train size once RandomResizedCrop is gone."""
    with_it = peaks("fixres_table5")
    for train_res, (best, gain) in peaks("fixres_table9").items():
        there, there_gain = with_it[train_res]
        text = f"trained at {train_res}: best at {best}, +{gain:.1f} (with it at {there}, +{there_gain:.1f})"
        yield unless(best <= train_res, text)


def _more_layers_help() -> Iterator[str]:
    for (test_res,), values in columns(indexed(load("fixres_table1"), "test_res", "adaptation")):
        if MORE_LAYERS in values:
            fewer, more = values[FEWER_LAYERS], values[MORE_LAYERS]
            yield unless(more > fewer, f"tested at {test_res}: {more}, classifier and BatchNorm {fewer}")


def _region_as_in_equation_1() -> Iterator[str]:
    """The product of the printed sides is sigma H W; equation (1) needs their root mean, sqrt(H W) sigma."""
    for end in ("sigma_min", "sigma_max"):
        sigma = lookup("fixres_text", id=end)
        printed, needed = sigma, sigma**2
        text = f"σ = {sigma:g}: {printed:.3f} of the image's area, Equation (1) needs σ² = {needed:.3f}"
        yield unless(abs(printed - needed) < 1e-9, text)


CELLS: dict[str, Callable[[], Iterator[str]]] = {
    "mainly_random_resized_crop": _peaks_because_of_random_resized_crop,
    "more_layers_help": _more_layers_help,
    "region_as_in_equation_1": _region_as_in_equation_1,
}
