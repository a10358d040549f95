"""Between a command line and the configuration: argparse options from dataclass fields, and back."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from bench import values
from bench.config import DEFAULT_CROPS, Option, RunConfig, option_of
from bench.errors import with_flags
from models.recipe import read_recipe
from pipelines.schemas import DamagedFile, read_text

T = TypeVar("T")

EXAMPLES = """examples:
  multicrop-bench run --family nfnet --crops 1,2,5,10,20
      the demo network of the family on generated demo images: nothing is downloaded
  multicrop-bench run --family nfnet --crops 1,2,5,10,20 --data imagenet/val
      the family's smallest published network on your images; --variants 0,3 or all for more
  multicrop-bench run --models resnet50.a1_in1k,torchvision:squeezenet1_0 --policies CC,10RC+10MRC --data imagenet/val
      any timm or torchvision network
"""


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line: ``given`` holds only the options that it names, by field name."""

    config: RunConfig
    given: dict[str, Any] = field(default_factory=dict)
    own: dict[str, Any] = field(default_factory=dict)  # options that a program has beside the shared ones

    def applied_to(self, config: RunConfig) -> RunConfig:
        """``config`` with the options that this command line names, and with what they imply (``settled``)."""
        names = {*self.given, "models"} if "model_list" in self.given else set(self.given)
        groups = {name: group for group, name, _ in options_of(RunConfig)}
        return with_values(config, {name: getattr(getattr(self.config, groups[name]), name) for name in names})


def flag_names(config_class: type = RunConfig) -> dict[str, str]:
    """Field name -> its flag, for error messages."""
    return {name: option.flags[0] for _, name, option in options_of(config_class) if option.flags}


def options_of(config_class: type) -> list[tuple[str, str, Option]]:
    """(group name, field name, option) of each option of a configuration of groups."""
    found = []
    for group in fields(config_class):  # type: ignore[arg-type]
        for one in fields(group.default_factory):  # type: ignore[arg-type]
            if how := option_of(one):
                found.append((group.name, one.name, how))
    return found


def build_parser(
    prog: str = "multicrop-bench run",
    description: str = "Accuracy and images per second of an image classifier that sees several crops of each image.",
    epilog: str | None = EXAMPLES,
    leave_out: Iterable[str] = (),
) -> argparse.ArgumentParser:
    """A parser with an option for each field of RunConfig but those in ``leave_out``, in its groups."""
    parser = values.Parser(
        prog=prog,
        usage=f"{prog} [options]     (--help lists them)",  # the full list would hide an error behind 25 lines
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    titles = {one.name: one.default_factory.title for one in fields(RunConfig)}  # type: ignore[union-attr]
    groups = {name: parser.add_argument_group(title) for name, title in titles.items()}
    for group, name, how in options_of(RunConfig):
        if name not in leave_out:
            add_option(groups[group], name, how)
    return parser


def add_options(parser: argparse.ArgumentParser, group_class: type) -> None:
    """An option for each field of a group of a program's own, under its title."""
    group = parser.add_argument_group(group_class.title)  # type: ignore[attr-defined]
    for one in fields(group_class):  # type: ignore[arg-type]
        if how := option_of(one):
            add_option(group, one.name, how)


def group_flags(group_class: type) -> dict[str, str]:
    """Field name -> its flag, of a group of a program's own."""
    options = {one.name: option_of(one) for one in fields(group_class)}  # type: ignore[arg-type]
    return {name: how.flags[0] for name, how in options.items() if how and how.flags}


def parse_group(argv: Sequence[str] | None, prog: str, description: str | None, group_class: type[T]) -> T:
    """Read the command line of a program that has this group's options only. Exits with status 2 on a bad one."""
    parser = values.Parser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser, group_class)
    try:
        return group_class(**vars(parser.parse_args(argv)))
    except ValueError as error:
        parser.error(with_flags(str(error), group_flags(group_class)))


def shared(group_class: type, name: str, **changed: Any) -> Any:
    """The same option in a program's own group, perhaps with another ``default`` or ``help``."""
    one = next(one for one in fields(group_class) if one.name == name)  # type: ignore[arg-type]
    how = option_of(one)
    assert how is not None
    default = changed.pop("default", one.default)
    metadata = {"option": replace(how, **changed)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def add_option(group: Any, name: str, how: Option) -> None:
    """One field as an argparse option. Options that are not given leave no trace in the namespace."""
    arguments = dict(how.argparse)
    if arguments.get("action") == "boolean":
        arguments["action"] = argparse.BooleanOptionalAction
    if how.parse is not None:
        arguments["type"] = values.for_argparse(how.parse)
    if not how.flags:  # a positional argument
        group.add_argument(name, help=how.help.replace("%", "%%"), **arguments)
        return
    group.add_argument(*how.flags, dest=name, default=argparse.SUPPRESS, help=how.help.replace("%", "%%"), **arguments)


def parse(
    argv: Sequence[str] | None = None, parser: argparse.ArgumentParser | None = None, own: type | None = None
) -> CommandLine:
    """Read and check a command line. Exits with status 2 and a message on a bad one. ``own``: the program's own group,
    whose fields may have the names of RunConfig's; the parser has its options (``add_options``)."""
    parser = parser or build_parser()
    found = vars(parser.parse_args(argv))
    own_flags = group_flags(own) if own else {}
    names = {name for _, name, _ in options_of(RunConfig)} - own_flags.keys()
    given = {name: value for name, value in found.items() if name in names}
    rest = {name: value for name, value in found.items() if name not in names}
    if "model_kwargs" in given:
        given["model_kwargs"] = dict(given["model_kwargs"])
    try:
        return CommandLine(settled(with_recipe(with_values(RunConfig(), given), given)), given, rest)
    except (ValueError, OSError) as error:
        parser.error(with_flags(str(error), {**flag_names(), **own_flags}))


def with_values(config: RunConfig, given: dict[str, Any]) -> RunConfig:
    """``config`` with these values, by field name."""
    groups: dict[str, dict[str, Any]] = {}
    for group, name, _ in options_of(RunConfig):
        if name in given:
            groups.setdefault(group, {})[name] = given[name]
    return replace(config, **{group: replace(getattr(config, group), **values) for group, values in groups.items()})


def with_recipe(config: RunConfig, given: dict[str, Any]) -> RunConfig:
    """`recipe`: the configuration with what it says. Raises ValueError for a file that is not a recipe, and for an
    option that says otherwise."""
    path = config.network.recipe
    if path is None:
        return config
    recipe = read_recipe(path)
    recipe.require_unedited()
    said = recipe.run_options()
    others = {"family", "variants", "model_list", "adapt", "train_size", "amp", "preset"}
    for name, value in given.items():
        if name in others or said.get(name, value) != value:
            raise ValueError(f"`recipe` {path} says what is measured: leave `{name}` out")
    return with_values(config, said)


def settled(config: RunConfig) -> RunConfig:
    """The configuration with what options imply: the default crops, ``amp``'s type, the listed models."""
    network, measure = config.network, config.measure
    if not measure.crops and not measure.policies:
        measure = replace(measure, crops=DEFAULT_CROPS)
    if network.amp and network.amp_dtype == "float32":
        network = replace(network, amp_dtype="float16")
    if network.model_list:
        models = [*(network.models or []), *listed_models(network.model_list)]
        network = replace(network, models=list(dict.fromkeys(models)))
    return replace(config, network=network, measure=measure)


def listed_models(path: Path) -> list[str]:
    """The names in a text file, one a line; ``#`` begins a comment. Raises DamagedFile where there is none."""
    try:
        lines = read_text(path).splitlines()
    except DamagedFile as error:
        raise DamagedFile(f"`model_list` {error}") from error
    found = [name for line in lines if (name := line.partition("#")[0].strip())]
    if not found:
        raise DamagedFile(f"`model_list` {path} names no network: write one name a line")
    return found
