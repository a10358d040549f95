"""Names of files and folders that the system refuses: every command ends with a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import cli

LONG = "x" * 300
DEMO = ["run", "--models", "mobilenet:demo", "--policies", "CC", "--limit", "8", "--no-throughput", "--no-figures"]


@pytest.mark.parametrize(
    "command",
    [
        [*DEMO, "--data", LONG],
        [*DEMO, "--out", LONG],
        [*DEMO, "--results-file", f"{LONG}.csv"],
        ["run", "--resume", LONG],
        ["run", "--model-list", LONG, "--policies", "CC"],
        ["predict", "--model", "resnet:demo", LONG],
        ["predict", "--recipe", LONG, "images"],
        ["figures", LONG],
        ["report", LONG],
        ["recommend", LONG],
        ["finetune", "--resume", LONG],
    ],
    ids=lambda command: " ".join(command).replace(LONG, "LONG")[-40:],
)
def test_names_that_the_system_refuses_end_with_a_sentence(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        sys.exit(cli.main(command))
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said
    assert LONG in said and "File name too long" in said
