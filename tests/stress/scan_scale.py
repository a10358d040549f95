"""Does a start stay quick on large data sets? Headers of 50,000 files, and a start from the cache over 1.3 million.

    python tests/stress/scan_scale.py                        # four minutes on two cores
    python tests/stress/scan_scale.py --entries 200000 --folder /mnt/disk

1. ``--headers`` small JPEGs of varied sizes in 1,000 folders are scanned with an empty cache, then from the cache. The
   files were just written: what is timed is the reading and parsing of headers, not a cold disk.
2. ``--entries`` directory entries (hard links to a few JPEGs, new files where the file system takes no more) are
   scanned once; then a fresh process starts from the cache: it walks the folder, matches labels, hashes names and
   labels as each run does, and waits for dali-cpu's first batch. Imports are timed apart. Memory is the process's peak.

Each measurement has a process of its own. Exit status 1 when one of TARGETS is missed or a scan is wrong. What was
written is removed at the end, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: search the repo root
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import psutil
from PIL import Image

HEADERS, ENTRIES, FOLDERS = 50_000, 1_300_000, 1000
SIZES = [(160 + 12 * (i % 16), 120 + 20 * (i // 16)) for i in range(64)]  # width and height, pixels, of the files
BATCH_IMAGES = 32
TARGETS = {  # key of the results -> (most, unit)
    "headers_cold_s": (60.0, "s"),
    "start_s": (10.0, "s"),  # from the end of the imports to the first batch
    "start_above_imports_bytes": (1e9, "bytes"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each number and, as the last line, JSON."""
    args = parse(argv)
    with tempfile.TemporaryDirectory(prefix="scan scale ", dir=args.folder) as folder:
        found = measure_headers(Path(folder), args.headers, args.workers)
    with tempfile.TemporaryDirectory(prefix="scan scale ", dir=args.folder) as folder:
        found |= measure_start(Path(folder), args.entries, args.workers)
        print("removing what was written ...", file=sys.stderr)
    missed = [key for key, (most, _) in TARGETS.items() if found[key] > most]
    print("\n".join(lines(found)))
    print(json.dumps(found | {"missed": missed}))
    return int(bool(missed))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed options."""
    parser = argparse.ArgumentParser(
        prog="tests/stress/scan_scale.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--headers", type=int, default=HEADERS, metavar="N", help=f"files (default: {HEADERS})")
    parser.add_argument("--entries", type=int, default=ENTRIES, metavar="N", help=f"names (default: {ENTRIES})")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="on the disk to be measured (default: the temporary)"
    )
    parser.add_argument("-j", "--workers", type=int, default=2, help="threads that read headers (default: 2)")
    args = parser.parse_args(argv)
    if min(args.headers, args.entries, args.workers) < 1:
        parser.error("--headers, --entries and --workers: at least 1")
    return args


def lines(found: dict[str, Any]) -> list[str]:
    """As text, with the targets where there are such."""
    text = []
    for key, value in found.items():
        shown = f"{value / 1e6:.0f} MB" if key.endswith("_bytes") else f"{value:.2f} s" if key.endswith("_s") else value
        target = ""
        if key in TARGETS:
            most, unit = TARGETS[key]
            wanted = f"{most / 1e6:.0f} MB" if unit == "bytes" else f"{most:.0f} s"
            target = f"   {'MISSED' if value > most else 'kept'}: at most {wanted}"
        text.append(f"{key:28s}{shown!s:>14s}{target}")
    return text


# --------------------------------------------------------------------------------------------------------------- files


def pictures() -> list[bytes]:
    """One small JPEG of each of SIZES."""
    found = []
    for size in SIZES:
        data = io.BytesIO()
        Image.new("RGB", size, (size[0] % 256, size[1] % 256, 90)).save(data, "JPEG")
        found.append(data.getvalue())
    return found


def write_files(root: Path, files: int) -> None:
    """``<folder>/<number>.jpg`` below ``root``, of SIZES in turn."""
    _write(root, files, lambda path, i, data: path.write_bytes(data))


def write_entries(root: Path, entries: int) -> None:
    """The same as hard links; where the file system takes no more of one (ext4: 65,000), the next one is a new file."""
    sources: dict[int, Path] = {}

    def link(path: Path, i: int, data: bytes) -> None:
        source = sources.get(i % len(SIZES))
        try:
            if source is None:
                raise OSError
            os.link(source, path)
        except OSError:
            path.write_bytes(data)
            sources[i % len(SIZES)] = path

    _write(root, entries, link)


def _write(root: Path, files: int, place: Callable[[Path, int, bytes], object]) -> None:
    contents = pictures()
    for folder in range(min(FOLDERS, files)):
        below = root / str(folder)
        below.mkdir(parents=True)
        for i in range(folder, files, FOLDERS):
            place(below / f"image_{i:08d}.jpg", i, contents[i % len(SIZES)])


# -------------------------------------------------------------------------------------------------------- measurements


def alone(function: Callable[..., dict[str, float]], *args: object) -> dict[str, float]:
    """In a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def measure_headers(folder: Path, files: int, workers: int) -> dict[str, Any]:
    """Seconds with an empty cache and from the cache."""
    print(f"writing {files} files ...", file=sys.stderr)
    write_files(folder / "images", files)
    print("scanning them ...", file=sys.stderr)
    times = {
        name: alone(scan_alone, str(folder / "images"), str(folder / "cache"), files, workers)["scan_s"]
        for name in ("headers_cold_s", "headers_warm_s")
    }
    return {"headers": files, **times}


def measure_start(folder: Path, entries: int, workers: int) -> dict[str, Any]:
    """Seconds and bytes of a start from the cache."""
    print(f"writing {entries} directory entries ...", file=sys.stderr)
    start = time.perf_counter()
    write_entries(folder / "images", entries)
    written_s = time.perf_counter() - start
    arguments = (str(folder / "images"), str(folder / "cache"), entries, workers)
    print("scanning them once ...", file=sys.stderr)
    cold_s = alone(scan_alone, *arguments)["scan_s"]
    print("starting from the cache ...", file=sys.stderr)
    return {
        "entries": entries,
        "entries_written_s": written_s,
        "entries_cold_s": cold_s,
        **alone(start_alone, *arguments),
    }


def scan_alone(root: str, cache: str, files: int, workers: int) -> dict[str, float]:
    """Scan, and see that nothing is missing and every size is right."""
    from pipelines.data.scanning import scan

    start = time.perf_counter()
    found = scan(root, workers=workers, cache=Path(cache), progress=False)
    scan_s = time.perf_counter() - start
    table = found.table
    number = table["name"].str.slice(-12, -4).astype("int64")
    sizes = table[["width", "height"]].to_numpy()
    if sorted(number) != list(range(files)) or (sizes != [SIZES[i % len(SIZES)] for i in number]).any():
        raise RuntimeError(f"the scan of {root} found {len(table)} of {files} files, or sizes that are not theirs")
    return {"scan_s": scan_s}


def start_alone(root: str, cache: str, entries: int, workers: int) -> dict[str, float]:
    """From the start of a process to the first batch. ``start_s`` is without the imports; the rest are its parts."""
    import numpy as np

    import pipelines.backends.dali
    from bench.job import data_hash
    from pipelines.batch import LoadConfig
    from pipelines.crops import Planner, parse_policy, union
    from pipelines.data import scanning
    from pipelines.data.labels import label
    from pipelines.inputspec import InputSpec

    # The process's own start, interpreter included; the clock of create_time ticks in hundredths of a second.
    found: dict[str, float] = {"imports_s": time.time() - psutil.Process().create_time(), "imports_bytes": peak_bytes()}
    marks = [("", time.perf_counter())]

    def mark(part: str) -> None:
        marks.append((part, time.perf_counter()))

    scanned = scanning.scan(root, workers=workers, cache=Path(cache), progress=False)
    mark("scan_s")
    data = label(scanned, num_classes=FOLDERS)
    mark("labels_s")
    data_hash(data)
    mark("data_hash_s")
    data_bytes = peak_bytes()
    planner = Planner(InputSpec(256, 224), union([parse_policy("CC")]))
    backend = pipelines.backends.dali.DaliCpu(data, planner, LoadConfig(min(BATCH_IMAGES, entries), workers))
    batch = next(backend.batches(np.arange(len(data))))
    mark("first_batch_s")
    if len(data) != entries or len(batch.rows) != min(BATCH_IMAGES, entries):
        raise RuntimeError(f"{len(data)} of {entries} images came from the cache, {len(batch.rows)} in the first batch")
    found["start_s"] = marks[-1][1] - marks[0][1]
    found |= {f"start_{part}": end - begin for (_, begin), (part, end) in pairwise(marks)}
    found["data_above_imports_bytes"] = data_bytes - found["imports_bytes"]
    found["start_above_imports_bytes"] = peak_bytes() - found["imports_bytes"]
    found["start_total_bytes"] = peak_bytes()
    return found


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


if __name__ == "__main__":
    sys.exit(main())
