"""Ground truth of generated scenes, checked by what it must agree with: itself in other frames, and the pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fourd_synth.dataset import Synth
from fourd_synth.generating import Generator, Request
from fourd_synth.rendering import Rendered, Window
from fourd_synth.tracing import Rays, trace
from fourd_synth.views import Views
from jaxtyping import Float
from torch import Tensor

from fourd_core.data import Clip, Predictions
from fourd_core.geometry import pixel_centres, project, transform, unproject

CPU = torch.device("cpu")
PLAIN = {"exposure": 0.0, "noise": 0.0, "blur": 0.0, "patterns": 12, "texture_pixels": 64}
TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-8}
"""Pixels; the promise is 0.01."""


def generator(dtype: torch.dtype = torch.float32, **settings: object) -> Generator:
    config = Synth.Config(**{"pixels": 56, "frames": 8, **PLAIN, **settings})  # type: ignore[arg-type]
    made = Synth(config).generator("train")
    return Generator(config, made.seed, made.bank, dtype)


def clips(made: Generator, count: int = 10, crop: int | None = None, tracks: int = 48) -> tuple[Clip, Predictions]:
    return made.clips(range(count), Request(5, crop, tracks, CPU))


def pixels_of(truth: Predictions) -> Float[Tensor, "h w 2"]:
    return pixel_centres(tuple(truth.depth.shape[-2:])).to(truth.depth)


def known_flow(truth: Predictions) -> tuple[Tensor, Tensor]:
    """Flow `b t h w 2` of all but the first frame, and where it is known."""
    flow = truth.flow[:, 1:].movedim(2, -1)
    return flow, flow.isfinite().all(-1)


def camera_flow(truth: Predictions) -> Float[Tensor, "b t h w 2"]:
    """Where depth and cameras alone say that each pixel's content was in the frame before, if it rests."""
    poses, pinhole = truth.cameras.world_from_cam, truth.cameras.intrinsics
    here = pixels_of(truth)
    points = unproject(here, truth.depth[:, :, 0], pinhole[:, :, None, None])
    world = transform(poses[:, :, None, None], points)
    back = torch.linalg.inv(poses[:, :-1].double()).to(poses)
    xy = project(transform(back[:, :, None, None], world[:, 1:]), pinhole[:, :-1, None, None])
    return xy - here


def check_geometry(truth: Predictions, tolerance: float) -> None:
    """Depth, cameras, flow, motion and tracks agree with each other."""
    flow, known = known_flow(truth)
    motion = truth.motion[:, 1:, 0]
    residual = (camera_flow(truth) - flow).norm(dim=-1)
    rests = known & (motion == 0)
    assert rests.float().mean() > 0.3
    assert residual[rests].max() < tolerance
    said, moves = known & (residual > 0.05), known & (motion == 1)
    sure = known & motion.isfinite()
    assert (said & moves).sum() / ((said | moves) & sure).sum() > 0.93
    tracks, here = truth.tracks, pixels_of(truth)
    cell = tracks.xy.floor().long().clamp(0, here.shape[0] - 1)
    drawn = (tracks.xy - cell - 0.5).abs().amax(-1) < 1e-4  # in the frame in which a point was drawn
    drawn &= tracks.visibility.bool() & tracks.live
    b, t, n = drawn.nonzero(as_tuple=True)
    assert len(b) >= 0.98 * drawn.shape[0] * drawn.shape[2]
    x, y = cell[b, t, n].unbind(-1)
    depth = truth.depth[b, t, 0, y, x]
    assert ((tracks.depth[b, t, n] - depth).abs() / depth).max() < tolerance / 100
    later = (t > 0) & tracks.live[b, (t - 1).clamp(min=0), n]
    b, t, n, x, y = (index[later] for index in (b, t, n, x, y))
    way = tracks.xy[b, t - 1, n] - tracks.xy[b, t, n]
    mapped = truth.flow[b, t, :, y, x]
    both = mapped.isfinite().all(-1)
    assert both.float().mean() > 0.95
    assert (way - mapped)[both].abs().max() < tolerance
    world = transform(truth.cameras.world_from_cam[:, :, None], tracks.xyz_camera)
    assert torch.allclose(world, tracks.xyz, atol=1e-4)
    ahead = tracks.live
    xy = project(tracks.xyz_camera, truth.cameras.intrinsics[:, :, None])
    assert (xy - tracks.xy)[ahead].abs().max() < tolerance * 10
    assert torch.equal(tracks.xyz_camera[..., 2], tracks.depth)


def warped(clip: Clip, truth: Predictions) -> tuple[Tensor, Tensor]:
    """Colours of the frame before at the ends of the flow, `b t h w 3`; mean absolute difference from the frame."""
    flow, _ = known_flow(truth)
    ends = (pixels_of(truth) + flow.nan_to_num(0.0)) / flow.shape[2] * 2 - 1
    before = F.grid_sample(
        clip.frames[:, :-1].flatten(0, 1), ends.flatten(0, 1), align_corners=False, padding_mode="border"
    )
    error = (before.unflatten(0, flow.shape[:2]) - clip.frames[:, 1:]).abs().mean(2)
    return error, (clip.frames[:, :-1] - clip.frames[:, 1:]).abs().mean(2)


def check_colours(clip: Clip, truth: Predictions, share: float) -> None:
    """What is seen in both frames has one colour; taking each pixel where it stands does far worse."""
    error, still = warped(clip, truth)
    seen = truth["occluded"].values[:, 1:, 0] == 0
    assert seen.float().mean() > 0.6
    assert error[seen].mean() < share * still[seen].mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layers", [0.0, 1.0])
def test_depth_cameras_flow_motion_and_tracks_agree(dtype: torch.dtype, layers: float) -> None:
    _, truth = clips(generator(dtype, layers=layers))
    if not layers:
        check_geometry(truth, TOLERANCE[dtype])
    else:
        moving = truth.motion[:, 1:, 0] == 1
        assert moving.float().mean() > 0.3
        assert torch.equal(truth.cameras.world_from_cam, torch.eye(4, dtype=dtype).expand(10, 5, 4, 4))
        flow, known = known_flow(truth)
        rests = known & (truth.motion[:, 1:, 0] == 0)
        assert rests.any()
        assert flow[rests].abs().max() < TOLERANCE[dtype]


def test_pictures_agree_with_flow_where_content_is_seen_in_both_frames() -> None:
    for settings in ({"layers": 0.0}, {"layers": 1.0}):
        clip, truth = clips(generator(shading="plain", speed=1.5, **settings))
        check_colours(clip, truth, 0.45)
        error, _ = warped(clip, truth)
        flow, known = known_flow(truth)
        ends = pixels_of(truth) + flow
        inside = ((ends > 0) & (ends < 56)).all(-1) & known
        hidden = inside & (truth["occluded"].values[:, 1:, 0] == 1)
        assert hidden.sum() > 100
        assert error[hidden].mean() > 3 * error[inside & ~hidden].mean()


def rendered(made: Generator, count: int) -> tuple[Rendered, Views, Tensor]:
    views = made.views(range(count), np.zeros(count, dtype=np.int64), 4)
    window = Window(torch.zeros(count, 2, dtype=torch.int64), (56, 56), 56)
    frames = (torch.arange(4) + 1).expand(count, 4)
    return made.rendered(views, window, frames, (-1, 1), pictures=False), views, frames


def test_forward_and_backward_flow_cancel_exactly_where_nothing_is_hidden() -> None:
    maps, _, _ = rendered(generator(), 10)
    back, forth = maps.flow[-1].flow[:, 1:], maps.flow[1].flow[:, :-1]
    hidden = maps.flow[-1].occluded[:, 1:, 0]
    ends = (pixel_centres((56, 56)) + back.movedim(2, -1)) / 28 - 1
    there = F.grid_sample(forth.nan_to_num(99.0).flatten(0, 1), ends.nan_to_num(9.0).flatten(0, 1), align_corners=False)
    there = there.unflatten(0, back.shape[:2])
    rest = (back + there).square().sum(2)
    agrees = rest < 0.01 * (back.square().sum(2) + there.square().sum(2)) + 0.25
    assert agrees[hidden == 0].float().mean() > 0.985
    inside = (ends.abs() < 1).all(-1)
    assert agrees[(hidden == 1) & inside].float().mean() < 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ray_to_where_content_was_meets_it_or_what_hides_it(dtype: torch.dtype) -> None:
    maps, views, frames = rendered(generator(dtype), 8)
    flow, hidden = maps.flow[-1].flow, maps.flow[-1].occluded[:, :, 0]
    centres = (pixel_centres((56, 56)).to(dtype) + flow.movedim(2, -1)).nan_to_num(28.0)
    focal = (views.focal * 56).view(-1, 1, 1, 1)
    x, y = ((centres[..., i] - 28) / focal for i in (0, 1))
    frame = (frames - 1 + torch.arange(8)[:, None] * views.frames).flatten()
    hits = trace(views, Rays(frame, x.flatten(0, 1), y.flatten(0, 1)))  # type: ignore[arg-type]
    z, slot = hits.z.view(hidden.shape), hits.slot.view(hidden.shape)
    inside = ((centres >= 0) & (centres < 56)).all(-1) & flow.isfinite().all(2)
    seen, covered = inside & (hidden == 0), inside & (hidden == 1)
    assert covered.sum() > 300
    assert (slot == maps.slot[:, :, 0])[seen].all()
    # Carried back from there by the flow of that frame's hit: the pixel that was left.
    assert hidden.isnan().float().mean() < 2e-4  # what lies only a little behind is hidden too
    mine = maps.slot[:, :, 0]
    depth_before = _depth_before(views, maps, frames, dtype)
    assert ((z - depth_before).abs() / depth_before)[seen].max() < 2e-4
    assert (z < depth_before)[covered].all()
    assert (mine[covered] != slot[covered]).float().mean() > 0.5


def _depth_before(views: Views, maps: Rendered, frames: Tensor, dtype: torch.dtype) -> Tensor:
    """z of each pixel's content in the frame before, by matrices of this test's own."""
    matrix = torch.eye(4, dtype=torch.float64).repeat(views.to_camera.shape[1], 1, 1)
    matrix[:, :3, :3] = views.to_camera[:9].T.reshape(-1, 3, 3)
    matrix[:, :3, 3] = views.to_camera[9:].T
    things = views.counts.things
    row = (frames + torch.arange(len(frames))[:, None] * views.frames)[:, :, None, None] * things + maps.slot[:, :, 0]
    focal = (views.focal.double() * 56).view(-1, 1, 1, 1)
    x, y = ((pixel_centres((56, 56))[..., i] - 28) / focal for i in (0, 1))
    z = maps.depth[:, :, 0].double()
    point = torch.stack([x * z, y * z, z, torch.ones_like(z)], -1)
    there = matrix.unique(dim=0)  # a sanity check: scenes differ
    assert len(there) > things
    return (matrix[row - things] @ torch.linalg.solve(matrix[row], point[..., None]))[..., 2, 0].to(dtype)


def test_a_crop_is_the_same_window_of_the_whole_picture() -> None:
    made = generator(exposure=0.2, noise=0.03)
    (whole, truth), (part, cut) = clips(made, 6), clips(made, 6, crop=24)
    assert part.frames.shape[-1] == 24
    corners = (28 - part.intrinsics[:, 0, :2, 2]).round().long()  # type: ignore[index]
    assert len(corners.unique(dim=0)) > 3
    for clip, (x, y) in enumerate(corners.tolist()):
        window = (clip, slice(None), slice(None), slice(y, y + 24), slice(x, x + 24))
        assert torch.equal(part.frames[clip], whole.frames[window])
        for name in ("depth", "motion"):
            assert torch.equal(cut[name].values[clip].nan_to_num(-1), truth[name].values[window].nan_to_num(-1))
        mine, theirs = cut.flow[clip], truth.flow[window]
        both = mine.isfinite() & theirs.isfinite()
        assert both.float().mean() > 0.7
        assert torch.equal(mine[both], theirs[both])
    inside = ((cut.tracks.xy >= 0) & (cut.tracks.xy < 24)).all(-1)
    assert not (cut.tracks.visibility.bool() & ~inside).any()
    assert (cut.tracks.live & ~inside).any()


@pytest.mark.parametrize("shading", ["plain", "lambert"])
def test_every_reuse_of_a_scene_keeps_its_truth_exact(shading: str) -> None:
    made = generator(reuse=8, shading=shading, speed=1.5)
    clip, truth = made.clips(range(24), Request(5, None, 32, CPU))
    check_geometry(truth, TOLERANCE[torch.float32])
    if shading == "plain":
        check_colours(clip, truth, 0.45)
    first = truth.depth.view(3, 8, 5, 56, 56)
    for scene in first:
        ways = {
            (mirror, back)
            for variant in scene
            for mirror in (False, True)
            for back in (False, True)
            if torch.equal(scene[0], _turned(variant, mirror, back))
        }
        assert len(ways) > 1  # a scene mirrored, or backwards, and as it was


def _turned(depth: Tensor, mirror: bool, back: bool) -> Tensor:
    depth = depth.flip(-1) if mirror else depth
    return depth.flip(0) if back else depth
