"""Names that tell networks of several runs apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bench.records import Setting

# What a name may be followed by, in turn, where names are equal and this differs.
DISTINCTIONS: tuple[Callable[[str, Setting], str], ...] = (
    lambda run, setting: f"{setting.K} of {setting.S} px",
    lambda run, setting: f"seed {setting.seed}",
    lambda run, setting: run,
)


def distinct_names(settings: Sequence[tuple[str, Setting]]) -> list[str]:
    """A name for each (run, setting): the model, with its sizes, seed and run where those tell it from another."""
    names = [setting.model for _, setting in settings]
    for word in DISTINCTIONS:
        words = [word(run, setting) for run, setting in settings]
        differ = [len({w for w, other in zip(words, names, strict=True) if other == name}) > 1 for name in names]
        names = [f"{name}, {w}" if d else name for name, w, d in zip(names, words, differ, strict=True)]
    return [f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)]
