"""The heads on top of the RoI crops: class and box (Fast R-CNN), mask (the paper's figure 4, right)."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from minimrcnn.backbone import group_norm
from minimrcnn.config import Architecture


class BoxHead(nn.Module):
    """Two fully connected layers: crops (R, C, 7, 7) to features (R, hidden)."""

    def __init__(self, channels: int, pool: int, hidden: int, norm: str) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * pool * pool, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        # Under Adam a sum of 3,000 inputs moves by 3,000 small steps at once: without a norm most units
        # of fc6 die in the first hundred steps. One group: of 8 units without a picture behind each, a
        # mean and a variance would say little.
        self.norm6 = nn.GroupNorm(1, hidden) if norm == "group" else nn.Identity()
        self.norm7 = nn.GroupNorm(1, hidden) if norm == "group" else nn.Identity()

    def forward(self, crops: Tensor) -> Tensor:
        x = crops.flatten(start_dim=1)  # (R, C * 7 * 7), channel slowest
        x = F.relu(self.norm6(self.fc6(x)))
        return F.relu(self.norm7(self.fc7(x)))


class BoxPredictor(nn.Module):
    """Features (R, hidden) to class logits (R, K) and deltas (R, K, 4); K includes the background."""

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(hidden, num_classes)
        self.bbox_pred = nn.Linear(hidden, num_classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class MaskHead(nn.Sequential):
    """Four 3x3 convolutions: crops (R, C, 14, 14) to features (R, channels, 14, 14)."""

    def __init__(self, inputs: int, channels: int, convs: int, norm: str) -> None:
        blocks = []
        for _ in range(convs):
            grouped = norm == "group"
            conv = nn.Conv2d(inputs, channels, 3, padding=1, bias=not grouped)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if not grouped:
                nn.init.zeros_(conv.bias)
            layers = [conv, group_norm(channels)] if grouped else [conv]
            blocks.append(nn.Sequential(*layers, nn.ReLU(inplace=True)))
            inputs = channels
        super().__init__(*blocks)


class MaskPredictor(nn.Sequential):
    """Features (R, C, 14, 14) to one 28x28 map of logits a class: (R, K, 28, 28)."""

    def __init__(self, channels: int, num_classes: int) -> None:
        layers = OrderedDict(
            conv5_mask=nn.ConvTranspose2d(channels, channels, 2, 2),
            relu=nn.ReLU(inplace=True),
            mask_fcn_logits=nn.Conv2d(channels, num_classes, 1),
        )
        super().__init__(layers)
        for module in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)


class RoIHeads(nn.Module):
    """The modules that look at one region at a time, under torchvision's names."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.box_head = BoxHead(a.fpn_channels, a.box_pool, a.box_hidden, a.head_norm)
        self.box_predictor = BoxPredictor(a.box_hidden, a.num_classes)
        if a.masks:
            self.mask_head = MaskHead(a.fpn_channels, a.mask_channels, a.mask_convs, a.head_norm)
            self.mask_predictor = MaskPredictor(a.mask_channels, a.num_classes)
