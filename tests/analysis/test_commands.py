"""Every command of this package ends in words: on Ctrl-C, and on what the user can correct."""

from __future__ import annotations

from importlib import import_module

import pytest

from bench import values
from bench.cli import COMMANDS

MODULES = sorted({command.module for command in COMMANDS.values() if command.module.startswith("analysis.")})


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("run.json: line 3"), 2, "error: run.json: line 3"),
        (FileNotFoundError(2, "No such file or directory", "runs/x"), 2, "error: runs/x: No such file or directory"),
        (MemoryError(), 1, "error: memory or file descriptors ran out"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_it_ends_with_a_sentence(
    module: str, raised: BaseException, status: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def stop(*arguments: object, **keywords: object) -> None:
        raise raised

    main = import_module(module).main
    monkeypatch.setattr(values.Parser, "parse_args", stop)
    assert main([]) == status
    assert said in capsys.readouterr().err


def test_there_are_such_commands() -> None:
    assert len(MODULES) >= 9
