"""Networks are ready before a data pipeline starts.

A GPU's graph must not be captured while DALI works: it frees tensors on a thread that waits for the whole GPU, which
ends the capture. So no forward pass at a crop size may be the first one while a pipeline is open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.compare import parity
from models import MultiCrop
from models.predict import Network
from pipelines.backends.torchvision import Torchvision


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Forward passes of networks that were not ready when a pipeline had started. A pipeline is open from when it is
    first asked for images until it is closed."""
    running: set[int] = set()
    getting_ready: list[Network] = []
    found: list[str] = []
    real: dict[str, Any] = {name: getattr(Torchvision, name) for name in ("batches", "frames", "stage", "close")}
    get_ready, forward = Network.get_ready, Network.forward

    def asked(name: str) -> Callable[..., Any]:
        def call(self: Torchvision, *arguments: Any) -> Any:
            running.add(id(self))
            return real[name](self, *arguments)

        return call

    def close(self: Torchvision) -> None:
        running.discard(id(self))
        real["close"](self)

    def ready(self: Network, *sizes: Any) -> None:
        before = set(self.ready)
        getting_ready.append(self)
        get_ready(self, *sizes)
        getting_ready.pop()
        if running and self.ready != before:
            found.append(f"made ready for {sorted(self.ready - before)} pixels while a pipeline was open")

    def run(self: Network, K: int | None = None) -> Any:
        size = K or self.classifier.spec.K
        if self not in getting_ready and size not in self.ready:
            found.append(f"a forward pass of {size} pixels by a network that was not ready")
        return forward(self, K)

    for name in ("batches", "frames", "stage"):
        monkeypatch.setattr(Torchvision, name, asked(name))
    monkeypatch.setattr(Torchvision, "close", close)
    monkeypatch.setattr(Network, "get_ready", ready)
    monkeypatch.setattr(Network, "forward", run)
    yield found
    assert not running, "every pipeline is closed at the end"


def test_in_a_run(small_run: Callable[..., Any], late: list[str]) -> None:
    """Accuracy, throughput and latency, with dense and stopped policies and a second crop size."""
    policies = ["--policies", "CC,2RC@48,DC,4RC~exact"]
    assert small_run("--crops", "1,3", *policies, "--limit", "12").status == 0
    assert late == []


def test_where_nothing_is_scored(small_run: Callable[..., Any], late: list[str]) -> None:
    assert small_run("--crops", "1,2", "--no-accuracy", "--limit", "12").status == 0
    assert late == []


def test_in_a_comparison_of_backends(
    demo_root: Path, fast_backend: object, weights_file: Path, late: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--models", "test_resnet", "--checkpoint", str(weights_file), "--img-size", "64", "--limit", "6"]
    argv = [*model, "--data", str(demo_root), "-j", "1", "-b", "8", "--policies", "CC,2RC@48"]
    assert parity.main([*argv, "--data-backend", "torchvision"]) == 0
    assert late == []


@pytest.mark.parametrize("preset", [None, "eager"])
def test_in_python(demo_root: Path, weights_file: Path, late: list[str], preset: str | None) -> None:
    network: dict[str, Any] = {"checkpoint": weights_file, "img_size": 64}
    classify = MultiCrop(
        "test_resnet", policy="CC+DC", backend="torchvision", device="cpu", workers=1, preset=preset, **network
    )
    assert len(list(classify(sorted(demo_root.rglob("*.jpg"))))) == 24
    assert late == []
