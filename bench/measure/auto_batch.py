"""``-b auto``: the largest batch size that fits, found by trying.

Powers of two, upwards, each with a forward of zeros. On a GPU a batch size fits when torch has taken no more than a
share of the memory: the pipeline needs the rest. On a CPU, where the system ends a process that takes too much instead
of telling it, the next batch size is tried only while the growth so far says that it leaves half of the free memory
free, and while a forward takes no longer than a few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch

from models.predict import Network

GPU_SHARE = 0.7
CPU_SHARE = 0.5
LONGEST_S = 4.0
MOST = 1024  # crops: beyond it no network here gets faster, and a forward takes long enough to be felt


def largest(make: Callable[[int], Network], K: int) -> int:
    """The largest power of two up to ``MOST`` that fits; ``make`` places the network. Raises OutOfMemory."""
    best, peaks = 1, [peak_bytes()]
    free = _free_bytes()
    batch_size = 1
    while batch_size <= MOST:
        network = make(batch_size)
        start = time.perf_counter()
        network.forward(K)  # of a single crop: raises OutOfMemory where even that is too much
        if network.fitting_batch_size < batch_size or not _leaves_room(network):
            break
        best = batch_size
        peaks.append(peak_bytes())
        growth = peaks[-1] - peaks[-2]
        on_cpu, forward_s = network.device.type == "cpu", time.perf_counter() - start
        if on_cpu and (peaks[-1] + 2 * growth - peaks[0] > CPU_SHARE * free or 2 * forward_s > LONGEST_S):
            break
        batch_size *= 2
    return best


def _leaves_room(network: Network) -> bool:
    if network.device.type != "cuda":
        return True
    taken = torch.cuda.max_memory_reserved(network.device)
    torch.cuda.empty_cache()
    return taken <= GPU_SHARE * torch.cuda.get_device_properties(network.device).total_memory


def _free_bytes() -> int:
    import psutil

    return psutil.virtual_memory().available


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
