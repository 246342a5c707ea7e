"""Rays of cameras and cameras of rays: by hand, there and back, turned far away, gradients, hopeless rays."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from fourd_core.geometry import cameras_from_rays, intrinsics_matrix, rays_from_cameras, rigid
from fourd_core.geometry.numerics import closest_rotation, cross_matrix

SIZE = (48, 80)


def cameras(angle: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Two clips of four cameras that are turned by about `angle` (radians), the first ones not at all."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    axis = axis / axis.norm(dim=-1, keepdim=True) * angle
    axis[:, 0] = 0
    place = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    focal = torch.rand(2, 4, 2, generator=generator, dtype=torch.float64) * 20 + 50
    centre = torch.tensor([43.0, 21.0], dtype=torch.float64).expand(2, 4, 2)
    pose = rigid(torch.linalg.matrix_exp(cross_matrix(axis)), place)
    return intrinsics_matrix(focal, centre).to(dtype), pose.to(dtype)


def noisy(rays: Tensor, deviation: float) -> Tensor:
    noise = torch.randn(rays.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return rays + deviation * noise.to(rays)


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Degrees."""
    difference = a[..., :3, :3] - b[..., :3, :3]
    return torch.rad2deg(2 * (difference.square().sum((-1, -2)).sqrt() / 8**0.5).clamp(max=1).asin())


def test_a_ray_by_hand() -> None:
    k = intrinsics_matrix(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0]))[None, None]
    pose = rigid(torch.eye(3), torch.tensor([0.0, 0.0, 5.0]))[None, None]
    rays = rays_from_cameras(k, pose, (2, 8), grid=(1, 1))  # one cell, its centre at (4, 1)
    d = torch.tensor([4 / 3, 1 / 4, 1.0])
    d = d / d.square().sum().sqrt()
    torch.testing.assert_close(rays[0, 0, :, 0, 0], torch.stack([*d, -5 * d[1], 5 * d[0], torch.tensor(0.0)]))


def test_rays_stand_at_the_centres_of_the_cells() -> None:
    k, pose = cameras(0.0)
    rays = rays_from_cameras(k, pose, SIZE, grid=(6, 10))  # cells of 8 x 8 pixels
    d = rays[1, 0, :3, 2, 3]
    seen = k[1, 0] @ (d / d[2])
    torch.testing.assert_close(seen[:2], torch.tensor([28.0, 20.0], dtype=torch.float64))


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.5, 3.0])
@pytest.mark.parametrize("mode", ["known", "shared", "per_frame"])
def test_there_and_back(mode: str, angle: float) -> None:
    k, pose = cameras(angle)
    if mode == "shared":
        k = k[:, :1].expand(-1, 4, -1, -1)
    found = cameras_from_rays(rays_from_cameras(k, pose, SIZE, (9, 16)), SIZE, k if mode == "known" else mode)
    torch.testing.assert_close(found.ref_from_cam, pose)
    torch.testing.assert_close(found.intrinsics, k)


def test_skew_is_found() -> None:
    k, pose = cameras(0.3)
    k[..., 0, 1] = 2.5
    found = cameras_from_rays(rays_from_cameras(k, pose, SIZE), SIZE, "per_frame")
    torch.testing.assert_close(found.intrinsics, k)


@pytest.mark.parametrize("angle", [0.3, 2.0])
def test_noise_is_averaged(angle: float) -> None:
    k, pose = cameras(angle)
    rays = noisy(rays_from_cameras(k, pose, SIZE), 0.005)
    known = cameras_from_rays(rays, SIZE, k).ref_from_cam
    assert angle_between(known, pose).max() < 0.1  # one ray is off by 0.3
    assert (known - pose)[..., :3, 3].abs().max() < 0.02
    free = cameras_from_rays(rays, SIZE, "per_frame")
    assert angle_between(free.ref_from_cam, pose).max() < 2
    assert (free.intrinsics - k).abs().max() < 4


def test_refined_intrinsics_are_where_the_error_is_least() -> None:
    k, pose = cameras(0.2)
    rays = noisy(rays_from_cameras(k, pose, SIZE), 0.01)
    found = cameras_from_rays(rays, SIZE, "per_frame")
    d = rays[:, :, :3]
    target = d[:, :, :2] / d[:, :, 2:]

    def error(intrinsics: Tensor) -> Tensor:
        mine = rays_from_cameras(intrinsics, found.ref_from_cam, SIZE)[:, :, :3]
        return (mine[:, :, :2] / mine[:, :, 2:] - target).square().sum((2, 3, 4))

    at = found.intrinsics.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(error(at).sum(), at)
    curvature = (
        error(at + 0.1 * torch.eye(3).double()) - 2 * error(at) + error(at - 0.1 * torch.eye(3).double())
    ) / 0.01
    assert (gradient.abs().amax((-1, -2)) / curvature).max() < 1e-3  # pixels to the minimum


def test_a_moment_belongs_to_the_unit_direction() -> None:
    k, pose = cameras(0.3)
    rays = rays_from_cameras(k, pose, SIZE)
    longer = torch.cat([1.7 * rays[:, :, :3], rays[:, :, 3:]], 2)
    torch.testing.assert_close(cameras_from_rays(longer, SIZE, k).ref_from_cam, pose)


@pytest.mark.parametrize("mode", ["known", "shared", "per_frame"])
def test_gradcheck(mode: str) -> None:
    # A square grid and fx = fy: two singular values of the rotation's matrix agree.
    k = intrinsics_matrix(torch.tensor([30.0, 30.0]), torch.tensor([16.0, 16.0])).double()[None, None]
    _, pose = cameras(0.3)
    rays = rays_from_cameras(k, pose[:1, 1:2], (32, 32), grid=(4, 4))
    for clean in (rays, noisy(rays, 0.01)):
        function = partial(cameras_from_rays, size=(32, 32), intrinsics=k if mode == "known" else mode)
        assert torch.autograd.gradcheck(lambda x: tuple(function(x)), clean.requires_grad_())  # noqa: B023


def test_gradcheck_of_rays() -> None:
    k, pose = cameras(0.3)
    function = partial(rays_from_cameras, size=SIZE, grid=(2, 3))
    assert torch.autograd.gradcheck(function, (k.requires_grad_(), pose.requires_grad_()))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_closest_rotation_is_proper_and_best(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = torch.randn(2, 50, 3, rank, generator=generator, dtype=torch.float64)
    matrix = parts[0] @ parts[1].mT
    rotation = closest_rotation(matrix)
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3).double().expand(50, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(50).double())
    gain = (rotation * matrix).sum((-1, -2))
    others = closest_rotation(torch.randn(2000, 1, 3, 3, generator=generator, dtype=torch.float64))
    assert ((others * matrix).sum((-1, -2)) <= gain + 1e-9).all()


def test_mirrored_rays_still_give_rotations() -> None:
    k, pose = cameras(0.3, torch.float32)
    rays = rays_from_cameras(k, pose, SIZE)
    rays[:, :, 0] *= -1
    for mode in (k, "shared", "per_frame"):
        rotation = cameras_from_rays(rays, SIZE, mode).ref_from_cam[..., :3, :3]
        torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(2, 4))


def test_random_rays_give_finite_cameras() -> None:
    rays = torch.randn(8, 4, 6, 16, 16, generator=torch.Generator().manual_seed(0))
    for mode in ("shared", "per_frame"):
        assert all(tensor.isfinite().all() for tensor in cameras_from_rays(rays, SIZE, mode))


def test_rays_that_say_nothing_break_nothing() -> None:
    k, pose = cameras(0.3, torch.float32)
    rays = rays_from_cameras(k, pose, SIZE)
    rays[0, 2] = torch.nan
    rays[1, 2] = 0.0
    found = cameras_from_rays(rays, SIZE, k).ref_from_cam
    assert found[0, 2, :3].isnan().any()
    assert torch.equal(found[1, 2], torch.eye(4))
    others = [0, 1, 3]
    torch.testing.assert_close(found[:, others], pose[:, others], rtol=1e-4, atol=1e-5)


def test_precision_of_the_answer() -> None:
    k, pose = cameras(0.3, torch.float32)
    rays = rays_from_cameras(k, pose, SIZE)
    assert cameras_from_rays(rays, SIZE, k).ref_from_cam.dtype == torch.float32
    assert cameras_from_rays(rays.bfloat16(), SIZE).intrinsics.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = cameras_from_rays(rays_from_cameras(k, pose, SIZE), SIZE)
    for mine, theirs in zip(inside, cameras_from_rays(rays, SIZE), strict=True):
        assert torch.equal(mine, theirs)
