"""Cameras as rays (Pluecker lines), and rays back to cameras.

A ray is `(d, m)`: its direction in the frame of a reference camera, and its moment `o x d` for a unit direction and any
point `o` on it. Rays stand at the centres of a coarse grid's cells. Sources: L4P paper, camera pose estimation; Zhang
et al., Cameras as Rays (arXiv 2402.14817).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from fourd_core.geometry.cameras import (
    Size,
    cropped_intrinsics,
    directions,
    pixel_centres,
    resized_intrinsics,
    rigid,
    rotate,
)
from fourd_core.geometry.numerics import accurate, at_least_single, closest_rotation, solve

GAUSS_NEWTON_STEPS = 3
"""Each divides the distance to the best fit by five or more; what is left is far below what the rays' noise does."""
OFF_AXIS = 0.25
"""Cosine of the angle to the reference's axis (75 degrees) beyond which rays are not compared in its image plane."""


class RayCameras(NamedTuple):
    """Cameras that were found from rays; the reference is the frame in which the rays are given."""

    ref_from_cam: Float[Tensor, "b t 4 4"]
    intrinsics: Float[Tensor, "b t 3 3"]


def rays_from_cameras(
    intrinsics: Float[Tensor, "b t 3 3"], ref_from_cam: Float[Tensor, "b t 4 4"], size: Size, grid: Size = (16, 16)
) -> Float[Tensor, "b t 6 p q"]:
    """The rays through the cells of a grid over each frame.

    Args:
        ref_from_cam: poses; `first_from_cam(world_from_cam)` for rays in the frame of a window's first camera.
        size: height and width of the frames to which the intrinsics belong.
    """
    xy = pixel_centres(size, grid, like=intrinsics)
    unit = F.normalize(directions(xy, intrinsics[:, :, None, None]), dim=-1)
    d = rotate(ref_from_cam[:, :, None, None, :3, :3], unit)
    m = torch.linalg.cross(ref_from_cam[:, :, None, None, :3, 3].expand_as(d), d)
    return torch.cat([d, m], -1).permute(0, 1, 4, 2, 3)


def cameras_from_rays(
    rays: Float[Tensor, "b t 6 p q"],
    size: Size,
    intrinsics: Float[Tensor, "b t 3 3"] | Literal["shared", "per_frame"] = "shared",
) -> RayCameras:
    """The cameras whose rays these are, in the sense of least squares.

    Args:
        size: height and width of the frames to which the intrinsics belong.
        intrinsics: where they are known; "shared": found from the first frame's rays, the same for all frames;
            "per_frame": found together with each frame's rotation.
    Returns:
        Finite cameras for finite rays, except where the rays do not even span a plane: intrinsics may then be NaN.
    """
    d, m = accurate(rays).permute(0, 1, 3, 4, 2).flatten(2, 3).split(3, -1)
    # Pixels run over [-1, 1] here, for the sake of the numbers.
    xy = pixel_centres((2, 2), (rays.shape[-2], rays.shape[-1]), like=d).flatten(0, 1) - 1
    if intrinsics == "per_frame":
        k, rotation = _intrinsics_and_rotations(d, xy)
    else:
        if isinstance(intrinsics, Tensor):
            k = cropped_intrinsics(resized_intrinsics(accurate(intrinsics), size, (2, 2)), (1, 1))
        else:
            k = _intrinsics_and_rotations(d[:, :1], xy)[0].expand(-1, d.shape[1], -1, -1)
        rotation = _rotations(d, k, xy)
    k = resized_intrinsics(cropped_intrinsics(k, (-1, -1)), (2, 2), size)
    dtype = at_least_single(rays)
    return RayCameras(rigid(rotation, _centres(d, m)).to(dtype), k.to(dtype))


def _centres(d: Float[Tensor, "b t n 3"], m: Float[Tensor, "b t n 3"]) -> Float[Tensor, "b t 3"]:
    """The point nearest to all rays of a frame, each counted alike.

    As in the reference, a predicted moment belongs to the unit direction even where the predicted direction is no unit
    vector: a ray's foot is `unit(d) x m`.
    """
    unit = F.normalize(d, dim=-1)
    foot = torch.linalg.cross(unit, m)
    across = torch.eye(3, dtype=d.dtype, device=d.device) - unit[..., None] * unit[..., None, :]
    return solve(across.sum(-3), rotate(across, foot).sum(-2))


def _rotations(
    d: Float[Tensor, "b t n 3"], intrinsics: Float[Tensor, "b t 3 3"], xy: Float[Tensor, "n 2"]
) -> Float[Tensor, "b t 3 3"]:
    """`ref_from_cam`: turns the camera's unit directions into the predicted ones; longer ones count more."""
    own = F.normalize(directions(xy, intrinsics[:, :, None]), dim=-1)
    return closest_rotation(d.mT @ own)


def _intrinsics_and_rotations(
    d: Float[Tensor, "b t n 3"], xy: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "b t 3 3"], Float[Tensor, "b t 3 3"]]:
    """Upper triangular K (with skew) and R such that `d ~ R K^-1 (x, y, 1)`.

    Directions are compared as `(dx/dz, dy/dz)`, as in the reference. That has no meaning near dz = 0, so frames with a
    ray more than `OFF_AXIS` away from z are first turned to it, by the rotation that a guess of K gives.
    """
    eye = torch.eye(3, dtype=d.dtype, device=d.device)
    ahead = (F.normalize(d.detach(), dim=-1)[..., 2] > OFF_AXIS).all(-1)
    turn = torch.where(ahead[..., None, None], eye, _rotations(d.detach(), eye.expand(*d.shape[:2], 3, 3), xy))
    forward = rotate(turn.mT[:, :, None], d)
    seen = forward[..., 2:] > 1e-4
    plane = forward[..., :2] / torch.where(seen, forward[..., 2:], 1.0)
    rotation, k_inverse = _rotation_times_upper(_homography(xy, plane, seen.to(d.dtype)))
    return torch.linalg.solve_triangular(k_inverse, eye.expand_as(k_inverse), upper=True), turn @ rotation


def _homography(
    xy: Float[Tensor, "n 2"], target: Float[Tensor, "b t n 2"], weights: Float[Tensor, "b t n 1"]
) -> Float[Tensor, "b t 3 3"]:
    """The map from `xy` to `target`, last entry 1, of least squared distance in the target.

    The first step is linear (DLT), the others are Gauss-Newton's. Source: Hartley and Zisserman, Multiple View
    Geometry, 4.1 and 4.2.
    """
    source = torch.cat([xy, torch.ones_like(xy[:, :1])], -1)
    nothing = torch.zeros_like(source)
    entries = target.new_zeros(*target.shape[:2], 8)
    for step in range(1 + GAUSS_NEWTON_STEPS):
        mapped = rotate(_homography_matrix(entries)[:, :, None], source)
        at = mapped[..., :2] / mapped[..., 2:]
        x, y = (target if step == 0 else at)[..., None].unbind(-2)
        rows = torch.stack(
            [
                torch.cat([source + 0 * x, nothing + 0 * x, -x * xy], -1),
                torch.cat([nothing + 0 * y, source + 0 * y, -y * xy], -1),
            ],
            -2,
        )
        rows = (rows * (weights / mapped[..., 2:])[..., None]).flatten(2, 3)
        residual = ((target - at) * weights).flatten(2, 3)
        entries = entries + solve(rows.mT @ rows, (rows.mT @ residual[..., None])[..., 0])
    return _homography_matrix(entries)


def _homography_matrix(entries: Float[Tensor, "b t 8"]) -> Float[Tensor, "b t 3 3"]:
    return torch.cat([entries, torch.ones_like(entries[..., :1])], -1).reshape(*entries.shape[:-1], 3, 3)


def _rotation_times_upper(
    matrix: Float[Tensor, "b t 3 3"],
) -> tuple[Float[Tensor, "b t 3 3"], Float[Tensor, "b t 3 3"]]:
    """A proper rotation and an upper triangular matrix, diagonal positive and last entry 1, whose product is `matrix`
    up to a factor."""
    sign = torch.where(torch.linalg.det(matrix) < 0, -1.0, 1.0)
    q, upper = torch.linalg.qr(matrix * sign[..., None, None])
    signs = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(matrix)
    upper = upper * signs[..., None]
    return q * signs[..., None, :], upper / upper[..., 2:, 2:]
