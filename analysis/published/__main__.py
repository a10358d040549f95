"""The papers' numbers, and where they contradict themselves or each other: rewrites contradictions.md.

multicrop-bench published          # also: python -m analysis.published
"""

import sys
from collections.abc import Sequence

from analysis.commands import command, command_parser
from analysis.published import FOLDER, contradictions, markdown


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Prints how many there are. Returns the exit status."""
    command_parser("published", __doc__).parse_args(argv)
    path = FOLDER / "contradictions.md"
    path.write_text(markdown(), encoding="utf-8")
    print(f"{path}: {len(contradictions())} contradictions")
    return 0


if __name__ == "__main__":
    sys.exit(main())
