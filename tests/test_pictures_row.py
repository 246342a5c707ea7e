"""The row of all tasks: which panels, at which size, what they show; points and their trails pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from known_scene import KnownScene
from torch import Tensor

from fourd_core.data import VISIBLE
from fourd_core.media.labels import _GLYPHS, label, text_dots
from fourd_core.media.panels import GAP, arranged, fitted, panel_size
from fourd_core.media.pictures import depth_picture, depth_range, grey
from fourd_core.media.row import CHUNK, draw
from fourd_core.media.trails import TRAIL, draw_tracks, point_colours
from fourd_core.media.video import open_video
from fourd_core.media.views import View, center, exact

STRIP = 20
"""Rows of a label."""


class Counted(KnownScene):
    """Notes how many frames were in memory at a time."""

    most = 0

    def read(self, indices: Sequence[int]) -> Tensor:
        self.most = max(self.most, len(indices))
        return super().read(indices)


def tile(picture: Tensor, row: int, column: int, size: tuple[int, int]) -> Tensor:
    """A panel without its label."""
    top, left = row * (STRIP + size[0] + GAP) + STRIP, column * (size[1] + GAP)
    return picture[:, top : top + size[0], left : left + size[1]]


def test_every_task_has_its_panel(tmp_path: Path) -> None:
    video = Counted(frames=10, size=(72, 96))
    store = video.store(tmp_path / "a.zarr")
    view, (queries, tracks) = exact(video.size, video.size), video.tracks()
    draw(store, video, view, tmp_path, "a", queries=queries, pictures=3, movie=True, side=96)
    movie = open_video(str(tmp_path / "a.mp4"))
    assert (movie.frame_count, movie.size) == (10, (2 * 92 + GAP, 3 * 100 - GAP))
    assert movie.times([9]).item() == pytest.approx(9 / 15, abs=1e-3)
    assert video.most == CHUNK
    names = [f"a_{index:05d}.png" for index in (0, 4, 9)]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == names
    trails: dict[int, Tensor] = {}
    for index, name in zip((0, 4, 9), names, strict=True):
        picture = open_video(str(tmp_path / "pictures" / name)).read([0])[0]
        panels = [tile(picture, row, column, video.size) for row in range(2) for column in range(3)]
        rgb, depth, flow, mask, features, points = panels
        assert torch.equal(rgb, video.rgb[index])
        near_far = [depth_range(video.depth[start : start + CHUNK]) for start in range(0, 10, CHUNK)]
        near, far = min(item[0] for item in near_far if item), max(item[1] for item in near_far if item)
        assert torch.equal(depth, depth_picture(video.depth[index, None, None], near, far)[0])
        assert (flow.sum() == 0) == (index == 0)
        edge = (mask == torch.tensor([255, 230, 51], dtype=torch.uint8).view(3, 1, 1)).all(0)
        assert video.on_box[index][edge].all()
        assert edge.sum() > 20
        assert features.float().std() > 20
        seen = tracks.visibility[0, index] > VISIBLE
        column, row = tracks.xy[0, index, seen].long().unbind(-1)
        expected = (point_colours(queries.xy[0, :, 1])[seen] * 255).round()
        right = (points[:, row, column].T.float() - expected).abs().amax(1) < 40
        assert right.float().mean() > 0.9  # a neighbour may lie on top
        trails[index] = (points.amax(0).int() - points.amin(0).int() > 40).sum()
        plain = (points.float() - grey(video.rgb[index, None])[0] * 255).abs().amax(0) < 1
        assert 0.4 < plain.float().mean() < 0.98
    assert trails[4] > 1.3 * trails[0], "a trail goes on where another chunk begins"


def test_maps_on_the_view(tmp_path: Path) -> None:
    """Video and points are those of the part that the network saw."""
    video = KnownScene(frames=2, size=(72, 96))
    view = center(video.size, 48)
    store = video.store(tmp_path / "a.zarr", ["depth", "flow", "moving", "features"])
    draw(store, video, view, tmp_path, "a", pixels="view", pictures=1, movie=False, side=48)
    assert not (tmp_path / "a.mp4").exists()
    seen = (view.apply(video.rgb) * 255).round().byte()
    picture = open_video(str(tmp_path / "pictures/a_00000.png")).read([0])[0]
    assert torch.equal(tile(picture, 0, 0, (48, 48)), seen[0])
    points = tile(picture, 0, 1, (48, 48))
    coloured = (points.max(0).values.int() - points.min(0).values.int()) > 150
    inside = view.to_view(video.tracks()[0].xy[0]).long()
    inside = inside[((inside >= 0) & (inside < 48)).all(1)]
    assert coloured[inside[:, 1], inside[:, 0]].float().mean() > 0.9


def test_a_small_view_is_shown_as_sharp_as_the_video(tmp_path: Path) -> None:
    """The network saw a third of the pixels; people see what the video has of the same part."""
    video = KnownScene(frames=2, size=(72, 96))
    view = View(video.size, (24, 32), (16, 16), (4, 8))
    store = video.store(tmp_path / "a.zarr", ["depth"])
    draw(store, video, view, tmp_path, "a", pixels="view", pictures=1, movie=False, side=48)
    picture = open_video(str(tmp_path / "pictures/a_00000.png")).read([0])[0]
    assert torch.equal(tile(picture, 0, 0, (48, 48)), video.rgb[0, :, 12:60, 24:72])
    draw(store, video, view, tmp_path, "b", pixels="view", pictures=1, movie=False, side=24)
    half = View(video.size, (48, 64), (32, 32), (8, 16)).apply(video.rgb[:1])
    picture = open_video(str(tmp_path / "pictures/b_00000.png")).read([0])[0]
    assert torch.equal(tile(picture, 0, 0, (24, 24)), fitted((half * 255).round().byte(), (24, 24))[0])


def test_a_drawn_movie_is_not_drawn_again(tmp_path: Path) -> None:
    video = Counted(frames=3)
    store = video.store(tmp_path / "a.zarr", ["features", "track"])
    (tmp_path / "a.mp4").write_bytes(b"here")
    draw(store, video, exact(video.size, video.size), tmp_path, "a", pictures=2, movie=True)
    assert (video.most, (tmp_path / "a.mp4").read_bytes()) == (0, b"here")


# --- panels ----------------------------------------------------------------------------------------------------------


def test_many_panels_go_into_two_rows() -> None:
    panels = [torch.full((2, 3, 8, 30), 10 * number, dtype=torch.uint8) for number in range(1, 8)]
    row = arranged(["a"] * 4, panels[:4])
    assert row.shape == (2, 3, 8 + STRIP, 4 * 34 - GAP)
    both = arranged(["a"] * 7, panels)
    assert both.shape == (2, 3, 2 * (8 + STRIP) + GAP, 4 * 34 - GAP)
    line = [value for shade in (50, 60, 70, 255) for value in [shade] * 30 + [255] * GAP]
    assert both[0, 0, -1].tolist() == line[:-GAP]
    assert both[1, 0, STRIP, 102:].tolist() == [40] * 30


def test_panel_sizes() -> None:
    assert panel_size((720, 1280), 384) == (216, 384)
    assert panel_size((1280, 720), 384) == (384, 216)
    assert panel_size((1, 4000), 100) == (1, 100)
    same = torch.randint(0, 256, (1, 3, 6, 8), dtype=torch.uint8)
    assert fitted(same, (6, 8)) is same
    assert (fitted(torch.full_like(same, 77), (3, 11)) == 77).all()


def test_labels() -> None:
    assert {len(row) for glyph in _GLYPHS.values() for row in glyph.split()} == {5}
    assert {len(glyph.split()) for glyph in _GLYPHS.values()} == {7}
    assert len(set(_GLYPHS.values())) == len(_GLYPHS)
    lines = ["".join(" #"[dot] for dot in row) for row in text_dots("t1").int().tolist()]
    assert lines == [
        "#####   #   ", "  #    ##   ", "  #     #   ", "  #     #   ", "  #     #   ", "  #     #   ", "  #    ###  ",
    ]  # fmt: skip
    wide, narrow, tiny = label("depth", 200), label("a long name", 40), label("x", 3)
    assert (wide.shape, narrow.shape, tiny.shape) == ((3, STRIP, 200), (3, STRIP, 40), (3, STRIP, 3))
    assert (wide == 235).sum() == 3 * 4 * text_dots("depth").sum()
    assert (narrow[..., -3:] == 40).all()
    assert torch.equal(label("é", 30), label(" ", 30))


# --- points and trails -----------------------------------------------------------------------------------------------

RED = torch.tensor([[1.0, 0.0, 0.0]])


def drawn(xy: list[list[float]], seen: list[bool], size: tuple[int, int] = (130, 260)) -> Tensor:
    """One red point on black that went this way."""
    past = torch.tensor(xy)[:, None]
    return draw_tracks(torch.zeros(3, *size, dtype=torch.uint8), past, torch.tensor(seen)[:, None], RED)


def test_seen_points_are_filled_and_hidden_ones_hollow() -> None:
    seen, hidden = drawn([[20.5, 10.5]], [True]), drawn([[20.5, 10.5]], [False])
    assert seen[1:].sum() == hidden[1:].sum() == 0
    assert (seen[0, 10, 20], seen[0, 10, 22], seen[0, 10, 23]) == (255, 128, 0)  # radius 2
    assert (hidden[0, 10, 20], hidden[0, 10, 22], hidden[0, 10, 24]) == (0, 178, 0)  # 70 %
    assert drawn([[float("nan")] * 2], [True]).sum() == 0


@pytest.mark.parametrize("place", [(-1.0, 5.0), (0.0, 0.0), (260.0, 130.0), (1e9, 1e9), (-1e9, 0.0)])
def test_points_at_and_beyond_the_border(place: tuple[float, float]) -> None:
    near = -2 < place[0] < 262
    assert (drawn([list(place)], [True]).sum() > 0) == near


def test_trails_fade_and_break_where_the_point_was_hidden() -> None:
    count = TRAIL + 1
    xy = [[10.0 * i + 0.5, 5.5] for i in range(count)]
    line = drawn(xy, [True] * count)[0, 5]
    middles = line[[10 * i + 5 for i in range(TRAIL)]].int()
    fading = middles[-1] * (1 - torch.arange(TRAIL - 1, -1, -1) / TRAIL)
    assert (middles - fading).abs().max() <= 1.5
    assert 100 < middles[-1] < 0.8 * 255
    assert line[164:].sum() == 0
    seen = [True] * count
    seen[8] = False
    broken = drawn(xy, seen)[0, 5]
    assert broken[72:79].sum() == broken[82:89].sum() == 0
    assert broken[62:69].min() > 0


def test_the_strongest_mark_is_seen_whatever_their_order() -> None:
    xy = torch.tensor([[[20.5, 10.5], [22.0, 10.5], [20.5, 10.5]]])
    colours = torch.eye(3)
    canvas, seen = torch.zeros(3, 30, 40, dtype=torch.uint8), torch.ones(1, 3, dtype=torch.bool)
    picture = draw_tracks(canvas, xy, seen, colours)
    assert picture[:, 10, 20].tolist() == [0, 0, 255]  # of two at one place, the last
    assert torch.equal(picture, draw_tracks(canvas, xy, seen, colours))


def test_colours_follow_the_height() -> None:
    colours = point_colours(torch.tensor([50.0, 10.0, 30.0, 20.0]))
    assert colours[1].tolist() == [1, 0, 0]
    assert torch.equal(colours[[1, 3, 2, 0]], point_colours(torch.arange(4.0)))
    assert len({tuple(colour) for colour in point_colours(torch.arange(200.0)).tolist()}) == 200
    assert point_colours(torch.zeros(1)).tolist() == [[1, 0, 0]]
