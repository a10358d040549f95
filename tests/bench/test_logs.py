"""Messages on standard error: -v and -q choose which; of several processes, all but the main one write errors only."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from bench import logs
from bench.options import parse


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in logs.LOGGERS]
    before = [(one.handlers, one.level, one.propagate) for one in loggers]
    yield
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers, one.propagate = handlers, propagate
        one.setLevel(level)


def shown(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The levels whose messages appear, of a module's logger."""
    capsys.readouterr()
    for level in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger(name), level)("%s", level)
    said = capsys.readouterr()
    assert said.out == ""  # standard output is for results
    return said.err.splitlines()


@pytest.mark.parametrize("name", ["bench.run", "pipelines.batch", "models.loading", "analysis.report"])
@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ["info", "warning", "error"]),
        (["-v"], ["debug", "info", "warning", "error"]),
        (["--verbose"], ["debug", "info", "warning", "error"]),
        (["-q"], ["warning", "error"]),
        (["--quiet"], ["warning", "error"]),
    ],
)
def test_flags_choose_the_messages(
    argv: list[str], expected: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output = parse(argv).config.output
    logs.set_up(output.verbose, output.quiet)
    assert shown(name, capsys) == expected


@pytest.mark.parametrize(
    ("rank", "expected"), [("0", ["debug", "info", "warning", "error"]), ("1", ["error"]), ("3", ["error"])]
)
def test_other_processes_write_errors_only(
    rank: str, expected: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    logs.set_up(verbose=1)
    assert shown("bench.setup", capsys) == expected


def test_a_second_call_does_not_repeat_messages(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up()
    logs.set_up()
    assert shown("bench", capsys) == ["info", "warning", "error"]


def test_loggers_of_other_packages_are_left_alone() -> None:
    others = [logging.getLogger(), logging.getLogger("timm")]
    before = [(list(one.handlers), one.level) for one in others]
    logs.set_up(verbose=1)
    assert [(list(one.handlers), one.level) for one in others] == before
