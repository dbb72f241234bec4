"""The region proposal network (Faster R-CNN, section 3; with FPN: Lin 2017, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minimrcnn import boxes as box_ops
from minimrcnn.config import Architecture, Conventions
from minimrcnn.losses import box_loss, objectness_loss, share
from minimrcnn.parts import Parts
from minimrcnn.randomness import uniform
from minimrcnn.structures import Proposals, Samples, Targets

WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # of the box code


class RPNHead(nn.Module):
    """A 3x3 convolution, then for each of A anchors a cell: one objectness, four deltas."""

    def __init__(self, channels: int, anchors: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv = nn.Sequential(nn.Sequential(conv, nn.ReLU(inplace=True)))  # torchvision's names
        self.cls_logits = nn.Conv2d(channels, anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, pyramid: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: objectness (B, H * W * A) and deltas (B, H * W * A, 4)."""
        objectness, deltas = [], []
        for features in pyramid:
            x = self.conv(features)
            objectness.append(self.cls_logits(x).permute(0, 2, 3, 1).flatten(1))
            deltas.append(self.bbox_pred(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))
        return objectness, deltas


class RegionProposalNetwork(nn.Module):
    """Anchors in, proposals out."""

    def __init__(self, architecture: Architecture, conventions: Conventions, parts: Parts) -> None:
        super().__init__()
        self.head = RPNHead(architecture.fpn_channels, len(architecture.anchor_ratios))
        self.architecture, self.conventions, self.parts = architecture, conventions, parts

    def propose(
        self,
        objectness: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        sizes: Tensor,
        training: bool,
    ) -> Proposals:
        """The best boxes of each level, decoded, cut to the picture, freed of duplicates.

        Only the anchors that survive the cut by score are decoded: 8,000 of 240,000 at 800 px.

        Args:
            objectness, deltas, anchors: one a level. sizes: (B, 2) of the pictures.
            training: take the training or the test-time counts.
        """
        a, c = self.architecture, self.conventions
        pre_nms, post_nms = a.rpn_pre_nms[0 if training else 1], a.rpn_post_nms_test
        if training:
            post_nms = a.rpn_post_nms_train or c.rpn_post_nms_train
        boxes, scores, kept = [], [], []
        for logit, delta, anchor in zip(objectness, deltas, anchors, strict=True):
            top, index = logit.detach().float().topk(min(pre_nms, logit.shape[1]), dim=1)  # (B, k)
            delta = delta.detach().float().gather(1, index[..., None].expand(-1, -1, 4))  # (B, k, 4)
            box = self.parts.decode(delta, anchor[index], WEIGHTS, c.plus_one)
            box = box_ops.clip(box, sizes, c.plus_one)
            large = box_ops.large_enough(box, c.rpn_min_size, c.plus_one)
            score = top.sigmoid()
            measured = box_ops.to_lengths(box, c.plus_one)
            kept.append(self.parts.nms(measured, score, torch.zeros_like(index), large, a.rpn_nms_threshold))
            boxes.append(box)
            scores.append(score)
        score = torch.cat(scores, dim=1).masked_fill(~torch.cat(kept, dim=1), -1)
        score, order = score.sort(dim=1, descending=True, stable=True)
        order, score = order[:, :post_nms], score[:, :post_nms]  # (B, K)
        box = torch.cat(boxes, dim=1).gather(1, order[..., None].expand(-1, -1, 4))
        return Proposals(box, score, score >= 0)

    def sample(self, anchors: Tensor, targets: Targets, keys: Tensor) -> Samples:
        """Choose the anchors (A, 4) to train on: 256 a picture, at most half of them positive."""
        a = self.architecture
        overlap = self.parts.iou(targets.boxes, anchors, self.conventions.plus_one)  # (B, G, A)
        overlap = torch.where(targets.valid[..., None], overlap, -1.0)
        high, low = a.rpn_match
        matched = self.parts.match(overlap, high, low, True)  # (B, A)
        random = uniform(keys, len(anchors))
        return self.parts.sample(matched, random, a.rpn_samples, a.rpn_positive_fraction)

    def losses(
        self, objectness: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets, samples: Samples
    ) -> dict[str, Tensor]:
        """The two terms on the sampled anchors, of objectness (B, A), deltas (B, A, 4), anchors (A, 4)."""
        c = self.conventions
        logits = objectness.gather(1, samples.index)  # (B, S)
        delta = deltas.gather(1, samples.index[..., None].expand(-1, -1, 4))  # (B, S, 4)
        truth = targets.boxes.gather(1, samples.matched[..., None].expand(-1, -1, 4))
        truth = torch.where(samples.positive[..., None], truth, anchors[samples.index])
        wanted = self.parts.encode(truth, anchors[samples.index], WEIGHTS, c.plus_one)
        count = samples.valid.sum()
        if c.rpn_normalizer == "fixed":
            count = torch.full_like(count, self.architecture.rpn_samples * len(objectness))
        normaliser = share(count)
        return {
            "loss_objectness": objectness_loss(logits, samples.positive, samples.valid, normaliser),
            "loss_rpn_box_reg": box_loss(delta, wanted, samples.positive, c.rpn_beta, normaliser),
        }
