# PYTHON_ARGCOMPLETE_OK
"""The command ``multicrop-bench``: one table of subcommands, each a module with ``main(argv) -> exit status``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

from bench import logs


class Command(NamedTuple):
    """A subcommand: one line of help, and the module that holds its ``main(argv)``."""

    help: str
    module: str


COMMANDS: dict[str, Command] = {
    "run": Command("measure accuracy and images per second of networks on images", "bench.run"),
    "recommend": Command("which network, size and crops to use: recipe.json", "bench.compare.recommend"),
    "predict": Command("classify images with several crops each; CSV, JSON lines or Parquet", "bench.predict"),
    "export": Command("a network with its crops as ONNX, checked with ONNX Runtime", "bench.compare.export"),
    "report": Command("runs as one self-contained HTML page", "analysis.report"),
    "figures": Command("draw every figure that the runs allow", "analysis.make_figures"),
    "tables": Command("the papers' tables, published and measured", "analysis.tables"),
    "claims": Command("the papers' claims, and what the runs say of them", "analysis.claims"),
    "published": Command("the papers' numbers, and where they contradict themselves", "analysis.published.__main__"),
    "sizes": Command("one larger crop, or more crops for the same pixels?", "analysis.sizes"),
    "alternatives": Command(
        "more crops, or a larger crop, a fine-tuned or a larger network, at equal cost?", "analysis.alternatives"
    ),
    "ensembles": Command("several networks averaged, or one at equal cost?", "analysis.ensembles"),
    "fixres": Command("a fine-tuned network against its untuned self and against more crops", "analysis.fixres"),
    "spread": Command("how accuracy varies over folds of the images and over crop seeds", "analysis.spread"),
    "object-size": Command(
        "Equation 5 of FixRes: apparent object sizes in training and testing", "analysis.object_size"
    ),
    "compare loaders": Command("our data pipelines beside the loaders that people write", "bench.compare.loaders"),
    "compare network": Command("ways of running a network: speed and agreement", "bench.compare.network"),
    "compare parity": Command("do the data backends agree? windows, pixels, answers", "bench.compare.parity"),
    "compare one-pass": Command("what the small crop counts cost beside the largest", "bench.compare.one_pass"),
    "compare host-cost": Command("what Python costs for each image of a DALI batch", "bench.compare.host_cost"),
    "compare gpu": Command("everything that only a GPU can show", "bench.compare.gpu"),
    "tune": Command("find this machine's fastest pipeline settings and keep them", "bench.compare.tune"),
    "finetune": Command("FixRes: fine-tune the last layers at another test size", "bench.experiments.finetune"),
    "activations": Command(
        "activation statistics at each test size, and adapting to it", "bench.experiments.activations"
    ),
    "train-low-test-high": Command("train at several sizes, test at several", "bench.experiments.train_low_test_high"),
}
# Commands that decode images; and what leaves the decoders' own messages in.
DECODING = frozenset(
    {"run", "recommend", "predict", "export", "tune", "finetune", "activations", "train-low-test-high"}
    | {name for name in COMMANDS if name.startswith("compare ")}
)
AS_IT_IS = frozenset({"-h", "--help", "-v", "--verbose"})
USAGE = "usage: multicrop-bench COMMAND [options]     (multicrop-bench COMMAND --help lists the options)"


def main(argv: Sequence[str] | None = None) -> int:
    """Find the subcommand and call it. Returns its exit status, 2 for an unknown one."""
    if argv is None:
        logs.prepare_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    complete()
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if arguments else 2
    for words in (2, 1):
        name = " ".join(arguments[:words])
        if name in COMMANDS:
            if argv is None and name in DECODING and not AS_IT_IS.intersection(arguments):
                logs.without_decoder_messages()
            return import_module(COMMANDS[name].module).main(arguments[words:])
    print(f"error: unknown command {arguments[0]!r}\n\n{overview()}", file=sys.stderr)
    return 2


def overview() -> str:
    """A line for each subcommand."""
    width = max(map(len, COMMANDS)) + 2
    return "\n".join([USAGE, "", *(f"  {name.ljust(width)}{command.help}" for name, command in COMMANDS.items())])


def complete() -> None:
    """Answer the shell when it asks for completions (argcomplete): subcommands, and the options of a run."""
    import os

    if "_ARGCOMPLETE" not in os.environ:
        return
    import argparse

    import argcomplete

    from bench.options import build_parser

    parser = argparse.ArgumentParser(prog="multicrop-bench")
    subparsers = parser.add_subparsers()
    nested: dict[str, argparse._SubParsersAction] = {}
    for name, command in COMMANDS.items():
        first, _, second = name.partition(" ")
        if second:
            if first not in nested:
                nested[first] = subparsers.add_parser(first).add_subparsers()
            nested[first].add_parser(second, help=command.help)
        elif first == "run":
            subparsers.add_parser(
                first, help=command.help, parents=[build_parser()], add_help=False, conflict_handler="resolve"
            )
        else:
            subparsers.add_parser(first, help=command.help)
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    sys.exit(main())
