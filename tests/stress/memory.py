"""Does memory grow with the number of images? Pipeline alone, 20 crops of 600 pixels (EfficientNet-B7's) each.

    python tests/stress/memory.py                # each backend over 200, 800 and 3,200 images, each in its own process
    python tests/stress/memory.py --images 100,1000 --img-size 224 --crops 5

Peak memory is that of the process and its workers (PSS, sampled 20 times a second), less what it held before the first
image: the libraries. A batch's crops are held to 128 MiB by ``default_batch_images`` whatever their number; what is in
flight is a few such batches, the decoder's own buffers and the resized frames.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from bench.values import int_list

BOUND_BYTES = 2 << 30  # stated: twenty crops of 600 pixels stay below it
GROWTH = 1.25  # sixteen times the images; what is kept for each would show as far more
SAMPLE_SECONDS = 0.05
CROP_PCT = 0.949  # EfficientNet-B7's


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 1 when a backend goes over the bound, or grows by more than a quarter from first to last."""
    from bench.machine import usable_cores
    from pipelines.backends import unusable
    from pipelines.data import demo

    args = parse(argv)
    root = args.data or demo.ensure("val")
    workers = args.workers or usable_cores()
    print(f"peak memory above that of the libraries, MiB; {args.crops} crops of {args.img_size}, {workers} workers")
    print("backend".ljust(14) + "".join(f"{n:>8} images" for n in args.images) + "   growth")
    good = True
    for name in args.data_backend.split(","):
        if reason := unusable(name):
            print(f"{name.ljust(14)} not measured: {reason}")
            continue
        peaks = [alone(name, str(root), n, args.crops, args.img_size, workers) for n in args.images]
        growth = peaks[-1] / peaks[0]
        good &= growth < GROWTH and max(peaks) < BOUND_BYTES
        print(name.ljust(14) + "".join(f"{peak / 2**20:15.0f}" for peak in peaks) + f"   x {growth:.2f}", flush=True)
    print(f"the bound is {BOUND_BYTES >> 20} MiB: {'kept' if good else 'BROKEN, or memory grows'}")
    return 0 if good else 1


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options."""
    parser = argparse.ArgumentParser(
        prog="tests/stress/memory.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="a folder of images (default: the demo set)")
    parser.add_argument("--images", type=int_list, default=[200, 800, 3200], metavar="LIST", help="how many")
    parser.add_argument("--crops", type=int, default=20, metavar="N", help="of each image (default: 20)")
    parser.add_argument("--img-size", type=int, default=600, metavar="K", help="side of a crop, pixels (default: 600)")
    parser.add_argument("--data-backend", default="dali-cpu,torchvision", metavar="NAMES", help="by commas")
    parser.add_argument("--workers", "-j", type=int, metavar="N", help="default: usable cores")
    return parser.parse_args(argv)


def alone(*work: Any) -> int:
    """``peak_bytes`` in a new process: another's memory must not count."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # not Pool: its workers may have no children
        return pool.submit(peak_bytes, *work).result()


def peak_bytes(name: str, root: str, images: int, crops: int, K: int, workers: int) -> int:
    """Bytes that one pass over so many images takes at its peak, above what the process held before."""
    from bench.machine import resident_bytes
    from pipelines.backends import BACKENDS, backend
    from pipelines.batch import LoadConfig, default_batch_images
    from pipelines.crops import Planner, parse_policy, union
    from pipelines.data import labels, scanning
    from pipelines.inputspec import InputSpec

    data = labels.unlabelled(scanning.scan(root, workers=workers, progress=False), "not needed")
    planner = Planner(InputSpec(S=int(K / CROP_PCT), K=K), union([parse_policy(f"{crops}RC")]))
    config = LoadConfig(batch_images=default_batch_images(crops, K, gpu=BACKENDS[name].on_gpu), workers=workers)
    source = backend(name)(data, planner, config)
    before = resident_bytes()
    peak, done = before, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(SAMPLE_SECONDS):
            peak = max(peak, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in source.batches(np.arange(images) % len(data)):
        pass
    done.set()
    watcher.join()
    source.close()
    return peak - before


if __name__ == "__main__":
    sys.exit(main())
