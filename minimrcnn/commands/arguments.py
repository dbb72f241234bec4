"""What the commands share: their help, and arguments that more than one of them takes."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import math
from collections.abc import Callable, Sequence
from itertools import takewhile
from pathlib import Path

from minimrcnn.errors import UserError

PUBLISHED = ("TOYBOX", "COCO_V1")


class Parser(argparse.ArgumentParser):
    """Names a mistyped option, and the one that was meant.

    argparse alone complains of the required option that is missing because of it, or of the unknown one
    with the usage of another command.
    """

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse's, once every option in args is known. Exits with status 2 if one is not."""
        if args is not None:
            # What follows the name of a command is for that command's parser.
            own = takewhile(lambda text: text.startswith("-"), args) if self._subparsers else args
            for text in takewhile(lambda text: text != "--", own):
                self._check_option(text.partition("=")[0])
        return super().parse_known_args(args, namespace)

    def _check_option(self, name: str) -> None:
        known = [option for option in self._option_string_actions if option.startswith("--")]
        if not name.startswith("--") or any(option.startswith(name) for option in known):
            return
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."
        self.error(f"{name}: no such option. {hint}")


def command(
    commands: argparse._SubParsersAction, name: str, run: object, text: str, example: str
) -> argparse.ArgumentParser:
    """A command with its description and an example, both laid out as they are written here."""
    added = commands.add_parser(
        name,
        help=text.partition("\n")[0],
        description=text,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(command=run)
    return added


def number(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
    """A type for argparse: a number of that kind within bounds."""

    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            bounds = f"{least} or more" if math.isinf(most) else f"between {least} and {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {bounds}")
        return value

    return read


def add_model(command: argparse.ArgumentParser) -> None:
    """--run or --weights: where the model comes from."""
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="RUN", help="folder of a training run")
    which.add_argument(
        "--weights",
        choices=PUBLISHED,
        help="instead of a run: the mini model that comes with the package, or torchvision's Mask R-CNN",
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """--device: what it runs on."""
    command.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto, cpu, cuda or cuda:N (default: auto, a GPU if there is one)",
    )


def require_matplotlib() -> None:
    """Complain of its absence before a training, not after it.

    Raises:
        UserError: it is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "the pictures of a run need matplotlib, which is not installed: pip install matplotlib, "
            "or train with --no-evaluate."
        )
