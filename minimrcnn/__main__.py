"""The command line: python -m minimrcnn train | evaluate | predict | data | exercises | grade.

Each command imports what it needs when it runs, so that --help and a mistyped argument answer at once.
"""

from __future__ import annotations

import argparse
import sys

from minimrcnn.commands.arguments import Parser
from minimrcnn.commands.course import add_exercises, add_grade
from minimrcnn.commands.data_sets import add_data
from minimrcnn.commands.models import add_evaluate, add_predict, add_train
from minimrcnn.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: `data check` found errors. 2: bad input or arguments, with one message. 130: Ctrl-C.
    """
    args = parser().parse_args(sys.argv[1:] if arguments is None else arguments)
    try:
        return args.command(args)
    except UserError as error:
        print(f"minimrcnn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minimrcnn: interrupted", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    top = Parser(
        prog="python -m minimrcnn",
        description="Mask R-CNN: train it, measure it, use it.",
        epilog="Each command explains itself: python -m minimrcnn train --help",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_train(commands)
    add_evaluate(commands)
    add_predict(commands)
    add_data(commands)
    add_exercises(commands)
    add_grade(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
