"""Geometry against stored numbers of L4P's public release; its conventions are converted here, at the border."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.geometry import (
    aligned_in_disparity,
    cameras_from_rays,
    first_from_cam,
    fit_affine,
    fit_scale,
    from_integer_centres,
    inverse,
    point_maps,
    rays_from_cameras,
    safe_inverse,
    sampled_points,
    similarity_between,
    to_integer_centres,
    track_points,
)

DATA = Path(__file__).parent / "data"
SIZE = (56, 56)


def matrices(stored: Tensor) -> Tensor:
    """`b 4 4 t` or `b 16 t` as `b t 4 4`."""
    return stored.reshape(len(stored), 4, 4, -1).permute(0, 3, 1, 2)


def frames_first(stored: Tensor) -> Tensor:
    """`b c t h w` as `b t c h w`."""
    return stored.transpose(1, 2)


def close(mine: Tensor, theirs: Tensor, tolerance: float = 2e-6) -> None:
    """Within a fraction of the largest number."""
    assert mine.shape == theirs.shape
    assert float((mine - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return load_file(DATA / "l4p_ops_cameras.safetensors")


@pytest.fixture(scope="module")
def intrinsics(stored: dict[str, Tensor]) -> Tensor:
    return from_integer_centres(matrices(stored["in/intrinsics"])[..., :3, :3])


def test_rays_of_cameras(stored: dict[str, Tensor], intrinsics: Tensor) -> None:
    world_from_cam = inverse(matrices(stored["in/extrinsics"]))
    close(world_from_cam, matrices(stored["in/pose"]))
    relative = first_from_cam(world_from_cam)
    close(inverse(relative), matrices(stored["out/cam_T_ref"]))
    close(rays_from_cameras(intrinsics, relative, SIZE), frames_first(stored["out/rays"]))
    in_world = rays_from_cameras(intrinsics, world_from_cam, SIZE, grid=(12, 20))
    close(in_world[:, ::2], frames_first(stored["out/rays_world_12x20"]))


@pytest.mark.parametrize(("kind", "rays"), [("clean", "out/rays"), ("noisy", "in/noisy_rays")])
def test_poses_of_rays_with_known_intrinsics(
    stored: dict[str, Tensor], intrinsics: Tensor, kind: str, rays: str
) -> None:
    cameras = cameras_from_rays(frames_first(stored[rays]), SIZE, intrinsics)
    close(cameras.ref_from_cam[..., :3, 3], stored[f"out/{kind}/centers"])
    close(inverse(cameras.ref_from_cam), matrices(stored[f"out/{kind}/ext"]))
    close(cameras.intrinsics, intrinsics)


@pytest.mark.parametrize(("kind", "rays"), [("clean", "out/rays"), ("noisy", "in/noisy_rays")])
@pytest.mark.parametrize(("mine", "theirs"), [("shared", "fixed"), ("per_frame", "variable")])
def test_intrinsics_of_rays(stored: dict[str, Tensor], kind: str, rays: str, mine: str, theirs: str) -> None:
    # The reference calls OpenCV's RANSAC with a threshold that keeps all rays: 1e-4 px is a hundredth of what any
    # other estimator (a linear one alone, say) would give on the noisy rays.
    cameras = cameras_from_rays(frames_first(stored[rays]), SIZE, mine)
    k = matrices(stored[f"out/{kind}/{theirs}/K"])[..., :3, :3]
    torch.testing.assert_close(to_integer_centres(cameras.intrinsics), k, rtol=0, atol=1e-4)
    close(inverse(cameras.ref_from_cam), matrices(stored[f"out/{kind}/{theirs}/ext"]))


def test_points_of_depth_and_of_tracks(stored: dict[str, Tensor], intrinsics: Tensor) -> None:
    pose = matrices(stored["in/pose"])
    theirs = stored["out/point_map"].permute(0, 2, 3, 4, 1)
    close(point_maps(stored["in/depth"][:, 0], intrinsics, pose)[:, ::2], theirs)
    # For tracks the reference takes positions with centres at +0.5 and intrinsics with integer ones.
    xy, depth = stored["in/track_xy"].permute(0, 3, 1, 2), stored["in/track_z"][:, :, 0].transpose(1, 2)
    mixed_up = matrices(stored["in/intrinsics"])[..., :3, :3]
    close(track_points(xy, depth, mixed_up), stored["out/track_cam"].permute(0, 3, 1, 2))
    close(track_points(xy, depth, mixed_up, pose), stored["out/track_world"].permute(0, 3, 1, 2))


def test_depth_alignment() -> None:
    stored = load_file(DATA / "l4p_ops_aligners.safetensors")
    source, target, full = stored["in/pred"], stored["in/target"], stored["in/full"]
    assert (source <= 0).any()
    assert torch.equal(safe_inverse(stored["in/safe_inverse"]), stored["out/safe_inverse"])
    plain = fit_affine(source, target)
    close(torch.stack(plain, -1), stored["out/affine_None/sol"], 1e-5)
    close(plain(full), stored["out/affine_None/applied"], 1e-5)
    inverted = fit_affine(safe_inverse(source), safe_inverse(target))
    close(torch.stack(inverted, -1), stored["out/affine_inverse/sol"], 1e-5)
    close(aligned_in_disparity(full, inverted), stored["out/affine_inverse/applied"], 1e-5)


@pytest.mark.parametrize("by", ["mean", "median"])
def test_depth_scale(by: str) -> None:
    stored = load_file(DATA / "l4p_ops_aligners.safetensors")
    # The reference's scale takes negative depths (6 of 3136 here) for positive ones, ours leaves them out.
    source, target, full = stored["in/pred"].abs(), stored["in/target"], stored["in/full"].abs()
    plain = fit_scale(source, target, by=by)
    close(plain.scale, stored[f"out/linear_None_{by}/sol"])
    close(plain(full), stored[f"out/linear_None_{by}/applied"].abs())
    inverted = fit_scale(safe_inverse(source), safe_inverse(target), by=by)
    sensible = stored["in/full"] > 0
    close(
        aligned_in_disparity(full, inverted)[sensible],
        stored[f"out/linear_inverse_{by}/applied"][sensible],
        1e-3 if by == "mean" else 2e-6,
    )


@pytest.mark.parametrize("quirk", [False, True])
def test_windows_joined_by_similarities(quirk: bool) -> None:
    stored = load_file(DATA / "l4p_joint_align.safetensors")
    if quirk:  # the given intrinsics, which windows after the first find their rotations with, are not the true ones
        stored |= load_file(DATA / "l4p_joint_align_quirk.safetensors")
    given = from_integer_centres(matrices(stored["in/intrinsics_b44t"])[..., :3, :3])
    depth = stored["in/depth_logits_w0"][:, 0].exp()
    poses, found = cameras_from_rays(frames_first(stored["in/rays_w0"]), SIZE)
    estimate = matrices(stored["out/traj3d_intrinsics_est_b16t"])[..., :3, :3]
    torch.testing.assert_close(to_integer_centres(found), estimate[:, :16], rtol=0, atol=1e-4)
    seen = [0, 3, 6]
    for window in (1, 2):
        start = 8 * window
        own = stored[f"in/depth_logits_w{window}"][:, 0].exp()
        rays = frames_first(stored[f"in/rays_w{window}"])
        own_poses = cameras_from_rays(rays, SIZE, given[:, start : start + 16]).ref_from_cam
        index = stored[f"in/point_subset_w{window}"]
        agreement = similarity_between(
            sampled_points(own[:, seen], found[:, seen], own_poses[:, seen], index),
            sampled_points(depth[:, start:][:, seen], found[:, seen], poses[:, start:][:, seen], index),
            threshold=0.01 * float(own[:, :8].quantile(0.98)),
        )
        assert agreement.found.all()
        close(agreement.similarity.scale, stored[f"out/align_w{window}/s"])
        close(agreement.similarity.rotation, stored[f"out/align_w{window}/R"])
        close(agreement.similarity.matrix(), stored[f"out/align_w{window}/T"], 1e-5)
        depth = torch.cat([depth[:, :start], agreement.similarity.depth(own)], 1)
        poses = torch.cat([poses[:, :start], agreement.similarity.poses(own_poses)], 1)
    close(poses, matrices(stored["out/traj3d_est_b16t"]), 1e-5)
    if not quirk:
        close(depth[..., 1::5, 1::5], stored["out/depth_est_b1thw"][:, 0])
