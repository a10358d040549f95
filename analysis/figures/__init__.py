"""One file per figure. FIGURES names them; each module has two functions:

    pictures(inputs) -> {ending: data}   numbers from runs and published tables; raises MissingData with the reason
    draw(data) -> Figure                 reads no file and computes no statistics: it draws what it is given

``ending`` tells several pictures of one figure apart (a network's name); it is "" for the only one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A figure: its module, and what it can be drawn from: "run", "published", "experiment"."""

    module: str
    sources: tuple[str, ...] = ("run",)


def _entry(name: str, *sources: str) -> tuple[str, Entry]:
    return name, Entry(f"analysis.figures.{name}", sources)


# In the order of a report. The name is the module's and the picture's.
FIGURES: dict[str, Entry] = dict(
    (
        _entry("accuracy_vs_crops", "run"),
        _entry("throughput_vs_crops", "run"),
        _entry("latency", "run"),
        _entry("accuracy_vs_speed", "run"),
        _entry("accuracy_vs_forwards", "run"),
        _entry("stopping", "run"),
        _entry("many_crops", "run"),
        _entry("family_curves", "run"),  # MID 3, 7
        _entry("levels", "run", "published"),
        _entry("gain_vs_slack", "run", "published"),
        _entry("gain_vs_baseline", "run", "published"),
        _entry("accuracy_vs_parameters", "run", "published"),  # MID 5, 6, 8; FixEfficientNet 1
        _entry("crop_ratio", "run"),
        _entry("resolution_sweep", "run"),  # FixRes 7
        _entry("equal_cost", "run"),
        _entry("alternatives", "run"),  # the question of MID 8
        _entry("ensembles", "run"),
        _entry("object_size", "run"),  # FixRes 2
        _entry("gain_by_image", "run"),
        _entry("longer_side", "run"),  # MID 4
        _entry("gallery", "run"),  # MID 1, 2
        _entry("accuracy_vs_resolution", "published"),  # FixRes 5, 8
        _entry("imagenet_v2", "run", "published"),  # FixEfficientNet 2
        _entry("clean_labels", "run", "published"),
        _entry("train_low_test_high", "experiment"),  # FixRes 5, 8 on the demo data
        _entry("activations", "experiment"),  # FixRes 3, 6
        _entry("tuned_activations", "experiment"),  # FixRes 4
        _entry("training_time", "published"),  # the trade-off of FixRes Table 7
    )
)

# Figures of experiments -> the file by which a folder of theirs is known.
EXPERIMENT_FILES = {"train_low_test_high": "results.json", "activations": "activations.json"}

# Figures of the papers that no table lets us draw, and why (analysis/published/README.md).
_CURVE = "accuracy at every number of crops is not printed, only the centre crop, 10 and 20 are (Table I)"
_ACTIVATIONS = "distributions of activations are not printed, but for four fractions in the text"
NOT_PRINTED: dict[str, str] = {
    "MID 1, 2": "pictures; `gallery` draws such pictures from a run",
    "MID 3, 7": f"{_CURVE}; `family_curves` draws them from a run",
    "MID 4": "the histogram's numbers are not printed; `longer_side` draws it from a folder of images",
    "FixRes 1": "a picture",
    "FixRes 2": "the distribution of the areas of the crops is not printed; `object_size` draws it from images' shapes",
    "FixRes 3, 4": f"{_ACTIVATIONS}; `activations` and `tuned_activations` draw them from folders of experiments",
    "FixRes 6": "fitted distributions are not printed; `activations` draws them from its folder",
    "FixRes 7": "accuracy in steps of one pixel is not printed, only 224, 256 and 288 are, in the text; "
    "`resolution_sweep` draws it from a run",
    "FixEfficientNet 1": "the other networks' numbers are not printed; `accuracy_vs_parameters` draws EfficientNet's",
    "FixEfficientNet 2": "most other networks' ImageNet accuracies are not printed; `imagenet_v2` draws EfficientNet's "
    "and the two that FixRes Table 2 prints",
}
