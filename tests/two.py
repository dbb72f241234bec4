"""What test_distributed.py starts in several processes, by torchrun's environment variables.

python tests/two.py gradients DATA OUT       writes the gradients of some batches, averaged
python tests/two.py fail DATA OUT            trains, and rank 1 fails at step 3
python tests/two.py stop DATA OUT            trains, and rank 1 gets SIGTERM at step 3
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from tiny import tiny_config
from torch import Tensor

from minimrcnn import weights
from minimrcnn.datasets.coco import CocoDataset, find_split
from minimrcnn.engine import train
from minimrcnn.engine.distributed import Group, processes

# Image ids of whole batches. 2 has no object, 6 is flat; rank 1 of 2 gets every second one.
BATCHES = {
    "objects in both": [1, 3, 4, 5],
    "rank 1 without objects": [1, 2],
    "rank 0 without objects": [2, 1, 2, 3],
    "no objects at all": [2, 2],
    "three pictures for two": [1, 3, 5],
    "other sizes in rank 1": [1, 6, 3, 6],
}


def gradients(data: Path, group: Group) -> dict[str, dict[str, Tensor]]:
    """The gradient of each of BATCHES, and its losses averaged over the processes, by parameter name."""
    dataset = CocoDataset(*find_split(data, "train"))
    torch.manual_seed(0)
    model = weights.build_model(train.fitted(tiny_config(), dataset.class_map)).train()
    wrapped = group.wrap(train.TrainStep(model, "off"))
    found = {}
    for name, ids in BATCHES.items():
        mine = [dataset[dataset.image_ids.index(i)] for i in ids][group.rank :: group.world]
        model.zero_grad()
        losses = wrapped([picture for picture, _ in mine], [target for _, target in mine], key=7, side=0)
        torch.stack(list(losses.values())).sum().backward()
        found[name] = {key: p.grad.clone() for key, p in model.named_parameters()}
        means = group.mean(torch.stack(list(losses.values())).detach())
        found[name] |= dict(zip(losses, means, strict=True))
    return found


def main() -> None:
    """See the top of this file."""
    what, data, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    if what == "gradients":
        with processes("cpu") as group:
            found = gradients(data, group)
            if group.first:
                torch.save(found, out)
        return
    original = train.train_step

    def step(run: train.Run, *arguments: object) -> train.Record:
        if what in ("fail", "stop") and run.group.rank == 1 and run.step == 2:
            if what == "fail":
                raise RuntimeError("rank 1 fails on purpose")
            os.kill(os.getpid(), signal.SIGTERM)
        return original(run, *arguments)

    train.train_step = step
    train.train(tiny_config(), data, out, resume=what == "resume", device="cpu")


if __name__ == "__main__":
    main()
