"""A network and its policy as ONNX files: uint8 crops in, averaged class scores out, normalisation inside.

    written = export(classify, folder)             # classify: models.MultiCrop, before its first image

A policy of crops is one file, ``network.onnx``. Its inputs are uint8, RGB, channels last, as crops lie in memory:

    crops            [images, crops, K, K, 3]      crops of the network's own size; any number of images and of crops
    crops_192        [images, crops, 192, 192, 3]  crops of another size (policies with @192)
    frames           [images, height, width, 3]    dense crops (DC): the frames of ``pipelines.dense_frames``
    mirrored_frames  [images, height, width, 3]    MDC
    whole_images     [images, height, width, 3]    WI

and its output is ``scores``, float32 [images, classes], which sum to 1. Of a policy that stops early every input has a
file of its own, ``crops.onnx``: the next crop is only cut where the scores so far do not stop the image. Its output is
``view_scores`` (softmax level) or ``view_logits``, float32 [images, crops, classes], or [images, classes] of frames;
the mean over the views so far is the answer so far.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.classifier import Classifier
from models.dense import Dense
from models.multicrop import MultiCrop
from pipelines.crops import Policy, is_dense, parted, stream_of

INSTALL = 'pip install -e ".[onnx]"'
NEEDED = ("onnx", "onnxruntime", "onnxscript")
LARGEST_FILE = 1_800_000_000  # bytes of weights; ONNX files hold 2 GB, what is larger lies beside them
OPSET = 17  # layer normalisation came with it; older runtimes read it
STEP = 64  # pixels that the traced frame is larger than a crop, at least
NAMES_OF_DENSE = {"DC": "frames", "MDC": "mirrored_frames", "WI": "whole_images"}


class ExportError(ValueError):
    """Something that cannot be exported; the message says why."""


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the network. ``side``: K of crops, None of frames. ``weight``: that of each view. ``terms``: those
    of the policy that it takes views of, in order."""

    name: str
    side: int | None
    weight: int
    terms: tuple[tuple[str, int], ...]

    @property
    def is_dense(self) -> bool:
        return self.side is None

    @property
    def axes(self) -> dict[int, str]:
        """The axes that may have any length."""
        if self.is_dense:
            return {0: "images", 1: f"{self.name}_height", 2: f"{self.name}_width"}
        return {0: "images", 1: self.name if self.name == "crops" else f"number_of_{self.name}"}


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX file: ``exporter`` names the way that made it."""

    file: str
    inputs: tuple[Input, ...]
    output: str
    exporter: str = ""


def require_packages() -> None:
    """Raises ExportError, with the command that installs them, where packages are missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ExportError(f"export needs the package {missing[0]}, which is not installed: {INSTALL}")


def inputs_of(policy: Policy, K: int) -> tuple[Input, ...]:
    """Crops of the network's own size, those of others, frames."""
    found: dict[str, Input] = {}
    for term, n in policy.terms:
        if is_dense(term):
            name = NAMES_OF_DENSE[stream_of(term)]
            found[name] = Input(name, None, n, ((term, n),))
            continue
        size = parted(term)[1]
        name = "crops" if size is None else f"crops_{size}"
        before = found[name].terms if name in found else ()
        found[name] = Input(name, size or K, 1, (*before, (term, n)))
    return tuple(found.values())


def graphs_of(classifier: Classifier, policy: Policy, level: str) -> list[Graph]:
    """The files that a policy needs. Raises ExportError for what cannot be one."""
    inputs = inputs_of(policy, classifier.spec.K)
    if not policy.suffix:
        return [Graph("network.onnx", inputs, "scores")]
    if level == "feature" and not classifier.head_is_linear:
        raise ExportError(
            f"policy {policy} at level feature: the answer so far needs the head of the mean features after every "
            f"view, and the head of {classifier.name} is not linear: choose `level` logit or softmax"
        )
    output = "view_scores" if level == "softmax" else "view_logits"  # of a linear head, means of logits are the same
    return [Graph(f"{one.name}.onnx", (one,), output) for one in inputs]


class Averaged(nn.Module):
    """The network as it is exported: one tensor for each of the graph's inputs -> its output.

    Raises ExportError for dense views that only a loop over windows could pool.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, classifier: Classifier, graph: Graph, level: str) -> None:
        super().__init__()
        self.net = classifier.net
        self.register_buffer("offset", classifier.normalize.offset.clone())
        self.register_buffer("scale", classifier.normalize.scale.clone())
        self.graph, self.level = graph, level
        self._of = [classifier]  # in a list: its network is registered already
        self._dense = [Dense(classifier)] if any(one.is_dense for one in graph.inputs) else []
        if any(one.name in ("frames", "mirrored_frames") for one in graph.inputs) and not self._dense[0].averages:
            raise ExportError(
                f"{classifier.name} does not pool its map by a mean: the windows of dense crops (DC, MDC) cannot be "
                "one graph for frames of every size. Choose a policy of crops"
            )

    def forward(self, *pixels: Tensor) -> Tensor:
        if self.graph.output != "scores":
            one, x = self.graph.inputs[0], pixels[0]
            if one.is_dense:
                return self.dense_values(x, one, self.views_level)
            return self.crop_values(x, self.views_level)
        total: Any = 0.0
        weight: Any = 0
        for one, x in zip(self.graph.inputs, pixels, strict=True):
            if one.is_dense:
                total, weight = total + one.weight * self.dense_values(x, one, self.level), weight + one.weight
            else:
                total, weight = total + self.crop_values(x, self.level).sum(1), weight + x.shape[1]
        mean = total / weight
        if self.level == "softmax":
            return mean
        return (mean if self.level == "logit" else self._of[0].head(mean)).softmax(-1)

    @property
    def views_level(self) -> str:
        """Of the single views' outputs."""
        return "softmax" if self.graph.output == "view_scores" else "logit"

    def normalized(self, pixels: Tensor) -> Tensor:
        """uint8 [n, h, w, 3] -> float32 [n, 3, h, w], as ``models.normalization`` computes it."""
        n, height, width, _ = pixels.shape
        rows = pixels.float().reshape(n, height, width, 3)
        return ((rows - self.offset) / self.scale).permute(0, 3, 1, 2)

    def crop_values(self, crops: Tensor, level: str) -> Tensor:
        """uint8 [b, v, K, K, 3] -> what is averaged at this level, [b, v, d]."""
        b, v = crops.shape[0], crops.shape[1]
        features, logits = self._of[0].outputs(self.normalized(crops.flatten(0, 1)))
        values = features if level == "feature" else logits.softmax(-1) if level == "softmax" else logits
        assert values is not None
        return values.reshape(b, v, values.shape[-1])

    def dense_values(self, frames: Tensor, one: Input, level: str) -> Tensor:
        """uint8 [b, H, W, 3] -> the mean over the windows of what is averaged at this level, [b, d]."""
        dense = self._dense[0]
        feature_map = dense.parts.trunk(self.normalized(frames))
        if one.name == "whole_images":
            pooled = dense.parts.pool(feature_map)[:, None]
        else:
            pooled = functional.avg_pool2d(feature_map, dense.k, stride=1).flatten(2).transpose(1, 2)
        if level == "feature":
            return pooled.mean(1)
        logits = dense.parts.head(pooled.flatten(0, 1))
        logits = logits.reshape(pooled.shape[0], pooled.shape[1], logits.shape[-1])
        return (logits.softmax(-1) if level == "softmax" else logits).mean(1)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace with: two images, three crops, frames longer than wide; no length is 1 or another's."""
        generator = torch.Generator().manual_seed(0)

        def pixels(*shape: int) -> Tensor:
            return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator)

        return tuple(
            pixels(2, 3, one.side, one.side) if one.side else pixels(2, *self._frame()) for one in self.graph.inputs
        )

    def _frame(self) -> tuple[int, int]:
        dense = self._dense[0]
        step = -(-STEP // dense.s) * dense.s
        return dense.K + 2 * step, dense.K + step


def _with_torchscript(module: Averaged, path: Path) -> None:
    graph = module.graph
    axes = {one.name: one.axes for one in graph.inputs}
    torch.onnx.export(
        module, module.example(), str(path), dynamo=False, opset_version=OPSET, input_names=list(axes),
        output_names=[graph.output], dynamic_axes={**axes, graph.output: {0: "images"}},
    )  # fmt: skip


def _with_dynamo(module: Averaged, path: Path) -> None:
    graph = module.graph
    dims: dict[str, Any] = {}
    shapes = tuple(  # a list would not match ``forward(*pixels)``
        {axis: dims.setdefault(name, torch.export.Dim(name)) for axis, name in one.axes.items()}  # type: ignore[attr-defined]
        for one in graph.inputs
    )
    weights = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    torch.onnx.export(
        module, module.example(), str(path), dynamo=True, verbose=False, external_data=weights > LARGEST_FILE,
        input_names=[one.name for one in graph.inputs], output_names=[graph.output], dynamic_shapes={"pixels": shapes},
    )  # fmt: skip


# In order: the first whose file gives the network's own answers is used. Tracing is ten times as fast and leaves sizes
# of frames open; torch.export takes networks that tracing does not.
EXPORTERS: dict[str, Callable[[Averaged, Path], None]] = {"torchscript": _with_torchscript, "dynamo": _with_dynamo}
Check = Callable[[Path, Graph, Averaged], str | None]  # why a file's answers are not the network's, or None


def export(classify: MultiCrop, folder: Path, check: Check) -> list[Graph]:
    """Write the files of a classifier that has not seen an image yet. ``check`` reads each again.

    Raises ExportError, with every exporter's reason, for a network that none of them takes.
    """
    classifier = classify.classifier
    if classify.placed:
        raise ExportError("export a MultiCrop before its first image: later its weights may be rounded or on a GPU")
    return [
        _exported(Averaged(classifier, graph, classify.level).eval(), folder, check)
        for graph in graphs_of(classifier, classify.policy, classify.level)
    ]


def _exported(module: Averaged, folder: Path, check: Check) -> Graph:
    path = folder / module.graph.file
    reasons = []
    for name, exporter in EXPORTERS.items():
        try:
            with quiet(), torch.no_grad():
                exporter(module, path)
                name_axes(path, module.graph)
            reason = check(path, module.graph, module)
        except Exception as error:  # whatever a network's code or the exporter raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        if reason is None:
            return Graph(module.graph.file, module.graph.inputs, module.graph.output, name)
        for left in folder.glob(f"{module.graph.file}*"):
            left.unlink()
        reasons.append(f"{name}: {reason}")
    raise ExportError(f"{module._of[0].name} cannot be exported: {'; '.join(reasons)}")


def name_axes(path: Path, graph: Graph) -> None:
    """Give the output's axes their names, and check the file. The exporters leave names such as ``Softmax_dim_1``."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    output = model.graph.output[0].type.tensor_type.shape.dim
    output[0].dim_param = "images"
    if graph.output != "scores" and not graph.inputs[0].is_dense:
        output[1].dim_param = graph.inputs[0].axes[1]
    model.producer_name, model.producer_version = "multicrop-bench", ""
    onnx.save(model, str(path))
    onnx.checker.check_model(str(path))


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks: that one of them is old, that shapes are traced, what was optimised."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    before = [one.level for one in loggers]
    try:
        for one in loggers:
            one.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def described(graphs: Sequence[Graph], num_classes: int) -> list[dict[str, Any]]:
    """The files for a person and for a program: names, types and shapes of inputs and output."""
    return [
        {
            "file": graph.file,
            "exporter": graph.exporter,
            "inputs": [_described_input(one) for one in graph.inputs],
            "output": {"name": graph.output, "type": "float32", "shape": _output_shape(graph, num_classes)},
        }
        for graph in graphs
    ]


def _output_shape(graph: Graph, num_classes: int) -> list[str | int]:
    per_view = graph.output != "scores" and not graph.inputs[0].is_dense
    return ["images", *([graph.inputs[0].axes[1]] if per_view else []), num_classes]


def _described_input(one: Input) -> dict[str, Any]:
    lengths: list[str | int] = [one.axes[0], one.axes[1], *([one.axes[2]] if one.is_dense else [one.side, one.side]), 3]  # type: ignore[list-item]
    return {
        "name": one.name,
        "type": "uint8",
        "shape": lengths,
        "layout": "RGB, channels last",
        "views": "+".join(term if n == 1 else f"{n}{term}" for term, n in one.terms),
        "weight_of_a_view": one.weight,
    }
