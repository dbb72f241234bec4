"""Training: the order of a step is the order of `train_step`, and everything counts steps.

What a step does is a function of the weights, the seed and its number: the pictures and flips come
from `StepSampler`, the samples from a hash of (seed, step, image id). A run that is killed and resumed
therefore makes the same steps as one that was left alone, bit for bit on the CPU.
"""

from __future__ import annotations

import io
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from minimrcnn import weights
from minimrcnn.datasets.check import check_annotations, print_report
from minimrcnn.datasets.coco import ClassMap, CocoDataset, as_coco, find_split, read_json
from minimrcnn.datasets.loader import StepSampler, train_loader
from minimrcnn.engine import checkpoint
from minimrcnn.engine.distributed import Group, processes
from minimrcnn.engine.interrupt import Stop, resume_command, stop_signals
from minimrcnn.engine.log import Log, Progress
from minimrcnn.engine.optimizer import build_optimizer, update
from minimrcnn.engine.own_parts import own_names, parts_of_run, usable_parts
from minimrcnn.engine.schedule import growth, learning_rate, peak_rate, short_side, steps_that_fit
from minimrcnn.engine.settings import config_to_plain
from minimrcnn.errors import UserError
from minimrcnn.model import MaskRCNN
from minimrcnn.parts import DEFAULT, Parts
from minimrcnn.randomness import fold
from minimrcnn.recipes import Config

FAR = 2**62  # more steps than any run has
AMP = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class TrainStep(nn.Module):
    """From pictures to losses, as one module: what DistributedDataParallel wraps must be a `forward`."""

    def __init__(self, model: MaskRCNN, amp: str) -> None:
        super().__init__()
        self.model, self.amp = model, amp

    def forward(self, images: list[Tensor], targets: list[dict], key: int, side: int) -> dict[str, Tensor]:
        """The losses by name, each a scalar. `side`: short side of the pictures, 0 for the model's own."""
        with torch.autocast(images[0].device.type, dtype=AMP[self.amp], enabled=self.amp != "off"):
            min_size = (side,) if side else ()
            return self.model.run(images, targets, losses=True, key=key, min_size=min_size).losses


@dataclass
class Record:
    """What a step leaves to be read, on a GPU one step late so that the host never waits for it."""

    step: int  # from 1
    side: int  # the pictures' short side, 0 for the whole size
    rate: float
    names: list[str]
    values: Tensor  # (len(names),) on the host: the losses, then loss, grad_norm, stop
    ready: torch.cuda.Event | None
    image_ids: list[int]

    def read(self) -> dict[str, float]:
        """The values by name, once they have arrived."""
        if self.ready is not None:
            self.ready.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


@dataclass
class Run:
    """All that training changes, and what it needs to go on."""

    config: Config
    class_map: ClassMap
    group: Group
    model: MaskRCNN
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    began: float  # on time.monotonic's clock, less the seconds that earlier parts of the run took
    step: int = 0  # steps done
    settled: float = 0.0  # `elapsed` when the latest step had been read
    steps: float = math.inf  # steps in all; infinity while a time limit has not fixed them
    sizes: list[tuple[float, int]] = field(default_factory=list)  # of the pictures, see schedule.growth
    durations: list[tuple[int, float]] = field(default_factory=list)  # short side, seconds of each step

    @property
    def elapsed(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self.began


def train(
    config: Config,
    data: Path,
    out: Path,
    *,
    time_limit: float | None = None,
    resume: bool = False,
    device: str = "auto",
    parts: Parts = DEFAULT,
) -> None:
    """Train a model on the split `train` of the data set `data` and leave it in the folder `out`.

    `out` gets config.json, log.jsonl (a line a step: step from 1, each loss term, their sum `loss`,
    grad_norm, lr, images_per_second, elapsed) and checkpoint.pt, which `resume` goes on from.
    Under torchrun every process calls this; the batch is shared out, the first process writes.

    Args:
        config: its architecture's num_classes is replaced by the data set's.
        time_limit: seconds. The steps of the first sixth are timed; then the number of steps is fixed
            and written down, and the run counts steps as any other; should the machine get slower then, it
            takes longer. recipe.steps is not used.
        device: "auto", "cpu", "cuda" or "cuda:N".
        parts: functions of your own to train with. One that is unfit (`own_parts.usable_parts`) is replaced
            by the package's, and the run says so. The checkpoint holds the names of those in use: give
            the same to resume.

    Raises:
        UserError: bad data, settings, parts, or checkpoint; a loss that is not finite; a full disk.
        KeyboardInterrupt: Ctrl-C or SIGTERM, after the step was finished and the run saved.
    """
    began = time.monotonic()
    with processes(device) as group:
        dataset = open_data(data, group, config.architecture.masks)
        config = fitted(config, dataset.class_map)
        check_machine(config, group)
        saved = checkpoint.previous_run(config, dataset.class_map, out, resume)
        group.wait()  # all have looked before the first one writes
        parts = usable_parts(parts, group) if saved is None else parts_of_run(saved, parts, out, group)
        run = start(config, dataset.class_map, group, parts, saved, began, time_limit)
        steps = run_steps(run, dataset, out, time_limit)
        group.wait()  # the others may want to read what the first one is still writing
        group.say(f"trained: {steps} step{'s' * (steps != 1)}, {out / 'checkpoint.pt'}")


def open_data(data: Path, group: Group, masks: bool) -> CocoDataset:
    """The split train, once it has passed the cheap part of `data check`.

    Raises:
        UserError: with the report of the check, where there are errors; or `masks`, and there are none.
    """
    annotations, images = find_split(data, "train")
    content = read_json(annotations)
    if group.first:
        problems = check_annotations(content, images, file=annotations.name, cheap=True)
        report = io.StringIO()
        if print_report(problems, file=report):
            raise UserError(f"{data}: the data set cannot be trained on.\n{report.getvalue().rstrip()}")
        if masks and any(problem.kind == "no_masks" for problem in problems):
            raise UserError(
                f"{annotations}: no object has a segmentation, nothing to train the mask head on. "
                "Train on boxes alone with --set masks=false, or add the masks."
            )
        if problems:
            opened = "(no picture was opened: `python -m minimrcnn data check` does that)"
            group.say(f"{data}: {report.getvalue().rstrip()} {opened}")
    group.wait()
    return CocoDataset(annotations, images, coco=as_coco(content, annotations))


def fitted(config: Config, class_map: ClassMap) -> Config:
    """The config with the number of classes of the data set, background included."""
    architecture = replace(config.architecture, num_classes=len(class_map.category_ids) + 1)
    return replace(config, architecture=architecture)


def check_machine(config: Config, group: Group) -> None:
    """Raise UserError for what this machine cannot do; say what it does slowly."""
    recipe = config.recipe
    if recipe.batch_size < group.world:
        raise UserError(
            f"batch_size {recipe.batch_size} is less than the {group.world} processes: each needs a picture. "
            "Start fewer processes or --set batch_size higher."
        )
    if recipe.amp == "fp16" and group.device.type != "cuda":
        raise UserError("amp=fp16 needs a CUDA GPU. On a CPU take --set amp=bf16, or amp=off.")
    if recipe.amp != "bf16":
        return
    if group.device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        group.say("amp=bf16: this CPU has no bfloat16 instructions; it will be slower than amp=off")
    if group.device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("amp=bf16 needs a GPU of compute capability 8.0 (Ampere). Take --set amp=fp16.")


def start(
    config: Config,
    class_map: ClassMap,
    group: Group,
    parts: Parts,
    saved: dict | None,
    began: float,
    limit: float | None,
) -> Run:
    """Model and optimiser, new or as the checkpoint `saved` has them."""
    recipe = config.recipe
    torch.manual_seed(recipe.seed)  # the first weights; nothing behind this line draws from torch's generator
    model = weights.from_checkpoint(saved, parts)[0] if saved else weights.build_model(config, parts)
    model.to(group.device).train()
    if recipe.channels_last and group.device.type != "cpu":  # transforms.make_batch says why
        model.to(memory_format=torch.channels_last)
    if recipe.compile:
        # What is computed for every cell; the rest has shapes that change. Names stay.
        model.backbone.compile()
        model.rpn.head.compile()
    run = Run(
        config=config,
        class_map=class_map,
        group=group,
        model=model,
        forward=group.wrap(TrainStep(model, recipe.amp)),
        optimizer=build_optimizer(model, recipe),
        scaler=torch.amp.GradScaler(group.device.type, enabled=recipe.amp == "fp16"),
        began=began,
        steps=math.inf if limit is not None else recipe.steps,
        sizes=growth(recipe, config.architecture),
    )
    if saved:
        run.optimizer.load_state_dict(saved["optimizer"])
        run.scaler.load_state_dict(saved["scaler"])
        run.step, run.began = saved["step"], began - saved["elapsed"]
        run.steps = saved["steps"] or run.steps
        torch.set_rng_state(saved["random"]["torch"])
    return run


def state_of(run: Run) -> dict:
    """Everything that `start` needs, as tensors and plain values.

    The schedule and the data order are functions of the step, the seed and the number of steps. Torch's
    own generator is kept for functions of your own that draw from it; the package does not.
    """
    return {
        **weights.to_checkpoint(run.model, run.class_map),
        "config": config_to_plain(run.config),
        "parts": own_names(run.model.parts),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "step": run.step,
        "steps": None if math.isinf(run.steps) else int(run.steps),
        "elapsed": run.elapsed,
        "random": {"torch": torch.get_rng_state()},
    }


def load_from(run: Run, dataset: CocoDataset) -> DataLoader:
    """The batches of the steps that are left, this process's share of each."""
    recipe = run.config.recipe
    sampler = StepSampler(
        dataset,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        hflip=recipe.hflip,
        vflip=recipe.vflip,
        rank=run.group.rank,
        world=run.group.world,
        start=run.step,
        stop=FAR if math.isinf(run.steps) else int(run.steps),
    )
    return train_loader(dataset, sampler, recipe.workers)


def announce(run: Run, pictures: int, limit: float | None) -> None:
    """Say what is about to happen, with every number that the user did not type."""
    r, say, classes = run.config.recipe, run.group.say, len(run.class_map.names)
    say(f"data: {pictures} pictures, num_classes {classes + 1} ({classes} and the background)")
    threads = f"threads: {torch.get_num_threads()}, " if run.group.device.type == "cpu" else ""
    say(f"device: {run.group.device} ({threads}processes: {run.group.world}), amp {r.amp}")
    say(
        f"learning rate: {peak_rate(r):g} = {r.lr:g} * {r.batch_size} / {r.base_batch} "
        "(linear rule: lr * batch_size / base_batch)"
    )
    if math.isinf(run.steps):
        say(f"steps: as many as fit into {limit:g} s, once the first sixth of it has been timed")
    elif run.step >= run.steps:
        say(f"finished before: {run.step} steps; nothing is left to do")
    elif run.step:
        say(f"going on after step {run.step} of {run.steps:g}")
    else:
        say(f"steps: {run.steps:g}, of {r.batch_size} pictures")
    if len(run.sizes) > 1:
        early = ", ".join(str(side) for _, side in run.sizes[:-1])
        say(f"pictures: short side {early} px, and whole after {r.grown_at:.0%} of the steps")
    if run.step < run.steps <= r.warmup:
        say(_short_run(run))


def run_steps(run: Run, dataset: CocoDataset, out: Path, limit: float | None) -> int:
    """All of a run, or what is left of it; returns the number of its steps."""
    announce(run, len(dataset), limit)
    if run.step < run.steps:
        if run.group.first:
            checkpoint.open_folder(out, run.config, run.step)
        train_steps(run, load_from(run, dataset), out, limit)
    return run.step


def readable(loader: DataLoader, save: Callable[[], None]) -> Iterator[tuple[list[Tensor], list[dict]]]:
    """The batches of a loader. Before the error for a picture that cannot be read goes on, `save()`."""
    try:
        yield from loader
    except UserError:
        save()
        raise


def train_steps(run: Run, loader: DataLoader, out: Path, limit: float | None) -> None:
    """All the steps that are left, with their log lines and checkpoints."""
    path, first, every = out / "checkpoint.pt", run.group.first, run.config.recipe.checkpoint_every
    lag = 1 if run.group.device.type == "cuda" else 0
    pending: deque[Record] = deque()
    stopping, run.settled = False, run.elapsed
    with Log(out / "log.jsonl", first) as log, Progress(run.step, first) as progress, stop_signals() as stop:

        def save() -> bool:
            asked = False
            while pending:  # nothing is saved before it is known to be finite
                asked |= settle(run, pending.popleft(), log, progress)
            if first:
                checkpoint.save(path, state_of(run))
            return asked  # to stop

        def save_early() -> None:
            if run.step:
                save()
                run.group.say(f"saved {path} after step {run.step}; --resume goes on from there")

        for images, targets in readable(loader, save_early):
            pending.append(train_step(run, images, targets, stop))
            while len(pending) > lag:
                stopping |= settle(run, pending.popleft(), log, progress)
            fixed = math.isinf(run.steps) and fix_steps(run, limit)
            saving = stopping or fixed or run.step >= run.steps or run.step % every == 0
            if saving:
                stopping |= save()
            if run.step >= run.steps:
                break
            if stopping:
                command = resume_command(world=run.group.world)
                run.group.say(f"stopped after step {run.step} and saved {path}. To go on:\n  {command}")
                run.group.wait()  # torchrun ends all when one has ended: not before the first has saved
                raise KeyboardInterrupt


def train_step(run: Run, images: list[Tensor], targets: list[dict], stop: Stop) -> Record:
    """One step: pictures, losses, their sum, backward, clip, schedule, optimiser."""
    recipe, device = run.config.recipe, run.group.device
    moved = [image.to(device, non_blocking=True) for image in images]
    side = short_side(run.step, run.sizes, run.steps)
    losses = run.forward(moved, targets, int(fold(recipe.seed, run.step)), side)
    loss = torch.stack(list(losses.values())).sum()  # L = L_cls + L_box + L_mask, and the RPN's two
    run.optimizer.zero_grad()
    run.scaler.scale(loss).backward()
    run.scaler.unscale_(run.optimizer)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), recipe.clip or math.inf)
    values = torch.stack([*losses.values(), loss, norm, torch.full_like(norm, float(stop.requested))])
    values = run.group.mean(values.detach().float())
    rate = learning_rate(run.step, recipe, run.steps)
    update(run.optimizer, run.scaler, rate, skip=~values.isfinite().all())
    run.step += 1
    on_host = values.to("cpu", non_blocking=True)
    ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
    ids = [int(target["image_id"]) for target in targets]
    return Record(run.step, side, rate, [*losses, "loss", "grad_norm", "stop"], on_host, ready, ids)


def fix_steps(run: Run, limit: float) -> bool:
    """Fix the number of steps by the time limit, if enough of them have been timed; whether it did."""
    more = None
    if run.durations:
        more = steps_that_fit(run.durations, limit, limit - run.elapsed, run.step, run.sizes)
    more = run.group.firsts(more)  # clocks differ between processes, and the number must not
    if more is None:
        return False
    run.steps = run.step + more
    run.group.say(f"steps: {run.steps}, which fit into {limit:g} s")
    if run.steps <= run.config.recipe.warmup:
        run.group.say(_short_run(run))
    return True


def settle(run: Run, record: Record, log: Log, progress: Progress) -> bool:
    """Look at a step's values and log them; returns whether a process was asked to stop.

    Raises:
        UserError: a value is not finite. No checkpoint has been written since that step, whose update
            the optimiser left out.
    """
    values = record.read()
    stop = values.pop("stop") > 0
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad == ["grad_norm"] and run.scaler.is_enabled():  # fp16: the scale was too high, and is lower now
        bad, values["grad_norm"] = [], None
    if bad:
        raise UserError(_not_finite(run, record, bad, values))
    now = run.elapsed
    seconds, run.settled = now - run.settled, now
    run.durations.append((record.side, seconds))
    rate = run.config.recipe.batch_size / max(seconds, 1e-9)
    line = {"step": record.step, **values, "lr": record.rate, "images_per_second": rate, "elapsed": now}
    log.write(line)
    progress.update(line, run.steps)
    return stop


def _short_run(run: Run) -> str:
    return f"the warm-up of {run.config.recipe.warmup} steps is no shorter than the run: --set warmup lower"


def _not_finite(run: Run, record: Record, bad: list[str], values: dict[str, float]) -> str:
    terms = [name for name in bad if name.startswith("loss_")] or bad
    listed = ", ".join(f"{name} is {values[name]}" for name in terms)
    ids = [i for ids in run.group.everyones(record.image_ids) for i in ids]
    amp = ", or with amp=off" if run.config.recipe.amp != "off" else ""
    return (
        f"step {record.step}: {listed} (pictures {ids}). The step was not taken and nothing was saved since. "
        f"Train with a lower rate (--set lr={run.config.recipe.lr / 4:g}){amp}, and look at these pictures "
        "with `python -m minimrcnn data check`."
    )
