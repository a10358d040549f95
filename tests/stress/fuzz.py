"""Damaged files through every reader: 2,000 seeded changes of each, and no error but the project's own.

    python -m tests.stress.fuzz [--changes 2000] [--seed 0] [--only NAMES]

A reader either takes a changed file or raises one of OWN, in a message that names the file. Anything else (KeyError, a
traceback of a library, a hang) is listed and the exit status is 1. Changes: bytes flipped, cut out, repeated and moved;
in JSON, values replaced by ones of other types and other sizes, fields removed and renamed; in text, fields.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import UserError
from models.checkpoints import WeightsError
from models.recipe import RecipeError
from pipelines.crops import PolicyError
from pipelines.data.dataset import Dataset, DatasetError, Scan
from pipelines.schemas import DamagedFile

OWN = (DamagedFile, DatasetError, UserError, WeightsError, RecipeError, PolicyError)
CHANGES = 2000
STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 1.5, -0.5, 1e300, 2**63, 10**30, "", "x", "../../x", "\x1b[31m", "\ud800", "1",
    [], {}, [[]], [None], {"a": 1}, [1, "x"], "a" * 500,
)  # fmt: skip
STRANGE_TEXT = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-1e400",
    "9" * 5000,
    "[" * 5000,
    '"\\ud800"',
    "'",
    "{",
    "\x00",
)
WORDS = (b"", b"\x00", b"\xff\xfe", b'"', b",", b"\n", b"\r", b"\t", b"-1", b"99999999999999999999", b"1e999", b" ")


@dataclass(frozen=True)
class Reader:
    """``make(folder)`` writes a valid file and returns its path; ``read(path)`` reads it."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    is_json: bool = False
    must_name: bool = True  # the message holds the file's name
    is_forgiving: bool = False  # a damaged file is passed over, with a warning


# ------------------------------------------------------------------------------------------------------------- changes


def changed(content: bytes, rng: random.Random, is_json: bool) -> bytes:
    """One damaged version; of JSON, every other keeps its syntax."""
    if is_json and rng.random() < 0.7:
        try:
            return _changed_json(content.decode(), rng)
        except ValueError:  # JSON lines
            lines = content.decode().splitlines()
            which = rng.randrange(len(lines))
            lines[which] = _changed_json(lines[which], rng).decode("utf-8", "surrogateescape")
            return "\n".join(lines).encode("utf-8", "surrogateescape")
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        CHANGES_OF_BYTES[rng.randrange(len(CHANGES_OF_BYTES))](data, rng)
    return bytes(data)


def _changed_json(text: str, rng: random.Random) -> bytes:
    content = json.loads(text)
    places = list(_places(content))
    if not places:
        return rng.choice(STRANGE_TEXT).encode()
    holder, key = rng.choice(places)
    if rng.random() < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and rng.random() < 0.1:
        holder[rng.choice(("x", "", "model", "schema"))] = holder.pop(key)
    elif rng.random() < 0.2:
        holder[key] = "@"
        return json.dumps(content).replace('"@"', rng.choice(STRANGE_TEXT), 1).encode()
    elif rng.random() < 0.2:
        holder[key] = copy.deepcopy(rng.choice(places)[0])
    else:
        holder[key] = rng.choice(STRANGE)
    return json.dumps(content).encode()


def _places(value: Any) -> Any:
    """(list or dict, key) of everything in it."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.choice((0, 1, 4))] = rng.choice(WORDS)


def _cut(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    del data[at : at + rng.choice((1, 7, 64, len(data)))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data) + 1)
    data[at:at] = data[at : at + rng.choice((1, 16, 200))]


def _swap(data: bytearray, rng: random.Random) -> None:
    lines = bytes(data).split(b"\n")
    rng.shuffle(lines)
    data[:] = b"\n".join(lines)


def _randomise(data: bytearray, rng: random.Random) -> None:
    if data:
        at = rng.randrange(len(data))
        data[at : at + 8] = rng.randbytes(min(8, len(data) - at))


CHANGES_OF_BYTES = (_flip, _flip, _overwrite, _overwrite, _cut, _repeat, _swap, _randomise)


# ------------------------------------------------------------------------------------------------------------- readers

NAMES = [f"ILSVRC2012_val_0000000{number}.JPEG" for number in range(1, 5)]


def scan_of(folder: Path) -> Scan:
    """A flat folder of four images that need not be there."""
    table = pd.DataFrame({"name": NAMES, "width": 9, "height": 9, "path": NAMES})
    return Scan(folder, table, pd.DataFrame({"name": [], "reason": []}), folders=(), other_files=Counter())


def data_of(folder: Path) -> Dataset:
    from pipelines.data.labels import unlabelled

    return unlabelled(scan_of(folder), "none")


def writes(name: str, text: str) -> Callable[[Path], Path]:
    """A maker of one text file."""

    def make(folder: Path) -> Path:
        path = folder / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


def labels_in(path: Path) -> Any:
    from pipelines.data.labels import label

    return label(scan_of(path.parent), num_classes=1000, labels_file=path)


def class_map_in(path: Path) -> Any:
    from pipelines.data.labels.class_map import read_class_map

    return read_class_map(path, 10)


def valid_labels_in(path: Path) -> Any:
    from pipelines.data.labels.valid import read_valid_labels

    return read_valid_labels(path, 1000)


def real_labels_in(path: Path) -> Any:
    from pipelines.data.real_labels import read

    return read(path, data_of(path.parent), 1000)


def synsets() -> list[str]:
    """ImageNet's wnids in an order that is not sorted, as the devkit's."""
    from pipelines.data.labels.classes import synset_index

    return sorted(synset_index(1000), key=lambda wnid: wnid[::-1])


def make_truth(folder: Path) -> Path:
    (folder / "synsets.txt").write_text("\n".join(synsets()))
    return writes("truth.txt", "1\n7\n1000\n3\n")(folder)


def make_devkit(folder: Path) -> Path:
    import io
    import tarfile

    from scipy.io import savemat

    mat = io.BytesIO()
    rows = [(number, wnid) for number, wnid in enumerate(synsets(), 1)]
    savemat(mat, {"synsets": np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object)])})
    path = folder / "devkit.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (
            ("ILSVRC2012_validation_ground_truth.txt", b"1\n7\n1000\n3\n"),
            ("meta.mat", mat.getvalue()),
        ):
            member = tarfile.TarInfo(f"data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_mat(folder: Path) -> Path:
    from scipy.io import savemat

    path = folder / "meta.mat"
    rows = [(number, wnid) for number, wnid in enumerate(synsets(), 1)]
    savemat(path, {"synsets": np.array(rows, dtype=[("ILSVRC2012_ID", object), ("WNID", object)])})
    return path


def synsets_in(path: Path) -> Any:
    from pipelines.data.labels.devkit import read_devkit_synsets

    return read_devkit_synsets(path)


def setting() -> Any:
    from bench.records import Setting

    return Setting(
        model="resnet18.tv_in1k", family="resnet", variant="18", weights="pretrained", weight_hash="aa",
        param_count=11, published_top1=69.76, published_in="MID Table I", S=256, K=224, interpolation="bilinear",
        crop_mode="center", data="val", data_hash="dd", is_demo=False, backend="dali-cpu", batch_size=64,
        batch_images=8, workers=2, device="cpu", machine_id="m1", amp_dtype="float32", channels_last=False,
        torchcompile=False, seed=0,
    )  # fmt: skip


def run_info() -> dict[str, Any]:
    from bench.config import RunConfig, to_plain
    from bench.records import SCHEMA

    model = {
        "model": "resnet18.tv_in1k", "label": "r18", "S": 256, "K": 224, "own_K": 224, "train_K": None, "notes": ["n"],
        "label_rule": "by path", "predictions": "predictions-r18.npz", "setting": asdict(setting()), "batch_size": 64,
        "crops_per_sec": 9.5, "expected_s": 3.0, "num_classes": 1000, "images": 4,
        "asked": {"model": "r18", "img_size": 224, "crop_pct": None}, "preset": None,
    }  # fmt: skip
    return {
        "schema": SCHEMA, "command": ["multicrop-bench", "run"], "directory": "/", "started": "now", "resumed": [],
        "expected_s": 3.0, "networks": ["r18"], "policies": ["CC"], "data": "/val", "images_found": 4,
        "images_unreadable_at_scan": 0, "other_files": {".txt": 1}, "config": to_plain(RunConfig()),
        "load": {"backend": "torchvision", "workers": 2}, "models": [model],
        "environment": {"packages": {"torch": "2"}, "cores_usable": 2},
    }  # fmt: skip


def make_run_json(folder: Path) -> Path:
    return writes("run.json", json.dumps(run_info()))(folder)


def run_json_in(path: Path) -> Any:
    from bench.resume import read_resumable

    return read_resumable(path.parent)


def make_results(folder: Path) -> Path:
    from bench.records import Absent, Accuracy, FailedModel, ImageAccounting, Throughput, to_line

    make_run_json(folder)
    lines = [
        Accuracy(setting(), "CC+4RC", 5, "softmax", 1000, 3, 715, 912, 1.125, 40, 25, 5.0),
        Throughput(setting(), "end_to_end", 5, 8, [30, 40], [0.5, 0.5], [10.0, 12.0], 10**9, None, 0.06),
        Absent(setting(), "accuracy at level feature", "none"),
        ImageAccounting(setting(), 7, 4, 1, 2, [["a", "decode", "cut"], ["b", "decode", "cut"]]),
        FailedModel("r50", "load", "none"),
    ]
    return writes("results.jsonl", "".join(to_line(line) + "\n" for line in lines))(folder)


def results_in(path: Path) -> Any:
    from analysis.summary import summary
    from bench.records import read_run

    run = read_run(path.parent)
    return summary(run.records, run.failed)


def make_predictions(folder: Path) -> Path:
    from bench.predictions import Predictions
    from pipelines.batch import Failure

    shape = (1, 2, 3)
    path = folder / "predictions-r18.npz"
    Predictions(
        rows=np.arange(3), labels=np.arange(3), policies=["CC", "2RC"], levels=["softmax"],
        top1=np.zeros(shape, np.int32), in_top5=np.zeros(shape, bool), nll=np.zeros(shape, np.float32),
        view_top1=np.zeros((3, 3), np.int32), failed=[Failure(3, "cut", "decode")],
    ).save(path, names=NAMES[:3])  # fmt: skip
    return path


def predictions_in(path: Path) -> Any:
    from bench.predictions import counts, read_facts, read_named

    read_facts(path)
    _, found = read_named(path)
    return counts(found, found.levels[0], found.policies[0])


def make_scores(folder: Path) -> Path:
    from bench.measure.scores import SavedScores, path_beside

    scores = np.full((2, 3, 4), 0.25, np.float32)
    predictions = folder / "predictions-r18.npz"
    SavedScores(np.array(NAMES[:3]), np.arange(3), np.arange(3, dtype=np.uint64), ["CC", "2RC"], scores).save(
        predictions
    )
    return path_beside(predictions)


def scores_in(path: Path) -> Any:
    from bench.measure.scores import SavedScores, answers

    kept = SavedScores.load(path)
    return [answers(kept.of_policy(policy)) for policy in kept.policies]


def make_safetensors(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    path = folder / "w.safetensors"
    save_file({"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}, path, {"class_names": '["a", "b"]'})
    return path


def make_pt(folder: Path) -> Path:
    import torch

    path = folder / "w.pt"
    torch.save({"state_dict": {"a.weight": torch.ones(2, 3), "a.bias": torch.zeros(2)}, "epoch": 3}, path)
    return path


def checkpoint_in(path: Path) -> Any:
    from torch import nn

    from models.checkpoints import load_weights, read_checkpoint, read_class_names

    read_class_names(path)
    state, _ = read_checkpoint(path)
    net = nn.Module()
    net.a = nn.Linear(3, 2)
    load_weights(net, state, path, "net")


def tuned_in(path: Path) -> Any:
    from bench.measure import tuned

    return tuned.read(path)


def make_recipe(folder: Path) -> Path:
    from models.recipe import Recipe, Use

    use = Use("resnet18", "CC", "softmax", "pretrained", "aa", 0, "torchvision", "cpu", 64)
    measured = {
        "setting": {**asdict(setting()), "backend": "torchvision"}, "packages": {"torch": "2"}, "policy": "CC",
        "level": "softmax", "stopping": None,
    }  # fmt: skip
    path = folder / "recipe.json"
    Recipe(use, measured).write(path)
    return path


def recipe_in(path: Path) -> Any:
    from models.recipe import read_recipe

    recipe = read_recipe(path)
    recipe.require_unedited()
    return recipe.run_options(), recipe.multicrop_arguments(), recipe.changed_package()


def make_thresholds(folder: Path) -> Path:
    from models.thresholds import Threshold, add

    one = Threshold("r18", "aa", 256, 224, "bilinear", "center", "CC+3RC~1%", "softmax", 0.25, 100, "val")
    path = folder / "thresholds.json"
    add(path, [one])
    return path


def thresholds_in(path: Path) -> Any:
    from models.thresholds import add, read

    found = read(path)
    add(path, found[:1])


def make_loaders(folder: Path) -> Path:
    from bench.compare.loader_records import NotTimed, Timed, Workload, to_line

    work = Workload("uint8", 5)
    lines = [Timed("ours", work, n, 50, 0.5, 8, 10**9, 0.01) for n in range(2)] + [NotTimed("x", None, "not there")]
    return writes("loaders.jsonl", "".join(to_line(line) + "\n" for line in lines))(folder)


def loaders_in(path: Path) -> Any:
    from bench.compare.loader_records import read

    return read(path.parent)


def steps_in(path: Path) -> Any:
    from bench.compare.gpu import finished

    return finished(path.parent)


def fine_tuning_in(path: Path) -> Any:
    from bench.experiments.finetune import read_note

    return read_note(path.parent)


def make_fine_tuning(folder: Path) -> Path:
    from bench.experiments.finetune import NOTE, SCHEMA

    note = {"schema": SCHEMA, "status": "running", "finetune": {}, "config": {}, "started_in": "/", "argv": []}
    return writes(NOTE, json.dumps(note))(folder)


def make_header_cache(folder: Path) -> Path:
    from pipelines.data.dataset import CACHED, write_cache

    path = folder / "scan.parquet"
    rows = {field.name: (["a"] if str(field.type) == "string" else [1]) for field in CACHED}
    import pyarrow as pa

    write_cache(path, {b"root": b"x"}, pa.table(rows, schema=CACHED))
    return path


def header_cache_in(path: Path) -> Any:
    from pipelines.data.dataset import CACHED, frame, read_cache

    return frame(read_cache(path, {b"root": b"x"}, CACHED))


def picture() -> bytes:
    """A PNG of 9 x 9 pixels."""
    import io

    from PIL import Image

    png = io.BytesIO()
    Image.new("RGB", (9, 9)).save(png, "PNG")
    return png.getvalue()


def make_tar(folder: Path) -> Path:
    import io
    import tarfile

    path = folder / "val.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in (("a.png", picture()), ("a.cls", b"3"), ("a.json", b'{"label": 3}')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def make_parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "val.parquet"
    rows = pa.table({"image": [{"bytes": picture(), "path": "a.png"}], "label": [3]})
    pq.write_table(rows, path)
    return path


def shards_in(path: Path) -> Any:
    from pipelines.data.labels import label
    from pipelines.data.scanning import scan

    os.environ["MULTICROP_CACHE"] = str(path.parent / "cache")
    return label(scan(path, workers=1, progress=False), num_classes=10)


def make_demo_table(folder: Path) -> Path:
    from pipelines.data.dataset import DEMO_COLUMNS, DEMO_TABLE

    row = dict.fromkeys(DEMO_COLUMNS, "1") | {"name": NAMES[0], "width": "9", "height": "9"}
    return writes(DEMO_TABLE, ",".join(row) + "\n" + ",".join(row.values()) + "\n")(folder)


def demo_table_in(path: Path) -> Any:
    from pipelines.data.dataset import read_demo_table, with_demo_columns

    demo = read_demo_table(path, path)
    return None if demo is None else with_demo_columns(scan_of(path.parent).table.iloc[:1], demo, path.parent)


def make_synsets(folder: Path) -> Path:
    return writes("synsets.txt", "".join(f"{wnid} name\n" for wnid in synsets()))(folder)


def make_arrow(folder: Path) -> Path:
    import pyarrow as pa

    table = pa.table({"image": [{"bytes": picture(), "path": "a.png"}], "label": [3]})
    path = folder / "data.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    return path


def index_cache_of(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """A maker of the cached index of a tar or a Parquet file, which lies beside the cache."""

    def make_cache(folder: Path) -> Path:
        (folder / "data").mkdir()
        shards_in(make(folder / "data"))
        (path,) = (folder / "data" / "cache").rglob("*.parquet")
        return path

    return make_cache


@cache
def scanned_anew(source: Path, written_ns: int) -> Scan:
    """Without a cached index; once for each file, which is not the one that is damaged."""
    from pipelines.data.scanning import scan

    return scan(source, workers=1, cache=source.parent / "none", progress=False)


def index_cache_in(path: Path) -> None:
    """Raises AssertionError where a damaged cache changes what is found."""
    from pipelines.data.scanning import scan

    (source,) = (one for one in path.parents[2].iterdir() if one.is_file())
    with_cache = scan(source, workers=1, cache=path.parents[1], progress=False)
    fresh = scanned_anew(source, source.stat().st_mtime_ns)
    assert with_cache.table.equals(fresh.table), "the damaged index was believed"
    assert (with_cache.folders, with_cache.other_files) == (fresh.folders, fresh.other_files)


def make_arrays(folder: Path) -> Path:
    path = folder / "w.npz"
    np.savez(path, **{"head/bias": np.zeros(3), "head/kernel": np.zeros((2, 3))})
    return path


def arrays_in(path: Path) -> Any:
    from models.checkpoints import classes_in_arrays

    return classes_in_arrays(path)


def make_state(folder: Path) -> Path:
    import torch
    from safetensors.torch import save_file

    about = {"recipe": {"tune": "classifier"}, "epochs_done": 2, "log": [{"loss": 1.5}], "best_epoch": 1}
    path = folder / "state.safetensors"
    save_file({"fc.weight": torch.ones(2, 3)}, path, {"about": json.dumps(about | {"best_loss": 0.5})})
    return path


def state_in(path: Path) -> Any:
    from models.fixres.finetune import read_state

    return read_state(path, held_out=True)


def make_rows(folder: Path) -> Path:
    answer = {"index_0": 3, "label_0": "n01440764", "name_0": "tench", "prob_0": 0.5}
    rows = [{"filename": "a.jpg", "error": None, **answer}, {"filename": "b.jpg", "error": "no image"}]
    return writes(".out.csv.lines", "".join(json.dumps(row) + "\n" for row in rows))(folder)


def rows_in(path: Path) -> Any:
    from bench.predict import as_text, whole_rows

    rows = whole_rows(path)
    return [as_text(rows, form) for form in ("json", "csv")] if rows else None


def predict_rows(note: Path) -> Any:
    """``bench.predict.kept_rows`` with a network that is not needed."""
    from bench.predict import PredictConfig, kept_rows

    network = SimpleNamespace(weight_hash="aa")
    classify: Any = SimpleNamespace(
        policy=SimpleNamespace(name="CC"), level="softmax", seed=0, classifier=network, backend="dali-cpu"
    )
    return kept_rows(PredictConfig(images=["/images"], model="net"), classify, note.with_name("rows"), note)


def make_predict_note(folder: Path) -> Path:
    note = folder / ".out.csv.json"
    predict_rows(note)
    (folder / "rows").write_text("")
    return note


def images_in(path: Path) -> Any:
    from bench.compare.recommend import settled

    asked: Any = SimpleNamespace(out=path.parent)
    return settled(asked, "final", lambda: 1)


def model_list_in(path: Path) -> Any:
    from bench.options import listed_models

    return listed_models(path)


def writer_in(path: Path) -> Any:
    from bench.files import writer

    return writer(path.parent)


def unreadable_in(path: Path) -> Any:
    from analysis.report import unreadable_grid

    run: Any = SimpleNamespace(folder=path.parent)
    return unreadable_grid([run])


def timm_results_in(path: Path) -> Any:
    from analysis.known_answers import read_results

    return read_results.__wrapped__(path)


TIMM = "model,top1,top5,param_count,img_size,crop_pct,interpolation\nresnet18,69.7,89.1,11.69,224,0.875,bilinear\n"


def within(*folders: str, name: str, text: str) -> Callable[[Path], Path]:
    """A maker of a text file some folders below."""

    def make(folder: Path) -> Path:
        inner = folder.joinpath(*folders)
        inner.mkdir(parents=True)
        return writes(name, text)(inner)

    return make


def targets_of(table: str, depth: int) -> Callable[[Path], Any]:
    """Reads one table of a GPU's targets, whose folder is so many levels above the file."""

    def read(path: Path) -> Any:
        from analysis import gpu_targets

        return list(getattr(gpu_targets, table)(path.parents[depth], str))

    return read


def make_network_table(folder: Path) -> Path:
    from bench.compare.gpu_steps import HEADLINE, folder_of
    from models.variants import COMPILED, TIMM

    text = f'variant,batch_size,crops_per_sec\n"{TIMM}",64,90.5\n"ours{COMPILED}",64,95.5\n'
    return within("network", f"{folder_of(HEADLINE)}-64", name="network.csv", text=text)(folder)


PARITY = json.dumps(
    {
        "images": 9,
        "top1_agreement": {"dali-gpu - dali-cpu": {"CC": 1.0}},
        "frames": {"dali-gpu - dali-cpu": {"mean": 0.5, "worst": 1.0}},
    }
)
TRAINED_ROW = {
    "family": "resnet", "crop": "RandomResizedCrop", "train_res": 32, "test_res": 48, "S": 55, "adaptation": "none",
    "images": 100, "top1_correct": 50, "newly_correct": 0, "newly_wrong": 0, "top1": 50.0, "top1_low": 40.0,
    "top1_high": 60.0,
}  # fmt: skip
ACTIVATION_ROW = {
    "K": 64, "crops": 100, "zero_percent": 50.0, "above_2_percent": 1.5, "fitted_on": "train", "images": 100,
    "top1": 60.0,
    **{f"{name}_{end}": "" for name in ("frechet", "gaussian") for end in ("gain", "gain_low", "gain_high", "reason")},
}  # fmt: skip


def table_text(row: dict[str, Any]) -> str:
    return f"{','.join(row)}\n" + 2 * f"{','.join(map(str, row.values()))}\n"


def make_trained(folder: Path) -> None:
    """All files of train-low-test-high."""
    settings = {
        "family": "resnet", "min_area": 0.25, "images": 100, "epochs": 2, "adapt_images": 50, "adapt_epochs": 1,
        "seed": 0,
    }  # fmt: skip
    environment = {"cpu": "a CPU", "packages": {"torch": "2"}}
    writes("results.json", json.dumps({"settings": settings, "environment": environment}))(folder)
    writes("results.csv", table_text(TRAINED_ROW))(folder)
    (folder / "answers").mkdir()
    np.savez(folder / "answers" / "train-32-48.npz", names=np.array(NAMES), none=np.ones(4, bool))


def make_activations(folder: Path) -> None:
    info = {
        "model": "net", "is_demo": True, "data": "val", "train_K": 64, "points": [0.0, 1.0], "cdf": {"64": [0.5, 1.0]},
        "weight_hash": "aa", "tuned": {"K": 64, "layers": "classifier", "base_hash": "bb"},
        "frechet": {"64": {"mu": 0.4, "sigma": 0.3, "xi": 0.3, "zero_share": 0.1, "distance": 0.01}},
    }  # fmt: skip
    writes("activations.json", json.dumps(info))(folder)
    writes("activations.csv", table_text(ACTIVATION_ROW))(folder)


def make_tuned_network(folder: Path) -> None:
    note = {
        "status": "finished", "device": "cpu", "adapt": None,
        "step_ms": {"trunk": {"median": 1.5, "min": 1.0, "max": 2.0, "steps": 9}},
        "base": {"model": "net", "weights": "demo", "weight_hash": "aa", "train_K": 64},
        "result": {"weight_hash": "bb"}, "input": {"K": 96},
        "recipe": {"tune": "classifier", "augmentation": "test", "label_smoothing": 0.0, "batch_size": 8},
        "data": {"is_demo": True},
    }  # fmt: skip
    writes("finetune.json", json.dumps(note))(folder)


def one_of(make: Callable[[Path], None], name: str) -> Callable[[Path], Path]:
    """A maker of an experiment's folder, of which that file is changed."""

    def make_one(folder: Path) -> Path:
        make(folder)
        return folder / name

    return make_one


def experiment_in(path: Path) -> Any:
    """As figures, claims and the report read it."""
    from analysis.experiments import split
    from analysis.figures import activations, train_low_test_high

    folder = path.parent.parent if path.parent.name == "answers" else path.parent
    figures = {"activations": activations.read, "results": train_low_test_high.read}
    return split([folder]), [figures[path.stem](folder) if path.stem in figures else None]


def make_scored(folder: Path) -> Path:
    from dataclasses import fields

    from bench.experiments.train_low_test_high import Row

    row = {one.name: TRAINED_ROW[one.name] for one in fields(Row)}
    line = {"network": "train-32", "test_res": 48, "rows": [row], "fine_tuning": [{"loss": 1.5}]}
    return writes("scored.jsonl", 2 * f"{json.dumps(line)}\n")(folder)


def scored_in(path: Path) -> Any:
    from bench.experiments.train_low_test_high import read_log

    return [[row.derived() for row in entry["rows"]] for entry in read_log(path.parent)]


def experiment_settings_in(path: Path) -> Any:
    from bench.experiments.train_low_test_high import open_folder

    return open_folder(path.parent, {"images": 100, "epochs": 2})


CSV = "name,label\n" + "".join(f"{name},{number}\n" for number, name in enumerate(NAMES))
READERS: dict[str, Reader] = {
    "labels, text": Reader(writes("labels.txt", CSV[11:].replace(",", " ")), labels_in),
    "labels, CSV": Reader(writes("labels.csv", CSV), labels_in),
    "labels, TSV": Reader(writes("labels.tsv", CSV.replace(",", "\t")), labels_in),
    "labels, by line": Reader(make_truth, labels_in),
    "labels, devkit": Reader(make_devkit, labels_in),
    "synsets, meta.mat": Reader(make_mat, synsets_in),
    "class map": Reader(writes("classes.txt", "".join(f"class {n} {n}\n" for n in range(10))), class_map_in),
    "valid labels": Reader(writes("valid.txt", "1\n5\n7\n"), valid_labels_in),
    "real.json, list": Reader(writes("real.json", "[[], [970, 795], [1], [2, 3]]"), real_labels_in, is_json=True),
    "real.json, object": Reader(
        writes("real.json", json.dumps({name: [1, 2] for name in NAMES})), real_labels_in, is_json=True
    ),
    "checkpoint, safetensors": Reader(make_safetensors, checkpoint_in),
    "checkpoint, torch.save": Reader(make_pt, checkpoint_in),
    "run.json": Reader(make_run_json, run_json_in, is_json=True, must_name=False),
    "results.jsonl": Reader(make_results, results_in, is_json=True),
    "predictions": Reader(make_predictions, predictions_in),
    "softmax scores": Reader(make_scores, scores_in),
    "tuned.json": Reader(
        writes("tuned.json", '{"m dali-cpu": {"workers": 2, "prefetch": 2, "hw_load": 0.5, "batch_images": 8}}'),
        tuned_in,
        is_json=True,
    ),
    "recipe.json": Reader(make_recipe, recipe_in, is_json=True),
    "thresholds.json": Reader(make_thresholds, thresholds_in, is_json=True),
    "loaders.jsonl": Reader(make_loaders, loaders_in, is_json=True),
    "steps.jsonl": Reader(
        writes("steps.jsonl", '{"step": "a", "took_s": 1.5, "end": "ok"}\n' * 3), steps_in, is_json=True
    ),
    "finetune.json": Reader(make_fine_tuning, fine_tuning_in, is_json=True),
    "header cache": Reader(make_header_cache, header_cache_in, is_forgiving=True),
    "tar": Reader(make_tar, shards_in, must_name=False),
    "Parquet": Reader(make_parquet, shards_in, must_name=False),
    "Arrow": Reader(make_arrow, shards_in, must_name=False),
    "tar, cached index": Reader(index_cache_of(make_tar), index_cache_in, is_forgiving=True),
    "Parquet, cached index": Reader(index_cache_of(make_parquet), index_cache_in, is_forgiving=True),
    "demo.csv": Reader(make_demo_table, demo_table_in),
    "synsets, text": Reader(make_synsets, synsets_in),
    "class map, indices": Reader(writes("map.txt", "".join(f"class {n} {9 - n}\n" for n in range(10))), class_map_in),
    "valid labels, wnids": Reader(writes("valid.txt", "n01440764\nn01443537\n"), valid_labels_in),
    "checkpoint, NumPy": Reader(make_arrays, arrays_in),
    "fine-tuning, state": Reader(make_state, state_in),
    "predict, rows": Reader(make_rows, rows_in, is_json=True),
    "predict, settings": Reader(make_predict_note, predict_rows, is_json=True, must_name=False),
    "recommend, images.json": Reader(
        writes("images.json", '{"screen-2": 100, "final": 1000}'), images_in, is_json=True
    ),
    "model list": Reader(writes("models.txt", "resnet18 # small\n\nresnet50\n"), model_list_in),
    "writer of a folder": Reader(
        writes(".writer.json", '{"process": 12, "host": "h", "since": "now"}'),
        writer_in,
        is_json=True,
        is_forgiving=True,
    ),
    "unreadable.csv": Reader(writes("unreadable.csv", "name,stage,reason\r\na.jpg,scan,no image\r\n"), unreadable_in),
    "timm's results": Reader(writes("results-imagenet.csv", TIMM), timm_results_in),
    "GPU, network.csv": Reader(make_network_table, targets_of("network_alone", 2)),
    "GPU, kernels.csv": Reader(
        writes("kernels.csv", "model,crops,kernel_share\nresnet50,5,0.96\nresnet50,20,\n"),
        targets_of("kernels_active", 0),
    ),
    "GPU, parity.json": Reader(
        within("parity", "hw-0", name="parity.json", text=PARITY), targets_of("same_answer", 2), is_json=True
    ),
    "experiment, results.json": Reader(one_of(make_trained, "results.json"), experiment_in, is_json=True),
    "experiment, results.csv": Reader(one_of(make_trained, "results.csv"), experiment_in),
    "experiment, answers": Reader(one_of(make_trained, "answers/train-32-48.npz"), experiment_in),
    "experiment, activations.json": Reader(one_of(make_activations, "activations.json"), experiment_in, is_json=True),
    "experiment, activations.csv": Reader(one_of(make_activations, "activations.csv"), experiment_in),
    "experiment, finetune.json": Reader(one_of(make_tuned_network, "finetune.json"), experiment_in, is_json=True),
    "experiment, scored.jsonl": Reader(make_scored, scored_in, is_json=True),
    "experiment, settings.json": Reader(
        writes("settings.json", '{"images": 100, "epochs": 2}'), experiment_settings_in, is_json=True, must_name=False
    ),
}


# ----------------------------------------------------------------------------------------------------------------- run


@dataclass
class Outcome:
    """Of one reader: how many changed files were read and refused, and the errors that are not the project's own."""

    read: int = 0
    refused: int = 0
    foreign: Counter[str] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.foreign = Counter()


def fuzz(name: str, changes: int, seed: int, folder: Path) -> Outcome:
    """Change the reader's valid file ``changes`` times."""
    reader, outcome, rng = READERS[name], Outcome(), random.Random(f"{seed} {name}")
    path = reader.make(folder)
    content = path.read_bytes()
    reader.read(path)  # the valid file is read
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(changes):
            path.write_bytes(changed(content, rng, reader.is_json))
            try:
                reader.read(path)
                outcome.read += 1
            except OWN as error:
                outcome.refused += 1
                if reader.must_name and path.name not in str(error):
                    outcome.foreign[f"does not name the file: {str(error)[:150]}"] += 1
            except Exception as error:
                outcome.foreign[f"{type(error).__name__}: {' '.join(str(error).split())[:150]} (change {number})"] += 1
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description="Damaged files through every reader.")
    parser.add_argument("--changes", type=int, default=CHANGES, help="of each file (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose names begin so")
    parser.add_argument("--skip", default="")
    args = parser.parse_args()
    bad = 0
    for name in READERS:
        if not name.startswith(args.only) or name == args.skip:
            continue
        with tempfile.TemporaryDirectory() as folder:
            outcome = fuzz(name, args.changes, args.seed, Path(folder))
        foreign = sum(outcome.foreign.values())
        bad += foreign
        print(f"{name:26} read {outcome.read:6}  refused {outcome.refused:6}  other errors {foreign:6}", flush=True)
        for text, count in outcome.foreign.most_common(4):
            print(f"    {count:5} x {text}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
