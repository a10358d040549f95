"""Does an exported network give our answers? ONNX Runtime on the CPU beside the network itself and beside MultiCrop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.averaging import log_softmax
from models.export import Averaged, Graph, Input
from models.multicrop import MultiCrop
from pipelines.batch import CropBatch, Source
from pipelines.crops import Policy
from pipelines.data.dataset import Dataset

TOLERANCE = 1e-3  # of a probability, float32 against float32: other kernels sum in another order
# Of a probability, where the measured network computes in less: its answers differ from float32's by as much.
TOLERANCES = {"float32": TOLERANCE, "float16": 0.05, "bfloat16": 0.3}


@dataclass(frozen=True, slots=True)
class Agreement:
    """On the same crops: MultiCrop's probabilities beside those of the exported files."""

    images: int
    largest_difference: float  # of a probability
    top1_agreement: float  # share of the images
    note: str | None = None


def session(path: Path) -> Any:
    """The file in ONNX Runtime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: its remarks on graphs help nobody here
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def differs(path: Path, graph: Graph, module: Averaged) -> str | None:
    """Why the file's answers are not the network's, or None. Tried on other lengths than those that were traced: a
    length that has become a constant shows."""
    runtime = session(path)
    for batch in variants(graph.inputs, module.example()):
        with torch.inference_mode():
            own = module(*batch).numpy()
        theirs = runtime.run(None, {one.name: x.numpy() for one, x in zip(graph.inputs, batch, strict=True)})[0]
        if own.shape != theirs.shape:
            return f"its answers are of shape {list(theirs.shape)}, and the network's of {list(own.shape)}"
        difference = float(np.abs(own - theirs).max() / max(float(np.abs(own).max()), 1.0))
        if not difference <= TOLERANCE:  # also where it is not a number
            return f"its answers differ from the network's by {difference:.2g}"
    return None


def variants(inputs: Sequence[Input], example: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """The example; one image with one crop; three images with five crops, and the frames turned on their side."""
    one = tuple(x[:1] if at.is_dense else x[:1, :1] for at, x in zip(inputs, example, strict=True))
    more = tuple(
        torch.cat([x, x[:1]]).transpose(1, 2) if at.is_dense else torch.cat([x, x[:, :2]], 1)[[0, 1, 0]].flip(2)
        for at, x in zip(inputs, example, strict=True)
    )
    return [tuple(example), one, more]


def agreement(
    classify: MultiCrop, graphs: Sequence[Graph], folder: Path, source: Source, rows: Sequence[int]
) -> Agreement:
    """On the crops of these images. A policy that stops early is compared with all of its views evaluated."""
    runtimes = {graph.file: session(folder / graph.file) for graph in graphs}
    own, theirs = [], []
    for batch in classify.batches(source, np.asarray(rows, dtype=np.int64)):
        if not len(batch.rows):
            continue
        (answered,) = classify.answered([batch], source, classify.policy.whole)
        if answered.log_p is None:
            continue
        own.append(answered.log_p.exp().cpu().numpy())
        pixels = Pixels(batch, classify, classify.planner.uncovered(source.sizes(batch.rows)))
        theirs.append(np.stack([_scores(graphs, runtimes, pixels, classify, i) for i in range(len(batch.rows))]))
    if not own:
        raise ValueError("none of the images could be read: name others with `data`")
    ours, exported = np.concatenate(own), np.concatenate(theirs)
    return Agreement(
        len(ours),
        float(np.abs(ours - exported).max()),
        float((ours.argmax(1) == exported.argmax(1)).mean()),
        "compared with all views of each image evaluated, none stopped" if classify.policy.suffix else None,
    )


def _scores(
    graphs: Sequence[Graph], runtimes: dict[str, Any], pixels: Pixels, classify: MultiCrop, i: int
) -> np.ndarray:
    """float64 [classes] of the i-th image of a batch: the graph's, or of single views their weighted mean."""
    total, weight = 0.0, 0
    for graph in graphs:
        given = {one.name: pixels.of(one, i)[None] for one in graph.inputs}
        out = runtimes[graph.file].run(None, given)[0][0].astype(np.float64)
        if graph.output == "scores":
            return out
        one = graph.inputs[0]
        views = out[None] if one.is_dense else out
        total, weight = total + one.weight * views.sum(0), weight + one.weight * len(views)
    mean = np.asarray(total / weight)
    return mean if classify.level == "softmax" else log_softmax(torch.from_numpy(mean)).exp().numpy()


class Pixels:
    """The pixels of one batch of images by input, as a program that uses the files would hand them over."""

    def __init__(self, batch: CropBatch, classify: MultiCrop, uncovered: np.ndarray) -> None:
        self.views, self.uncovered, self.policy = classify.planner.views, uncovered, classify.policy
        place = {row: i for i, row in enumerate(batch.rows.tolist())}
        self.found: dict[tuple[int, int], np.ndarray] = {}
        for group in batch.groups + batch.frames:
            crops = group.crops.cpu().numpy()
            for row, view, crop in zip(group.image.tolist(), group.view.tolist(), crops, strict=True):
                if row >= 0:
                    self.found[place[row], view] = crop

    def of(self, one: Input, i: int) -> np.ndarray:
        """uint8 [crops, K, K, 3], or a frame [h, w, 3], of the i-th image."""
        if one.is_dense:
            return self.found[i, self.views.dense[one.terms[0][0]]]
        counts = Policy(one.terms).view_counts(self.uncovered[i : i + 1])
        return np.stack(
            [self.found[i, column] for stream, n in counts for column in self.views.columns[stream][: n[0]]]
        )


def check_rows(source: Dataset, images: int) -> np.ndarray:
    """So many rows of a data set, evenly spread over it."""
    return np.unique(np.linspace(0, len(source.table) - 1, images).round().astype(np.int64))
