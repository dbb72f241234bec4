"""What the benchmarks share: the machine's name, honest timing, and torchvision's side."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

THREADS = 2


def machine() -> str:
    """One line: processor, threads, versions, date."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), name)
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), {THREADS} threads, torch {torch.__version__}, {date.today()}"


def start() -> None:
    """Fix threads and seed, and say on what this runs."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    print(machine())


def interleaved(sides: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each side, measured in turns so that a noisy machine is noisy for both."""
    for side in sides.values():
        side()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def torchvision_resnet50(**arguments: object) -> TorchvisionMaskRCNN:
    """torchvision's maskrcnn_resnet50_fpn as it is trained: frozen batch norm, 3 trainable layers.

    Its own constructor without weights would build trainable BatchNorm2d everywhere, which is slower.
    The weights are random, scaled so that activations stay of order one.
    """
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = TorchvisionMaskRCNN(backbone, 91, **arguments)
    randomise_frozen_norms(model)
    return model


def randomise_frozen_norms(model: nn.Module) -> None:
    """Give every frozen batch norm plausible statistics, so that depth neither explodes nor dies."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.3, 0.6)
            module.bias.normal_(0, 0.1)


def photo(height: int, width: int) -> torch.Tensor:
    """A picture with structure at every scale: (3, H, W) float32 in 0..1."""
    layers = [
        nn.functional.interpolate(
            torch.rand(1, 3, max(height // s, 1), max(width // s, 1)), size=(height, width), mode="bilinear"
        )
        for s in (1, 4, 16, 64)
    ]
    return torch.stack(layers).mean(dim=0)[0]
