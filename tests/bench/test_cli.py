"""multicrop-bench: every subcommand answers --help in a few words and at once; completion; mistakes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

from bench import cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    said = capsys.readouterr().out
    assert stop.value.code == 0 and said.startswith("usage: ") and f"multicrop-bench {name}" in said


def test_the_overview_has_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, command in cli.COMMANDS.items():
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line.endswith(command.help) and len(line) <= 110


@pytest.mark.parametrize("argv", [["frobnicate"], ["compare"], ["compare", "nothing"]])
def test_an_unknown_command_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert repr(argv[0]) in said and "compare loaders" in said


def test_scripts_and_commands_are_the_same_code() -> None:
    for name, script in (
        ("run", "bench/run.py"),
        ("figures", "analysis/make_figures.py"),
        ("report", "analysis/report.py"),
    ):
        module = import_module(cli.COMMANDS[name].module)
        assert Path(str(module.__file__)) == ROOT / script
        assert '__name__ == "__main__"' in (ROOT / script).read_text(encoding="utf-8")


def test_help_comes_at_once() -> None:
    """The quickest of three: the machine may be busy. Importing torch alone takes seconds."""
    took_s = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "bench", "--help"], cwd=ROOT, capture_output=True, check=True)
        took_s.append(time.perf_counter() - start)
    assert b"predict" in done.stdout and min(took_s) < 0.7


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("multicrop-bench pre", {"predict"}),
        ("multicrop-bench compare p", {"parity"}),
        ("multicrop-bench run --fam", {"--family"}),
    ],
)
def test_the_shell_completes_commands_and_flags(line: str, expected: set[str], tmp_path: Path) -> None:
    found = tmp_path / "completions"
    environment = {
        **os.environ,
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": str(found),
        "COMP_LINE": line, "COMP_POINT": str(len(line)),
    }  # fmt: skip
    subprocess.run([sys.executable, "-m", "bench"], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert {one.strip() for one in found.read_text().splitlines()} == expected


README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_names_commands_and_files_that_exist() -> None:
    assert len(README.splitlines()) <= 160
    used = set(re.findall(r"^multicrop-bench ([a-z]+(?: [a-z-]+)?)", README, re.MULTILINE))
    known = {*cli.COMMANDS, *(name.split()[0] for name in cli.COMMANDS)}
    assert {name for name in used if name not in known and name.split()[0] not in known} == set()
    tree = README.partition("## Where things are")[2]
    folder = ROOT
    for line in filter(None, tree.split("```")[1].splitlines()):
        first, *words = line.split()
        if not line.startswith(" "):
            folder = ROOT / first
            assert folder.is_dir(), line
        named = [first, *words] if line.startswith(" ") else words
        for word in named:
            if word.endswith((".py", ".py:")) or word.strip(",:;").endswith("/"):
                assert (folder / word.strip(",:;")).exists(), line
    for picture in re.findall(r"!\[.*\]\((.*)\)", README):
        assert (ROOT / picture).is_file()
