"""The same images in every form in which people hold ImageNet: a run gives the same answers and labels."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipelines.data import demo
from tests.devkit import DEVKIT, name_of, write_devkit

COUNT = 12


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 classes, whose answers differ from image to image."""
    torch.manual_seed(0)
    net: Any = timm.create_model("test_resnet", num_classes=1000)
    torch.nn.init.normal_(net.get_classifier().weight)
    path = tmp_path_factory.mktemp("network") / "1000.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def forms(demo_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Each form's ``--data``. Labels come from the devkit, from .cls members or from a label column."""
    root = tmp_path_factory.mktemp("forms")
    files = sorted(demo_root.rglob("*.jpg"))[:COUNT]
    images = {name_of(number): path.read_bytes() for number, path in enumerate(files, start=1)}
    labels = write_devkit(root, range(1, COUNT + 1))
    with tarfile.open(root / f"{DEVKIT}.tar.gz", "w:gz") as tar:
        tar.add(root / DEVKIT, DEVKIT)
    (root / "val").mkdir()
    for name, data in images.items():
        (root / "val" / name).write_bytes(data)
    write_tar(root / "ILSVRC2012_img_val.tar", images)
    for shard in range(2):
        members: dict[str, bytes] = {}
        for name in list(images)[shard::2]:
            members |= {name: images[name], name.replace(".JPEG", ".cls"): str(labels[name]).encode()}
        write_tar(root / f"val-{shard:06}.tar", members)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": data, "path": name} for name, data in images.items()], kind)
    table = pa.table({"image": rows, "label": [labels[name] for name in images]})
    for shard in range(2):
        part = table.slice(shard * COUNT // 2, COUNT // 2)
        pq.write_table(part, root / f"validation-{shard:05}-of-00002.parquet", row_group_size=4)
    (root / "saved").mkdir()
    arrow = root / "saved" / "data-00000-of-00001.arrow"
    with pa.OSFile(str(arrow), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=5)
    return {
        "folder": str(root / "val"),
        "tar with devkit": str(root / "ILSVRC2012_img_val.tar"),
        "WebDataset shards": str(root / "val-{000000..000001}.tar"),
        "Parquet": str(root / "validation-*.parquet"),
        "Arrow": str(root / "saved"),
    }


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("backend", [pytest.param("dali-cpu", marks=pytest.mark.dali), "torchvision"])
def test_every_form_gives_the_folders_answers(
    backend: str, forms: dict[str, str], network: Path, finish: Callable[..., Any], demo_root: Path
) -> None:
    assert demo.is_demo(demo_root)
    how = ["--models", "test_resnet", "--checkpoint", str(network), "--img-size", "64", "--policies", "CC,CC+2RC"]
    runs = {
        form: finish(*how, "--data", data, "--no-throughput", "--data-backend", backend, out=form)
        for form, data in forms.items()
    }
    for form, run in runs.items():
        assert run.status == 0, (form, run.stderr)
    expected = runs["folder"].predictions()
    assert len(expected["names"]) == COUNT and len(np.unique(expected["top1"])) > 2
    for form, run in runs.items():
        found = run.predictions()
        for key, values in expected.items():
            if key == "facts":  # a container's times are not the files'
                np.testing.assert_array_equal(found[key]["content_crc32"], values["content_crc32"], err_msg=form)
            else:
                np.testing.assert_array_equal(found[key], values, err_msg=f"{form}: {key}")
        settings = [record.setting for record in run.run.accuracies]
        assert {setting.data_hash for setting in settings} == {runs["folder"].run.accuracies[0].setting.data_hash}
