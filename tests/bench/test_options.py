"""The command line: the help names every flag, timm's among them; what cannot be meant exits with 2 and says why."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import pytest

from bench import options, values
from bench.config import (
    DataConfig,
    MeasureConfig,
    NetworkConfig,
    OutputConfig,
    RunConfig,
    first_difference,
    from_plain,
    option_of,
    to_plain,
)
from bench.config import option as make_option
from bench.options import build_parser, flag_names, options_of, parse
from pipelines import BACKENDS

# As timm's validate.py, benchmark.py and inference.py name them.
TIMM = """--batch-size -b --workers -j --amp --amp-dtype --channels-last --torchcompile --device --seed --num-classes
--model-kwargs --img-size --crop-pct --crop-mode --interpolation --checkpoint --class-map --data-dir --model -m
--num-warm-iter"""
OWN = """--family --variants --models --crops --policies --weights --data --data-backend --limit --labels-file
--no-accuracy --no-throughput --dry-run --out --yes --rounds --round-seconds --latency-queries
--batch-images --no-figures"""


def option(config: RunConfig, name: str) -> Any:
    """The value of one field, in whichever group it is."""
    (value,) = [getattr(group, name) for group in vars_of(config) if hasattr(group, name)]
    return value


def vars_of(config: RunConfig) -> list[Any]:
    return [getattr(config, one.name) for one in fields(config)]


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
        (["-m", "resnet18"], "models", ["resnet18"]),
        (["--model", "resnet18"], "models", ["resnet18"]),
        (["--data-dir", "x y"], "data", Path("x y")),
        (
            ["--model-kwargs", "drop_rate=0.1", "act=relu", "flag=True"],
            "model_kwargs",
            {"drop_rate": 0.1, "act": "relu", "flag": True},
        ),
        (["--seed", "5"], "seed", 5),
        ([], "data_backend", "auto"),
        ([], "weights", None),
        ([], "out", None),
    ],
)
def test_flags_mean_what_they_say(argv: list[str], name: str, value: Any) -> None:
    assert option(parse(argv).config, name) == value


def test_without_arguments_the_programs_own_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--family", "nfnet"])
    assert parse().given == {"family": "nfnet"}


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_every_backend_can_be_named(name: str) -> None:
    assert parse(["--data-backend", name]).config.loading.data_backend == name


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--crops", "1,two"], "'1,two' is not a list of whole numbers"),
        (["--crops", "0,5"], "at least 1"),
        (["--crops", ""], "'' is not a list"),
        (["--img-size", "-64"], "at least 1"),
        (["--crop-pct", "1.2"], "'1.2': a crop ratio is above 0 and at most 1"),
        (["--crop-pct", "0"], "above 0"),
        (["--crop-pct", "nan"], "above 0"),
        (["--crop-pct", "a"], "'a' is not a list of ratios"),
        (["-b", "0"], "'0' is not a positive integer"),
        (["-j", "-2"], "'-2' is not a positive integer"),
        (["-j", "2.5"], "'2.5' is not a positive integer"),
        (["--rounds", "0"], "'0' is not a positive integer"),
        (["--num-warm-iter", "x"], "'x' is not a positive integer"),
        (["--batch-images", "0"], "'0' is not a positive integer"),
        (["--model-kwargs", "drop_rate"], "'drop_rate' is not KEY=VALUE"),
        (["--model-kwargs", "=3"], "'=3' is not KEY=VALUE"),
        (["--seed", "one"], "'one'"),
        (["--limit", "many"], "'many'"),
        (["--weights", "good"], "'good'"),
        (["--amp-dtype", "int8"], "'int8'"),
        (["--crop-mode", "fill"], "'fill'"),
        (["--data-backend", "ffcv"], "'ffcv'"),
        (["--frobnicate"], "--frobnicate"),
        (["--no-accuracy", "--no-throughput"], "--no-accuracy and --no-throughput are both switched off"),
        (["--labels-file", "x"], "need --data"),
        (["--class-map", "x"], "need --data"),
        (["--synsets-file", "x"], "need --data"),
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


# ------------------------------------------------------------------------------------------- one field, in two places


def test_every_field_is_an_option_and_every_option_has_help() -> None:
    """But for the settings that are found on the machine, not asked for."""
    fields_of = {one.name for group in vars_of(RunConfig()) for one in fields(group)}
    assert fields_of - set(flag_names()) == {
        "prefetch",
        "crop_operator",
        "max_batch_images",
        "hybrid_huffman_threshold",
    }
    assert all(how.help for _, _, how in options_of(RunConfig))
    assert "--" not in "".join(flag_names())


@dataclass(frozen=True, slots=True)
class Longer(MeasureConfig):
    cool_down: int = make_option("--cool-down", default=0, parse=values.positive, help="seconds")


@dataclass(frozen=True, slots=True)
class Config(RunConfig):
    measure: Longer = field(default_factory=Longer)


def test_a_new_option_is_one_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flag, its help, its check, its place in run.json and its comparison all follow from the field."""
    monkeypatch.setattr(options, "RunConfig", Config)
    line = parse(["--cool-down", "5"], build_parser())
    assert line.config.measure.cool_down == 5  # type: ignore[attr-defined]
    assert to_plain(line.config)["measure"]["cool_down"] == 5
    assert from_plain(Config, to_plain(line.config)) == line.config


CONFIG = parse(
    ["--models", "a,b", "--img-size", "64,96", "--crop-pct", "1", "--data", "x y", "--no-mmap", "--model-kwargs", "a=1"]
).config


def test_a_stored_configuration_is_read_back_equal() -> None:
    stored = json.loads(json.dumps(to_plain(CONFIG)))
    assert from_plain(RunConfig, stored) == CONFIG


@pytest.mark.parametrize(
    ("group", "name", "value", "says"),
    [
        ("network", "img_size", "64", "`img_size` is stored as '64'"),
        ("measure", "rounds", True, "`rounds` is stored as True"),
        ("measure", "rounds", None, "`rounds` is stored as None"),
        ("data", "data", 5, "`data` is stored as 5"),
        ("data", "colour", "red", "DataConfig has no field 'colour'"),
    ],
)
def test_a_damaged_configuration_is_refused_by_name(group: str, name: str, value: Any, says: str) -> None:
    stored = to_plain(CONFIG)
    stored[group][name] = value
    with pytest.raises(ValueError, match=re.escape(says)):
        from_plain(RunConfig, stored)


def test_only_fields_that_may_not_differ_are_compared() -> None:
    output = replace(CONFIG, output=OutputConfig(strict=True, out=Path("elsewhere"), timeout=3.0))
    assert first_difference(CONFIG, output) is None
    other = replace(CONFIG, data=replace(CONFIG.data, seed=4))
    assert first_difference(CONFIG, other) == ("seed", 0, 4)
    free = {name for _, name, how in options_of(RunConfig) if how.may_differ}
    assert free == {one.name for one in fields(OutputConfig) if option_of(one)}


LIST = ["--model-list", "FILE"]


@pytest.mark.parametrize("argv", [LIST, ["--models", "a", *LIST], ["--amp", "--amp-dtype", "float32"], ["--amp"]])
def test_the_whole_command_line_may_be_given_again(argv: list[str], tmp_path: Path) -> None:
    listed = tmp_path / "networks.txt"
    listed.write_text("b\nc\n")
    line = parse([str(listed) if word == "FILE" else word for word in argv])
    assert first_difference(line.config, line.applied_to(line.config)) is None


@pytest.mark.parametrize("models", [[], ["--models", "a"]])
@pytest.mark.parametrize("now", ["b\n", "b\nc\nd\n", "c\nb\n"])
def test_a_list_of_networks_that_was_edited_is_noticed_when_it_is_given_again(
    now: str, models: list[str], tmp_path: Path
) -> None:
    listed = tmp_path / "networks.txt"
    listed.write_text("b\nc\n")
    argv = [*models, "--model-list", str(listed)]
    stored = parse(argv).config
    listed.write_text(now)
    assert first_difference(stored, parse([]).applied_to(stored)) is None  # the run's own configuration has the names
    difference = first_difference(stored, parse(argv).applied_to(stored))
    assert difference == ("models", [*models[1:], "b", "c"], [*models[1:], *now.split()])


def test_python_tools_make_a_configuration_without_a_command_line() -> None:
    made = RunConfig(network=NetworkConfig(family="resnet"), data=DataConfig(data=Path("x")))
    assert replace(parse(["--family", "resnet", "--data", "x"]).config, measure=made.measure) == made
