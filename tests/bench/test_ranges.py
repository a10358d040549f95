"""Every numeric option of every subcommand: values that no one can mean are refused in words, by name."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

import pytest

from bench import values
from bench.cli import COMMANDS

NEVER = ("", "nan", "inf", "-inf", "x", "1e400", "9" * 40, "9" * 5000, "-" + "9" * 40, "1_0", "٣", "0x10", "1..", ",")
WORDS = {"type", "parse", "checked"}


class Seen(Exception):
    """The parser of a command has all its options."""


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    found: list[argparse.ArgumentParser] = []

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        found.append(self)
        raise Seen

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        with pytest.raises(Seen):
            import_module(COMMANDS[name].module).main([])
    return found[0]


def is_numeric(action: argparse.Action) -> bool:
    """By its answer: 1 is taken as a number, or as a list of them."""
    if not action.option_strings or action.type is None or action.choices:
        return False
    for text in ("1", "0.5"):
        try:
            taken = action.type(text)  # type: ignore[operator]
        except (ValueError, argparse.ArgumentTypeError):
            continue
        first = taken[0] if isinstance(taken, list) and taken else taken
        return isinstance(first, int | float)
    return False


@pytest.mark.parametrize("name", COMMANDS)
def test_numbers_that_no_one_means_are_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(name, monkeypatch)
    assert isinstance(parser, values.Parser)
    for action in filter(is_numeric, parser._actions):
        flag = action.option_strings[0]
        for text in NEVER:
            argv = [flag, *[f" {text}"] * action.nargs] if isinstance(action.nargs, int) else [f"{flag}={text}"]
            with pytest.raises(SystemExit) as ended:
                parser.parse_args(argv)
            said = capsys.readouterr().err
            assert ended.value.code == 2
            assert flag in said.splitlines()[-1], (flag, text, said)
            assert "invalid" not in said, (flag, text, said)  # argparse's own words name a Python function


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("--workers", "100000", "at most 4,096"),
        ("--img-size", "1000000000", "at most 16,384"),
        ("--crops", "1..1000000000000", "at most 100,000"),
        ("--batch-size", "1000000000", "at most 1,000,000"),
        ("--limit", "0", "not a positive integer"),
        ("--limit", "-1", "not a positive integer"),
        ("--seed", "1" * 25, "too large"),
    ],
)
def test_the_largest_value_is_said(
    flag: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser_of("run", monkeypatch).parse_args([f"{flag}={text}"])
    assert message in capsys.readouterr().err


def test_what_was_typed_reaches_the_terminal_as_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parser_of("run", monkeypatch).parse_args(["--\x1b[31mred", "--rounds=\x1b[31m"])
    assert "\x1b" not in capsys.readouterr().err
