"""train, evaluate and predict."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from minimrcnn.commands.arguments import add_device, add_model, command, number, require_matplotlib
from minimrcnn.recipes import CONFIGS

if TYPE_CHECKING:
    from minimrcnn.datasets.coco import ClassMap, CocoDataset
    from minimrcnn.engine.distributed import Group
    from minimrcnn.model import MaskRCNN


def add_train(commands: argparse._SubParsersAction) -> None:
    """`train`."""
    train = command(
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
        type=number(float, 1),
        metavar="SECONDS",
        help="train for about this long: the first sixth is timed, then the number of steps is fixed",
    )
    train.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    train.add_argument(
        "--evaluate",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="evaluate the split val after training (default: yes)",
    )
    add_device(train)


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    """`evaluate`."""
    evaluate = command(
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
    add_model(evaluate)
    evaluate.add_argument("--data", type=Path, required=True, metavar="DIR", help="the data set")
    evaluate.add_argument("--split", default="val", metavar="NAME", help="default: val")
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="write the figures to this JSON file too")
    evaluate.add_argument(
        "--batch-size",
        type=number(int, 1),
        metavar="N",
        help="pictures at once (default: 1 of 800 pixels on a CPU, 4 on a GPU, up to 8 smaller ones)",
    )
    add_device(evaluate)


def add_predict(commands: argparse._SubParsersAction) -> None:
    """`predict`."""
    predict = command(
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
    add_model(predict)
    predict.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="a picture file")
    predict.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the results")
    predict.add_argument(
        "--score",
        type=number(float, 0, 1),
        default=0.5,
        metavar="S",
        help="draw detections of at least this score (default: 0.5)",
    )
    add_device(predict)


def run_train(args: argparse.Namespace) -> int:
    """Train, then evaluate; under torchrun every process comes through here."""
    from minimrcnn.engine.distributed import processes
    from minimrcnn.engine.settings import config_with, named_config
    from minimrcnn.engine.train import train

    config = config_with(named_config(args.config), args.set)
    if args.evaluate:
        require_matplotlib()
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


def run_evaluate(args: argparse.Namespace) -> int:
    """Print COCO's table, and write the figures if a file is named."""
    from minimrcnn.engine import evaluate
    from minimrcnn.engine.distributed import processes

    with processes(args.device) as group:
        model, class_map = load_model(args)
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


def run_predict(args: argparse.Namespace) -> int:
    """Overlays and predictions.json; 2 if a picture could not be read."""
    from minimrcnn.engine.distributed import choose_device
    from minimrcnn.engine.predict import RESULTS, predict

    require_matplotlib()
    device = choose_device(args.device)
    model, class_map = load_model(args)
    problems = predict(model, class_map, args.images, args.out, score=args.score, device=device)
    for problem in problems:
        print(f"minimrcnn: {problem}", file=sys.stderr)
    done = len(args.images) - len(problems)
    what = f": {args.out / RESULTS} and an overlay for each" if done else ""
    print(f"{done} of {len(args.images)} pictures done{what}")
    return 2 if problems else 0


def load_model(args: argparse.Namespace) -> tuple[MaskRCNN, ClassMap]:
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
