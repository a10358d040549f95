"""Decode, resize and crop: one backend a module, one entry each in ``BACKENDS``.

Backends are imported on use: importing DALI takes seconds, and it does not exist on every system.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.batch import Backend


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """What the project knows of a backend before it is imported.

    ``tolerance_levels``: the mean absolute difference, grey levels, that one resized frame may have from the
    reference's (``pipelines.backends.reference``). Wrong filters, sizes or rotations give 0.7 and more. dali-cpu
    resizes in float and differs in border pixels (0.003 in the mean on 256-pixel photographs, more on small or noisy
    frames); torchvision's uint8 kernel rounds between its two passes (0.16); a GPU decodes with another inverse cosine
    transform and other chroma filters.
    """

    module: str
    class_name: str
    tolerance_levels: float
    on_gpu: bool = False  # crops lie on a GPU, and a JPEG engine may decode a share of each batch
    uses_processes: bool = False  # workers are processes, not threads; none with 0 workers


# In the order in which `auto` tries them.
BACKENDS: dict[str, BackendEntry] = {
    "dali-gpu": BackendEntry("pipelines.backends.dali", "DaliGpu", tolerance_levels=1.5, on_gpu=True),
    "dali-cpu": BackendEntry("pipelines.backends.dali", "DaliCpu", tolerance_levels=0.1),
    "torchvision": BackendEntry(
        "pipelines.backends.torchvision", "Torchvision", tolerance_levels=0.4, uses_processes=True
    ),
}


def backend(name: str) -> type[Backend]:
    """The backend's class. Raises ValueError for an unknown name, ImportError where its library is missing."""
    if name not in BACKENDS:
        raise ValueError(f"unknown data backend {name!r}: known are {', '.join(BACKENDS)} and auto")
    entry = BACKENDS[name]
    return getattr(import_module(entry.module), entry.class_name)


def unusable(name: str, device: str = "cuda:0") -> str | None:
    """Why the backend cannot run on this machine, or None when it can. ``device``: the GPU that it is tried on, if it
    uses one; of several processes each has its own."""
    try:
        return backend(name).probe(device)
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def choose(name: str = "auto", *, device: str = "cpu", fastest_cpu: str | None = None) -> tuple[str, str]:
    """(backend, one line that says why). ``auto`` takes the first of BACKENDS that works, before other CPU backends
    ``fastest_cpu``, which was found to be the fastest on this machine; crops on a GPU are of use only to a network on a
    GPU. Raises RuntimeError, with the reason, when the named backend cannot run here.
    """
    if name != "auto":
        if reason := unusable(name, device):
            raise RuntimeError(
                f"data backend {name} cannot run here ({reason}); `data_backend` auto takes one that can"
            )
        return name, f"data backend {name} (as asked)"
    passed_over: list[tuple[str, str]] = []
    in_order = sorted(BACKENDS.items(), key=lambda item: (not item[1].on_gpu, item[0] != fastest_cpu))
    for candidate, entry in in_order:
        reason = "the network runs on the CPU" if entry.on_gpu and device == "cpu" else unusable(candidate, device)
        if reason is None:
            measured = ", the fastest on this machine's CPU (multicrop-bench tune)" if candidate == fastest_cpu else ""
            others = "".join(f"; not {n}: {why}" for n, why in passed_over)
            return candidate, f"data backend {candidate}{measured}{others}"
        passed_over.append((candidate, reason))
    raise RuntimeError("no data backend works here: " + "; ".join(f"{n}: {why}" for n, why in passed_over))
