"""Ground truth at the pixels of a view, by numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from fourd_core.data import Cameras, Maps, Predictions, Tracks
from fourd_core.media.views import View
from fourd_core.truth import nearest, seen

NAN = float("nan")
HALF = View(video_size=(4, 8), resized=(2, 2), size=(2, 2))
"""Rows at half, columns at a quarter of the video's."""
RIGHT = View(video_size=(4, 8), resized=(8, 16), size=(2, 4), corner=(3, 9))
"""Two pixels for each of the video's, from row 3 and column 9 on."""


def ramp() -> torch.Tensor:
    """Row r, column c of a frame of 4 x 8: 10 r + c."""
    return (10.0 * torch.arange(4)[:, None] + torch.arange(8)).view(1, 1, 1, 4, 8)


def test_a_map_is_taken_where_the_pixels_centre_lies() -> None:
    # The view's columns have their centres at x = 2 and 6, its rows at y = 1 and 3 of the video.
    assert nearest(ramp(), HALF)[0, 0, 0].tolist() == [[12.0, 16.0], [32.0, 36.0]]
    # Centres at y = 1.75, 2.25 and x = 4.75, 5.25, 5.75, 6.25.
    assert nearest(ramp(), RIGHT)[0, 0, 0].tolist() == [[14.0, 15.0, 15.0, 16.0], [24.0, 25.0, 25.0, 26.0]]


def test_depth_is_never_mixed_and_unknown_stays_unknown() -> None:
    depth = ramp()
    depth[0, 0, 0, 1, 2] = NAN
    got = seen(Predictions({"depth": Maps(depth, kind="depth", unit="m")}), HALF)["depth"]
    assert got.kind == "depth" and got.unit == "m"
    torch.testing.assert_close(got.values[0, 0, 0], torch.tensor([[NAN, 16.0], [32.0, 36.0]]), equal_nan=True)


def test_beyond_the_frame_nothing_is_known() -> None:
    filled = View(video_size=(4, 8), resized=(4, 8), size=(5, 10))
    got = nearest(ramp(), filled)[0, 0, 0]
    assert got[:4, :8].equal(ramp()[0, 0, 0])
    assert got[4].isnan().all() and got[:, 8:].isnan().all()


def test_flow_is_measured_in_pixels_of_the_view() -> None:
    flow = torch.tensor([8.0, -6.0]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 4, 8)
    truth = Predictions({"flow": Maps(flow, kind="flow", unit="px"), "motion": Maps(ramp(), kind="mask")})
    assert seen(truth, HALF)["flow"].values[0, 0, :, 1, 1].tolist() == [2.0, -3.0]
    assert seen(truth, RIGHT)["flow"].values[0, 0, :, 0, 0].tolist() == [16.0, -12.0]
    assert seen(truth, HALF)["motion"].values.equal(nearest(ramp(), HALF)), "only flow is a length in pixels"


def test_cameras_keep_their_poses_and_change_their_pinhole() -> None:
    matrix = torch.tensor([[40.0, 0.5, 5.0], [0.0, 30.0, 3.0], [0.0, 0.0, 1.0]]).view(1, 1, 3, 3)
    poses = torch.eye(4).view(1, 1, 4, 4)
    got = seen(Predictions({"cameras": Cameras(poses, matrix, unit="m")}), RIGHT)["cameras"]
    assert got.intrinsics[0, 0].tolist() == [[80.0, 1.0, 1.0], [0.0, 60.0, 3.0], [0.0, 0.0, 1.0]]
    assert got.world_from_cam.equal(poses)


def test_points_move_and_those_outside_are_not_seen() -> None:
    xy = torch.tensor([[4.5, 1.5], [5.0, 2.0], [6.6, 2.0], [6.4, 1.6]]).view(1, 1, 4, 2)
    live = torch.tensor([True, True, True, True]).view(1, 1, 4)
    depth = torch.arange(4.0).view(1, 1, 4)
    visibility = torch.tensor([1.0, 1.0, 1.0, 0.0]).view(1, 1, 4)
    got = seen(Predictions({"tracks": Tracks(xy, visibility, live, depth, unit="m")}), RIGHT)["tracks"]
    torch.testing.assert_close(got.xy[0, 0], torch.tensor([[0.0, 0.0], [1.0, 1.0], [4.2, 1.0], [3.8, 0.2]]))
    assert got.visibility[0, 0].tolist() == [1.0, 1.0, 0.0, 0.0], "the third lies to the right of the view"
    assert got.live.all() and got.depth.equal(depth), "outside or not, where it is stays known"
    below = tracks_at(seen(Predictions({"tracks": tracks_of([[5.0, 2.5], [5.0, 1.4]])}), RIGHT))
    assert below == [([1.0, 2.0], 0.0), ([1.0, pytest.approx(-0.2, abs=1e-6)], 0.0)]


def tracks_of(points: list[list[float]]) -> Tracks:
    xy = torch.tensor(points)[None, None]
    return Tracks(xy, torch.ones(xy.shape[:3]), torch.ones(xy.shape[:3], dtype=torch.bool))


def tracks_at(truth: Predictions) -> list[tuple[list[float], float]]:
    tracks = truth["tracks"]
    return list(zip(tracks.xy[0, 0].tolist(), tracks.visibility[0, 0].tolist(), strict=True))
