"""A coarse map at the pixels of finer features: linear read-outs solved in context, one for each place of the map.

A map of few cells (depth, flow, a mask, some labels) is to be rendered on the grid of pixel features, which know where
edges are. Where a map is a linear function of the features, y = W'x + b, its average over a cell is the same function
of the averaged features: so W can be solved on the map's own cells, by the ridge regression of LILA's in-context
learning, and applied to every pixel. One W for a whole frame (LILA's) explains a map's classes, but not its numbers:
so each cell has a W of its own, solved in the window of 3 x 3 cells around it,

    W = argmin sum_n c_n / N |W'(x_n - x) - (y_n - y)|^2 + ridge |W|^2,    b = y - W'x

with x and y the averages of the window, so that the ridge pulls towards the window's average and not towards 0; and
between cells' centres W and b are interpolated bilinearly. Two steps repair what is not linear: a pixel's answer stays
within the range of the nearest cells, and what the map knows of a cell's average beyond the answer's own is added,
bilinearly interpolated. The guided filter (He et al., Guided Image Filtering, 2010; in its fast form) is the same with
three features, equal weights and W averaged once more, which is what blurs thin things there.

Cost of a map of h x w cells and k channels, features of d channels at H x W pixels and windows of N cells:
h w N d min(N, d) + H W d k multiplications, about, and `BLOCK` numbers of working memory beside inputs and result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.errors import RunError
from fourd_core.kernels.ridge import weighted_ridge
from fourd_core.precision import own_precision

BLOCK = 2**24
"""Numbers that stand in memory at a time: rows of pixels and blocks of windows are as many as fit."""
RIDGE = 1e-3
"""The features have one unit of variance, all channels together."""

Rows = Callable[[int, int], Float[Tensor, "b d r w"]]
"""The features of the pixel rows `start .. stop - 1`."""


def upsample_in_context(
    values: Float[Tensor, "b c h w"],
    features: Float[Tensor, "b d H W"],
    weights: Float[Tensor, "b 1 h w"] | None = None,
    *,
    window: int = 3,
    ridge: float = RIDGE,
    keep_average: bool = True,
    keep_range: bool = True,
) -> Float[Tensor, "b c H W"]:
    """A low-resolution map at the resolution of pixel features, with the features' edges; differentiable in both.

    Where a window has fewer known cells than its side, read-outs of cells of twice, four times ... the size join in, so
    that sparse labels fill the frame. Depth is best given as its logarithm: what lies between near and far is then
    right in proportion. The answer is float32 (float64 for float64 maps).

    Args:
        values: cells of equal size over the same frame as the features; NaN is unknown.
        features: of pixels: colours, a backbone's, LILA's. Only their size relative to each other counts.
        weights: how far each cell is trusted, >= 0; 0 is unknown.
        window: cells along each side of the window in which a read-out is solved, odd.
        ridge: pull of a read-out towards the average of its window, where all channels of the features together have
            a variance of 1.
        keep_average: add what the answer's average over a cell lacks, interpolated between the cells.
        keep_range: keep each pixel between the least and the largest known value of the 3 x 3 cells around it.
    Returns:
        NaN in maps of which nothing is known.
    Raises:
        ValueError: sizes that do not fit each other; an even window; weights below 0.
        RunError: features that are not finite.
    """
    if len(values) != len(features):
        raise ValueError(f"one map belongs to each of the features: got {len(values)} and {len(features)}")

    def rows(start: int, stop: int) -> Float[Tensor, "b d r W"]:
        return features[..., start:stop, :]

    size = features.shape[-2], features.shape[-1]
    return upsample_by_rows(
        values, rows, size, weights, window=window, ridge=ridge, keep_average=keep_average, keep_range=keep_range
    )


def upsample_by_rows(
    values: Float[Tensor, "b c h w"],
    rows: Rows,
    size: tuple[int, int],
    weights: Float[Tensor, "b 1 h w"] | None = None,
    *,
    window: int = 3,
    ridge: float = RIDGE,
    keep_average: bool = True,
    keep_range: bool = True,
) -> Float[Tensor, "b c H W"]:
    """As `upsample_in_context`, with features that are made when they are needed, some pixel rows at a time.

    Args:
        rows: called twice for every row.
        size: height and width of the features.
    """
    _check(values, size, weights, window)
    grid = values.shape[-2], values.shape[-1]
    accurate = torch.promote_types(values.dtype, torch.float32)
    known = values.isfinite().all(1, keepdim=True)
    trust = known.to(accurate) if weights is None else known * weights.to(accurate)
    known = trust > 0
    values = values.to(accurate).where(known, 0.0)
    with own_precision(values.device):
        coarse = _averaged(rows, size, grid, accurate)
        if not bool(coarse.isfinite().all()):
            raise RunError("a map cannot be upsampled by features that are not finite numbers; look at their network")
        scale = coarse.var((-2, -1), correction=0).sum(1).clamp(min=torch.finfo(accurate).tiny).rsqrt()
        scale = scale.view(-1, 1, 1, 1)
        field = _field(values, trust, coarse * scale, window, ridge)
        fine = _rendered(field, rows, scale, size, values.shape[1])
        limits = _limits(values, known) if keep_range else None
        fine = _within(fine, limits)
        if keep_average:
            lacking = (values - F.adaptive_avg_pool2d(fine, grid)) * known
            fine = _within(fine + F.interpolate(lacking, size, mode="bilinear", align_corners=False), limits)
    return fine.masked_fill(~known.flatten(1).any(1).view(-1, 1, 1, 1), torch.nan)


def _check(values: Tensor, size: tuple[int, int], weights: Tensor | None, window: int) -> None:
    b, _, h, w = values.shape
    if h > size[0] or w > size[1]:
        raise ValueError(f"a map of {h} x {w} cells is finer than the features, {size[0]} x {size[1]}")
    if weights is not None and weights.shape != (b, 1, h, w):
        raise ValueError(f"weights of shape {tuple(weights.shape)} do not fit a map of shape {tuple(values.shape)}")
    if weights is not None and bool((weights < 0).any()):
        raise ValueError("weights must not be below 0")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be an odd number of cells, got {window}")


def _averaged(rows: Rows, size: tuple[int, int], grid: tuple[int, int], dtype: torch.dtype) -> Float[Tensor, "b d h w"]:
    """The features averaged over each cell, as by adaptive_avg_pool2d, from some rows at a time."""
    total: Tensor | None = None
    for start, stop in _blocks(rows, size, 1):
        strip = F.adaptive_avg_pool2d(rows(start, stop).to(dtype), (stop - start, grid[1]))
        share = _cell_shares(size[0], grid[0], start, stop).to(strip)
        part = torch.einsum("hr,bdrw->bdhw", share, strip)
        total = part if total is None else total + part
    assert total is not None
    return total


def _cell_shares(length: int, cells: int, start: int, stop: int) -> Float[Tensor, "cells r"]:
    """What pixels `start .. stop - 1` of `length` contribute to the average of each cell."""
    cell, pixel = torch.arange(cells)[:, None], torch.arange(start, stop)
    first, end = cell * length // cells, -(-(cell + 1) * length // cells)
    return ((pixel >= first) & (pixel < end)).double() / (end - first)


def _blocks(rows: Rows, size: tuple[int, int], channels: int) -> list[tuple[int, int]]:
    """Pixel rows in blocks, of which each fits into memory with so many times the features' channels."""
    width = size[1] * (rows(0, 1).shape[1] + 1) * channels
    step = max(1, BLOCK // width)
    return [(start, min(start + step, size[0])) for start in range(0, size[0], step)]


def _field(
    values: Float[Tensor, "b c h w"],
    trust: Float[Tensor, "b 1 h w"],
    features: Float[Tensor, "b d h w"],
    window: int,
    ridge: float,
) -> Float[Tensor, "b d_plus_1 c h w"]:
    """A read-out with bias for each cell; where too little is known, of cells of twice the size, and so on."""
    b, c, h, w = values.shape
    everything = torch.cat([features, values, trust], 1)
    rows = window**2
    step = max(1, BLOCK // (b * w * (2 * rows * everything.shape[1] + min(rows, features.shape[1]) ** 2)))
    solved = [
        _solved(_windows(everything, window, start, min(start + step, h)), c, ridge) for start in range(0, h, step)
    ]
    field: Tensor = torch.cat([part.unflatten(0, (b, -1)) for part in solved], 1)
    field = field.unflatten(1, (h, w)).permute(0, 3, 4, 1, 2)
    known = (trust > 0).to(values.dtype)
    if h == w == 1 or bool((known > 0).all()):
        return field
    coarser = _field(*_halved(values, trust, features), window, ridge)
    wide = F.interpolate(coarser.flatten(1, 2), scale_factor=2, mode="bilinear", align_corners=False)
    wide = wide[..., :h, :w].unflatten(1, (-1, c))
    ones = torch.ones_like(known)
    around, inside = (F.avg_pool2d(x, window, 1, window // 2, divisor_override=1) for x in (known, ones))
    share = (around / inside.clamp(max=window)).clamp(max=1)[:, None]
    mixed: Tensor = share * field + (1 - share) * wide
    return mixed


def _halved(
    values: Float[Tensor, "b c h w"], trust: Float[Tensor, "b 1 h w"], features: Float[Tensor, "b d h w"]
) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b 1 y x"], Float[Tensor, "b d y x"]]:
    """Cells of twice the size, which know what their trusted parts know."""

    def pooled(maps: Tensor) -> Tensor:
        means: Tensor = F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
        return means

    total, count = pooled(trust), pooled((trust > 0).to(trust.dtype))
    total, count = total.where(total > 0, 1.0), count.where(count > 0, 1.0)
    return pooled(trust * values) / total, pooled(trust) / count, pooled(trust * features) / total


def _windows(maps: Float[Tensor, "b c h w"], window: int, start: int, stop: int) -> Float[Tensor, "n cells c"]:
    """The cells around each cell of the rows `start .. stop - 1`; beyond the map's border they are 0."""
    reach = window // 2
    padded = F.pad(maps, (reach,) * 4)[:, :, start : stop + 2 * reach]
    cells: Tensor = F.unfold(padded, window).unflatten(1, (maps.shape[1], window**2))
    return cells.permute(0, 3, 2, 1).flatten(0, 1)


def _solved(cells: Float[Tensor, "n cells channels"], c: int, ridge: float) -> Float[Tensor, "n d_plus_1 c"]:
    """The read-out of each window, whose cells are features, values and trust."""
    x, y, trust = cells.split([cells.shape[-1] - c - 1, c, 1], -1)
    total = trust.sum(1, keepdim=True)
    share = trust / total.where(total > 0, 1.0)
    mean_x, mean_y = (share * x).sum(1, keepdim=True), (share * y).sum(1, keepdim=True)
    x, y = x - mean_x, y - mean_y
    wide = x.shape[2] > x.shape[1]
    weight = _wide_ridge(x, y, trust, ridge) if wide else weighted_ridge(x, y, trust[..., 0], ridge)
    return torch.cat([weight, mean_y - mean_x @ weight], 1)


def _wide_ridge(
    x: Float[Tensor, "n cells d"], y: Float[Tensor, "n cells c"], trust: Float[Tensor, "n cells 1"], ridge: float
) -> Float[Tensor, "n d c"]:
    """As `weighted_ridge`, where there are more features than cells: a system of as many equations as cells.

    With Z the rows of X times the root of their weight, (Z'Z / N + r I)^-1 Z' = Z' (ZZ' / N + r I)^-1.
    """
    cells = x.shape[1]
    root = trust.where(trust > 0, 1.0).sqrt() * (trust > 0)  # whose gradient is finite at 0
    rows = root * x
    gram = rows @ rows.mT / cells + ridge * torch.eye(cells, dtype=x.dtype, device=x.device)
    solution: Tensor = rows.mT @ torch.linalg.solve(gram, root * y / cells)
    return solution


def _rendered(
    field: Float[Tensor, "b d_plus_1 c h w"], rows: Rows, scale: Float[Tensor, "b 1 1 1"], size: tuple[int, int], c: int
) -> Float[Tensor, "b c H W"]:
    """Every pixel's features through the read-out at its place."""
    flat = field.flatten(1, 2)
    top, bottom, down = _neighbours(size[0], flat.shape[-2], flat)
    left, right, along = _neighbours(size[1], flat.shape[-1], flat)
    strips = []
    for start, stop in _blocks(rows, size, c * len(flat)):
        here = slice(start, stop)
        here_field = torch.lerp(flat[:, :, top[here]], flat[:, :, bottom[here]], down[here, None])
        here_field = torch.lerp(here_field[..., left], here_field[..., right], along).unflatten(1, (-1, c))
        x = rows(start, stop).to(flat.dtype) * scale
        strips.append((here_field[:, :-1] * x[:, :, None]).sum(1) + here_field[:, -1])
    return torch.cat(strips, 2)


def _neighbours(length: int, cells: int, like: Tensor) -> tuple[Tensor, Tensor, Float[Tensor, " length"]]:
    """For each pixel along a side the two cells whose centres are around it, and how far it is from the first."""
    place = (torch.arange(length, device=like.device, dtype=torch.float64) + 0.5) * (cells / length) - 0.5
    place = place.clamp(0, cells - 1)
    before = place.floor().long()
    return before, (before + 1).clamp(max=cells - 1), (place - before).to(like.dtype)


Limits = tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]


def _limits(values: Float[Tensor, "b c h w"], known: Bool[Tensor, "b 1 h w"]) -> Limits:
    """The least and the largest known value of the 3 x 3 cells around each cell, or of all where none is known."""

    def largest(maps: Tensor) -> Tensor:
        hidden = maps.masked_fill(~known, -torch.inf)
        near: Tensor = F.max_pool2d(hidden, 3, 1, 1)
        return near.where(near > -torch.inf, hidden.amax((-2, -1), keepdim=True))

    return -largest(-values), largest(values)


def _within(maps: Float[Tensor, "b c H W"], limits: Limits | None) -> Float[Tensor, "b c H W"]:
    if limits is None:
        return maps
    low, high = (F.interpolate(limit, maps.shape[-2:], mode="nearest-exact") for limit in limits)
    return torch.minimum(torch.maximum(maps, low), high)
