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

from minimrcnn import masks, outlines, pasting
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
    near = torch.tensor([[-50.0, 2, -40, 8], [60, 2, 70, 8], [2, -50, 8, -40], [2, 60, 8, 70]])
    # Longer than the picture: a slice that ends at a negative index would begin to count from the back.
    far = torch.tensor([[-300.0, 2, -40, 8], [60, 2, 200, 8], [2, -300, 8, -40], [2, 60, 8, 200]])
    for how in ("integer", "exact"):
        for boxes in (near, far):
            assert not bool(pasting.paste(torch.ones(4, 4, 4), boxes, 10, 12, how).any())
            codes = pasting.encode_grids(torch.ones(4, 4, 4), boxes, 10, 12, how=how)
            assert not coco_mask.area(codes).any()


# -- run lengths ---------------------------------------------------------------------------------------


def pasted_and_encoded(grids, boxes, height, width, how, threshold=0.5) -> list[dict]:
    """The long way: whole pictures, then pycocotools."""
    if how == "integer":
        pasted = paste_masks_in_image(grids[:, None], boxes, (height, width))[:, 0]
    else:
        pasted = pasting.paste(grids, boxes, height, width, how)
    pictures = (pasted > threshold).numpy().astype(np.uint8)
    codes = [coco_mask.encode(np.asfortranarray(picture)) for picture in pictures]
    return [{"size": c["size"], "counts": c["counts"].decode("ascii")} for c in codes]


@given(paste_problems(), st.sampled_from(["integer", "exact"]), st.sampled_from([0.5, 0.0, 0.05, 0.3, 0.9]))
def test_encode_grids_is_byte_identical(problem, how, threshold):
    codes = pasting.encode_grids(*problem, threshold, how)
    assert codes == pasted_and_encoded(*problem, how, threshold)


def test_encode_needs_a_box_for_each_grid():
    with pytest.raises(ValueError, match="2 grids cannot be laid over 1 boxes"):
        pasting.encode_grids(torch.ones(2, 28, 28), torch.ones(1, 4), 9, 12)


def smooth_grids(generator: np.random.Generator, count: int) -> torch.Tensor:
    """(count, 28, 28) probabilities with a soft outline, as a mask head makes them."""
    noise = torch.tensor(generator.normal(0, 4, (count, 1, 5, 5))).float()
    return F.interpolate(noise, size=28, mode="bicubic")[:, 0].sigmoid()


def boxes_of_all_sizes(generator: np.random.Generator, count: int, height: int, width: int) -> torch.Tensor:
    """(count, 4) boxes from a third of a pixel to larger than the picture, some of them beyond its border."""
    largest = 1.5 * max(height, width)
    sides = 0.3 * (largest / 0.3) ** generator.random((count, 2))
    centres = generator.uniform(0.05, 0.95, (count, 2)) * [width, height]
    return torch.tensor(np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)).float()


@given(seeds, st.sampled_from(["integer", "exact"]))
def test_encode_large_masks(seed, how):
    generator = np.random.default_rng(seed)
    height, width = (int(n) for n in generator.integers(50, 200, 2))
    grids, boxes = smooth_grids(generator, 3), boxes_of_all_sizes(generator, 3, height, width)
    codes = pasting.encode_grids(grids, boxes, height, width, how=how)
    assert codes == pasted_and_encoded(grids, boxes, height, width, how)


@given(seeds, st.sampled_from(["integer", "exact"]), st.sampled_from(["eighths", "near", "flat"]))
def test_encode_where_the_last_bit_decides(seed, how, kind):
    """Grids that hit 0.5 exactly, or miss it by less than float32 can add up to."""
    generator = np.random.default_rng(seed)
    height, width = (int(n) for n in generator.integers(2, 80, 2))
    size = int(generator.choice([1, 2, 7, 28]))
    grids = generator.random((4, size, size))
    if kind == "eighths":
        grids = (grids * 8).round() / 8
    else:
        grids = 0.5 + 1e-7 * (grids if kind == "near" else grids[:, :1, :1].repeat(size, 1).repeat(size, 2))
    corners = generator.integers(0, [width, height], (4, 2))
    sides = generator.uniform(0.3, 80, (4, 2))
    sides[::2] = size * generator.integers(1, 5, (2, 2))  # steps of 1, 1/2, 1/3, 1/4 cell
    boxes = torch.tensor(np.concatenate([corners, corners + sides], axis=1)).float()
    grids = torch.tensor(grids).float()
    codes = pasting.encode_grids(grids, boxes, height, width, how=how)
    assert codes == pasted_and_encoded(grids, boxes, height, width, how)


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
    grids, boxes = torch.full((2, 28, 28), value), torch.tensor([box, box])
    codes = pasting.encode_grids(grids, boxes, 9, 12, how=how)
    assert codes == pasted_and_encoded(grids, boxes, 9, 12, how)
    assert all((coco_mask.area(code) > 0) == (value == 1.0) for code in codes)


@pytest.mark.parametrize("how", ["integer", "exact"])
def test_encode_draws_no_pixels_of_clear_masks(how, monkeypatch):
    """That is the point of it: only where the last bit decides is a picture drawn."""
    drawn = []
    encode_pixels = pasting._encode_pixels
    monkeypatch.setattr(pasting, "_encode_pixels", lambda *args: drawn.append(args) or encode_pixels(*args))
    generator = np.random.default_rng(0)
    grids, boxes = smooth_grids(generator, 50), boxes_of_all_sizes(generator, 50, 300, 300)
    pasting.encode_grids(grids, boxes, 300, 300, how=how)
    assert len(drawn) <= 2
    pasting.encode_grids(torch.full((1, 28, 28), 0.5), torch.tensor([[10.0, 10, 90, 90]]), 300, 300, how=how)
    assert len(drawn) >= 1


@pytest.mark.parametrize("how", ["integer", "exact"])
def test_encode_grids_with_nan_as_if_pasted(how):
    grids = torch.ones(3, 7, 7)
    grids[0, 3, 3] = grids[1] = torch.nan
    boxes = torch.tensor([[2.0, 3, 30, 20]]).expand(3, 4)
    assert pasting.encode_grids(grids, boxes, 24, 32, how=how) == pasted_and_encoded(
        grids, boxes, 24, 32, how
    )


@given(seeds, st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
def test_run_lengths_of_any_pictures(seed, height, width, density):
    generator = np.random.default_rng(seed)
    pictures = generator.random((3, height, width)) < density
    pixels, edges = height * width, []
    for n, picture in enumerate(pictures):
        for column, run in enumerate(np.pad(picture, [(1, 1), (0, 0)]).T):  # each column's runs by themselves
            edges.append(n * (pixels + 1) + column * height + np.flatnonzero(run[1:] != run[:-1]))
    counts, mask = outlines.run_lengths(np.concatenate(edges), 3, pixels)
    assert [counts[mask == n].sum() for n in range(3)] == [pixels] * 3
    wanted = [coco_mask.encode(np.asfortranarray(p, dtype=np.uint8))["counts"] for p in pictures]
    assert outlines.compress(counts, mask) == [code.decode("ascii") for code in wanted]


def test_run_lengths_by_hand():
    # Two pictures of 3 x 2. The first, column by column: 011 110: the ones join over the columns. An
    # edge that occurs twice is none. The second is empty.
    counts, mask = outlines.run_lengths(np.array([1, 3, 3, 5]), 2, 6)
    assert counts.tolist() == [1, 4, 1, 6] and mask.tolist() == [0, 0, 0, 1]
    # The last column alone, to the last pixel: no run of 0 at the end. Then all ones: 0 zeros at the start.
    counts, mask = outlines.run_lengths(np.array([3, 6, 7, 13]), 2, 6)
    assert counts.tolist() == [3, 3, 0, 6] and mask.tolist() == [0, 0, 1, 1]


@given(st.lists(st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 40), min_size=1), min_size=1, max_size=4))
def test_compress_is_pycocotools(runs):
    counts = np.array([count for run in runs for count in run])
    mask = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    wanted = [coco_mask.frPyObjects({"size": [9, 9], "counts": run}, 9, 9)["counts"] for run in runs]
    assert outlines.compress(counts, mask) == [code.decode("ascii") for code in wanted]


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
        crop = crops.crops()[i]
        assert torch.equal(crop, dense[i, y1:y2, x1:x2])
        padded = crops.padded()[i]
        assert torch.equal(padded[: y2 - y1, : x2 - x1], crop)
        assert int(padded.sum()) == int(dense[i].sum())
