"""Room 1: a file on disk becomes crops. Imports none of the other rooms.

``BACKENDS`` names each backend by string and imports it on use: importing DALI takes seconds, and it does not exist on
every system.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipelines.batch import Backend

# In the order in which `auto` tries them.
BACKENDS: dict[str, str] = {
    "dali-gpu": "pipelines.backends.dali:DaliGpu",
    "dali-cpu": "pipelines.backends.dali:DaliCpu",
    "torchvision": "pipelines.backends.torchvision:Torchvision",
}


def backend(name: str) -> type[Backend]:
    """The backend's class. Raises ValueError for an unknown name, ImportError where its library is missing."""
    if name not in BACKENDS:
        raise ValueError(f"unknown data backend {name!r}: known are {', '.join(BACKENDS)} and auto")
    module, attribute = BACKENDS[name].split(":")
    return getattr(import_module(module), attribute)


def unusable(name: str) -> str | None:
    """Why the backend cannot run on this machine, or None when it can."""
    try:
        return backend(name).probe()  # type: ignore[attr-defined]
    except (ImportError, OSError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def choose(name: str = "auto", *, device: str = "cpu") -> tuple[str, str]:
    """(backend, one line that says why). ``auto`` takes the first of BACKENDS that works; crops on a GPU are of use
    only to a network on a GPU. Raises RuntimeError, with the reason, when the named backend cannot run here.
    """
    if name != "auto":
        if reason := unusable(name):
            raise RuntimeError(
                f"data backend {name} cannot run here ({reason}); --data-backend auto takes one that can"
            )
        return name, f"data backend {name} (asked for)"
    passed_over: list[tuple[str, str]] = []
    for candidate in BACKENDS:
        reason = "the network runs on the CPU" if candidate == "dali-gpu" and device == "cpu" else unusable(candidate)
        if reason is None:
            return candidate, f"data backend {candidate}" + "".join(f"; not {n}: {why}" for n, why in passed_over)
        passed_over.append((candidate, reason))
    raise RuntimeError("no data backend works here: " + "; ".join(f"{n}: {why}" for n, why in passed_over))
