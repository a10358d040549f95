"""Two processes that draw the figures of one run at once, 50 times: each picture is whole whenever it is looked at."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path
from typing import Any

import pytest

from analysis.drawing import make_figures

TIMES = 50
fork: Any = multiprocessing.get_context("fork")


def draw(folder: Path, both: BarrierType, failures: Any) -> None:
    """As `multicrop-bench figures` does, again and again."""
    try:
        for _ in range(TIMES):
            both.wait(60)
            make_figures([folder], only=["throughput_vs_crops"])
    except BaseException as error:
        failures.put(f"{type(error).__name__}: {error}")
        both.abort()


@pytest.mark.slow
def test_two_figure_makers_never_mix_a_picture(maker: Any) -> None:
    folder = maker.run("run", maker.speed(maker.setting())).folder
    (path,) = make_figures([folder], only=["throughput_vs_crops"]).paths
    expected = path.read_bytes()  # a picture depends on nothing but the figure
    both, failures = fork.Barrier(2), fork.SimpleQueue()
    makers = [fork.Process(target=draw, args=(folder, both, failures)) for _ in range(2)]
    for process in makers:
        process.start()
    looks = 0
    while any(process.is_alive() for process in makers):
        assert path.read_bytes() == expected
        looks += 1
        time.sleep(0.0005)  # else the looking takes a core from the makers
    for process in makers:
        process.join()
    assert failures.empty(), failures.get()
    assert looks > TIMES and path.read_bytes() == expected
    assert [left.name for left in folder.iterdir() if left.suffix == ".part"] == []
