"""The points of `[queries]`: where they come from, and what is said of those that cannot be followed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fourd_core.data import Queries
from fourd_core.errors import RecipeError
from fourd_core.media.video import open_video
from fourd_core.media.views import View, ViewConfig
from fourd_core.media.writers import write_png
from fourd_core.queries import queries_for, queries_from
from fourd_core.recipe import Location
from fourd_core.recipe.schema import QueriesConfig
from fourd_core.testing.miniature import MovingTexture

VIDEO = MovingTexture()
"""12 frames of 96 x 128 (height x width)."""
WHOLE = ViewConfig(view="resize", pixels=64).view_of(VIDEO.size)
MIDDLE = ViewConfig(view="center", pixels=48).view_of(VIDEO.size)
"""Columns 16 to 111."""


def named(view: View = WHOLE, **keys: Any) -> Queries:
    queries = queries_for(QueriesConfig(**keys), VIDEO, view)
    assert queries is not None
    assert queries.frame.shape == queries.xy.shape[:2]
    return queries


def test_none_are_none() -> None:
    assert queries_for(None, VIDEO, WHOLE) is None


def test_grid_lies_on_the_centres_of_cells() -> None:
    found = named(grid=2)
    assert found.frame.tolist() == [[0, 0, 0, 0]]
    assert found.xy.tolist() == [[[32, 24], [96, 24], [32, 72], [96, 72]]]
    assert named(MIDDLE, grid=2).xy[0].tolist() == [[40, 24], [88, 24], [40, 72], [88, 72]]


def test_grid_in_several_frames() -> None:
    assert named(grid=1, frames=(0, 5, -1, -12)).frame.tolist() == [[0, 5, 11, 0]]


@pytest.mark.parametrize("frame", [12, -13])
def test_grid_outside_the_video(frame: int) -> None:
    with pytest.raises(
        RecipeError, match=rf"\[queries\] frames: {frame} lies outside the video: .* 0 to 11 \(or -12 .*-1 is the last"
    ):
        named(grid=2, frames=(0, frame))


@pytest.mark.parametrize("name", ["none", "t24", "wide"])
def test_grid_on_pixels_is_that_of_l4p(name: str) -> None:
    """Stored numbers: 4 x 4 points of a 56 x 56 input, as frame, x, y with the frame's centre at 0.5."""
    stored = load_file(Path(__file__).parent / "data" / "l4p_preprocess.safetensors")[f"out/{name}/queries"]
    view = ViewConfig(view="resize" if name == "none" else "center", pixels=56).view_of(VIDEO.size)
    found = named(view, grid=4, grid_places="pixels")
    torch.testing.assert_close(view.to_view(found.xy[0]), stored[:, 1:], rtol=0, atol=1e-4)
    assert (found.frame[0] + 0.5).tolist() == stored[:, 0].tolist()


def test_grid_on_pixels_leaves_out_what_fills_the_input_up() -> None:
    view = ViewConfig(view="original").view_of(VIDEO.size, (80, 80))  # 160 x 160: 96 x 128 and a filling
    found = named(view, grid=8, grid_places="pixels").xy[0]
    assert len(found) == 5 * 7
    assert found.amax(0).tolist() == [119.5, 80.5]


@pytest.fixture
def mask(tmp_path: Path) -> Location:
    """Of half the video's size: white for x from 64, y from 48."""
    picture = torch.zeros(3, 48, 64, dtype=torch.uint8)
    picture[1, 24:, 32:] = 1
    write_png(tmp_path / "mask.png", picture)
    return Location(str(tmp_path / "mask.png"))


def test_mask_chooses_of_the_grid(mask: Location) -> None:
    assert named(grid=2, mask=mask).xy[0].tolist() == [[96, 72]]
    assert named(grid=4, mask=mask, frames=(1, 2)).frame[0].tolist() == [1] * 4 + [2] * 4


@pytest.mark.parametrize(("row", "kept"), [(374, 0), (375, 1), (376, 0)])
def test_mask_is_sampled_at_its_own_pixels(row: int, kept: int, tmp_path: Path) -> None:
    """A mask ten times the video's size; of the grid's points (62, 37.5) lies in its pixel 620, 375."""
    picture = torch.zeros(3, 960, 1280, dtype=torch.uint8)
    picture[:, row, 620] = picture[:, 15, 20] = 255  # the other one is (2, 1.5)
    write_png(tmp_path / "large.png", picture)
    found = named(grid=32, mask=Location(str(tmp_path / "large.png"))).xy[0].tolist()
    assert found == [[2, 1.5], [62, 37.5]][: 1 + kept]


def test_black_mask(tmp_path: Path) -> None:
    write_png(tmp_path / "black.png", torch.zeros(3, 96, 128, dtype=torch.uint8))
    with pytest.raises(RecipeError, match=r"\[queries\] mask: .*black\.png is black at every point of the grid"):
        named(grid=3, mask=Location(str(tmp_path / "black.png")))


def test_missing_mask() -> None:
    with pytest.raises(RecipeError, match=r"\[queries\] mask: /nowhere\.png cannot be read as a picture"):
        named(grid=3, mask=Location("/nowhere.png"))


def test_points_and_a_file_and_a_grid(tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("frame, x, y\n3, 1.5, 2\n\n11,128,96\n")
    found = named(points=((2.0, 10.0, 20.0),), file=Location(str(tmp_path / "points.csv")), grid=1)
    assert found.frame[0].tolist() == [2, 3, 11, 0]
    assert found.xy[0].tolist() == [[10, 20], [1.5, 2], [128, 96], [64, 48]]
    assert (found.frame.dtype, found.xy.dtype) == (torch.int64, torch.float32)


OUTSIDE = [
    ((0.0, 700.0, 20.0), r"\(frame 0, x 700, y 20\) lies outside the frame: .* is 128 wide and 96 high"),
    ((0.0, 20.0, 96.01), r"\(frame 0, x 20, y 96\.01\) lies outside the frame"),
    ((0.0, -0.5, 20.0), r"\(frame 0, x -0\.5, y 20\) lies outside the frame"),
    ((12.0, 20.0, 20.0), r"\(frame 12, x 20, y 20\) lies outside the video: .* has the frames 0 to 11"),
    ((-1.0, 20.0, 20.0), r"\(frame -1, x 20, y 20\) lies outside the video"),
    ((0.5, 20.0, 20.0), r"\(frame 0\.5, x 20, y 20\): the frame must be a whole number"),
    ((0.0, float("nan"), 20.0), r"\(frame 0, x nan, y 20\): .* x and y finite"),
    ((float("nan"), 20.0, 20.0), r"\(frame nan, x 20, y 20\): the frame must be a whole number"),
    ((0.0, 20.0, float("inf")), r"\(frame 0, x 20, y inf\): .* finite"),
]


@pytest.mark.parametrize(("point", "says"), OUTSIDE)
def test_points_outside(point: tuple[float, float, float], says: str, tmp_path: Path) -> None:
    fine = (0.0, 20.0, 20.0)
    with pytest.raises(RecipeError, match=r"\[queries\] point 2 " + says):
        named(points=(fine, fine, point, fine))
    with pytest.raises(RecipeError, match=r"\[queries\] point 1 " + says):
        queries_from([fine, point], VIDEO, WHOLE)
    (tmp_path / "points.csv").write_text("0,20,20\n\n" + ",".join(map(str, point)) + "\n")
    with pytest.raises(RecipeError, match=r"\[queries\] .*points\.csv, row 3 " + says):
        named(file=Location(str(tmp_path / "points.csv")))


def test_the_border_belongs_to_the_frame() -> None:
    corners = ((0.0, 0.0, 0.0), (11.0, 128.0, 96.0))
    assert named(points=corners).xy[0].tolist() == [[0, 0], [128, 96]]
    assert WHOLE.to_view(named(points=corners).xy)[0].tolist() == [[0, 0], [64, 64]]


def test_a_point_beside_the_crop() -> None:
    assert named(MIDDLE, points=((0.0, 16.0, 1.0), (0.0, 112.0, 1.0))).count == 2
    with pytest.raises(RecipeError, match=r"point 0 .* network sees, x 16 to 112 and y 0 to 96; use data.view"):
        named(MIDDLE, points=((0.0, 15.0, 1.0),))


@pytest.mark.parametrize("rows", ["0,1\n", "0,1,2\nnot,a,number\n", "0,1,2\n3;4;5\n"])
def test_files_that_are_none(rows: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("frame,x,y\n" + rows)
    with pytest.raises(RecipeError, match=r"file: row [23] of .*points\.csv is '.*', expected three numbers"):
        named(file=Location(str(tmp_path / "points.csv")))


@pytest.mark.parametrize("first", ["0,12.5", "0;1;2", "0 1 2", "0,1,two", "1,2,3,4"])
def test_a_first_row_that_is_wrong_is_no_header(first: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(f"{first}\n0,5,5\n")
    with pytest.raises(RecipeError, match=rf"file: row 1 of .*points\.csv is '{first}', expected three numbers"):
        named(file=Location(str(tmp_path / "points.csv")))


@pytest.mark.parametrize("header", ["", "frame,x,y\n", "Bild;x;y\n"])
def test_a_byte_order_mark_hides_no_point(header: str, tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text(f"{header}0,5,5\n0,6,6\n", encoding="utf-8-sig")
    assert named(file=Location(str(tmp_path / "points.csv"))).xy[0].tolist() == [[5, 5], [6, 6]]


@pytest.mark.parametrize("content", ["0,5,5\n" + "1" * 200_000 + ",5,5\n", "frame,x,y\n\ufffe".encode("utf-16")])
def test_files_of_something_else(content: str | bytes, tmp_path: Path) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "points.csv").write_bytes(data)
    with pytest.raises(RecipeError, match=r"file: .*points\.csv cannot be read as lines frame,x,y of three numbers \("):
        named(file=Location(str(tmp_path / "points.csv")))


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[queries\] file: /nowhere\.csv cannot be read"):
        named(file=Location("/nowhere.csv"))
    (tmp_path / "points.csv").write_text("frame,x,y\n")
    with pytest.raises(RecipeError, match="names no point"):
        named(file=Location(str(tmp_path / "points.csv")))


@pytest.mark.parametrize(
    "points",
    [
        [(3, 10, 20), (4, 1.5, 2)],
        np.array([[3, 10, 20], [4, 1.5, 2]]),
        torch.tensor([[3, 10, 20], [4, 1.5, 2]]),
        ((number for number in row) for row in [(3, 10, 20), (4, 1.5, 2)]),
    ],
)
def test_points_in_python(points: Any) -> None:
    found = queries_from(points, VIDEO, WHOLE)
    assert (found.frame.tolist(), found.xy.tolist()) == ([[3, 4]], [[[10, 20], [1.5, 2]]])


@pytest.mark.parametrize("count", [2, np.int64(2), np.array(2), torch.tensor(2)])
def test_a_grid_in_python(count: Any) -> None:
    assert torch.equal(queries_from(count, VIDEO, WHOLE).xy, named(grid=2).xy)
    with pytest.raises(RecipeError, match="queries = 0"):
        queries_from(0, VIDEO, WHOLE)


@pytest.mark.parametrize("points", [[(1, 2)], [(1, 2, 3), (1, 2, 3, 4)], torch.zeros(4, 2), torch.zeros(1, 4, 3)])
def test_python_points_of_another_form(points: list[tuple[float, ...]] | Tensor) -> None:
    with pytest.raises(RecipeError, match="rows of three numbers"):
        queries_from(points, VIDEO, WHOLE)


@pytest.mark.parametrize(
    "points", [True, 2.0, "abc", [("a", "b", "c")], [3], [(1, 2, None)], [(1, 2, 10**400)], np.array([["1", "2", "3"]])]
)
def test_python_points_that_are_none(points: Any) -> None:
    with pytest.raises(RecipeError, match="rows of three numbers"):
        queries_from(points, VIDEO, WHOLE)


def test_no_points_in_python() -> None:
    with pytest.raises(RecipeError, match="names no point"):
        queries_from([], VIDEO, WHOLE)


def test_many_points_take_no_time() -> None:
    rows = torch.rand(100_000, 3, dtype=torch.float64) * torch.tensor([0.0, 128, 96])
    for given in (rows, rows.numpy()):
        seconds = []
        for _ in range(3):  # the machine may be busy
            start = time.perf_counter()
            found = queries_from(given, VIDEO, WHOLE)
            seconds.append(time.perf_counter() - start)
        assert min(seconds) < 0.1
        torch.testing.assert_close(found.xy[0], rows[:, 1:].float(), rtol=0, atol=0)


def test_real_video(clip: Path) -> None:
    video = open_video(str(clip))
    view = ViewConfig(view="resize", pixels=64).view_of(video.size)
    with pytest.raises(RecipeError, match=r"point 0 \(frame 24, .*clip\.mp4 has the frames 0 to 23"):
        queries_from([(24, 1, 1)], video, view)
    assert queries_from([(23, 96, 72)], video, view).frame.tolist() == [[23]]
