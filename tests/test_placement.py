"""Predictions on their way from the network's pixels to the video's, on numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fourd_core.data import Cameras, Maps, Tracks
from fourd_core.geometry import project
from fourd_core.media.views import TiledView, View, ViewConfig, center, exact, original
from fourd_core.placement import in_video


def maps(values: Tensor, kind: str = "features") -> Maps:
    return Maps(values, kind=kind, unit="m")  # type: ignore[arg-type]


def placed(values: Tensor, view: View, kind: str = "features", pixels: str = "video") -> Tensor:
    item = in_video(maps(values, kind), view, pixels)  # type: ignore[arg-type]
    assert isinstance(item, Maps)
    assert (item.kind, item.unit) == (kind, "m")
    return item.values


@pytest.mark.parametrize("kind", ["features", "depth", "flow", "mask"])
@pytest.mark.parametrize("pixels", ["video", "view"])
def test_nothing_changes_where_the_network_saw_the_video_itself(kind: str, pixels: str) -> None:
    values = torch.rand(1, 3, 2 if kind == "flow" else 1, 5, 7)
    assert torch.equal(placed(values, original((5, 7)), kind, pixels), values)


def test_a_view_twice_as_large() -> None:
    """The centre of a pixel of the video is the corner of four of the view: their mean."""
    values = torch.arange(16.0).view(1, 1, 1, 4, 4)
    assert placed(values, exact((2, 2), (4, 4))).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_a_view_half_as_large() -> None:
    """Two numbers along x over four pixels: a quarter of the way, three quarters, and the edge goes on."""
    values = torch.tensor([0.0, 4]).view(1, 1, 1, 1, 2)
    assert placed(values, exact((1, 4), (1, 2))).flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_crop_of_odd_sizes(dtype: torch.dtype) -> None:
    """31 x 46 to 15: the frame becomes 15 x 22 and columns 3 to 17 of it are seen, 6.27 to 37.64 of the video's."""
    view = center((31, 46), 15)
    assert (view.resized, view.corner) == ((15, 22), (0, 3))
    restored = placed(torch.ones(1, 2, 1, 15, 15, dtype=dtype), view)
    assert restored.dtype == dtype
    seen = torch.tensor([3 * 46 / 22 <= x + 0.5 <= 18 * 46 / 22 for x in range(46)])
    assert torch.equal(~restored.isnan(), seen.expand(1, 2, 1, 31, 46))


def test_what_fills_the_view_up_is_cut_off() -> None:
    values = torch.rand(1, 1, 1, 16, 16)
    torch.testing.assert_close(placed(values, original((11, 13), (8, 8))), values[..., :11, :13], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pixels", ["video", "view"])
def test_flow_is_measured_in_the_video_s_pixels_on_either_grid(pixels: str) -> None:
    """The view is twice as wide and half as high."""
    flow = torch.tensor([4.0, 3]).view(1, 1, 2, 1, 1).expand(1, 1, 2, 10, 40)
    found = placed(flow, exact((20, 20), (10, 40)), "flow", pixels)
    assert found.shape[-2:] == ((20, 20) if pixels == "video" else (10, 40))
    assert found.amin((0, 1, 3, 4)).tolist() == found.amax((0, 1, 3, 4)).tolist() == [2, 6]


def test_depth_is_not_scaled() -> None:
    depth = placed(torch.full((1, 1, 1, 4, 4), 3.0), exact((9, 7), (4, 4)), "depth")
    torch.testing.assert_close(depth, torch.full((1, 1, 1, 9, 7), 3.0))


def test_unknown_depth_is_not_mixed_with_known() -> None:
    """0, NaN and infinity do not count; where they have most of the weight the depth is unknown."""
    nothing = float("nan")
    for unknown in (0.0, -1.0, nothing, float("inf")):
        values = torch.tensor([2.0, unknown, 4, 6]).view(1, 1, 1, 1, 4)
        found = placed(values, exact((1, 8), (1, 4)), "depth").flatten()
        expected = torch.tensor([2, 2, nothing, nothing, 4, 4.5, 5.5, 6])
        torch.testing.assert_close(found, expected, equal_nan=True)
        corner = torch.tensor([[unknown, unknown], [3, 5]]).view(1, 1, 1, 2, 2)
        assert placed(corner, exact((1, 1), (2, 2)), "depth").item() == 4  # half is enough
        for pixels in ("view", "video"):
            same = placed(values, exact((1, 4), (1, 4)), "depth", pixels).flatten()
            torch.testing.assert_close(same, torch.tensor([2, nothing, 4, 6]), equal_nan=True)


def test_a_mask_of_0_is_known() -> None:
    values = torch.tensor([0.0, 1]).view(1, 1, 1, 1, 2)
    assert placed(values, exact((1, 4), (1, 2)), "mask").flatten().tolist() == [0, 0.25, 0.75, 1]


VIEWS = [
    exact((48, 80), (56, 56)),
    center((80, 48), 28),
    original((45, 31), (14, 14)),
    ViewConfig(view="tiles", pixels=28).view_of((101, 67)),
]


@pytest.mark.parametrize("view", VIEWS)
def test_tracks_and_cameras_agree(view: View) -> None:
    """What a camera projects in the view's pixels lies, in the video's, where the moved camera projects it."""
    intrinsics = torch.tensor([[30.0, 0, 12], [0, 33, 15], [0, 0, 1]]).expand(1, 2, 3, 3)
    points = torch.tensor([[0.1, -0.2, 1], [0.3, 0.1, 2.0]])
    cameras = in_video(Cameras(torch.eye(4).expand(1, 2, 4, 4), intrinsics, unit="m"), view, "view")
    assert isinstance(cameras, Cameras)
    assert torch.equal(cameras.world_from_cam, torch.eye(4).expand(1, 2, 4, 4))
    seen = project(points, intrinsics[:, :, None])
    live = torch.ones(1, 2, 2, dtype=torch.bool)
    tracks = in_video(Tracks(seen, live.float(), live, remembered={"x": torch.zeros(1, 2)}), view, "view")
    assert isinstance(tracks, Tracks)
    assert (tracks.remembered, cameras.unit) == ({}, "m")
    torch.testing.assert_close(tracks.xy, project(points, cameras.intrinsics[:, :, None]), rtol=1e-5, atol=1e-4)


def test_tracks_by_hand() -> None:
    """360 x 640 to a centre of 90: columns 35 to 124 of 160, a quarter of the video's."""
    view = center((360, 640), 90)
    xy = torch.tensor([[0.0, 0], [45, 45], [90, 90]])[None, None]
    live = torch.ones(1, 1, 3, dtype=torch.bool)
    tracks = in_video(Tracks(xy, live.float(), live), view, "video")
    assert isinstance(tracks, Tracks)
    assert tracks.xy[0, 0].tolist() == [[140, 0], [320, 180], [500, 360]]


def test_a_tiled_view_is_restored_from_its_frame() -> None:
    """Maps over the frame of the tiles, whose values are places in the video, come back as those places."""
    view = ViewConfig(view="tiles", pixels=28).view_of((150, 100))
    assert isinstance(view, TiledView)
    y, x = torch.meshgrid(*(torch.arange(side) + 0.5 for side in view.size), indexing="ij")
    places = view.to_video(torch.stack([x, y], -1)).permute(2, 0, 1)[None, None]
    restored = placed(places, view)[0, 0]
    assert restored.shape == (2, 150, 100)
    y, x = torch.meshgrid(torch.arange(150) + 0.5, torch.arange(100) + 0.5, indexing="ij")
    inner = (..., slice(2, -2), slice(2, -2))
    torch.testing.assert_close(restored[inner], torch.stack([x, y])[inner], rtol=0, atol=1e-3)
