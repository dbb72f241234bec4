"""Every number of the model: conventions and architectures. Those of its training are in recipes.py.

Paper = He et al. 2017 (arXiv 1703.06870v3). TV = torchvision 0.26. D2 = detectron2. D1 = Detectron,
the authors' own code, whose value stands in the preset `paper` wherever the paper is silent.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conventions:
    """The choices in which the implementations differ. The defaults are torchvision's."""

    # -- the picture -------------------------------------------------------------------------------
    channel_order: str = "rgb"  # D1, D2: "bgr", as their Caffe weights want it
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of values 0..1, in channel order
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    resize_rounding: str = "floor"  # TV: a short side may come out as 799. D2: "round", int(x + .5)
    antialias: bool = False  # TV: plain bilinear. D2: PIL, which averages when it shrinks
    stride_in_1x1: bool = False  # D1, D2: a bottleneck's stride sits in its first 1x1 convolution
    # -- boxes and anchors -------------------------------------------------------------------------
    plus_one: int = 0  # D1: a box's width is x2 - x1 + 1
    anchor_base: str = "rounded"  # TV rounds corners; D2 "exact"; D1 "detectron"
    anchor_stride: str = "from_padding"  # TV: padded // feature size (61 for 64); D1, D2: "fixed"
    # -- region proposals --------------------------------------------------------------------------
    rpn_min_size: float = 1e-3  # px; D2: 0
    rpn_post_nms_train: int = 2000  # TV, D1: per image; D2: 1000
    rpn_beta: float = 1 / 9  # smooth-L1 turns linear here; D2: 0, plain L1
    rpn_normalizer: str = "sampled"  # TV: anchors sampled; D1, D2: "fixed", 256 a picture
    # -- regions of interest -----------------------------------------------------------------------
    # Of the log2 in FPN eq. 1: TV adds it outside. D1, D2: inside, 1e-6 and 1e-8.
    level_epsilon: tuple[str, float] = ("outside", 1e-6)
    aligned: bool = False  # RoIAlign: D2 subtracts the half pixel
    sampling_ratio: int = 2  # paper: 4 samples a bin; D2: 0, as many as the bin has pixels
    box_beta: float = 1 / 9  # D1: 1 (Fast R-CNN eq. 3); D2: 0
    # -- masks ---------------------------------------------------------------------------------------
    mask_target: str = "soft"  # TV keeps RoIAlign's fractions; D1, D2: "binary", at .5
    # -- detections ----------------------------------------------------------------------------------
    nms_threshold: float = 0.5  # paper, appendix B: .5 is the improved value, the body's is .3
    detection_min_size: float = 1e-2  # px; D2, D1: 0
    paste: str = "integer"  # TV, D1: box cut to whole pixels; D2: "exact", sampled at pixel centres


CONVENTIONS = {
    "torchvision": Conventions(),
    "detectron2": Conventions(
        channel_order="bgr",
        mean=(103.53 / 255, 116.28 / 255, 123.675 / 255),
        std=(1 / 255, 1 / 255, 1 / 255),
        resize_rounding="round",
        antialias=True,
        stride_in_1x1=True,
        anchor_base="exact",
        anchor_stride="fixed",
        rpn_min_size=0.0,
        rpn_post_nms_train=1000,
        rpn_beta=0.0,
        rpn_normalizer="fixed",
        level_epsilon=("inside", 1e-8),
        aligned=True,
        sampling_ratio=0,
        box_beta=0.0,
        mask_target="binary",
        detection_min_size=0.0,
        paste="exact",
    ),
    "paper": Conventions(
        channel_order="bgr",  # D1
        mean=(102.9801 / 255, 115.9465 / 255, 122.7717 / 255),  # D1, PIXEL_MEANS
        std=(1 / 255, 1 / 255, 1 / 255),  # D1
        resize_rounding="round",  # D1: OpenCV rounds
        stride_in_1x1=True,  # D1
        plus_one=1,  # D1
        anchor_base="detectron",  # D1
        anchor_stride="fixed",  # D1
        rpn_min_size=0.0,  # D1, RPN_MIN_SIZE
        rpn_normalizer="fixed",  # D1
        level_epsilon=("inside", 1e-6),  # D1
        box_beta=1.0,  # Fast R-CNN, equation 3
        mask_target="binary",  # paper, section 3: a binary mask
        nms_threshold=0.3,  # paper, appendix B says so of the body
        detection_min_size=0.0,
    ),
}


@dataclass(frozen=True)
class Architecture:
    """What the model is made of. The defaults are the paper's ResNet-50-FPN as torchvision has it."""

    num_classes: int = 91  # background, class 0, included
    masks: bool = True
    # -- backbone ------------------------------------------------------------------------------------
    block: str = "bottleneck"  # or "basic"
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    widths: tuple[int, int, int, int] = (64, 128, 256, 512)
    stem_width: int = 64
    groups: int = 1  # ResNeXt: 64 groups of 4 channels, or 32 of 8
    group_width: int = 64
    norm: str = "frozen_batch"  # or "batch", "group"
    trainable_layers: int = 3  # counted from the top; 5 is all of them
    fpn_channels: int = 256
    # -- region proposals ----------------------------------------------------------------------------
    anchor_sizes: tuple[float, ...] = (32, 64, 128, 256, 512)  # one a level, P2 to P6
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)  # height / width
    rpn_match: tuple[float, float] = (0.7, 0.3)
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_pre_nms: tuple[int, int] = (2000, 1000)  # a level; while training, at test time
    rpn_post_nms_test: int = 1000
    rpn_post_nms_train: int = 0  # 0: the convention's
    rpn_nms_threshold: float = 0.7
    # -- heads ---------------------------------------------------------------------------------------
    roi_match: float = 0.5
    roi_samples: int = 512
    roi_positive_fraction: float = 0.25
    box_pool: int = 7
    box_hidden: int = 1024
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    canonical_scale: float = 224.0  # FPN eq. 1: a RoI of this side goes to level P4
    mask_pool: int = 14
    mask_convs: int = 4
    mask_channels: int = 256
    head_norm: str = "none"  # or "group"
    # -- detections ----------------------------------------------------------------------------------
    score_threshold: float = 0.05
    detections: int = 100
    candidates: int = 4096  # before NMS, a picture, where shapes must be fixed (not on the CPU)
    # -- picture -------------------------------------------------------------------------------------
    min_size: tuple[int, ...] = (800,)  # short side, px; training draws one, testing takes the last
    max_size: int = 1333  # no long side above this, px
    divisor: int = 32  # pictures are padded to a multiple of it


ARCHITECTURES = {
    "maskrcnn_resnet50_fpn": Architecture(),
    "maskrcnn_resnet101_fpn": Architecture(blocks=(3, 4, 23, 3)),
    "maskrcnn_resnext101_64x4d_fpn": Architecture(blocks=(3, 4, 23, 3), groups=64, group_width=4),
    "maskrcnn_resnext101_32x8d_fpn": Architecture(blocks=(3, 4, 23, 3), groups=32, group_width=8),
    "fasterrcnn_resnet50_fpn": Architecture(masks=False),
    "mini": Architecture(
        num_classes=9,
        block="basic",
        blocks=(1, 2, 2, 1),
        widths=(32, 64, 96, 128),
        stem_width=32,
        norm="group",
        trainable_layers=5,
        fpn_channels=32,
        anchor_sizes=(12, 24, 48, 96, 192),
        rpn_samples=128,
        rpn_pre_nms=(200, 200),
        rpn_post_nms_train=400,
        rpn_post_nms_test=300,
        roi_samples=32,
        roi_positive_fraction=0.5,
        box_hidden=128,
        # At 192 px every toy then reads P2, 4 to 28 cells wide. Where they are shared out (150), each level
        # learns from a part of them: mask AP .03 in place of .10 after 300 steps of 4 pictures.
        canonical_scale=448.0,
        mask_convs=2,
        mask_channels=32,
        head_norm="group",
        min_size=(192,),
        max_size=192,
    ),
}
