"""From picture to feature pyramid: ResNet or ResNeXt, then FPN (He 2016, Xie 2017, Lin 2017).

Parameter names and shapes are torchvision's, so its checkpoints load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimrcnn.config import Architecture, Conventions

STRIDES = (4, 8, 16, 32, 64)  # of P2 to P6, pixels of the resized picture a cell


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose four vectors never change: a scale and a shift a channel.

    Detection trains on few pictures a GPU, too few for batch statistics, so the paper's code keeps
    those of ImageNet. `eps` is 1e-5, but 0 for torchvision's published COCO weights (weights.py).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The layer as y = scale * x + shift: two (C,) tensors."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift()
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu and He 2018) with 8 channels a group: independent of the batch size."""
    return nn.GroupNorm(max(channels // 8, 1), channels)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_batch": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": group_norm,
}


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """Convolution, then normalisation: (B, C, H, W) to (B, C', H', W').

    A frozen norm is folded into the convolution's weights: conv(x) * s + t = conv'(x) + t with the
    weights of conv' scaled by s. That spares a pass over the largest tensors of the network.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    scale, shift = norm.scale_and_shift()
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


def conv3x3(inputs: int, outputs: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size (divided by stride)."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, groups=groups, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He 2016, figure 5 left)."""

    def __init__(self, inputs: int, width: int, stride: int, a: Architecture, c: Conventions) -> None:
        super().__init__()
        self.outputs, norm = width, NORMS[a.norm]
        self.conv1, self.bn1 = conv3x3(inputs, width, stride), norm(width)
        self.conv2, self.bn2 = conv3x3(width, width), norm(width)
        self.downsample = projection(inputs, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        y = conv_norm(y, self.conv2, self.bn2)
        y += shortcut(x, self.downsample)  # in place: fresh memory would cost more than the sum
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width (He 2016, figure 5 right).

    The stride sits in the 3x3 (torchvision, "v1.5") or in the first 1x1 (the original, Detectron).
    """

    def __init__(self, inputs: int, width: int, stride: int, a: Architecture, c: Conventions) -> None:
        super().__init__()
        self.outputs, norm = 4 * width, NORMS[a.norm]
        middle = width * a.group_width // 64 * a.groups  # ResNeXt-64x4d: 64 groups of 4 in the first stage
        first, second = (stride, 1) if c.stride_in_1x1 else (1, stride)
        self.conv1, self.bn1 = nn.Conv2d(inputs, middle, 1, first, bias=False), norm(middle)
        self.conv2, self.bn2 = conv3x3(middle, middle, second, a.groups), norm(middle)
        self.conv3, self.bn3 = nn.Conv2d(middle, self.outputs, 1, bias=False), norm(self.outputs)
        self.downsample = projection(inputs, self.outputs, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(conv_norm(y, self.conv2, self.bn2), inplace=True)
        y = conv_norm(y, self.conv3, self.bn3)
        y += shortcut(x, self.downsample)
        return F.relu(y, inplace=True)


def projection(inputs: int, outputs: int, stride: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """The shortcut's 1x1 convolution; empty, which passes x through, where the shapes agree."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


def shortcut(x: Tensor, downsample: nn.Sequential) -> Tensor:
    """x, projected where the block changes the shape."""
    return conv_norm(x, downsample[0], downsample[1]) if len(downsample) else x


class ResNet(nn.Module):
    """The body: a picture (B, 3, H, W) to C2..C5 at strides 4, 8, 16, 32."""

    def __init__(self, architecture: Architecture, conventions: Conventions) -> None:
        super().__init__()
        inputs, norm = architecture.stem_width, NORMS[architecture.norm]
        block = BasicBlock if architecture.block == "basic" else Bottleneck
        self.conv1, self.bn1 = nn.Conv2d(3, inputs, 7, 2, padding=3, bias=False), norm(inputs)
        self.channels: list[int] = []
        for stage, (count, width) in enumerate(zip(architecture.blocks, architecture.widths, strict=True)):
            blocks = []
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(inputs, width, stride, architecture, conventions))
                inputs = blocks[-1].outputs
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            self.channels.append(inputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def freeze(self, trainable_layers: int) -> None:
        """Train only the last `trainable_layers` of conv1, layer1, ..., layer4 (3 is the usual)."""
        for name in ["conv1", "layer1", "layer2", "layer3", "layer4"][: 5 - trainable_layers]:
            getattr(self, name).requires_grad_(False)
        self.bn1.requires_grad_(trainable_layers == 5)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)  # (B, stem, H/4, W/4)
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return [c2, c3, c4, c5]


class FPN(nn.Module):
    """Feature pyramid network: C2..C5 to P2..P6, all with the same number of channels (Lin 2017)."""

    def __init__(self, inputs: list[int], channels: int, norm: str) -> None:
        super().__init__()
        # Only a network that starts from nothing normalises its pyramid (Wu and He 2018, section 4.2).
        norms = [group_norm(channels)] if norm == "group" else []
        self.inner_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels, 1), *deepcopy(norms)) for c in inputs
        )
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), *deepcopy(norms)) for _ in inputs
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        laterals = [inner(c) for inner, c in zip(self.inner_blocks, features, strict=True)]
        top_down = laterals[-1]
        pyramid = [self.layer_blocks[-1](top_down)]  # P5
        for lateral, smooth in zip(laterals[-2::-1], list(self.layer_blocks)[-2::-1], strict=True):
            # To the lateral's own size: at odd sizes a plain factor of 2 would be a row too many.
            top_down = lateral.add_(F.interpolate(top_down, size=lateral.shape[-2:], mode="nearest"))
            pyramid.insert(0, smooth(top_down))
        # P6 exists for the RPN's largest anchors: every second cell of P5 (Lin 2017, footnote 2).
        pyramid.append(F.max_pool2d(pyramid[-1], kernel_size=1, stride=2))
        return pyramid


class Backbone(nn.Module):
    """Pictures (B, 3, H, W) to P2..P6: five (B, channels, H/s, W/s) at the strides of STRIDES."""

    def __init__(self, architecture: Architecture, conventions: Conventions) -> None:
        super().__init__()
        self.body = ResNet(architecture, conventions)
        self.fpn = FPN(self.body.channels, architecture.fpn_channels, architecture.norm)
        self.body.freeze(architecture.trainable_layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.fpn(self.body(images))
