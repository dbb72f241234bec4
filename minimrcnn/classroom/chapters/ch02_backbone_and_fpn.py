"""Chapter 2: sizes, strides and receptive fields, frozen normalisation, the pyramid's top-down step."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision

from minimrcnn.classroom import inputs
from minimrcnn.classroom.exercise import Exercise, planted

# ---------------------------------------------------------------- output_size


def _size_inputs(g):
    yield from ((800, 7, 2, 3), (25, 3, 2, 1), (24, 3, 2, 1), (13, 1, 2, 0), (11, 5, 3, 0), (3, 3, 1, 0))


def _size_like(size, kernel, stride, padding, *, sides=2, plus=1, up=False, whole=True):
    room = size + sides * padding - kernel
    steps = -(-room // stride) if up else room // stride
    return steps + plus if whole else room / stride + plus


def _size_sliding(size, kernel, stride, padding):
    return len(range(-padding, size + padding - kernel + 1, stride))


OUTPUT_SIZE = Exercise(
    name="output_size",
    chapter=2,
    difficulty=1,
    minutes=5,
    stub='''
def output_size(size, kernel, stride, padding):
    """How many cells a convolution makes of `size` pixels, along one axis.

    size, kernel, stride, padding: int; `padding` zeros are added on each of the two sides, and
    size + 2 * padding >= kernel. A position is used only if the whole kernel fits.
    Returns int.
    """
'''.strip(),
    reference=lambda size, kernel, stride, padding: F.max_pool1d(
        torch.zeros(1, 1, size + 2 * padding), kernel, stride
    ).shape[-1],
    inputs=_size_inputs,
    others=(_size_like, _size_sliding),
    mistakes=(
        planted("the padding is on both sides", _size_like, sides=1),
        planted("one too few: the first position counts as well", _size_like, plus=0),
        planted("rounded up: a kernel that does not fit whole is not used", _size_like, up=True),
        planted("a number of cells is whole: round down", _size_like, whole=False),
    ),
)

# ---------------------------------------------------------------- receptive_field


def _field_inputs(g):
    stem = [(7, 2), (3, 2)]
    yield (stem,)
    yield (stem + [(3, 1)] * 4 + [(3, 2)] + [(3, 1)] * 3,)
    yield ([(1, 2), (3, 1), (1, 1), (5, 3), (2, 1)],)
    yield ([],)


def _field_like(layers, *, before=True, multiply=True, start=1, full=False, swap=False):
    stride, field = 1, start
    for kernel, step in layers:
        after = stride * step if multiply else stride + step - 1
        field += (kernel - (0 if full else 1)) * (stride if before else after)
        stride = after
    return (stride, field) if swap else (field, stride)


def _field_backwards(layers):
    field, stride = 1, 1  # how many cells of the layer before does one cell need?
    for kernel, step in reversed(layers):
        field = (field - 1) * step + kernel
        stride *= step
    return [field, stride]


RECEPTIVE_FIELD = Exercise(
    name="receptive_field",
    chapter=2,
    difficulty=2,
    minutes=15,
    stub='''
def receptive_field(layers):
    """How many pixels a cell sees, and how many lie between one cell and the next, along one axis.

    layers: list of (kernel, stride), two int each, from the picture upwards; may be empty.
    Returns (receptive field, stride), two int: (1, 1) without layers.
    """
'''.strip(),
    reference=_field_like,
    inputs=_field_inputs,
    others=(_field_backwards,),
    mistakes=(
        planted("a layer's own stride counts only for the layers after it", _field_like, before=False),
        planted("strides multiply, they do not add up", _field_like, multiply=False),
        planted("without layers a cell is a pixel: the field begins at 1", _field_like, start=0),
        planted("a kernel adds kernel - 1 steps: its middle is there already", _field_like, full=True),
        planted("field and stride are swapped", _field_like, swap=True),
    ),
)

# ---------------------------------------------------------------- cell_to_pixels


def _cell_inputs(g):
    yield torch.tensor([[0, 0], [2, 5], [7, 3]]), 16
    yield torch.randint(0, 50, (6, 2), generator=g), 4
    yield torch.zeros(0, 2, dtype=torch.int64), 8


def _cell_like(cells, stride, *, swap=True, inclusive=0, centred=False, fixed=False):
    first = cells.flip(1) if swap else cells
    corner = first.float() * stride - (stride / 2 if centred else 0)
    return torch.cat([corner, corner + (1 if fixed else stride) - inclusive], dim=1)


def _cell_loop(cells, stride):
    rows = [[j * stride, i * stride, (j + 1) * stride, (i + 1) * stride] for i, j in cells.tolist()]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


CELL_TO_PIXELS = Exercise(
    name="cell_to_pixels",
    chapter=2,
    difficulty=2,
    minutes=10,
    stub='''
def cell_to_pixels(cells, stride):
    """The square of the picture that belongs to each cell of a map: the squares tile the picture.

    cells: (N, 2) int64, row and column in the map; N may be 0. stride: int, pixels from cell to cell.
    Returns (N, 4) float32, x1, y1, x2, y2 in pixels of the picture: cell (0, 0) begins at the picture's
    corner; x2 and y2 are exclusive, where the next cell begins.
    """
'''.strip(),
    reference=_cell_like,
    inputs=_cell_inputs,
    others=(_cell_loop,),
    mistakes=(
        planted("a row is a y: x and y are swapped", _cell_like, swap=False),
        planted("x2 and y2 are exclusive: where the next cell begins", _cell_like, inclusive=1),
        planted(
            "the square begins at the cell's corner, yours lies half a cell before", _cell_like, centred=True
        ),
        planted("the square is a stride wide, not a pixel", _cell_like, fixed=True),
    ),
)

# ---------------------------------------------------------------- frozen_batch_norm


def _norm_inputs(g):
    for shape, eps in (((2, 5, 3, 4), 1e-5), ((1, 3, 6, 2), 0.3), ((3, 3, 3, 3), 1e-3)):
        c = shape[1]
        yield (
            inputs.signed(g, *shape), inputs.signed(g, c), inputs.signed(g, c),
            inputs.signed(g, c), inputs.uniform(g, 0.2, 3, c), eps,
        )  # fmt: skip


def _norm_like(x, weight, bias, mean, var, eps, *, inside=True, root=True, moved=True, own=False, axis=1):
    if own:
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
    spread = (var + eps).sqrt() if inside else var.sqrt() + eps
    scale = weight / (spread if root else var + eps)
    shift = bias - mean * scale if moved else bias - mean
    view = [1, 1, 1, 1]
    view[axis] = len(weight)
    return x * scale.view(view) + shift.view(view)


def _norm_torchvision(x, weight, bias, mean, var, eps):
    layer = torchvision.ops.FrozenBatchNorm2d(len(weight), eps=eps)
    state = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    layer.load_state_dict(state)
    return layer(x)


FROZEN_BATCH_NORM = Exercise(
    name="frozen_batch_norm",
    chapter=2,
    difficulty=2,
    minutes=10,
    stub='''
def frozen_batch_norm(x, weight, bias, mean, var, eps):
    """Batch normalisation with statistics that never change.

    x: (B, C, H, W) float32. weight, bias, mean, var: (C,) float32, one number a channel; var > 0.
    eps: float, added to the variance before the root.
    Returns (x - mean) / sqrt(var + eps) * weight + bias, (B, C, H, W).
    """
'''.strip(),
    reference=_norm_torchvision,
    inputs=_norm_inputs,
    others=(
        _norm_like,
        lambda x, weight, bias, mean, var, eps: F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps),
    ),
    mistakes=(
        planted("eps belongs under the root", _norm_like, inside=False),
        planted("the root is missing: divide by the standard deviation", _norm_like, root=False),
        planted("the mean is subtracted before scaling: scale it too", _norm_like, moved=False),
        planted("uses the batch's own mean and variance: the given ones never change", _norm_like, own=True),
        planted("the numbers are laid along the width: they belong to the channels", _norm_like, axis=3),
    ),
)

# ---------------------------------------------------------------- upsample_to


def _upsample_inputs(g):
    yield inputs.signed(g, 2, 3, 2, 3), 4, 6
    yield inputs.signed(g, 1, 2, 13, 5), 25, 10  # 25 cells came from 13
    yield inputs.signed(g, 2, 1, 7, 4), 13, 7
    yield inputs.signed(g, 1, 2, 3, 5), 3, 5


def _upsample_like(coarse, height, width, *, mode="nearest", twice=False, swap=False, tiled=False):
    if swap:
        height, width = width, height
    h, w = coarse.shape[-2:]
    if tiled:
        return coarse.repeat(1, 1, -(-height // h), -(-width // w))[..., :height, :width]
    if twice:
        return F.interpolate(coarse, scale_factor=2, mode="nearest")
    options = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(coarse, size=(height, width), mode=mode, **options)


def _upsample_index(coarse, height, width):
    h, w = coarse.shape[-2:]
    rows, columns = torch.arange(height) * h // height, torch.arange(width) * w // width
    return coarse[..., rows, :][..., columns]


UPSAMPLE_TO = Exercise(
    name="upsample_to",
    chapter=2,
    difficulty=2,
    minutes=15,
    stub='''
def upsample_to(coarse, height, width):
    """A map enlarged by nearest neighbour to a given size, without F.interpolate.

    coarse: (B, C, h, w) float32; height >= h and width >= w, not always their double.
    Returns (B, C, height, width): row i comes from row floor(i * h / height), column j from column
    floor(j * w / width).
    """
'''.strip(),
    reference=_upsample_like,
    inputs=_upsample_inputs,
    others=(_upsample_index,),
    mistakes=(
        planted("doubles the size: enlarge to (height, width)", _upsample_like, twice=True),
        planted("interpolates between the cells: nearest repeats them", _upsample_like, mode="bilinear"),
        planted("height and width are swapped", _upsample_like, swap=True),
        planted("repeats the whole map side by side: each cell must be repeated", _upsample_like, tiled=True),
    ),
)

# ---------------------------------------------------------------- top_down_step


def _step_inputs(g):
    for batch, channels, out, size, fine in ((2, 5, 4, (3, 4), (6, 8)), (1, 3, 6, (13, 5), (25, 10))):
        yield (
            inputs.signed(g, batch, out, *size), inputs.signed(g, batch, channels, *fine),
            inputs.signed(g, out, channels), inputs.signed(g, out),
        )  # fmt: skip


def _step_like(top_down, feature, weight, bias, *, mode="nearest", join="add", shifted=True, relu=False):
    lateral = F.conv2d(feature, weight[:, :, None, None], bias if shifted else None)
    lateral = lateral.relu() if relu else lateral
    options = {"align_corners": False} if mode == "bilinear" else {}
    above = F.interpolate(top_down, size=feature.shape[-2:], mode=mode, **options)
    return {"add": lateral + above, "mean": (lateral + above) / 2, "above": above, "lateral": lateral}[join]


def _step_einsum(top_down, feature, weight, bias):
    lateral = torch.einsum("oc,bchw->bohw", weight, feature) + bias[:, None, None]
    return lateral + _upsample_index(top_down, *feature.shape[-2:])


TOP_DOWN_STEP = Exercise(
    name="top_down_step",
    chapter=2,
    difficulty=3,
    minutes=15,
    stub='''
def top_down_step(top_down, feature, weight, bias):
    """One step down the pyramid, before the 3 x 3 convolution: the lateral of C plus what comes from above.

    top_down: (B, K, h, w) float32, the sum of the level above. feature: (B, C, H, W), this level's C, about
    twice as fine; H and W may be odd. weight: (K, C) and bias: (K,) of the lateral 1 x 1 convolution; no
    ReLU follows it.
    Returns (B, K, H, W): lateral + top_down, enlarged to (H, W) by nearest neighbour.
    """
'''.strip(),
    reference=_step_like,
    inputs=_step_inputs,
    others=(_step_einsum,),
    mistakes=(
        planted(
            "the map from above is interpolated: nearest neighbour is wanted", _step_like, mode="bilinear"
        ),
        planted("the two are averaged: add them", _step_like, join="mean"),
        planted("what comes from above is missing", _step_like, join="lateral"),
        planted("the lateral is missing", _step_like, join="above"),
        planted("the lateral's bias is missing", _step_like, shifted=False),
        planted("there is no ReLU after the lateral", _step_like, relu=True),
    ),
)

EXERCISES = (OUTPUT_SIZE, RECEPTIVE_FIELD, CELL_TO_PIXELS, FROZEN_BATCH_NORM, UPSAMPLE_TO, TOP_DOWN_STEP)
