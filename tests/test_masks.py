"""Mask targets, pasting and run lengths against torchvision and pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from minimrcnn import masks, pasting
from minimrcnn.lifting import targets_by_object
from minimrcnn.structures import MaskCrops

seeds = st.integers(0, 2**31 - 1)


# -- targets -------------------------------------------------------------------------------------------


@st.composite
def target_problems(draw):
    """Random masks (N, H, W), the resized picture's size, and RoIs in it."""
    generator = torch.Generator().manual_seed(draw(seeds))
    height, width = draw(st.integers(4, 60)), draw(st.integers(4, 60))
    factor = draw(st.sampled_from([0.4, 1.0, 1.37, 3.0]))
    resized = max(int(height * factor), 1), max(int(width * factor), 1)
    count = draw(st.integers(1, 4))
    dense = torch.zeros(count, height, width, dtype=torch.uint8)
    for mask in dense[: draw(st.integers(0, count))]:  # the others are empty
        corner = torch.rand(2, generator=generator)
        y, x = int(corner[0] * height), int(corner[1] * width)  # often at the border
        mask[y : y + height // 2 + 1, x : x + width // 2 + 1] = 1
        mask &= torch.rand(height, width, generator=generator) > 0.3
    scale = torch.tensor([resized[1], resized[0]] * 2)
    corner = torch.rand(count, 2, generator=generator)
    other = torch.rand(count, 2, generator=generator)
    boxes = torch.cat([torch.minimum(corner, other), torch.maximum(corner, other)], dim=1)
    return dense, resized, boxes * scale


def arguments(dense: torch.Tensor, resized: tuple[int, int], boxes: torch.Tensor) -> tuple:
    """What `mask_targets` takes, from full-size masks."""
    crops = MaskCrops.from_dense(dense)
    native = torch.tensor(dense.shape[1:]).expand(len(dense), 2)
    return crops.padded(), crops.boxes, boxes, native, torch.tensor(resized).expand(len(dense), 2)


def enlarged(dense: torch.Tensor, resized: tuple[int, int]) -> torch.Tensor:
    """The masks resized with the picture, as torchvision's transform does it."""
    return F.interpolate(dense[:, None].float(), size=resized)[:, 0].byte()


@given(target_problems(), st.sampled_from([7, 14, 28]))
def test_targets_are_torchvisions(problem, size):
    dense, resized, boxes = problem
    theirs = project_masks_on_boxes(enlarged(dense, resized), boxes, torch.arange(len(dense)), size)
    ours = masks.mask_targets(*arguments(*problem), size, False, False, max(resized))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@given(target_problems())
def test_aligned_targets_are_torchvisions_aligned_roi_align(problem):
    dense, resized, boxes = problem
    rois = torch.cat([torch.arange(len(dense))[:, None].float(), boxes], dim=1)
    full = enlarged(dense, resized)[:, None].float()
    theirs = torchvision.ops.roi_align(full, rois, 28, 1.0, 0, True)[:, 0]
    soft = masks.mask_targets(*arguments(*problem), 28, True, False, max(resized))
    torch.testing.assert_close(soft, theirs, rtol=0, atol=1e-5)
    hard = masks.mask_targets(*arguments(*problem), 28, True, True, max(resized))
    clear = (theirs - 0.5).abs() > 1e-5
    assert torch.equal(hard[clear], (theirs >= 0.5).float()[clear])
    assert set(hard.unique().tolist()) <= {0.0, 1.0}


def one_mask(mask, boxes, size, aligned):
    """A student's target of one object, by torchvision's operator."""
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    return torchvision.ops.roi_align(mask[None, None], rois, size, 1.0, 0, aligned)[:, 0]


@given(target_problems(), st.booleans(), st.booleans())
def test_targets_by_object_are_the_same(problem, aligned, binary):
    rest = (*arguments(*problem), 28, aligned)
    ours = masks.mask_targets(*rest, False, max(problem[1]))
    lifted = targets_by_object(one_mask)(*rest, binary, max(problem[1]))
    if binary:
        clear = (ours - 0.5).abs() > 1e-5
        assert torch.equal(lifted[clear], (ours >= 0.5).float()[clear])
    else:
        torch.testing.assert_close(lifted, ours, rtol=0, atol=1e-5)


def test_more_targets_than_a_chunk_and_none():
    dense = torch.ones(1, 20, 20, dtype=torch.uint8)
    crops, places, _, native, resized = arguments(dense, (20, 20), torch.zeros(1, 4))
    boxes = torch.tensor([0.0, 0, 5, 5]) + torch.rand(3 * masks.CHUNK, 1) * 10
    many = [t.expand(len(boxes), *t.shape[1:]) for t in (crops, places, native, resized)]
    targets = masks.mask_targets(many[0], many[1], boxes, many[2], many[3], 14, False, False, 20)
    assert torch.allclose(targets, torch.ones(len(boxes), 14, 14))
    none = [t[:0] for t in (many[0], many[1], boxes, many[2], many[3])]
    assert masks.mask_targets(*none, 14, False, False, 20).shape == (0, 14, 14)


def test_a_target_of_a_roi_larger_than_the_picture():
    """A ground truth box may reach over the border: its RoI takes more points than the picture has pixels."""
    dense = torch.ones(1, 30, 30, dtype=torch.uint8)
    boxes = torch.tensor([[-100.0, -100, 130, 130]])
    theirs = project_masks_on_boxes(enlarged(dense, (30, 30)), boxes, torch.arange(1), 28)
    ours = masks.mask_targets(*arguments(dense, (30, 30), boxes), 28, False, False, 30)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


# -- pasting -------------------------------------------------------------------------------------------


@st.composite
def paste_problems(draw):
    """Grids (N, M, M) and boxes that may be tiny, huge or partly outside of a (height, width) picture."""
    generator = torch.Generator().manual_seed(draw(seeds))
    height, width = draw(st.integers(2, 50)), draw(st.integers(2, 50))
    size, count = draw(st.sampled_from([2, 14, 28])), draw(st.integers(0, 4))
    grids = torch.rand(count, size, size, generator=generator)
    if draw(st.booleans()):
        grids = (grids > 0.5).float()
    limit = torch.tensor([width, height])
    corner = torch.rand(count, 2, generator=generator) * limit * 0.98
    largest = draw(st.sampled_from([0.02, 3.0, 60.0]))
    end = corner + 0.01 + torch.rand(count, 2, generator=generator) * largest
    overhang = draw(st.sampled_from([0.0, 5.0]))
    boxes = torch.cat([corner - overhang, torch.minimum(end, limit) + overhang], dim=1)
    if draw(st.booleans()):
        boxes = boxes.round() + torch.tensor([0, 0, 0.01, 0.01])
    return grids, boxes, height, width


@given(paste_problems())
def test_paste_is_torchvisions(problem):
    grids, boxes, height, width = problem
    theirs = paste_masks_in_image(grids[:, None], boxes, (height, width))[:, 0]
    torch.testing.assert_close(pasting.paste(*problem), theirs, rtol=0, atol=1e-6)


def exact_paste(grid: np.ndarray, box: list[float], height: int, width: int) -> np.ndarray:
    """The definition, a pixel at a time: where is its centre in the grid, and what is there, bilinearly?"""
    size = len(grid)
    ring = np.pad(grid, 1)  # zeros around: what lies outside counts as 0
    picture = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            u = (x + 0.5 - box[0]) / (box[2] - box[0]) * size - 0.5 + 1
            v = (y + 0.5 - box[1]) / (box[3] - box[1]) * size - 0.5 + 1
            if 0 <= u < size + 1 and 0 <= v < size + 1:
                i, j = int(v), int(u)
                a, b = v - i, u - j
                top = ring[i, j] * (1 - b) + ring[i, j + 1] * b
                bottom = ring[i + 1, j] * (1 - b) + ring[i + 1, j + 1] * b
                picture[y, x] = top * (1 - a) + bottom * a
    return picture


@given(seeds, st.sampled_from([2, 7, 28]), st.sampled_from([2.0, 15.0, 60.0]))
def test_exact_paste_is_its_definition(seed, size, largest):
    generator = np.random.default_rng(seed)
    height, width = (int(n) for n in generator.integers(2, 14, 2))
    grid = generator.random((size, size))
    x1, y1 = generator.uniform(-3, width - 1), generator.uniform(-3, height - 1)
    box = np.array([x1, y1, x1 + generator.uniform(1, largest), y1 + generator.uniform(1, largest)])
    box = box.astype(np.float32)
    wanted = exact_paste(grid, box.astype(float).tolist(), height, width)
    pasted = pasting.paste(torch.tensor(grid).float()[None], torch.tensor(box)[None], height, width, "exact")[
        0
    ]
    pasted = pasted.double().numpy()
    ys, xs = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    inside = (xs > box[0]) & (xs < box[2]) & (ys > box[1]) & (ys < box[3])
    np.testing.assert_allclose(pasted[inside], wanted[inside], rtol=0, atol=2e-5)
    # Past the box the grid fades to 0 over half a cell; a margin of it is drawn, and none reaches .5.
    outside = pasted[~inside]
    assert bool(((outside == 0) | (np.abs(outside - wanted[~inside]) < 2e-5)).all())
    assert wanted[~inside].max(initial=0) < 0.5 + 1e-9


def test_an_empty_box_pastes_nothing_by_either_way():
    """A box clipped to the border has no width; a division by it must not leak NaN into the mask."""
    grid, box = torch.ones(1, 4, 4), torch.tensor([[10.0, 2, 10, 8]])
    assert bool(pasting.paste(grid, box, 10, 10, "exact").isfinite().all())
    assert not bool((pasting.paste(grid, box, 10, 10, "exact") > 0.5).any())
    assert bool(pasting.paste(grid, box, 10, 10, "integer").isfinite().all())


def test_boxes_wholly_outside_paste_nothing():
    boxes = torch.tensor([[-50.0, 2, -40, 8], [60, 2, 70, 8], [2, -50, 8, -40], [2, 60, 8, 70]])
    for how in ("integer", "exact"):
        assert not bool(pasting.paste(torch.ones(4, 4, 4), boxes, 10, 12, how).any())


# -- run lengths ---------------------------------------------------------------------------------------


def pasted_and_encoded(grids, boxes, height, width, how) -> list[dict]:
    """The long way: whole pictures, then pycocotools."""
    pasted = pasting.paste(grids, boxes, height, width, how) > 0.5
    codes = [coco_mask.encode(np.asfortranarray(p.numpy().astype(np.uint8))) for p in pasted]
    return [{"size": c["size"], "counts": c["counts"].decode("ascii")} for c in codes]


@given(paste_problems(), st.sampled_from(["integer", "exact"]))
def test_encode_grids_is_byte_identical(problem, how):
    assert pasting.encode_grids(*problem, how=how) == pasted_and_encoded(*problem, how)


@pytest.mark.parametrize("how", ["integer", "exact"])
@pytest.mark.parametrize(
    "box",
    [
        [0.0, 0, 12, 9],  # the whole picture: touches the first and the last pixel, columns merge
        [-9.0, -9, 21, 18],  # larger than the picture: full height, all columns merge
        [3.0, -8, 7, 17],  # full height, a few columns
        [5.0, 4, 6, 5],  # about a pixel
        [10.0, 7, 12, 9],  # the last pixel
        [0.0, 0, 2, 2],  # the first pixel
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.4, 1.0])
def test_encode_at_the_edges(how, box, value):
    grids, boxes = torch.full((1, 28, 28), value), torch.tensor([box])
    code = pasting.encode_grids(grids, boxes, 9, 12, how=how)
    assert code == pasted_and_encoded(grids, boxes, 9, 12, how)
    assert (coco_mask.area(code[0]) > 0) == (value == 1.0)


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_run_lengths_of_any_crop(seed, height, width, density):
    generator = np.random.default_rng(seed)
    h, w = int(generator.integers(0, height + 1)), int(generator.integers(0, width + 1))
    top, left = int(generator.integers(0, height - h + 1)), int(generator.integers(0, width - w + 1))
    crop = generator.random((h, w)) < density
    whole = np.zeros((height, width), dtype=np.uint8)
    whole[top : top + h, left : left + w] = crop
    counts = pasting.run_lengths(crop, left, top, height, width)
    assert sum(counts) == height * width
    code = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    assert code == coco_mask.encode(np.asfortranarray(whole))


def test_run_lengths_by_hand():
    # Columns of 3: 000 011 110, read downwards: four zeros, four ones... the ones join over the columns.
    crop = np.array([[0, 1], [1, 1], [1, 0]], dtype=bool)
    assert pasting.run_lengths(crop, 1, 0, 3, 3) == [4, 4, 1]
    assert pasting.run_lengths(crop, 0, 0, 3, 2) == [1, 4, 1]
    assert pasting.run_lengths(np.ones((3, 1), dtype=bool), 1, 0, 3, 2) == [3, 3]  # no run of 0 at the end
    assert pasting.run_lengths(np.zeros((2, 2), dtype=bool), 0, 0, 3, 2) == [6]


# -- crops ---------------------------------------------------------------------------------------------


@st.composite
def dense_masks(draw):
    generator = torch.Generator().manual_seed(draw(seeds))
    shape = draw(st.integers(0, 4)), draw(st.integers(1, 12)), draw(st.integers(1, 12))
    density = draw(st.sampled_from([0.0, 0.03, 0.5, 1.0]))
    return (torch.rand(shape, generator=generator) < density).to(torch.uint8)


@given(dense_masks())
def test_crops_and_back(dense):
    crops = MaskCrops.from_dense(dense)
    assert torch.equal(crops.to_dense(*dense.shape[1:]), dense)
    assert torch.equal(MaskCrops.from_dense(dense.bool()).pixels, crops.pixels)
    for i, (x1, y1, x2, y2) in enumerate(crops.boxes.tolist()):
        assert torch.equal(crops.crop(i), dense[i, y1:y2, x1:x2])
        padded = crops.padded()[i]
        assert torch.equal(padded[: y2 - y1, : x2 - x1], crops.crop(i))
        assert int(padded.sum()) == int(dense[i].sum())


@given(dense_masks())
def test_flip_mirrors_and_twice_is_nothing(dense):
    crops, width = MaskCrops.from_dense(dense), dense.shape[2]
    once = crops.flip(width)
    assert torch.equal(once.to_dense(*dense.shape[1:]), dense.flip(2))
    twice = once.flip(width)
    assert torch.equal(twice.boxes, crops.boxes) and torch.equal(twice.pixels, crops.pixels)
