"""Rotation matrices and unit quaternions `(w, x, y, z)`."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def quaternion_from_rotation(rotation: Float[Tensor, "*b 3 3"]) -> Float[Tensor, "*b 4"]:
    """Unit quaternions with `w >= 0`; accurate at every angle, 180 degrees included.

    Of a matrix that is a rotation only up to rounding, the quaternion of a rotation near it.

    Source: Shepperd, Quaternion from rotation matrix, 1978. The matrix below is `4 q q^T`, so each of its rows is `q`
    times a number; the one with the largest diagonal entry is the farthest from zero.
    """
    (r00, r01, r02), (r10, r11, r12), (r20, r21, r22) = (row.unbind(-1) for row in rotation.unbind(-2))
    x, y, z = r21 - r12, r02 - r20, r10 - r01
    xy, xz, yz = r10 + r01, r02 + r20, r21 + r12
    rows = [
        torch.stack([1 + r00 + r11 + r22, x, y, z], dim=-1),
        torch.stack([x, 1 + r00 - r11 - r22, xy, xz], dim=-1),
        torch.stack([y, xy, 1 - r00 + r11 - r22, yz], dim=-1),
        torch.stack([z, xz, yz, 1 - r00 - r11 + r22], dim=-1),
    ]
    outer = torch.stack(rows, dim=-2)
    best = outer.diagonal(dim1=-2, dim2=-1).argmax(dim=-1)
    row = outer.gather(-2, best[..., None, None].expand(*best.shape, 1, 4)).squeeze(-2)
    quaternion = row / row.norm(dim=-1, keepdim=True)
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def rotation_from_quaternion(quaternion: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 3 3"]:
    """Rotation matrices of quaternions `(w, x, y, z)` of any length but zero."""
    w, x, y, z = (quaternion / quaternion.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)
