"""Depth maps as coloured points, evenly thinned out."""

from __future__ import annotations

from math import ceil, sqrt

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from fourd_core.geometry import transform, unproject
from fourd_core.media.formats.points import PointCloud


def thinning(pixels: int, limit: int) -> int:
    """Every how many-th pixel of a row and a column leaves not many more than `limit` of so many pixels."""
    return max(1, ceil(sqrt(pixels / limit)))


def point_cloud(
    depth: Float[Tensor, "h w"],
    xy: Float[Tensor, "h w 2"],
    rgb: UInt8[Tensor, "3 y x"],
    intrinsics: Float[Tensor, "3 3"],
    world_from_cam: Float[Tensor, "4 4"],
    step: int = 1,
    clear: Bool[Tensor, "h w"] | None = None,
) -> PointCloud:
    """The world's points at every `step`-th pixel of a map whose depth is known, coloured by the frame's pixel there.

    Args:
        depth: unknown where it is not finite or not positive.
        xy: where the map's pixels lie in the frame; those outside of it are left out.
        intrinsics: in pixels of the frame.
        clear: which pixels may be taken; none: all.
    """
    clear = torch.ones_like(depth, dtype=torch.bool) if clear is None else clear
    rows, columns = (slice(min(step // 2, side - 1), None, step) for side in depth.shape)
    depth, xy, clear = (item[rows, columns] for item in (depth, xy, clear))
    column, row = xy.floor().long().unbind(-1)
    inside = (row >= 0) & (row < rgb.shape[-2]) & (column >= 0) & (column < rgb.shape[-1])
    kept = clear & inside & depth.isfinite() & (depth > 0)
    points = transform(world_from_cam.double(), unproject(xy[kept].double(), depth[kept].double(), intrinsics.double()))
    return PointCloud(points.float(), rgb[:, row[kept], column[kept]].T.contiguous())
