"""Crops become predictions. ``MultiCrop`` is the Python API; importing this package imports no heavy library."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.multicrop import MultiCrop

__all__ = ["MultiCrop"]


def __getattr__(name: str) -> Any:
    if name != "MultiCrop":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _require_own_pipelines()
    from models.multicrop import MultiCrop

    return MultiCrop


def _require_own_pipelines() -> None:
    """Raises ImportError, naming the file, when another package called ``pipelines`` comes first on the path."""
    found = importlib.util.find_spec("pipelines")
    own = Path(__file__).resolve().parents[1] / "pipelines" / "__init__.py"
    origin = None if found is None else found.origin
    if origin is None or Path(origin).resolve() != own:
        raise ImportError(
            f"this project's package 'pipelines' is {own}, but Python finds "
            f"{origin or 'a folder without __init__.py'}: rename that one, or take its folder from sys.path "
            "(PYTHONPATH, the current folder)"
        )
