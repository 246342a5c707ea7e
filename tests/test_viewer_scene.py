"""The viewer's scene: points, cameras and tracks stand where the generated scene has them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from known_scene import FLOOR, HALF, WALL, KnownScene
from torch import Tensor

from fourd_core.errors import RunError
from fourd_core.geometry import project, transform
from fourd_core.media.arrays import ArrayStore
from fourd_core.viewer import scene as module
from fourd_core.viewer.scene import edges, gather

VIDEO = KnownScene(frames=10, size=(72, 96))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArrayStore:
    return VIDEO.store(tmp_path_factory.mktemp("scene") / "a.zarr")


def in_the_room(points: Tensor) -> Tensor:
    """From the world of the store, which is the first camera's frame, to the room's."""
    return transform(VIDEO.world_from_cam[0], points)


def distance_to_surfaces(points: Tensor, frame: int) -> Tensor:
    """How far points of the room are from the floor, the wall or the box."""
    local = points - VIDEO.centre[frame]
    out = (local.abs() - HALF).clamp(min=0).norm(dim=-1)
    deep = (HALF - local.abs()).amin(-1).clamp(min=0)
    return torch.stack([(points[:, 1] - FLOOR).abs(), (points[:, 2] - WALL).abs(), out + deep]).amin(0)


def test_points_of_all_moments_lie_on_the_surfaces_of_one_world(store: ArrayStore) -> None:
    scene = gather(store, VIDEO, frames=4)
    assert [moment.frame for moment in scene.moments] == [0, 3, 6, 9]
    assert scene.notes == ["4 of 10 frames"]
    assert scene.spacing == pytest.approx(1)
    for moment in scene.moments:
        assert 0.9 * 72 * 96 < len(moment.points) < 72 * 96
        points = in_the_room(moment.points)
        assert distance_to_surfaces(points, moment.frame).max() < 1e-4
        torch.testing.assert_close(
            VIDEO.world_from_cam[0] @ moment.world_from_cam, VIDEO.world_from_cam[moment.frame], atol=1e-5, rtol=0
        )
        # What is orange is the box, and it has its place of this frame.
        orange = moment.colours[:, 0] > moment.colours[:, 2]
        assert orange.sum() > 100
        assert ((points[orange] - VIDEO.centre[moment.frame]).abs() <= HALF + 1e-4).all()


def test_colours_are_those_of_the_pixels(store: ArrayStore) -> None:
    moment = gather(store, VIDEO, frames=2).moments[1]
    camera = torch.linalg.inv(moment.world_from_cam)
    column, row = project(transform(camera, moment.points), moment.intrinsics).long().unbind(-1)
    assert torch.equal(moment.colours, VIDEO.rgb[9][:, row, column].T)
    assert moment.picture.shape == (3, 120, 160)


def test_the_number_of_points_is_bounded(store: ArrayStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS", 3000)
    few = gather(store, VIDEO, frames=10)
    assert sum(len(moment.points) for moment in few.moments) <= 3000
    assert min(len(moment.points) for moment in few.moments) > 100
    assert few.spacing == 5
    monkeypatch.setattr(module, "TRACKS", 10)
    assert gather(store, VIDEO, frames=2).notes == ["2 of 10 frames", "10 of 64 tracks"]


def test_tracks_stand_where_their_points_are(store: ArrayStore) -> None:
    paths = gather(store, VIDEO, frames=10).paths
    assert paths is not None
    truth = VIDEO.tracks()[1]
    camera = (truth.xy[0] - VIDEO.camera[:2, 2]) / VIDEO.camera[[0, 1], [0, 1]] * truth.depth[0, ..., None]
    expected = transform(VIDEO.world_from_cam[:, None], torch.cat([camera, truth.depth[0, ..., None]], -1))
    # The sink brought the tracks to the unit of the depth maps, by what it found at the nearest pixels.
    assert (in_the_room(paths.xyz) - expected).abs().max() < 1e-2
    assert torch.equal(paths.xyz, torch.from_numpy(store["track.xyz"][:]))
    assert torch.equal(paths.seen, truth.visibility[0] > 0.5)
    # A point of the wall does not move in the world, though the camera does.
    still = (expected[:, :, 2] - WALL).abs().amax(0) < 1e-4
    assert still.sum() > 10
    assert (paths.xyz[:, still] - paths.xyz[:1, still]).abs().max() < 1e-2


def test_without_cameras_one_is_assumed_and_said(tmp_path: Path) -> None:
    scene = gather(VIDEO.store(tmp_path / "a.zarr", ["camera"]), VIDEO, frames=3)
    assert "assumed focal length of 72 pixels" in scene.notes[1]
    for moment in scene.moments:
        assert torch.equal(moment.world_from_cam, torch.eye(4))
        assert moment.intrinsics[0, 0] == moment.intrinsics[1, 1] == 72
        z = moment.points[:, 2]
        assert z.min() >= VIDEO.depth[moment.frame].min() - 1e-5
        assert z.max() <= VIDEO.depth[moment.frame].max() + 1e-5
    paths = scene.paths
    assert paths is not None
    torch.testing.assert_close(paths.xyz[..., 2], VIDEO.tracks()[1].depth[0, [0, 4, 9]], rtol=1e-3, atol=0)


def test_a_video_that_knows_its_pinhole(tmp_path: Path) -> None:
    video = KnownScene(frames=2)
    video.intrinsics = video.camera
    scene = gather(video.store(tmp_path / "a.zarr", ["camera"]), video, frames=1)
    assert torch.equal(scene.moments[0].intrinsics, video.camera)
    assert scene.notes[1].endswith("with the video's own pinhole")


def test_maps_on_the_grid_of_a_view(tmp_path: Path) -> None:
    """A crop's maps, stored as they are: the points lie on the surfaces all the same."""
    seen = {"video_size": [72, 96], "resized": [72, 96], "size": [40, 48], "corner": [20, 30]}
    store = ArrayStore(tmp_path / "a.zarr", "float32", {"pixels": "view", "view": seen})
    store.append("depth", VIDEO.depth[:2, None, 20:60, 30:78], kind="depth")
    poses = torch.linalg.inv(VIDEO.world_from_cam[0]) @ VIDEO.world_from_cam[:2]
    store.append("camera.world_from_cam", poses, kind="world_from_cam", axes="t row column")
    store.append("camera.intrinsics", VIDEO.camera.expand(2, 3, 3), kind="intrinsics", axes="t row column")
    store.finish()
    moment = gather(store, VIDEO, frames=2).moments[1]
    assert len(moment.points) > 1500
    assert distance_to_surfaces(in_the_room(moment.points), 1).max() < 1e-4
    orange = moment.colours[:, 0] > moment.colours[:, 2]
    assert ((in_the_room(moment.points[orange]) - VIDEO.centre[1]).abs() <= HALF + 1e-4).all()


def test_edges() -> None:
    """A slope is no edge; a step is one on both sides; so is the border of what is unknown."""
    slope = torch.linspace(2, 4, 60).expand(20, 60).contiguous()
    assert not edges(slope, 100).any()
    steep = torch.linspace(2, 40, 60).expand(20, 60).contiguous()  # 32 % of the first pixel's depth in one step
    assert edges(steep, 100)[:, 0].all()
    assert not edges(steep, 30).any()
    step = torch.full((8, 10), 2.0)
    step[:, 5:] = 3.0
    found = torch.zeros(8, 10, dtype=torch.bool)
    found[:, 4:6] = True
    assert torch.equal(edges(step, 100), found)
    for unknown in (math.nan, 0.0, -1.0, math.inf):
        hole = torch.full((7, 7), 2.0)
        hole[3, 3] = unknown
        found = torch.zeros(7, 7, dtype=torch.bool)
        found[2:5, 2:5] = True
        assert torch.equal(edges(hole, 100), found)


def test_nothing_in_space(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="needs a head that predicts depth or cameras"):
        gather(VIDEO.store(tmp_path / "a.zarr", ["depth", "camera"]), VIDEO, frames=3)


def test_cameras_alone_are_shown(tmp_path: Path) -> None:
    scene = gather(VIDEO.store(tmp_path / "a.zarr", ["depth", "track"]), VIDEO, frames=3)
    assert [len(moment.points) for moment in scene.moments] == [0, 0, 0]
    assert scene.paths is None
    assert scene.moments[2].world_from_cam[:3, 3].norm() > 0.1
