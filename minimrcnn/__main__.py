"""The command line: python -m minimrcnn train | evaluate | predict | data | exercises | grade.

Each command imports what it needs when it runs, so that --help and a mistyped argument answer at once.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from minimrcnn.errors import UserError
from minimrcnn.recipes import CONFIGS

if TYPE_CHECKING:
    from minimrcnn.datasets.coco import ClassMap, CocoDataset
    from minimrcnn.engine.distributed import Group
    from minimrcnn.model import MaskRCNN

PUBLISHED = ("TOYBOX", "COCO_V1")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    0: done. 1: `data check` found errors. 2: bad input or arguments, with one message. 130: Ctrl-C.
    """
    args = parser().parse_args(arguments)
    try:
        return args.command(args)
    except UserError as error:
        print(f"minimrcnn: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minimrcnn: interrupted", file=sys.stderr)
        return 130


# ---------------------------------------------------------------- arguments


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    top = argparse.ArgumentParser(
        prog="python -m minimrcnn",
        description="Mask R-CNN: train it, measure it, use it.",
        epilog="Each command explains itself: python -m minimrcnn train --help",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_evaluate(commands)
    _add_predict(commands)
    _add_data(commands)
    _add_exercises(commands)
    _add_grade(commands)
    return top


def _command(commands: argparse._SubParsersAction, name: str, run: object, text: str, example: str):
    """A command with its description and an example, both laid out as they are written here."""
    command = commands.add_parser(
        name,
        help=text.partition("\n")[0],
        description=text,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(command=run)
    return command


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = _command(
        commands,
        "train",
        run_train,
        "Train a model on a data set in COCO format and evaluate it.\n\n"
        "DIR holds annotations/instances_train*.json and train*/ with the pictures; the split val is\n"
        "evaluated at the end if it is there. RUN gets checkpoint.pt, config.json, log.jsonl,\n"
        "metrics.json, curves.png and gallery.png. Ctrl-C saves; --resume goes on from there.",
        "  python -m minimrcnn data toybox --out data/toybox\n"
        "  python -m minimrcnn train --data data/toybox --config mini --out runs/mini\n"
        "  python -m minimrcnn train --data data/coco --config torchvision --out runs/coco \\\n"
        "      --set batch_size=4 --set amp=bf16 --set min_size=640,672,704\n"
        "two GPUs:\n"
        "  torchrun --nproc-per-node=2 -m minimrcnn train --data data/coco --config paper --out runs/paper",
    )
    train.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set")
    train.add_argument("--config", required=True, metavar="NAME", help=f"one of: {', '.join(CONFIGS)}")
    train.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder for all results")
    train.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the configuration, as config.py names it; may be given again",
    )
    train.add_argument(
        "--time-limit",
        type=_number(float, 1),
        metavar="SECONDS",
        help="train for about this long: the first steps are timed, then the number of steps is fixed",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    train.add_argument(
        "--evaluate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="evaluate the split val after training (default: yes)",
    )
    _add_device(train)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = _command(
        commands,
        "evaluate",
        run_evaluate,
        "Measure a trained model: COCO's twelve figures for boxes and for masks.\n\n"
        "The data set must name its categories as the model's training data did, by id and name.",
        "  python -m minimrcnn evaluate --run runs/mini --data data/toybox\n"
        "  python -m minimrcnn evaluate --weights COCO_V1 --data data/coco --out coco.json\n"
        "two GPUs (the -- keeps torchrun from reading --run as its own):\n"
        "  torchrun --nproc-per-node=2 -m -- minimrcnn evaluate --run runs/coco --data data/coco",
    )
    _add_model(evaluate)
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set")
    evaluate.add_argument("--split", default="val", metavar="NAME", help="default: val")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write the figures to this JSON file too")
    evaluate.add_argument(
        "--batch-size",
        type=_number(int, 1),
        metavar="N",
        help="pictures at once (default: 1 of 800 pixels on a CPU, 4 on a GPU, up to 8 smaller ones)",
    )
    _add_device(evaluate)


def _add_predict(commands: argparse._SubParsersAction) -> None:
    predict = _command(
        commands,
        "predict",
        run_predict,
        "Detect the objects in pictures of your own.\n\n"
        "DIR gets NAME.png for each picture, the detections drawn in, and predictions.json with all of\n"
        "them as COCO results (image_id counts the pictures from 1; file_name and category_name added).\n"
        "A picture that cannot be read is named, the others are done, and the exit status is 2.",
        "  python -m minimrcnn predict --run runs/mini photo.jpg --out predictions\n"
        "  python -m minimrcnn predict --weights COCO_V1 *.jpg --score 0.7 --out predictions",
    )
    _add_model(predict)
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a picture file")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    predict.add_argument(
        "--score",
        type=_number(float, 0, 1),
        default=0.5,
        metavar="S",
        help="draw detections of at least this score (default: 0.5)",
    )
    _add_device(predict)


def _add_data(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser("data", help="Draw, download or check a data set.")
    sets = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    toybox = _command(
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
        download = _command(sets, name, run, text, f"  python -m minimrcnn data {name} --out data/{name}")
        download.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the data")
    check = _command(
        sets,
        "check",
        run_check,
        "Read a data set and report what is wrong with it, by image id.\n\n"
        "Exit status 1 when there are errors; notes alone leave it 0.",
        "  python -m minimrcnn data check data/toybox --split val",
    )
    check.add_argument("folder", type=Path, metavar="DIR", help="the data set")
    check.add_argument("--split", metavar="NAME", help="only this one (default: all)")


def _add_exercises(commands: argparse._SubParsersAction) -> None:
    exercises = commands.add_parser("exercises", help="Start, build or audit the exercises of the course.")
    tasks = exercises.add_subparsers(title="commands", metavar="COMMAND", required=True)
    start = _command(
        tasks,
        "start",
        run_exercises_start,
        "Copy the exercise notebooks to a folder to work in.\n\n"
        "Call it again with a newer course: a notebook that you changed is never overwritten, the newer\n"
        "version is put beside it.",
        "  python -m minimrcnn exercises start my_exercises",
    )
    start.add_argument("folder", type=Path, metavar="FOLDER", help="where you want to work")
    build = _command(
        tasks,
        "build",
        run_exercises_build,
        "Make exercises/*.ipynb from solutions/*.ipynb.\n\n"
        "The solutions get fixed cell ids and nbgrader's metadata. The same solutions give the same bytes.",
        "  python -m minimrcnn exercises build --check",
    )
    build.add_argument(
        "--check", action="store_true", help="write nothing; exit status 1 if anything would change"
    )
    audit = _command(
        tasks,
        "audit",
        run_exercises_audit,
        "Test the checks: right answers must be accepted, mistakes rejected with their own message.\n\n"
        "Prints the table of all exercises. Exit status 1 below 100 %.",
        "  python -m minimrcnn exercises audit --chapter 5",
    )
    audit.add_argument("--chapter", type=_number(int, 1), metavar="N", help="this one (default: all)")


def _add_grade(commands: argparse._SubParsersAction) -> None:
    grade = _command(
        commands,
        "grade",
        run_grade,
        "Grade the exercises of a class.\n\n"
        "SUBMISSIONS holds a folder for each student, and these the notebooks, in any sub-folder. Only the\n"
        "answers are taken from them, and put into pristine copies. Each copy runs in a process of its own,\n"
        "with limits of time and memory, and without the network where the system allows to cut it.\n"
        "DIR gets grades.csv (student x exercise, 1 or 0) and grades.html (every message, and what the\n"
        "result does not prove: read that part), written anew after each student.",
        "  python -m minimrcnn grade submitted --out grades --only 03 --jobs 2",
    )
    grade.add_argument("submissions", type=Path, metavar="SUBMISSIONS", help="a folder of student folders")
    grade.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    grade.add_argument(
        "--exercises", type=Path, metavar="DIR", help="the pristine exercises (default: the course's)"
    )
    grade.add_argument("--only", nargs="+", default=[], metavar="NN", help="these notebooks (default: all)")
    grade.add_argument(
        "--jobs", type=_number(int, 1), default=1, metavar="N", help="notebooks at the same time (default: 1)"
    )
    grade.add_argument(
        "--seconds", type=_number(float, 1), default=300, metavar="S", help="for a notebook (default: 300)"
    )
    grade.add_argument(
        "--memory", type=_number(int, 256), default=4096, metavar="MIB", help="for a notebook (default: 4096)"
    )


def _add_model(command: argparse.ArgumentParser) -> None:
    which = command.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, metavar="RUN", help="folder of a training run")
    which.add_argument(
        "--weights",
        choices=PUBLISHED,
        help="instead of a run: the mini model that comes with the package, or torchvision's Mask R-CNN",
    )


def _add_device(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto, cpu, cuda or cuda:N (default: auto, a GPU if there is one)",
    )


def _number(kind: type, least: float, most: float = math.inf) -> Callable[[str], float]:
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


# ---------------------------------------------------------------- train


def run_train(args: argparse.Namespace) -> int:
    """Train, then evaluate; under torchrun every process comes through here."""
    from minimrcnn.engine.distributed import processes
    from minimrcnn.engine.settings import config_with, named_config
    from minimrcnn.engine.train import train

    config = config_with(named_config(args.config), args.set)
    if args.evaluate:
        _require_matplotlib()
    with processes(args.device) as group:
        train(config, args.data, args.out, time_limit=args.time_limit, resume=args.resume, device=args.device)
        if args.evaluate:
            _finish_run(args, group)
    return 0


def _finish_run(args: argparse.Namespace, group: Group) -> None:
    """metrics.json, curves.png and gallery.png of a trained run, and the table."""
    from minimrcnn import show, weights
    from minimrcnn.engine import checkpoint, evaluate, predict

    log, curves = args.out / "log.jsonl", args.out / "curves.png"
    if not any((args.data / "annotations").glob("instances_val*.json")):
        if group.first:
            show.save_curves(log, curves)
        group.say(f"{args.data} has no split val, so nothing is evaluated. Next: open {curves}")
        return
    saved = checkpoint.load(args.out / "checkpoint.pt")
    model, class_map = weights.from_checkpoint(saved)
    dataset = evaluate.open_split(args.data, "val", class_map)
    metrics = _measure(model, dataset, group, None)
    if not group.first:
        return
    metrics["steps"], metrics["seconds"]["training"] = saved["step"], saved["elapsed"]
    evaluate.write_json(args.out / "metrics.json", metrics)
    show.save_curves(log, curves, metrics)
    predict.draw_gallery(model, dataset, args.out / "gallery.png", device=group.device)
    evaluate.print_table(metrics)
    print(
        f"\nNext, open\n  {args.out / 'gallery.png'}  ground truth beside prediction\n"
        f"  {curves}   every loss term\n  {args.out / 'metrics.json'}  these figures in full"
    )


def _require_matplotlib() -> None:
    """Before the training, not after it."""
    import importlib.util

    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "the pictures of a run need matplotlib, which is not installed: pip install matplotlib, "
            "or train with --no-evaluate."
        )


# ---------------------------------------------------------------- evaluate


def run_evaluate(args: argparse.Namespace) -> int:
    """Print COCO's table, and write the figures if a file is named."""
    from minimrcnn.engine import evaluate
    from minimrcnn.engine.distributed import processes

    with processes(args.device) as group:
        model, class_map = _load_model(args)
        dataset = evaluate.open_split(args.data, args.split, class_map)
        metrics = _measure(model, dataset, group, args.batch_size)
        if group.first:
            if args.out:
                evaluate.write_json(args.out, metrics)
            evaluate.print_table(metrics)
    return 0


def _measure(model: MaskRCNN, dataset: CocoDataset, group: Group, batch_size: int | None) -> dict:
    """Metrics, with the machine and the seconds that they took; {} on any process but the first."""
    from minimrcnn.engine import evaluate

    began = time.perf_counter()
    pixels = model.architecture.min_size[-1] * model.architecture.max_size
    fitting = max(min(800 * 1333 // pixels, 8), 4 if group.device.type == "cuda" else 1)
    metrics = evaluate.evaluate(model, dataset, batch_size=batch_size or fitting, device=group.device)
    if metrics:
        metrics["seconds"] = {"evaluation": time.perf_counter() - began}
        metrics["machine"] = evaluate.machine(group.device)
    return metrics


def _load_model(args: argparse.Namespace) -> tuple[MaskRCNN, ClassMap]:
    """The model of --run or --weights, with the only translator of its labels."""
    from minimrcnn import maskrcnn_resnet50_fpn, weights
    from minimrcnn.datasets.coco import ClassMap
    from minimrcnn.engine import checkpoint

    if args.weights == "COCO_V1":
        names = weights.COCO["maskrcnn_resnet50_fpn"].meta["categories"]  # "__background__" first
        class_map = ClassMap(tuple(range(1, len(names))), tuple(names[1:]))
        return maskrcnn_resnet50_fpn(weights="COCO_V1"), class_map
    path = weights.TOYBOX if args.weights == "TOYBOX" else args.run / "checkpoint.pt"
    saved = checkpoint.load(path)
    if own := saved.get("parts"):
        print(f"{path}: trained with your own {', '.join(own)}; here the package's are used", file=sys.stderr)
    return weights.from_checkpoint(saved)


# ---------------------------------------------------------------- predict


def run_predict(args: argparse.Namespace) -> int:
    """Overlays and predictions.json; 2 if a picture could not be read."""
    from minimrcnn.engine.distributed import choose_device
    from minimrcnn.engine.predict import RESULTS, predict

    _require_matplotlib()
    device = choose_device(args.device)
    model, class_map = _load_model(args)
    problems = predict(model, class_map, args.images, args.out, score=args.score, device=device)
    for problem in problems:
        print(f"minimrcnn: {problem}", file=sys.stderr)
    done = len(args.images) - len(problems)
    print(f"{done} of {len(args.images)} pictures done: {args.out / RESULTS} and an overlay for each")
    return 2 if problems else 0


# ---------------------------------------------------------------- data


def run_toybox(args: argparse.Namespace) -> int:
    """Draw the toybox data set."""
    import os

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


# ---------------------------------------------------------------- exercises


def run_exercises_start(args: argparse.Namespace) -> int:
    """Copy the exercises, and say what was done with each."""
    from minimrcnn.classroom.starting import start

    print("\n".join(start(args.folder)))
    print(f"\nNext: python -m jupyterlab {args.folder}")
    return 0


def run_exercises_build(args: argparse.Namespace) -> int:
    """Build the exercises; with --check 1 if anything would change."""
    _require_jupyter()
    from minimrcnn.classroom.building import build

    differing = build(check=args.check)
    for path in differing:
        print(f"{path}: {'differs' if args.check else 'written'}")
    if not differing:
        print("the exercises are what the solutions make of them")
    elif args.check:
        print("Build them anew: python -m minimrcnn exercises build")
    return 1 if args.check and differing else 0


def run_exercises_audit(args: argparse.Namespace) -> int:
    """Audit all exercises; 1 if a check does not say what it should."""
    from minimrcnn.classroom.auditing import audit, table
    from minimrcnn.classroom.chapters import all_exercises

    chosen = [e for e in all_exercises().values() if args.chapter in (None, e.chapter)]
    if not chosen:
        raise UserError(f"there is no exercise of chapter {args.chapter}")
    audits = [audit(exercise) for exercise in chosen]
    print(table(audits))
    problems = [problem for one in audits for problem in one.problems]
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    return 1 if problems else 0


# ---------------------------------------------------------------- grade


def run_grade(args: argparse.Namespace) -> int:
    """Grade a class."""
    _require_jupyter()
    from minimrcnn.classroom.fence import Limits, said
    from minimrcnn.classroom.grading import OK, grade

    limits = Limits(args.seconds, args.memory << 20)
    only = tuple(args.only)
    grades = grade(
        args.submissions, args.out, exercises=args.exercises, only=only, limits=limits, jobs=args.jobs
    )
    messages = [message for one in grades for message in one.messages.values()]
    right = sum(message == OK for message in messages)
    print(
        f"{len({one.student for one in grades})} students, {len(messages)} answers, {right} right. {said()}\n"
        f"Next, open\n  {args.out / 'grades.html'}  every message, and what the result does not prove\n"
        f"  {args.out / 'grades.csv'}   the table"
    )
    return 0


def _require_jupyter() -> None:
    import importlib.util

    if any(importlib.util.find_spec(name) is None for name in ("nbclient", "ipykernel")):
        raise UserError(
            "this works with notebooks, and Jupyter is not installed: pip install -r requirements.txt"
        )


if __name__ == "__main__":
    sys.exit(main())
