"""Points of depth maps: which pixels they come from, where they stand, and that exports and viewer mean the same."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from known_scene import KnownScene

from fourd_core.geometry import pixel_centres
from fourd_core.media.clouds import point_cloud, thinning
from fourd_core.media.exports import export_video
from fourd_core.media.formats.points import read_ply
from fourd_core.viewer import scene as viewer


def test_pixels_by_hand() -> None:
    """Every third pixel of 5 x 7 from the second on; what is unknown, barred or outside of the frame is left out."""
    depth = torch.full((5, 7), 2.0)
    depth[1, 1], depth[1, 4], depth[4, 1] = math.inf, math.nan, 0.0
    rgb = torch.arange(5 * 6).view(1, 5, 6).expand(3, 5, 6).byte()
    camera, pose = torch.tensor([[2.0, 0, 1], [0, 2, 1], [0, 0, 1]]), torch.eye(4)
    pose[2, 3] = 10
    clear = torch.ones(5, 7, dtype=torch.bool)
    assert point_cloud(depth, pixel_centres((5, 7)), rgb, camera, pose, 3).xyz.tolist() == [[3.5, 3.5, 12]]
    clear[4, 4] = False
    assert len(point_cloud(depth, pixel_centres((5, 7)), rgb, camera, pose, 3, clear).xyz) == 0
    depth[:] = 1
    assert point_cloud(depth, pixel_centres((5, 7)), rgb, camera, pose, 3).rgb[:, 0].tolist() == [7, 10, 25, 28]
    assert len(point_cloud(depth, pixel_centres((5, 7)), rgb, camera, pose, 1).xyz) == 5 * 6, "one column is outside"
    assert len(point_cloud(depth[:, :6], pixel_centres((5, 6)), rgb, camera, pose, 100).xyz) == 1
    assert (thinning(100, 25), thinning(100, 24), thinning(100, 1000)) == (2, 3, 1)


def test_an_export_and_the_viewer_show_the_same_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = KnownScene(frames=2)
    store = video.store(tmp_path / "a.zarr")
    store["depth"][1, 0, 30:40, 40:50] = math.inf
    export_video(store, video, tmp_path, "clip", ["ply"])
    monkeypatch.setattr(viewer, "edges", lambda depth, focal: depth < 0)
    moment = viewer.gather(store, video, frames=2).moments[1]
    cloud = read_ply(tmp_path / "clip/ply/000001.ply")
    assert len(cloud.xyz) == 72 * 96 - 100
    assert torch.equal(cloud.xyz, moment.points)
    assert torch.equal(cloud.rgb, moment.colours)
