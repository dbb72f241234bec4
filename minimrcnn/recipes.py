"""Every number of the training: recipes, and the configurations that have a name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from minimrcnn.config import ARCHITECTURES, CONVENTIONS, Architecture, Conventions


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. Learning rates are for `base_batch` pictures and scale with the batch."""

    optimizer: str = "sgd"  # or "adamw", "muon" (engine/muon.py)
    lr: float = 0.02
    base_batch: int = 16  # the linear rule: lr * batch_size / base_batch (Goyal et al. 2017)
    batch_size: int = 16  # pictures a step, over all processes
    steps: int = 90_000
    schedule: str = "steps"  # or "cosine", "linear"
    milestones: tuple[float, ...] = (60 / 90, 80 / 90)  # of `steps`; each divides the rate by 10
    warmup: int = 1000  # steps of linear warm-up from lr / 1000
    first_size: int = 0  # px: short side of the pictures at first, from where they grow; 0: whole at once
    grown_at: float = 0.8  # part of the steps after which pictures have their whole size
    momentum: float = 0.9  # AdamW, Muon: beta1
    beta2: float = 0.999  # AdamW, Muon: a short run wants a shorter memory
    weight_decay: float = 1e-4
    norm_weight_decay: float = 1e-4  # of normalisation layers' own parameters
    clip: float = 0.0  # largest norm of the whole gradient; 0: no clipping
    amp: str = "off"  # or "bf16", "fp16"
    channels_last: bool = True  # on a GPU; to train on a CPU it does not pay
    compile: bool = False  # torch.compile of backbone, FPN and RPN head
    hflip: float = 0.5
    vflip: float = 0.0
    seed: int = 0
    workers: int = 2
    checkpoint_every: int = 1000  # steps


@dataclass(frozen=True)
class Config:
    """One named way to train: what, how, and by whose conventions."""

    architecture: Architecture = field(default_factory=Architecture)
    conventions: Conventions = field(default_factory=Conventions)
    recipe: Recipe = field(default_factory=Recipe)
    backbone_weights: str = "IMAGENET1K_V1"  # or "none"


_COCO_EPOCH = 118_287 / 16  # steps
_R50 = ARCHITECTURES["maskrcnn_resnet50_fpn"]
# The backbone's weights come from torchvision, so the picture and the stride must be what they know.
_TORCHVISION_BACKBONE = {
    "channel_order": "rgb",
    "mean": Conventions.mean,
    "std": Conventions.std,
    "stride_in_1x1": False,
}
CONFIGS = {
    "mini": Config(
        # Many regions that are no toy: the box head learns what to reject, and they cost little. Mask AP .31,
        # .35, .35 after 700 steps with 32, 64 and 128 samples of which 16 are positive. And of 150
        # proposals a picture, not 400: those that score best teach most (.377, .372 before).
        replace(ARCHITECTURES["mini"], roi_samples=128, roi_positive_fraction=0.125, rpn_post_nms_train=150),
        # detectron2's, where it counts on small pictures. Mask AP after 700 steps: .351 by torchvision's,
        # .363 without the half pixel of RoIAlign and the whole pixel of pasting, then .368 with binary mask
        # targets, .370 with plain L1 for boxes, .372 and .376 (another seed) with both.
        replace(
            CONVENTIONS["torchvision"],
            aligned=True,
            paste="exact",
            mask_target="binary",
            box_beta=0.0,
            rpn_beta=0.0,
        ),
        Recipe(
            # Mask AP of the toybox after 400 steps with the rate 2e-3 on a cosine, two seeds: .231, .249 with
            # momentum .9; .253, .254 with .85. After 1,000 on a straight line with .8: .363, .380, .388, .387
            # with the rates 1.4, 2, 2.8, 4 e-3.
            optimizer="muon",
            lr=3e-3,
            momentum=0.8,
            beta2=0.99,
            base_batch=4,
            batch_size=4,
            steps=1500,
            schedule="linear",
            warmup=50,
            # As many steps of small pictures teach as much: mask AP .40 after 1,224 steps of which 60 % were
            # of 128 px, and after 1,212 of 192 px, which take a quarter longer. Too small ones
            # teach less: .372 after 700 steps that begin at 64 px, .391 at 96, in as much time.
            first_size=96,
            grown_at=0.9,
            weight_decay=0.05,
            norm_weight_decay=0.0,
            clip=5.0,
            vflip=0.5,
            checkpoint_every=200,
        ),
        backbone_weights="none",
    ),
    # references/detection: 26 epochs, a tenth at 16 and 22, batch 8 x 2, lr .02
    "torchvision": Config(
        _R50,
        CONVENTIONS["torchvision"],
        Recipe(steps=round(26 * _COCO_EPOCH), milestones=(16 / 26, 22 / 26)),
    ),
    # section 3.1: 160k steps of 16 pictures, lr .02, a tenth at 120k
    "paper": Config(
        _R50,
        replace(CONVENTIONS["paper"], **_TORCHVISION_BACKBONE),
        Recipe(steps=160_000, milestones=(0.75,)),
    ),
    # mask_rcnn_R_50_FPN_1x: 90k steps, a tenth at 60k and 80k, short side 640..800
    "detectron2": Config(
        replace(_R50, min_size=(640, 672, 704, 736, 768, 800)),
        replace(CONVENTIONS["detectron2"], **_TORCHVISION_BACKBONE),
        Recipe(norm_weight_decay=0.0),
    ),
}
