"""The command line: the help names every flag, timm's among them; what cannot be meant exits with 2 and says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.options import parse
from pipelines import BACKENDS

# As timm's validate.py, benchmark.py and inference.py name them.
TIMM = """--batch-size -b --workers -j --amp --amp-dtype --channels-last --torchcompile --device --seed --num-classes
--model-kwargs --img-size --crop-pct --crop-mode --interpolation --checkpoint --class-map --data-dir --model -m
--num-warm-iter"""
OWN = """--family --variants --models --crops --policies --weights --data --data-backend --limit --labels-file
--no-accuracy --no-throughput --dry-run --out --yes --rounds --round-seconds --batch-images --no-figures"""


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The sentence with which a command line is refused."""
    with pytest.raises(SystemExit) as stop:
        parse(list(argv))
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err.splitlines()[-1]


@pytest.mark.parametrize("flag", [*TIMM.split(), *OWN.split()])
def test_the_help_names_every_flag(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(["--help"])
    assert stop.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert flag in words


@pytest.mark.parametrize(
    ("argv", "name", "value"),
    [
        ([], "crops", [1, 2, 5, 10, 20]),
        (["--crops", "20,5"], "crops", [5, 20]),
        (["--policies", "20RC"], "crops", None),
        (["--policies", "20RC", "--crops", "3"], "crops", [3]),
        ([], "amp_dtype", "float32"),
        (["--amp"], "amp_dtype", "float16"),
        (["--amp", "--amp-dtype", "bfloat16"], "amp_dtype", "bfloat16"),
        (["--amp-dtype", "bfloat16"], "amp_dtype", "bfloat16"),
        (["--img-size", "320,256"], "img_size", [256, 320]),
        (["--crop-pct", "0.875,1"], "crop_pct", [0.875, 1.0]),
        (["-b", "7"], "batch_size", 7),
        (["-j", "3"], "workers", 3),
        (["-m", "resnet18"], "models", "resnet18"),
        (["--model", "resnet18"], "models", "resnet18"),
        (["--data-dir", "x y"], "data", Path("x y")),
        (["--model-kwargs", "drop_rate=0.1", "act=relu", "flag=True"], "model_kwargs", None),
        (["--seed", "5"], "seed", 5),
        ([], "data_backend", "auto"),
        ([], "weights", None),
        ([], "out", None),
    ],
)
def test_flags_mean_what_they_say(argv: list[str], name: str, value: Any) -> None:
    args = parse(argv)
    if name == "model_kwargs":
        assert dict(args.model_kwargs) == {"drop_rate": 0.1, "act": "relu", "flag": True}
    else:
        assert getattr(args, name) == value
    assert args.argv == argv  # for run.json, as given


def test_without_arguments_the_programs_own_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--family", "nfnet"])
    args = parse()
    assert (args.family, args.argv) == ("nfnet", ["--family", "nfnet"])


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_every_backend_can_be_named(name: str) -> None:
    assert parse(["--data-backend", name]).data_backend == name


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--crops", "1,two"], "'1,two' is no list of whole numbers"),
        (["--crops", "0,5"], "at least 1"),
        (["--crops", ""], "'' is no list"),
        (["--img-size", "-64"], "at least 1"),
        (["--crop-pct", "1.2"], "'1.2': a crop ratio is above 0 and at most 1"),
        (["--crop-pct", "0"], "above 0"),
        (["--crop-pct", "nan"], "above 0"),
        (["--crop-pct", "a"], "'a' is no list of ratios"),
        (["-b", "0"], "'0' is no whole number of at least 1"),
        (["-j", "-2"], "'-2' is no whole number"),
        (["-j", "2.5"], "'2.5' is no whole number"),
        (["--rounds", "0"], "'0' is no whole number"),
        (["--num-warm-iter", "x"], "'x' is no whole number"),
        (["--batch-images", "0"], "'0' is no whole number"),
        (["--model-kwargs", "drop_rate"], "'drop_rate' is not KEY=VALUE"),
        (["--model-kwargs", "=3"], "'=3' is not KEY=VALUE"),
        (["--seed", "one"], "'one'"),
        (["--limit", "many"], "'many'"),
        (["--weights", "good"], "'good'"),
        (["--amp-dtype", "int8"], "'int8'"),
        (["--crop-mode", "fill"], "'fill'"),
        (["--data-backend", "ffcv"], "'ffcv'"),
        (["--frobnicate"], "--frobnicate"),
        (["--no-accuracy", "--no-throughput"], "together leave nothing to do"),
        (["--labels-file", "x"], "go with --data DIR"),
        (["--class-map", "x"], "go with --data DIR"),
        (["--synsets-file", "x"], "go with --data DIR"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *argv)


@pytest.mark.parametrize(
    "argv",
    [
        ["--round-seconds", "-1"],
        ["--round-seconds", "nan"],
        ["--round-seconds", "inf"],
        ["--hw-load", "7"],
    ],
)
def test_numbers_out_of_range_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert argv[1] in refused(capsys, *argv)
