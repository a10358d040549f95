"""bench/run.py as a user runs it, on a few generated images, with a checkpoint made here; nothing is downloaded.

The accuracy pass is compared with a slow loop: the backend's own frames, NumPy slices, one crop at a time through the
network, averages in plain Python.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from bench import records, run
from pipelines import BACKENDS, backend, unusable
from pipelines.batch import LoadConfig
from pipelines.crops import Planner, crop_windows, parse_policy, union
from pipelines.data import demo
from pipelines.data.labels import label
from pipelines.data.scanning import scan

ROOT = Path(__file__).resolve().parents[2]
IMAGES = 20
FAST = [
    "--rounds", "1", "--round-seconds", "0.02", "--num-warm-iter", "1", "--latency-queries", "2",
    "--no-figures", "-j", "2", "-b", "8",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return demo.ensure("val", images=IMAGES, cache=tmp_path_factory.mktemp("demo"), workers=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=len(demo.CLASSES))
    torch.nn.init.normal_(net.get_classifier().weight, std=1.0)  # so that answers differ from image to image
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(net.state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))


def command(images: Path, checkpoint: Path, *more: str) -> list[str]:
    model = ["--models", "test_resnet", "--checkpoint", str(checkpoint), "--img-size", "64", "--crop-pct", "0.8"]
    return [*model, "--data", str(images), *FAST, *more]


def predictions(out: Path) -> dict[str, np.ndarray]:
    with np.load(next(out.glob("predictions-*.npz"))) as file:
        return dict(file)


def test_a_whole_run(images: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    args = command(images, checkpoint, "--no-cheap", "--crops", "1,3", "--policies", "5FC+5MFC,4ARC", "--out", str(out))
    assert run.main(args) == 0
    printed = capsys.readouterr()
    last = json.loads(printed.out.strip().splitlines()[-1])
    assert Path(last["summary"]).is_file()
    assert set(last["models"][0]["images_per_sec"]) == {"1", "3"}
    assert "it/s" not in printed.out and "accuracy" in printed.err  # progress is on stderr
    for name in ("run.json", "results.jsonl", "summary.csv", "unreadable.csv"):
        assert str((out / name).resolve()) in printed.out
    found = records.read_run(out)
    policies = ["CC", "1RC", "2RC", "CC+1RC", "3RC", "CC+2RC", "5FC+5MFC", "4ARC"]
    assert [(r.policy, r.level) for r in found.accuracies] == [
        (p, level) for p in policies for level in ("feature", "logit", "softmax")
    ]
    assert all(r.images == IMAGES and r.unreadable == 0 for r in found.accuracies)
    stages = {(t.stage, t.crops) for t in found.throughputs}
    assert stages == {
        *(("load", n) for n in (1, 3)),
        *(("end_to_end", n) for n in (1, 3)),
        *((stage, None) for stage in ("read", "decode", "resize", "model")),
    }
    assert all(rate > 0 for t in found.throughputs for rate in t.rates)
    said = predictions(out)
    assert said["top1"].shape == (3, len(policies), IMAGES)
    assert sorted(said["names"].tolist()) == said["names"].tolist()


@pytest.mark.slow
def test_the_answers_are_those_of_a_slow_loop(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    named = ["CC", "3RC", "CC+2RC", "5FC+5MFC", "2RC+3MRC"]
    args = command(images, checkpoint, "--policies", ",".join(named), "--no-throughput", "--out", str(out))
    args += ["--data-backend", "torchvision", "--crop-pct", "0.8"]
    assert run.main(args) == 0
    said = predictions(out)
    data = label(scan(images, workers=1, progress=False), num_classes=len(demo.CLASSES))
    net = timm.create_model("test_resnet", num_classes=len(demo.CLASSES), checkpoint_path=str(checkpoint)).eval()
    from models import loading

    spec = loading.load("test_resnet", checkpoint=checkpoint, img_size=64, crop_pct=0.8).spec
    policies = [parse_policy(p) for p in named]
    views = union(policies)
    planner = Planner(spec, views, seed=0)
    source = backend("torchvision")(data, planner, LoadConfig(batch_images=7, workers=1))
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    frames = dict(source.frames(np.arange(len(data))))
    source.close()
    for row, frame in frames.items():
        windows = planner.windows([""], np.array([frame.shape[:2]]))[0]
        windows = (
            planner.plan(np.array([row]), data.names(np.array([row])), data.sizes(np.array([row]))).groups[0].windows
        )
        crops = crop_windows(frame, windows, spec.K)
        with torch.inference_mode():
            logits = [
                net(torch.from_numpy(((crop / 255.0 - mean) / std).astype(np.float32)).permute(2, 0, 1)[None])[
                    0
                ].double()
                for crop in crops
            ]
        for p, policy in enumerate(policies):
            mine = [logits[column] for column in views.take(policy)]
            softmax = sum(x.softmax(-1) for x in mine) / len(mine)
            logit = (sum(mine) / len(mine)).log_softmax(-1)  # type: ignore[union-attr]
            truth = int(said["labels"][row])
            for level, log_p in (("feature", logit), ("logit", logit), ("softmax", softmax.log())):  # type: ignore[union-attr]
                i = said["levels"].tolist().index(level)
                assert said["nll"][i, p, row] == pytest.approx(-float(log_p[truth]), abs=2e-4)
                assert said["top1"][i, p, row] == int(log_p.argmax())
                assert said["in_top5"][i, p, row] == (truth in log_p.topk(5).indices.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in BACKENDS if n != "dali-gpu"])
def test_answers_depend_on_nothing_but_image_and_policy(
    name: str, images: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Bit for bit: other policies, workers, batch split and --limit change nothing."""
    if reason := unusable(name):
        pytest.skip(reason)
    base = command(images, checkpoint, "--no-throughput", "--data-backend", name)
    variants = {
        "base": ["--policies", "CC,5RC"],
        "more": ["--policies", "CC,5RC,5FC+5MFC,3MRC,9ARC", "--crops", "9"],
        "workers": ["--policies", "CC,5RC", "-j", "1", "--batch-images", "3"],
        "limit": ["--policies", "CC,5RC", "--limit", "7"],
    }
    said = {}
    for variant, extra in variants.items():
        out = tmp_path / variant
        assert run.main([*base, *extra, "--out", str(out)]) == 0
        said[variant] = predictions(out)
    assert len(said["limit"]["names"]) == 7
    for variant, got in said.items():
        place = {name: i for i, name in enumerate(said["base"]["names"].tolist())}
        images_of = [place[name] for name in got["names"].tolist()]
        for policy in ("CC", "5RC"):
            p, q = (x["policies"].tolist().index(policy) for x in (got, said["base"]))
            for key in ("top1", "in_top5", "nll"):
                assert np.array_equal(got[key][:, p], said["base"][key][:, q][:, images_of]), (variant, policy, key)


def test_a_broken_jpeg_costs_itself_only(images: Path, checkpoint: Path, tmp_path: Path) -> None:
    copy = tmp_path / "images"
    shutil.copytree(images, copy)
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*.jpg"))
    (copy / names[3]).write_bytes((copy / names[3]).read_bytes()[:3000])
    (copy / names[5]).write_text("<html>404</html>")
    for name, data in (("whole", images), ("broken", copy)):
        args = command(data, checkpoint, "--crops", "2", "--no-throughput", "--out", str(tmp_path / name))
        assert run.main(args) == 0
    whole, broken = predictions(tmp_path / "whole"), predictions(tmp_path / "broken")
    kept = [i for i, name in enumerate(names) if i not in (3, 5)]
    assert broken["names"].tolist() == [names[i] for i in kept]
    assert np.array_equal(broken["nll"], whole["nll"][:, :, kept])
    listed = (tmp_path / "broken" / "unreadable.csv").read_text().splitlines()
    assert len(listed) == 3 and f"{names[3]},decode" in listed[1] and f"{names[5]},scan" in listed[2]
    assert records.read_run(tmp_path / "broken").accuracies[0].unreadable == 2


def test_wnid_folders_score_on_a_thousand_classes_and_squeezenet_has_no_features(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "wnids"
    for i, path in enumerate(sorted(images.rglob("*.jpg"))[:6]):
        folder = data / ("n02123045" if i % 2 else "n01440764")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    import torchvision

    torch.manual_seed(0)
    checkpoint = tmp_path / "squeezenet.pth"
    torch.save(torchvision.models.squeezenet1_0().state_dict(), checkpoint)
    out = tmp_path / "out"
    args = ["--data", str(data), "--models", "torchvision:squeezenet1_0", "--checkpoint", str(checkpoint)]
    assert run.main([*args, "--crops", "1,2", "--img-size", "64", *FAST, "--no-throughput", "--out", str(out)]) == 0
    said = predictions(out)
    assert dict(zip(said["names"].tolist(), said["labels"].tolist(), strict=True)) == {
        name: 281 if name.startswith("n02123045") else 0 for name in said["names"].tolist()
    }
    assert said["levels"].tolist() == ["logit", "softmax"]
    absent = [a for a in records.read_run(out).absents if "feature" in a.what]
    assert absent and "SqueezeNet" in absent[0].reason


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--family", "resnets"], "known: resnet"),
        (["--models", "test_resnet", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--family", "resnet", "--policies", "7FC"], "fives"),
        (["--family", "resnet", "--models", "x"], "either --family"),
        (["--family", "resnet", "--variants", "18"], "--variants"),
        (["--family", "resnet", "--device", "cuda"], "GPU"),
        (["--family", "resnet", "--data-backend", "dali-gpu"], "dali-gpu"),
    ],
)
def test_mistakes_are_explained(args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    if says == "GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    if says == "dali-gpu" and unusable("dali-gpu") is None:
        pytest.skip("dali-gpu works here")
    assert run.main(args) == 2
    assert says in capsys.readouterr().err


def test_an_empty_folder_and_an_existing_out(
    tmp_path: Path, images: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert run.main(["--models", "test_resnet", "--weights", "random", "--data", str(tmp_path / "empty")]) == 2
    assert str(tmp_path / "empty") in capsys.readouterr().err
    assert run.main(command(images, checkpoint, "--out", str(tmp_path / "empty"))) == 2
    assert "exists" in capsys.readouterr().err


def test_random_weights_are_timed_and_not_scored(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = ["--models", "test_resnet", "--weights", "random", "--img-size", "64", "--data", str(images)]
    assert run.main([*args, "--crops", "2", *FAST, "--out", str(out)]) == 0
    found = records.read_run(out)
    assert not found.accuracies and found.throughputs
    assert "random" in found.absents[0].reason


def test_dry_run_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dry = ["--family", "nfnet", "--crops", "1,2", "--dry-run"]
    assert run.main(dry) == 0
    assert list(tmp_path.iterdir()) == []
    assert run.main([*dry, "--data", "."]) == 0
    assert run.main([*dry, "--data", "nowhere"]) == 2
    assert "there is no folder nowhere" in capsys.readouterr().err
    assert run.main([*dry, "--data", "val-{0..3}.tar"]) == 2
    assert "there is no tar" in capsys.readouterr().err
