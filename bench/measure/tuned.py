"""Pipeline settings that ``multicrop-bench tune`` found on this machine, in tuned.json beside the header scans."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipelines.files import sole_writer, write_whole
from pipelines.schemas import DamagedFile, as_type, checked_fields, read_json, shown

log = logging.getLogger(__name__)
FILE = "tuned.json"
FIELDS: dict[str, Any] = {
    "workers": int, "prefetch": int, "hw_load": float | None, "batch_images": int, "crop_operator": str | None,
    "hybrid_huffman_threshold": int | None, "data_backend": str,
}  # fmt: skip
LEAST = {"workers": 1, "prefetch": 1, "hw_load": 0, "batch_images": 1, "hybrid_huffman_threshold": 0}
AUTO = "auto"  # in the place of a backend's name: which one that choice takes


def path() -> Path:
    from pipelines.data.dataset import cache_folder

    return cache_folder() / FILE


def key(backend_name: str) -> str:
    """Settings belong to a machine and a backend."""
    from bench.machine import machine_id

    return f"{machine_id()} {backend_name}"


def stored(backend_name: str) -> dict[str, Any]:
    """What was found for a backend on this machine: fields of pipelines.batch.LoadConfig, or nothing."""
    from pipelines.batch import CROP_OPERATOR_NAMES

    found = _all().get(key(backend_name), {})
    valid = {"workers": (1, 4096), "prefetch": (1, 64), "hw_load": (0, 1), "batch_images": (1, 4096)}
    valid["hybrid_huffman_threshold"] = (0, 1 << 40)
    kept = {f: found[f] for f, (low, high) in valid.items() if _is_between(found.get(f), low, high)}
    return kept | (
        {"crop_operator": found["crop_operator"]} if found.get("crop_operator") in CROP_OPERATOR_NAMES else {}
    )


def fastest_cpu_backend() -> str | None:
    """Which of the CPU backends was the fastest on this machine when they were compared; None before."""
    from pipelines.backends import BACKENDS

    name = _all().get(key(AUTO), {}).get("data_backend")
    return name if name in BACKENDS and not BACKENDS[name].on_gpu else None


def store(backend_name: str, kept: dict[str, Any]) -> None:
    """Keep settings for later runs; those of other backends and machines stay."""
    add({key(backend_name): kept})


def restore(folder: Path) -> None:
    """Take over the settings that `out` wrote, unless the cache has newer ones."""
    _merge(read(folder / FILE), newer=False)


def add(found: dict[str, dict[str, Any]]) -> None:
    """Keep these entries beside those of others, who may be writing at the same time."""
    _merge(found, newer=True)


def _merge(found: dict[str, dict[str, Any]], *, newer: bool) -> None:
    path().parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(path()):
        stored = _all()
        write_whole(path(), json.dumps({**stored, **found} if newer else {**found, **stored}, indent=1) + "\n")


def _all() -> dict[str, dict[str, Any]]:
    """What can be used of the file: a damaged field is left out, with a warning, and measured again."""
    if not path().exists():
        return {}
    try:
        entries = read_json(path())
    except DamagedFile as error:
        log.warning("%s: multicrop-bench tune writes it anew", error)
        return {}
    try:
        return checked(entries)
    except DamagedFile as error:
        log.warning("%s: it is left out; multicrop-bench tune measures it again", error)
    held = entries if isinstance(entries, dict) else {}
    return {key: _sound(key, one) for key, one in held.items() if isinstance(one, dict)}


def _sound(key: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of an entry that are as they should be."""
    kept: dict[str, Any] = {}
    for name, value in entry.items():
        with suppress(DamagedFile):
            kept |= checked({key: {name: value}})[key]
    return kept


def checked(entries: Any, file: Path | None = None) -> dict[str, dict[str, Any]]:
    """The settings of each machine and backend. Raises DamagedFile, naming the field."""
    where = str(file or path())
    found = as_type(entries, dict[str, dict[str, Any]], where)
    return {key: checked_fields(one, FIELDS, f"{where}: {shown(key)}", LEAST) for key, one in found.items()}


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The settings of a file. Raises DamagedFile, naming the field."""
    return checked(read_json(file), file)


def _is_between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
