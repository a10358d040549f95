"""What does Python cost for each image of a DALI batch, on the host, before and after the graph runs?

    multicrop-bench compare host-cost                    # demo images, one random crop, batches of 256
    multicrop-bench compare host-cost --crops 20 --data imagenet/val

All of this runs under one interpreter lock, so a GPU that takes R images/s needs it below 1e6 / R microseconds. Times
are the process's own CPU time: other programs on the machine do not count. No image is decoded and no GPU is needed.
``request`` and ``arguments`` are what a batch costs before the graph, ``places`` after it; the indented rows are parts
of ``request``. ``one generator each`` is what ``random numbers`` would cost with an object of NumPy's Philox for each
image, and is not part of the total.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from bench import logs, values
from bench.config import DataConfig, MeasureConfig, option
from bench.errors import UserError, exit_status
from bench.options import group_flags, parse_group, shared

BATCH_IMAGES = 256
TOTAL = ("request", "arguments", "places")


@dataclass(frozen=True, slots=True)
class HostCostConfig:
    """The options of this command."""

    title: ClassVar[str] = "host cost"
    data: Path | None = shared(DataConfig, "data")
    crops: int = option("--crops", default=1, metavar="N", parse=values.crops, help="of each image (default: 1)")
    rounds: int = shared(MeasureConfig, "rounds", default=50, help="batches timed for each row (default: 50)")


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a table and, as the last line, JSON. Returns the exit status."""
    options = parse_group(argv, "multicrop-bench compare host-cost", __doc__, HostCostConfig)
    logs.set_up()
    return exit_status(lambda: host_cost(options), group_flags(HostCostConfig))


def host_cost(options: HostCostConfig) -> int:
    """Measure and print. Raises UserError where DALI is missing."""
    from pipelines.backends import unusable

    if reason := unusable("dali-cpu"):
        raise UserError(f"the host's cost is that of the DALI backends, which cannot run here ({reason})")
    took = {name: microseconds(step, options.rounds) for name, step in steps(options).items()}
    took["total"] = sum(took[name] for name in TOTAL)
    for name, value in took.items():
        print(f"{name:<20}{value:8.2f} us of CPU time an image")
    result: dict[str, object] = {"batch_images": BATCH_IMAGES, "crops": options.crops, "clock": "process_time"}
    print(json.dumps(result | {"us_per_image": {name.strip(): round(value, 3) for name, value in took.items()}}))
    return 0


def steps(options: HostCostConfig) -> dict[str, Callable[[], Any]]:
    """What is timed: each does its work for one batch."""
    from pipelines.backends.dali import DaliCpu
    from pipelines.batch import LoadConfig
    from pipelines.crops import Planner, parse_policy, uniforms, uniforms_of, union
    from pipelines.data import demo, scanning
    from pipelines.data.labels import unlabelled
    from pipelines.inputspec import InputSpec

    data = unlabelled(scanning.scan(options.data or demo.ensure("val"), workers=1), "not needed")
    planner = Planner(InputSpec(S=256, K=224), union([parse_policy(f"{options.crops}RC")]))
    backend = DaliCpu(data, planner, LoadConfig(batch_images=BATCH_IMAGES))
    rows = np.resize(np.arange(len(data)), BATCH_IMAGES)
    names = data.names(rows)
    plan, _ = backend._request(rows)
    (group,), (operator,) = plan.groups, backend.crop_operators
    assert operator is not None, "there are crops"
    return {
        "request": lambda: backend._request(rows),
        "  names": lambda: data.names(rows),
        "  sizes": lambda: data.sizes(rows),
        "  spans": lambda: data.spans(rows),
        "  random numbers": lambda: uniforms_of(planner.seed, names, "RC", options.crops),
        "arguments": lambda: operator.arguments(group, operator.slots(group, BATCH_IMAGES)),
        "places": lambda: plan.rows[group.image[operator.slots(group, BATCH_IMAGES).reshape(-1)]],
        "one generator each": lambda: [uniforms(planner.seed, name, "RC", options.crops) for name in names],
    }


def microseconds(step: Callable[[], Any], rounds: int) -> float:
    """CPU time of the whole process: the median over ``rounds`` batches, for one image of a batch; one batch before
    them is not counted."""
    step()
    took = []
    for _ in range(rounds):
        start = time.process_time()
        step()
        took.append(time.process_time() - start)
    return float(np.median(took)) / BATCH_IMAGES * 1e6
