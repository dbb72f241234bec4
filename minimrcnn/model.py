"""Mask R-CNN: the stages by name, in the order in which a picture passes them (paper, figure 1).

pictures -> backbone -> pyramid -> RPN -> proposals -> RoIAlign -> heads -> losses or detections
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from minimrcnn import transforms
from minimrcnn.anchors import grid_anchors
from minimrcnn.backbone import STRIDES, Backbone
from minimrcnn.config import Architecture, Conventions
from minimrcnn.detection import detect, to_pictures
from minimrcnn.heads import BoxPredictor, MaskPredictor, RoIHeads
from minimrcnn.key_names import modern_names
from minimrcnn.losses import box_loss, class_loss, share
from minimrcnn.parts import DEFAULT, Parts
from minimrcnn.randomness import fold, uniform
from minimrcnn.rpn import RegionProposalNetwork
from minimrcnn.structures import Batch, Proposals, RoIs, Samples, Targets, flatten_rois


@dataclass
class Output:
    """What one pass gave: whatever of it was asked for."""

    losses: dict[str, Tensor] = field(default_factory=dict)
    detections: list[dict[str, Tensor]] = field(default_factory=list)
    stages: dict[str, object] = field(default_factory=dict)


class MaskRCNN(nn.Module):
    """Mask R-CNN with a feature pyramid; without masks it is Faster R-CNN.

    Args:
        architecture: what it is made of. conventions: whose details it follows.
        parts: the functions that can be replaced; the defaults are the package's.
    """

    def __init__(self, architecture: Architecture, conventions: Conventions, parts: Parts = DEFAULT) -> None:
        super().__init__()
        self.architecture, self.conventions = architecture, conventions
        self.parts = parts
        self.backbone = Backbone(architecture, conventions)
        self.rpn = RegionProposalNetwork(architecture, conventions, self.parts)
        self.roi_heads = RoIHeads(architecture)
        self.validate = False  # on a GPU, looking at values makes the host wait; on the CPU it is always done

    # -- the door ------------------------------------------------------------------------------------

    def forward(
        self, images: list[Tensor], targets: list[dict] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """torchvision's call: the losses in train mode, the detections in eval mode.

        Args:
            images: (3, H, W) each, float 0..1 or uint8, of any sizes.
            targets: in train mode a dict a picture: "boxes" (N, 4) xyxy in its pixels, "labels" (N,)
                int64 from 1, "masks" (N, H, W) or MaskCrops, and if there is one an "image_id".

        Returns:
            Train mode: {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness",
            "loss_rpn_box_reg"}. Eval mode: a dict a picture with "boxes" (N, 4), "labels" (N,),
            "scores" (N,) and "masks" (N, 1, H, W), probabilities, in the picture's own pixels.

        Raises:
            ValueError, TypeError: a picture or target of the wrong shape, type or value.
        """
        if not self.training:
            return self.run(images, detections=True).detections
        if targets is None:
            raise ValueError("in train mode the model needs targets; for detections call model.eval()")
        key = int(torch.randint(2**31, ()))  # follows torch.manual_seed, as torchvision's samples do
        return self.run(images, targets, losses=True, key=key).losses

    def run(
        self,
        images: list[Tensor],
        targets: list[dict] | None = None,
        *,
        losses: bool = False,
        detections: bool = False,
        keep: tuple[str, ...] = (),
        paste: bool = True,
        key: int = 0,
        min_size: tuple[int, ...] = (),
    ) -> Output:
        """One pass that returns what is asked for, whether the model is in train or eval mode.

        Args:
            images, targets: as for `forward`.
            losses: compute the losses, with the training counts of proposals; needs targets.
            detections: compute the detections, with the test-time counts.
            keep: names of stages to return: batch, targets, pyramid, anchors, objectness, deltas,
                train_proposals, rpn_samples, roi_candidates, roi_samples, roi_labels, class_logits,
                box_deltas, mask_labels, mask_targets, mask_logits (from the losses); proposals,
                test_class_logits, test_box_deltas, detections, grids (from the detections).
            paste: give "masks" as whole pictures (N, 1, H, W), or as the grids (N, M, M) over the boxes.
            key: the random choices depend on it and on each "image_id" alone.
            min_size: short sides to resize to, px; empty takes the architecture's.
        """
        self.check(images, targets, losses)
        stages: dict[str, object] = {}
        batch = stages["batch"] = self.make_batch(images, targets, losses, key, min_size)
        if losses:
            stages["targets"] = transforms.make_targets(targets, batch, self.architecture.masks)
        self.dense_stages(batch, stages)
        output = Output()
        if losses:
            output.losses = self.losses(batch, stages["targets"], stages, fold(key, batch.image_ids))
        if detections:
            found, grids = detect(self, batch, stages)
            how = self.parts.paste if paste else None
            output.detections = to_pictures(found, grids, batch, self.architecture, self.conventions, how)
        missing = set(keep) - set(stages)
        if missing:
            raise ValueError(f"keep={keep!r}: we have {', '.join(stages)}; losses and detections add theirs")
        output.stages = {name: stages[name] for name in keep}
        return output

    def check(self, images: list[Tensor], targets: list[dict] | None, losses: bool) -> None:
        """Raise ValueError or TypeError for pictures and targets that would compute nonsense."""
        transforms.check_images(images, self.validate)
        if losses and targets is None:
            raise ValueError("losses need targets: a dict with boxes, labels and masks for each picture")
        if losses:
            a = self.architecture
            transforms.check_targets(targets, images, a.num_classes, a.masks, self.validate)

    def make_batch(
        self, images: list[Tensor], targets: list[dict] | None, training: bool, key: int, min_size: tuple = ()
    ) -> Batch:
        """Resize, normalise and pad; pictures without an "image_id" are numbered."""
        a = self.architecture
        given = targets or [{}] * len(images)
        ids = torch.tensor([int(t.get("image_id", i)) for i, t in enumerate(given)], dtype=torch.int64)
        sides = transforms.choose_sizes(min_size or a.min_size, ids, key, training)
        return transforms.make_batch(
            list(images), ids, sides, a.max_size, a.divisor, self.conventions, training
        )

    def load_state_dict(self, state_dict: dict[str, Tensor], strict: bool = True, assign: bool = False):
        """As torch's, after translating the older of torchvision's key names."""
        return super().load_state_dict(modern_names(state_dict), strict=strict, assign=assign)

    def change(self, **changes: object) -> None:
        """Change fields of the architecture that need no new weights: thresholds, counts, picture sizes."""
        self.architecture = self.rpn.architecture = replace(self.architecture, **changes)

    def reset_heads(self, num_classes: int) -> None:
        """Fit a trained model to new classes: fresh last layers, everything else stays.

        Args:
            num_classes: of the new data, the background included.

        Raises:
            ValueError: fewer than 2 classes.
        """
        if num_classes < 2:
            raise ValueError(f"num_classes={num_classes}: want at least 2, the background and one more")
        self.change(num_classes=num_classes)
        a, heads, device = self.architecture, self.roi_heads, next(self.parameters()).device
        heads.box_predictor = BoxPredictor(a.box_hidden, num_classes).to(device)
        if a.masks:
            heads.mask_predictor = MaskPredictor(a.mask_channels, num_classes).to(device)

    # -- the stages ----------------------------------------------------------------------------------

    def dense_stages(self, batch: Batch, stages: dict[str, object]) -> None:
        """Backbone, pyramid, RPN head, anchors: all that is computed for every cell."""
        a = self.architecture
        pyramid = stages["pyramid"] = self.backbone(batch.images)
        stages["objectness"], stages["deltas"] = self.rpn.head(pyramid)
        shapes = tuple(tuple(level.shape[-2:]) for level in pyramid)
        size, device = tuple(batch.images.shape[-2:]), batch.images.device
        stages["anchors"] = grid_anchors(
            shapes, size, a.anchor_sizes, STRIDES, a.anchor_ratios, self.conventions, device
        )

    def losses(self, batch: Batch, targets: Targets, stages: dict, keys: Tensor) -> dict[str, Tensor]:
        """The RPN's two terms, then L_cls, L_box and L_mask on sampled proposals."""
        dense = stages["objectness"], stages["deltas"]
        proposals = stages["train_proposals"] = self.rpn.propose(
            *dense, stages["anchors"], batch.sizes, training=True
        )
        anchors = torch.cat(stages["anchors"])  # (A, 4)
        samples = stages["rpn_samples"] = self.rpn.sample(anchors, targets, fold(keys, 1))
        objectness, deltas = (torch.cat(levels, dim=1) for levels in dense)  # (B, A), (B, A, 4)
        rpn_losses = self.rpn.losses(objectness, deltas, anchors, targets, samples)

        candidates, samples = self.sample_rois(proposals, targets, fold(keys, 2))
        stages["roi_samples"], stages["roi_candidates"] = samples, candidates
        roi_losses = self.box_losses(candidates, samples, targets, stages)
        if self.architecture.masks:
            roi_losses |= self.mask_losses(batch, candidates, samples, targets, stages)
        return roi_losses | rpn_losses

    def sample_rois(self, proposals: Proposals, targets: Targets, keys: Tensor) -> tuple[Tensor, Samples]:
        """The regions to train on: 512 a picture, at most a quarter with IoU >= .5 to an object.

        The ground truth boxes are candidates too, so that the heads see positives from the first step.

        Returns:
            The candidates (B, K + G, 4) and the samples among them.
        """
        a = self.architecture
        candidates = torch.cat([proposals.boxes, targets.boxes], dim=1)  # (B, K + G, 4)
        there = torch.cat([proposals.valid, targets.valid], dim=1)
        overlap = self.parts.iou(targets.boxes, candidates, self.conventions.plus_one)
        overlap = torch.where(targets.valid[..., None], overlap, -1.0)  # (B, G, K + G)
        matched = self.parts.match(overlap, a.roi_match, a.roi_match, False)
        matched = matched.masked_fill(~there, -2)  # padding takes no part
        random = uniform(keys, candidates.shape[1])
        return candidates, self.parts.sample(matched, random, a.roi_samples, a.roi_positive_fraction)

    def box_losses(
        self, candidates: Tensor, samples: Samples, targets: Targets, stages: dict
    ) -> dict[str, Tensor]:
        """L_cls and L_box (Fast R-CNN, equation 1)."""
        c = self.conventions
        boxes = candidates.gather(1, samples.index[..., None].expand(-1, -1, 4))  # (B, S, 4)
        truth = targets.boxes.gather(1, samples.matched[..., None].expand(-1, -1, 4))
        truth = torch.where(samples.positive[..., None], truth, boxes)
        labels = torch.where(samples.positive, targets.labels.gather(1, samples.matched), 0)  # (B, S)
        rois = flatten_rois(boxes, samples.valid)
        logits, deltas = self.box_branch(stages["pyramid"], rois)  # (R, K), (R, K, 4)
        stages["class_logits"], stages["box_deltas"] = logits, deltas

        rows = rois.rows
        label, positive = labels.flatten()[rows], samples.positive.flatten()[rows]  # (R,) each
        stages["roi_labels"] = label
        wanted = self.parts.encode(
            truth.flatten(0, 1)[rows], rois.boxes, self.architecture.box_weights, c.plus_one
        )
        delta = deltas[torch.arange(len(rows), device=rows.device), label]  # (R, 4), of the true class
        normaliser = share(samples.valid.sum())
        return {
            "loss_classifier": class_loss(logits, label, rois.valid, normaliser),
            "loss_box_reg": box_loss(delta, wanted, positive & rois.valid, c.box_beta, normaliser),
        }

    def mask_losses(
        self, batch: Batch, candidates: Tensor, samples: Samples, targets: Targets, stages: dict
    ) -> dict[str, Tensor]:
        """L_mask, on the positive samples alone; they come first, and are at most a quarter."""
        a, c = self.architecture, self.conventions
        most = max(int(a.roi_samples * a.roi_positive_fraction), 1)
        index, matched = samples.index[:, :most], samples.matched[:, :most]  # (B, P)
        boxes = candidates.gather(1, index[..., None].expand(-1, -1, 4))
        rois = flatten_rois(boxes, samples.positive[:, :most])
        row = matched.flatten()[rois.rows]  # (R,) which ground truth of its picture
        logits = stages["mask_logits"] = self.mask_branch(stages["pyramid"], rois)  # (R, K, M, M)
        wanted = stages["mask_targets"] = self.parts.mask_target(
            targets.crops[rois.batch, row],
            targets.crop_boxes[rois.batch, row],
            rois.boxes,
            batch.native_sizes[rois.batch],
            batch.sizes[rois.batch],
            logits.shape[-1],
            c.aligned,
            c.mask_target == "binary",
            max(batch.images.shape[-2:]),
        )
        label = stages["mask_labels"] = targets.labels[rois.batch, row]
        normaliser = share(samples.positive.sum())
        return {"loss_mask": self.parts.mask_loss(logits, label, wanted, rois.valid, normaliser)}

    def pool(self, pyramid: list[Tensor], rois: RoIs, size: int) -> Tensor:
        """RoIAlign from the level of each RoI's size: (R, C, size, size)."""
        a, c = self.architecture, self.conventions
        maps = pyramid[:4]  # P6 is for anchors only
        levels = self.parts.assign_levels(
            rois.boxes, len(maps), a.canonical_scale, c.level_epsilon, c.plus_one
        )
        return self.parts.roi_align(
            maps, rois.boxes, rois.batch, levels, STRIDES[:4], size, c.sampling_ratio, c.aligned
        )

    def box_branch(self, pyramid: list[Tensor], rois: RoIs) -> tuple[Tensor, Tensor]:
        """Class logits (R, K) and box deltas (R, K, 4)."""
        crops = self.pool(pyramid, rois, self.architecture.box_pool)  # (R, C, 7, 7)
        return self.roi_heads.box_predictor(self.roi_heads.box_head(crops))

    def mask_branch(self, pyramid: list[Tensor], rois: RoIs) -> Tensor:
        """Mask logits, one map a class: (R, K, 28, 28)."""
        crops = self.pool(pyramid, rois, self.architecture.mask_pool)  # (R, C, 14, 14)
        return self.roi_heads.mask_predictor(self.roi_heads.mask_head(crops))
