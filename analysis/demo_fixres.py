"""Test sizes, adaptation and fine-tuning on the demo data: the counterpart of FixRes's and FixEfficientNet's tables.

Demo accuracies say nothing about ImageNet, so they stand in a table of their own. A row for each network and size that
runs and experiments scored, and the printed table that has such a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from analysis.adapted import LEVEL, AtSize, at_sizes, networks, untuned
from analysis.evidence import Evidence, common
from analysis.experiments import Experiments
from analysis.grids import Grid
from analysis.stats import paired, wilson
from bench.records import ORIGINAL, REAL, Run

# Printed tables that the demo data cannot have a counterpart of, and why.
NO_COUNTERPART = {
    "FixRes Table 1": "the demo networks have no cells; a row tunes layer4 in their place",
    "FixRes Table 2": "networks of other papers",
    "FixRes Table 7": "times of a training from scratch; those of fine-tuning are in the notes",
    "FixEfficientNet Tables 4 to 6": "the demo data has no second test set, as ImageNet-V2 is",
}


def demo_fixres_frame(found: Sequence[Evidence], runs: Sequence[Run]) -> pd.DataFrame:
    """One row for each demo network and test size (and for each set of labels, where the run has two).

    Columns: as_in, network, train_res, training, test_res, adaptation, augmentation, label_smoothing, labels, images,
    top1, top1_low, top1_high, top5, gain, gain_low, gain_high (over the network as it is at the same size, points),
    why_no_top5. Empty without demo networks that were scored at another size, adapted or fine-tuned.
    """
    rows = []
    for evidence in found:
        if not evidence.is_demo:
            continue
        for group in networks(at_sizes(evidence)):
            if len(group) > 1:
                rows += [_row(one, group, labels, runs) for one in group for labels in _labels(one)]
    return pd.DataFrame(rows, dtype=object)


def _labels(one: AtSize) -> list[str]:
    return [ORIGINAL, REAL] if one.scored and "CC" in one.scored.answers.real else [ORIGINAL]


def _of_labels(one: AtSize, labels: str) -> AtSize | None:
    """Scored with the second set of labels, on the images that have one."""
    if labels == ORIGINAL:
        return one
    if one.scored is None or "CC" not in one.scored.answers.real:
        return None
    real = one.scored.answers.real["CC"][one.scored.answers.levels.index(LEVEL)]
    return replace(one, names=one.names[real >= 0], right=real[real >= 0] == 1)


def _row(one: AtSize, group: Sequence[AtSize], labels: str, runs: Sequence[Run]) -> dict[str, object]:
    here = _of_labels(one, labels)
    assert here is not None
    correct, images = int(here.right.sum()), len(here.right)
    low, high = wilson(correct, images)
    top5 = _top5(one, labels, runs)
    return {
        "as_in": as_in(one, labels), "network": one.family or "", "train_res": one.train_res or "",
        "training": {"train": "RandomResizedCrop", "fixed": "crops of a fixed size"}.get(one.training, "as shipped"),
        "test_res": one.test_res, "adaptation": one.adaptation, "augmentation": one.augmentation,
        "label_smoothing": one.label_smoothing, "labels": labels, "images": images,
        "top1": f"{100 * correct / images:.4f}", "top1_low": f"{low:.4f}", "top1_high": f"{high:.4f}",
        "top5": "" if top5 is None else f"{top5:.4f}",
        **_gain(here, group, labels),
        "why_no_top5": "" if top5 is not None else "train-low-test-high keeps top-1 only",
    }  # fmt: skip


def _top5(one: AtSize, labels: str, runs: Sequence[Run]) -> float | None:
    if one.scored is None:
        return None
    for run in runs:
        for record in run.accuracies_of(labels):
            if record.setting == one.scored.setting and (record.policy, record.level) == ("CC", LEVEL):
                return record.top5
    return None


def _gain(here: AtSize, group: Sequence[AtSize], labels: str) -> dict[str, str]:
    """Over the network as it is at the same size, image by image."""
    names = ("gain", "gain_low", "gain_high")
    plain = next((one for one in untuned(group) if one.test_res == here.test_res), None)
    plain = None if plain is None else _of_labels(plain, labels)
    if plain is None or here.adaptation == "none":
        return dict.fromkeys(names, "")
    ours, theirs = common([(here.names, here.right), (plain.names, plain.right)])
    found = paired(ours, theirs)
    values = (found.difference, found.low, found.high)
    return {name: f"{value:.4f}" for name, value in zip(names, values, strict=True)}


def as_in(one: AtSize, labels: str) -> str:
    """The printed tables that have such a row."""
    if one.label_smoothing:
        return "FixEfficientNet Table 3" if labels == REAL else "FixEfficientNet Tables 1, 2"
    if labels == REAL:
        return "FixEfficientNet Table 3"
    if one.training:
        if one.training == "fixed":
            return "FixRes Table 9" if one.adaptation == "none" else "none"
        return "FixRes Tables 5, 7, left" if one.adaptation == "none" else "FixRes Tables 5, 7, right"
    return {
        ("none", ""): "FixRes Tables 4, 6",
        ("gaussian", ""): "FixRes Table 4",
        ("frechet", ""): "FixRes Appendix A.1",
        ("gaussian+classifier", "test"): "FixRes Table 4",
        ("classifier", "test"): "FixRes Tables 4, 6",
        ("classifier", "train"): "FixRes Table 6",
        ("classifier+bn", "test"): "FixRes Tables 4, 6, 8",
        ("classifier+bn", "train"): "FixRes Table 6",
        ("classifier+bn", "test2"): "FixRes Tables 2, 8",
        ("from:layer4", "test"): "FixRes Tables 1, 10",
    }.get((one.adaptation, one.augmentation), "none")


def demo_fixres_grid(frame: pd.DataFrame, experiments: Experiments) -> Grid:
    """The frame for people, with the times of fine-tuning and what has no counterpart as notes."""
    headings = ("As in", "Network", "Trained at", "Tested at", "Adaptation", "Labels", "Top-1, % (95 %)", "Top-5, %",
                "Gain, points (95 %)", "Images")  # fmt: skip
    rows = []
    for line in frame.to_dict("records"):
        how = " ".join(
            filter(None, [line["adaptation"], f"({line['augmentation']} DA)" if line["augmentation"] else ""])
        )
        how += f", label smoothing {line['label_smoothing']:g}" if line["label_smoothing"] else ""
        gain = ""
        if line["gain"]:
            gain = f"{float(line['gain']):+.2f} ({float(line['gain_low']):+.2f} to {float(line['gain_high']):+.2f})"
        top1 = f"{float(line['top1']):.2f} ({float(line['top1_low']):.2f} to {float(line['top1_high']):.2f})"
        trained = f"{line['train_res']}, {line['training']}" if line["train_res"] else "not said"
        top5 = f"{float(line['top5']):.2f}" if line["top5"] else "[a]"
        rows.append(
            (line["as_in"], line["network"], trained, str(line["test_res"]), how, line["labels"], top1, top5, gain,
             f"{line['images']:,}")
        )  # fmt: skip
    notes = ["[a] not measured: train-low-test-high keeps top-1 only."]
    notes += ["Gain: over the network as it is at the same test size, on the same images (Newcombe)."]
    notes += [f"{one.folder}: {_times(one.step_ms)} for a batch of {one.batch_size} on {one.device}." for one in
              experiments.tunings if one.is_demo]  # fmt: skip
    notes += [f"{table} has no counterpart here: {why}." for table, why in NO_COUNTERPART.items()]
    return Grid(
        "DEMO DATA, test sizes and fine-tuning: says nothing about ImageNet", headings, tuple(rows), tuple(notes)
    )


def _times(step_ms: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{stage} {step_ms[stage]['median']:.3g} ms" for stage in sorted(step_ms))
