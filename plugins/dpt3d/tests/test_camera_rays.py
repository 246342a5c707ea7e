"""L4P's cameras: windows of rays against the reference's stored numbers, and known cameras found again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from fourd_dpt3d.camera_rays import CameraRays
from fourd_dpt3d.dense3d import Depth3D
from fourd_dpt3d.shared_intrinsics import SharedIntrinsics
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.data import Cameras, Clip, Grid, Maps, Predictions, TokenMap, Tokens
from fourd_core.errors import RecipeError
from fourd_core.geometry import (
    assumed_intrinsics,
    closest_rotation,
    first_from_cam,
    from_integer_centres,
    intrinsics_matrix,
    rays_from_cameras,
    rigid,
    to_integer_centres,
)
from fourd_core.interfaces import Backbone, BackboneSpec, TapSpec, Use
from fourd_core.stitching import Overwrite, Stitcher
from fourd_core.stitching_geometry import JointSimilarity
from fourd_core.system import System

JOINT = Path(__file__).parents[3] / "tests" / "data"
"""Stored with the tests of the core's geometry, which needs them too."""
SPEC = BackboneSpec((TapSpec(96, (2, 14, 14)),) * 9, (2, 14, 14), (0.5,) * 3, (0.25,) * 3, window=(16, 8))
SIZE = (56, 56)


def close(mine: Tensor, theirs: Tensor, tolerance: float = 5e-6) -> None:
    """Within a fraction of the largest number."""
    assert mine.shape == theirs.shape
    assert float((mine - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


# ---- windows with stated rays


class Told(CameraRays):
    """Cameras from stated rays."""

    told: Tensor

    def rays(self, tokens: Tokens, clip: Clip) -> Tensor:
        return self.told


def told(rays: Tensor, **keys: Any) -> Told:
    head = Told(attrs.evolve(CameraRays.example(), **keys), CameraRays.example_spec())
    head.told = rays
    return head


class Stated(JointSimilarity):
    """Compares the points that the reference drew."""

    def __init__(self, points: Sequence[Tensor]) -> None:
        super().__init__()
        self.stated = iter(points)

    def points(self, count: int) -> Tensor:
        return next(self.stated)


def matrices(stored: Tensor) -> Tensor:
    """`b 4 4 t` or `b 16 t` as `b t 4 4`."""
    return stored.reshape(len(stored), 4, 4, -1).permute(0, 3, 1, 2)


def clip_of(rays: Tensor, size: tuple[int, int] = SIZE, intrinsics: Tensor | None = None) -> Clip:
    return Clip(torch.zeros(len(rays), rays.shape[1], 3, *size), intrinsics=intrinsics)


NOTHING = Tokens({})


def joint(quirk: bool) -> dict[str, Tensor]:
    stored = load_file(JOINT / "l4p_joint_align.safetensors")
    return stored | (load_file(JOINT / "l4p_joint_align_quirk.safetensors") if quirk else {})


def three_windows(stored: dict[str, Tensor], rule: JointSimilarity, as_released: bool) -> tuple[Cameras, Tensor]:
    """Cameras and depth of 32 frames in windows at 0, 8, 16; the first window's intrinsics are remembered.

    Args:
        as_released: find the rotations after the first window with the given intrinsics, as the reference does.
    """
    given = from_integer_centres(matrices(stored["in/intrinsics_b44t"])[..., :3, :3])[:, :16]
    memory = SharedIntrinsics(SharedIntrinsics.Config(), SPEC)
    stitcher = Stitcher({"cameras": rule, "depth": Depth3D(Depth3D.example(), Depth3D.example_spec()).stitch})
    state = memory.initial(NOTHING, clip_of(stored["in/rays_w0"].transpose(1, 2)))
    parts: list[Predictions] = []
    for w in range(3):
        head = told(stored[f"in/rays_w{w}"].transpose(1, 2))
        clip = clip_of(head.told)
        _, seen = memory.read(state, NOTHING, clip)
        assert (seen.intrinsics is None) == (w == 0)
        if as_released and w:
            cameras = head.cameras(head.told, SIZE, seen.intrinsics, given)
        else:
            cameras = head(NOTHING, seen)
        state = memory.update(state, NOTHING, clip, cameras, 8)
        depth = Maps(stored[f"in/depth_logits_w{w}"].exp().transpose(1, 2), kind="depth", unit=cameras.unit)
        joined = stitcher.add(Predictions({"depth": depth, "cameras": cameras}), 8)
        parts.append(Predictions({name: item.frames(0, 16 if w == 2 else 8) for name, item in joined.items()}))
    fields = {name: torch.cat([p.cameras.tensors()[name] for p in parts], 1) for name in parts[0].cameras.tensors()}
    return Cameras(**fields), torch.cat([p.depth for p in parts], 1)


@pytest.mark.parametrize("quirk", [False, True], ids=["right intrinsics given", "wrong intrinsics given"])
def test_three_windows_with_depth_are_the_references(quirk: bool) -> None:
    stored = joint(quirk)
    rule = Stated([stored[f"in/point_subset_w{w}"] for w in (1, 2)])
    cameras, depth = three_windows(stored, rule, as_released=True)
    close(cameras.world_from_cam, matrices(stored["out/traj3d_est_b16t"]), 1e-5)
    theirs = matrices(stored["out/traj3d_intrinsics_est_b16t"])[..., :3, :3]
    torch.testing.assert_close(to_integer_centres(cameras.intrinsics), theirs, rtol=0, atol=1e-4)
    if not quirk:
        close(depth.transpose(1, 2)[..., 1::5, 1::5], stored["out/depth_est_b1thw"])


def test_our_own_points_and_intrinsics_are_as_good() -> None:
    """The reference moves by 3e-3 with its random numbers, and suffers from wrong intrinsics that nothing calls for."""
    stored = joint(quirk=True)
    truth = first_from_cam(torch.linalg.inv(matrices(stored["gt/extrinsics"])))
    cameras, _ = three_windows(stored, JointSimilarity(), as_released=False)
    close(cameras.world_from_cam, truth, 2e-3)
    released, _ = three_windows(stored, JointSimilarity(), as_released=True)
    assert (released.world_from_cam - truth).abs().max() > 0.01


# ---- known cameras


def known_cameras(batch: int = 2, frames: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    near = torch.eye(3) + 0.1 * torch.randn(batch * frames, 3, 3, generator=generator)
    moves = 0.5 * torch.randn(batch * frames, 3, generator=generator)
    poses = rigid(closest_rotation(near), moves).unflatten(0, (batch, frames))
    focal = torch.tensor([[70.0, 75.0], [90.0, 80.0]])[:batch, None].expand(batch, frames, 2)
    centre = torch.tensor([47.3, 25.1]).expand_as(focal)
    return first_from_cam(poses), intrinsics_matrix(focal, centre)


@pytest.mark.parametrize("grid", [4, 16])
@pytest.mark.parametrize("how", ["shared", "per_frame", "known"])
def test_known_cameras_come_back(how: str, grid: int) -> None:
    poses, k = known_cameras()
    size = (50, 90)
    head = told(rays_from_cameras(k, poses, size, (grid, grid)), ray_grid=grid, intrinsics=how)
    cameras = head(NOTHING, clip_of(head.told, size, k if how == "known" else None))
    torch.testing.assert_close(cameras.world_from_cam, poses, rtol=0, atol=1e-5)
    torch.testing.assert_close(cameras.intrinsics, k, rtol=0, atol=2e-3)
    assert cameras.unit == "up to scale"


def test_stated_intrinsics_are_used_and_reported() -> None:
    poses, k = known_cameras()
    head = told(rays_from_cameras(k, poses, SIZE))
    stated = k + torch.tensor([5.0, -5.0, 0.0])[:, None]
    cameras = head(NOTHING, clip_of(head.told, SIZE, stated))
    assert torch.equal(cameras.intrinsics, stated)
    assert (cameras.world_from_cam - poses)[..., :3, :3].abs().max() > 0.03
    torch.testing.assert_close(cameras.world_from_cam[..., :3, 3], poses[..., :3, 3], rtol=0, atol=1e-5)


def test_rotations_found_with_assumed_intrinsics() -> None:
    poses, k = known_cameras()
    head = told(rays_from_cameras(k, poses, SIZE), later_poses="assumed")
    first = head(NOTHING, clip_of(head.told))
    assert torch.equal(first.intrinsics, told(head.told)(NOTHING, clip_of(head.told)).intrinsics)
    later = head(NOTHING, clip_of(head.told, SIZE, k))
    assert torch.equal(later.intrinsics, k)
    guess = assumed_intrinsics(SIZE).expand_as(k)
    assert torch.equal(later.world_from_cam, told(head.told)(NOTHING, clip_of(head.told, SIZE, guess)).world_from_cam)
    assert (later.world_from_cam - poses).abs().max() > 1e-3


def test_intrinsics_that_must_be_known_and_are_not() -> None:
    poses, k = known_cameras()
    head = told(rays_from_cameras(k, poses, SIZE), intrinsics="known")
    with pytest.raises(RecipeError, match=r"nobody states them.*data\.intrinsics = \[fx, fy, cx, cy\].*shared"):
        head(NOTHING, clip_of(head.told))


def test_assumed_intrinsics_where_some_are_stated() -> None:
    use = Use({}, window=16, stride=8, long=True, intrinsics=True)
    told(torch.empty(0), stitch="overwrite").check_use(use)
    assumed = told(torch.empty(0), stitch="overwrite", later_poses="assumed")
    assumed.check_use(attrs.evolve(use, intrinsics=False))
    with pytest.raises(ValueError, match=r"the data states some; leave later_poses or data\.intrinsics out"):
        assumed.check_use(use)


def test_the_stitch_is_configured() -> None:
    joint = told(torch.empty(0), depth="z", point_share=0.5).stitch
    assert isinstance(joint, JointSimilarity)
    assert (joint.partners, joint.share) == (("z",), 0.5)
    assert isinstance(told(torch.empty(0), stitch="overwrite").stitch, Overwrite)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="point_share"):
            CameraRays.Config(point_share=share)
    with pytest.raises(ValueError, match="ray_grid"):
        CameraRays.Config(ray_grid=3)


def test_gradients_go_through_the_cameras() -> None:
    head = CameraRays(CameraRays.example(), CameraRays.example_spec())
    layers = {tap: TokenMap(torch.randn(1, 24, 16), Grid(2, 3, 4)) for tap in head.taps}
    clip = Clip(torch.zeros(1, 4, 3, 24, 32))
    assert (head.rays(Tokens(layers), clip).mean((0, 1, 3, 4)) - torch.eye(6)[2]).abs().max() < 0.5  # they look ahead
    cameras = head(Tokens(layers), clip)
    (cameras.world_from_cam.square().sum() + cameras.intrinsics.log1p().abs().nansum()).backward()
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all()


# ---- in a system


class Echo(Backbone):
    """Every layer is the same random projection of the patches."""

    spec = CameraRays.example_spec()

    @attrs.frozen
    class Config:
        """No keys."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Conv3d(3, 16, (2, 8, 8), (2, 8, 8))

    def forward(self, frames: Tensor, taps: Sequence[int]) -> Tokens:
        maps = self.project(frames.transpose(1, 2)).transpose(1, 2)
        return Tokens({tap: TokenMap.from_maps(maps) for tap in taps})


def system(**keys: Any) -> System:
    torch.manual_seed(0)
    head = CameraRays(attrs.evolve(CameraRays.example(), **keys), Echo.spec)
    heads = {"cameras": head, "depth": Depth3D(Depth3D.example(), Echo.spec)}
    return System(Echo(), heads, {"cameras": SharedIntrinsics(SharedIntrinsics.Config(), Echo.spec)})


@torch.no_grad()
def test_the_first_windows_intrinsics_hold_for_the_video() -> None:
    net = system(intrinsics="per_frame")
    clips = [Clip(torch.rand(2, 8, 3, 24, 32, generator=torch.Generator().manual_seed(n))) for n in range(3)]
    states: dict[str, Any] = {}
    seen = []
    for clip in clips:
        predictions, states = net.step(clip, states, 4)
        seen.append(predictions.cameras.intrinsics)
    assert (seen[0][:, 0] - seen[0][:, 1]).abs().max() > 0.1
    for later in seen[1:]:
        assert torch.equal(later, seen[0][:, :1].expand_as(later))
    stated = torch.eye(3).expand(2, 8, 3, 3) * 40
    given = attrs.evolve(clips[1], intrinsics=stated)
    assert torch.equal(net.step(given, states, 4)[0].cameras.intrinsics, stated)


@pytest.mark.parametrize("how", ["shared", "per_frame", "known"])
def test_on_the_meta_device(how: str) -> None:
    """Where a recipe is checked: shapes and no numbers."""
    with torch.device("meta"):
        net = system(intrinsics=how)
        predictions = net(Clip(torch.empty(1, 16, 3, 24, 32)))
    assert predictions.cameras.world_from_cam.shape == (1, 16, 4, 4)
    assert predictions.cameras.intrinsics.shape == (1, 16, 3, 3)
    assert predictions.depth.is_meta


def test_the_memory_keeps_the_first_intrinsics_whatever_comes() -> None:
    memory, k = SharedIntrinsics(SharedIntrinsics.Config(), SPEC), known_cameras()[1]
    clip, poses = Clip(torch.zeros(2, 6, 3, 8, 8)), torch.eye(4).expand(2, 6, 4, 4)
    state = memory.update(memory.initial(NOTHING, clip), NOTHING, clip, Cameras(poses, k), 1)
    state = memory.update(state, NOTHING, clip, Cameras(poses, k + 1), 1)
    remembered = memory.read(state, NOTHING, clip)[1].intrinsics
    assert remembered is not None
    assert torch.equal(remembered, k)


def test_a_first_window_without_intrinsics_is_not_remembered() -> None:
    """Of rays that all look the same way none are found: the next window's are."""
    memory, (poses, k) = SharedIntrinsics(SharedIntrinsics.Config(), SPEC), known_cameras(1)
    alike = torch.zeros(1, 6, 6, 16, 16)
    alike[:, :, 2] = 1
    clip = clip_of(alike)
    state = memory.initial(NOTHING, clip)
    for rays in (alike, rays_from_cameras(k, poses, SIZE)):
        assert memory.read(state, NOTHING, clip)[1].intrinsics is None
        state = memory.update(state, NOTHING, clip, told(rays)(NOTHING, clip), 1)
    remembered = memory.read(state, NOTHING, clip)[1].intrinsics
    assert remembered is not None
    torch.testing.assert_close(remembered, k, rtol=0, atol=2e-3)


def test_a_memory_of_another_head() -> None:
    clip = Clip(torch.zeros(1, 2, 3, 8, 8))
    memory = SharedIntrinsics(SharedIntrinsics.Config(), SPEC)
    with pytest.raises(RecipeError, match="serves a head that predicts cameras"):
        memory.update(memory.initial(NOTHING, clip), NOTHING, clip, Maps(clip.frames), 1)
