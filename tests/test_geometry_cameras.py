"""Pinhole cameras: cases worked out by hand, a generated scene, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fourd_core.geometry import (
    assumed_intrinsics,
    compose,
    cropped_intrinsics,
    first_from_cam,
    from_integer_centres,
    intrinsics_matrix,
    inverse,
    pixel_centres,
    point_maps,
    project,
    resized_intrinsics,
    rigid,
    sampled_points,
    to_integer_centres,
    track_points,
    transform,
    unproject,
)

SIZE = (40, 56)
CUBE = torch.tensor([0.3, -0.2, 4.0])
"""Centre of a cube with corners at -1 and 1 around it."""


def moving_cameras(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Intrinsics and poses of five cameras that move around the cube, turn, and zoom in."""
    turn = torch.linspace(-0.3, 0.4, 5, dtype=torch.float64)
    zero, one = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    yaw = torch.stack([turn.cos(), zero, turn.sin(), zero, one, zero, -turn.sin(), zero, turn.cos()], -1).view(5, 3, 3)
    roll = torch.stack([turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos(), zero, zero, zero, one], -1).view(5, 3, 3)
    place = torch.stack([-4 * turn, 1.5 * turn, 2 * turn.square()], -1)
    focal = torch.stack([50 + 10 * turn, 45 + 10 * turn], -1)
    k = intrinsics_matrix(focal, torch.tensor([29.0, 18.5], dtype=torch.float64).expand(5, 2))
    return k.to(dtype)[None], rigid(yaw @ roll, place).to(dtype)[None]


def cube_depth(xy: Tensor, intrinsics: Tensor, world_from_cam: Tensor) -> Tensor:
    """Depth at which one camera's pixel positions `n 2` see the cube, NaN beside it: slabs, in float64."""
    k, pose = intrinsics.double(), world_from_cam.double()
    ray = torch.cat([xy.double(), torch.ones(len(xy), 1, dtype=torch.float64)], 1) @ torch.linalg.inv(k).T
    ray = ray @ pose[:3, :3].T
    faces = torch.stack([CUBE - 1, CUBE + 1]).double()
    at = ((faces[:, None] - pose[:3, 3]) / ray).sort(dim=0).values
    enter, leave = at[0].max(-1).values, at[1].min(-1).values
    return torch.where(enter < leave, enter, torch.nan)


def test_a_known_camera_looks_at_a_known_point() -> None:
    k = intrinsics_matrix(torch.tensor([100.0, 50.0]), torch.tensor([32.0, 24.0]))
    # The camera stands at (1, 2, 3) and looks along the world's x; its own x is the world's -z, its y the world's y.
    rotation = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    pose = rigid(rotation, torch.tensor([1.0, 2.0, 3.0]))
    point = torch.tensor([[5.0, 4.0, 2.0]])  # 4 ahead, 2 below, 1 to the right
    seen = transform(inverse(pose), point)
    assert torch.equal(seen, torch.tensor([[1.0, 2.0, 4.0]]))
    xy = project(seen, k)
    assert torch.equal(xy, torch.tensor([[32 + 100 / 4, 24 + 50 / 2]]))
    assert torch.equal(transform(pose, unproject(xy, torch.tensor([4.0]), k)), point)


def test_skew_moves_x_by_y() -> None:
    k = intrinsics_matrix(torch.tensor([100.0, 50.0]), torch.tensor([32.0, 24.0]))
    k[0, 1] = 10.0
    point = torch.tensor([1.0, 2.0, 4.0])
    expected = k @ point / 4
    xy = project(point, k)
    torch.testing.assert_close(xy, expected[:2])
    torch.testing.assert_close(unproject(xy, torch.tensor(4.0), k), point)


def test_depth_of_a_moving_camera_coincides_in_the_world() -> None:
    k, poses = moving_cameras()
    xy = pixel_centres(SIZE).flatten(0, 1)
    depth = torch.stack([cube_depth(xy, k[0, t], poses[0, t]) for t in range(5)]).view(1, 5, *SIZE).float()
    points = point_maps(depth, k, poses)
    on_cube = depth.isfinite()
    assert on_cube.flatten(2).sum(-1).min() > 300
    surface = (points - CUBE).abs().max(-1).values[on_cube]
    assert (surface - 1).abs().max() < 1e-4
    for other in range(5):  # what frame 2 sees, looked up in another frame
        found = points[0, 2][on_cube[0, 2]]
        seen = transform(inverse(poses[0, other]), found)
        there = project(seen, k[0, other])
        cast = cube_depth(there, k[0, other], poses[0, other]).float()
        both_see = (cast - seen[:, 2]).abs() < 0.02  # else another face stands before it
        assert both_see.float().mean() > 0.6
        again = track_points(there[None, None], cast[None, None], k[:, other, None], poses[:, other, None])[0, 0]
        assert (again - found)[both_see].abs().max() < 1e-4


def test_corners_of_the_cube_are_where_they_are_seen() -> None:
    k, poses = moving_cameras(torch.float64)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    corners = (CUBE + signs).double()[None, None].expand(1, 5, 8, 3)
    cam = transform(inverse(poses)[:, :, None], corners)
    xy = project(cam, k[:, :, None])
    torch.testing.assert_close(track_points(xy, cam[..., 2], k, poses), corners)
    torch.testing.assert_close(track_points(xy, cam[..., 2], k), cam)


def test_resizing_and_cropping_frames_keep_what_a_pixel_sees() -> None:
    k, _ = moving_cameras()
    points = torch.tensor([[0.4, -0.3, 2.0], [-0.5, 0.2, 3.0]])[:, None].expand(2, 5, 3)
    xy = project(points, k[0])
    resized = resized_intrinsics(k[0], SIZE, (20, 84))
    torch.testing.assert_close(project(points, resized), xy * torch.tensor([84 / 56, 20 / 40]))
    torch.testing.assert_close(project(points, cropped_intrinsics(k[0], (3, 7))), xy - torch.tensor([7.0, 3.0]))


def test_integer_centres_and_back() -> None:
    k, _ = moving_cameras()
    ours = from_integer_centres(k)
    assert torch.equal(ours[..., :2, 2], k[..., :2, 2] + 0.5)
    assert torch.equal(ours[..., :2, :2], k[..., :2, :2])
    assert torch.equal(to_integer_centres(ours), k)
    # The rule of integer centres for resized frames, (c + 0.5) r - 0.5, is ours.
    halved = to_integer_centres(resized_intrinsics(ours, SIZE, (20, 28)))
    torch.testing.assert_close(halved[..., :2, 2], (k[..., :2, 2] + 0.5) / 2 - 0.5)


def test_assumed_intrinsics() -> None:
    expected = torch.tensor([[48.0, 0.0, 40.5], [0.0, 48.0, 24.5], [0.0, 0.0, 1.0]])
    assert torch.equal(assumed_intrinsics((48, 80)), expected)


def test_pixel_centres_of_frames_and_grids() -> None:
    assert pixel_centres((2, 3)).tolist()[1] == [[0.5, 1.5], [1.5, 1.5], [2.5, 1.5]]
    assert pixel_centres((2, 3), grid=(1, 2)).tolist() == [[[0.75, 1.0], [2.25, 1.0]]]
    assert pixel_centres((2, 3), like=torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_sampled_points_are_those_of_the_whole_maps() -> None:
    k, poses = moving_cameras()
    depth = torch.rand(1, 5, 6, 8, generator=torch.Generator().manual_seed(0)) + 1
    index = torch.tensor([0, 47, 48, 100, 239])
    whole = point_maps(depth, k, poses).flatten(1, 3)
    assert torch.equal(sampled_points(depth, k, poses, index), whole[:, index])


def test_poses_compose_and_begin_at_the_first() -> None:
    _, poses = moving_cameras(torch.float64)
    torch.testing.assert_close(compose(poses, inverse(poses)), torch.eye(4).double().expand(1, 5, 4, 4))
    torch.testing.assert_close(compose(poses[:, :1], first_from_cam(poses)), poses)
    torch.testing.assert_close(first_from_cam(poses)[:, 0], torch.eye(4).double()[None])


def test_autocast_rounds_no_point() -> None:
    k, poses = moving_cameras()
    depth = torch.rand(1, 5, 4, 4) + 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = point_maps(depth, k, compose(poses, first_from_cam(poses)))
    assert torch.equal(inside, point_maps(depth, k, compose(poses, first_from_cam(poses))))


@pytest.mark.parametrize("function", [unproject, lambda xy, z, k: project(unproject(xy, z, k) + 0.1, k)])
def test_gradcheck(function: object) -> None:
    k, _ = moving_cameras(torch.float64)
    generator = torch.Generator().manual_seed(0)
    xy = (torch.rand(2, 5, 2, generator=generator, dtype=torch.float64) * 40).requires_grad_()
    z = (torch.rand(2, 5, generator=generator, dtype=torch.float64) + 1).requires_grad_()
    assert torch.autograd.gradcheck(function, (xy, z, k[0].requires_grad_()))


def test_unknown_depth_stays_unknown() -> None:
    k, poses = moving_cameras()
    depth = torch.ones(1, 5, 2, 2)
    depth[0, 1, 0, 0] = torch.nan
    unknown = point_maps(depth, k, poses).isnan().any(-1)
    assert torch.equal(unknown, depth.isnan())
