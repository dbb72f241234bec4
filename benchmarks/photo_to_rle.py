"""From a photo to COCO run lengths, R-50-FPN at 800 px, the same weights on both sides.

    python -m benchmarks.photo_to_rle

torchvision: inference in float32, threshold, encode, score threshold .05. Ours: float32, and bf16
autocast. Once with 100 detections and once with 15.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from pycocotools import mask as coco_mask

import minimrcnn
from benchmarks.common import interleaved, photo, start, torchvision_resnet50
from minimrcnn.pasting import encode_grids

SIZE = (480, 640)  # resized to 800 x 1066 by both


def threshold_for(model: torch.nn.Module, image: torch.Tensor, wanted: int) -> float:
    """The score threshold under which a model of random weights finds `wanted` detections."""
    model.roi_heads.score_thresh, model.roi_heads.detections_per_img = 0.0, wanted + 1
    with torch.inference_mode():
        scores = model([image])[0]["scores"]
    model.roi_heads.detections_per_img = 100
    return float(scores[wanted - 1] + scores[wanted]) / 2


def compare(theirs: torch.nn.Module, ours: minimrcnn.MaskRCNN, image: torch.Tensor, detections: int) -> None:
    """Time the three for one number of detections, and compare what they found."""
    threshold = threshold_for(theirs, image, detections)
    theirs.roi_heads.score_thresh = threshold
    ours.change(score_threshold=threshold)
    height, width = SIZE

    def torchvision_side() -> tuple[torch.Tensor, list[dict]]:
        with torch.inference_mode():
            found = theirs([image])[0]
        binary = (found["masks"][:, 0] > 0.5).numpy().astype(np.uint8)
        return found["boxes"], [coco_mask.encode(np.asfortranarray(mask)) for mask in binary]

    def our_side() -> tuple[torch.Tensor, list[dict]]:
        with torch.inference_mode():
            found = ours.run([image], detections=True, paste=False).detections[0]
        return found["boxes"], encode_grids(found["masks"], found["boxes"], height, width)

    def our_side_bf16() -> tuple[torch.Tensor, list[dict]]:
        with torch.autocast("cpu", torch.bfloat16):
            return our_side()

    (their_boxes, their_codes), (our_boxes, our_codes) = torchvision_side(), our_side()
    apart = (their_boxes - our_boxes).abs().max().item()
    same = sum(a["counts"].decode() == b["counts"] for a, b in zip(their_codes, our_codes, strict=True))
    print(f"\n{len(our_boxes)} detections; boxes at most {apart:.1e} px apart, {same} masks the same bytes")
    sides = {"torchvision": torchvision_side, "ours float32": our_side}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        sides["ours bf16"] = our_side_bf16
    times = interleaved(sides, repeats=5)
    if "ours bf16" not in sides:  # emulated, many times slower: once is enough to say so
        begun = time.perf_counter()
        our_side_bf16()
        times["ours bf16"] = time.perf_counter() - begun
    for name, seconds in times.items():
        print(f"{name:14} {seconds:6.2f} s   {times['torchvision'] / seconds:5.2f}x", flush=True)


def main() -> None:
    """Both numbers of detections. Must reach 1.4x in float32 and 2x in bf16."""
    start()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        print("this processor has no bf16 instructions: bf16 is emulated here and cannot be fast")
    theirs = torchvision_resnet50().eval()
    with torch.no_grad():  # spread the scores, so that detections differ in them
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(20)
        theirs.roi_heads.box_predictor.bbox_pred.weight.mul_(3)
    ours = minimrcnn.maskrcnn_resnet50_fpn().eval()
    ours.load_state_dict(theirs.state_dict())
    ours.to(memory_format=torch.channels_last)
    image = photo(*SIZE)
    for detections in (100, 15):
        compare(theirs, ours, image, detections)


if __name__ == "__main__":
    main()
