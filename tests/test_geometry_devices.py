"""Geometry on other devices: nothing is made beside the input's device, and float32 does where there is no float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fourd_core import geometry
from fourd_core.geometry import numerics


def empty(*shape: int) -> Tensor:
    """A tensor of a device that no other device's tensor may meet in an operation."""
    return torch.empty(*shape, device="meta")


DEPTH, K, POSES, RAYS = empty(2, 4, 8, 8), empty(2, 4, 3, 3), empty(2, 4, 4, 4), empty(2, 4, 6, 5, 5)
POINTS = empty(2, 9, 3)

CALLS: dict[str, Callable[[], object]] = {
    "assumed_intrinsics": lambda: geometry.assumed_intrinsics((3, 4), "meta"),
    "resized_intrinsics": lambda: geometry.resized_intrinsics(K, (2, 2), (3, 3)),
    "from_integer_centres": lambda: geometry.from_integer_centres(K),
    "point_maps": lambda: geometry.point_maps(DEPTH, K, POSES),
    "track_points": lambda: geometry.track_points(empty(2, 4, 5, 2), empty(2, 4, 5), K, POSES),
    "sampled_points": lambda: geometry.sampled_points(DEPTH, K, POSES, torch.zeros(7, dtype=torch.long, device="meta")),
    "project": lambda: geometry.project(empty(2, 4, 3), K),
    "first_from_cam": lambda: geometry.first_from_cam(POSES),
    "rays_from_cameras": lambda: geometry.rays_from_cameras(K, POSES, (8, 8)),
    "cameras_from_rays, known": lambda: geometry.cameras_from_rays(RAYS, (8, 8), K),
    "cameras_from_rays, shared": lambda: geometry.cameras_from_rays(RAYS, (8, 8)),
    "cameras_from_rays, per frame": lambda: geometry.cameras_from_rays(RAYS, (8, 8), "per_frame"),
    "umeyama": lambda: geometry.umeyama(POINTS, POINTS, empty(2, 9)).poses(POSES),
    "similarity_between": lambda: geometry.similarity_between(POINTS, POINTS, 0.1).similarity.matrix(),
    "fit_affine": lambda: geometry.aligned_in_disparity(DEPTH, geometry.fit_affine(DEPTH, DEPTH)),
    "fit_affine_robust": lambda: geometry.fit_affine_robust(DEPTH, DEPTH),
    "fit_scale": lambda: geometry.fit_scale(DEPTH, DEPTH),
}


@pytest.mark.parametrize("name", CALLS)
def test_everything_stays_on_the_input_s_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "equal", lambda *_: True)  # has no answer without numbers
    answer = CALLS[name]()
    for tensor in answer if isinstance(answer, tuple) else (answer,):
        assert isinstance(tensor, Tensor)
        assert tensor.device.type == "meta"


def test_single_precision_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "wide", lambda _: torch.float32)
    draw = torch.Generator().manual_seed(0)
    k = geometry.intrinsics_matrix(torch.tensor([200.0, 190.0]), torch.tensor([110.0, 115.0])).expand(1, 6, 3, 3)
    turn = geometry.closest_rotation(torch.eye(3) + 0.3 * torch.randn(1, 6, 3, 3, generator=draw))
    poses = geometry.first_from_cam(geometry.rigid(turn, torch.randn(1, 6, 3, generator=draw)))
    rays = geometry.rays_from_cameras(k, poses, (224, 224))
    for mode in (k, "shared", "per_frame"):
        found = geometry.cameras_from_rays(rays, (224, 224), mode)
        assert (found.ref_from_cam - poses).abs().max() < 1e-4
        assert (found.intrinsics - k).abs().max() < 0.02
    points = torch.randn(1, 500, 3, generator=draw)
    world = geometry.Similarity(torch.tensor([1.7]), turn[:, 1], torch.tensor([[1.0, 2.0, 3.0]]))
    target = torch.cat([5 * torch.randn(1, 250, 3, generator=draw), world.points(points)[:, 250:]], 1)
    agreement = geometry.similarity_between(points, target, 0.01)
    assert (agreement.similarity.matrix() - world.matrix()).abs().max() < 1e-4
    line = torch.arange(100.0)[None, :, None] * torch.tensor([1.0, 2.0, 3.0])
    assert not geometry.similarity_between(line, line, 0.01).found.any()
