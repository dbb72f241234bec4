"""data toybox, data coco, data nuclei and data check."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from minimrcnn.commands.arguments import command


def add_data(commands: argparse._SubParsersAction) -> None:
    """`data` and its four commands."""
    data = commands.add_parser("data", help="Draw, download or check a data set.")
    sets = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    toybox = command(
        sets,
        "toybox",
        run_toybox,
        "Draw the toybox: eight kinds of toy, no network needed.\n\n"
        "The same numbers give the same pixels on every machine.",
        "  python -m minimrcnn data toybox --out data/toybox",
    )
    toybox.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    toybox.add_argument("--train", type=int, default=2000, metavar="N", help="pictures (default: 2000)")
    toybox.add_argument("--val", type=int, default=200, metavar="N", help="pictures (default: 200)")
    toybox.add_argument("--size", type=int, default=256, metavar="S", help="side in pixels (default: 256)")
    toybox.add_argument("--seed", type=int, default=0, metavar="K", help="default: 0")
    for name, run, text in (
        ("coco", run_coco, "Download COCO 2017 (train, val, annotations): 21 GB, 41 GB while it unpacks."),
        ("nuclei", run_nuclei, "Download 2018's nuclei pictures (BBBC038), converted to COCO format."),
    ):
        text += "\n\nCall it again after an interruption: it goes on where it stopped."
        download = command(sets, name, run, text, f"  python -m minimrcnn data {name} --out data/{name}")
        download.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the data")
    check = command(
        sets,
        "check",
        run_check,
        "Read a data set and report what is wrong with it, by image id.\n\n"
        "Exit status 1 when there are errors; notes alone leave it 0.",
        "  python -m minimrcnn data check data/toybox --split val",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="the data set")
    check.add_argument("--split", metavar="NAME", help="only this one (default: all)")


def run_toybox(args: argparse.Namespace) -> int:
    """Draw the toybox data set."""
    from minimrcnn.datasets.toybox_files import draw_toybox

    workers = os.cpu_count() or 1
    draw_toybox(args.out, train=args.train, val=args.val, size=args.size, seed=args.seed, workers=workers)
    print(f"{args.out}: {args.train} pictures to train on, {args.val} to validate with")
    return 0


def run_coco(args: argparse.Namespace) -> int:
    """Download COCO 2017."""
    from minimrcnn.datasets.download import download_coco

    download_coco(args.out)
    return 0


def run_nuclei(args: argparse.Namespace) -> int:
    """Download and convert the nuclei pictures."""
    from minimrcnn.datasets.nuclei import download_nuclei

    download_nuclei(args.out)
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Report what is wrong with a data set; 1 if anything is."""
    from minimrcnn.datasets.check import check_dataset, print_report

    return 1 if print_report(check_dataset(args.folder, split=args.split)) else 0
