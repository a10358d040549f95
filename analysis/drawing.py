"""Draw figures into a folder: the one function behind `multicrop-bench figures`, the end of a run, and the report."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis import style
from analysis.figures import EXPERIMENT_FILES, FIGURES
from analysis.runs import Inputs, MissingData, read
from bench.records import Incomparable


@dataclass(frozen=True, slots=True)
class Drawn:
    """What ``make_figures`` did: the PNGs' absolute paths; for each figure that the folders do not allow the reason;
    for each that failed, with ``keep_going``, the error."""

    paths: list[Path] = field(default_factory=list)
    not_drawn: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def make_figures(
    folders: Sequence[Path],
    out: Path | None = None,
    *,
    only: Sequence[str] = (),
    published: bool = False,
    data: Path | None = None,
    keep_going: bool = False,
) -> Drawn:
    """Draw every figure that these folders allow, as PNG files.

    ``folders``: of runs and of experiments. ``out``: default the only folder, else ``figures``; made if it is not
    there. ``only``: names of analysis.figures.FIGURES. ``published``: the figures of the papers' printed numbers.
    ``data``: the folder of images, where the one that the run names has moved. ``keep_going``: a figure that fails
    is listed with its error, and the others are drawn.

    Nothing is shown on a screen, and matplotlib's settings are left as they are. Raises ValueError for a folder that
    cannot be read and for an unknown name, OSError where the files cannot be written.
    """
    inputs = inputs_of(folders, data)
    wanted = names(inputs, only, published=published)
    target = out or (Path(folders[0]) if len(folders) == 1 else Path("figures"))
    return draw(inputs, wanted, target, keep_going=keep_going)


def draw(inputs: Inputs, wanted: Sequence[str], out: Path, *, keep_going: bool = False) -> Drawn:
    """Draw these figures of FIGURES into ``out``, which is made if it is not there."""
    out.mkdir(parents=True, exist_ok=True)
    drawn = Drawn()
    for name in wanted:
        try:
            for picture, result in _pictures(name, inputs, out):
                if isinstance(result, Path):
                    drawn.paths.append(result)
                else:
                    drawn.not_drawn[picture] = result
        except Exception as error:
            if not keep_going:
                raise
            drawn.failed[name] = f"{type(error).__name__}: {error}"
    return drawn


def inputs_of(folders: Sequence[Path], data: Path | None = None) -> Inputs:
    """Read runs and find experiments. Raises ValueError for a folder that is neither, or is damaged or empty."""
    paths = [Path(folder) for folder in folders]
    experiments = [path for path in paths if any((path / file).is_file() for file in EXPERIMENT_FILES.values())]
    return Inputs(read(path for path in paths if path not in experiments), data, tuple(experiments))


def names(inputs: Inputs, only: Sequence[str] = (), *, published: bool = False) -> list[str]:
    """The figures to draw. Raises ValueError, listing the known names, for an unknown one in ``only``."""
    if unknown := [name for name in only if name not in FIGURES]:
        raise ValueError(f"no figure {', '.join(unknown)}; known: {', '.join(FIGURES)}")
    if only:
        return list(only)
    sources = {"published"} if published else set()
    sources |= {"run"} if inputs.runs or inputs.data else set()
    sources |= {"experiment"} if inputs.experiments else set()
    return [name for name, entry in FIGURES.items() if sources & set(entry.sources)]


def _pictures(name: str, inputs: Inputs, out: Path) -> Iterator[tuple[str, Path | str]]:
    """One figure's pictures: the name of each, and its path or why it was not drawn."""
    module = importlib.import_module(FIGURES[name].module)
    try:
        found = module.pictures(inputs)
    except (MissingData, Incomparable) as reason:
        yield name, str(reason)
        return
    for ending, data in found.items():
        picture = f"{name}-{ending}" if ending else name
        if isinstance(data, MissingData):
            yield picture, str(data)
            continue
        figure = module.draw(data)
        yield picture, style.save(figure, out / f"{picture}.png").resolve()
        figure.clear()
