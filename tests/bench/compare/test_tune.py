"""multicrop-bench tune: what is faster in every round is kept, stored whole, and taken where no flag says otherwise."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import setup
from bench.compare import tune
from bench.job import Job
from bench.measure import tuned
from bench.options import parse
from pipelines.batch import LoadConfig, default_batch_images, size_hint
from tests.bench.conftest import change


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MULTICROP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize(
    ("rates", "kept"),
    [
        ({1: [1, 1, 1], 2: [2, 2, 2], 3: [3, 3, 3]}, 3),
        ({1: [5, 5, 5], 2: [2, 2, 2], 3: [5, 5, 5]}, 1),  # no faster than the default
        ({1: [1, 9, 1], 2: [4, 4, 4], 3: [2, 10, 2]}, 3),  # 2 is slower in one round
    ],
)
def test_only_what_is_faster_in_every_round_is_kept(rates: dict[int, list[float]], kept: int) -> None:
    left = {value: iter(found) for value, found in rates.items()}
    choices = [{"workers": value} for value in (1, 2, 3)]
    best, rows = tune.better(LoadConfig(workers=1), choices, lambda config: next(left[config.workers]), 3)
    assert best.workers == kept
    assert {(row["workers"], row["round"]): row["images_per_sec"] for row in rows} == {
        (value, number): rate for value, found in rates.items() for number, rate in enumerate(found)
    }


def test_a_gpus_threads_and_its_engines_share_are_settled_together() -> None:
    both, batches, huffman, then = tune.candidates(16, gpu=True)
    assert {(choice["workers"], choice["hw_load"]) for choice in both} == {
        (threads, load) for threads in (8, 15, 16, 24, 32) for load in tune.HW_LOADS
    }
    assert [set(choice) for choice in then] == [{"prefetch"}] * 4
    assert max(choice["batch_images"] for choice in batches) == 512
    assert all(choice["hybrid_huffman_threshold"] < 1_000_000 for choice in huffman)  # DALI's default is there anyway
    assert [set(choices[0]) for choices in tune.candidates(2, gpu=False)] == [
        {"workers"},
        {"batch_images"},
        {"prefetch"},
    ]
    assert all(set(choice) == {"workers"} for choice in tune.candidates(16, gpu=False)[0])
    assert tune.candidates(16, gpu=True, operators=["multi_paste"]) == [
        both,
        batches,
        huffman,
        then,
    ]  # nothing to choose from
    cuts = [{"crop_operator": "multi_paste"}, {"crop_operator": "warp_affine"}]
    assert tune.candidates(16, gpu=True, operators=["multi_paste", "warp_affine"]) == [
        both,
        batches,
        huffman,
        then,
        cuts,
    ]
    best, _ = tune.better(
        LoadConfig(workers=16), both, lambda c: 1000 - abs(c.workers - 24) - 99 * abs(c.hw_load - 0.25), 2
    )
    assert (best.workers, best.hw_load) == (24, 0.25)


def test_what_was_stored_is_taken_where_no_flag_says_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tuned.store("torchvision", {"workers": 3, "prefetch": 4, "hw_load": 0.65})

    def options(*argv: str) -> Any:
        argv = ("--family", "resnet", "--data-backend", "torchvision", "--device", "cpu", *argv)
        return setup.resolve(parse(argv).config).loading

    found = options()
    assert (found.workers, found.prefetch) == (3, 4)
    assert "found by multicrop-bench tune" in caplog.text
    assert options("--workers", "1").workers == 1


def test_damaged_and_foreign_values_are_not_taken(own_cache: Path) -> None:
    assert tuned.stored("dali-cpu") == {}
    own_cache.mkdir()
    for text in ("{", "3", '{"other": 1}'):
        (own_cache / tuned.FILE).write_text(text)
        assert tuned.stored("dali-cpu") == {}
    tuned.store("dali-cpu", {"workers": -1, "prefetch": "many", "hw_load": 0.5})
    assert tuned.stored("dali-cpu") == {"hw_load": 0.5}
    tuned.store("torchvision", {"workers": 2})
    assert tuned.stored("dali-cpu") == {"hw_load": 0.5}  # the other's are kept


def test_settings_change_no_prediction(small_run: Callable[..., Any]) -> None:
    plain = small_run("--crops", "2", "--no-throughput")
    tuned.store("torchvision", {"prefetch": 4})
    again = small_run("--crops", "2", "--no-throughput", out="tuned")
    assert again.run.info["load"]["prefetch"] == 4
    for name, values in plain.predictions().items():
        assert np.array_equal(values, again.predictions()[name]), name


def test_the_command(demo_root: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data", str(demo_root), "--data-backend", "dali-cpu", "--img-size", "32", "--crops", "2"]
    out = own_cache.with_name("tune")
    pytest.importorskip("nvidia.dali")
    assert tune.main([*argv, "--device", "cpu", "--rounds", "1", "--round-seconds", "0.02", "--out", str(out)]) == 0
    kept = tuned.stored("dali-cpu")
    gpu_only = {"crop_operator", "hybrid_huffman_threshold"}
    assert set(kept) == set(tune.FIELDS) - gpu_only
    assert tuned.fastest_cpu_backend() is None  # one backend was named: nothing was compared
    assert "(default)" in capsys.readouterr().out
    with (out / "tune.csv").open() as file:
        assert {row["backend"] for row in csv.DictReader(file)} == {"dali-cpu"}
    (own_cache / tuned.FILE).unlink()
    tuned.store("torchvision", {"workers": 2})
    tuned.restore(out)
    assert (tuned.stored("dali-cpu"), tuned.stored("torchvision")) == (kept, {"workers": 2})
    tuned.store("dali-cpu", {"workers": 7})
    tuned.restore(out)
    assert tuned.stored("dali-cpu") == {"workers": 7}  # found since
    assert tune.main(["--data", str(own_cache / "no"), "--device", "cpu"]) == 2


SLOW_FIRST = {"dali-cpu": [100.0, 100.0, 100.0], "torchvision": [130.0, 120.0, 140.0]}


@pytest.mark.parametrize(
    ("rates", "expected"),
    [
        (SLOW_FIRST, "torchvision"),
        ({**SLOW_FIRST, "torchvision": [130.0, 99.0, 140.0]}, "dali-cpu"),  # not in every round
        ({"dali-cpu": [5.0] * 3, "torchvision": [5.0] * 3}, "dali-cpu"),
    ],
)
def test_another_backend_is_the_fastest_if_it_is_so_in_every_round(
    rates: dict[str, list[float]], expected: str
) -> None:
    left = {name: iter(found) for name, found in rates.items()}
    assert tune.fastest({name: partial(next, found) for name, found in left.items()}, 3) == expected


def test_on_a_cpu_auto_takes_the_backend_that_tune_found_to_be_the_fastest_and_says_so(
    demo_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("nvidia.dali")
    caplog.set_level("INFO")

    def rate_of(options: object, name: str, data: object, crops: int) -> Callable[[LoadConfig], float]:
        return lambda config: {"dali-cpu": 100, "torchvision": 140}[name] + config.prefetch

    asked = parse(["--models", "test_resnet", "--device", "cpu"]).config.loading
    assert setup.resolved_loading(asked, "cpu").data_backend == "dali-cpu"
    assert "multicrop-bench tune finds out which CPU backend is the fastest here" in caplog.text
    caplog.clear()
    monkeypatch.setattr(tune, "rate_of", rate_of)
    assert tune.tune(tune.TuneConfig(data=demo_root, device="cpu", rounds=2)) == 0
    loading = setup.resolved_loading(asked, "cpu")
    assert (loading.data_backend, loading.prefetch) == ("torchvision", 4)  # with its own settings
    assert "data backend torchvision, the fastest on this machine's CPU (multicrop-bench tune)" in caplog.text
    for name in ("dali-cpu", "torchvision"):  # a name is obeyed
        assert setup.resolved_loading(replace(asked, data_backend=name), "cpu").data_backend == name
    monkeypatch.setattr("pipelines.backends.unusable", lambda name, device: "gone" if name == "torchvision" else None)
    assert setup.resolved_loading(asked, "cpu").data_backend == "dali-cpu"


def test_a_gpus_batches_and_huffman_threshold_are_taken_from_tuning(make_job: Callable[..., Job]) -> None:
    tuned.store("dali-cpu", {"batch_images": 512, "hybrid_huffman_threshold": 60_000})
    loading = setup.resolved_loading(parse(["--models", "x", "--data-backend", "dali-cpu"]).config.loading, "cpu")
    assert (loading.max_batch_images, loading.hybrid_huffman_threshold) == (512, 60_000)
    job = make_job()
    sizes = job.data.sizes(job.rows)
    change(job, "loading", data_backend="dali-gpu", max_batch_images=512, hybrid_huffman_threshold=60_000)
    found = job.load_config(1)
    assert found.hybrid_huffman_threshold == job.setting().hybrid_huffman_threshold == 60_000
    assert found.size_hint == tuple(np.sort(sizes, axis=0)[-1].tolist())  # 24 images: the largest sides
    change(job, "loading", data_backend="torchvision")
    assert job.load_config(1).size_hint is job.load_config(1).hybrid_huffman_threshold is None
    assert default_batch_images(1, 224, gpu=True, most=512) == 512 and default_batch_images(1, 224, gpu=True) == 256
    assert default_batch_images(20, 224, gpu=True, most=512) == (1 << 30) // (20 * 224 * 224 * 3)


def test_one_panorama_does_not_raise_the_size_hint() -> None:
    sizes = np.tile([[375, 500], [500, 375]], (500, 1))
    assert size_hint(np.concatenate([sizes, [[400, 20_000]]])) == (500, 500)
    assert size_hint(np.zeros((0, 2), np.int64)) is None


def test_the_decoder_gets_what_was_asked_for_and_else_dalis_defaults() -> None:
    dali = pytest.importorskip("pipelines.backends.dali")
    plain = dali._gpu_decoder(LoadConfig(hw_load=0.5))
    assert plain == {"device": "mixed", "hw_decoder_load": 0.5, "jpeg_fancy_upsampling": True}
    asked = dali._gpu_decoder(LoadConfig(hw_load=0.5, hybrid_huffman_threshold=0, size_hint=(400, 500)))
    hints = {"preallocate_height_hint": 400, "preallocate_width_hint": 500}
    assert asked == {**plain, "hybrid_huffman_threshold": 0, **hints}
    schema = dali.fn.decoders.image.__doc__
    assert all(name in schema for name in asked if name != "device")  # DALI's own names
