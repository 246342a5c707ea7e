"""The points that a recipe's `[queries]` name, in frames and pixels of one video."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable

import fsspec
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fourd_core.data import Queries
from fourd_core.errors import RecipeError
from fourd_core.interfaces import Video
from fourd_core.media.video import open_video
from fourd_core.media.views import View
from fourd_core.recipe.schema import QueriesConfig

Point = tuple[float, float, float]
"""Frame, x, y."""


def queries_for(config: QueriesConfig | None, video: Video, view: View) -> Queries | None:
    """The points to follow through a video, `1 n`; None where the recipe names none.

    Raises:
        RecipeError: a point outside the video, or outside what the view shows of it; a file that cannot be read.
    """
    if config is None:
        return None
    points = [(f"point {i}", point) for i, point in enumerate(config.points)]
    if config.file is not None:
        points += [(f"{config.file}, row {i}", point) for i, point in _read_points(config.file)]
    if config.grid is not None:
        frames = [_frame_number(frame, video) for frame in config.frames]
        points += [("grid", (frame, x, y)) for frame in frames for x, y in _grid(config, video, view)]
    for name, point in points:
        _check(name, point, video, view)
    if not points:
        raise RecipeError("[queries] names no point: set grid, points or file (and see that the mask is not empty)")
    frame, x, y = zip(*(point for _, point in points), strict=True)
    return Queries(torch.tensor([[int(f) for f in frame]]), torch.stack([torch.tensor(x), torch.tensor(y)], -1)[None])


def queries_from(points: Iterable[Iterable[float]] | Tensor | int, video: Video, view: View) -> Queries:
    """Points given in Python: rows of (frame, x, y), or an integer n for a grid of n x n in the first frame.

    Raises:
        RecipeError: as `queries_for`.
    """
    if isinstance(points, int):
        config = QueriesConfig(grid=points)
    else:
        rows = torch.as_tensor(points if isinstance(points, Tensor) else [list(row) for row in points]).tolist()
        if any(len(row) != 3 for row in rows):
            raise RecipeError("queries are rows of three numbers: frame, x, y")
        config = QueriesConfig(points=tuple((row[0], row[1], row[2]) for row in rows))
    found = queries_for(config, video, view)
    assert found is not None
    return found


def _frame_number(frame: int, video: Video) -> int:
    return frame + video.frame_count if frame < 0 else frame


def _grid(config: QueriesConfig, video: Video, view: View) -> list[tuple[float, float]]:
    """The centres of `grid` x `grid` equal cells over what the view shows, those inside the mask."""
    assert config.grid is not None
    (left, top), (right, bottom) = view.visible()
    place = (torch.arange(config.grid) + 0.5) / config.grid
    y, x = torch.meshgrid(top + place * (bottom - top), left + place * (right - left), indexing="ij")
    xy = torch.stack([x.flatten(), y.flatten()], -1)
    if config.mask is not None:
        xy = xy[_inside(config.mask, xy, video)]
    return [(float(x), float(y)) for x, y in xy.tolist()]


def _inside(mask: str, xy: Float[Tensor, "n 2"], video: Video) -> Bool[Tensor, " n"]:
    """Which points lie where a picture of the video's proportions is brighter than black."""
    picture = open_video(mask)
    h, w = picture.size
    bright = picture.read([0])[0].amax(0) > 0
    column = (xy[:, 0] * (w / video.size[1])).long().clamp(0, w - 1)
    row = (xy[:, 1] * (h / video.size[0])).long().clamp(0, h - 1)
    return bright[row, column]


def _read_points(location: str) -> list[tuple[int, Point]]:
    """Rows `frame,x,y` of a text file by their number; a header is skipped."""
    try:
        with fsspec.open(location, "rt", encoding="utf-8") as handle:
            rows = list(csv.reader(io.StringIO(handle.read())))
    except (OSError, ValueError, ImportError) as error:
        raise RecipeError(f"[queries] file: {location} cannot be read ({error})") from error
    found: list[tuple[int, Point]] = []
    for number, row in enumerate(rows, 1):
        try:
            frame, x, y = (float(item) for item in row)
        except ValueError:
            if number == 1 or not row:
                continue
            raise RecipeError(
                f"[queries] file: row {number} of {location} is {','.join(row)!r}, expected three numbers: frame,x,y"
            ) from None
        found.append((number, (frame, x, y)))
    return found


def _check(name: str, point: Point, video: Video, view: View) -> None:
    frame, x, y = point
    height, width = video.size
    where = f"[queries] {name} (frame {frame:g}, x {x:g}, y {y:g})"
    if not all(map(math.isfinite, point)) or frame != int(frame):
        raise RecipeError(f"{where}: the frame must be a whole number and x and y finite")
    if not 0 <= frame < video.frame_count:
        raise RecipeError(f"{where} lies outside the video: {video.name} has the frames 0 to {video.frame_count - 1}")
    if not (0 <= x <= width and 0 <= y <= height):
        raise RecipeError(f"{where} lies outside the frame: {video.name} is {width} wide and {height} high")
    (left, top), (right, bottom) = view.visible()
    if not (left <= x <= right and top <= y <= bottom):
        raise RecipeError(
            f"{where} lies outside what the network sees, x {left:g} to {right:g} and y {top:g} to {bottom:g}; "
            'use data.view = "resize" to show it the whole frame'
        )
