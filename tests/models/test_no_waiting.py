"""No step of prediction makes the host wait for a GPU: shown without one.

Read from the source: whatever reads a tensor's numbers, or copies from ordinary memory, is in ALLOWED with its reason.
And run on torch's ``meta`` device, which has no numbers to read: reading one is an error there, as a copy is that the
host would wait for.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from models import early_stopping
from models import predict as predict_module
from models.averaging import LEVELS, log_probabilities
from models.dense import Dense
from models.early_stopping import EarlyStopping, Stopping
from models.loading import load
from models.predict import Network, predict
from pipelines.batch import CropBatch, Group
from pipelines.crops import Planner, parse_policy, union

ROOT = Path(__file__).resolve().parents[2]
FILES = ("predict", "averaging", "early_stopping", "transfer", "normalization")
READS = {"item", "cpu", "tolist", "numpy", "nonzero", "synchronize", "cuda", "unique", "is_nonzero", "equal"}
CASTS = {"bool", "int", "float", "print"}
MAKES = {"tensor", "as_tensor", "from_numpy"}
# File and function -> what is allowed in it, and why.
ALLOWED: dict[str, tuple[set[str], str]] = {
    "predict.get_ready": ({"synchronize"}, "before the first batch"),
    "predict.passed": ({"synchronize"}, "waits for the forward pass MAX_QUEUED passes back: the bound"),
    "predict.frames_at_once": ({"int"}, "of Python's numbers"),
    "predict.default_batch_size": ({"int"}, "of Python's numbers"),
    "predict.__init__": ({"int", "bool"}, "of Python's numbers"),
    "predict._pending": ({"tolist", "int"}, "of NumPy's arrays, the plan's"),
    "predict._positions": ({"tolist"}, "of NumPy's arrays, the plan's"),
    "predict._runs": ({"tolist"}, "of NumPy's arrays, the plan's"),
    "predict._index_of": ({"int"}, "of NumPy's arrays, the plan's"),
    "predict._store_scores": ({"unique", "tolist"}, "of NumPy's arrays, the plan's"),
    "averaging.softmax": ({"from_numpy"}, "on a CPU alone"),
    "averaging.log_softmax": ({"from_numpy"}, "on a CPU alone"),
    "averaging.log": ({"numpy", "from_numpy"}, "on a CPU alone"),
    "averaging._shifted": ({"numpy"}, "on a CPU alone"),
    "averaging.score": ({"cpu", "to"}, "the accuracy pass, once for each batch of images; not timed"),
    "transfer.to_device": ({"from_numpy"}, "pinned, then copied without waiting"),
    "normalization.__init__": ({"tensor"}, "once for each network"),
    "normalization.forward": ({"to"}, "from one type to another, on the device"),
    "early_stopping._capacity": ({"bool"}, "of Python's numbers"),
    "early_stopping.next_stage": ({"int"}, "of NumPy's arrays, the plan's"),
    "early_stopping._key": ({"int"}, "of Python's numbers"),
    "early_stopping._values": ({"int", "bool"}, "of NumPy's arrays, the plan's"),
    "early_stopping._added": ({"float"}, "of NumPy's arrays, the plan's"),
    "early_stopping._by_group": ({"int"}, "of NumPy's arrays, the plan's"),
    "early_stopping._decide": ({"synchronize", "tolist"}, "one forward pass behind: the decision itself"),
    "early_stopping.answers": ({"float"}, "of NumPy's arrays, the plan's"),
}


def suspects(source: str) -> dict[str, set[str]]:
    """Function -> the calls in it that might make the host wait."""
    found: dict[str, set[str]] = {}
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and (name := suspect(node)):
                found.setdefault(function.name, set()).add(name)
    return found


def suspect(call: ast.Call) -> str | None:
    """The name of a call that might make the host wait, or None."""
    if isinstance(call.func, ast.Name):
        constant = bool(call.args) and all(isinstance(one, ast.Constant) for one in call.args)
        return call.func.id if call.func.id in CASTS and not constant else None
    if not isinstance(call.func, ast.Attribute):
        return None
    name = call.func.attr
    waits = not any(keyword.arg == "non_blocking" for keyword in call.keywords)
    return name if name in READS | MAKES or (name == "to" and waits) else None


@pytest.mark.parametrize("file", FILES)
def test_what_may_make_the_host_wait_is_known(file: str) -> None:
    found = suspects((ROOT / "models" / f"{file}.py").read_text(encoding="utf-8"))
    allowed = {name.partition(".")[2]: calls for name, (calls, _) in ALLOWED.items() if name.startswith(f"{file}.")}
    assert found == allowed


@pytest.mark.parametrize(
    "line",
    [
        "x.item()", "x.cpu()", "x.tolist()", "bool(x)", "print(x)", "float(x.sum())", "torch.cuda.synchronize()",
        "torch.from_numpy(places).to(device)", "x.to('cpu')", "torch.tensor(places, device=device)", "x.numpy()",
        "mask.nonzero()",
    ],
)  # fmt: skip
def test_a_line_that_waits_would_be_found(line: str) -> None:
    assert suspects(f"def f(x, places, device):\n    {line}")


# ------------------------------------------------------------------------------------- on a device that cannot be read


class Copies(TorchDispatchMode):
    """Notes in ``blocking`` every copy from ordinary memory to the device that the host would wait for."""

    def __init__(self, blocking: list[str]) -> None:
        super().__init__()
        self.blocking = blocking

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        devices = {one.device.type for one in tensors((args, kwargs)) if one.ndim}  # of no dimension: a number
        if name in COPIES and kwargs.get("device") is not None:
            devices.add(torch.device(kwargs["device"]).type)
        if {"cpu", "meta"} <= devices and not waits_for_nothing(name, args, kwargs):
            self.blocking.append(name)
        return func(*args, **kwargs)


class Indices(TorchFunctionMode):
    """Notes every list or array as an index of a tensor on the device: torch copies it there, and waits."""

    def __init__(self, blocking: list[str]) -> None:
        super().__init__()
        self.blocking = blocking

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.blocking += [type(one).__name__ for one in index if isinstance(one, list | np.ndarray)]
        return func(*args, **(kwargs or {}))


@contextmanager
def transfers() -> Iterator[list[str]]:
    """What the host would have waited for in the block."""
    blocking: list[str] = []
    with Copies(blocking), Indices(blocking):
        yield blocking


COPIES = ("_to_copy", "to", "copy_")


def waits_for_nothing(name: str, args: Any, kwargs: Any) -> bool:
    given = args[2:3] if name == "copy_" else ()
    return name in COPIES and bool(kwargs.get("non_blocking", given[0] if given else False))


def tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for one in values:
            yield from tensors(one)


K, IMAGES = 48, 5


def network_on(device: str, *, dense: bool = False) -> Network:
    classifier = load("test_resnet", weights="random", num_classes=7, img_size=K, crop_pct=0.875, seed=0)
    return Network(classifier, batch_size=4, device=device, dense=Dense(classifier) if dense else None)


def batches(planner: Planner, sizes: np.ndarray, device: str) -> Iterator[CropBatch]:
    """Batches of two images whose crops lie on the device, in the order of the views: places are not consecutive."""
    for rows in np.array_split(np.arange(len(sizes)), 3):
        plan = planner.plan(rows, [str(row) for row in rows], sizes[rows])
        groups = []
        for group in plan.groups:
            order = np.argsort(group.view, kind="stable")
            crops = torch.zeros(len(order), group.K, group.K, 3, dtype=torch.uint8, device=device)
            groups.append(Group(crops, rows[group.image[order]], group.view[order]))
        yield CropBatch(groups, rows)


def policy_and_sizes(name: str, network: Network) -> tuple[Any, Planner, np.ndarray]:
    policy = parse_policy(name)
    planner = Planner(network.classifier.spec, union([policy]), 0)
    return policy, planner, np.array([[60, 60 + 40 * n] for n in range(IMAGES)])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["CC+3RC", "CC+4ARC"])
def test_the_prediction_loop_reads_nothing_from_the_device_and_waits_for_no_copy(name: str, level: str) -> None:
    network = network_on("meta")
    policy, planner, sizes = policy_and_sizes(name, network)
    done = 0
    with transfers() as blocking:
        for one in predict(batches(planner, sizes, "meta"), network, planner.views):
            assert one.outputs is not None
            uncovered = planner.uncovered(sizes[one.rows])
            log_p = log_probabilities(level, one.outputs, planner.views, [policy], network.head, uncovered)
            assert log_p is not None and log_p.is_meta
            done += len(one.rows)
    assert done == IMAGES and blocking == []


@pytest.mark.parametrize("name", ["CC+3RC~exact", "CC+4ARC~5%"])
def test_early_stopping_waits_for_its_decisions_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The margins, which are what it decides by, are made up: they are the one thing that it reads."""
    monkeypatch.setattr(early_stopping, "margins", lambda log_p: torch.full((len(log_p),), 0.1, dtype=torch.float64))
    network = network_on("meta")
    policy, planner, sizes = policy_and_sizes(name, network)
    stopping = EarlyStopping(network, planner, Stopping(policy, "softmax", 0.5))
    with transfers() as blocking:
        done = [len(one.rows) for one in stopping.run(batches(planner, sizes, "meta"), lambda rows: sizes[rows])]
    assert sum(done) == IMAGES and blocking == []


def test_a_blocking_copy_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting(places: np.ndarray, device: torch.device) -> Tensor:
        return torch.from_numpy(places).to(device)

    monkeypatch.setattr(predict_module, "_index_of", waiting)
    network = network_on("meta")
    _, planner, sizes = policy_and_sizes("CC+3RC", network)
    with transfers() as blocking:
        list(predict(batches(planner, sizes, "meta"), network, planner.views))
    assert "_to_copy" in blocking
